//! The files of a replica that is a process: kept beside its launch until its program starts, then put into its working
//! directory by the shim, which alone may touch that.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use raftserve_model::spec::{Destination, FileMount, MountedFile};
use raftserve_store::codec;

use super::run_dir::{RunDir, RunLock, absent_is_fine, write_whole};

/// Where they wait.
fn waiting(dir: &RunDir) -> PathBuf {
    dir.path().join("files.bin")
}

/// Keeps the files for the shim. To be done before the launch is written that says there are some.
///
/// # Errors
/// If they cannot be written.
pub fn keep(dir: &RunDir, mounts: &[FileMount]) -> io::Result<()> {
    let bytes = codec::encode(&mounts.to_vec()).map_err(io::Error::other)?;
    write_whole(&waiting(dir), &bytes)
}

/// Makes the working directory anew, with the kept files in it. Only before the replica's program was ever started.
///
/// # Errors
/// If a file cannot be written, with its path.
pub fn place(dir: &RunDir, _lock: &RunLock) -> io::Result<()> {
    let kept = fs::read(waiting(dir)).map_err(|error| named(error, &waiting(dir)))?;
    let mounts: Vec<FileMount> = codec::decode(&kept).map_err(io::Error::other)?;
    let work = dir.work();
    absent_is_fine(fs::remove_dir_all(&work))?;
    fs::create_dir(&work)?;
    for mount in &mounts {
        let destination = match &mount.destination {
            // The one is the other: see `has_own_home`.
            Destination::Home(path) | Destination::Working(path) => work.join(path),
            Destination::Absolute(path) => {
                return Err(io::Error::other(format!(
                    "{path} is on the host, which replicas share"
                )));
            }
        };
        for (path, file) in mount.files() {
            let path = match path {
                "" => destination.clone(),
                path => destination.join(path),
            };
            write(&path, file).map_err(|error| named(error, &path))?;
        }
    }
    Ok(())
}

/// Whether the replica's home is its working directory: what is put below its home may not meet what others put there.
#[must_use]
pub fn has_own_home(mounts: &[FileMount]) -> bool {
    mounts
        .iter()
        .any(|mount| matches!(mount.destination, Destination::Home(_)))
}

/// Drops the kept files, which nobody needs once the program may have been started. They may be secrets.
///
/// # Errors
/// If they cannot be removed.
pub fn discard(dir: &RunDir) -> io::Result<()> {
    absent_is_fine(fs::remove_file(waiting(dir)))
}

fn write(path: &Path, file: &MountedFile) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut options = OpenOptions::new();
    // For its owner alone until it has its mode.
    options.write(true).create_new(true).mode(0o600);
    let mut written = options.open(path)?;
    written.write_all(&file.bytes)?;
    // Whatever the umask is.
    written.set_permissions(Permissions::from_mode(file.mode))
}

fn named(error: io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use raftserve_model::spec::MountContent;

    use super::*;

    fn file(mode: u32, text: &str) -> MountedFile {
        MountedFile {
            mode,
            bytes: Arc::from(text.as_bytes()),
        }
    }

    #[test]
    fn files_lie_in_a_fresh_working_directory_with_their_modes_and_are_kept_until_then() {
        let root = tempfile::tempdir().unwrap();
        let dir = RunDir::new(root.path().join("a"));
        dir.create().unwrap();
        let lock = dir.try_lock().unwrap().unwrap();
        let of_home = FileMount {
            destination: Destination::Home(".ssh/id".to_owned()),
            content: MountContent::File(file(0o400, "hush")),
        };
        assert!(has_own_home(std::slice::from_ref(&of_home)));
        let of_work = FileMount {
            destination: Destination::Working("conf".to_owned()),
            content: MountContent::Directory(BTreeMap::from([
                ("a".to_owned(), file(0o666, "a")),
                ("bin/b".to_owned(), file(0o777, "b")),
            ])),
        };
        assert!(!has_own_home(std::slice::from_ref(&of_work)));
        keep(&dir, &[of_home, of_work]).unwrap();
        // As if a shim had died in the middle of it.
        fs::create_dir_all(dir.work().join("conf")).unwrap();
        fs::write(dir.work().join("conf/a"), "half").unwrap();
        fs::write(dir.work().join("stray"), "").unwrap();
        for _ in 0..2 {
            place(&dir, &lock).unwrap();
        }
        for (path, text, mode) in [
            (".ssh/id", "hush", 0o400),
            ("conf/a", "a", 0o666),
            ("conf/bin/b", "b", 0o777),
        ] {
            let path = dir.work().join(path);
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            let found = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
            assert_eq!(found, mode, "{}", path.display());
        }
        assert!(!dir.work().join("stray").exists());
        discard(&dir).unwrap();
        discard(&dir).unwrap();
        let gone = place(&dir, &lock).unwrap_err().to_string();
        assert!(gone.contains("files.bin"), "{gone}");
    }

    #[test]
    fn nothing_is_ever_put_elsewhere_on_the_host() {
        let root = tempfile::tempdir().unwrap();
        let dir = RunDir::new(root.path().join("a"));
        dir.create().unwrap();
        let lock = dir.try_lock().unwrap().unwrap();
        let target = root.path().join("target");
        let mount = FileMount {
            destination: Destination::Absolute(target.display().to_string()),
            content: MountContent::File(file(0o644, "x")),
        };
        keep(&dir, &[mount]).unwrap();
        assert!(place(&dir, &lock).is_err());
        assert!(!target.exists());
    }
}
