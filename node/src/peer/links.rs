//! Connections to the other peers: one for each of them and each purpose, so that a long message of
//! one kind never holds up a short one of another.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bincode::Encode;
use bytes::Bytes;
use raftserve_model::{Incarnation, NodeId};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, ConnectError, Request, Status, Streaming};

use super::calls::{self, CallFailure, Connecting, Method, Received, RefusalKind};
use super::dial::Dialer;
use super::directory::{Caller, Directory};
use super::rpc::Frame;
use super::rpc::peer_client::PeerClient;
use super::rpc::snapshot_transfer_client::SnapshotTransferClient;
use super::wire::{self, MESSAGE_BYTES_MAX};

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    /// Log entries.
    Appends,
    /// Votes and heartbeats: short, and elections hang on them.
    Votes,
    /// Forwarded calls.
    Forwards,
    /// Announcements and exchanges, which carry leases.
    Exchanges,
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
    use super::{Ascii, Caller, Incarnation, MetadataMap, MetadataValue, NodeId, Status};

    const CLUSTER: &str = "raftserve-cluster";
    const TARGET: &str = "raftserve-target";
    const SENDER: &str = "raftserve-sender";
    const NONCE: &str = "raftserve-nonce";
    /// Which earlier builds do not send, and pass over.
    const LIFE: &str = "raftserve-life";

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
        if let Some(life) = caller.life {
            put(LIFE, life.0.to_string());
        }
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
            life: match metadata.contains_key(LIFE) {
                true => Some(Incarnation(number(LIFE)?)),
                false => None,
            },
        })
    }
}

