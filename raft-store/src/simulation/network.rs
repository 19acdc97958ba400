//! The network between the peers: every message may be late, lost, doubled or overtaken, and every link cut,
//! in one direction or both. Entries and snapshots cross it as bytes, as they do between processes.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, VoteOf};
use openraft::async_runtime::Select2;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{AsyncRuntime, OptionalSend};
use raftserve_model::NodeId;
use tokio::sync::mpsc;

use super::SimulatedTypes;
use super::cluster::{Cluster, Running};
use super::runtime::{self, Process, SimulatedRuntime};
use crate::raft::acked::{Acked, Cut, lacks};
use crate::raft::{PeerRecord, decode_entry, encode_entry, log_id_from, vote_from};
use crate::snapshot::{SnapshotFile, SnapshotId};

/// Clients, as the far end of a link.
pub(super) const CLIENTS: NodeId = NodeId(u64::MAX);

/// As a peer's transport has it.
const APPEND_DEADLINE: Duration = Duration::from_secs(2);
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(100);

/// What takes at least this long between two peers.
const DELAY_MIN: Duration = Duration::from_micros(100);

/// Bytes of a snapshot in one piece.
const PIECE: usize = 1024;

/// How often the connection of a snapshot's sender ends before a piece.
const BROKEN_OFF_PER_MILLE: u64 = 30;

/// A snapshot on its way, in pieces.
type Transfer = (
    VoteOf<SimulatedTypes>,
    SnapshotMetaOf<SimulatedTypes>,
    SnapshotId,
    Vec<Vec<u8>>,
);

/// How the network is.
#[derive(Clone, Debug)]
pub(super) struct Weather {
    /// Links that carry nothing, by direction.
    pub(super) cut: BTreeSet<(NodeId, NodeId)>,
    /// Links on which no append says how far the log is committed: those that only say so are lost.
    pub(super) mute: BTreeSet<(NodeId, NodeId)>,
    pub(super) loss_per_mille: u64,
    pub(super) doubled_per_mille: u64,
    pub(super) delay_max: Duration,
}

impl Default for Weather {
    fn default() -> Self {
        Self {
            cut: BTreeSet::new(),
            mute: BTreeSet::new(),
            loss_per_mille: 0,
            doubled_per_mille: 0,
            delay_max: Duration::from_millis(1),
        }
    }
}

impl Weather {
    fn carries(&self, from: NodeId, to: NodeId) -> bool {
        !self.cut.contains(&(from, to))
    }

    /// How long a message takes; none if it is lost.
    fn delay(&self, from: NodeId, to: NodeId) -> Option<Duration> {
        if !self.carries(from, to) || runtime::chance(self.loss_per_mille) {
            return None;
        }
        let usual = DELAY_MIN + runtime::below(self.delay_max);
        Some(if runtime::chance(10) {
            usual * 20
        } else {
            usual
        })
    }
}

/// Why no answer came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    /// It may or may not have arrived.
    Deadline,
    /// The other end is not running.
    Refused,
}

/// Sends `request` to a peer, has `handle` answer it there, and returns the first answer that comes back.
pub(super) async fn call<Q, A, F, Fut>(
    cluster: &Cluster,
    (from, to): (NodeId, NodeId),
    within: Duration,
    request: Q,
    handle: F,
) -> Result<A, Silence>
where
    Q: Clone + Send + 'static,
    A: Send + 'static,
    F: Fn(Running, Q) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Option<A>> + Send + 'static,
{
    // Held until the deadline: a message that is lost makes nobody know.
    let (answers, mut answer) = mpsc::channel(2);
    let weather = cluster.weather();
    let copies = 1 + u64::from(runtime::chance(weather.doubled_per_mille));
    for _ in 0..copies {
        let Some(delay) = weather.delay(from, to) else {
            continue;
        };
        let (cluster, request, handle) = (cluster.clone(), request.clone(), handle.clone());
        let answers = answers.clone();
        runtime::spawn_in(Process::WORLD, async move {
            runtime::sleep(delay).await;
            if !cluster.weather().carries(from, to) {
                return;
            }
            let handled = match cluster.running(to) {
                Some(running) => runtime::spawn_in(running.process, handle(running, request)).await,
                None => Ok(None),
            };
            let Ok(handled) = handled else { return };
            if let Some(delay) = cluster.weather().delay(to, from) {
                runtime::sleep(delay).await;
                if cluster.weather().carries(to, from) {
                    // Only the first answer is waited for.
                    let _ = answers.try_send(handled);
                }
            }
        });
    }
    match runtime::within(within, answer.recv()).await {
        Some(Some(Some(answer))) => Ok(answer),
        Some(_) => Err(Silence::Refused),
        None => Err(Silence::Deadline),
    }
}

