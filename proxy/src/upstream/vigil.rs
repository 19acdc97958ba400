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
//! sent fits into any window, and the long one beyond that. The long one is no shorter than the silence that the service
//! allows, and each word of the replica begins it anew: the kernel counts only what is taken, and a replica that answers
//! is alive. A replica that writes need not have read, so what it says has the short one looked at too.
//!
//! The long one is left once nothing waits for room any more, which is looked at every now and then: nobody tells of it,
//! and a replica may well be silent from then on until it has made its answer. What is written after that may again find
//! no room, however little it is, so that is looked at as well.

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::config::ProxyConfig;
use crate::limit::Limit;

/// What fits into the window of any receiver who has taken all that came before: the least that systems offer at first.
pub(crate) const FITS_BYTES: u64 = 16 << 10;

/// How many probes go unanswered within the short bound.
const PROBES: u32 = 3;

/// The kernel counts the pauses between probes in seconds.
const PROBE_EVERY_MIN: Duration = Duration::from_secs(1);

/// The most that the kernel takes, in its milliseconds.
const BOUND_MAX: Duration = Duration::from_millis(i32::MAX as u64);

/// Has a new connection given up by the short bound.
pub(super) fn begin(stream: &TcpStream, config: &ProxyConfig) -> io::Result<()> {
    let every = (config.host_silence / PROBES).max(PROBE_EVERY_MIN);
    let probes = TcpKeepalive::new().with_time(every).with_interval(every);
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(config.host_silence))
}

/// The long bound of a service whose replicas may be silent for `silence_max`: later than that, so that it is the service's
/// own limit which ends a request.
pub(crate) fn long(silence_max: Duration, config: &ProxyConfig) -> Duration {
    config
        .tcp_user_timeout
        .max(silence_max.saturating_add(silence_max / 4))
        .min(BOUND_MAX)
}

/// A connection that the long bound holds for: more was sent than may be taken at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Long {
    bound: Duration,
    /// When all that was sent had been taken last, in doubt earlier: the kernel counts from then, or later.
    since: Instant,
    /// When the bound was last set.
    set: Instant,
}

impl Long {
    /// Has it given up by the long `bound` from now on. Nothing has waited `since` longer than that.
    pub(crate) fn begin(stream: &TcpStream, bound: Duration, since: Instant) -> Self {
        let now = Instant::now();
        set_bound(stream, now - since + bound);
        Self {
            bound,
            since,
            set: now,
        }
    }

    /// The replica said something: the bound counts anew.
    pub(crate) fn heard(&mut self, stream: &TcpStream) {
        let (now, step) = (Instant::now(), self.bound / 4);
        if now.saturating_duration_since(self.set) < step {
            return;
        }
        self.set = now;
        if has_left(stream) {
            self.since = now;
        }
        // What is said within the next step begins it no more.
        set_bound(stream, now - self.since + self.bound + step);
    }
}

/// How often it is looked at whether anything waits for room, where the short bound may hold.
pub(crate) fn look_every(config: &ProxyConfig) -> Duration {
    config.host_silence / 4
}

/// Has it given up by the short bound again, if nothing waits for room. Whether it has.
pub(crate) fn shorten(stream: &TcpStream, config: &ProxyConfig) -> bool {
    let has_left = has_left(stream);
    if has_left {
        set_bound(stream, config.host_silence);
    }
    has_left
}

