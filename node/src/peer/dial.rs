//! Connections to peer ports, with TLS where this peer has certificates.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint};

use super::port;
use super::wire::MESSAGE_BYTES_MAX;
use crate::access::Stream;
use crate::access::certificates::{Certificates, Protocol};

/// A dial that takes longer has met a host that is gone: the next call dials anew, with the name
/// resolved again.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a silent connection is probed. A connection to a host that vanished without a word is
/// closed after this and [`PROBE_TIMEOUT`].
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// How long a probe may go unanswered: well above any stall of a busy but living peer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Dials peers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dialer {
    certificates: Option<Arc<Certificates>>,
}

impl Dialer {
    /// With these certificates, or without TLS.
    pub(crate) fn new(certificates: Option<Arc<Certificates>>) -> Self {
        Self { certificates }
    }

    /// A connection to `address`, which is `host:port`.
    ///
    /// # Errors
    /// What went wrong: the first failure that is no refusal, if there is one.
    pub(crate) async fn dial(&self, address: &str, protocol: Protocol) -> io::Result<Stream> {
        let stream = dial_any(address).await?;
        port::tune(&stream)?;
        match &self.certificates {
            None => Ok(Stream::Plain(stream)),
            Some(certificates) => {
                let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']');
                certificates.connect(host, stream, protocol).await
            }
        }
    }

    /// A gRPC connection to `address` that is made when it is first used, and again when it broke. Must be
    /// called within the runtime that shall drive it.
    ///
    /// # Errors
    /// If `address` is no `host:port`.
    pub(crate) fn connect(&self, address: &str) -> Result<Channel, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PROBE_INTERVAL)
            .keep_alive_timeout(PROBE_TIMEOUT)
            .keep_alive_while_idle(true)
            // Room for a whole append in flight, so that no window update is waited for.
            .initial_stream_window_size(u32::try_from(MESSAGE_BYTES_MAX).ok())
            .initial_connection_window_size(u32::try_from(MESSAGE_BYTES_MAX).ok());
        Ok(match &self.certificates {
            None => endpoint.connect_lazy(),
            Some(_) => endpoint.connect_with_connector_lazy(Connector {
                dialer: self.clone(),
                address: address.to_owned(),
            }),
        })
    }
}

/// The first of a name's addresses that answers. Each has its share of the time, so that one behind which nobody is does
/// not hide the others. That a connection was refused is told only if all of them refused one.
async fn dial_any(address: &str) -> io::Result<TcpStream> {
    let addresses: Vec<_> = lookup_host(address).await?.collect();
    dial_first(&addresses).await
}

async fn dial_first(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let share = CONNECT_TIMEOUT / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut told: Option<io::Error> = None;
    for address in addresses {
        let failed = match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
        if told.as_ref().is_none_or(is_refusal) {
            told = Some(failed);
        }
    }
    Err(told.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address")))
}

/// Whether the host says that nobody listens there.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

/// Makes connections for gRPC.
struct Connector {
    dialer: Dialer,
    address: String,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<TokioIo<Stream>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (dialer, address) = (self.dialer.clone(), self.address.clone());
        async move {
            let stream = dialer.dial(&address, Protocol::Grpc).await?;
            Ok(TokioIo::new(stream))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_refusal_is_told_only_if_nobody_is_at_any_address() {
        let closed = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap()
        };
        // No host's, so that nothing can be concluded from it.
        let broadcast = SocketAddr::from(([255, 255, 255, 255], 9));
        for (addresses, refused) in [
            (vec![closed], true),
            (vec![closed, closed], true),
            (vec![closed, broadcast], false),
            (vec![broadcast, closed], false),
        ] {
            let error = dial_first(&addresses).await.unwrap_err();
            assert_eq!(is_refusal(&error), refused, "{addresses:?}: {error}");
        }
    }
}
