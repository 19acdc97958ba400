//! Answers the other peers: calls of those that know each other, and over gRPC what is rare. Serves from the moment the peer has a port, before it has an identity:
//! then it only says so, and takes one.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bincode::Decode;
use openraft::RaftState;
use raftserve_model::NodeId;
use raftserve_store::raft::{TypeConfig, acked, log_id_from, vote_from};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::bootstrap::Cradle;
use super::calls::{Method, Refusal, RefusalKind};
use super::core::Core;
use super::directory::{Caller, Stranger};
use super::exchange::Slot;
use super::links::{frame, handshake};
use super::network::snapshot::Inbox;
use super::rpc::Frame;
use super::rpc::peer_server::Peer;
use super::rpc::snapshot_transfer_server::SnapshotTransfer;
use super::store::SharedDir;
use super::wire::raft::{AppendHead, AppendReply, TransferReply, TransferRequest, VoteReply};
use super::wire::{
    self, AdoptRequest, Announcement, HelloReply, HelloRequest, JoinRequest, LogCut, ManageRequest,
    MoveLeaderRequest, ProposeRequest, ReadIndexRequest, RemarksRequest, Standing, raft,
};

/// No forwarded call is worked on for longer, whatever it asks for: who sent it has long given up.
const FORWARD_MAX: Duration = Duration::from_secs(30);

/// The same for Raft's own calls: twice the longest that the caller waits.
const RAFT_MAX: Duration = Duration::from_secs(4);

type Answer = Result<Response<Frame>, Status>;

/// What a running node needs to answer.
pub(crate) struct Running {
    pub(crate) core: Arc<Core>,
    pub(crate) exchange: Slot,
    /// Where snapshots are received.
    pub(crate) snapshots: Arc<Inbox>,
    /// Where it is noted that the log was cut.
    pub(crate) dir: SharedDir,
}

impl Running {
    /// Ends this peer if its leader has found that its log lost entries, and it finds so itself: what is left of it must
    /// not vote. Noted on disk first, so that the next start, and a leader that knows nothing of it, do not take it
    /// for whole.
    async fn end_if_cut(&self, caller: NodeId, told: LogCut) -> Result<(), Refusal> {
        let core = &self.core;
        let (vote, missing) = (
            vote_from(&told.vote.into()),
            log_id_from(&told.missing.into()),
        );
        let lacks = move |state: &RaftState<TypeConfig>| acked::lacks(state, vote, missing);
        let lacks = core.raft.with_raft_state(lacks).await.map_err(stopped)?;
        if !lacks || vote.node != caller {
            tracing::warn!(peer = %caller, %missing, "said to have lost an entry, which is not so");
            let reason = format!(
                "peer {} holds entry {missing}, or follows another leader",
                core.me()
            );
            return Err(refused(RefusalKind::Unavailable, reason));
        }
        let noted = self.dir.note_log_cut().await;
        let noted = noted.map_or_else(|error| format!(" ({})", chain(&error)), |()| String::new());
        let last = told.acked.saturating_sub(1);
        core.end(format!(
            "the log of this peer has lost entries: it had acknowledged them up to {last} to peer {}, and does not hold \
             {missing} any more. A write of its disk was lost, or an old copy was put back{noted}. Remove its data \
             directory and start it again: it joins under a new id, and loses nothing that the others have",
            vote.node
        ));
        Ok(())
    }
}

/// The peer service.
#[derive(Clone)]
pub(crate) struct Server {
    cradle: Arc<Cradle>,
    running: Arc<OnceLock<Running>>,
}

impl Server {
    /// A server of a peer that does not run yet.
    pub(crate) fn new(cradle: Arc<Cradle>, running: Arc<OnceLock<Running>>) -> Self {
        Self { cradle, running }
    }

    fn running(&self) -> Result<&Running, Status> {
        self.running
            .get()
            .ok_or_else(|| Status::unavailable("this peer is still starting"))
    }

