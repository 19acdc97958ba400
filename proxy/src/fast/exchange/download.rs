//! A replica's answer on its way to the client: each read is written at once.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::Write;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::Instant;

use super::Held;
use crate::answer::Refusal;
use crate::bulk::Place;
use crate::drain::Phase;
use crate::fast::answer::{self, Answer, Parsed};
use crate::fast::buffers::{Buffer, Size, Text};
use crate::fast::framing::Framing;
use crate::fast::transfer::{poll_read, write_all};
use crate::limit::Limit;
use crate::upstream::{INTERIMS_MAX, Long, Upstream};
use crate::view::ServiceView;
use crate::worker::Worker;

/// An answer that is awaited.
pub(super) struct Download<'a> {
    pub(super) worker: &'a Worker,
    pub(super) service: &'a ServiceView,
    pub(super) upstream: &'a Upstream,
    pub(super) limit: &'a mut Limit,
    /// When a part of the request was last sent.
    pub(super) progress: &'a Cell<Instant>,
    /// Whether the replica was sent all of it.
    pub(super) uploaded: &'a Cell<bool>,
    /// Whether the replica would take more of it, as far as is known.
    pub(super) intact: &'a Cell<bool>,
    /// Whether the replica waits for more of the request.
    pub(super) wanted: &'a Cell<bool>,
    /// Set while the replica was sent more than it may have room for.
    pub(super) long: &'a Cell<Option<Long>>,
    /// Let go of once the last of the answer is read, however slowly the client takes it.
    pub(super) held: &'a mut Option<Held>,
    /// Set once some of the answer goes to the client.
    pub(super) answering: &'a Cell<bool>,
    /// The request, if it may be sent again; let go of once some of the answer goes to the client.
    pub(super) replay: &'a mut Option<Buffer>,
    pub(super) to_head: bool,
    pub(super) close: bool,
}

/// How an answer ended.
pub(super) enum Ended {
    Whole {
        /// Whether the replica's connection can take another request.
        keeps: bool,
        /// Whether the client was told that its connection closes.
        closes: bool,
    },
    /// The client got nothing yet, and is to get this.
    Refused(Refusal),
    /// The client got a part, and no more will come; or is gone.
    Cut,
}

/// Why nothing more was read.
enum Stop {
    /// The replica ended its side in order.
    End,
    /// The connection was reset, or is dead.
    Broken,
    Silent,
}

