//! Whose data directory this is: `FORMAT`, `NODE` and a lock.
//!
//! `FORMAT` holds the number of the directory's layout and is looked at first. `NODE` holds who the peer is:
//! a nonce drawn at random when the directory was made, and once the peer belongs to a cluster, the
//! cluster's id and the peer's own. Neither is ever changed afterwards, so that a wiped or foreign volume
//! is always told from the original. The lock keeps a second process out, and goes with the process.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftserve_model::{ClusterId, NodeId};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::disk::{Disk, parent_of, read_file, remove_all, remove_durably, write_atomically};
use crate::formats;
use crate::store::{SNAPSHOT_DIR, WAL_DIR};

/// The layout that is written, and the only one that is read.
const FORMAT: u32 = formats::DATA_DIRECTORY;

pub(crate) const FORMAT_FILE: &str = "FORMAT";
const NODE_FILE: &str = "NODE";
const LOCK_FILE: &str = "LOCK";

/// Lies in a directory from when it begins to be filled until it is a data directory: whoever fills it may begin anew.
const UNFINISHED_FILE: &str = "UNFINISHED";

/// What may lie in a directory that is still to be made ours: our own files from a first start that was cut
/// short, and what file systems put into a fresh volume.
const IGNORED: [&str; 4] = [LOCK_FILE, "FORMAT.tmp", "NODE.tmp", "lost+found"];

/// Who a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// It belongs to no cluster yet.
    Pristine {
        /// Drawn when the directory was made.
        nonce: u64,
    },
    /// It belongs to a cluster, for ever.
    Member {
        /// Drawn when the directory was made.
        nonce: u64,
        /// The cluster.
        cluster: ClusterId,
        /// The peer's id in it.
        node: NodeId,
    },
}

impl Identity {
    /// Drawn at random when the directory was made.
    #[must_use]
    pub fn nonce(&self) -> u64 {
        match self {
            Self::Pristine { nonce } | Self::Member { nonce, .. } => *nonce,
        }
    }
}

/// Why a data directory is refused.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The operating system refused.
    #[error("cannot {what} {}", .path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Another process runs on it.
    #[error(
        "data directory {} is in use by process {holder}; stop that peer first, or give this one a directory of its own",
        .path.display()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The process, as it named itself.
        holder: String,
    },
    /// It holds something, and not what a peer writes.
    #[error(
        "{} is not a data directory of raftserve: it holds {found:?} but no {FORMAT_FILE} file. Name an empty directory, or \
         the one that this peer has used before",
        .path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Something in it.
        found: String,
    },
    /// It is to be filled, and holds something.
    #[error(
        "{} is not empty: it holds {found:?}. Name a directory that is empty or does not exist",
        .path.display()
    )]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// Something in it.
        found: String,
    },
    /// Written by a newer release, or damaged.
    #[error(
        "data directory {} has format {found:?}, and this release reads {FORMAT}. Run the release that wrote it, or a later one",
        .path.display()
    )]
    Format {
        /// The directory.
        path: PathBuf,
        /// What its `FORMAT` says.
        found: String,
    },
    /// `NODE` is not what was written.
    #[error(
        "{} is corrupt: {what}. Put it back from a copy; or remove the data directory, so that the peer joins again under \
         a new id",
        .path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// It belongs to another cluster or peer than is claimed.
    #[error(
        "data directory {} belongs to {held}, not to {claimed}. Name the right directory or cluster; a directory never \
         changes its owner",
        .path.display()
    )]
    OtherOwner {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        held: String,
        /// Who claims it.
        claimed: String,
    },
}

