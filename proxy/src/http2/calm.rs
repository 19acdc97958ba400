//! How much a client may make this end do for nothing: answer frames that belong to no request, and send requests to replicas
//! that it takes back before their answer.
//!
//! The library answers each SETTINGS and each PING before it reads on, so that none is remembered. A client that takes the
//! answers could still keep a worker as busy as it likes, for a few bytes each. Requests that are taken back before they are
//! begun are limited by the library; after that, each costs a replica a request and maybe a connection.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// Kinds of frames, their flag that makes them an answer, and the length of what comes before the first (RFC 9113, 3.4 and 6).
const DATA: u8 = 0;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const ACK: u8 = 1;
const PREFACE_BYTES: u32 = 24;

/// How many pings may come at once, or as much of what costs more: as many as Envoy has waiting for a client that does not read.
const CREDIT_MAX: u32 = 10_000;

/// How soon another one may come. A client that measures its connection sends one for what it has just read, however soon
/// that is: so each write allows another one, too.
const CREDIT_EVERY: Duration = Duration::from_millis(1);

/// Settings are what a client says once, and some change them a few times. One counts as so many pings.
const SETTINGS_COST: u32 = 100;

/// A request that is taken back: ten thousand at once, and then a thousand a second beside what is written. All 256 of a
/// client's requests may be met by a deadline of a quarter of a second, again and again.
const TAKEN_BACK_COST: u32 = 1;

/// What a client may still make this end do for nothing.
#[derive(Debug)]
pub(crate) struct Allowance {
    credit: Cell<u32>,
    /// Until when it was given.
    since: Cell<Instant>,
    exceeded: Cell<bool>,
}

impl Allowance {
    fn new() -> Self {
        Self {
            credit: Cell::new(CREDIT_MAX),
            since: Cell::new(Instant::now()),
            exceeded: Cell::new(false),
        }
    }

    /// Whether the client has made more of it than it may. It stays so.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.exceeded.get()
    }

    /// A request was taken back that a replica may have.
    pub(crate) fn taken_back(&self) {
        self.spend(TAKEN_BACK_COST);
    }

    fn spend(&self, cost: u32) {
        if self.credit.get() < cost {
            let earned = self.since.get().elapsed().as_micros() / CREDIT_EVERY.as_micros();
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            self.since.set(self.since.get() + CREDIT_EVERY * earned);
            self.earn(earned);
        }
        match self.credit.get().checked_sub(cost) {
            Some(left) => self.credit.set(left),
            None => self.exceeded.set(true),
        }
    }

    fn earn(&self, credit: u32) {
        let credit = self.credit.get().saturating_add(credit);
        self.credit.set(credit.min(CREDIT_MAX));
    }
}

/// A client's stream of HTTP/2, of which nothing more is read once it is a flood.
#[derive(Debug)]
pub(crate) struct Calm<S> {
    stream: S,
    /// How much of the next frame's head was read.
    head: [u8; 9],
    filled: usize,
    /// How many bytes come before it.
    skip: u32,
    allowance: Rc<Allowance>,
    /// How many bytes of bodies have begun to come, as they count for windows (RFC 9113, 6.9.1).
    data: Rc<Cell<u64>>,
}

impl<S> Calm<S> {
    /// Watches a stream from its first byte on.
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            head: [0; 9],
            filled: 0,
            skip: PREFACE_BYTES,
            allowance: Rc::new(Allowance::new()),
            data: Rc::default(),
        }
    }

    /// How many bytes of bodies have come, from now on too. Those of a frame count with its head.
    pub(crate) fn data(&self) -> Rc<Cell<u64>> {
        Rc::clone(&self.data)
    }

    /// What the client may still make this end do for nothing, from now on too.
    pub(crate) fn allowance(&self) -> Rc<Allowance> {
        Rc::clone(&self.allowance)
    }

    /// Counts the frames that begin within what was read.
    fn count(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = bytes.len().min(self.skip as usize);
            self.skip -= u32::try_from(skipped).expect("no more than was to be skipped");
            bytes = &bytes[skipped..];
            let taken = bytes.len().min(self.head.len() - self.filled);
            let (head, rest) = bytes.split_at(taken);
            self.head[self.filled..][..taken].copy_from_slice(head);
            self.filled += taken;
            bytes = rest;
            if self.filled == self.head.len() {
                self.filled = 0;
                let [high, middle, low, kind, flags, ..] = self.head;
                self.skip = u32::from_be_bytes([0, high, middle, low]);
                match kind {
                    DATA => self.data.set(self.data.get() + u64::from(self.skip)),
                    PING if flags & ACK == 0 => self.allowance.spend(1),
                    SETTINGS if flags & ACK == 0 => self.allowance.spend(SETTINGS_COST),
                    _ => {}
                }
            }
        }
    }
}

