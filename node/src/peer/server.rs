//! Answers the other peers. Serves from the moment the peer has a port, before it has an identity:
//! then it only says so, and takes one.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bincode::Decode;
use raftserve_model::NodeId;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::bootstrap::Cradle;
use super::core::Core;
use super::exchange::Slot;
use super::links::{frame, handshake};
use super::network::snapshot::Inbox;
use super::rpc::Frame;
use super::rpc::peer_server::Peer;
use super::rpc::snapshot_transfer_server::SnapshotTransfer;
use super::wire::raft::{AppendHead, AppendReply, TransferReply, TransferRequest, VoteReply};
use super::wire::{
    self, AdoptRequest, Announcement, HelloReply, HelloRequest, JoinRequest, ManageRequest,
    MoveLeaderRequest, ProposeRequest, ReadIndexRequest, Standing, raft,
};

/// No forwarded call is worked on for longer, whatever it asks for: who sent it has long given up.
const FORWARD_MAX: Duration = Duration::from_secs(30);

type Answer = Result<Response<Frame>, Status>;

/// What a running node needs to answer.
pub(crate) struct Running {
    pub(crate) core: Arc<Core>,
    pub(crate) exchange: Slot,
    /// Where snapshots are received.
    pub(crate) snapshots: Arc<Inbox>,
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

    /// The running node, if the caller may call it.
    fn admit<T>(&self, request: &Request<T>) -> Result<(&Running, NodeId), Status> {
        let running = self.running()?;
        let caller = handshake::read(request.metadata()).map_err(|status| *status)?;
        running
            .core
            .directory
            .admit(caller)
            .map_err(|stranger| Status::failed_precondition(stranger.to_string()))?;
        Ok((running, caller.node))
    }

    async fn standing(&self) -> Result<Standing, Status> {
        let Some(identity) = self.cradle.identity().await else {
            return Ok(Standing::Pristine {
                nonce: self.cradle.nonce(),
            });
        };
        let core = &self.running()?.core;
        let initialised = core.raft.is_initialized().await.map_err(stopped)?;
        Ok(Standing::Member {
            cluster: identity.cluster,
            node: identity.node,
            nonce: identity.nonce,
            initialised,
        })
    }
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("raft has stopped: {error}"))
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

#[tonic::async_trait]
impl Peer for Server {
    async fn hello(&self, request: Request<Frame>) -> Answer {
        let hello: HelloRequest = head(&request.into_inner())?;
        let running = self.running.get();
        let (mut removed, mut places) = (false, Vec::new());
        if let (Some(running), Some(said)) = (running, hello.from) {
            removed = running.core.knows_removed(&said);
            let directory = &running.core.directory;
            // A stranger's greeting is answered, so that it can tell that it is one.
            if directory.learn(said).is_ok() {
                places = directory.places();
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

    async fn announce(&self, request: Request<Frame>) -> Answer {
        let (running, _) = self.admit(&request)?;
        let said: Announcement = head(request.get_ref())?;
        let core = &running.core;
        core.directory
            .learn(said)
            .map_err(|stranger| Status::failed_precondition(stranger.to_string()))?;
        answer(&core.announcement)
    }

    async fn append(&self, request: Request<Frame>) -> Answer {
        let (running, _) = self.admit(&request)?;
        let frame = request.into_inner();
        let append = head::<AppendHead>(&frame)?
            .unpack(&frame.body)
            .map_err(|error| {
                if error.is_of_a_later_release() {
                    // It can never follow this log; others go on without it.
                    running
                        .core
                        .end(format!("{}: run a later release", chain(&error)));
                }
                damaged(&error)
            })?;
        let response = running.core.raft.append_entries(append).await;
        answer(&AppendReply::from(response.map_err(stopped)?))
    }

    async fn vote(&self, request: Request<Frame>) -> Answer {
        let (running, _) = self.admit(&request)?;
        let vote: raft::VoteRequest = head(request.get_ref())?;
        let response = running.core.raft.vote(vote.into()).await;
        answer(&VoteReply::from(response.map_err(stopped)?))
    }

    async fn pre_vote(&self, request: Request<Frame>) -> Answer {
        let (running, _) = self.admit(&request)?;
        let vote: raft::VoteRequest = head(request.get_ref())?;
        let response = running.core.raft.pre_vote(vote.into()).await;
        answer(&VoteReply::from(response.map_err(stopped)?))
    }

    async fn transfer_leader(&self, request: Request<Frame>) -> Answer {
        let (running, _) = self.admit(&request)?;
        let transfer: TransferRequest = head(request.get_ref())?;
        let response = running
            .core
            .raft
            .handle_transfer_leader(transfer.into())
            .await;
        answer(&TransferReply::from(response.map_err(stopped)?))
    }

    async fn propose(&self, request: Request<Frame>) -> Answer {
        let (running, _) = self.admit(&request)?;
        let asked: ProposeRequest = head(request.get_ref())?;
        let until = until(asked.within_ms);
        answer(&running.core.propose_here(asked.action, until).await)
    }

    async fn read_index(&self, request: Request<Frame>) -> Answer {
        let (running, _) = self.admit(&request)?;
        let asked: ReadIndexRequest = head(request.get_ref())?;
        let until = until(asked.within_ms);
        answer(&running.core.read_index_here(until).await)
    }

    async fn move_leader(&self, request: Request<Frame>) -> Answer {
        let (running, _) = self.admit(&request)?;
        let asked: MoveLeaderRequest = head(request.get_ref())?;
        let until = until(asked.within_ms);
        answer(&running.core.move_leader_here(asked.target, until).await)
    }

    async fn manage(&self, request: Request<Frame>) -> Answer {
        let (running, _) = self.admit(&request)?;
        let asked: ManageRequest = head(request.get_ref())?;
        let until = until(asked.within_ms);
        answer(&running.core.manage_here(asked.task, until).await)
    }

    async fn exchange(&self, request: Request<Frame>) -> Answer {
        let (running, from) = self.admit(&request)?;
        let said: wire::ExchangeHead = head(request.get_ref())?;
        running.core.compare(from, &said.checks);
        let reply = running
            .exchange
            .answer(&running.core, from, &request.get_ref().body);
        Ok(Response::new(reply))
    }
}

#[tonic::async_trait]
impl SnapshotTransfer for Server {
    type TransferStream = ReceiverStream<Result<Frame, Status>>;

    async fn transfer(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::TransferStream>, Status> {
        let (running, _) = self.admit(&request)?;
        let answers = Arc::clone(&running.snapshots).receive(request.into_inner());
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}