/// A client over `channel`, with the transport's bounds.
pub(crate) fn client(channel: Channel) -> PeerClient<Channel> {
    PeerClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

struct Link<C> {
    address: String,
    connection: C,
}

/// What a process says on each new connection, and where it notes that it must not go on.
#[derive(Debug)]
pub(crate) struct Voice {
    /// Its announcement.
    pub(crate) said: Frame,
    /// Why this peer ends, once it does.
    pub(crate) fatal: watch::Sender<Option<String>>,
}

/// All connections of a peer.
pub(crate) struct Links {
    me: Caller,
    /// None only where a caller of an earlier build is meant, in tests.
    voice: Option<Voice>,
    dialer: Dialer,
    directory: Arc<Directory>,
    runtime: Handle,
    calls: Mutex<HashMap<(NodeId, Purpose), Link<Connecting>>>,
    transfers: Mutex<HashMap<NodeId, Link<Channel>>>,
}

/// No code panics between two changes that belong together.
fn lock<T>(held: &Mutex<T>) -> MutexGuard<'_, T> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Links {
    /// No connections yet. They will live on `runtime`. `me` says who calls; its target is filled
    /// in for each call.
    pub(crate) fn new(
        me: Caller,
        voice: Option<Voice>,
        dialer: Dialer,
        directory: Arc<Directory>,
        runtime: Handle,
    ) -> Self {
        Self {
            me,
            voice,
            dialer,
            directory,
            runtime,
            calls: Mutex::default(),
            transfers: Mutex::default(),
        }
    }

    /// By which peers are reached that are no members yet.
    pub(crate) fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    fn address(&self, target: NodeId) -> Result<String, &'static str> {
        let address = self.directory.address(target);
        address.ok_or("its address is not known")
    }

    /// The connection to use now: the one there is, or one that is begun by this.
    fn connecting(&self, target: NodeId, purpose: Purpose) -> Result<Connecting, &'static str> {
        let address = self.address(target)?;
        let mut links = lock(&self.calls);
        let is_usable = |link: &&Link<Connecting>| {
            let ended = match link.connection.peek() {
                Some(Ok(connection)) => connection.is_ended(),
                Some(Err(_)) => true,
                None => false,
            };
            link.address == address && !ended
        };
        if let Some(link) = links.get(&(target, purpose)).filter(is_usable) {
            return Ok(link.connection.clone());
        }
        let caller = Caller { target, ..self.me };
        let said = self.voice.as_ref().map(|voice| voice.said.clone());
        let connection = calls::connect(
            &self.runtime,
            self.dialer.clone(),
            address.clone(),
            caller,
            said,
        );
        let link = Link {
            address,
            connection: connection.clone(),
        };
        links.insert((target, purpose), link);
        Ok(connection)
    }

    fn channel(&self, target: NodeId) -> Result<Channel, CallError> {
        let address = self.address(target).map_err(|reason| CallError::NotSent {
            target,
            reason: reason.to_owned(),
        })?;
        let mut links = lock(&self.transfers);
        if let Some(link) = links.get(&target)
            && link.address == address
        {
            return Ok(link.connection.clone());
        }
        let _within = self.runtime.enter();
        let channel = self
            .dialer
            .connect(&address)
            .map_err(|error| CallError::NotSent {
                target,
                reason: format!("{address:?} is not an address: {error}"),
            })?;
        let link = Link {
            address,
            connection: channel.clone(),
        };
        links.insert(target, link);
        Ok(channel)
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
        let channel = self.channel(target)?;
        let mut client = SnapshotTransferClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let mut request = Request::new(frames);
        handshake::write(Caller { target, ..self.me }, request.metadata_mut());
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

    async fn try_call(
        &self,
        target: NodeId,
        purpose: Purpose,
        until: Instant,
        method: Method,
        message: &Frame,
    ) -> Result<Received, CallFailure> {
        let begun = Instant::now();
        let connecting = self
            .connecting(target, purpose)
            .map_err(|reason| CallFailure::NotSent(reason.into()))?;
        let made = timeout_at(until, connecting)
            .await
            .map_err(|_| CallFailure::NotSent("no connection in time".into()))?;
        if let Err(CallFailure::NobodyThere(_)) = &made {
            self.directory.missed(target, begun.into_std());
        }
        made?.call(method, message, until).await
    }

    /// Calls `target`. The answer is waited for no longer than `within`.
    ///
    /// # Errors
    /// [`CallError`].
    pub(crate) async fn call(
        &self,
        target: NodeId,
        purpose: Purpose,
        within: Duration,
        method: Method,
        message: Frame,
    ) -> Result<Frame, CallError> {
        let until = Instant::now() + within;
        let mut called = self
            .try_call(target, purpose, until, method, &message)
            .await;
        if let Err(CallFailure::NotSent(_)) = &called {
            // The connection had just ended, as after a restart of the peer: a new one is begun by this.
            called = self
                .try_call(target, purpose, until, method, &message)
                .await;
        }
        let Received { tag, frame, .. } = called.map_err(|failure| match failure {
            CallFailure::NotSent(reason) | CallFailure::NobodyThere(reason) => CallError::NotSent {
                target,
                reason: reason.to_string(),
            },
            CallFailure::Broken(reason) => CallError::Broken {
                target,
                reason: reason.to_string(),
            },
            CallFailure::Refused(kind, reason) => self.refused(target, kind, reason.to_string()),
            CallFailure::Deadline => CallError::Deadline {
                target,
                waited: within,
            },
        })?;
        if tag == 0 {
            self.directory.heard(target);
            return Ok(frame);
        }
        let reason = String::from_utf8_lossy(&frame.head).into_owned();
        Err(self.refused(target, RefusalKind::of(tag), reason))
    }

    fn refused(&self, target: NodeId, kind: RefusalKind, reason: String) -> CallError {
        match kind {
            RefusalKind::Unavailable | RefusalKind::Damaged => CallError::Broken { target, reason },
            RefusalKind::Stranger => CallError::Refused { target, reason },
            RefusalKind::Copy => {
                if let Some(voice) = &self.voice {
                    voice.fatal.send_if_modified(|why| {
                        let is_first = why.is_none();
                        why.get_or_insert_with(|| reason.clone());
                        is_first
                    });
                }
                CallError::Refused { target, reason }
            }
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

#[cfg(test)]
mod tests {
    use raftserve_model::ClusterId;

    use super::*;

    #[test]
    fn who_calls_is_read_as_it_was_written_with_its_life_and_without() {
        for life in [None, Some(Incarnation(7))] {
            let caller = Caller {
                cluster: ClusterId([7; 16]),
                target: NodeId(1),
                node: NodeId(2),
                nonce: 22,
                life,
            };
            let mut metadata = MetadataMap::new();
            handshake::write(caller, &mut metadata);
            assert_eq!(handshake::read(&metadata).unwrap(), caller);
        }
    }
}