/// Holds the lock on a data directory until it is dropped.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Locks nothing: for a directory on a simulated disk, which no other process can see.
    #[cfg(test)]
    pub(crate) fn nothing() -> Self {
        let nowhere = File::open("/dev/null");
        Self {
            _file: nowhere.unwrap(),
        }
    }

    pub(crate) fn take(dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join(LOCK_FILE);
        let io = |source| IdentityError::Io {
            what: "lock",
            path: path.clone(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(crate::disk::FILE_MODE)
            .open(&path)
            .map_err(io)?;
        Self::lock(dir, &mut file)?;
        file.set_len(0).map_err(io)?;
        writeln!(file, "{}", std::process::id()).map_err(io)?;
        Ok(Self { _file: file })
    }

    /// Takes it without putting this process's name into it.
    pub(crate) fn take_to_read(dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join(LOCK_FILE);
        let mut file = File::open(&path).map_err(|source| IdentityError::Io {
            what: "lock",
            path,
            source,
        })?;
        Self::lock(dir, &mut file)?;
        Ok(Self { _file: file })
    }

    fn lock(dir: &Path, file: &mut File) -> Result<(), IdentityError> {
        let io = |source| IdentityError::Io {
            what: "lock",
            path: dir.join(LOCK_FILE),
            source,
        };
        match rustix::fs::flock(&*file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder).map_err(io)?;
                Err(IdentityError::Locked {
                    path: dir.to_owned(),
                    holder: holder.trim().to_owned(),
                })
            }
            Err(errno) => Err(io(errno.into())),
        }
    }
}

/// `NODE` as it is stored: JSON, so that people can read it, and its checksum on a second line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeFile {
    nonce: u64,
    cluster: Option<ClusterId>,
    node: Option<NodeId>,
    /// Whether the log was made: from then on, a log that is not there is a log that was lost.
    log_made: bool,
    /// Whether the log was found to have lost entries that were acknowledged. Absent where it was not, so that such
    /// a file has the bytes it always had.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    log_cut: bool,
    /// Whether the peer was told that its cluster has removed it. Absent where it was not, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    removed: bool,
}

impl NodeFile {
    fn encode(&self) -> String {
        let json = serde_json::to_string(self).expect("numbers and texts have JSON");
        let crc = crc32c::crc32c(json.as_bytes());
        format!("{json}\ncrc32c {crc:08x}\n")
    }

    fn decode(text: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
        let (json, rest) = text.split_once('\n').ok_or("it has no second line")?;
        let crc = crc32c::crc32c(json.as_bytes());
        if rest != format!("crc32c {crc:08x}\n") {
            return Err("its checksum does not match".to_owned());
        }
        let file: Self = serde_json::from_str(json).map_err(|error| error.to_string())?;
        if file.cluster.is_some() != file.node.is_some() {
            return Err(
                "it names a cluster without a peer, or a peer without a cluster".to_owned(),
            );
        }
        Ok(file)
    }

    fn identity(&self) -> Identity {
        let nonce = self.nonce;
        match (self.cluster, self.node) {
            (Some(cluster), Some(node)) => Identity::Member {
                nonce,
                cluster,
                node,
            },
            _ => Identity::Pristine { nonce },
        }
    }
}

/// A data directory that is ours and locked.
#[derive(Debug)]
pub struct DataDir {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    lock: Arc<DirectoryLock>,
    file: NodeFile,
}

impl DataDir {
    /// Opens a data directory, or makes one of an empty or missing directory. Blocks.
    ///
    /// # Errors
    /// [`IdentityError`]; each says what to do. Nothing of another owner is touched.
    pub fn open(path: &Path) -> Result<Self, IdentityError> {
        let disk = Arc::new(crate::disk::RealDisk);
        disk.create_dir(path).map_err(|source| IdentityError::Io {
            what: "make",
            path: path.to_owned(),
            source,
        })?;
        let lock = DirectoryLock::take(path)?;
        let data_dir = Self::open_on(disk, path, lock)?;
        crate::disk::make_private(path);
        Ok(data_dir)
    }

    /// Opens the data directory of a peer that is down, of which nothing is to be changed. Blocks.
    ///
    /// # Errors
    /// [`IdentityError`]; also where no peer ever ran.
    pub(crate) fn open_to_read(
        disk: Arc<dyn Disk>,
        path: &Path,
        lock: impl FnOnce(&Path) -> Result<DirectoryLock, IdentityError>,
    ) -> Result<Self, IdentityError> {
        let io = |source| IdentityError::Io {
            what: "read",
            path: path.to_owned(),
            source,
        };
        let format = read_file(&*disk, &path.join(FORMAT_FILE)).map_err(io)?;
        if format.is_none() {
            let names = disk.list(path).map_err(io)?;
            return Err(IdentityError::Foreign {
                path: path.to_owned(),
                found: names.into_iter().next().unwrap_or_default(),
            });
        }
        let lock = lock(path)?;
        Self::check_format(&*disk, path)?;
        let file = Self::read_or_make_node(&*disk, path)?;
        Ok(Self {
            disk,
            path: path.to_owned(),
            lock: Arc::new(lock),
            file,
        })
    }

