//! Watches what a client sends in HTTP/1 for messages with two claims about their length.
//!
//! RFC 9112, 6.3 lets a server take a request with both `Transfer-Encoding` and `Content-Length`, or refuse it.
//! Whoever sends one may be after readers that disagree, so it is refused; but the library drops one of the two
//! fields before we see the request. So this reads along, between socket and library, and breaks such a head
//! before its last byte: the library then answers 400 and closes the connection.
//!
//! It only has to find the heads of messages that the library accepts: where it loses track, it finds nothing,
//! and the library's own strictness remains.
//!
//! It also knows whether a client is still amid a request when its connection is closed, and then lingers; and tells
//! [`Turns`] what it sees.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::body::LINGER;
use crate::client_bound::{ClientBound, OverTcp};
use crate::turns::Turns;

/// How much of a line is kept if it comes in pieces: more than the two fields and a number take.
const LINE_MAX: usize = 128;

/// The end of a head. The library looks for one before it parses.
const END: &[u8] = b"\r\n\r\n";

/// A stream of requests that is read along.
#[derive(Debug)]
pub(crate) struct Guard<S> {
    stream: S,
    scan: Scan,
    /// What of [`END`] a broken head still gets.
    end: &'static [u8],
    turns: Arc<Turns>,
    bound: ClientBound,
    /// Runs while a client that still sends is listened to.
    linger: Option<Pin<Box<Sleep>>>,
}

impl<S: OverTcp> Guard<S> {
    /// Of a client whose stream had this bound so far.
    pub(crate) fn new(stream: S, turns: Arc<Turns>, bound: ClientBound) -> Self {
        Self {
            stream,
            scan: Scan::default(),
            end: END,
            turns,
            bound,
            linger: None,
        }
    }

    /// The stream, which goes on where this was, and its bound.
    pub(crate) fn into_parts(mut self) -> (S, ClientBound) {
        self.bound.rest(self.stream.tcp());
        (self.stream, self.bound)
    }
}

impl<S> Guard<S> {
    /// Whether the client sends a body, as far as was read.
    fn is_in_a_body(&self) -> bool {
        matches!(self.scan.at, At::Body { .. } | At::ChunkSize | At::Trailers)
    }

    /// Whether the client has begun a request and not sent all of it, as far as can be told.
    fn is_amid_a_body(&self) -> bool {
        let amid = self.is_in_a_body() || self.scan.at == At::Lost;
        amid && !self.turns.is_tunnelled()
    }
}

/// Where in a stream of requests the next byte is.
#[derive(Debug, Default)]
struct Scan {
    at: At,
    /// The part of the present line that earlier reads brought.
    line: Vec<u8>,
    head: Head,
    /// How many heads have ended.
    heads: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Head,
    /// So many bytes of a body, or of a chunk with its line's end.
    Body {
        left: u64,
        chunked: bool,
    },
    ChunkSize,
    Trailers,
    /// What follows are no chunks, which the library refuses.
    Lost,
    /// A head was broken: nothing more is read.
    Refused,
}

#[derive(Debug, Default)]
struct Head {
    lines: u32,
    chunked: bool,
    length: Option<u64>,
}

/// A head with two claims.
#[derive(Debug, PartialEq, Eq)]
struct TwoClaims;

impl Scan {
    /// Whether all that was read are whole requests.
    fn is_between(&self) -> bool {
        self.at == At::Head && self.head.lines == 0 && self.line.is_empty()
    }

