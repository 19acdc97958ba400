//! The peer port: one listener for calls in frames of our own and for gRPC, told apart by how a connection begins, or
//! by what its TLS handshake names.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::calls::{self, PREFACE};
use super::server::Server;
use crate::access::Stream;
use crate::access::certificates::{Certificates, Protocol};

/// How often a silent connection is probed.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Probes that may go unanswered.
const PROBES: u32 = 2;

/// How long what was sent may go unacknowledged: well above any stall of a busy but living peer.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// Connections at once: a cluster of five needs some thirty. Beyond it the system's queue holds new ones back.
const CONNECTIONS_MAX: usize = 1_024;

/// How long a connection may take to say how it begins, its handshake included.
const BEGIN_WITHIN: Duration = Duration::from_secs(5);

/// Connections that gRPC has not taken yet.
const GRPC_QUEUE: usize = 64;

/// How long to rest after a failed accept. It fails when no more files may be opened, and would fail again at once.
const ACCEPT_REST: Duration = Duration::from_millis(20);

/// How often a connection is looked at whose first bytes came in pieces. Ours come in one.
const PEEKS_MAX: usize = 100;

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
    certificates: Option<Arc<Certificates>>,
) -> ReceiverStream<io::Result<Held>> {
    let (grpc, to_grpc) = mpsc::channel(GRPC_QUEUE);
    tokio::spawn(accept(listener, server, certificates, grpc));
    ReceiverStream::new(to_grpc)
}

async fn accept(
    listener: TcpListener,
    server: Server,
    certificates: Option<Arc<Certificates>>,
    grpc: mpsc::Sender<io::Result<Held>>,
) {
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
        let (server, grpc, certificates) = (server.clone(), grpc.clone(), certificates.clone());
        tokio::spawn(async move {
            match timeout(BEGIN_WITHIN, begin(stream, certificates.as_deref())).await {
                Ok(Ok((stream, Protocol::Frames))) => {
                    let _permit = permit;
                    let (from, to) = stream.into_split();
                    let served = calls::serve(from, to, |caller, method, frame| {
                        server.answer(caller, method, frame)
                    });
                    if let Err(error) = served.await {
                        tracing::debug!(%error, "a peer's connection ended");
                    }
                }
                Ok(Ok((stream, Protocol::Grpc))) => {
                    // Once the receiver is gone, the port is served no more.
                    let _ = grpc.send(Ok(Held { stream, permit })).await;
                }
                Ok(Err(_)) | Err(_) => {}
            }
        });
    }
}

/// Finds out what a connection carries.
async fn begin(
    stream: TcpStream,
    certificates: Option<&Certificates>,
) -> io::Result<(Stream, Protocol)> {
    if let Some(certificates) = certificates {
        return certificates.accept_peer(stream).await;
    }
    let protocol = match begins_as_ours(&stream).await? {
        true => Protocol::Frames,
        false => Protocol::Grpc,
    };
    Ok((Stream::Plain(stream), protocol))
}

/// Looks at the first bytes of a connection without taking them.
async fn begins_as_ours(stream: &TcpStream) -> io::Result<bool> {
    let mut seen = [0; PREFACE.len()];
    for _ in 0..PEEKS_MAX {
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
    Err(io::ErrorKind::TimedOut.into())
}

/// A connection for gRPC, and its place among those that there may be.
pub(crate) struct Held {
    stream: Stream,
    permit: OwnedSemaphorePermit,
}

impl Connected for Held {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        debug_assert!(self.permit.num_permits() == 1);
        self.stream.socket().connect_info()
    }
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, to)
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, from)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
