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
    /// When the first of a request's body came that is still coming, and when the bound was last moved.
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

    /// A part of a request's body came at `now`.
    pub(crate) fn sent(&mut self, now: Instant, stream: Option<&TcpStream>) {
        let (begun, set) = *self.sending.get_or_insert((now, now));
        let step = self.usual / 4;
        if now.saturating_duration_since(set) < step {
            return;
        }
        self.sending = Some((begun, now));
        self.moved = true;
        if let Some(stream) = stream {
            // The client has had no room since then at the longest. What comes within the next step moves it no more.
            let sent_for = now.saturating_duration_since(begun);
            set_bound(stream, sent_for + self.usual + step);
        }
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
