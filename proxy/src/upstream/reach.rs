//! Connections to replicas for whoever probes them: opened exactly as those for requests are, so that a replica
//! which is ready is one that requests reach.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use raftserve_model::spec::UpstreamSettings;
use tokio::io::{AsyncRead, AsyncWrite};

use super::dial::Dialer;
use super::{ConnectError, Wire};
use crate::config::ProxyConfig;

/// Opens connections to the replicas of one service.
#[derive(Debug)]
pub struct ReplicaDialer {
    dialer: Dialer,
    config: ProxyConfig,
}

impl ReplicaDialer {
    /// As `settings` say, except that a connect may last as long as `limit`.
    #[must_use]
    pub fn new(settings: &UpstreamSettings, limit: Duration) -> Self {
        let settings = UpstreamSettings {
            connect_timeout: limit,
            ..settings.clone()
        };
        Self {
            dialer: Dialer::new(&settings),
            config: ProxyConfig::default(),
        }
    }

    /// Connects to `address`, with a TLS handshake where the settings want one: for HTTP/2 or for HTTP/1.1.
    ///
    /// # Errors
    /// Nobody accepts in time, or the handshake fails. Safe to repeat.
    pub async fn open(
        &self,
        address: SocketAddr,
        http2: bool,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>> {
        let wire = match http2 {
            true => Wire::Http2,
            false => Wire::Http1,
        };
        let limit = self.dialer.limit();
        match self.dialer.open(address, wire, &self.config, limit).await {
            Ok(socket) => Ok(socket),
            Err(ConnectError::Failed(error) | ConnectError::Local(error)) => {
                Err(io::Error::new(error.kind(), error.to_string()))
            }
            Err(error @ ConnectError::Timeout(_)) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, error.to_string()))
            }
            Err(error @ ConnectError::Handshake(_)) => Err(io::Error::other(error.to_string())),
        }
    }
}
