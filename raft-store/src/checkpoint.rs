//! The applied state on disk, as a shortcut at the next start: nothing more.
//!
//! It is written once, when the peer stops in good order, and spares the next start from applying the log
//! since the last snapshot. It is never the only copy of anything, and never lets the log be forgotten. A
//! marker beside it, made durable last, holds the entry that it is the state of and a digest of every record.
//! The marker is removed before the state is read, so that it serves one start only: after a crash there is
//! none. If anything is in doubt (no marker, a digest that differs, a store that errs, panics or takes too
//! long, a log that does not hold the entry) the state is deleted and rebuilt from snapshot and log.

mod sled;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bincode::{Decode, Encode};
use sha2::{Digest, Sha256};

use self::sled::SledStore;
use crate::codec::{self, CodecError};
use crate::disk::{Disk, RealDisk, read_file, write_atomically};
use crate::identity::DirectoryLock;
use crate::raft::{Applied, StateReader};
use crate::snapshot::SnapshotHead;
use crate::state::State;
use crate::wal::{Failed, Wal};

const STATE_DIR: &str = "state";
const MARKER: &str = "CHECKPOINT";

/// How long reading may take before rebuilding is begun instead: rebuilding takes about as long.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);

/// Keeps a sequence of values in a directory of its own. A backend promises nothing about crashes: what it
/// returns is used only if it equals what it was given.
pub trait StateStore {
    /// Writes `values` into an empty directory, as durably as the backend can. Nothing stays open.
    ///
    /// # Errors
    /// [`StateStoreError`], or that of a value that could not be made.
    fn write(
        &self,
        dir: &Path,
        values: &mut dyn Iterator<Item = Result<Vec<u8>, CodecError>>,
    ) -> Result<(), StateStoreError>;

    /// Hands the values to `take`, in the order in which they were written, while that returns true. Nothing
    /// stays open.
    ///
    /// # Errors
    /// [`StateStoreError`].
    fn read(
        &self,
        dir: &Path,
        take: &mut dyn FnMut(Vec<u8>) -> bool,
    ) -> Result<(), StateStoreError>;
}

/// Why a state was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum StateStoreError {
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
    /// The backend refused.
    #[error("the state store failed")]
    Backend(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A record has no encoding.
    #[error("cannot encode a record of the state")]
    Encode(#[source] CodecError),
    /// The log failed before it was closed, so the stop is not in good order.
    #[error("the log had failed")]
    Log(#[source] Failed),
}

impl StateStoreError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

/// What vouches for a state.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Marker {
    head: SnapshotHead,
    count: u64,
    digest: [u8; 32],
}

/// Digests values as they pass by.
#[derive(Default)]
struct Digester {
    sha: Sha256,
    count: u64,
}

impl Digester {
    fn add(&mut self, value: &[u8]) {
        self.sha.update((value.len() as u64).to_le_bytes());
        self.sha.update(value);
        self.count += 1;
    }

    fn finish(self, head: SnapshotHead) -> Marker {
        Marker {
            head,
            count: self.count,
            digest: self.sha.finalize().into(),
        }
    }
}

/// Writes the checkpoint when a peer stops. Holds the lock on its directory.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    wal: Arc<Wal>,
    reader: StateReader,
    _lock: Arc<DirectoryLock>,
}

impl Checkpoint {
    pub(crate) fn new(
        dir: &Path,
        wal: Arc<Wal>,
        reader: StateReader,
        lock: Arc<DirectoryLock>,
    ) -> Self {
        Self {
            dir: dir.to_owned(),
            wal,
            reader,
            _lock: lock,
        }
    }

    /// Closes the log and writes the state. To be called once openraft has shut down, as the last thing.
    /// Blocks.
    ///
    /// # Errors
    /// [`StateStoreError`]. The next start is slower then, and nothing is lost.
    pub fn stop(self) -> Result<(), StateStoreError> {
        self.wal.close();
        if let Some(failed) = self.wal.watch_failure().borrow().clone() {
            return Err(StateStoreError::Log(failed));
        }
        save(&SledStore, &self.dir, &self.reader.load())
    }
}

/// Writes the state of `applied`, and the marker last.
fn save(store: &dyn StateStore, dir: &Path, applied: &Applied) -> Result<(), StateStoreError> {
    let state_dir = dir.join(STATE_DIR);
    remove_marker(dir)?;
    remove_state(&state_dir)?;
    std::fs::create_dir(&state_dir).map_err(StateStoreError::io("make", &state_dir))?;

    let mut digester = Digester::default();
    let mut values = applied.state.records().map(|record| {
        let value = codec::encode(&record)?;
        digester.add(&value);
        Ok(value)
    });
    store.write(&state_dir, &mut values)?;
    drop(values);
    sync_all(&state_dir)?;

    let marker = digester.finish(applied.head());
    let mut bytes = codec::encode(&marker).map_err(StateStoreError::Encode)?;
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    let path = dir.join(MARKER);
    write_atomically(&RealDisk, &path, &bytes).map_err(StateStoreError::io("write", &path))
}

