//! Connections to the other peers: one for each of them and each purpose, so that a long message of
//! one kind never holds up a short one of another.

use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bincode::Encode;
use bytes::Bytes;
use raftserve_model::NodeId;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, ConnectError, Request, Response, Status, Streaming};

use super::directory::{Caller, Directory};
use super::rpc::Frame;
use super::rpc::peer_client::PeerClient;
use super::rpc::snapshot_transfer_client::SnapshotTransferClient;
use super::wire::{self, MESSAGE_BYTES_MAX};

/// A dial that takes longer has met a host that is gone: the next call dials anew, with the name
/// resolved again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a silent connection is probed. A connection to a host that vanished without a word is
/// closed after this and [`PROBE_TIMEOUT`].
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// How long a probe may go unanswered: well above any stall of a busy but living peer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    /// Log entries.
    Appends,
    /// Votes and heartbeats: short, and elections hang on them.
    Votes,
    /// Snapshots.
    Snapshots,
    /// Forwarded calls, announcements and exchanges.
    Forwards,
}

/// Why a call to a peer failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// It did not even begin: the peer cannot have seen it.
    #[error("cannot reach peer {target}: {reason}")]
    NotSent {
        /// The peer.
        target: NodeId,
        /// What was seen.
        reason: String,
    },
    /// The peer refused to be called by this one.
    #[error("peer {target} refused the call: {reason}")]
    Refused {
        /// The peer.
        target: NodeId,
        /// In its words.
        reason: String,
    },
    /// No answer in time; the peer may have seen it.
    #[error("peer {target} did not answer within {waited:?}")]
    Deadline {
        /// The peer.
        target: NodeId,
        /// How long it was given.
        waited: Duration,
    },
    /// It broke off; the peer may have seen it.
    #[error("the call to peer {target} broke off: {reason}")]
    Broken {
        /// The peer.
        target: NodeId,
        /// What was seen.
        reason: String,
    },
}

impl CallError {
    pub(crate) fn from_status(target: NodeId, status: &Status) -> Self {
        let reason = chain(status);
        if never_connected(status) {
            return Self::NotSent { target, reason };
        }
        match status.code() {
            Code::FailedPrecondition | Code::PermissionDenied => Self::Refused {
                target,
                reason: status.message().to_owned(),
            },
            _ => Self::Broken { target, reason },
        }
    }
}

/// Whether no connection was made, so that no byte of the request left this peer.
fn never_connected(status: &Status) -> bool {
    let mut source: Option<&(dyn Error + 'static)> = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

pub(crate) fn chain(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        source = error.source();
    }
    text
}

/// The metadata by which a call says who makes it and whom it means.
pub(crate) mod handshake {
    use super::{Ascii, Caller, MetadataMap, MetadataValue, NodeId, Status};

    const CLUSTER: &str = "raftserve-cluster";
    const TARGET: &str = "raftserve-target";
    const SENDER: &str = "raftserve-sender";
    const NONCE: &str = "raftserve-nonce";

    /// Writes who calls.
    pub(crate) fn write(caller: Caller, metadata: &mut MetadataMap) {
        let mut put = |name: &'static str, text: String| {
            let value: MetadataValue<Ascii> = text.parse().expect("digits are legal in metadata");
            metadata.insert(name, value);
        };
        put(CLUSTER, caller.cluster.to_string());
        put(TARGET, caller.target.to_string());
        put(SENDER, caller.node.to_string());
        put(NONCE, caller.nonce.to_string());
    }

    /// Reads who calls.
    pub(crate) fn read(metadata: &MetadataMap) -> Result<Caller, Box<Status>> {
        let text = |name: &'static str| {
            metadata
                .get(name)
                .and_then(|value| value.to_str().ok())
                .ok_or_else(|| Box::new(Status::unauthenticated(format!("no {name} in the call"))))
        };
        let number = |name: &'static str| {
            text(name)?
                .parse::<u64>()
                .map_err(|_| Box::new(Status::unauthenticated(format!("{name} is not a number"))))
        };
        Ok(Caller {
            cluster: text(CLUSTER)?.parse().map_err(|error| {
                Box::new(Status::unauthenticated(format!("{CLUSTER}: {error}")))
            })?,
            target: NodeId(number(TARGET)?),
            node: NodeId(number(SENDER)?),
            nonce: number(NONCE)?,
        })
    }
}

