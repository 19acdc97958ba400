//! The applied state on disk, as a shortcut at the next start: nothing more.
//!
//! It spares a start the snapshot and the log after it, where reading it is likely to be sooner (see `cost`). It is not meant to be the only copy of anything, and never lets
//! the log be forgotten. While the peer runs, what changed is written to it now and then, at a bounded rate, off the
//! path of everything else; when the peer stops in good order only the rest is left to write, and what is kept for
//! watchers, which changes too fast to be written more than once. A marker beside it, made durable last, holds the
//! entry that it is the state of and the state's digest. The marker is removed before anything is read or changed, so
//! that it serves one start only: after a crash there is none. If anything is in doubt (no marker or one that cannot be
//! read, a digest that differs, a store that errs, panics or takes too long, a log that does not hold the entry) the state
//! is deleted and rebuilt from snapshot and log. What the disk does not let go of is left, and not used: a marker is moved
//! out of the way, and where `state/` cannot be listed the peer keeps no checkpoint. Where snapshot and log do not give the
//! state any more, because somebody has removed the snapshots, it has become the only copy: then nothing is deleted, and the
//! marker goes only once the state was read.

mod cost;
mod records;
#[cfg(test)]
mod redb;
mod sled;
mod store;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bincode::{Decode, Encode};
use tokio::sync::watch;

pub(crate) use self::cost::pays;
use self::records::Records;
pub use self::store::{Backend, StateStore, StateStoreError, Take, VALUE_MAX, ValueEdit};
use self::writer::{Rhythm, Writer};
use crate::codec;
use crate::disk::{Disk, read_file, remove_all, sync_all, write_atomically};
use crate::entry::LogId;
use crate::identity::DirectoryLock;
use crate::raft::{Applied, StateReader};
use crate::snapshot::SnapshotHead;
use crate::state::{Digest, Restoring};
use crate::wal::Wal;

const STATE_DIR: &str = "state";
const MARKER: &str = "CHECKPOINT";
/// What a marker is called that could not be removed. Nobody reads it.
const MARKER_ASIDE: &str = "CHECKPOINT.unused";

/// How long reading may take before rebuilding is begun instead: several times what is reckoned with. Where rebuilding is
/// reckoned to be sooner, nothing is read; a million sessions, which are read where there is no other copy, take 4 s.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);

/// How long the rest may take to write at a stop. It is given up then, and the next start rebuilds.
const STOP_BUDGET: Duration = Duration::from_secs(5);

/// What vouches for a state.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Marker {
    /// The directory that holds it. Each start uses one of its own, which a thread that an earlier process of
    /// this peer left behind does not know.
    generation: u64,
    pub(crate) head: SnapshotHead,
    digest: Digest,
}

/// Where a peer's checkpoint is, and in what.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    backend: Arc<dyn Backend>,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

/// The state that was saved, and the store that holds it.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) applied: Applied,
    /// Whether there is no other copy of it, so that its marker is still there.
    only_copy: bool,
    generation: u64,
    records: Idle,
}

/// The records of a saved state, for whoever goes on writing them. Nobody does where the start is refused after they were
/// read. Then they are closed on a thread of their own, since closing them may hang, as whatever a backend does.
#[derive(Debug)]
struct Idle(Option<Records>);

impl Idle {
    fn take(&mut self) -> Option<Records> {
        self.0.take()
    }

    /// Closes them, and waits for that for so long at most.
    fn close_within(&mut self, longest: Duration) {
        let Some(records) = self.take() else { return };
        let (closed, done) = mpsc::sync_channel(1);
        let close = move || {
            drop(records);
            // Whoever waited may have given up.
            let _ = closed.send(());
        };
        let thread = std::thread::Builder::new().name("checkpoint".to_owned());
        if let Err(error) = thread.spawn(close) {
            tracing::warn!(%error, "cannot start a thread to close a saved state");
        }
        let ended = done.recv_timeout(longest);
        if ended == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!(
                ?longest,
                "the store of the state saved at the last stop is not closed yet; it is left alone"
            );
        }
    }
}

impl Drop for Idle {
    /// Waits, so that the next start can open the store; unless it hangs.
    fn drop(&mut self) {
        self.close_within(STOP_BUDGET);
    }
}

