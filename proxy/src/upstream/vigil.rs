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
//! sent fits into any window, and the long one beyond that. A replica that writes need not have read: the short one comes
//! back only where nothing is left that waits for room.

use std::io;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
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

/// Has it given up by the short bound again, if nothing waits for room.
pub(crate) fn shorten(stream: &TcpStream, config: &ProxyConfig) {
    if has_left(stream) {
        bound(stream, config.host_silence);
    }
}

/// Whether all that was written has been sent, in doubt not. The count of what has not (`SIOCOUTQNSD`) cannot be asked
/// for without unsafe code, but a socket is writable only while less than its `TCP_NOTSENT_LOWAT` is unsent.
fn has_left(stream: &TcpStream) -> bool {
    let socket = SockRef::from(stream);
    if socket.set_tcp_notsent_lowat(1).is_err() {
        return false;
    }
    let mut sockets = [PollFd::new(stream, PollFlags::OUT)];
    let polled = poll(&mut sockets, Some(&Timespec::default()));
    let is_writable = polled.is_ok() && sockets[0].revents().contains(PollFlags::OUT);
    // 0 is what a socket begins with. It also wakes who has waited meanwhile.
    socket.set_tcp_notsent_lowat(0).is_ok() && is_writable
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
        if long && !self.is_long {
            self.is_long = true;
            bound(stream, self.long);
        } else if !long && self.is_long && has_left(stream) {
            self.is_long = false;
            bound(stream, self.short);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
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

    #[tokio::test]
    async fn a_replica_that_writes_and_does_not_read_is_not_cut_by_the_short_bound() {
        const UNREAD: usize = 64 << 10;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a free port");
        // Inherited by what it accepts: the window is far smaller than what is sent.
        let window = SockRef::from(&listener).set_recv_buffer_size(4 << 10);
        window.expect("it listens");
        let stream = TcpStream::connect(listener.local_addr().expect("bound")).await;
        let mut stream = stream.expect("it listens");
        let room = SockRef::from(&stream).set_send_buffer_size(4 * UNREAD);
        room.expect("open");
        let (mut replica, _) = listener.accept().await.expect("a connection");
        let config = ProxyConfig::default();
        begin(&stream, &config).expect("open");
        let mut vigil = Vigil::new(&config);
        stream.write_all(&[0; UNREAD]).await.expect("room");
        vigil.wrote(UNREAD, &stream);
        vigil.heard();
        stream.write_all(&[0]).await.expect("room");
        vigil.wrote(1, &stream);
        let bound = |stream: &TcpStream| SockRef::from(stream).tcp_user_timeout().expect("open");
        assert_eq!(bound(&stream), Some(config.tcp_user_timeout), "it is full");
        shorten(&stream, &config);
        assert_eq!(bound(&stream), Some(config.tcp_user_timeout), "it is full");
        assert!(stream.writable().await.is_ok(), "there is room here");

        let taken = replica.read_exact(&mut [0; UNREAD + 1]).await;
        taken.expect("all that was written");
        vigil.heard();
        vigil.wrote(1, &stream);
        assert_eq!(bound(&stream), Some(config.host_silence), "all was taken");
    }
}
