//! openraft's conformance suite over the real store, and what it does not look at.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use openraft::alias::{EntryOf, SnapshotOf, VoteOf};
use openraft::entry::RaftEntry;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::storage::RaftStateMachine;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{Config, EntryPayload, OptionalSend, Raft, RaftSnapshotBuilder, StorageError};
use raftserve_model::{LogIndex, LogTime};

use super::*;
use crate::checkpoint::Checkpoint;
use crate::command::{Action, Request};
use crate::entry::LogId;
use crate::identity::DataDir;
use crate::snapshot::SnapshotFile;
use crate::state::KvCondition;
use crate::store::Store;
use crate::wal::Wal;

/// A real store in a directory of its own.
struct RealStore;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for RealStore {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let mut data = DataDir::open(&dir.path().join("data")).unwrap();
        let opened = Store::default().open(&mut data).unwrap();
        Ok((dir, opened.log, opened.machine))
    }
}

#[tokio::test]
async fn the_store_conforms_to_openrafts_suite() {
    Suite::test_all(RealStore).await.unwrap();
}

/// A cluster of one has nobody to talk to.
struct NoPeers;

fn nobody() -> Unreachable<TypeConfig> {
    Unreachable::new(&std::io::Error::other("a cluster of one"))
}

impl RaftNetworkFactory<TypeConfig> for NoPeers {
    type Network = Self;

    async fn new_client(&mut self, _target: NodeId, _node: &PeerRecord) -> Self {
        Self
    }
}

impl RaftNetworkV2<TypeConfig> for NoPeers {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        _rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(nobody().into())
    }

    async fn vote(
        &mut self,
        _rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(nobody().into())
    }

    async fn full_snapshot(
        &mut self,
        _vote: VoteOf<TypeConfig>,
        _snapshot: SnapshotOf<TypeConfig, SnapshotFile>,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        Err(nobody().into())
    }
}

/// A voter of one on a real store.
struct Alone {
    raft: Raft<TypeConfig, StateMachine>,
    reader: StateReader,
    wal: Arc<Wal>,
    checkpoint: Checkpoint,
}

impl Alone {
    async fn start(path: &Path) -> Self {
        let config = Config {
            max_in_snapshot_log_to_keep: 0,
            purge_batch_size: 1,
            ..raft_config(Profile::Fast)
        };
        Self::start_with(path, config).await.0
    }

    async fn start_with(path: &Path, config: Config) -> (Self, Retention) {
        let opened = Store::default()
            .open(&mut DataDir::open(path).unwrap())
            .unwrap();
        let raft = Raft::new(
            NodeId(1),
            Arc::new(config),
            NoPeers,
            opened.log,
            opened.machine,
        );
        let raft = raft.await.unwrap();
        if !raft.is_initialized().await.unwrap() {
            let members = BTreeMap::from([(NodeId(1), PeerRecord::default())]);
            raft.initialize(members).await.unwrap();
        }
        let leads = raft.wait(Some(Duration::from_secs(10)));
        leads
            .current_leader(NodeId(1), "it elects itself")
            .await
            .unwrap();
        let alone = Self {
            raft,
            reader: opened.reader,
            wal: opened.wal,
            checkpoint: opened.checkpoint,
        };
        (alone, opened.retention)
    }

    async fn write(&self, count: u64) -> LogIndex {
        let mut last = LogIndex(0);
        for _ in 0..count {
            let command = Command::at(LogTime::default(), Action::OpenClient);
            let written = self.raft.client_write(command).await.unwrap();
            last = LogIndex(written.log_id.index);
            assert_eq!(written.data, Outcome::Index(last));
            assert!(
                self.reader.last().unwrap().index >= last,
                "published before answered"
            );
        }
        last
    }

    async fn snapshot(&self, upto: LogIndex) {
        self.raft.trigger().snapshot().await.unwrap();
        let built = self.raft.wait(Some(Duration::from_secs(10)));
        let is_there = move |metrics: &openraft::RaftMetrics<TypeConfig>| {
            metrics.snapshot.is_some_and(|id| id.index >= upto.0)
                && metrics.purged.is_some_and(|id| id.index >= upto.0)
        };
        built.metrics(is_there, "snapshot and purge").await.unwrap();
    }
}