    /// Whether there is no directory, or one that holds nothing but what file systems put into a fresh volume. Blocks.
    pub(crate) fn is_empty(disk: &dyn Disk, path: &Path) -> Result<bool, IdentityError> {
        use io::ErrorKind::{NotADirectory, NotFound};
        let names = match disk.list(path) {
            Err(error) if matches!(error.kind(), NotFound | NotADirectory) => return Ok(true),
            names => names.map_err(|source| IdentityError::Io {
                what: "list",
                path: path.to_owned(),
                source,
            })?,
        };
        Ok(names.iter().all(|name| IGNORED.contains(&name.as_str())))
    }

    pub(crate) fn open_on(
        disk: Arc<dyn Disk>,
        path: &Path,
        lock: DirectoryLock,
    ) -> Result<Self, IdentityError> {
        let io = |what| {
            let path = path.to_owned();
            move |source| IdentityError::Io { what, path, source }
        };
        if read_file(&*disk, &path.join(FORMAT_FILE))
            .map_err(io("read"))?
            .is_none()
        {
            let names = disk.list(path).map_err(io("list"))?;
            let mut names = names.iter().filter(|it| !IGNORED.contains(&it.as_str()));
            if let Some(found) = names.next() {
                return Err(IdentityError::Foreign {
                    path: path.to_owned(),
                    found: found.clone(),
                });
            }
            sync_parent(&*disk, path)?;
            let format = format!("{FORMAT}\n");
            write_atomically(&*disk, &path.join(FORMAT_FILE), format.as_bytes())
                .map_err(io("write"))?;
        }
        Self::check_format(&*disk, path)?;
        // A process that was killed may have left names that are not durable, and one that was recovering a cluster
        // that of the directory itself; nothing is built on them before they are.
        sync_parent(&*disk, path)?;
        disk.sync_dir(path).map_err(io("sync"))?;
        let file = Self::read_or_make_node(&*disk, path)?;
        Ok(Self {
            disk,
            path: path.to_owned(),
            lock: Arc::new(lock),
            file,
        })
    }

    fn check_format(disk: &dyn Disk, path: &Path) -> Result<(), IdentityError> {
        let bytes = read_file(disk, &path.join(FORMAT_FILE));
        let bytes = bytes.map_err(|source| IdentityError::Io {
            what: "read the format of",
            path: path.to_owned(),
            source,
        })?;
        let text = String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
        if text == format!("{FORMAT}\n") {
            return Ok(());
        }
        Err(IdentityError::Format {
            path: path.to_owned(),
            found: text.trim_end().chars().take(32).collect(),
        })
    }

    fn read_or_make_node(disk: &dyn Disk, path: &Path) -> Result<NodeFile, IdentityError> {
        let node_path = path.join(NODE_FILE);
        let io = |source| IdentityError::Io {
            what: "read or write",
            path: node_path.clone(),
            source,
        };
        let corrupt = |what: String| IdentityError::Corrupt {
            path: node_path.clone(),
            what,
        };
        if let Some(text) = read_file(disk, &node_path).map_err(io)? {
            return NodeFile::decode(&text).map_err(corrupt);
        }
        // Only a first start that was cut short leaves a FORMAT without a NODE, and then nothing else.
        let names = disk.list(path).map_err(io)?;
        let other = names
            .iter()
            .find(|name| *name != FORMAT_FILE && !IGNORED.contains(&name.as_str()));
        if let Some(other) = other {
            return Err(corrupt(format!("it is missing, but {other:?} is there")));
        }
        let file = NodeFile {
            nonce: random_nonce().map_err(io)?,
            cluster: None,
            node: None,
            log_made: false,
            log_cut: false,
            removed: false,
        };
        write_atomically(disk, &node_path, file.encode().as_bytes()).map_err(io)?;
        Ok(file)
    }

    /// Who this peer is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.file.identity()
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the peer a member of a cluster, durably, for ever. Doing so again changes nothing. Blocks.
    ///
    /// # Errors
    /// [`IdentityError::OtherOwner`] if it is a member already, of another cluster or under another id.
    pub fn join(&mut self, cluster: ClusterId, node: NodeId) -> Result<(), IdentityError> {
        if let Identity::Member {
            cluster: held,
            node: own,
            ..
        } = self.identity()
        {
            if (held, own) == (cluster, node) {
                return Ok(());
            }
            return Err(self.other_owner(&format!("peer {node} of cluster {cluster}")));
        }
        self.save(NodeFile {
            cluster: Some(cluster),
            node: Some(node),
            ..self.file
        })
    }