impl Download<'_> {
    pub(super) async fn run(
        mut self,
        replica: &mut ReadHalf<'_>,
        client: &mut WriteHalf<'_>,
    ) -> Ended {
        let mut text = self.worker.buffers.text();
        let (mut buffer, answer) = match self.head(replica, &mut text).await {
            Ok(head) => head,
            // Nobody answers what has not come.
            Err(Refusal::ClientSilent) => return Ended::Refused(Refusal::ClientSilent),
            Err(refusal) => {
                self.upstream.saw(self.progress.get(), false);
                self.upstream.failed();
                return Ended::Refused(refusal);
            }
        };
        buffer.consume(answer.head_len);
        let mut framing = answer.framing.clone();
        let Ok(count) = framing.advance(buffer.filled()) else {
            self.upstream.failed();
            return Ended::Refused(Refusal::Broke);
        };
        self.upstream.saw(self.progress.get(), true);
        self.upstream.answered(answer.status);
        let now = Instant::now();
        if let Some((_, running)) = self.held {
            running.answered_by(self.upstream, answer.status, 1, now);
        }
        self.sent(count);
        let mut keeps = answer.keeps;
        if framing.is_done() {
            keeps &= count == buffer.filled().len();
            if let Some((_, running)) = self.held.take() {
                running.end(now);
            }
        }
        // Whoever closes, or has stopped reading, leaves the rest of the request unread.
        let is_read = self.uploaded.get() || (answer.keeps && self.intact.get());
        let closes = self.close || !is_read || self.worker.drain.phase() != Phase::Serving;
        let date = self.worker.date.at(self.progress.get());
        answer::finish(&answer, closes, &date, &mut text);
        self.answering.set(true);
        *self.replay = None;
        let first = &buffer.filled()[..count];
        if pass(client, &framing, &mut text, first).await.is_err() {
            return Ended::Cut;
        }
        drop(buffer);
        match self.rest(framing, replica, client, text).await {
            Ok(at_end) => Ended::Whole {
                keeps: keeps && at_end,
                closes,
            },
            Err(()) => Ended::Cut,
        }
    }

    /// Awaits the head of the answer, and writes the client's.
    async fn head(
        &mut self,
        replica: &mut ReadHalf<'_>,
        text: &mut Text,
    ) -> Result<(Buffer, Answer), Refusal> {
        let mut slot: Option<Buffer> = None;
        let mut interims = 0;
        loop {
            if let Some(mut buffer) = slot.take() {
                match answer::read(buffer.filled(), self.to_head, text) {
                    Parsed::Answer(answer) => return Ok((buffer, answer)),
                    Parsed::Malformed => return Err(Refusal::Broke),
                    Parsed::Interim(_) if interims == INTERIMS_MAX => return Err(Refusal::Broke),
                    Parsed::Interim(head_len) => {
                        interims += 1;
                        buffer.consume(head_len);
                        if !buffer.is_empty() {
                            slot = Some(buffer);
                            continue;
                        }
                    }
                    Parsed::Partial => {
                        buffer.compact();
                        if buffer.is_full() {
                            buffer = buffer.grown().ok_or(Refusal::Broke)?;
                        }
                        slot = Some(buffer);
                    }
                }
            }
            let since = self.progress.get();
            match self
                .read(replica, &mut slot, Size::Small, None, Some(since))
                .await
            {
                Ok(()) => {}
                Err(Stop::End | Stop::Broken) => return Err(Refusal::Broke),
                // A part of the request may have been sent meanwhile.
                Err(Stop::Silent) if self.progress.get() > since => {}
                Err(Stop::Silent) if self.wanted.get() => return Err(Refusal::ClientSilent),
                Err(Stop::Silent) => return Err(Refusal::Silent),
            }
        }
    }

    /// Passes on what follows the first part. Returns whether it ended where the reads did.
    async fn rest(
        &mut self,
        mut framing: Framing,
        replica: &mut ReadHalf<'_>,
        client: &mut WriteHalf<'_>,
        mut text: Text,
    ) -> Result<bool, ()> {
        if framing.is_done() {
            return Ok(true);
        }
        let mut at_end = true;
        let mut place = self.worker.bodies.bulk.place();
        let mut size = Size::of_rest(framing.rest());
        while !framing.is_done() {
            let (mut slot, mut since) = (None, None);
            let read = loop {
                match self
                    .read(replica, &mut slot, size, Some(&mut place), since)
                    .await
                {
                    // It was busy with the request meanwhile.
                    Err(Stop::Silent) if self.took_lately() => since = Some(self.progress.get()),
                    read => break read,
                }
            };
            match read {
                Ok(()) => {}
                Err(Stop::End) if framing == Framing::UntilClose => {
                    *self.held = None;
                    return write_all(client, [b"0\r\n\r\n", &[], &[]])
                        .await
                        .map(|()| false)
                        .map_err(|_| ());
                }
                Err(Stop::Silent) if self.wanted.get() => {
                    // One that still waits for its client may well be silent.
                    self.told_broken();
                    return Err(());
                }
                Err(Stop::End | Stop::Broken | Stop::Silent) => {
                    self.broke_off();
                    return Err(());
                }
            }
            let Some(buffer) = slot else {
                return Err(());
            };
            if buffer.is_full() {
                size = Size::Large;
            }
            let Ok(count) = framing.advance(buffer.filled()) else {
                self.broke_off();
                return Err(());
            };
            self.sent(count);
            if framing.is_done() {
                at_end = count == buffer.filled().len();
                *self.held = None;
            }
            text.clear();
            pass(client, &framing, &mut text, &buffer.filled()[..count]).await?;
        }
        Ok(at_end)
    }

    /// Whether the replica took a part of the request within the longest silence.
    fn took_lately(&self) -> bool {
        self.progress.get().elapsed() < self.service.route.stream_timeout
    }

    /// So much of the answer goes to the client.
    fn sent(&mut self, count: usize) {
        if let Some((_, running)) = self.held {
            running.sent(count);
        }
    }

    /// The replica broke its answer off.
    fn broke_off(&mut self) {
        self.upstream.failed();
        self.told_broken();
    }

    /// The answer ends before its end.
    fn told_broken(&mut self) {
        if let Some((_, running)) = self.held {
            running.broke_off();
        }
    }

    /// Reads once. The replica may be silent for the service's longest silence, from `since` or from
    /// when it is first found so. Until it has a `place` in the worker's turn, if it needs one, nothing is read.
    async fn read(
        &mut self,
        replica: &mut ReadHalf<'_>,
        slot: &mut Option<Buffer>,
        size: Size,
        mut place: Option<&mut Place>,
        since: Option<Instant>,
    ) -> Result<(), Stop> {
        let silence_max: Duration = self.service.route.stream_timeout;
        let buffers = &self.worker.buffers;
        let (limit, long) = (&mut *self.limit, self.long);
        let mut armed = false;
        poll_fn(|cx| {
            if let Poll::Ready(read) =
                poll_read(replica, cx, slot, buffers, size, place.as_deref_mut())
            {
                return Poll::Ready(match read {
                    Ok(0) => Err(Stop::End),
                    Ok(_) => {
                        heard(long, replica.as_ref());
                        Ok(())
                    }
                    Err(_) => Err(Stop::Broken),
                });
            }
            if !armed {
                armed = true;
                limit.set(since.unwrap_or_else(Instant::now) + silence_max);
            }
            limit.poll(cx).map(|()| Err(Stop::Silent))
        })
        .await
    }
}

/// The replica said something, and need not have taken what it was sent.
fn heard(long: &Cell<Option<Long>>, replica: &TcpStream) {
    if let Some(mut held) = long.get() {
        held.heard(replica);
        long.set(Some(held));
    }
}

/// How much of a body is copied behind the text that it goes with: cheaper than a write of several pieces.
const JOINED_MAX: usize = 1 << 10;

/// Writes what is in `text` and a part of the body; as a chunk, if the body has no end of its own.
async fn pass(
    client: &mut WriteHalf<'_>,
    framing: &Framing,
    text: &mut Text,
    part: &[u8],
) -> Result<(), ()> {
    let mut end: &[u8] = &[];
    if *framing == Framing::UntilClose && !part.is_empty() {
        let _ = write!(**text, "{:x}\r\n", part.len()); // A vector takes all.
        end = b"\r\n";
    }
    let pieces = if text.is_empty() || part.len() > JOINED_MAX {
        [&text[..], part, end]
    } else {
        text.extend_from_slice(part);
        text.extend_from_slice(end);
        [&text[..], &[], &[]]
    };
    write_all(client, pieces).await.map_err(|_| ())
}
