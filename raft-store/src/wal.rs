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
mod recovery;
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

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot, watch};

use crate::disk::{Disk, DiskFile};
use crate::entry::{LogId, Vote};
use crate::identity::DirectoryLock;
pub use error::{AppendError, Failed, WalError};
pub use format::EncodedEntry;
use format::{Header, Kind};
use queue::{Done, Item, Shared, lock};
use recovery::Recovery;
pub use recovery::TornTail;
pub use view::OutOfOrder;
use view::{Fetch, Place};
use writer::{Active, Marks, Sealed, Writer};

/// Large enough that removing one is rare and an open file per segment costs nothing, small enough that
/// purging returns space soon.
const SEGMENT_SIZE: u64 = 64 << 20;

/// What followers that keep up, and applying, read from: several seconds of heavy writing.
const CACHE_MAX: usize = 64 << 20;

/// The most bytes of entries that wait to be written. A disk that stalls then holds up the proposals
/// instead of filling memory; one second of a disk's bandwidth is far less.
const QUEUE_MAX: usize = 64 << 20;

/// Sizes, which only tests change.
#[derive(Clone, Copy, Debug)]
pub struct WalOptions {
    /// A segment at or above this size is sealed before the next group.
    pub segment_size: u64,
    /// Bytes of the newest entries kept in memory.
    pub cache_max: usize,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self {
            segment_size: SEGMENT_SIZE,
            cache_max: CACHE_MAX,
        }
    }
}

/// An open log. Closed when dropped: what was queued is still written, and the writer has ended.
pub struct Wal {
    shared: Arc<Shared>,
    room: Arc<Semaphore>,
    thread: Mutex<Option<JoinHandle<()>>>,
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
        let (wal, writer) = Self::open_idle(disk, dir, options)?;
        let thread = std::thread::Builder::new()
            .name("raft-log".to_owned())
            .spawn(move || {
                crate::precedence::take();
                writer.run()
            })
            .map_err(WalError::Thread)?;
        *lock(&wal.thread) = Some(thread);
        Ok(wal)
    }

    /// A log whose writer does not run yet.
    fn open_idle(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: WalOptions,
    ) -> Result<(Self, Writer), WalError> {
        let recovery = Recovery::run(&*disk, dir, options.cache_max)?;
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
        let wal = Self {
            shared,
            room: Arc::new(Semaphore::new(QUEUE_MAX)),
            thread: Mutex::new(None),
            torn,
            lock: Mutex::new(None),
        };
        Ok((wal, writer))
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
        self.shared.bytes.load(std::sync::atomic::Ordering::Relaxed)
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

    /// Takes entries that follow the log. They can be read when this returns; `done` is called, from the
    /// writer's thread, once they are durable or never will be. Waits only while the queue is full.
    ///
    /// Not cancel safe: callers must not drop it and append again.
    ///
    /// # Errors
    /// [`AppendError`]; `done` is then not called, except after [`AppendError::Failed`].
    pub async fn append(
        &self,
        entries: Vec<EncodedEntry>,
        done: impl FnOnce(Result<(), Failed>) + Send + 'static,
    ) -> Result<(), AppendError> {
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
            done: Box::new(done),
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
        self.wait(|done| Item::Vote(vote, done)).await?;
        lock(&self.shared.view).vote = Some(vote);
        Ok(())
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
        Found {
            fetches: lock(&self.shared.view).fetch(range, bytes_max),
            shared: Arc::clone(&self.shared),
        }
    }

    /// The entries of `range` that are held, in order. Blocks; for start-up.
    ///
    /// # Errors
    /// As [`Found::read`].
    pub fn read_blocking(&self, range: Range<u64>) -> Result<Vec<EncodedEntry>, io::Error> {
        let fetches = lock(&self.shared.view).fetch(range, usize::MAX);
        fetches.into_iter().map(read_one).collect()
    }

    /// The failure that ended writing, once there is one. The process should then end: see the module.
    #[must_use]
    pub fn watch_failure(&self) -> watch::Receiver<Option<Failed>> {
        self.shared.watch_failure()
    }

    /// Writes what is queued, ends the writer and gives up the lock on the directory, whoever still has a
    /// handle to read with. Blocks. Later writes are refused.
    pub fn close(&self) {
        self.shared.close();
        if let Some(thread) = lock(&self.thread).take()
            && thread.join().is_err()
        {
            tracing::error!("the log writer had panicked");
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
        let io = |source| WalError::io("sync", dir, source);
        // What was read may be in the page cache only, and names may not be durable yet.
        if let Some(last) = recovery.segments.last() {
            last.file.sync().map_err(io)?;
        }
        disk.sync_dir(dir).map_err(io)?;

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

/// Entries that are held, in memory or on disk. They stay readable when the log purges them.
pub struct Found {
    fetches: Vec<Fetch>,
    shared: Arc<Shared>,
}

impl Found {
    /// Whether all are in memory, so that reading them does not block.
    #[must_use]
    pub fn is_cached(&self) -> bool {
        let mut fetches = self.fetches.iter();
        fetches.all(|it| matches!(it, Fetch::Cached(_)))
    }

    /// The entries. Blocks.
    ///
    /// # Errors
    /// Damaged or unreadable records. The log then fails as a whole: a peer that cannot read its own log must
    /// not act on it.
    pub fn read(self) -> Result<Vec<EncodedEntry>, io::Error> {
        let entries: Result<_, _> = self.fetches.into_iter().map(read_one).collect();
        if let Err(error) = &entries {
            let reason = format!("cannot read an entry: {error}");
            self.shared.fail(Failed::new(&reason));
        }
        entries
    }
}

fn read_one(fetch: Fetch) -> Result<EncodedEntry, io::Error> {
    match fetch {
        Fetch::Cached(entry) => Ok(entry),
        Fetch::Stored {
            index,
            place,
            file,
            salt,
        } => read_stored(index, place, &*file, salt),
    }
}

fn read_stored(
    index: u64,
    place: Place,
    file: &dyn DiskFile,
    salt: u32,
) -> Result<EncodedEntry, io::Error> {
    let mut bytes = vec![0; place.length as usize];
    file.read_at(place.offset, &mut bytes)?;
    let damaged = || {
        let (segment, offset) = (place.segment, place.offset);
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("entry {index} in log segment {segment} is damaged at byte {offset}"),
        )
    };
    let (record, _) = format::parse_record(&bytes, salt).map_err(|_| damaged())?;
    if record.kind != Kind::Entry || record.index != index {
        return Err(damaged());
    }
    let body = Bytes::from(bytes).slice(format::RECORD_HEAD..);
    EncodedEntry::from_body(index, body).ok_or_else(damaged)
}
