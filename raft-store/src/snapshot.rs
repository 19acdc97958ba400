//! Snapshot files: the whole state as of one log entry.
//!
//! ```text
//! magic 8 | format u16 | codec u8 | zero u8 | head length u32 | head crc u32 | head
//! blocks: length u32 | crc u32 | records, each length u32 | frame
//! end: zero u32 | record count u64 | file length u64 | crc of all before u32 | magic 8
//! ```
//! A file is written under another name and synced piece by piece (see `pace`), read back and verified, and only then given its name and
//! that made durable. So a file with a snapshot's name is whole, and damage found later is damage.
//! Two are kept: the log must reach back to the older one, so that the loss of either costs nothing. One that cannot be read
//! stays as it is, and whoever opens the store decides whether the other one will do.
//! Building and installing take turns, and never put an older snapshot in place of a newer one.

mod file;
mod pace;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bincode::{Decode, Encode};
use raftserve_model::{LogIndex, NodeId};

use crate::codec::CodecError;
use crate::disk::{Disk, DiskFile, RealDisk};
use crate::entry::{AppliedMembership, LogId};
use crate::formats;
use crate::state::{Record, RecordError, State};
pub use file::FORMAT as SNAPSHOT_FORMAT;
use file::{Blocks, CHECKSUM_AT, SnapshotWriter};
use pace::{Calm, Pace};

/// The newest, and the one before it.
const KEPT: usize = 2;

const SUFFIX: &str = ".snap";
const TEMPORARY: &str = ".tmp";

/// Of what was received of a snapshot so far. Outlives a restart, since the rest may follow.
const PARTIAL: &str = ".part";

/// Bytes copied at a time.
const COPY_BYTES: usize = 256 << 10;

/// What becomes of files that are no snapshot to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    /// They are removed.
    Clear,
    /// They stay as they are.
    Leave,
}

/// A snapshot that is damaged, or of which a read failed, so that it may yet be whole. Nothing was done to it.
#[derive(Debug)]
pub(crate) struct Unread {
    name: String,
    /// The last entry in it, as its name has it.
    pub(crate) last: LogId,
    /// What failed, and where it is.
    pub(crate) error: SnapshotError,
}

/// The newest snapshots that were read, newest first, and those that could not be.
type Found = (Vec<Snapshot>, Vec<Unread>);

/// What a snapshot says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct SnapshotHead {
    /// The last entry whose effect it holds; none if nothing was applied.
    pub last: Option<LogId>,
    /// The configuration in force then.
    pub membership: AppliedMembership,
}

/// Tells whether two files hold the very same bytes, whoever wrote them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotId {
    /// The last entry in it.
    pub last: Option<LogId>,
    /// Its length in bytes.
    pub size: u64,
    /// The sum of its bytes, as its end has it.
    pub checksum: u32,
}

impl SnapshotId {
    fn partial_name(&self) -> String {
        let LogId { term, node, index } = self.last.unwrap_or_default();
        let (size, checksum) = (self.size, self.checksum);
        format!("{index:020}-{term}-{node}-{size}-{checksum:08x}{PARTIAL}")
    }
}

/// Why a snapshot cannot be written, read or installed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The operating system refused.
    #[error("cannot {what} {}", .path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("snapshot {} is corrupt at byte {offset}: {what}", .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// Written by a newer release.
    #[error(
        "snapshot {} has format {found}, encoding {codec}, and this release reads format {}, encoding {}: run the release that \
         wrote it, or a later one",
        .path.display(), formats::SNAPSHOT, formats::SNAPSHOT_CODEC
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// The version found.
        found: u16,
        /// The version of its records' encoding.
        codec: u8,
    },
    /// A record has no encoding, or is none.
    #[error("snapshot {} holds something that is not a record", .path.display())]
    Codec {
        /// The file.
        path: PathBuf,
        /// Why.
        source: CodecError,
    },
    /// The records are no state.
    #[error("snapshot {} does not hold a state", .path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// Why.
        source: RecordError,
    },
    /// It would put an older state in place of a newer one.
    #[error("snapshot up to {offered} is older than what is held, {held}")]
    Older {
        /// The last entry of the snapshot that was offered.
        offered: LogId,
        /// The last entry of what is held.
        held: LogId,
    },
}