    /// Refuses a directory that belongs to another cluster than `cluster`.
    ///
    /// # Errors
    /// [`IdentityError::OtherOwner`].
    pub fn require_cluster(&self, cluster: ClusterId) -> Result<(), IdentityError> {
        match self.identity() {
            Identity::Member { cluster: held, .. } if held != cluster => {
                Err(self.other_owner(&format!("cluster {cluster}")))
            }
            _ => Ok(()),
        }
    }

    fn other_owner(&self, claimed: &str) -> IdentityError {
        let held = match self.identity() {
            Identity::Member { cluster, node, .. } => format!("peer {node} of cluster {cluster}"),
            Identity::Pristine { .. } => "nobody".to_owned(),
        };
        IdentityError::OtherOwner {
            path: self.path.clone(),
            held,
            claimed: claimed.to_owned(),
        }
    }

    fn save(&mut self, file: NodeFile) -> Result<(), IdentityError> {
        let path = self.path.join(NODE_FILE);
        write_atomically(&*self.disk, &path, file.encode().as_bytes()).map_err(|source| {
            IdentityError::Io {
                what: "write",
                path,
                source,
            }
        })?;
        self.file = file;
        Ok(())
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    pub(crate) fn lock(&self) -> &Arc<DirectoryLock> {
        &self.lock
    }

    pub(crate) fn log_was_made(&self) -> bool {
        self.file.log_made
    }

    pub(crate) fn log_was_cut(&self) -> bool {
        self.file.log_cut
    }

    /// Notes, for ever, that the log has lost entries which were acknowledged: with what is left of it the peer must
    /// not vote. Blocks.
    ///
    /// # Errors
    /// [`IdentityError::Io`].
    pub fn note_log_cut(&mut self) -> Result<(), IdentityError> {
        self.save(NodeFile {
            log_cut: true,
            ..self.file
        })
    }

    /// Whether the peer was told that its cluster has removed it: what is here is not all that the cluster had since.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.file.removed
    }

    /// Notes, for ever, that the cluster has removed the peer, so that the next start need meet nobody who says so. Blocks.
    ///
    /// # Errors
    /// [`IdentityError::Io`].
    pub fn note_removed(&mut self) -> Result<(), IdentityError> {
        self.save(NodeFile {
            removed: true,
            ..self.file
        })
    }

    /// Makes of it, durably, what [`EmptyDir::take`] takes for the remains of a try that was cut short. Blocks.
    pub(crate) fn undo(self) -> Result<(), IdentityError> {
        let undone = mark_unfinished(&*self.disk, &self.path)
            .and_then(|()| remove_durably(&*self.disk, &self.path.join(FORMAT_FILE)));
        undone.map_err(|source| IdentityError::Io {
            what: "undo",
            path: self.path,
            source,
        })
    }

    pub(crate) fn note_log_made(&mut self) -> Result<(), IdentityError> {
        self.save(NodeFile {
            log_made: true,
            ..self.file
        })
    }
}

/// An empty directory, locked, that is being filled with a peer's data. It is a data directory only once it
/// has an identity, which it is given last: what a crash leaves of it before is refused by every start, and may be
/// filled anew.
#[derive(Debug)]
pub struct EmptyDir {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    lock: DirectoryLock,
    nonce: u64,
}

impl EmptyDir {
    /// Takes an empty or missing directory, or one that was being filled when that was cut short: what is in it is removed.
    /// Blocks.
    ///
    /// # Errors
    /// [`IdentityError::NotEmpty`], [`IdentityError::Locked`]: nothing was changed, but for making the directory.
    /// [`IdentityError::Io`].
    pub fn take(path: &Path) -> Result<Self, IdentityError> {
        let taken = Self::take_on(Arc::new(crate::disk::RealDisk), path, DirectoryLock::take)?;
        crate::disk::make_private(path);
        Ok(taken)
    }

