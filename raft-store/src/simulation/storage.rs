//! The real store, with the observer looking on, and with faults put in by hand.

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use futures_util::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::alias::{EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf};
use openraft::storage::{EntryResponder, IOFlushed, LogState, RaftLogStorage, RaftStateMachine};
use raftserve_model::NodeId;

use super::observer::Observer;
use super::{SimulatedTypes, runtime};
use crate::disk::{Disk, DiskFile};
use crate::raft::{
    LogReader, LogStore, SnapshotBuilder, StateMachine, StateReader, log_id_from, vote_from,
};
use crate::snapshot::SnapshotFile;

/// A fault put in by hand, to see that the observer finds what it leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Defect {
    /// None: the store as it is.
    #[default]
    None,
    /// The disk says that it has synced, and has not.
    SkipsSync,
    /// Entries are reported durable when they are queued.
    AcknowledgesEarly,
    /// A vote is reported durable, and only written after the entries that come next.
    WritesVoteAfterEntries,
    /// A vote is never written.
    ForgetsVote,
}

type Shared = Arc<Mutex<Observer>>;

#[derive(Clone, Debug)]
pub(super) struct Witness {
    pub(super) node: NodeId,
    pub(super) observer: Shared,
}

impl Witness {
    fn sees<T>(&self, act: impl FnOnce(&mut Observer, NodeId) -> T) -> T {
        act(&mut self.observer.lock().unwrap(), self.node)
    }
}

/// The log, observed.
#[derive(Debug)]
pub(super) struct WatchedLog {
    pub(super) inner: LogStore<SimulatedTypes>,
    pub(super) witness: Witness,
    pub(super) defect: Defect,
    /// A vote that waits for entries, by [`Defect::WritesVoteAfterEntries`].
    pub(super) held: Option<VoteOf<SimulatedTypes>>,
}

impl RaftLogStorage<SimulatedTypes> for WatchedLog {
    type LogReader = LogReader<SimulatedTypes>;

    async fn get_log_state(&mut self) -> io::Result<LogState<SimulatedTypes>> {
        self.inner.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.inner.get_log_reader().await
    }

    async fn save_vote(&mut self, vote: &VoteOf<SimulatedTypes>) -> io::Result<()> {
        match self.defect {
            Defect::WritesVoteAfterEntries => self.held = Some(*vote),
            Defect::ForgetsVote => {}
            _ => self.inner.save_vote(vote).await?,
        }
        let vote = vote_from(vote);
        runtime::note(format_args!("voted {vote:?}"));
        self.witness
            .sees(|observer, node| observer.voted(node, vote));
        Ok(())
    }

    async fn save_committed(&mut self, id: Option<LogIdOf<SimulatedTypes>>) -> io::Result<()> {
        self.inner.save_committed(id).await
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogIdOf<SimulatedTypes>>> {
        self.inner.read_committed().await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<SimulatedTypes>) -> io::Result<()>
    where
        I: IntoIterator<Item = EntryOf<SimulatedTypes>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().collect();
        for entry in &entries {
            self.witness
                .sees(|observer, node| observer.appended(node, entry));
        }
        if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
            let (first, last) = (log_id_from(&first.log_id), log_id_from(&last.log_id));
            runtime::note(format_args!("appends {first} to {last}"));
        }
        if self.defect == Defect::AcknowledgesEarly {
            callback.io_completed(Ok(()));
            return self.inner.append(entries, IOFlushed::noop()).await;
        }
        self.inner.append(entries, callback).await?;
        if let Some(vote) = self.held.take() {
            self.inner.save_vote(&vote).await?;
        }
        Ok(())
    }

    async fn truncate_after(&mut self, keep: Option<LogIdOf<SimulatedTypes>>) -> io::Result<()> {
        let kept = keep.as_ref().map(log_id_from);
        runtime::note(format_args!("truncates after {kept:?}"));
        self.witness
            .sees(|observer, node| observer.truncated(node, kept));
        self.inner.truncate_after(keep).await
    }

    async fn purge(&mut self, upto: LogIdOf<SimulatedTypes>) -> io::Result<()> {
        let purged = log_id_from(&upto);
        runtime::note(format_args!("purges up to {purged}"));
        self.witness
            .sees(|observer, node| observer.purged(node, purged));
        self.inner.purge(upto).await
    }
}

/// The state machine, observed.
#[derive(Debug)]
pub(super) struct WatchedMachine {
    pub(super) inner: StateMachine<SimulatedTypes>,
    pub(super) reader: StateReader,
    pub(super) witness: Witness,
}

impl WatchedMachine {
    fn look(&self) {
        let (last, state) = (self.reader.last(), self.reader.state());
        self.witness
            .sees(|observer, node| observer.reached(node, last, &state));
    }
}

impl RaftStateMachine<SimulatedTypes> for WatchedMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = SnapshotBuilder<SimulatedTypes>;

    async fn applied_state(
        &mut self,
    ) -> io::Result<(
        Option<LogIdOf<SimulatedTypes>>,
        StoredMembershipOf<SimulatedTypes>,
    )> {
        self.inner.applied_state().await
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm:
            Stream<Item = Result<EntryResponder<SimulatedTypes>, io::Error>> + Unpin + OptionalSend,
    {
        let witness = self.witness.clone();
        let observed = entries.inspect(|entry| {
            if let Ok((entry, _)) = entry {
                witness.sees(|observer, node| observer.applies(node, entry));
            }
        });
        let applied = self.inner.apply(observed).await;
        if let Some(last) = self.reader.last() {
            runtime::note(format_args!("applied {last}"));
        }
        self.look();
        applied
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.inner.get_snapshot_builder().await
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<SimulatedTypes>,
        snapshot: SnapshotFile,
    ) -> io::Result<()> {
        self.inner.install_snapshot(meta, snapshot).await?;
        if let Some(last) = self.reader.last() {
            runtime::note(format_args!("installed a snapshot up to {last}"));
            self.witness
                .sees(|observer, node| observer.installed(node, last));
        }
        self.look();
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<SnapshotOf<SimulatedTypes, SnapshotFile>>> {
        self.inner.get_current_snapshot().await
    }
}

/// A disk that says that it has synced, and has not.
#[derive(Debug)]
pub(super) struct LyingDisk(pub(super) Arc<dyn Disk>);

#[derive(Debug)]
struct LyingFile(Arc<dyn DiskFile>);

impl Disk for LyingDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }
    fn is_dir(&self, path: &Path) -> io::Result<bool> {
        self.0.is_dir(path)
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        // The header of a segment is synced all the same: an empty log would be refused at once, which is
        // another test's business.
        Ok(Arc::new(LyingFile(self.0.create(path)?)))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(LyingFile(self.0.open(path)?)))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        self.0.exchange(one, other)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.0.remove_dir(path)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.sync_dir(dir)
    }
}

impl DiskFile for LyingFile {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes)
    }
    fn set_size(&self, size: u64) -> io::Result<()> {
        self.0.set_size(size)
    }
    fn sync(&self) -> io::Result<()> {
        // What little is needed to open the file again is kept.
        if self.0.size()? < 256 {
            self.0.sync()
        } else {
            Ok(())
        }
    }
}