/// An open snapshot file. Stays readable when a newer one takes its place.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
}

impl SnapshotFile {
    /// Opens a file that lies anywhere, to be read. Nothing is verified yet. Blocks.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        match RealDisk::open_to_read(path) {
            Ok(file) => Ok(Self {
                path: path.to_owned(),
                file,
            }),
            Err(source) => Err(SnapshotError::Io {
                what: "open",
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes. Blocks.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    /// The sum of its bytes, as its end has it; of a file that is no snapshot, some number. Blocks.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn checksum(&self) -> io::Result<u32> {
        let mut sum = [0; 4];
        let at = self.file.size()?.saturating_sub(CHECKSUM_AT);
        self.file.read_at(at, &mut sum)?;
        Ok(u32::from_le_bytes(sum))
    }

    /// Whether it is one that the store may still remove or put in place.
    fn is_unfinished(&self) -> bool {
        let name = self.path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.ends_with(TEMPORARY) || name.ends_with(PARTIAL))
    }

    /// Up to `bytes_max` bytes from `offset`; empty at the end. Blocks.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn read(&self, offset: u64, bytes_max: usize) -> io::Result<Vec<u8>> {
        let left = self.file.size()?.saturating_sub(offset);
        let length = bytes_max.min(usize::try_from(left).unwrap_or(bytes_max));
        let mut bytes = vec![0; length];
        self.file.read_at(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes what was received, at `offset`. Only for a file from [`Snapshots::receive`]. Blocks.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, bytes)
    }

    fn io(&self, what: &'static str) -> impl FnOnce(io::Error) -> SnapshotError + '_ {
        move |source| SnapshotError::Io {
            what,
            path: self.path.clone(),
            source,
        }
    }

    /// Reads and verifies the whole file. Blocks.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn verify(&self) -> Result<SnapshotHead, SnapshotError> {
        let mut blocks = Blocks::open(self)?;
        while blocks.next_block()?.is_some() {}
        Ok(blocks.head().clone())
    }

    /// As [`SnapshotFile::verify`]; and that it is the one that is given this name.
    fn verify_as(&self, name: &str) -> Result<SnapshotHead, SnapshotError> {
        let head = self.verify()?;
        if file_name(head.last) == name {
            return Ok(head);
        }
        Err(SnapshotError::Corrupt {
            path: self.path.clone(),
            offset: 0,
            what: "it is another snapshot, renamed",
        })
    }

    /// Reads the state. All of the file is verified before anything is returned. Blocks.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn load(&self) -> Result<(SnapshotHead, State), SnapshotError> {
        let mut blocks = Blocks::open(self)?;
        let mut failure = None;
        let records = std::iter::from_fn(|| match blocks.next_record() {
            Ok(record) => record,
            Err(error) => {
                failure = Some(error);
                None
            }
        });
        let state = State::from_records(records);
        if let Some(error) = failure {
            return Err(error);
        }
        let state = state.map_err(|source| SnapshotError::State {
            path: self.path.clone(),
            source,
        })?;
        Ok((blocks.head().clone(), state))
    }
}

/// A snapshot that is in place.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// What it holds.
    pub head: SnapshotHead,
    /// The file.
    pub file: SnapshotFile,
}

/// The snapshots of a peer.
#[derive(Debug)]
pub struct Snapshots {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// Newest first, at most [`KEPT`], each verified. Never held across file access: the log asks for it.
    kept: Mutex<Vec<Snapshot>>,
    /// Held while one is put in place, so that building and installing take turns.
    turn: Mutex<()>,
    /// Tells temporary files apart.
    sequence: Mutex<u64>,
    calm: Calm,
}

impl Snapshots {
    /// Opens the snapshots in `dir`, which exists. Unfinished files are removed, damaged ones put aside under
    /// another name and reported. Blocks.
    ///
    /// # Errors
    /// [`SnapshotError::Io`], [`SnapshotError::Format`].
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, SnapshotError> {
        let (snapshots, unread) = Self::open_readable(disk, dir)?;
        for unread in unread {
            match unread.error {
                SnapshotError::Corrupt { .. } => snapshots.put_aside(&unread)?,
                error => return Err(error),
            }
        }
        Ok(snapshots)
    }