    pub(crate) fn take_on(
        disk: Arc<dyn Disk>,
        path: &Path,
        lock: impl FnOnce(&Path) -> Result<DirectoryLock, IdentityError>,
    ) -> Result<Self, IdentityError> {
        let io = |what| {
            let path = path.to_owned();
            move |source| IdentityError::Io { what, path, source }
        };
        disk.create_dir(path).map_err(io("make"))?;
        let remains = || -> Result<Vec<String>, IdentityError> {
            let mut names = disk.list(path).map_err(io("list"))?;
            names.retain(|name| !IGNORED.contains(&name.as_str()));
            match names.first() {
                Some(found) if !is_unfinished(&names) => Err(IdentityError::NotEmpty {
                    path: path.to_owned(),
                    found: found.clone(),
                }),
                _ => Ok(names),
            }
        };
        // A foreign directory is left without even a lock; of a peer's own, its being in use is told first.
        if !path.join(LOCK_FILE).exists() {
            remains()?;
        }
        let lock = lock(path)?;
        let remains = remains()?;
        if !remains.is_empty() {
            // A try that was killed may have removed FORMAT, and not made that durable. It must not come back without the rest.
            disk.sync_dir(path).map_err(io("sync"))?;
        }
        for name in remains.iter().filter(|name| *name != UNFINISHED_FILE) {
            let inner = path.join(name);
            let removed = match disk.is_dir(&inner) {
                Ok(true) => remove_all(&*disk, &inner),
                Ok(false) => disk.remove(&inner),
                Err(error) => Err(error),
            };
            removed.map_err(io("remove what is left in"))?;
        }
        sync_parent(&*disk, path)?;
        mark_unfinished(&*disk, path).map_err(io("write to"))?;
        Ok(Self {
            nonce: random_nonce().map_err(io("draw a number for"))?,
            disk,
            path: path.to_owned(),
            lock,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The nonce that it will have.
    #[must_use]
    pub fn nonce(&self) -> u64 {
        self.nonce
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Makes it the data directory of a member that has a log, durably. What it is filled with must be durable
    /// before. Blocks.
    ///
    /// # Errors
    /// [`IdentityError::Io`]; it is then not a data directory.
    pub fn become_member(self, cluster: ClusterId, node: NodeId) -> Result<DataDir, IdentityError> {
        let file = NodeFile {
            nonce: self.nonce,
            cluster: Some(cluster),
            node: Some(node),
            log_made: true,
            log_cut: false,
            removed: false,
        };
        let format = format!("{FORMAT}\n");
        for (name, text) in [(NODE_FILE, file.encode()), (FORMAT_FILE, format)] {
            let path = self.path.join(name);
            let written = write_atomically(&*self.disk, &path, text.as_bytes());
            written.map_err(|source| IdentityError::Io {
                what: "write",
                path,
                source,
            })?;
        }
        // Beside a FORMAT it means nothing, should it stay.
        if let Err(error) = self.disk.remove(&self.path.join(UNFINISHED_FILE)) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove {UNFINISHED_FILE}");
        }
        Ok(DataDir {
            disk: self.disk,
            path: self.path,
            lock: Arc::new(self.lock),
            file,
        })
    }
}

/// Whether what is in a directory is what filling it had made when it was cut short.
fn is_unfinished(names: &[String]) -> bool {
    const MADE: [&str; 4] = [UNFINISHED_FILE, NODE_FILE, WAL_DIR, SNAPSHOT_DIR];
    let made = |name: &String| MADE.contains(&name.as_str());
    names.iter().any(|name| name == UNFINISHED_FILE) && names.iter().all(made)
}

/// Notes in a directory, durably, that it is being filled.
fn mark_unfinished(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.create(&path.join(UNFINISHED_FILE)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => disk.sync_dir(path),
    }
}

/// Makes the name of the directory `path` durable, which may be new.
fn sync_parent(disk: &dyn Disk, path: &Path) -> Result<(), IdentityError> {
    let synced = disk.sync_dir(parent_of(path));
    synced.map_err(|source| IdentityError::Io {
        what: "sync the parent of",
        path: path.to_owned(),
        source,
    })
}

/// Random bits from the kernel.
fn random_nonce() -> io::Result<u64> {
    #[cfg(test)]
    if let Some(nonce) = FIXED_NONCE.get() {
        return Ok(nonce);
    }
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
thread_local! {
    /// What is drawn instead of random bits, in a run that must repeat itself.
    pub(crate) static FIXED_NONCE: std::cell::Cell<Option<u64>> =
        const { std::cell::Cell::new(None) };
}

#[cfg(test)]
mod tests;
