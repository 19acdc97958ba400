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

use crate::codec;

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

    /// Whether there is a directory under this name, which is not a link to one.
    ///
    /// # Errors
    /// As the operating system says; that there is nothing of this name is none.
    fn is_dir(&self, path: &Path) -> io::Result<bool>;

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

    /// Lets two names, each of a file or of a directory with all that is in it, change places at one stroke.
    ///
    /// # Errors
    /// As the operating system says. Nothing has changed then.
    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()>;

    /// Removes the name of a file; open handles stay readable.
    ///
    /// # Errors
    /// As the operating system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory that is empty.
    ///
    /// # Errors
    /// As the operating system says.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

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

    fn is_dir(&self, path: &Path) -> io::Result<bool> {
        match std::fs::symlink_metadata(path) {
            Ok(found) => Ok(found.is_dir()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
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

    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        let here = rustix::fs::CWD;
        let exchange = rustix::fs::RenameFlags::EXCHANGE;
        Ok(rustix::fs::renameat_with(here, one, here, other, exchange)?)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir(path)
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

    fn is_dir(&self, path: &Path) -> io::Result<bool> {
        RealDisk.is_dir(path)
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

    fn exchange(&self, _: &Path, _: &Path) -> io::Result<()> {
        only_read()
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        only_read()
    }

    fn remove_dir(&self, _: &Path) -> io::Result<()> {
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

/// Removes a directory and all that is in it; links are not followed. It need not be there.
///
/// # Errors
/// As the operating system says. Any part of it may be gone then.
pub fn remove_all(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let names = match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        names => names?,
    };
    for name in names {
        let path = dir.join(name);
        match disk.is_dir(&path)? {
            true => remove_all(disk, &path)?,
            false => disk.remove(&path)?,
        }
    }
    disk.remove_dir(dir)
}

/// Makes every file and name in a directory durable, and in those within it.
///
/// # Errors
/// As the operating system says. Fatal.
pub fn sync_all(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    for name in disk.list(dir)? {
        let path = dir.join(name);
        match disk.is_dir(&path)? {
            true => sync_all(disk, &path)?,
            false => disk.open(&path)?.sync()?,
        }
    }
    disk.sync_dir(dir)
}

/// The largest file that is read whole: above each that holds one frame. A length that was damaged must not take the memory.
const FILE_MAX: u64 = 2 * codec::FRAME_MAX as u64;

/// The whole contents of a file; none if there is no such file.
///
/// # Errors
/// As the operating system says; `InvalidData` if it is larger than any that we write whole.
pub fn read_file(disk: &dyn Disk, path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match disk.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let size = file.size()?;
    if size > FILE_MAX {
        let what = format!("it has {size} bytes, where {FILE_MAX} are the most");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let mut bytes = vec![0; usize::try_from(size).map_err(io::Error::other)?];
    file.read_at(0, &mut bytes)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests;