impl Place {
    /// In sled, below a data directory.
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: &Path) -> Self {
        Self::with_backend(Arc::new(sled::Sled), disk, dir)
    }

    fn with_backend(backend: Arc<dyn Backend>, disk: Arc<dyn Disk>, dir: &Path) -> Self {
        let dir = dir.to_owned();
        Self { backend, disk, dir }
    }

    /// What vouches for the state that was saved when the peer last stopped; none if nothing does. Changes nothing. Blocks.
    ///
    /// # Errors
    /// [`StateStoreError::Io`] if it cannot be read.
    pub(crate) fn vouched(&self) -> Result<Option<Marker>, StateStoreError> {
        let path = self.marker();
        let bytes = read_file(self.disk.as_ref(), &path);
        let bytes = bytes.map_err(StateStoreError::io("read", &path))?;
        let marker = bytes.as_deref().map(decode_marker);
        if marker == Some(None) {
            tracing::warn!(path = %path.display(), "what vouches for the saved state is damaged");
        }
        Ok(marker.flatten())
    }

    /// Where what vouches for a saved state is.
    pub(crate) fn marker(&self) -> PathBuf {
        self.dir.join(MARKER)
    }

    /// Takes away what vouches for a saved state, durably: from then on that may be changed. What cannot be removed, as what
    /// lies on bad sectors, is moved out of the way. Blocks.
    ///
    /// # Errors
    /// [`StateStoreError::Io`]. It may vouch for that state still, also where this peer's has gone on.
    pub(crate) fn disown(&self) -> Result<(), StateStoreError> {
        let path = self.marker();
        let gone = match self.disk.remove(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => {
                let aside = self.dir.join(MARKER_ASIDE);
                self.disk.rename(&path, &aside).map_err(|_| error)
            }
            removed => removed,
        };
        // A sync that fails is not tried again by other means: it would tell nothing.
        let gone = gone.and_then(|()| self.disk.sync_dir(&self.dir));
        gone.map_err(StateStoreError::io("remove", &path))
    }

    /// Takes the state that `marker` vouches for; none if there is any doubt about it. It serves this start only. Blocks,
    /// for ten seconds at most.
    ///
    /// # Errors
    /// [`StateStoreError::Io`] if what vouches for it cannot be removed.
    pub(crate) fn take(&self, marker: Marker) -> Result<Option<Saved>, StateStoreError> {
        self.take_within(OPEN_DEADLINE, marker)
    }

    fn take_within(
        &self,
        deadline: Duration,
        marker: Marker,
    ) -> Result<Option<Saved>, StateStoreError> {
        self.disown()?;
        match self.read_within(deadline, marker) {
            Ok(saved) => Ok(Some(saved)),
            Err(doubt) => {
                tracing::warn!(
                    error = &doubt as &dyn std::error::Error,
                    "the state saved at the last stop is not used; rebuilding it from snapshot and log"
                );
                Ok(None)
            }
        }
    }

    /// Reads the state that `marker` vouches for, and goes on vouching for, as is needed where there is no other copy. Blocks,
    /// for ten seconds at most.
    ///
    /// # Errors
    /// [`StateStoreError`]. Nothing was removed.
    pub(crate) fn read_only_copy(&self, marker: Marker) -> Result<Saved, StateStoreError> {
        let saved = self.read_within(OPEN_DEADLINE, marker)?;
        Ok(Saved {
            only_copy: true,
            ..saved
        })
    }

    /// Reads on a thread of its own, which is left alone if it takes too long or panics.
    fn read_within(&self, deadline: Duration, marker: Marker) -> Result<Saved, StateStoreError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let place = self.clone();
        let read = move || {
            // A panic drops the sender, which the receiver sees. The receiver may have given up.
            let _ = sender.send(place.read(marker));
        };
        let thread = std::thread::Builder::new().name("checkpoint".to_owned());
        let spawned = thread.spawn(read);
        spawned.map_err(StateStoreError::io("start a thread for", &self.dir))?;
        receiver.recv_timeout(deadline).unwrap_or_else(|error| {
            Err(match error {
                mpsc::RecvTimeoutError::Timeout => StateStoreError::NotReadInTime(deadline),
                mpsc::RecvTimeoutError::Disconnected => StateStoreError::Panicked,
            })
        })
    }

    fn read(&self, marker: Marker) -> Result<Saved, StateStoreError> {
        let store = self.backend.open(&self.state_dir(marker.generation))?;
        let mut restoring = Ok(Restoring::default());
        let records = Records::read(store, &mut |record| {
            if let Ok(state) = &mut restoring
                && let Err(error) = state.add(record)
            {
                restoring = Err(error);
            }
        })?;
        let damaged =
            |error: crate::state::RecordError| StateStoreError::Damaged(error.to_string());
        let state = restoring.and_then(Restoring::finish).map_err(damaged)?;
        if state.digest() != marker.digest {
            return Err(StateStoreError::Damaged("its digest differs".to_owned()));
        }
        let applied = Applied {
            last: marker.head.last,
            membership: Arc::new(marker.head.membership),
            state: Arc::new(state),
        };
        Ok(Saved {
            applied,
            only_copy: false,
            generation: marker.generation,
            records: Idle(Some(records)),
        })
    }

    fn state_dir(&self, generation: u64) -> PathBuf {
        self.dir.join(STATE_DIR).join(generation.to_string())
    }

    /// The directories that there are, by generation.
    fn generations(&self) -> io::Result<Vec<u64>> {
        let names = match self.disk.list(&self.dir.join(STATE_DIR)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            names => names?,
        };
        let generations = names.iter().filter_map(|name| name.parse().ok());
        Ok(generations.collect())
    }

    /// Deletes every directory but that of `kept`; gives a generation that no directory ever had since.
    ///
    /// # Errors
    /// [`StateStoreError::Unlisted`]: there is no such generation for certain, and so no place for a checkpoint.
    fn clear(&self, kept: Option<u64>) -> Result<u64, StateStoreError> {
        let generations = self.generations();
        let generations = generations.map_err(|source| StateStoreError::Unlisted {
            path: self.dir.join(STATE_DIR),
            source,
        })?;
        for generation in generations.iter().filter(|it| Some(**it) != kept) {
            let path = self.state_dir(*generation);
            // One that is still being written by a thread left behind goes with a later start.
            if let Err(error) = remove_all(self.disk.as_ref(), &path) {
                tracing::warn!(%error, path = %path.display(), "cannot delete a saved state");
            }
        }
        Ok(generations.into_iter().max().unwrap_or(0) + 1)
    }

    /// Syncs every file of the state, whatever the backend believes to have done, and then vouches for it.
    fn vouch(&self, generation: u64, applied: &Applied) -> Result<(), StateStoreError> {
        let state_dir = self.state_dir(generation);
        sync_all(self.disk.as_ref(), &state_dir)
            .map_err(StateStoreError::io("sync", &state_dir))?;
        for dir in [&self.dir.join(STATE_DIR), &self.dir] {
            let synced = self.disk.sync_dir(dir);
            synced.map_err(StateStoreError::io("sync", dir))?;
        }
        let marker = Marker {
            generation,
            head: applied.head(),
            digest: applied.state.digest(),
        };
        let mut bytes = codec::encode(&marker).map_err(StateStoreError::Codec)?;
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        let path = self.marker();
        write_atomically(self.disk.as_ref(), &path, &bytes)
            .map_err(StateStoreError::io("write", &path))
    }
}

