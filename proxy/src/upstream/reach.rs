//! Connections to replicas for whoever probes them: opened exactly as those for requests are, so that a replica
//! which is ready is one that requests reach.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use raftserve_model::spec::UpstreamSettings;
use tokio::io::{AsyncRead, AsyncWrite};

use super::dial::Dialer;
use super::{ConnectError, Wire};
use crate::config::ProxyConfig;

/// Why a replica was not reached. Either is safe to try again.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// Nobody accepts in time, or the handshake fails.
    #[error("{0}")]
    Replica(String),
    /// This process, or its host, has no more files, memory or ports for a connection. It says nothing of the replica.
    #[error("this peer cannot open a connection")]
    Local(#[source] Arc<io::Error>),
}

impl From<ConnectError> for ReachError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Local(error) => Self::Local(error),
            ConnectError::Failed(error) => Self::Replica(error.to_string()),
            ConnectError::Handshake(error) => Self::Replica(error.to_string()),
            ConnectError::Timeout(_) | ConnectError::Leaves | ConnectError::Full(_) => {
                Self::Replica(error.to_string())
            }
        }
    }
}

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
            dialer: Dialer::new(&settings, Duration::ZERO),
            config: ProxyConfig::default(),
        }
    }

    /// Connects to `address`, with a TLS handshake where the settings want one: for HTTP/2 or for HTTP/1.1.
    ///
    /// # Errors
    /// No connection was had, and whose fault that is.
    pub async fn open(
        &self,
        address: SocketAddr,
        http2: bool,
    ) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, ReachError> {
        let wire = match http2 {
            true => Wire::Http2,
            false => Wire::Http1,
        };
        let limit = self.dialer.limit();
        let opened = self.dialer.open(address, wire, &self.config, limit).await;
        Ok(opened?)
    }
}
