//! openraft's network over our transport. Every call has a deadline of ours, since openraft leaves
//! that to the network.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use openraft::alias::{SnapshotOf, VoteOf};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{
    Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential,
};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RPCTypes};
use raftserve_model::NodeId;
use raftserve_store::raft::acked::{Acked, Cut};
use raftserve_store::raft::{PeerRecord, TypeConfig, log_id_from, vote_from};

use super::calls::Method;
use super::links::{CallError, Links, Purpose, frame, read};
use super::rpc::Frame;
use super::wire::raft::{AppendReply, PackedAppend, TransferReply, VoteReply};
use super::wire::{self, LogCut};

mod commits;
pub(crate) mod snapshot;

use self::commits::WithEntries;
use self::snapshot::Outbox;

/// How long an append may take: above a stalled sync of the follower's disk, since a second copy of
/// the same entries would only add to the stall.
const APPEND_DEADLINE: Duration = Duration::from_secs(2);

/// How long to leave a dead peer alone between appends: it is tried often enough to catch up soon
/// after its return, and a refused dial costs next to nothing.
const RETRY: [Duration; 3] = [
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(150),
];

/// How long a peer may take to note that its log was cut: a small write. It is told again as long as it runs.
const CUT_DEADLINE: Duration = Duration::from_secs(2);

/// Makes openraft's clients.
pub(crate) struct Network {
    me: NodeId,
    links: Arc<Links>,
    acked: Arc<Acked>,
    outbox: Outbox,
}

impl Network {
    /// Over these connections, noting in `acked` what followers acknowledge.
    pub(crate) fn new(me: NodeId, links: Arc<Links>, acked: Arc<Acked>) -> Self {
        Self {
            me,
            links,
            acked,
            outbox: Outbox::new(),
        }
    }

