//! File access of the log and of snapshots, narrow enough to put a simulated disk beneath it.
//!
//! Nothing is durable before [`DiskFile::sync`] (contents and length) and [`Disk::sync_dir`] (names)
//! have returned. An error of any of these is final for the caller: after a failed sync the kernel may
//! have dropped the dirty pages, so trying again could report a success that never reached the disk
//! (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020).

use std::fmt::Debug;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

#[cfg(test)]
pub(crate) mod failing;
#[cfg(test)]
pub(crate) mod simulated;

/// Directories and names.
pub trait Disk: Debug + Send + Sync + 'static {
    /// Makes a directory and its parents; it may exist.
    ///
    /// # Errors
    /// As the operating system says.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// The names of the files in a directory, in any order.
    ///
    /// # Errors
    /// As the operating system says.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Makes a file that does not exist yet.
    ///
    /// # Errors
    /// As the operating system says; it exists already.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a file that exists, for reading and writing.
    ///
    /// # Errors
    /// As the operating system says.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives a file another name, replacing what had it.
    ///
    /// # Errors
    /// As the operating system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a name; open handles stay readable.
    ///
    /// # Errors
    /// As the operating system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// As the operating system says. Fatal.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// An open file.
pub trait DiskFile: Debug + Send + Sync {
    /// Its length in bytes.
    ///
    /// # Errors
    /// As the operating system says.
    fn size(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// As the operating system says; `UnexpectedEof` if the file is shorter.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// As the operating system says. Any part of `bytes` may have been written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Cuts or extends (with zeros) to `size` bytes.
    ///
    /// # Errors
    /// As the operating system says.
    fn set_size(&self, size: u64) -> io::Result<()>;

    /// Makes contents and length durable.
    ///
    /// # Errors
    /// As the operating system says. Fatal.
    fn sync(&self) -> io::Result<()>;
}

/// The log and the state hold the secrets of services: nobody else on the host may read them.
pub(crate) const FILE_MODE: u32 = 0o600;

/// As [`FILE_MODE`], of directories.
const DIR_MODE: u32 = 0o700;

/// Takes from everybody but the owner what a directory made by an earlier release, or by hand, lets them
/// do with it and with what is in it. What is not ours to change stays as it is, such as the root of a
/// volume: that must not keep a peer from its data, and what it makes in there is its own.
pub(crate) fn make_private(path: &Path) {
    let Ok(found) = std::fs::symlink_metadata(path) else {
        return;
    };
    let mode = found.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 && !found.is_symlink() {
        let _ = std::fs::set_permissions(path, Permissions::from_mode(mode & !0o077));
    }
    if found.is_dir() {
        let inside = std::fs::read_dir(path).into_iter().flatten().flatten();
        inside.for_each(|entry| make_private(&entry.path()));
    }
}

/// The operating system's files.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl RealDisk {
    /// Opens a file that is only read, and so may lie on a volume that cannot be written.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn open_to_read(path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(File::open(path)?)))
    }
}

/// The directory that holds the name of `path`.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

impl Disk for RealDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        // The last one of a relative path is empty, and stands for the working directory.
        let above = path.ancestors().skip(1);
        let missing = |it: &&Path| !it.as_os_str().is_empty() && !it.exists();
        let made: Vec<&Path> = above.take_while(missing).collect();
        let mut private = DirBuilder::new();
        private.recursive(true).mode(DIR_MODE).create(path)?;
        // Of `path` itself whoever builds on it makes the name durable.
        made.into_iter()
            .try_for_each(|dir| self.sync_dir(parent_of(dir)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

/// The operating system's files, of which nothing is changed: they may lie on a volume that cannot be written.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOnlyDisk;

fn only_read<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Disk for ReadOnlyDisk {
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        only_read()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(dir)
    }

    fn create(&self, _: &Path) -> io::Result<Arc<dyn DiskFile>> {
        only_read()
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        RealDisk::open_to_read(path)
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        only_read()
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        only_read()
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        only_read()
    }
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.0.set_len(size)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// Puts `bytes` under `path` so that after a crash either the old or the new contents are there, whole.
///
/// # Errors
/// As the operating system says. The old contents are then still there, or the new ones already.
pub fn write_atomically(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = Path::new(&temporary);
    match disk.remove(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.create(temporary)?;
    file.write_at(0, bytes)?;
    file.sync()?;
    disk.rename(temporary, path)?;
    disk.sync_dir(dir)
}

/// Removes a file, which need not be there, so that it stays away.
///
/// # Errors
/// As the operating system says. The file is then still there, or may come back.
pub fn remove_durably(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => disk.sync_dir(parent_of(path)),
    }
}

/// The whole contents of a file; none if there is no such file.
///
/// # Errors
/// As the operating system says.
pub fn read_file(disk: &dyn Disk, path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match disk.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let size = usize::try_from(file.size()?).map_err(io::Error::other)?;
    let mut bytes = vec![0; size];
    file.read_at(0, &mut bytes)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn nobody_else_reads_what_is_made() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("data/wal");
        RealDisk.create_dir(&dir).unwrap();
        RealDisk.create(&dir.join("1.wal")).unwrap();
        write_atomically(&RealDisk, &dir.join("NODE"), b"x").unwrap();
        assert_eq!(
            (mode(&dir), mode(&root.path().join("data"))),
            (0o700, 0o700)
        );
        assert_eq!(
            (mode(&dir.join("1.wal")), mode(&dir.join("NODE"))),
            (0o600, 0o600)
        );
    }

    #[test]
    fn a_directory_is_made_by_its_bare_name() {
        let taken = tempfile::tempdir_in(".").unwrap();
        let name = Path::new(taken.path().file_name().unwrap());
        for path in [name.to_owned(), name.join("below"), name.join("a/b")] {
            std::fs::remove_dir_all(name).unwrap();
            RealDisk.create_dir(&path).unwrap();
            assert!(path.is_dir(), "{}", path.display());
            RealDisk.create_dir(&path).unwrap();
        }
    }

    #[test]
    fn what_others_could_read_they_can_no_more_and_what_links_lead_to_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let (dir, foreign) = (root.path().join("data/wal"), root.path().join("foreign"));
        std::fs::create_dir_all(&dir).unwrap();
        let log = dir.join("1.wal");
        for path in [&log, &foreign] {
            std::fs::write(path, "secret").unwrap();
            std::fs::set_permissions(path, Permissions::from_mode(0o664)).unwrap();
        }
        std::fs::set_permissions(&dir, Permissions::from_mode(0o2775)).unwrap();
        std::os::unix::fs::symlink(&foreign, dir.join("link")).unwrap();
        make_private(&root.path().join("data"));
        assert_eq!(
            (mode(&dir), mode(&log), mode(&foreign)),
            (0o700, 0o600, 0o664)
        );
        make_private(&root.path().join("missing"));
    }
}
