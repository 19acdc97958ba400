//! Opening connections to replicas: TCP, and TLS where a service asks for it.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use raftserve_model::spec::UpstreamSettings;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::trust::Trust;
use super::{ConnectError, Wire};
use crate::config::ProxyConfig;

/// How long an unused TCP connection stays unprobed: a tunnel to a dead host is found within minutes.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);

/// How the replicas of a service are connected to.
#[derive(Debug)]
pub(crate) struct Dialer {
    settings: UpstreamSettings,
    /// What could not be used refuses every connection: cleartext is no answer to a wish for TLS.
    trust: Option<io::Result<Trust>>,
}

impl Dialer {
    pub(crate) fn new(settings: &UpstreamSettings) -> Self {
        Self {
            settings: settings.clone(),
            trust: settings.tls.as_ref().map(Trust::new),
        }
    }

    /// Whether it was made of these settings.
    pub(crate) fn fits(&self, settings: &UpstreamSettings) -> bool {
        self.settings == *settings
    }

    /// Whether connections opened by `other` are as good.
    pub(super) fn speaks_like(&self, other: &Self) -> bool {
        self.settings.tls == other.settings.tls
    }

    /// Connects to `address`, for requests made for `wire`.
    pub(super) async fn open(
        &self,
        address: SocketAddr,
        wire: Wire,
        config: &ProxyConfig,
    ) -> Result<Socket, ConnectError> {
        let limit = self.settings.connect_timeout;
        let opened = timeout(limit, async {
            let stream = tcp(address, config).await?;
            match &self.trust {
                None => Ok(Socket::Clear(stream)),
                Some(Ok(trust)) => {
                    let stream = trust.connect(stream, address, wire).await?;
                    Ok(Socket::Tls(Box::new(stream)))
                }
                Some(Err(error)) => Err(io::Error::new(error.kind(), error.to_string())),
            }
        });
        opened
            .await
            .map_err(|_| ConnectError::Timeout(limit))?
            .map_err(|error| ConnectError::Failed(Arc::new(error)))
    }

    /// Connects to `address` for bare bytes, whatever the settings say of TLS.
    pub(super) async fn open_clear(
        &self,
        address: SocketAddr,
        config: &ProxyConfig,
    ) -> Result<TcpStream, ConnectError> {
        let limit = self.settings.connect_timeout;
        timeout(limit, tcp(address, config))
            .await
            .map_err(|_| ConnectError::Timeout(limit))?
            .map_err(|error| ConnectError::Failed(Arc::new(error)))
    }
}

async fn tcp(address: SocketAddr, config: &ProxyConfig) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    if address.ip().is_loopback() && stream.local_addr()? == address {
        // With no listener there, TCP may connect a socket to itself (RFC 9293, 3.5, figure 7).
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_user_timeout(Some(config.tcp_user_timeout))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_AFTER))?;
    Ok(stream)
}

/// A connection to a replica.
#[derive(Debug)]
pub(super) enum Socket {
    Clear(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Clear(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }
}
