//! Source ports that are used once each.
//!
//! A node of Kubernetes remembers for two minutes to which pod it has sent a connection that was never answered, by the
//! client's address and port, whatever has become of the pod. Linux gives a client the ports of connections that came to nothing
//! again soon, since those of all others rest for a minute: it would meet that memory again and again, and blame the Service.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};

use tokio::net::{TcpSocket, TcpStream};

/// Below those that Linux and Kubernetes give away by themselves.
const PORTS: Range<u16> = 10_000..30_000;

/// Each of the ports, once.
#[derive(Debug)]
pub struct SourcePorts {
    next: AtomicU16,
}

impl Default for SourcePorts {
    fn default() -> Self {
        Self {
            next: AtomicU16::new(PORTS.start),
        }
    }
}

impl SourcePorts {
    fn take(&self) -> io::Result<u16> {
        let more = |next: u16| PORTS.contains(&next).then_some(next + 1);
        let taken = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.map_err(|_| io::Error::other("every source port has been used"))
    }

    /// A connection to `address` from a port that was not used before, by this or by anybody who still has it.
    ///
    /// # Errors
    /// If there is no connection, or no such port any more.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        loop {
            let (socket, any) = match address {
                SocketAddr::V4(_) => (TcpSocket::new_v4()?, "0.0.0.0"),
                SocketAddr::V6(_) => (TcpSocket::new_v6()?, "::"),
            };
            let any = any.parse().map_err(io::Error::other)?;
            match socket.bind(SocketAddr::new(any, self.take()?)) {
                Ok(()) => return socket.connect(address).await,
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn no_port_is_used_twice_and_one_of_another_is_left_alone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ports = SourcePorts::default();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..50 {
            let port = ports.connect(address).await.unwrap().local_addr().unwrap();
            assert!(seen.insert(port), "{port} again");
        }
        let next = ports.next.load(Ordering::Relaxed);
        let other = TcpListener::bind(("127.0.0.1", next)).await;
        let port = ports.connect(address).await.unwrap().local_addr().unwrap();
        assert!(other.is_err() || port.port() > next);
        ports.next.store(PORTS.end, Ordering::Relaxed);
        assert!(ports.connect(address).await.is_err());
    }
}