/// Openraft purges nothing by itself, since it knows of no bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_kept_by_entries_and_by_bytes_and_never_purged_beyond_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let (alone, mut retention) = Alone::start_with(dir.path(), raft_config(Profile::Fast)).await;
    let last = alone.write(40).await;
    retention.batch = 1;
    retention.entries = 10;
    assert_eq!(retention.purgeable(), None, "there is no snapshot");
    alone.raft.trigger().snapshot().await.unwrap();
    let wait = || alone.raft.wait(Some(Duration::from_secs(10)));
    wait()
        .snapshot(log_id_to(alone.reader.last().unwrap()), "a snapshot")
        .await
        .unwrap();
    assert_eq!(alone.wal.range().start, 0, "nothing was purged yet");
    assert_eq!(retention.purgeable(), Some(LogIndex(last.0 - 10)));
    // Purging costs a sync: as much goes at a time as is kept, or a whole batch.
    let half = last.0.div_ceil(2);
    let of = |kept| retention.clone().keeping(kept).purgeable();
    assert_eq!(of(half), Some(LogIndex(last.0 - half)));
    assert_eq!(of(half + 1), None);
    let kept = alone.wal.bytes_of(last.0 - 2..u64::MAX);
    for (bytes, purgeable) in [(kept, last.0 - 3), (kept - 1, last.0 - 2), (0, last.0)] {
        retention.bytes = bytes;
        assert_eq!(retention.purgeable(), Some(LogIndex(purgeable)));
    }
    alone.write(5).await;
    assert_eq!(
        retention.purgeable(),
        Some(last),
        "the snapshot has no more"
    );
    retention.batch = 100;
    assert_eq!(retention.purgeable(), None, "not worth its while");
    retention.batch = 1;
    retention.bytes = kept;
    let upto = retention.purgeable().unwrap();
    alone.raft.trigger().purge_log(upto.0).await.unwrap();
    let purged = |metrics: &openraft::RaftMetrics<TypeConfig>| {
        metrics.purged.is_some_and(|id| id.index == upto.0)
    };
    wait().metrics(purged, "purged").await.unwrap();
    assert_eq!(retention.purgeable(), None);
    alone.raft.shutdown().await.unwrap();
    alone.checkpoint.stop().unwrap();
}

