//! One replica's directory on the host: what each file in it is called, and how it is written and
//! locked so that any number of peers and shims may use it at once.
//!
//! ```text
//! ROOT/CLUSTER/NAME-SERVICE-NUMBER/
//!   launch.json    what to run; written whole before the first shim is started
//!   files.bin      what is put into work/ before the program starts, if anything; gone once it was
//!   run.lock       locked by the shim for as long as it lives: whoever holds it is the replica
//!   record.json    what is happening; written whole by the shim
//!   control.sock   where the shim listens
//!   stopped        the tombstone: nothing here may be started any more
//!   work/          the working directory of setup and run
//!   log/           their output
//!   shim.log       what a shim had to say about itself
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::{LaunchDocument, Record};

const LAUNCH: &str = "launch.json";
const RECORD: &str = "record.json";
const LOCK: &str = "run.lock";
const TOMBSTONE: &str = "stopped";
const CONTROL: &str = "control.sock";

/// A replica's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
}

/// The lock of a run directory, held until dropped or until the process ends in any way.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

/// A unix socket's path that fits into the 108 bytes of an address however deep its directory is:
/// it goes through an open descriptor of that directory, which must outlive the call it is used in.
#[derive(Debug)]
pub struct SocketPath {
    _directory: OwnedFd,
    path: PathBuf,
}

impl SocketPath {
    /// Shortens `path`.
    ///
    /// # Errors
    /// If its directory cannot be opened.
    pub fn new(path: &Path) -> io::Result<Self> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not the path of a socket",
            ));
        };
        let parent = if parent.as_os_str().is_empty() {
            Path::new(".")
        } else {
            parent
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(parent, flags, Mode::empty())?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
        Ok(Self {
            _directory: directory,
            path,
        })
    }

    /// The short path, valid while `self` lives.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.path
    }
}

impl RunDir {
    /// The run directory at `path`, which need not exist.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The working directory of `setup` and `run`.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// Where their output is kept.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// What a shim had to say about itself.
    #[must_use]
    pub fn shim_log(&self) -> PathBuf {
        self.path.join("shim.log")
    }

    /// Where the shim listens, by a path of any length.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.path.join(CONTROL)
    }

    /// Makes the directory, closed to other users: the environment in it may hold secrets.
    ///
    /// # Errors
    /// If that is refused.
    pub fn create(&self) -> io::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
    }

    /// Takes the lock, or none if another holds it. The lock is that of the file which others will
    /// find, not of one that was removed in the meantime.
    ///
    /// # Errors
    /// If the lock file cannot be made.
    pub fn try_lock(&self) -> io::Result<Option<RunLock>> {
        let path = self.path.join(LOCK);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let (held, found) = (file.metadata()?, fs::metadata(&path)?);
        let same = (held.dev(), held.ino()) == (found.dev(), found.ino());
        Ok(same.then_some(RunLock { _file: file }))
    }

    /// Whether it was told to stop, for good.
    ///
    /// # Errors
    /// If that cannot be told, which must not be taken for "no".
    pub fn is_stopped(&self) -> io::Result<bool> {
        fs::exists(self.path.join(TOMBSTONE))
    }

    /// Writes the tombstone. The first one's time of writing is kept.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_tombstone(&self) -> io::Result<()> {
        let made = OpenOptions::new()
            .create_new(true)
            .write(true)
            .open(self.path.join(TOMBSTONE));
        match made {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    /// When the tombstone was written, as the file system tells.
    #[must_use]
    pub fn stopped_at(&self) -> Option<std::time::SystemTime> {
        fs::metadata(self.path.join(TOMBSTONE))
            .ok()?
            .modified()
            .ok()
    }

    /// What to run; none if nothing was prepared.
    ///
    /// # Errors
    /// If the document cannot be read or understood.
    pub fn launch(&self) -> io::Result<Option<LaunchDocument>> {
        read_document(&self.path.join(LAUNCH))
    }

    /// Writes what to run, unless that was done before: a replica's launch never changes.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_launch_once(&self, launch: &LaunchDocument) -> io::Result<()> {
        let path = self.path.join(LAUNCH);
        if fs::exists(&path)? {
            return Ok(());
        }
        write_document(&path, launch)
    }

    /// What is happening; none if nothing ever started.
    ///
    /// # Errors
    /// If the document cannot be read or understood.
    pub fn record(&self) -> io::Result<Option<Record>> {
        read_document(&self.path.join(RECORD))
    }

    /// Writes what is happening. Only the holder of the lock may.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_record(&self, _lock: &RunLock, record: &Record) -> io::Result<()> {
        write_document(&self.path.join(RECORD), record)
    }

    /// Removes the working directory, which nobody needs once nothing runs.
    ///
    /// # Errors
    /// If something of it cannot be removed.
    pub fn remove_work(&self, _lock: &RunLock) -> io::Result<()> {
        absent_is_fine(fs::remove_dir_all(self.work()))
    }

    /// Removes all but the lock and the tombstone.
    ///
    /// # Errors
    /// If something of it cannot be removed.
    pub fn shrink(&self, _lock: &RunLock) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name() == LOCK || entry.file_name() == TOMBSTONE {
                continue;
            }
            absent_is_fine(if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())
            } else {
                fs::remove_file(entry.path())
            })?;
        }
        Ok(())
    }

    /// Removes the directory, at one stroke for whoever looks for it: never is the tombstone gone
    /// while the rest can still be found. Whoever waits for the lock will notice.
    ///
    /// # Errors
    /// If something of it cannot be removed; what is left bears a name that is no replica's.
    pub fn remove(&self, lock: RunLock) -> io::Result<()> {
        let name = self.path.file_name().unwrap_or_default();
        let aside = self
            .path
            .with_file_name(format!(".gone-{}", name.to_string_lossy()));
        absent_is_fine(fs::remove_dir_all(&aside))?;
        absent_is_fine(fs::rename(&self.path, &aside))?;
        drop(lock);
        absent_is_fine(fs::remove_dir_all(&aside))
    }
}