    /// Gives a damaged snapshot another name, by which nobody looks for it. What was only not read stays as it is.
    pub(crate) fn put_aside(&self, unread: &Unread) -> Result<(), SnapshotError> {
        let Unread { name, error, .. } = unread;
        if !matches!(error, SnapshotError::Corrupt { .. }) {
            return Ok(());
        }
        let (path, aside) = (
            self.dir.join(name),
            self.dir.join(format!("{name}.damaged")),
        );
        tracing::error!(%error, "put aside as {}", aside.display());
        self.disk.rename(&path, &aside).map_err(io("rename", &path))
    }

    /// As [`Snapshots::open`], of those that are whole and can be read. The others stay as they are, and are given too: it is
    /// for the caller to make sure that nothing of theirs is missed.
    ///
    /// # Errors
    /// As [`Snapshots::open`], except that a snapshot's bytes cannot be read.
    pub(crate) fn open_readable(
        disk: Arc<dyn Disk>,
        dir: &Path,
    ) -> Result<(Self, Vec<Unread>), SnapshotError> {
        // A process that was killed may have given a file its name and not made that durable; the log must not
        // be purged because of a snapshot that a power cut takes away.
        disk.sync_dir(dir).map_err(io("sync", dir))?;
        let (kept, unread) = Self::kept_in(&*disk, dir, Others::Clear)?;
        let snapshots = Self {
            disk,
            dir: dir.to_owned(),
            kept: Mutex::new(kept),
            turn: Mutex::new(()),
            sequence: Mutex::new(0),
            calm: Calm::default(),
        };
        Ok((snapshots, unread))
    }

    /// The newest intact snapshot in `dir` that can be read, and what cannot be, as [`Snapshots::open_readable`] has it.
    /// Nothing is changed. There is none where `dir` is not there, which a start would make. Blocks.
    pub(crate) fn newest_in(
        disk: &dyn Disk,
        dir: &Path,
    ) -> Result<(Option<Snapshot>, Vec<Unread>), SnapshotError> {
        let (kept, unread) = Self::kept_in(disk, dir, Others::Leave)?;
        Ok((kept.into_iter().next(), unread))
    }

    fn kept_in(disk: &dyn Disk, dir: &Path, others: Others) -> Result<Found, SnapshotError> {
        let mut names = match disk.list(dir) {
            Err(error) if others == Others::Leave && error.kind() == io::ErrorKind::NotFound => {
                Vec::new()
            }
            names => names.map_err(io("list", dir))?,
        };
        names.sort_unstable();
        let (mut kept, mut unread) = (Vec::new(), Vec::new());
        for name in names.iter().rev() {
            let path = dir.join(name);
            if name.ends_with(TEMPORARY) {
                if others == Others::Clear {
                    disk.remove(&path).map_err(io("remove", &path))?;
                }
                continue;
            }
            let Some(last) = named(name) else { continue };
            if kept.len() == KEPT {
                if others == Others::Clear {
                    disk.remove(&path).map_err(io("remove", &path))?;
                }
                continue;
            }
            match Self::verified(disk, &path, name) {
                Ok(snapshot) => kept.push(snapshot),
                Err(error @ (SnapshotError::Io { .. } | SnapshotError::Corrupt { .. })) => {
                    let name = name.clone();
                    unread.push(Unread { name, last, error });
                }
                Err(error) => return Err(error),
            }
        }
        Ok((kept, unread))
    }