/// A client over `channel`, with the transport's bounds.
pub(crate) fn client(channel: Channel) -> PeerClient<Channel> {
    PeerClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// A connection to `address` that is made when it is first used, and again when it broke. Must be
/// called within the runtime that shall drive it.
///
/// # Errors
/// If `address` is no `host:port`.
pub(crate) fn connect(address: &str) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PROBE_INTERVAL)
        .keep_alive_timeout(PROBE_TIMEOUT)
        .keep_alive_while_idle(true)
        // Room for a whole append in flight, so that no window update is waited for.
        .initial_stream_window_size(u32::try_from(MESSAGE_BYTES_MAX).ok())
        .initial_connection_window_size(u32::try_from(MESSAGE_BYTES_MAX).ok());
    Ok(endpoint.connect_lazy())
}

/// A client of the peer service.
pub(crate) type Client = PeerClient<Channel>;

struct Link {
    address: String,
    channel: Channel,
}

/// All connections of a peer.
pub(crate) struct Links {
    me: Caller,
    directory: Arc<Directory>,
    runtime: Handle,
    links: Mutex<HashMap<(NodeId, Purpose), Link>>,
}

impl Links {
    /// No connections yet. They will live on `runtime`. `me` says who calls; its target is filled
    /// in for each call.
    pub(crate) fn new(me: Caller, directory: Arc<Directory>, runtime: Handle) -> Self {
        Self {
            me,
            directory,
            runtime,
            links: Mutex::default(),
        }
    }

    fn channel(&self, target: NodeId, purpose: Purpose) -> Result<Channel, CallError> {
        let not_sent = |reason: String| CallError::NotSent { target, reason };
        let address = self
            .directory
            .address(target)
            .ok_or_else(|| not_sent("its address is not known".to_owned()))?;
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(&(target, purpose))
            && link.address == address
        {
            return Ok(link.channel.clone());
        }
        let _within = self.runtime.enter();
        let channel = connect(&address)
            .map_err(|error| not_sent(format!("{address:?} is not an address: {error}")))?;
        let link = Link {
            address,
            channel: channel.clone(),
        };
        links.insert((target, purpose), link);
        Ok(channel)
    }

    /// A request that says who makes it.
    pub(crate) fn request<T>(&self, target: NodeId, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let caller = Caller { target, ..self.me };
        handshake::write(caller, request.metadata_mut());
        request
    }

    /// Begins a transfer to `target` over a connection of its own. The first word of the answer is waited for no
    /// longer than `within`.
    ///
    /// # Errors
    /// [`CallError`].
    pub(crate) async fn stream(
        &self,
        target: NodeId,
        within: Duration,
        frames: ReceiverStream<Frame>,
    ) -> Result<Streaming<Frame>, CallError> {
        let channel = self.channel(target, Purpose::Snapshots)?;
        let mut client = SnapshotTransferClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let request = self.request(target, frames);
        match timeout(within, client.transfer(request)).await {
            Ok(Ok(answers)) => {
                self.directory.heard(target);
                Ok(answers.into_inner())
            }
            Ok(Err(status)) => Err(CallError::from_status(target, &status)),
            Err(_) => Err(CallError::Deadline {
                target,
                waited: within,
            }),
        }
    }

    /// Calls `target`: `send` makes the call of its choice. The answer is waited for no longer than
    /// `within`.
    ///
    /// # Errors
    /// [`CallError`].
    pub(crate) async fn call<M, F>(
        &self,
        target: NodeId,
        purpose: Purpose,
        within: Duration,
        message: M,
        send: impl FnOnce(PeerClient<Channel>, Request<M>) -> F,
    ) -> Result<Frame, CallError>
    where
        F: Future<Output = Result<Response<Frame>, Status>>,
    {
        let client = client(self.channel(target, purpose)?);
        let request = self.request(target, message);
        match timeout(within, send(client, request)).await {
            Ok(Ok(response)) => {
                self.directory.heard(target);
                Ok(response.into_inner())
            }
            Ok(Err(status)) => Err(CallError::from_status(target, &status)),
            Err(_) => Err(CallError::Deadline {
                target,
                waited: within,
            }),
        }
    }
}

/// A frame of a head only.
pub(crate) fn frame<T: Encode>(head: &T) -> Frame {
    Frame {
        head: wire::encode(head),
        body: Bytes::new(),
    }
}

/// Reads the head of an answer.
///
/// # Errors
/// [`CallError::Broken`] if it does not decode.
pub(crate) fn read<T: bincode::Decode<()>>(target: NodeId, frame: &Frame) -> Result<T, CallError> {
    wire::decode(&frame.head).map_err(|error| CallError::Broken {
        target,
        reason: error.to_string(),
    })
}