    /// The running node, if a caller over gRPC may call it.
    fn admit<T>(&self, request: &Request<T>) -> Result<&Running, Status> {
        let running = self.running()?;
        let caller = handshake::read(request.metadata()).map_err(|status| *status)?;
        running
            .core
            .directory
            .admit(caller)
            .map_err(|stranger| Status::failed_precondition(stranger.to_string()))?;
        Ok(running)
    }

    async fn standing(&self) -> Result<Standing, Status> {
        let Some(identity) = self.cradle.identity().await else {
            return Ok(Standing::Pristine {
                nonce: self.cradle.nonce(),
            });
        };
        let core = &self.running()?.core;
        let initialised = core.raft.is_initialized().await;
        let initialised =
            initialised.map_err(|error| Status::unavailable(stopped(error).reason))?;
        Ok(Standing::Member {
            cluster: identity.cluster,
            node: identity.node,
            nonce: identity.nonce,
            initialised,
        })
    }
}

fn damaged(error: &dyn std::error::Error) -> Status {
    Status::invalid_argument(chain(error))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

fn head<T: Decode<()>>(frame: &Frame) -> Result<T, Status> {
    wire::decode(&frame.head).map_err(|error| damaged(&error))
}

fn until(within_ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(within_ms).min(FORWARD_MAX)
}

fn answer<T: bincode::Encode>(reply: &T) -> Answer {
    Ok(Response::new(frame(reply)))
}

fn refused(kind: RefusalKind, reason: impl std::fmt::Display) -> Refusal {
    Refusal {
        kind,
        reason: reason.to_string(),
    }
}

fn stopped(error: impl std::fmt::Display) -> Refusal {
    let reason = format!("raft has stopped: {error}");
    refused(RefusalKind::Unavailable, reason)
}

fn stranger(stranger: &Stranger) -> Refusal {
    let kind = match stranger {
        Stranger::Copy { .. } => RefusalKind::Copy,
        _ => RefusalKind::Stranger,
    };
    refused(kind, stranger)
}

fn read<T: Decode<()>>(message: &Frame) -> Result<T, Refusal> {
    wire::decode(&message.head).map_err(|error| refused(RefusalKind::Damaged, chain(&error)))
}

impl Method {
    /// No call is worked on for longer: who made it has given up.
    fn time_max(self) -> Duration {
        match self {
            Self::Append | Self::Vote | Self::PreVote => RAFT_MAX,
            _ => FORWARD_MAX,
        }
    }
}

/// Calls of peers that know each other.
impl Server {
    /// Answers one call.
    ///
    /// # Errors
    /// [`Refusal`], as it is told to the caller.
    pub(crate) async fn answer(
        &self,
        caller: Caller,
        method: Method,
        message: Frame,
    ) -> Result<Frame, Refusal> {
        let running = self
            .running
            .get()
            .ok_or_else(|| refused(RefusalKind::Unavailable, "this peer is still starting"))?;
        let core = &running.core;
        // Each time: who calls may have been removed since it connected.
        core.directory.admit(caller).map_err(|who| stranger(&who))?;
        let answered = Self::answer_known(running, caller.node, method, message);
        match timeout(method.time_max(), answered).await {
            Ok(answered) => answered,
            Err(_) => Err(refused(RefusalKind::Unavailable, "it took too long")),
        }
    }

    async fn answer_known(
        running: &Running,
        caller: NodeId,
        method: Method,
        message: Frame,
    ) -> Result<Frame, Refusal> {
        let core = &running.core;
        match method {
            Method::Append => append(core, message).await,
            Method::Exchange => {
                let said: wire::ExchangeHead = read(&message)?;
                core.take_exchange_head(caller, &said);
                Ok(running.exchange.answer(core, caller, &message.body))
            }
            Method::Vote => {
                let vote: raft::VoteRequest = read(&message)?;
                let response = core.raft.vote(vote.into()).await;
                Ok(frame(&VoteReply::from(response.map_err(stopped)?)))
            }
            Method::PreVote => {
                let vote: raft::VoteRequest = read(&message)?;
                let response = core.raft.pre_vote(vote.into()).await;
                Ok(frame(&VoteReply::from(response.map_err(stopped)?)))
            }
            Method::TransferLeader => {
                let transfer: TransferRequest = read(&message)?;
                let response = core.raft.handle_transfer_leader(transfer.into()).await;
                Ok(frame(&TransferReply::from(response.map_err(stopped)?)))
            }
            Method::Propose => {
                let asked: ProposeRequest = read(&message)?;
                let until = until(asked.within_ms);
                Ok(frame(&core.propose_here(asked.action, until).await))
            }
            Method::ReadIndex => {
                let asked: ReadIndexRequest = read(&message)?;
                Ok(frame(&core.read_index_here(until(asked.within_ms)).await))
            }
            Method::MoveLeader => {
                let asked: MoveLeaderRequest = read(&message)?;
                let until = until(asked.within_ms);
                Ok(frame(&core.move_leader_here(asked.target, until).await))
            }
            Method::Manage => {
                let asked: ManageRequest = read(&message)?;
                let until = until(asked.within_ms);
                Ok(frame(&core.manage_here(asked.task, until).await))
            }
            Method::LogCut => {
                let told: LogCut = read(&message)?;
                running.end_if_cut(caller, told).await.map(|()| frame(&()))
            }
            Method::Remarks => {
                let asked: RemarksRequest = read(&message)?;
                Ok(frame(&core.remarks.of(&asked)))
            }
            Method::Announce => {
                let said: Announcement = read(&message)?;
                core.meet(said).await.map_err(|who| stranger(&who))?;
                Ok(frame(&core.announcement))
            }
        }
    }
}

async fn append(core: &Core, message: Frame) -> Result<Frame, Refusal> {
    let append = read::<AppendHead>(&message)?
        .unpack(&message.body)
        .map_err(|error| {
            if error.is_of_a_later_release() {
                // It can never follow this log; others go on without it.
                core.end(format!("{}: run a later release", chain(&error)));
            }
            refused(RefusalKind::Damaged, chain(&error))
        })?;
    drop(message); // Its bytes must not be held for as long as the disk takes.
    let response = core.raft.append_entries(append).await;
    Ok(frame(&AppendReply::from(response.map_err(stopped)?)))
}

#[tonic::async_trait]
impl Peer for Server {
    async fn hello(&self, request: Request<Frame>) -> Answer {
        let hello: HelloRequest = head(&request.into_inner())?;
        let running = self.running.get();
        let (mut removed, mut places) = (false, Vec::new());
        if running.is_none() {
            if let Some(said) = &hello.from
                && self.cradle.identity().await.is_none()
            {
                self.cradle.note_seeker(said);
            }
            places = self.cradle.seekers();
        }
        if let (Some(running), Some(said)) = (running, hello.from) {
            removed = running.core.knows_removed(&said);
            match running.core.meet(said).await {
                Ok(()) => places = running.core.directory.places(),
                Err(copy @ Stranger::Copy { .. }) => {
                    return Err(Status::already_exists(copy.to_string()));
                }
                // A stranger's greeting is answered, so that it can tell that it is one.
                Err(_) => {}
            }
        }
        answer(&HelloReply {
            standing: self.standing().await?,
            announcement: running.map(|running| running.core.announcement.clone()),
            cluster_version: running.map(|running| running.core.reader.state().version()),
            removed,
            places,
        })
    }

    async fn join(&self, request: Request<Frame>) -> Answer {
        let running = self.running()?;
        let asked: JoinRequest = head(&request.into_inner())?;
        answer(&running.core.admit(asked).await)
    }

    async fn adopt(&self, request: Request<Frame>) -> Answer {
        let request: AdoptRequest = head(&request.into_inner())?;
        answer(&self.cradle.adopt(request).await)
    }
}

#[tonic::async_trait]
impl SnapshotTransfer for Server {
    type TransferStream = ReceiverStream<Result<Frame, Status>>;

    async fn transfer(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::TransferStream>, Status> {
        let running = self.admit(&request)?;
        let answers = Arc::clone(&running.snapshots).receive(request.into_inner());
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}