    /// The snapshot at `path`, all of which is read.
    fn verified(disk: &dyn Disk, path: &Path, name: &str) -> Result<Snapshot, SnapshotError> {
        let file = SnapshotFile {
            file: disk.open(path).map_err(io("open", path))?,
            path: path.to_owned(),
        };
        let head = file.verify_as(name)?;
        Ok(Snapshot { head, file })
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Snapshot>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether snapshots are written slowly from now on, those under way included, since clients wait for a log on the same
    /// disk. They are not before this is called.
    pub fn keep_calm(&self, is_calm: bool) {
        self.calm.keep(is_calm);
    }

    /// Until there is one more, snapshots are written as fast as the disk takes them, whoever waits: there is no other copy of
    /// what they hold.
    pub(crate) fn hurry(&self) {
        self.calm.hurry();
    }

    #[cfg(test)]
    pub(crate) fn hurries(&self) -> bool {
        self.calm.hurries()
    }

    #[cfg(test)]
    pub(crate) fn is_calm(&self) -> bool {
        self.calm.is_kept()
    }

    /// The newest snapshot.
    #[must_use]
    pub fn current(&self) -> Option<Snapshot> {
        self.kept().first().cloned()
    }

    /// Up to where the log may be forgotten: the last entry of the older of two snapshots; none while
    /// there are fewer.
    #[must_use]
    pub fn log_floor(&self) -> Option<LogId> {
        self.kept().get(KEPT - 1).and_then(|it| it.head.last)
    }

    /// An empty file to receive a snapshot into. It goes with the next start unless it is installed. Blocks.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn receive(&self) -> Result<SnapshotFile, SnapshotError> {
        let mut sequence = self.sequence.lock().unwrap_or_else(PoisonError::into_inner);
        *sequence += 1;
        let path = self.dir.join(format!("{sequence}{TEMPORARY}"));
        drop(sequence);
        match self.disk.create(&path) {
            Ok(file) => Ok(SnapshotFile { path, file }),
            Err(source) => Err(SnapshotError::Io {
                what: "create",
                path,
                source,
            }),
        }
    }