fn decode_marker(bytes: &[u8]) -> Option<Marker> {
    let (frame, crc) = bytes.split_last_chunk::<4>()?;
    let whole = crc32c::crc32c(frame).to_le_bytes() == *crc;
    whole.then(|| codec::decode(frame).ok()).flatten()
}

/// Keeps the checkpoint of a running peer, on a thread of its own. Holds the lock on its directory. Dropping it
/// without [`Checkpoint::stop`] is a stop that was not in good order: the next start rebuilds.
#[derive(Debug)]
pub struct Checkpoint {
    wal: Arc<Wal>,
    worker: Option<Worker>,
    _lock: Arc<DirectoryLock>,
}

impl Checkpoint {
    /// `saved` is what the peer has started from; `place` is none if no checkpoint is kept. Nor is one kept where it cannot be
    /// told what is in `state/`, unless `saved` is the only copy: nothing vouches for what is there any more, nothing is
    /// written there, and the next start is slower, until somebody removes that directory or the disk can be read.
    ///
    /// # Errors
    /// [`StateStoreError`]. What is the only copy is still vouched for, unless its marker could not be taken away durably.
    pub(crate) fn start(
        place: Option<Place>,
        saved: Option<Saved>,
        wal: Arc<Wal>,
        reader: StateReader,
        lock: Arc<DirectoryLock>,
    ) -> Result<Self, StateStoreError> {
        let only_copy = saved.as_ref().is_some_and(|it| it.only_copy);
        let writer = place.map(|place| Writer::new(place, saved, reader, Rhythm::default()));
        let writer = match writer {
            Some(Err(error @ StateStoreError::Unlisted { .. })) if !only_copy => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "no checkpoint is kept: the next start will read snapshot and log. Once the peer is stopped, that \
                     directory may be removed"
                );
                None
            }
            writer => writer.transpose()?,
        };
        let worker = writer.map(|writer| Worker::start(writer, Arc::clone(&lock)));
        let worker = worker.transpose()?;
        Ok(Self {
            wal,
            worker,
            _lock: lock,
        })
    }

    /// The last entry whose effect is written down, as it moves; none if no checkpoint is kept.
    #[must_use]
    pub fn written(&self) -> Option<watch::Receiver<Option<LogId>>> {
        self.worker.as_ref().map(|worker| worker.progress.clone())
    }

    /// Closes the log, and writes what is not written yet. To be called once openraft has shut down, as the last
    /// thing. Blocks, for five seconds at most beyond closing the log.
    ///
    /// # Errors
    /// [`StateStoreError`]. The next start is slower then, and nothing is lost.
    pub fn stop(mut self) -> Result<(), StateStoreError> {
        self.wal.close();
        if let Some(failed) = self.wal.watch_failure().borrow().clone() {
            return Err(StateStoreError::Log(failed));
        }
        match self.worker.take() {
            Some(worker) => worker.finish(STOP_BUDGET),
            None => Ok(()),
        }
    }
}

