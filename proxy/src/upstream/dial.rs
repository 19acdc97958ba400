//! Opening connections to replicas: TCP, and TLS where a service asks for it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use raftserve_model::spec::UpstreamSettings;
use rustix::io::Errno;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::socket::Socket;
use super::trust::Trust;
use super::vigil::Vigil;
use super::{ConnectError, Wire, vigil};
use crate::config::ProxyConfig;

/// How the replicas of a service are connected to.
#[derive(Debug)]
pub(crate) struct Dialer {
    settings: UpstreamSettings,
    /// How long its replicas may be silent.
    silence_max: Duration,
    /// What could not be used refuses every connection: cleartext is no answer to a wish for TLS.
    trust: Option<io::Result<Trust>>,
}

impl Dialer {
    /// For replicas that may be silent for `silence_max`.
    pub(crate) fn new(settings: &UpstreamSettings, silence_max: Duration) -> Self {
        Self {
            settings: settings.clone(),
            silence_max,
            trust: settings.tls.as_ref().map(Trust::new),
        }
    }

    /// Whether it was made of these settings.
    pub(crate) fn fits(&self, settings: &UpstreamSettings, silence_max: Duration) -> bool {
        self.settings == *settings && self.silence_max == silence_max
    }

    /// Whether connections opened by `other` are as good.
    pub(super) fn speaks_like(&self, other: &Self) -> bool {
        self.settings.tls == other.settings.tls
    }

    /// The longest that a connect may take, unless a request's rule says otherwise.
    pub(super) fn limit(&self) -> Duration {
        self.settings.connect_timeout
    }

    /// Connects to `address` within `limit`, for requests made for `wire`.
    pub(super) async fn open(
        &self,
        address: SocketAddr,
        wire: Wire,
        config: &ProxyConfig,
        limit: Duration,
    ) -> Result<Socket, ConnectError> {
        let opened = timeout(limit, async {
            let stream = tcp(address, config).await?;
            let vigil = Vigil::new(self.silence_max, config);
            match &self.trust {
                None => Ok(Socket::clear(stream, vigil)),
                Some(Ok(trust)) => {
                    let stream = trust.connect(stream, address, wire).await?;
                    Ok(Socket::tls(stream, vigil))
                }
                Some(Err(error)) => Err(io::Error::new(error.kind(), error.to_string())),
            }
        });
        opened
            .await
            .map_err(|_| ConnectError::Timeout(limit))?
            .map_err(failed)
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
            .map_err(failed)
    }
}

/// Whose fault it is that there is no connection.
fn failed(error: io::Error) -> ConnectError {
    let is_local = error.raw_os_error().is_some_and(|code| {
        let code = Errno::from_raw_os_error(code);
        [
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOBUFS,
            Errno::NOMEM,
            Errno::ADDRNOTAVAIL,
        ]
        .contains(&code)
    });
    let is_protocol = error.raw_os_error().is_none() && error.kind() == io::ErrorKind::Unsupported;
    let error = Arc::new(error);
    match is_local {
        true => ConnectError::Local(error),
        false if is_protocol => ConnectError::Handshake(error),
        false => ConnectError::Failed(error),
    }
}

async fn tcp(address: SocketAddr, config: &ProxyConfig) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    if address.ip().is_loopback() && stream.local_addr()? == address {
        // With no listener there, TCP may connect a socket to itself (RFC 9293, 3.5, figure 7).
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_nodelay(true)?;
    vigil::begin(&stream, config)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_this_process_or_its_host_is_held_against_no_replica() {
        let failed = |code: Errno| failed(io::Error::from_raw_os_error(code.raw_os_error()));
        let lacks = [
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOBUFS,
            Errno::NOMEM,
            Errno::ADDRNOTAVAIL,
        ];
        for code in lacks {
            assert!(matches!(failed(code), ConnectError::Local(_)), "{code}");
        }
        for code in [
            Errno::CONNREFUSED,
            Errno::CONNRESET,
            Errno::HOSTUNREACH,
            Errno::NETUNREACH,
            Errno::TIMEDOUT,
        ] {
            assert!(matches!(failed(code), ConnectError::Failed(_)), "{code}");
        }
        let other = super::failed(io::ErrorKind::ConnectionRefused.into());
        assert!(matches!(other, ConnectError::Failed(_)));
    }
}
