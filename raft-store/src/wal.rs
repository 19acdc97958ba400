//! The write-ahead log: entries, vote and marks in one ordered stream of records.
//!
//! - **Durable.** What was reported durable is there after a crash at any byte. Group commit: one write
//!   and one `fdatasync` for all that waits, no delay added.
//! - **Ordered.** Records are on disk in the order in which they were given. What a crash cuts off is
//!   always the end.
//! - **Verified.** Every record and every link between segments is checked when the log is opened. A torn
//!   end is cut off; anything else that is wrong is refused with its file and offset, never repaired.
//! - **Fail-stop.** The first I/O error ends all writing. Everything that waits is told, and
//!   [`Wal::watch_failure`] lets the process end with the reason.
//!
//! The log knows nothing about the Raft library, and of entries only their ids.

mod error;
mod format;
mod queue;
mod reading;
mod recovery;
mod scan;
mod stall;
#[cfg(test)]
mod tests;
mod view;
mod writer;

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot, watch};

use crate::disk::Disk;
use crate::entry::{LogId, Vote};
use crate::identity::DirectoryLock;
pub use error::{AppendError, Failed, WalError};
pub use format::EncodedEntry;
use format::Header;
use queue::{Done, GROUP_BYTES_MAX, Item, Shared, lock};
pub use reading::Found;
pub(crate) use recovery::Known;
pub use recovery::TornTail;
use recovery::{Recovery, Remains, Segment};
pub use stall::Stall;
pub use view::OutOfOrder;
pub(crate) use writer::Writer;
use writer::{Active, Marks, Sealed};

/// Large enough that removing one is rare and an open file per segment costs nothing, small enough that
/// purging returns space soon.
const SEGMENT_SIZE: u64 = 64 << 20;

/// What followers that keep up, and applying, read from: several seconds of heavy writing.
const CACHE_MAX: usize = 64 << 20;

/// The most bytes of entries that wait to be written. A disk that stalls then holds up the proposals
/// instead of filling memory; one second of a disk's bandwidth is far less.
const QUEUE_MAX: usize = 64 << 20;

/// A sync takes milliseconds, and on a disk shared with heavy writers hundreds of them. One that takes longer
/// than any election is worth a word.
const STALL: Duration = Duration::from_secs(1);

/// Sizes and times, which only tests change.
#[derive(Clone, Copy, Debug)]
pub struct WalOptions {
    /// A segment at or above this size is sealed before the next group.
    pub segment_size: u64,
    /// Bytes of the newest entries kept in memory.
    pub cache_max: usize,
    /// A write or sync that takes so long is reported while it does.
    pub stall: Duration,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self {
            segment_size: SEGMENT_SIZE,
            cache_max: CACHE_MAX,
            stall: STALL,
        }
    }
}

/// What the writer has done since the log was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Groups written: each took one sync.
    pub groups: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// The time that writing and syncing them took.
    pub busy: Duration,
    /// The longest of those times.
    pub longest: Duration,
}

/// An open log. Closed when dropped: what was queued is still written, and the writer has ended.
pub struct Wal {
    shared: Arc<Shared>,
    room: Arc<Semaphore>,
    /// The writer, and who looks on.
    threads: Mutex<Vec<JoinHandle<()>>>,
    torn: Option<TornTail>,
    /// Kept until the writer has ended, since it still writes marks when it is closed.
    lock: Mutex<Option<Arc<DirectoryLock>>>,
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal").finish_non_exhaustive()
    }
}