    /// Reads on. If a head ends in `bytes` that must not, the place of its last byte.
    fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut from = 0;
        while from < bytes.len() {
            let rest = &bytes[from..];
            match self.at {
                At::Lost | At::Refused => return None,
                At::Body { left, chunked } => {
                    let taken = left.min(rest.len() as u64);
                    from += usize::try_from(taken).unwrap_or(rest.len());
                    self.at = match (left - taken, chunked) {
                        (0, true) => At::ChunkSize,
                        (0, false) => At::Head,
                        (left, chunked) => At::Body { left, chunked },
                    };
                }
                At::Head | At::ChunkSize | At::Trailers => {
                    let Some(end) = memchr::memchr(b'\n', rest) else {
                        self.keep(rest);
                        return None;
                    };
                    from += end + 1;
                    if self.take(&rest[..end]).is_err() {
                        self.at = At::Refused;
                        return Some(from - 1);
                    }
                }
            }
        }
        None
    }

    fn keep(&mut self, part: &[u8]) {
        let room = LINE_MAX - self.line.len().min(LINE_MAX);
        self.line.extend_from_slice(&part[..part.len().min(room)]);
    }

    /// Takes a line without its line feed.
    fn take(&mut self, rest: &[u8]) -> Result<(), TwoClaims> {
        if self.line.is_empty() {
            return self.line(rest);
        }
        self.keep(rest);
        let line = std::mem::take(&mut self.line);
        self.line(&line)
    }

    fn line(&mut self, line: &[u8]) -> Result<(), TwoClaims> {
        let empty = line.is_empty() || line == b"\r";
        match self.at {
            At::Head if empty && self.head.lines == 0 => {}
            At::Head if empty => {
                let head = std::mem::take(&mut self.head);
                self.heads = self.heads.wrapping_add(1);
                self.at = match (head.chunked, head.length) {
                    (true, Some(_)) => return Err(TwoClaims),
                    (true, None) => At::ChunkSize,
                    (false, None | Some(0)) => At::Head,
                    (false, Some(left)) => At::Body {
                        left,
                        chunked: false,
                    },
                };
            }
            At::Head => self.field(line)?,
            At::ChunkSize => {
                self.at = match chunk_size(line) {
                    Some(0) => At::Trailers,
                    Some(size) => At::Body {
                        left: size + 2,
                        chunked: true,
                    },
                    None => At::Lost,
                }
            }
            At::Trailers if empty => self.at = At::Head,
            At::Trailers | At::Body { .. } | At::Lost | At::Refused => {}
        }
        Ok(())
    }

    fn field(&mut self, line: &[u8]) -> Result<(), TwoClaims> {
        self.head.lines += 1;
        if self.head.lines == 1 || !matches!(line.first(), Some(b'c' | b'C' | b't' | b'T')) {
            return Ok(()); // The request line, or another field.
        }
        let Some(colon) = memchr::memchr(b':', line) else {
            return Ok(());
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.head.chunked = true;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            // A second one is a second claim, even if it is the same.
            let length = decimal(value).ok_or(TwoClaims)?;
            if self.head.length.replace(length).is_some() {
                return Err(TwoClaims);
            }
        }
        Ok(())
    }
}

/// Digits alone: no sign, no list.
fn decimal(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(text).ok()?.parse().ok())?
}

/// The size in a chunk's line without its line feed; `None` for a line that the library refuses, or that was cut before
/// its size was sure to have ended.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let (line, is_cut) = match line.strip_suffix(b"\r") {
        Some(line) => (line, false),
        None if line.len() == LINE_MAX => (line, true),
        None => return None,
    };
    let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit());
    let (digits, rest) = line.split_at(digits.unwrap_or(line.len()));
    let blanks = rest.iter().position(|byte| !matches!(byte, b' ' | b'\t'));
    match rest.split_at(blanks.unwrap_or(rest.len())).1 {
        [] if !is_cut => {}
        [b';', extension @ ..] if !extension.contains(&b'\r') => {}
        _ => return None,
    }
    let size = u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    (size <= u64::MAX - 2).then_some(size)
}