/// What the thread that writes is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// Write the rest, and vouch for it.
    Finish,
}

/// The thread that writes.
#[derive(Debug)]
struct Worker {
    /// None once it has been told to finish.
    orders: Option<mpsc::SyncSender<Order>>,
    abandoned: Arc<AtomicBool>,
    done: mpsc::Receiver<Result<(), StateStoreError>>,
    progress: watch::Receiver<Option<LogId>>,
}

impl Worker {
    fn start(writer: Writer, lock: Arc<DirectoryLock>) -> Result<Self, StateStoreError> {
        let (orders, received) = mpsc::sync_channel(1);
        let (report, done) = mpsc::sync_channel(1);
        let abandoned = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&abandoned);
        let (dir, progress) = (writer.place().dir.clone(), writer.progress());
        let run = move || {
            crate::precedence::give_way();
            let outcome = writer.run(&received, &seen);
            drop(lock);
            // Whoever waited may have given up.
            let _ = report.send(outcome);
        };
        let thread = std::thread::Builder::new().name("checkpoint".to_owned());
        thread
            .spawn(run)
            .map_err(StateStoreError::io("start a thread for", &dir))?;
        Ok(Self {
            orders: Some(orders),
            abandoned,
            done,
            progress,
        })
    }

    fn finish(mut self, budget: Duration) -> Result<(), StateStoreError> {
        let told = self.orders.as_ref().map(|it| it.send(Order::Finish));
        if !matches!(told, Some(Ok(()))) {
            return Err(StateStoreError::Ended);
        }
        let outcome = self.done.recv_timeout(budget);
        self.orders = None;
        outcome.unwrap_or_else(|error| match error {
            mpsc::RecvTimeoutError::Timeout => Err(StateStoreError::TooLong),
            mpsc::RecvTimeoutError::Disconnected => Err(StateStoreError::Ended),
        })
    }
}

impl Drop for Worker {
    /// Waits, so that the directory's lock is free then; unless the store hangs.
    fn drop(&mut self) {
        self.orders = None;
        self.abandoned.store(true, Ordering::Relaxed);
        let _ = self.done.recv_timeout(STOP_BUDGET);
    }
}

#[cfg(test)]
mod tests;
