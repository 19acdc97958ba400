//! For how long the host of a replica may be silent until its connections are given up.
//!
//! A host that is gone says nothing, and left to itself TCP waits a quarter of an hour for it. Its kernel would answer
//! at once, however busy the replica is: what it was sent is acknowledged, and so are probes of a silent connection. So
//! a bound of some seconds (`TCP_USER_TIMEOUT`, and keepalive within it) tells a dead host from a slow replica, for
//! every protocol and at any point of an answer, and asks nothing of the replica itself: servers of gRPC take a few pings
//! of HTTP/2 in silence for abuse, and close the connection.
//!
//! The same bound would end a connection whose other side acknowledges all and takes nothing, as one that is busy may for
//! a while. It can only come to that once more was sent than there was room for. So the short bound holds while what was
//! sent fits into any window, and the long one beyond that.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::config::ProxyConfig;

/// What fits into the window of any receiver who has taken all that came before: the least that systems offer at first.
pub(crate) const FITS_BYTES: u64 = 16 << 10;

/// How many probes go unanswered within the short bound.
const PROBES: u32 = 3;

/// The kernel counts the pauses between probes in seconds.
const PROBE_EVERY_MIN: Duration = Duration::from_secs(1);

/// Has a new connection given up by the short bound.
pub(super) fn begin(stream: &TcpStream, config: &ProxyConfig) -> io::Result<()> {
    let every = (config.host_silence / PROBES).max(PROBE_EVERY_MIN);
    let probes = TcpKeepalive::new().with_time(every).with_interval(every);
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(config.host_silence))
}

/// Has it given up by the long bound: more is sent than may be taken at once.
pub(crate) fn lengthen(stream: &TcpStream, config: &ProxyConfig) {
    bound(stream, config.tcp_user_timeout);
}

/// Has it given up by the short bound again: all was taken.
pub(crate) fn shorten(stream: &TcpStream, config: &ProxyConfig) {
    bound(stream, config.host_silence);
}

fn bound(stream: &TcpStream, bound: Duration) {
    // It fails on a connection that has ended, and then does not matter.
    let _ = SockRef::from(stream).set_tcp_user_timeout(Some(bound));
}

/// Keeps the right bound on a connection that only sees what is read and written.
#[derive(Debug)]
pub(super) struct Vigil {
    short: Duration,
    long: Duration,
    is_long: bool,
    /// How much was written since the replica last said something: it has taken what came before.
    written: u64,
    heard: bool,
}

impl Vigil {
    pub(super) fn new(config: &ProxyConfig) -> Self {
        Self {
            short: config.host_silence,
            long: config.tcp_user_timeout,
            is_long: false,
            written: 0,
            heard: false,
        }
    }

    /// Something was read.
    pub(super) fn heard(&mut self) {
        self.heard = true;
    }

    /// So many bytes were written.
    pub(super) fn wrote(&mut self, count: usize, stream: &TcpStream) {
        if std::mem::take(&mut self.heard) {
            self.written = 0;
        }
        self.written = self.written.saturating_add(count as u64);
        let long = self.written > FITS_BYTES;
        if long != self.is_long {
            self.is_long = long;
            bound(stream, if long { self.long } else { self.short });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_long_bound_holds_once_more_was_sent_than_fits() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a free port");
        let stream = TcpStream::connect(listener.local_addr().expect("bound")).await;
        let stream = stream.expect("it listens");
        let config = ProxyConfig::default();
        begin(&stream, &config).expect("open");
        let bound = || SockRef::from(&stream).tcp_user_timeout().expect("open");
        let mut vigil = Vigil::new(&config);
        let fits = usize::try_from(FITS_BYTES).expect("small");
        for _ in 0..2 {
            vigil.wrote(fits, &stream);
            assert_eq!(bound(), Some(config.host_silence));
            vigil.wrote(1, &stream);
            assert_eq!(bound(), Some(config.tcp_user_timeout));
            vigil.heard();
            assert_eq!(bound(), Some(config.tcp_user_timeout), "it may wait still");
        }
        vigil.wrote(1, &stream);
        assert_eq!(bound(), Some(config.host_silence), "all was taken");
    }
}