/// What the frames of a connection cost that is read in these pieces, as far as that may be spent at once, and how many bytes
/// of bodies they have.
#[cfg(any(test, fuzzing))]
pub(crate) fn counted<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (u32, u64) {
    let mut calm = Calm::new(());
    pieces.for_each(|piece| calm.count(piece));
    (CREDIT_MAX - calm.allowance.credit.get(), calm.data.get())
}

impl<S: AsyncRead + Unpin> AsyncRead for Calm<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.allowance.is_exceeded() {
            return Poll::Pending; // Whoever looks at the flag ends it.
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.count(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Calm<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.allowance.earn(1);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices))?;
        self.allowance.earn(1);
        Poll::Ready(Ok(written))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::time::advance;

    use super::*;

    const DATA: u8 = 0;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("a small frame");
        let mut bytes = length.to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags, 0, 0, 0, 1]);
        bytes.extend(payload);
        bytes
    }

    /// One that has heard the preface.
    fn calm() -> Calm<tokio::io::Sink> {
        let mut calm = Calm::new(tokio::io::sink());
        calm.count(&[0; PREFACE_BYTES as usize]);
        calm
    }

    #[tokio::test(start_paused = true)]
    async fn frames_are_told_apart_however_they_arrive() {
        // What looks like a ping within a payload is none, nor is an answer to one.
        let within = frame(DATA, 0, &frame(PING, 0, &[0; 8]).repeat(100));
        let all = [
            frame(SETTINGS, 0, &[0; 6]),
            within,
            frame(PING, ACK, &[1; 8]),
            frame(PING, 0, &[1; 8]),
            frame(SETTINGS, ACK, &[]),
            frame(DATA, 0, &[]),
            frame(PING, 0, &[1; 8]),
        ];
        let all = all.concat();
        for size in [1, 2, 8, 9, 10, 17, 1_000, all.len()] {
            let mut calm = calm();
            all.chunks(size).for_each(|part| calm.count(part));
            assert_eq!(
                calm.allowance.credit.get(),
                CREDIT_MAX - SETTINGS_COST - 2,
                "{size}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_what_comes_faster_than_it_is_allowed() {
        let ping = frame(PING, 0, &[0; 8]);
        let mut calm = calm();
        calm.count(&ping.repeat(CREDIT_MAX as usize));
        for _ in 0..100 {
            advance(CREDIT_EVERY * 10).await;
            calm.count(&ping.repeat(10));
            // As often as one is answered.
            calm.write_all(b"x").await.expect("it is taken");
            calm.count(&ping);
        }
        // What is less than the time for one is not forgotten.
        for _ in 0..2 {
            advance(CREDIT_EVERY / 2).await;
        }
        assert!(!calm.allowance.is_exceeded());
        calm.count(&ping);
        assert!(!calm.allowance.is_exceeded());
        calm.count(&ping);
        assert!(calm.allowance.is_exceeded());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_taken_back_again_and_again_are_one() {
        let allowance = calm().allowance();
        let take_back = |count| (0..count).for_each(|_| allowance.taken_back());
        take_back(CREDIT_MAX / TAKEN_BACK_COST);
        // As many as may be under way, four times a second.
        for _ in 0..240 {
            advance(Duration::from_millis(256)).await;
            take_back(256);
        }
        assert!(!allowance.is_exceeded());
        take_back(1 + CREDIT_MAX / TAKEN_BACK_COST);
        assert!(allowance.is_exceeded());
    }

    #[tokio::test(start_paused = true)]
    async fn settings_that_change_again_and_again_are_one() {
        let mut calm = calm();
        let most = CREDIT_MAX / SETTINGS_COST;
        calm.count(&frame(SETTINGS, 0, &[]).repeat(most as usize));
        assert!(!calm.allowance.is_exceeded());
        calm.count(&frame(SETTINGS, 0, &[]));
        assert!(calm.allowance.is_exceeded());
    }
}