fn put_key() -> Action {
    Action::Request(Request::PutKey {
        key: "a".parse().unwrap(),
        value: Arc::from(*b"1"),
        condition: KvCondition::Any,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn news_are_of_all_but_keys() {
    let dir = tempfile::tempdir().unwrap();
    let alone = Alone::start(dir.path()).await;
    let news = alone.reader.news();
    let opened = alone.write(1).await;
    assert_eq!(*news.borrow(), opened);
    for _ in 0..3 {
        let command = Command::at(LogTime::default(), put_key());
        let written = alone.raft.client_write(command).await.unwrap();
        assert!(alone.reader.applied().borrow().0 >= written.log_id.index);
        assert_eq!(*news.borrow(), opened, "keys are no news");
    }
    let opened = alone.write(1).await;
    assert_eq!(*news.borrow(), opened);
    let joined = alone
        .raft
        .add_learner(NodeId(2), PeerRecord::default(), false);
    let joined = joined.await.unwrap();
    assert_eq!(news.borrow().0, joined.log_id.index, "members are news");
    alone.raft.shutdown().await.unwrap();
    alone.checkpoint.stop().unwrap();
}

/// Of a cluster of one in its first term.
fn entry(index: u64, action: Action) -> EntryOf<TypeConfig> {
    let id = LogId {
        index: LogIndex(index),
        ..LogId::default()
    };
    let command = Command::at(LogTime::default(), action);
    EntryOf::<TypeConfig>::new(log_id_to(id), EntryPayload::Normal(command))
}

#[tokio::test]
async fn news_are_told_of_a_key_that_comes_with_them_and_of_a_snapshot() {
    let (_from, _, mut machine) = RealStore.build().await.unwrap();
    let news = machine.reader().news();
    let entries = [Action::OpenClient, put_key()];
    let entries = (1..)
        .zip(entries)
        .map(|(at, action)| Ok((entry(at, action), None)));
    machine.apply(stream::iter(entries)).await.unwrap();
    assert_eq!(*news.borrow(), LogIndex(2));

    let mut builder = machine.get_snapshot_builder().await;
    let built = builder.build_snapshot().await.unwrap();
    let (_to, _, mut behind) = RealStore.build().await.unwrap();
    let news = behind.reader().news();
    behind
        .install_snapshot(&built.meta, built.snapshot)
        .await
        .unwrap();
    assert_eq!(*news.borrow(), LogIndex(2), "whatever is in a snapshot");
}

/// By the membership in the log before it, or in the snapshot that took that log's place.
#[tokio::test]
async fn nobody_is_admitted_under_the_id_of_a_founder() {
    let members = crate::entry::Membership {
        configs: vec![[NodeId(1), NodeId(3)].into()],
        nodes: [1, 2, 3]
            .map(|node| (NodeId(node), PeerRecord::default()))
            .into(),
    };
    let founding = EntryOf::<TypeConfig>::new(
        log_id_to(LogId::default()),
        EntryPayload::Membership(membership_to(members).unwrap()),
    );
    let admit = |at| {
        let action = Action::AdmitPeer {
            nonce: 7,
            address: String::new(),
            promotion: crate::state::Promotion::Automatic,
            replaces: None,
        };
        Ok((entry(at, action), None))
    };
    let (_from, _, mut machine) = RealStore.build().await.unwrap();
    let first = stream::iter([Ok((founding, None)), admit(1), admit(2)]);
    machine.apply(first).await.unwrap();
    assert_eq!(machine.reader().state().peers().count(), 0);
    let mut builder = machine.get_snapshot_builder().await;
    let built = builder.build_snapshot().await.unwrap();

    let (_to, _, mut behind) = RealStore.build().await.unwrap();
    behind
        .install_snapshot(&built.meta, built.snapshot)
        .await
        .unwrap();
    for machine in [&mut machine, &mut behind] {
        let rest = stream::iter([admit(3), admit(4)]);
        machine.apply(rest).await.unwrap();
        let state = machine.reader().state();
        let ids: Vec<_> = state.peers().map(|peer| peer.id).collect();
        assert_eq!(ids, [NodeId(4)]);
    }
    let digest = |machine: &StateMachine| machine.reader().state().digest();
    assert_eq!(digest(&machine), digest(&behind));
}

/// Though the peer has no snapshot of its own that would be newer.
#[tokio::test]
async fn a_snapshot_of_less_than_was_applied_is_refused() {
    let (_from, _, mut machine) = RealStore.build().await.unwrap();
    let first = stream::iter([Ok((entry(1, Action::OpenClient), None))]);
    machine.apply(first).await.unwrap();
    let mut builder = machine.get_snapshot_builder().await;
    let built = builder.build_snapshot().await.unwrap();

    let (_to, _, mut ahead) = RealStore.build().await.unwrap();
    let both = (1..=2).map(|index| Ok((entry(index, Action::OpenClient), None)));
    ahead.apply(stream::iter(both)).await.unwrap();
    let digest = ahead.reader().state().digest();
    let refused = ahead.install_snapshot(&built.meta, built.snapshot).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("is older than what is held"), "{refused}");
    assert_eq!(ahead.reader().last().unwrap().index, LogIndex(2));
    assert_eq!(ahead.reader().state().digest(), digest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_goes_on_after_every_kind_of_stop() {
    let dir = tempfile::tempdir().unwrap();
    let mut clients = 0;
    for (round, clean) in [(0, false), (1, true), (2, false), (3, true), (4, false)] {
        let alone = Alone::start(dir.path()).await;
        assert_eq!(
            alone.reader.state().client_count(),
            clients,
            "round {round}"
        );
        let last = alone.write(20).await;
        if round % 2 == 0 {
            alone.snapshot(last).await;
        }
        alone.write(5).await;
        clients += 25;
        let Alone {
            raft,
            reader,
            wal,
            checkpoint,
        } = alone;
        raft.shutdown().await.unwrap();
        drop((raft, reader));
        if clean {
            checkpoint.stop().unwrap();
        } else {
            wal.close();
        }
    }
    let opened = Store::default()
        .open(&mut DataDir::open(dir.path()).unwrap())
        .unwrap();
    assert!(opened.wal.purged().is_some(), "the log was purged on disk");
    assert!(opened.snapshots.log_floor().is_some());
}