impl Wal {
    /// Opens the log in `dir`, which exists; makes an empty one if there is none. Reads and verifies all of
    /// it. Blocks.
    ///
    /// # Errors
    /// See [`WalError`]. Nothing is changed then, except that a torn end may have been cut off.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, options: WalOptions) -> Result<Self, WalError> {
        let (wal, writer) = Self::open_idle(disk, dir, options, Known::Nothing)?;
        wal.start(writer, options.stall)?;
        Ok(wal)
    }

    /// Starts the threads of an idle log.
    pub(crate) fn start(&self, writer: Writer, stall: Duration) -> Result<(), WalError> {
        let onlooker = self.shared.monitor.start(stall);
        lock(&self.threads).push(onlooker.map_err(WalError::Thread)?);
        let writer = std::thread::Builder::new()
            .name("raft-log".to_owned())
            .spawn(move || {
                crate::precedence::take();
                writer.run()
            })
            .map_err(WalError::Thread)?;
        lock(&self.threads).push(writer);
        Ok(())
    }

    /// A log whose writer does not run yet.
    pub(crate) fn open_idle(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: WalOptions,
        known: Known,
    ) -> Result<(Self, Writer), WalError> {
        let recovery = Recovery::run(&*disk, dir, &options, known, Remains::Cut)?;
        let torn = recovery.torn.clone();
        if let Some(torn) = &torn {
            tracing::warn!(
                path = %torn.path.display(), offset = torn.offset, bytes = torn.bytes,
                "the last write to the log was cut short by a crash; its remains are cut off"
            );
        }
        let mut writer = Writer::resume(disk, dir, options.segment_size, recovery)?;
        writer.write_marks()?;
        let shared = Arc::clone(&writer.shared);
        Ok((Self::over(shared, torn), writer))
    }

    /// A log that is only read, and stays as it is to the byte, its torn end included. Blocks.
    pub(crate) fn open_to_read(
        disk: &dyn Disk,
        dir: &Path,
        options: WalOptions,
        known: Known,
    ) -> Result<Self, WalError> {
        let recovery = Recovery::run(disk, dir, &options, known, Remains::Keep)?;
        let shared = Arc::new(Shared::new(recovery.view));
        Ok(Self::over(shared, recovery.torn))
    }

    fn over(shared: Arc<Shared>, torn: Option<TornTail>) -> Self {
        Self {
            shared,
            room: Arc::new(Semaphore::new(QUEUE_MAX)),
            threads: Mutex::default(),
            torn,
            lock: Mutex::new(None),
        }
    }

    /// The log, which now holds the lock on its directory until it is closed.
    pub(crate) fn holding(self, directory: Arc<DirectoryLock>) -> Self {
        *lock(&self.lock) = Some(directory);
        self
    }

    /// What was cut off when the log was opened.
    #[must_use]
    pub fn torn_tail(&self) -> Option<&TornTail> {
        self.torn.as_ref()
    }

    /// The last entry's id, or that of the last one purged.
    #[must_use]
    pub fn last(&self) -> Option<LogId> {
        lock(&self.shared.view).last()
    }

    /// Up to where entries are gone.
    #[must_use]
    pub fn purged(&self) -> Option<LogId> {
        lock(&self.shared.view).purged()
    }

    /// The indexes of the entries that are held.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        lock(&self.shared.view).range()
    }

    /// Bytes written since the log was opened.
    #[must_use]
    pub fn bytes_written(&self) -> u64 {
        self.work().bytes
    }

    /// The bytes of the entries held that follow `id`, or of all.
    #[must_use]
    pub fn bytes_after(&self, id: Option<LogId>) -> u64 {
        self.bytes_of(id.map_or(0, |id| id.index.0 + 1)..u64::MAX)
    }

    /// The bytes of those entries of `range` that are held.
    #[must_use]
    pub fn bytes_of(&self, range: Range<u64>) -> u64 {
        lock(&self.shared.view).bytes_of(range)
    }

    /// The index from which on the entries held take `bytes` at most.
    #[must_use]
    pub fn start_of(&self, bytes: u64) -> u64 {
        lock(&self.shared.view).start_of(bytes)
    }

    /// The last durable vote.
    #[must_use]
    pub fn vote(&self) -> Option<Vote> {
        lock(&self.shared.view).vote
    }

    /// How far the log is known to be committed; never beyond its last entry.
    #[must_use]
    pub fn committed(&self) -> Option<LogId> {
        lock(&self.shared.view).committed
    }

    /// Whether the writer has something to write.
    #[cfg(test)]
    pub(crate) fn has_work(&self) -> bool {
        self.shared.has_work()
    }

    /// Takes entries that follow the log. They can be read when this returns; `done` is called, from the
    /// writer's thread, once they are durable or never will be. Waits only while the queue is full.
    ///
    /// Not cancel safe: callers must not drop it and append again.
    ///
    /// # Errors
    /// [`AppendError`]; `done` is then not called, though it may have been with [`AppendError::Failed`].
    pub async fn append(
        &self,
        entries: Vec<EncodedEntry>,
        done: impl FnOnce(Result<(), Failed>) + Send + 'static,
    ) -> Result<(), AppendError> {
        let following = entries.iter().zip(entries.iter().skip(1));
        for (entry, next) in following.map(|(entry, next)| (entry.id.index.0, next.id.index.0)) {
            if next != entry + 1 {
                let (got, expected) = (next, entry + 1);
                return Err(AppendError::OutOfOrder(OutOfOrder { got, expected }));
            }
        }
        let mut left = entries.into_iter().peekable();
        while left.peek().is_some() {
            let part = take_part(&mut left);
            if left.peek().is_some() {
                // Whoever waits is told with the last part, which fails if this one does.
                self.append_part(part, Box::new(|_| {})).await?;
            } else {
                return self.append_part(part, Box::new(done)).await;
            }
        }
        self.append_part(Vec::new(), Box::new(done)).await
    }

    async fn append_part(&self, entries: Vec<EncodedEntry>, done: Done) -> Result<(), AppendError> {
        let bytes: usize = entries.iter().map(|entry| entry.body().len()).sum();
        let permits = u32::try_from(bytes.min(QUEUE_MAX)).expect("QUEUE_MAX is below 4 GiB");
        let room = Arc::clone(&self.room);
        let permit = room.acquire_many_owned(permits).await;
        let permit = permit.expect("the semaphore is never closed");
        let epoch = lock(&self.shared.view)
            .append(&entries)
            .map_err(AppendError::OutOfOrder)?;
        self.shared.push(Item::Entries {
            entries,
            epoch,
            permit,
            done,
        });
        self.shared
            .failure()
            .map_or(Ok(()), |failed| Err(AppendError::Failed(failed)))
    }

    /// Makes a vote durable, in order with everything before it.
    ///
    /// # Errors
    /// [`Failed`]; the vote must then not be used.
    pub async fn save_vote(&self, vote: Vote) -> Result<(), Failed> {
        self.wait(|done| Item::Vote(vote, done)).await
    }

    /// Voids all entries after `keep`, or all; durable when this returns.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn truncate(&self, keep: Option<LogId>) -> Result<(), Failed> {
        let epoch = lock(&self.shared.view).begin_truncate(keep);
        self.wait(|done| Item::Truncate { keep, epoch, done }).await
    }

    /// Notes how far the log is committed; written along with what is written next.
    pub fn save_committed(&self, committed: Option<LogId>) {
        lock(&self.shared.view).committed = committed;
        self.shared.push(Item::Committed(committed));
    }

    /// Forgets entries up to `upto`, at once for readers. On disk they are forgotten only up to `durable`,
    /// which is not above `upto`: a record says so, and once it is durable, files go.
    pub fn purge(&self, upto: LogId, durable: Option<LogId>) {
        let mut view = lock(&self.shared.view);
        view.purge(upto);
        let moved = durable.filter(|durable| view.moves_durable_purge(*durable));
        drop(view);
        if let Some(durable) = moved {
            self.shared.push(Item::Purge(durable));
        }
    }

    /// Where the entries of `range` that are held are, in order: all of them, or as many as fit into `bytes_max`
    /// and at least one.
    #[must_use]
    pub fn find(&self, range: Range<u64>, bytes_max: usize) -> Found {
        Found::new(Arc::clone(&self.shared), range, bytes_max)
    }

    /// The entries of `range` that are held, in order. Blocks; for start-up.
    ///
    /// # Errors
    /// As [`Found::read`].
    pub fn read_blocking(&self, range: Range<u64>) -> Result<Vec<EncodedEntry>, io::Error> {
        self.find(range, usize::MAX).read()
    }

    /// The failure that ended writing, once there is one. The process should then end: see the module.
    #[must_use]
    pub fn watch_failure(&self) -> watch::Receiver<Option<Failed>> {
        self.shared.watch_failure()
    }

    /// Whether the disk has not answered for long, as that changes.
    #[must_use]
    pub fn watch_stall(&self) -> watch::Receiver<Option<Stall>> {
        self.shared.monitor.watch()
    }

    /// What the writer has done since the log was opened.
    #[must_use]
    pub fn work(&self) -> Work {
        *lock(&self.shared.work)
    }

    /// Writes what is queued, ends the writer and gives up the lock on the directory, whoever still has a
    /// handle to read with. Blocks. Later writes are refused.
    pub fn close(&self) {
        self.shared.close();
        let threads = std::mem::take(&mut *lock(&self.threads));
        // The writer, started last, ends first: a stall is reported as long as it writes.
        for thread in threads.into_iter().rev() {
            if thread.join().is_err() {
                tracing::error!("the log writer had panicked");
            }
            self.shared.monitor.close();
        }
        lock(&self.lock).take();
    }

    async fn wait(&self, item: impl FnOnce(Done) -> Item) -> Result<(), Failed> {
        let (sender, receiver) = oneshot::channel();
        let done = Box::new(move |outcome| {
            // The waiter may be gone; the record is in its place all the same.
            let _ = sender.send(outcome);
        });
        self.shared.push(item(done));
        receiver
            .await
            .unwrap_or_else(|_| Err(Failed::new("the log writer is gone")))
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.close();
    }
}

