//! Source ports that are used again only when all have forgotten them.
//!
//! A node of Kubernetes remembers for two minutes to which pod it has sent a connection that was never answered, by the
//! client's address and port, whatever has become of the pod. Linux gives a client the ports of connections that came to nothing
//! again soon, since those of all others rest for a minute: it would meet that memory again and again, and blame the Service.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Mutex;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

/// Below those that Linux and Kubernetes give away by themselves.
const PORTS: Range<u16> = 10_000..30_000;

/// A node's memory of a connection that was never answered (120 s), and some more.
const REST: Duration = Duration::from_secs(150);

/// Ports in turn, each at rest for a while after it was used.
#[derive(Debug)]
pub struct SourcePorts(Mutex<Turns>);

#[derive(Debug)]
struct Turns {
    unused: Range<u16>,
    /// The one that has rested longest is first.
    used: VecDeque<(Instant, u16)>,
}

impl Default for SourcePorts {
    fn default() -> Self {
        Self(Mutex::new(Turns {
            unused: PORTS,
            used: VecDeque::new(),
        }))
    }
}

impl Turns {
    fn take(&mut self) -> Option<u16> {
        let now = Instant::now();
        let port = self.unused.next().or_else(|| {
            let rested = |used: &mut (Instant, u16)| now.duration_since(used.0) >= REST;
            self.used.pop_front_if(rested).map(|(_, port)| port)
        })?;
        self.used.push_back((now, port));
        Some(port)
    }
}

impl SourcePorts {
    fn take(&self) -> io::Result<u16> {
        let taken = self.0.lock().expect("nobody panics with it").take();
        taken.ok_or_else(|| io::Error::other("every source port has just been used"))
    }

    /// A connection to `address` from a port that nobody has, and that this has not used for a while.
    ///
    /// # Errors
    /// If there is no connection, or no such port.
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

    #[tokio::test(start_paused = true)]
    async fn a_port_rests_before_it_is_used_again_and_one_of_another_is_left_alone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ports = SourcePorts::default();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..50 {
            let port = ports.connect(address).await.unwrap().local_addr().unwrap();
            assert!(seen.insert(port), "{port} again");
        }
        let next = ports.0.lock().unwrap().unused.start;
        let other = TcpListener::bind(("127.0.0.1", next)).await;
        let port = ports.connect(address).await.unwrap().local_addr().unwrap();
        assert!(other.is_err() || port.port() > next);

        while ports.0.lock().unwrap().unused.next().is_some() {}
        assert!(ports.connect(address).await.is_err());
        tokio::time::advance(REST).await;
        let first = seen.first().unwrap().port();
        assert_eq!(ports.take().unwrap(), first);
    }
}
