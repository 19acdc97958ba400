//! For how long a client of HTTP/1 may take nothing of its answer: the bound that the kernel keeps (`TCP_USER_TIMEOUT`).
//!
//! It counts from when the client first had no room. One that has much to send may well listen only once it has said all,
//! so the bound is moved on while it sends: it then counts from the last that came.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use crate::upstream::{has_left, set_bound};

/// A stream that goes over TCP, as all do beside those of some tests.
pub(crate) trait OverTcp {
    fn tcp(&self) -> Option<&TcpStream>;
}

impl OverTcp for TcpStream {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl OverTcp for TlsStream<TcpStream> {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self.get_ref().0)
    }
}

#[cfg(test)]
impl OverTcp for tokio::io::DuplexStream {
    fn tcp(&self) -> Option<&TcpStream> {
        None
    }
}

/// The bound of one connection.
#[derive(Debug)]
pub(crate) struct ClientBound {
    usual: Duration,
    /// Since when a request's body has been coming while something may have waited for room, and when that was last looked at.
    sending: Option<(Instant, Instant)>,
    /// Whether it is not the usual one.
    moved: bool,
}

impl ClientBound {
    pub(crate) fn new(usual: Duration) -> Self {
        Self {
            usual,
            sending: None,
            moved: false,
        }
    }

    /// This one, for whoever has the stream next.
    pub(crate) fn take(&mut self) -> Self {
        let usual = Self::new(self.usual);
        std::mem::replace(self, usual)
    }

    /// A part of a request's body came at `now`.
    pub(crate) fn sent(&mut self, now: Instant, stream: Option<&TcpStream>) {
        let (begun, set) = *self.sending.get_or_insert((now, now));
        let step = self.usual / 4;
        if now.saturating_duration_since(set) < step {
            return;
        }
        let Some(stream) = stream else {
            return;
        };
        // While nothing waits for room, a client that dies is found by the usual bound.
        if has_left(stream) {
            self.sending = Some((now, now));
            if std::mem::take(&mut self.moved) {
                set_bound(stream, self.usual);
            }
            return;
        }
        self.sending = Some((begun, now));
        self.moved = true;
        // The client has had no room since then at the longest. What comes within the next step moves it no more.
        let sent_for = now.saturating_duration_since(begun);
        set_bound(stream, sent_for + self.usual + step);
    }

    /// No body is coming: the usual bound holds again, once nothing waits for the client.
    pub(crate) fn rest(&mut self, stream: Option<&TcpStream>) {
        self.sending = None;
        if self.moved
            && let Some(stream) = stream
            && has_left(stream)
        {
            self.moved = false;
            set_bound(stream, self.usual);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use socket2::SockRef;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio::time::advance;

    use super::*;

    const USUAL: Duration = Duration::from_secs(120);

    #[tokio::test(start_paused = true)]
    async fn only_while_something_waits_for_a_client_that_sends_is_its_bound_moved() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        set_bound(&stream, USUAL);
        let mut bound = ClientBound::new(USUAL);
        let now = || SockRef::from(&stream).tcp_user_timeout().unwrap().unwrap();
        for _ in 0..40 {
            advance(USUAL / 4).await;
            bound.sent(Instant::now(), Some(&stream));
            assert_eq!(now(), USUAL, "a client that dies is found as soon as ever");
        }

        let part = [0; 64 << 10];
        let mut waiting = 0;
        stream.writable().await.unwrap();
        while let Ok(count) = stream.try_write(&part) {
            waiting += count;
        }
        for steps in 1..=40 {
            advance(USUAL / 4).await;
            bound.sent(Instant::now(), Some(&stream));
            assert_eq!(now(), USUAL + USUAL / 4 * (steps + 1));
        }

        while waiting > 0 {
            let mut part = [0; 64 << 10];
            waiting -= client.read(&mut part).await.unwrap();
        }
        // Its last word of what it has taken is still under way.
        while !has_left(&stream) {
            tokio::task::yield_now().await;
        }
        advance(USUAL / 4).await;
        bound.sent(Instant::now(), Some(&stream));
        assert_eq!(now(), USUAL, "it has taken all");
    }
}