/// Makes links for one peer.
pub(super) struct Network {
    pub(super) me: NodeId,
    pub(super) cluster: Cluster,
    pub(super) acked: Arc<Acked>,
}

impl RaftNetworkFactory<SimulatedTypes> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: NodeId, _: &PeerRecord) -> Link {
        Link {
            me: self.me,
            target,
            cluster: self.cluster.clone(),
            acked: Arc::clone(&self.acked),
        }
    }
}

/// The way to one peer.
pub(super) struct Link {
    me: NodeId,
    target: NodeId,
    cluster: Cluster,
    acked: Arc<Acked>,
}

/// An append as it is sent.
#[derive(Clone)]
struct SentAppend {
    vote: VoteOf<SimulatedTypes>,
    previous: Option<LogIdOf<SimulatedTypes>>,
    entries: Vec<Vec<u8>>,
    committed: Option<LogIdOf<SimulatedTypes>>,
}

impl Link {
    async fn call<Q, A, F, Fut>(
        &self,
        action: RPCTypes,
        within: Duration,
        request: Q,
        handle: F,
    ) -> Result<A, RPCError<SimulatedTypes>>
    where
        Q: Clone + Send + 'static,
        A: Send + 'static,
        F: Fn(Running, Q) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Option<A>> + Send + 'static,
    {
        let ends = (self.me, self.target);
        let answered = call(&self.cluster, ends, within, request, handle).await;
        answered.map_err(|silence| match silence {
            Silence::Refused => {
                RPCError::Unreachable(Unreachable::new(&io::Error::other("connection refused")))
            }
            Silence::Deadline => RPCError::Timeout(Timeout {
                action,
                id: self.me,
                target: self.target,
                timeout: within,
            }),
        })
    }
}

impl Link {
    /// The other end has lost what it acknowledged, and is asked whether it finds so itself.
    async fn found_cut(&self, cut: Cut) {
        let handle = |running: Running, cut: Cut| async move {
            let lacks = move |state: &_| lacks::<SimulatedTypes>(state, cut.vote, cut.missing);
            running.raft.with_raft_state(lacks).await.ok()
        };
        let agrees = self.call(RPCTypes::AppendEntries, APPEND_DEADLINE, cut, handle);
        let agrees = agrees.await.ok();
        self.cluster
            .observe(|observer| observer.found_cut(self.target, cut, agrees));
    }
}