/// Whether all that was written has been sent, in doubt not. The count of what has not (`SIOCOUTQNSD`) cannot be asked
/// for without unsafe code, but a socket is writable only while less than its `TCP_NOTSENT_LOWAT` is unsent.
pub(crate) fn has_left(stream: &TcpStream) -> bool {
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

/// Has a connection given up whose other side takes nothing for so long.
pub(crate) fn set_bound(stream: &TcpStream, bound: Duration) {
    // It fails on a connection that has ended, and then does not matter.
    let _ = SockRef::from(stream).set_tcp_user_timeout(Some(bound.min(BOUND_MAX)));
}

/// Keeps the right bound on a connection that only sees what is read and written.
#[derive(Debug)]
pub(super) struct Vigil {
    short: Duration,
    look_every: Duration,
    long_bound: Duration,
    /// Set while the long bound holds.
    long: Option<Long>,
    /// How much was written since the replica last said something: it has taken what came before.
    written: u64,
    heard: bool,
    /// When the first was written that it is not known to have taken.
    unsure_since: Option<Instant>,
    /// When to look whether anything waits for room. Made with the first long bound: most connections have none.
    look: Option<Limit>,
}

impl Vigil {
    pub(super) fn new(silence_max: Duration, config: &ProxyConfig) -> Self {
        Self {
            short: config.host_silence,
            look_every: look_every(config),
            long_bound: long(silence_max, config),
            long: None,
            written: 0,
            heard: false,
            unsure_since: None,
            look: None,
        }
    }

    /// Something was read.
    pub(super) fn heard(&mut self, stream: &TcpStream) {
        self.heard = true;
        if let Some(long) = &mut self.long {
            return long.heard(stream);
        }
        let Some(since) = self.unsure_since else {
            return;
        };
        if since.elapsed() < self.look_every {
            return;
        }
        match has_left(stream) {
            true => self.unsure_since = None,
            false => self.lengthen(stream),
        }
    }

    /// Has the long bound hold.
    fn lengthen(&mut self, stream: &TcpStream) {
        let now = Instant::now();
        // Nothing has waited longer than by the bound that held until now, however long ago the first was written.
        let earliest = now.checked_sub(self.short).unwrap_or(now);
        let since = self.unsure_since.map_or(now, |since| since.max(earliest));
        self.unsure_since = Some(since);
        self.long = Some(Long::begin(stream, self.long_bound, since));
        self.look_at(now + self.look_every);
    }

    fn look_at(&mut self, when: Instant) {
        match &mut self.look {
            Some(look) => look.set(when),
            None => self.look = Some(Limit::new(when)),
        }
    }

    /// Has the short bound hold: nothing waits for room.
    fn settle(&mut self, stream: &TcpStream) {
        self.unsure_since = None;
        if self.long.take().is_some() {
            set_bound(stream, self.short);
        }
    }

    /// Looks whether anything waits for room, if that may be and it is time. Whoever reads and writes is woken to do so again.
    pub(super) fn look(&mut self, cx: &mut Context<'_>, stream: &TcpStream) {
        while self.long.is_some() || self.unsure_since.is_some() {
            let Some(Poll::Ready(())) = self.look.as_mut().map(|look| look.poll(cx)) else {
                return;
            };
            self.look_at(Instant::now() + self.look_every);
            match has_left(stream) {
                true => {
                    self.written = 0;
                    self.settle(stream);
                }
                false if self.long.is_none() => self.lengthen(stream),
                false => {}
            }
        }
    }

    /// So many bytes were written.
    pub(super) fn wrote(&mut self, count: usize, stream: &TcpStream) {
        if std::mem::take(&mut self.heard) {
            self.written = 0;
        }
        self.written = self.written.saturating_add(count as u64);
        if self.unsure_since.is_none() {
            let now = Instant::now();
            self.unsure_since = Some(now);
            if let Some(look) = &mut self.look {
                look.set(now + self.look_every);
            }
        }
        let is_long = self.written > FITS_BYTES;
        if is_long && self.long.is_none() {
            self.lengthen(stream);
        } else if !is_long && self.long.is_some() && has_left(stream) {
            self.settle(stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const SILENCE_MAX: Duration = Duration::from_secs(120);

    #[tokio::test(start_paused = true)]
    async fn the_long_bound_holds_once_more_was_sent_than_fits() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a free port");
        let stream = TcpStream::connect(listener.local_addr().expect("bound")).await;
        let stream = stream.expect("it listens");
        let config = ProxyConfig::default();
        begin(&stream, &config).expect("open");
        let bound = || SockRef::from(&stream).tcp_user_timeout().expect("open");
        let mut vigil = Vigil::new(SILENCE_MAX, &config);
        let fits = usize::try_from(FITS_BYTES).expect("small");
        for _ in 0..2 {
            vigil.wrote(fits, &stream);
            assert_eq!(bound(), Some(config.host_silence));
            vigil.wrote(1, &stream);
            assert_eq!(bound(), Some(long(SILENCE_MAX, &config)));
            vigil.heard(&stream);
            assert_eq!(
                bound(),
                Some(long(SILENCE_MAX, &config)),
                "it may wait still"
            );
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
        let mut vigil = Vigil::new(SILENCE_MAX, &config);
        stream.write_all(&[0; UNREAD]).await.expect("room");
        vigil.wrote(UNREAD, &stream);
        vigil.heard(&stream);
        stream.write_all(&[0]).await.expect("room");
        vigil.wrote(1, &stream);
        let bound = |stream: &TcpStream| SockRef::from(stream).tcp_user_timeout().expect("open");
        assert_eq!(
            bound(&stream),
            Some(long(SILENCE_MAX, &config)),
            "it is full"
        );
        shorten(&stream, &config);
        assert_eq!(
            bound(&stream),
            Some(long(SILENCE_MAX, &config)),
            "it is full"
        );
        assert!(stream.writable().await.is_ok(), "there is room here");

        let taken = replica.read_exact(&mut [0; UNREAD + 1]).await;
        taken.expect("all that was written");
        vigil.heard(&stream);
        vigil.wrote(1, &stream);
        assert_eq!(bound(&stream), Some(config.host_silence), "all was taken");
    }

    /// Two ends of a connection whose receiver has room for far less than its sender, and a vigil on it.
    async fn unequal(config: &ProxyConfig) -> (TcpStream, TcpStream, Vigil) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a free port");
        let window = SockRef::from(&listener).set_recv_buffer_size(4 << 10);
        window.expect("it listens");
        let stream = TcpStream::connect(listener.local_addr().expect("bound")).await;
        let stream = stream.expect("it listens");
        let room = SockRef::from(&stream).set_send_buffer_size(256 << 10);
        room.expect("open");
        let (replica, _) = listener.accept().await.expect("a connection");
        begin(&stream, config).expect("open");
        (stream, replica, Vigil::new(SILENCE_MAX, config))
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_answers_each_small_part_and_reads_none_comes_to_have_the_long_bound() {
        const PART_BYTES: usize = 1 << 10;
        let config = ProxyConfig::default();
        let (mut stream, _replica, mut vigil) = unequal(&config).await;
        for _ in 0..64 {
            stream.write_all(&[0; PART_BYTES]).await.expect("room");
            vigil.wrote(PART_BYTES, &stream);
            vigil.heard(&stream);
        }
        let bound = || SockRef::from(&stream).tcp_user_timeout().expect("open");
        assert_eq!(bound(), Some(config.host_silence), "nobody has looked");
        tokio::time::advance(config.host_silence / 4).await;
        vigil.heard(&stream);
        let long = long(SILENCE_MAX, &config) + config.host_silence / 4;
        assert_eq!(bound(), Some(long));
    }

    #[tokio::test(start_paused = true)]
    async fn the_long_bound_counts_from_the_last_word_of_the_replica() {
        const UNREAD: usize = 64 << 10;
        let config = ProxyConfig::default();
        let (mut stream, mut replica, mut vigil) = unequal(&config).await;
        stream.write_all(&[0; UNREAD]).await.expect("room");
        vigil.wrote(UNREAD, &stream);
        let long = long(SILENCE_MAX, &config);
        let bound = |stream: &TcpStream| SockRef::from(stream).tcp_user_timeout().expect("open");
        let step = long / 4;
        for steps in 1..5 {
            tokio::time::advance(step).await;
            vigil.heard(&stream);
            assert_eq!(bound(&stream), Some(long + step * (steps + 1)));
        }
        tokio::time::advance(step / 2).await;
        vigil.heard(&stream);
        assert_eq!(
            bound(&stream),
            Some(long + step * 5),
            "each word costs nothing"
        );

        let taken = replica.read_exact(&mut [0; UNREAD]).await;
        taken.expect("all that was written");
        tokio::time::advance(step).await;
        vigil.heard(&stream);
        assert_eq!(bound(&stream), Some(long + step), "all was taken");
    }

    /// What a connection does whose task is woken after this time, and finds nothing to read.
    async fn look_after(vigil: &mut Vigil, stream: &TcpStream, time: Duration) -> Option<Duration> {
        tokio::time::advance(time).await;
        poll_fn(|cx| {
            vigil.look(cx, stream);
            Poll::Ready(())
        })
        .await;
        SockRef::from(stream).tcp_user_timeout().expect("open")
    }

    #[tokio::test(start_paused = true)]
    async fn the_long_bound_is_left_once_all_was_taken_although_the_replica_says_nothing() {
        const UNREAD: usize = 64 << 10;
        let config = ProxyConfig::default();
        let (mut stream, mut replica, mut vigil) = unequal(&config).await;
        let (short, long) = (config.host_silence, long(SILENCE_MAX, &config));
        let look_every = look_every(&config);
        for _ in 0..2 {
            stream.write_all(&[0; UNREAD]).await.expect("room");
            vigil.wrote(UNREAD, &stream);
            for _ in 0..8 {
                let bound = look_after(&mut vigil, &stream, look_every).await;
                assert_eq!(bound, Some(long), "it is full");
            }
            let taken = replica.read_exact(&mut [0; UNREAD]).await;
            taken.expect("all that was written");
            let bound = look_after(&mut vigil, &stream, look_every / 2).await;
            assert_eq!(bound, Some(long), "nobody has looked");
            let bound = look_after(&mut vigil, &stream, look_every / 2).await;
            assert_eq!(bound, Some(short), "all was taken");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_little_that_finds_no_room_later_comes_to_have_the_long_bound() {
        const PART_BYTES: usize = 1 << 10;
        let config = ProxyConfig::default();
        let (mut stream, mut replica, mut vigil) = unequal(&config).await;
        let (short, long) = (config.host_silence, long(SILENCE_MAX, &config));
        let look_every = look_every(&config);
        stream.write_all(&[0; 64 * PART_BYTES]).await.expect("room");
        vigil.wrote(64 * PART_BYTES, &stream);
        let taken = replica.read_exact(&mut [0; 64 * PART_BYTES]).await;
        taken.expect("all that was written");
        let bound = look_after(&mut vigil, &stream, look_every).await;
        assert_eq!(bound, Some(short), "all was taken");
        // Filled by others, as it were: what is written now and then is no more than may be at once.
        while has_left(&stream) {
            stream.write_all(&[0; PART_BYTES]).await.expect("room");
        }
        tokio::time::advance(short * 100).await;
        vigil.wrote(1, &stream);
        let bound = look_after(&mut vigil, &stream, look_every / 2).await;
        assert_eq!(bound, Some(short), "nobody has looked");
        let bound = look_after(&mut vigil, &stream, look_every / 2).await;
        assert_eq!(bound, Some(long + look_every), "since it was written");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_taken_long_ago_makes_the_long_bound_no_longer() {
        let config = ProxyConfig::default();
        let (stream, _replica, mut vigil) = unequal(&config).await;
        vigil.wrote(1, &stream);
        vigil.heard(&stream);
        tokio::time::advance(Duration::from_secs(3600)).await;
        let more = usize::try_from(FITS_BYTES).expect("small") + 1;
        vigil.wrote(more, &stream);
        let bound = SockRef::from(&stream).tcp_user_timeout().expect("open");
        let most = long(SILENCE_MAX, &config) + config.host_silence;
        assert_eq!(bound, Some(most));
    }

    #[test]
    fn the_long_bound_is_none_that_the_kernel_refuses() {
        let config = ProxyConfig::default();
        assert_eq!(long(Duration::ZERO, &config), config.tcp_user_timeout);
        assert_eq!(long(Duration::MAX, &config), BOUND_MAX);
    }
}