impl Writer {
    /// A writer that goes on where the log ended.
    fn resume(
        disk: Arc<dyn Disk>,
        dir: &Path,
        segment_size: u64,
        mut recovery: Recovery,
    ) -> Result<Self, WalError> {
        if let Some(last) = recovery.segments.last() {
            renew_end(last)?;
        }
        // Names may not be durable yet.
        disk.sync_dir(dir)
            .map_err(|source| WalError::io("sync", dir, source))?;

        let sealed = recovery.is_sealed();
        let last = recovery.segments.pop();
        let group = recovery.group;
        let mut older: VecDeque<Sealed> = recovery
            .segments
            .iter()
            .map(|segment| Sealed {
                number: segment.number,
                highest: segment.highest,
            })
            .collect();
        let active = match last {
            Some(last) if !sealed => Active {
                number: last.number,
                file: last.file,
                salt: last.salt,
                size: last.size,
                last_crc: last.last_crc,
                chain: last.chain,
                highest: last.highest,
            },
            last => {
                let header = Header {
                    number: last.as_ref().map_or(1, |last| last.number + 1),
                    first_index: recovery.view.range().end,
                    first_group: group + 1,
                    previous_crc: last.as_ref().map_or(0, |last| last.last_crc),
                };
                older.extend(last.map(|last| Sealed {
                    number: last.number,
                    highest: last.highest,
                }));
                let active = Active::create(&*disk, dir, &header)?;
                let file = (Arc::clone(&active.file), active.salt);
                recovery.view.files.insert(active.number, file);
                active
            }
        };
        let marks = Marks {
            vote: recovery.view.vote,
            committed: recovery.view.committed,
            purged: recovery.view.purged(),
        };
        Ok(Self {
            disk,
            dir: dir.to_owned(),
            segment_size,
            sealed: older,
            active,
            group: if recovery.group_ended {
                group
            } else {
                group - 1
            },
            marks,
            marks_due: true,
            buffer: Vec::new(),
            shared: Arc::new(Shared::new(recovery.view)),
        })
    }
}