impl RaftNetworkV2<SimulatedTypes> for Link {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<SimulatedTypes>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<SimulatedTypes>, RPCError<SimulatedTypes>> {
        if request.entries.is_empty() && self.cluster.is_mute(self.me, self.target) {
            return Err(Unreachable::new(&io::Error::other("lost")).into());
        }
        let mut entries = request.entries;
        // As where the bytes of one message are bounded.
        let mut cut_after = None;
        if entries.len() > 1 && runtime::chance(100) {
            entries.truncate(entries.len() / 2);
            cut_after = entries.last().map(|entry| entry.log_id);
        }
        let previous = request.prev_log_id.as_ref().map(log_id_from);
        let (vote, count) = (vote_from(&request.vote), entries.len() as u64);
        let booked = self.acked.sending(self.target, vote, previous, count);
        let sent = SentAppend {
            vote: request.vote,
            previous: request.prev_log_id,
            entries: entries.iter().map(|it| encode_entry(it).unwrap()).collect(),
            committed: request.leader_commit,
        };
        let handle = |running: Running, sent: SentAppend| async move {
            let entries = sent.entries.iter().map(|it| decode_entry(it).unwrap());
            let request = AppendEntriesRequest {
                vote: sent.vote,
                prev_log_id: sent.previous,
                entries: entries.collect(),
                leader_commit: sent.committed,
            };
            running.raft.append_entries(request).await.ok()
        };
        let answered = self.call(RPCTypes::AppendEntries, APPEND_DEADLINE, sent, handle);
        let answered = answered.await?;
        if let Some(cut) = self.acked.answered(&booked, &answered) {
            self.found_cut(cut).await;
            return Err(Unreachable::new(&io::Error::other("its log was cut")).into());
        }
        Ok(match (answered, cut_after) {
            (AppendEntriesResponse::Success, Some(sent)) => {
                AppendEntriesResponse::PartialSuccess(Some(sent))
            }
            (answer, _) => answer,
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<SimulatedTypes>,
        option: RPCOption,
    ) -> Result<VoteResponse<SimulatedTypes>, RPCError<SimulatedTypes>> {
        let handle =
            |running: Running, request| async move { running.raft.vote(request).await.ok() };
        self.call(RPCTypes::Vote, option.hard_ttl(), request, handle)
            .await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<SimulatedTypes>,
        option: RPCOption,
    ) -> Result<VoteResponse<SimulatedTypes>, RPCError<SimulatedTypes>> {
        let handle =
            |running: Running, request| async move { running.raft.pre_vote(request).await.ok() };
        self.call(RPCTypes::Vote, option.hard_ttl(), request, handle)
            .await
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<SimulatedTypes>,
        snapshot: SnapshotOf<SimulatedTypes, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<SimulatedTypes>, StreamingError<SimulatedTypes>> {
        let mut pieces = Vec::new();
        let mut offset = 0;
        loop {
            let piece = snapshot.snapshot.read(offset, PIECE);
            let piece = piece.map_err(|error| Unreachable::new(&error))?;
            if piece.is_empty() {
                break;
            }
            offset += piece.len() as u64;
            pieces.push(piece);
        }
        let checksum = snapshot.snapshot.checksum();
        let id = SnapshotId {
            last: snapshot.meta.last_log_id.as_ref().map(log_id_from),
            size: offset,
            checksum: checksum.map_err(|error| Unreachable::new(&error))?,
        };
        let request = (vote, snapshot.meta, id, pieces);
        let cluster = self.cluster.clone();
        let sending = self.call(
            RPCTypes::InstallSnapshot,
            SNAPSHOT_DEADLINE,
            request,
            move |running, transfer| receive(cluster.clone(), running, transfer),
        );
        match SimulatedRuntime::select2(Box::pin(cancel), Box::pin(sending)).await {
            Select2::First(closed) => Err(closed.into()),
            Select2::Second(sent) => Ok(sent?),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<SimulatedTypes>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<SimulatedTypes>, RPCError<SimulatedTypes>> {
        let handle = |running: Running, request| async move {
            running.raft.handle_transfer_leader(request).await.ok()
        };
        self.call(RPCTypes::TransferLeader, option.hard_ttl(), request, handle)
            .await
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(RETRY)))
    }
}

/// Takes a snapshot as a peer's inbox does: one at a time, going on where an earlier try of it ended, and verified once it
/// is whole.
async fn receive(
    cluster: Cluster,
    running: Running,
    (vote, meta, id, pieces): Transfer,
) -> Option<SnapshotResponse<SimulatedTypes>> {
    let _one = running.inbox.lock().await;
    let (file, has) = running.snapshots.resume(&id).ok()?;
    if has > 0 {
        runtime::note(format_args!("has {has} of {} bytes of a snapshot", id.size));
        cluster.observe(|it| it.counts.snapshots_resumed += 1);
    }
    let mut offset = 0;
    for piece in pieces {
        let missing = usize::try_from(has.saturating_sub(offset)).unwrap();
        let end = offset + piece.len() as u64;
        if let Some(rest) = piece.get(missing..).filter(|rest| !rest.is_empty()) {
            if runtime::chance(BROKEN_OFF_PER_MILLE) {
                return None;
            }
            runtime::sleep(runtime::disk_delay()).await;
            if file.write(offset + missing as u64, rest).is_err() {
                running.snapshots.discard(&file);
                return None;
            }
        }
        offset = end;
    }
    let head = file.verify();
    if !head.is_ok_and(|head| head.last == id.last) {
        running.snapshots.discard(&file);
        return None;
    }
    let snapshot = SnapshotOf::<SimulatedTypes, SnapshotFile> {
        meta,
        snapshot: file.clone(),
    };
    let installed = running.raft.install_full_snapshot(vote, snapshot).await;
    running.snapshots.discard(&file);
    installed.ok()
}