pub(super) fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn read_document<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            let text = format!("{} is damaged: {error}", path.display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn write_document(path: &Path, document: &impl Serialize) -> io::Result<()> {
    write_whole(path, &serde_json::to_vec(document)?)
}

/// Writes a file so that readers see the old one or the new one, whole. Not synced: everything
/// that it speaks of dies with the host's power too, and the boot id tells.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    static UNIQUE: AtomicU64 = AtomicU64::new(0);
    let temporary = path.with_extension(format!(
        "tmp-{}-{}",
        std::process::id(),
        UNIQUE.fetch_add(1, Ordering::Relaxed)
    ));
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        fs::rename(&temporary, path)
    };
    write().inspect_err(|_| {
        // The error that is returned says more than one from tidying up.
        let _ = fs::remove_file(&temporary);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_is_exclusive_and_ends_with_its_holder() {
        let root = tempfile::tempdir().unwrap();
        let dir = RunDir::new(root.path().join("a"));
        dir.create().unwrap();
        let held = dir.try_lock().unwrap().unwrap();
        assert!(dir.try_lock().unwrap().is_none());
        drop(held);
        assert!(dir.try_lock().unwrap().is_some());
    }

    #[test]
    fn shrinking_keeps_what_refuses_a_late_start() {
        let root = tempfile::tempdir().unwrap();
        let dir = RunDir::new(root.path().join("a"));
        dir.create().unwrap();
        fs::create_dir_all(dir.work().join("deep")).unwrap();
        fs::write(dir.shim_log(), "x").unwrap();
        dir.write_tombstone().unwrap();
        dir.write_tombstone().unwrap();
        let lock = dir.try_lock().unwrap().unwrap();
        dir.shrink(&lock).unwrap();
        assert!(dir.is_stopped().unwrap());
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, [LOCK, TOMBSTONE]);
    }

    #[test]
    fn damaged_document_is_named() {
        let root = tempfile::tempdir().unwrap();
        let dir = RunDir::new(root.path().to_owned());
        assert_eq!(dir.record().unwrap(), None);
        fs::write(root.path().join(RECORD), "{").unwrap();
        let error = dir.record().unwrap_err().to_string();
        assert!(error.contains("record.json is damaged"), "{error}");
    }
}