impl<S: AsyncRead + OverTcp + Unpin> AsyncRead for Guard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.scan.at == At::Refused {
            let (part, left) = self.end.split_at(self.end.len().min(buffer.remaining()));
            buffer.put_slice(part);
            self.end = left;
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        if self.scan.at == At::Lost || self.turns.is_tunnelled() {
            return Poll::Ready(Ok(()));
        }
        if let Some(at) = self.scan.find(&buffer.filled()[before..]) {
            // No byte of a head may be zero.
            buffer.filled_mut()[before + at] = 0;
            buffer.set_filled(before + at + 1);
        }
        self.turns.read(self.scan.heads, self.scan.is_between());
        let is_in_a_body = self.is_in_a_body();
        let this = &mut *self;
        match is_in_a_body {
            true => this.bound.sent(Instant::now(), this.stream.tcp()),
            false => this.bound.rest(this.stream.tcp()),
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + OverTcp + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    /// The library flushes once it has nothing left to write.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.turns.flushed();
        Poll::Ready(Ok(()))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.turns.shut();
        if self.linger.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            if !self.is_amid_a_body() {
                return Poll::Ready(Ok(()));
            }
        }
        let this = &mut *self;
        let linger = this.linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        while linger.as_mut().poll(cx).is_pending() {
            let mut room = [0; 8 << 10];
            let mut dropped = ReadBuf::new(&mut room);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut dropped))?;
            if dropped.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use socket2::SockRef;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::{advance, timeout};

    use super::*;
    use crate::upstream::{has_left, set_bound};

    /// Where the head ends that is refused, however the bytes are cut into reads.
    fn refused(text: &str) -> Option<usize> {
        let whole = Scan::default().find(text.as_bytes());
        for step in [1, 2, 7] {
            let (mut scan, mut found) = (Scan::default(), None);
            for (n, piece) in text.as_bytes().chunks(step).enumerate() {
                found = found.or(scan.find(piece).map(|at| n * step + at));
            }
            assert_eq!(found, whole, "{step}: {text:?}");
        }
        whole
    }

    #[test]
    fn two_claims_about_a_length_are_found_in_any_request_of_a_connection() {
        let both = "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n";
        let swapped = "POST / HTTP/1.1\r\ntransfer-encoding:chunked\r\ncontent-length:3\r\n\r\n";
        let long = format!(
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3;{}\r\n\n\n\n\r\n0\r\n\r\n",
            "x".repeat(2 * LINE_MAX)
        );
        for before in [
            "",
            "\r\n",
            &long,
            "GET / HTTP/1.1\r\nhost: content-length: 1\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\n\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n\
             4;x=\"y\"\r\n\n\n\n\n\r\n00A\r\n0123456789\r\n0\r\nx: y\r\n\r\n",
        ] {
            assert_eq!(refused(before), None, "{before:?}");
            for bad in [both, swapped] {
                let text = format!("{before}{bad}");
                assert_eq!(refused(&text), Some(text.len() - 1), "{text:?}");
            }
        }
    }

    #[test]
    fn a_length_is_one_number() {
        for bad in ["+3", "-3", "3, 3", "3 3", "0x3", "", "18446744073709551616"] {
            let text = format!("POST / HTTP/1.1\r\ncontent-length: {bad}\r\n");
            assert_eq!(refused(&text), Some(text.len() - 1), "{bad}");
        }
        let twice = "POST / HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 3\r\n";
        assert_eq!(refused(twice), Some(twice.len() - 1));
    }

    /// A guard that has read this, and its client.
    async fn after(text: &str) -> (DuplexStream, Guard<DuplexStream>) {
        let (mut client, ours) = duplex(1 << 10);
        let bound = ClientBound::new(Duration::MAX);
        let mut guard = Guard::new(ours, Arc::default(), bound);
        client.write_all(text.as_bytes()).await.expect("room");
        let mut read = vec![0; text.len()];
        guard.read_exact(&mut read).await.expect("it was sent");
        (client, guard)
    }

    /// How long it takes to close.
    async fn closes_after(guard: &mut Guard<DuplexStream>) -> Duration {
        let begun = Instant::now();
        let closed = timeout(LINGER * 10, guard.shutdown()).await;
        closed.expect("some time").expect("its client is there");
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_still_sending_is_listened_to_for_a_while_and_no_other() {
        let half = "POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\nhalf";
        let broken = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n4,\r\nhalf";
        for begun in [half, broken] {
            let (mut client, mut guard) = after(begun).await;
            let sends = async {
                let sent = timeout(LINGER * 10, client.write_all(&[0; 1 << 20])).await;
                sent.expect("somebody reads").expect("it is open");
            };
            assert_eq!(tokio::join!(closes_after(&mut guard), sends).0, LINGER);
        }
        let (client, mut guard) = after(half).await;
        drop(client);
        assert_eq!(closes_after(&mut guard).await, Duration::ZERO);
        for whole in ["", "GET / HTTP/1.1\r\n\r\n"] {
            let (_client, mut guard) = after(whole).await;
            assert_eq!(closes_after(&mut guard).await, Duration::ZERO, "{whole}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_bound_that_was_moved_is_moved_back_by_whoever_has_the_stream_next() {
        const USUAL: Duration = Duration::from_secs(120);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a free port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).await;
        let mut client = client.expect("it listens");
        let (stream, _) = listener.accept().await.expect("a client");
        set_bound(&stream, USUAL);
        let bound_of = |stream: &TcpStream| SockRef::from(stream).tcp_user_timeout().expect("open");

        let mut waiting = 0;
        stream.writable().await.expect("open");
        while let Ok(count) = stream.try_write(&[0; 64 << 10]) {
            waiting += count;
        }
        let half = b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\nhalf";
        let mut guard = Guard::new(stream, Arc::default(), ClientBound::new(USUAL));
        for sent in [&half[..], b"+"] {
            client.write_all(sent).await.expect("room");
            let read = guard.read_exact(&mut vec![0; sent.len()]).await;
            read.expect("it was sent");
            advance(USUAL / 4).await;
        }
        let (stream, bound) = guard.into_parts();
        assert!(
            bound_of(&stream) > Some(USUAL),
            "it sends, and takes nothing"
        );

        while waiting > 0 {
            waiting -= client.read(&mut [0; 64 << 10]).await.expect("open");
        }
        while !has_left(&stream) {
            tokio::task::yield_now().await; // Its last word of what it has taken is under way.
        }
        let mut guard = Guard::new(stream, Arc::default(), bound);
        client.write_all(b"GET").await.expect("room");
        guard.read_exact(&mut [0; 3]).await.expect("it was sent");
        let (stream, _) = guard.into_parts();
        assert_eq!(bound_of(&stream), Some(USUAL), "it has taken all");
    }
}
