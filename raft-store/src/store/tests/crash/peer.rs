//! A store on a simulated disk, whose log is written when something waits for it and at no other time.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use openraft::storage::StorageHelper;

use super::*;
use crate::codec;
use crate::disk::Disk;
use crate::entry::Payload;
use crate::identity::DirectoryLock;
use crate::raft::StoreTypes;
use crate::wal::EncodedEntry;

openraft::declare_raft_types!(
    /// The types of a peer, but for blocking jobs: they run at once, on the thread that asks.
    pub(super) Inline:
        D = Command,
        R = crate::command::Outcome,
        NodeId = NodeId,
        Node = crate::raft::PeerRecord,
);

impl StoreTypes for Inline {
    async fn run_blocking<T: Send + 'static>(
        job: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        Ok(job())
    }
}

pub(super) struct Peer {
    pub(super) dir: DataDir,
    pub(super) opened: Opened,
    pub(super) log: LogStore<Inline>,
    pub(super) machine: StateMachine<Inline>,
    pub(super) reader: StateReader,
    pub(super) writer: Writer,
}

/// Waits for `future`, writing the log whenever it waits for that.
pub(super) fn drive<T>(writer: &mut Writer, wal: &Wal, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        assert!(wal.has_work(), "it waits for something else than the log");
        writer.step();
    }
}

impl Peer {
    pub(super) fn open(disk: &SimulatedDisk) -> Result<Self, OpenError> {
        let store = Store {
            wal: WalOptions {
                segment_size: 1500,
                cache_max: 1000,
                ..WalOptions::default()
            },
            saved: SavedState::Unused,
            ..Store::default()
        };
        let lock = DirectoryLock::nothing();
        disk.mount(Path::new(DIR));
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let mut dir = DataDir::open_on(disk, Path::new(DIR), lock)?;
        let (opened, writer) = store.open_idle(&mut dir)?;
        let applied = (*opened.reader.load()).clone();
        let machine = StateMachine::new(applied, Arc::clone(&opened.snapshots));
        Ok(Self {
            log: LogStore::new(Arc::clone(&opened.wal), Arc::clone(&opened.snapshots)),
            reader: machine.reader(),
            machine,
            dir,
            opened,
            writer,
        })
    }

    /// Does what openraft does when it starts.
    pub(super) fn start(&mut self) -> Result<(), String> {
        let helper = StorageHelper::<Inline, _, _>::new(&mut self.log, &mut self.machine);
        let mut helper = helper.with_id(NodeId(1));
        let state = drive(
            &mut self.writer,
            &self.opened.wal,
            helper.get_initial_state(),
        );
        state.map(drop).map_err(|error| error.to_string())
    }

    /// Writes everything that is queued.
    pub(super) fn flush(&mut self) {
        while self.opened.wal.has_work() {
            self.writer.step();
        }
    }

    /// A vote in `term` and an entry of it, both acknowledged.
    pub(super) fn append_one(&mut self, term: u64) -> io::Result<LogId> {
        let wal = Arc::clone(&self.opened.wal);
        let node = NodeId(1);
        let vote = Vote {
            term,
            node,
            committed: true,
        };
        drive(&mut self.writer, &wal, wal.save_vote(vote))?;
        let index = LogIndex(wal.last().map_or(0, |last| last.index.0 + 1));
        let id = LogId { term, node, index };
        let payload = codec::encode(&Payload::Blank).map_err(io::Error::other)?;
        let entry = EncodedEntry::new(id, |buffer| {
            buffer.extend_from_slice(&payload);
            Ok::<(), io::Error>(())
        })?;
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let appending = wal.append(vec![entry], |outcome| sender.send(outcome).unwrap());
        drive(&mut self.writer, &wal, appending).map_err(io::Error::other)?;
        let told = drive(&mut self.writer, &wal, receiver).map_err(io::Error::other)?;
        told.map_err(io::Error::other)?;
        Ok(id)
    }
}
