//! The peer port: one listener for calls in frames of our own and for gRPC, told apart by how a connection begins.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;

use super::calls::{self, PREFACE};
use super::server::Server;

/// How often a silent connection is probed.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Probes that may go unanswered.
const PROBES: u32 = 2;

/// How long what was sent may go unacknowledged: well above any stall of a busy but living peer.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// Connections at once: a cluster of five needs some thirty. Beyond it the system's queue holds new ones back.
const CONNECTIONS_MAX: usize = 1_024;

/// How long a connection may take to say how it begins.
const BEGIN_WITHIN: Duration = Duration::from_secs(5);

/// Connections that gRPC has not taken yet.
const GRPC_QUEUE: usize = 64;

/// How long to rest after a failed accept. It fails when no more files may be opened, and would fail again at once.
const ACCEPT_REST: Duration = Duration::from_millis(20);

/// Between two looks at a connection whose first bytes came in pieces.
const PEEK_REST: Duration = Duration::from_millis(1);

/// What connections of the peer port are like, on both sides: no delay, and an end within seconds if the other host is
/// gone without a word.
pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(SILENCE_MAX))?;
    let keepalive = TcpKeepalive::new()
        .with_time(PROBE_INTERVAL)
        .with_interval(PROBE_INTERVAL)
        .with_retries(PROBES);
    socket.set_tcp_keepalive(&keepalive)
}

/// Serves a listener for ever. Returns the connections that begin as gRPC does.
pub(crate) fn serve(
    listener: TcpListener,
    server: Server,
) -> ReceiverStream<io::Result<TcpStream>> {
    let (grpc, to_grpc) = mpsc::channel(GRPC_QUEUE);
    tokio::spawn(accept(listener, server, grpc));
    ReceiverStream::new(to_grpc)
}

async fn accept(listener: TcpListener, server: Server, grpc: mpsc::Sender<io::Result<TcpStream>>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = Arc::clone(&room).acquire_owned().await;
        let permit = permit.expect("it is never closed");
        let accepted = match listener.accept().await {
            Ok((stream, _)) => tune(&stream).map(|()| stream),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a peer's connection");
                sleep(ACCEPT_REST).await;
                continue;
            }
        };
        let Ok(stream) = accepted else {
            continue; // It was reset already.
        };
        let (server, grpc) = (server.clone(), grpc.clone());
        tokio::spawn(async move {
            match timeout(BEGIN_WITHIN, begins_as_ours(&stream)).await {
                Ok(Ok(true)) => {
                    let (from, to) = stream.into_split();
                    let served = calls::serve(from, to, |caller, method, frame| {
                        server.answer(caller, method, frame)
                    });
                    if let Err(error) = served.await {
                        tracing::debug!(%error, "a peer's connection ended");
                    }
                }
                Ok(Ok(false)) => {
                    // Once the receiver is gone, the port is served no more.
                    let _ = grpc.send(Ok(stream)).await;
                }
                Ok(Err(_)) | Err(_) => {}
            }
            drop(permit);
        });
    }
}

/// Looks at the first bytes of a connection without taking them.
async fn begins_as_ours(stream: &TcpStream) -> io::Result<bool> {
    let mut seen = [0; PREFACE.len()];
    loop {
        let count = stream.peek(&mut seen).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // All but the version: of another one, the reader says so.
        let known = count.min(PREFACE.len() - 1);
        if seen[..known] != PREFACE[..known] {
            return Ok(false);
        }
        if count == seen.len() {
            return Ok(true);
        }
        sleep(PEEK_REST).await;
    }
}