    /// The file to receive the snapshot `id` into, and how many of its bytes are there from an earlier try. It stays
    /// until it is installed, discarded, or another one is begun: there is one at most. Blocks.
    ///
    /// What is there need not have survived a crash whole: verify it when all has arrived.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn resume(&self, id: &SnapshotId) -> Result<(SnapshotFile, u64), SnapshotError> {
        let wanted = id.partial_name();
        let path = self.dir.join(&wanted);
        let names = self.disk.list(&self.dir).map_err(io("list", &self.dir))?;
        let mut found = false;
        for name in names.iter().filter(|name| name.ends_with(PARTIAL)) {
            if *name == wanted {
                found = true;
            } else {
                let other = self.dir.join(name);
                self.disk.remove(&other).map_err(io("remove", &other))?;
            }
        }
        let file = match found {
            true => self.disk.open(&path),
            false => self.disk.create(&path),
        };
        let file = file.map_err(io("open", &path))?;
        let has = file.size().map_err(io("read", &path))?;
        let whole = has.min(id.size);
        if whole < has {
            file.set_size(whole).map_err(io("cut", &path))?;
        }
        Ok((SnapshotFile { path, file }, whole))
    }

    /// Removes a file from [`Snapshots::receive`] that will not be installed. Blocks.
    pub fn discard(&self, file: &SnapshotFile) {
        if file.is_unfinished()
            && let Err(error) = self.disk.remove(&file.path)
        {
            tracing::warn!(%error, path = %file.path.display(), "cannot remove an unfinished snapshot");
        }
    }

    /// Writes a snapshot of `records`, verifies it by reading it back, and puts it in place. If a newer one is in
    /// place already, that one is returned instead. Blocks.
    ///
    /// # Errors
    /// See [`SnapshotError`]; the snapshots in place are untouched.
    pub fn build(
        &self,
        head: &SnapshotHead,
        records: impl Iterator<Item = Record>,
    ) -> Result<Snapshot, SnapshotError> {
        let file = self.receive()?;
        let last_bytes = self.current().and_then(|last| last.file.size().ok());
        let pace = self.calm.begin(Instant::now(), last_bytes);
        let written = Self::write(&file, head, records, pace);
        let written = written.and_then(|()| self.put(file.clone(), head));
        match written {
            Err(SnapshotError::Older { .. }) => Ok(self
                .current()
                .expect("the snapshot that is newer is in place")),
            Err(error) => {
                self.discard(&file);
                Err(error)
            }
            Ok(snapshot) => Ok(snapshot),
        }
    }

    fn write(
        file: &SnapshotFile,
        head: &SnapshotHead,
        records: impl Iterator<Item = Record>,
        pace: Pace<'_>,
    ) -> Result<(), SnapshotError> {
        let mut writer = SnapshotWriter::start(file, head, pace)?;
        for record in records {
            writer.push(&record)?;
        }
        writer.finish()
    }

    /// A verified snapshot of `records` to be sent elsewhere. It has no name any more, and goes with its last
    /// handle. Blocks.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn export(
        &self,
        head: &SnapshotHead,
        records: impl Iterator<Item = Record>,
    ) -> Result<SnapshotFile, SnapshotError> {
        let file = self.receive()?;
        let written = Self::write(&file, head, records, Pace::at_once());
        let written = written.and_then(|()| file.verify());
        self.discard(&file);
        written.map(|_| file)
    }

    /// Puts a whole snapshot up to `expected` in place, from [`Snapshots::receive`] or from elsewhere (then it is
    /// copied), and reads its state. Verified first. Blocks.
    ///
    /// # Errors
    /// See [`SnapshotError`]; the snapshots in place are untouched.
    pub fn install(
        &self,
        file: &SnapshotFile,
        expected: Option<LogId>,
    ) -> Result<(Snapshot, State), SnapshotError> {
        let (head, state) = file.load()?;
        if head.last != expected {
            return Err(SnapshotError::Corrupt {
                path: file.path.clone(),
                offset: 0,
                what: "it is another snapshot than was announced",
            });
        }
        if let Some(current) = self.current()
            && current.head == head
        {
            return Ok((current, state));
        }
        let own = file.path.parent() == Some(self.dir.as_path()) && file.is_unfinished();
        let file = if own { file.clone() } else { self.copy(file)? };
        let snapshot = self.put(file, &head)?;
        Ok((snapshot, state))
    }

    fn copy(&self, from: &SnapshotFile) -> Result<SnapshotFile, SnapshotError> {
        let to = self.receive()?;
        let mut offset = 0;
        loop {
            let bytes = from.read(offset, COPY_BYTES).map_err(from.io("read"))?;
            if bytes.is_empty() {
                return Ok(to);
            }
            to.write(offset, &bytes).map_err(to.io("write"))?;
            offset += bytes.len() as u64;
        }
    }

    /// Syncs a temporary file, reads it back, and gives it its name.
    fn put(&self, file: SnapshotFile, head: &SnapshotHead) -> Result<Snapshot, SnapshotError> {
        file.file.sync().map_err(file.io("sync"))?;
        let found = file.verify()?;
        if found != *head {
            return Err(SnapshotError::Corrupt {
                path: file.path,
                offset: 0,
                what: "it is not the snapshot that was written",
            });
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = self.current()
            && current.head.last >= head.last
        {
            self.discard(&file);
            let held = current.head.last.unwrap_or_default();
            return match head.last.unwrap_or_default() {
                offered if offered < held => Err(SnapshotError::Older { offered, held }),
                _ => Ok(current),
            };
        }
        let path = self.dir.join(file_name(head.last));
        let renamed = self.disk.rename(&file.path, &path);
        renamed.map_err(file.io("rename"))?;
        let synced = self.disk.sync_dir(&self.dir);
        synced.map_err(file.io("sync"))?;
        let snapshot = Snapshot {
            head: head.clone(),
            file: SnapshotFile {
                path,
                file: file.file,
            },
        };
        let mut kept = self.kept();
        kept.insert(0, snapshot.clone());
        let keep = KEPT.min(kept.len());
        let oldest = kept.split_off(keep);
        drop(kept);
        self.calm.has_one();
        self.remove(&oldest);
        Ok(snapshot)
    }

    fn remove(&self, oldest: &[Snapshot]) {
        for oldest in oldest {
            if let Err(error) = self.disk.remove(&oldest.file.path) {
                let path = oldest.file.path.display();
                tracing::warn!(%error, %path, "cannot remove an old snapshot");
            }
        }
    }
}

/// The last entry of the snapshot of this name, if it is one that [`file_name`] gives: what has another one, such as a copy
/// made by hand, is none of ours.
fn named(name: &str) -> Option<LogId> {
    let mut parts = name.strip_suffix(SUFFIX)?.split('-');
    let mut number = || parts.next()?.parse::<u64>().ok();
    let (index, term, node) = (number()?, number()?, number()?);
    let last = LogId {
        term,
        node: NodeId(node),
        index: LogIndex(index),
    };
    (file_name(Some(last)) == name).then_some(last)
}

fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::Io { what, path, source }
}

/// Names sort as the snapshots' indexes do.
fn file_name(last: Option<LogId>) -> String {
    let last = last.unwrap_or_default();
    format!("{:020}-{}-{}{SUFFIX}", last.index, last.term, last.node)
}

#[cfg(test)]
mod tests;