/// Takes the state that was written when the peer last stopped; none if there is none, or any doubt about
/// it. Either way it is gone afterwards. Blocks, for ten seconds at most.
///
/// # Errors
/// [`StateStoreError::Io`] if what must be deleted cannot be.
pub(crate) fn take(dir: &Path) -> Result<Option<Applied>, StateStoreError> {
    take_from(SledStore, dir, OPEN_DEADLINE)
}

fn take_from(
    store: impl StateStore + Send + 'static,
    dir: &Path,
    deadline: Duration,
) -> Result<Option<Applied>, StateStoreError> {
    let state_dir = dir.join(STATE_DIR);
    let path = dir.join(MARKER);
    let bytes = read_file(&RealDisk, &path).map_err(StateStoreError::io("read", &path))?;
    remove_marker(dir)?;
    let marker = bytes.as_deref().and_then(decode_marker);
    let applied = marker.and_then(|marker| read_within(store, &state_dir, marker, deadline));
    if bytes.is_some() && applied.is_none() {
        tracing::warn!(
            "the state saved at the last stop is not used; rebuilding it from snapshot and log"
        );
    }
    remove_state(&state_dir)?;
    Ok(applied)
}

fn decode_marker(bytes: &[u8]) -> Option<Marker> {
    let (frame, crc) = bytes.split_last_chunk::<4>()?;
    let whole = crc32c::crc32c(frame).to_le_bytes() == *crc;
    whole.then(|| codec::decode(frame).ok()).flatten()
}

/// Reads on a thread of its own, which is left alone if it takes too long or panics.
fn read_within(
    store: impl StateStore + Send + 'static,
    state_dir: &Path,
    marker: Marker,
    deadline: Duration,
) -> Option<Applied> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let state_dir = state_dir.to_owned();
    let read = move || {
        // A panic drops the sender, which the receiver sees.
        let outcome = read_state(&store, &state_dir, marker);
        // The receiver may have given up.
        let _ = sender.send(outcome);
    };
    let thread = std::thread::Builder::new().name("checkpoint".to_owned());
    thread.spawn(read).ok()?;
    match receiver.recv_timeout(deadline) {
        Ok(Ok(applied)) => Some(applied),
        Ok(Err(doubt)) => {
            tracing::warn!(doubt, "the saved state is not what was saved");
            None
        }
        Err(mpsc::RecvTimeoutError::Timeout) => {
            tracing::warn!(?deadline, "the saved state was not read in time");
            None
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            tracing::warn!("reading the saved state panicked");
            None
        }
    }
}

fn read_state(store: &dyn StateStore, dir: &Path, marker: Marker) -> Result<Applied, String> {
    let mut digester = Digester::default();
    let mut records = Vec::new();
    let mut damaged = None;
    let outcome = store.read(dir, &mut |value| {
        digester.add(&value);
        match codec::decode(&value) {
            Ok(record) => records.push(record),
            Err(error) => damaged = Some(error.to_string()),
        }
        damaged.is_none()
    });
    outcome.map_err(|error| error.to_string())?;
    if let Some(damage) = damaged {
        return Err(damage);
    }
    if digester.finish(marker.head.clone()) != marker {
        return Err("its digest differs".to_owned());
    }
    let state = State::from_records(records).map_err(|error| error.to_string())?;
    Ok(Applied {
        last: marker.head.last,
        membership: Arc::new(marker.head.membership),
        state: Arc::new(state),
    })
}

fn remove_marker(dir: &Path) -> Result<(), StateStoreError> {
    let path = dir.join(MARKER);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome
            .and_then(|()| RealDisk.sync_dir(dir))
            .map_err(StateStoreError::io("remove", &path)),
    }
}

fn remove_state(state_dir: &Path) -> Result<(), StateStoreError> {
    match std::fs::remove_dir_all(state_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StateStoreError::io("remove", state_dir)(error))
        }
        _ => Ok(()),
    }
}

/// Syncs every file below `dir`, whatever the backend believes to have done.
fn sync_all(dir: &Path) -> Result<(), StateStoreError> {
    let io = StateStoreError::io("sync", dir);
    let sync = || -> io::Result<()> {
        let mut dirs = vec![dir.to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir)? {
                let path = entry?.path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    std::fs::File::open(&path)?.sync_all()?;
                }
            }
            RealDisk.sync_dir(&dir)?;
        }
        Ok(())
    };
    sync().map_err(io)
}

#[cfg(test)]
mod tests;
