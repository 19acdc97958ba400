//! Opening TCP connections to replicas.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::ConnectError;
use crate::config::ProxyConfig;

/// How long an unused TCP connection stays unprobed: a tunnel to a dead host is found within minutes.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);

/// Connects to `address`.
pub(super) async fn tcp(
    address: SocketAddr,
    config: &ProxyConfig,
) -> Result<TcpStream, ConnectError> {
    let limit = config.connect_timeout;
    timeout(limit, TcpStream::connect(address))
        .await
        .map_err(|_| ConnectError::Timeout(limit))?
        .and_then(|stream| tune(stream, address, config))
        .map_err(|error| ConnectError::Failed(Arc::new(error)))
}

fn tune(stream: TcpStream, address: SocketAddr, config: &ProxyConfig) -> io::Result<TcpStream> {
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