    fn wire(&self, target: NodeId, appends: Purpose) -> Wire {
        Wire {
            me: self.me,
            target,
            appends,
            links: Arc::clone(&self.links),
            acked: Arc::clone(&self.acked),
            outbox: self.outbox.clone(),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Wire;

    async fn new_client(&mut self, target: NodeId, _: &PeerRecord) -> Wire {
        self.wire(target, Purpose::Appends)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, _: &PeerRecord) -> Wire {
        self.wire(target, Purpose::Votes)
    }

    async fn new_snapshot_client(&mut self, target: NodeId, _: &PeerRecord) -> Wire {
        self.wire(target, Purpose::Appends)
    }
}

/// openraft's way to one peer.
pub(crate) struct Wire {
    me: NodeId,
    target: NodeId,
    /// The connection that appends of this client go over.
    appends: Purpose,
    links: Arc<Links>,
    /// What followers have acknowledged, to whichever client.
    acked: Arc<Acked>,
    outbox: Outbox,
}

impl Wire {
    fn failed(&self, action: RPCTypes, error: &CallError) -> RPCError<TypeConfig> {
        match error {
            CallError::Deadline { waited, .. } => RPCError::Timeout(Timeout {
                action,
                id: self.me,
                target: self.target,
                timeout: *waited,
            }),
            // To try at once again would help against none of these.
            CallError::NotSent { .. } | CallError::Refused { .. } => {
                RPCError::Unreachable(Unreachable::new(error))
            }
            CallError::Broken { .. } => RPCError::Network(NetworkError::new(error)),
        }
    }

    async fn vote_call(
        &self,
        pre: bool,
        request: VoteRequest<TypeConfig>,
        within: Duration,
    ) -> Result<VoteResponse<TypeConfig>, CallError> {
        let message = frame(&wire::raft::VoteRequest::from(request));
        let method = if pre { Method::PreVote } else { Method::Vote };
        let answer = self
            .links
            .call(self.target, Purpose::Votes, within, method, message)
            .await?;
        Ok(read::<VoteReply>(self.target, &answer)?.into())
    }

    async fn append_call(
        &self,
        packed: &PackedAppend,
    ) -> Result<AppendEntriesResponse<TypeConfig>, CallError> {
        let message = Frame {
            head: wire::encode(&packed.head),
            body: packed.entries.clone(),
        };
        let answer = self
            .links
            .call(
                self.target,
                self.appends,
                APPEND_DEADLINE,
                Method::Append,
                message,
            )
            .await?;
        Ok(read::<AppendReply>(self.target, &answer)?.into())
    }

    /// Tells the follower what it has lost, so that it ends, for as long as it runs. One of a release that knows no such
    /// call refuses it, and does not count all the same.
    async fn tell(&self, cut: Cut) -> LogWasCut {
        let node = self.target;
        if cut.is_news {
            tracing::error!(
                peer = %node, acknowledged = cut.acked - 1, missing = %cut.missing,
                "a peer lost log entries that it had acknowledged, by the loss of a write or an old copy of its disk; it \
                 does not count any more, and is told to end. Remove its data directory and start it again: it joins \
                 under a new id"
            );
        }
        let told = frame(&LogCut::from(cut));
        let told = self
            .links
            .call(node, Purpose::Votes, CUT_DEADLINE, Method::LogCut, told);
        if let Err(error) = told.await {
            tracing::debug!(%error, "not told that its log was cut");
        }
        LogWasCut { node }
    }
}

/// Why a follower is sent nothing more.
#[derive(Debug, thiserror::Error)]
#[error("peer {node} lost entries that it had acknowledged, and must be wiped")]
struct LogWasCut {
    node: NodeId,
}

/// What comes of a stream of appends, as openraft has it.
type Appended<'s> = BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>;

impl RaftNetworkV2<TypeConfig> for Wire {
    type SnapshotData = snapshot::Data;

    fn stream_append<'s, S>(
        &'s mut self,
        appends: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<Appended<'s>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        stream_append_sequential(self, WithEntries::new(appends), option)
    }

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (vote, previous) = (vote_from(&request.vote), request.prev_log_id.as_ref());
        let previous = previous.map(log_id_from);
        let packed = PackedAppend::new(request);
        let count = packed.head.count();
        let sent = self.acked.sending(self.target, vote, previous, count);
        let response = self
            .append_call(&packed)
            .await
            .map_err(|error| self.failed(RPCTypes::AppendEntries, &error))?;
        if let Some(cut) = self.acked.answered(&sent, &response) {
            return Err(Unreachable::new(&self.tell(cut).await).into());
        }
        Ok(match (response, packed.cut_after) {
            (AppendEntriesResponse::Success, Some(sent)) => {
                AppendEntriesResponse::PartialSuccess(Some(sent))
            }
            (response, _) => response,
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.vote_call(false, request, option.hard_ttl())
            .await
            .map_err(|error| self.failed(RPCTypes::Vote, &error))
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.vote_call(true, request, option.hard_ttl())
            .await
            .map_err(|error| self.failed(RPCTypes::Vote, &error))
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<TypeConfig>,
        snapshot: SnapshotOf<TypeConfig, snapshot::Data>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let sending = self
            .outbox
            .send(&self.links, self.target, vote, snapshot, option.hard_ttl());
        let sent = tokio::select! {
            closed = cancel => return Err(closed.into()),
            sent = sending => sent,
        };
        sent.map_err(|error| self.failed(RPCTypes::InstallSnapshot, &error).into())
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = frame(&wire::raft::TransferRequest::from(request));
        let answer = self
            .links
            .call(
                self.target,
                Purpose::Votes,
                option.hard_ttl(),
                Method::TransferLeader,
                message,
            )
            .await
            .and_then(|answer| read::<TransferReply>(self.target, &answer))
            .map_err(|error| self.failed(RPCTypes::TransferLeader, &error))?;
        Ok(answer.into())
    }

    fn backoff(&self) -> Option<Backoff> {
        let last = RETRY[RETRY.len() - 1];
        Some(Backoff::new(
            RETRY.into_iter().chain(std::iter::repeat(last)),
        ))
    }
}
