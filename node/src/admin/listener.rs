//! Accepts at most so many connections, and goes on accepting whatever happens to one of them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::access::{Certificates, Stream};

/// The most connections at once; further ones wait in the kernel's queue. Users, dashboards and a
/// few controllers need far fewer.
const CONNECTIONS_MAX: usize = 256;

/// How long accepting rests after it failed, as it does when the process has no file descriptor left:
/// time for one to be freed, without spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a client's handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// One connection, counted until it is closed.
pub(super) struct Counted {
    stream: Stream,
    _permit: OwnedSemaphorePermit,
}

/// The connections that `listener` accepts, with TLS if there are certificates. A handshake holds up no other.
pub(super) fn connections(
    listener: TcpListener,
    certificates: Option<Arc<Certificates>>,
) -> mpsc::Receiver<Counted> {
    let (to_server, connections) = mpsc::channel(1);
    tokio::spawn(async move {
        tokio::select! {
            () = to_server.closed() => {}
            () = accept_all(&listener, certificates, &to_server) => {}
        }
    });
    connections
}

/// Sends `to_server` what `listener` accepts. Never ends.
pub(super) async fn accept_all(
    listener: &TcpListener,
    certificates: Option<Arc<Certificates>>,
    to_server: &mpsc::Sender<Counted>,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = Arc::clone(&room).acquire_owned().await;
        let permit = permit.expect("nobody closes this semaphore");
        let stream = accept(listener).await;
        let Some(certificates) = certificates.clone() else {
            let counted = Counted {
                stream: Stream::Plain(stream),
                _permit: permit,
            };
            // Once the receiver is gone, so is this task.
            let _ = to_server.send(counted).await;
            continue;
        };
        let to_server = to_server.clone();
        tokio::spawn(async move {
            match timeout(HANDSHAKE_MAX, certificates.accept_client(stream)).await {
                Ok(Ok(stream)) => {
                    let counted = Counted {
                        stream,
                        _permit: permit,
                    };
                    let _ = to_server.send(counted).await;
                }
                Ok(Err(error)) => tracing::debug!(%error, "no handshake with an admin client"),
                Err(_) => tracing::debug!("an admin client did not finish its handshake"),
            }
        });
    }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Small answers must not wait for more; without it they merely come later.
                let _ = stream.set_nodelay(true);
                return stream;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an admin connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Connected for Counted {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.socket().connect_info()
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