/// Writes the last group of the log again, byte for byte, and syncs it.
///
/// What was read may be in the page cache only. After a failed sync the kernel may even hold such pages
/// for clean (Rebello et al., USENIX ATC 2020), and the process that was told may be gone: another sync
/// would report a success that never was, and the next groups would follow a hole. Only the last group
/// can be in that state, since a group is written only after the one before was synced. Overwriting
/// bytes with themselves is safe if a power cut leaves old or new sectors, which SQLite assumes too.
fn renew_end(last: &Segment) -> Result<(), WalError> {
    let io = |what| move |source| WalError::io(what, &last.path, source);
    let length = usize::try_from(last.size - last.group_start);
    let mut bytes = vec![0; length.map_err(io::Error::other).map_err(io("read"))?];
    let read = last.file.read_at(last.group_start, &mut bytes);
    read.map_err(io("read"))?;
    let written = last.file.write_at(last.group_start, &bytes);
    written.map_err(io("write"))?;
    last.file.sync().map_err(io("sync"))
}

/// The next entries of an append, as many as one group takes.
fn take_part(
    left: &mut std::iter::Peekable<std::vec::IntoIter<EncodedEntry>>,
) -> Vec<EncodedEntry> {
    let mut part = Vec::new();
    let mut bytes = 0;
    while let Some(entry) =
        left.next_if(|it| part.is_empty() || bytes + it.body().len() <= GROUP_BYTES_MAX)
    {
        bytes += entry.body().len();
        part.push(entry);
    }
    part
}
