//! The operating system's files, of which one read fails, or each of some files.

use std::path::PathBuf;
use std::sync::Mutex;

use super::*;

/// Counts reads of files' bytes, lengths and names, and of directories, whoever reads.
#[derive(Debug)]
struct Reads {
    /// How many there are before the one that fails, once.
    left: Option<u64>,
    unread: Option<PathBuf>,
    /// What lies on bad sectors: each read of these fails.
    bad: Vec<PathBuf>,
}

impl Reads {
    fn read(&mut self, path: &Path) -> io::Result<()> {
        if self.left == Some(0) {
            (self.left, self.unread) = (None, Some(path.to_owned()));
            return Err(io::Error::other("injected error of a read"));
        }
        self.left = self.left.map(|left| left - 1);
        if self.bad.iter().any(|bad| bad == path) {
            return Err(io::Error::other("injected error of a bad sector"));
        }
        Ok(())
    }
}

/// The disk. Clones are the same disk.
#[derive(Clone, Debug)]
pub(crate) struct FailingReads(Arc<Mutex<Reads>>);

impl FailingReads {
    /// One read fails after `reads` others.
    pub(crate) fn after(reads: u64) -> Self {
        Self(Arc::new(Mutex::new(Reads {
            left: Some(reads),
            unread: None,
            bad: Vec::new(),
        })))
    }

    /// Each read of these files fails.
    pub(crate) fn of(bad: &[&Path]) -> Self {
        Self(Arc::new(Mutex::new(Reads {
            left: None,
            unread: None,
            bad: bad.iter().map(|path| (*path).to_owned()).collect(),
        })))
    }

    /// The file or directory of which a read failed.
    pub(crate) fn unread(&self) -> Option<PathBuf> {
        self.0.lock().unwrap().unread.clone()
    }

    fn read(&self, path: &Path) -> io::Result<()> {
        self.0.lock().unwrap().read(path)
    }

    fn handle(&self, path: &Path, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(FailingFile {
            disk: self.clone(),
            path: path.to_owned(),
            file,
        })
    }
}

impl Disk for FailingReads {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.read(dir)?;
        RealDisk.list(dir)
    }

    fn is_dir(&self, path: &Path) -> io::Result<bool> {
        self.read(path)?;
        RealDisk.is_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.handle(path, RealDisk.create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.read(path)?;
        Ok(self.handle(path, RealDisk.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        RealDisk.exchange(one, other)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove_dir(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.sync_dir(dir)
    }
}

#[derive(Debug)]
struct FailingFile {
    disk: FailingReads,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
}

impl DiskFile for FailingFile {
    fn size(&self) -> io::Result<u64> {
        self.disk.read(&self.path)?;
        self.file.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.disk.read(&self.path)?;
        self.file.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, bytes)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.file.set_size(size)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}
