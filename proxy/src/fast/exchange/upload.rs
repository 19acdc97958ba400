//! The rest of a request's body on its way to the replica, and then the watch for a client that
//! leaves.

use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::rc::Rc;

use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::Instant;

use crate::config::ProxyConfig;
use crate::fast::buffers::{Buffer, Buffers, Size};
use crate::fast::framing::Framing;
use crate::fast::transfer::{poll_read, read, write_all};
use crate::upstream::{FITS_BYTES, lengthen};

/// A request whose head was sent.
pub(super) struct Upload<'a> {
    pub(super) buffers: &'a Rc<Buffers>,
    pub(super) framing: Framing,
    /// What the client sent beyond this request.
    pub(super) ahead: &'a mut Option<Buffer>,
    /// Set once the replica was sent all of it.
    pub(super) uploaded: &'a Cell<bool>,
    /// When a part of it was last sent.
    pub(super) progress: &'a Cell<Instant>,
    /// Whether the replica has all that the client sent, and not the whole request.
    pub(super) wanted: &'a Cell<bool>,
    /// Set once the replica is sent more than it may have room for.
    pub(super) long: &'a Cell<bool>,
    pub(super) config: &'a ProxyConfig,
    pub(super) intact: bool,
}

/// How the passing on of a body ended.
enum Passed {
    Whole,
    /// The replica takes no more. It may have answered before the end.
    ReplicaStopped,
    /// The client left, or sends what is no body.
    ClientGone,
}

impl Upload<'_> {
    /// Ends only if the client has gone.
    pub(super) async fn run(mut self, client: &mut ReadHalf<'_>, replica: &mut WriteHalf<'_>) {
        if !self.intact {
            return pending().await;
        }
        if !self.framing.is_done() {
            match self.pass(client, replica).await {
                Passed::Whole => self.uploaded.set(true),
                Passed::ReplicaStopped => return pending().await,
                Passed::ClientGone => return,
            }
        }
        // What a client sends ahead is kept, as far as one buffer goes; only its end matters now.
        if self.ahead.is_none() {
            let (ahead, buffers) = (self.ahead, self.buffers);
            let read = poll_fn(|cx| poll_read(client, cx, ahead, buffers, Size::Small)).await;
            if !read.is_ok_and(|count| count > 0) {
                return;
            }
        }
        pending().await
    }

    async fn pass(&mut self, client: &mut ReadHalf<'_>, replica: &mut WriteHalf<'_>) -> Passed {
        let mut size = Size::of_rest(self.framing.rest());
        if !self.framing.is_within(FITS_BYTES) {
            lengthen(replica.as_ref(), self.config);
            self.long.set(true);
        }
        while !self.framing.is_done() {
            self.wanted.set(true);
            let Ok(Some(mut buffer)) = read(client, self.buffers, size).await else {
                return Passed::ClientGone;
            };
            self.wanted.set(false);
            if buffer.is_full() {
                size = Size::Large;
            }
            let Ok(count) = self.framing.advance(buffer.filled()) else {
                return Passed::ClientGone;
            };
            let part = &buffer.filled()[..count];
            if write_all(replica, [part, &[], &[]]).await.is_err() {
                return Passed::ReplicaStopped;
            }
            self.progress.set(Instant::now());
            buffer.consume(count);
            if !buffer.is_empty() {
                *self.ahead = Some(buffer);
            }
        }
        Passed::Whole
    }
}
