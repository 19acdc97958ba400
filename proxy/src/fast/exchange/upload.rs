//! The rest of a request's body on its way to the replica, and then the watch for a client that
//! leaves.

use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::{Instant, Sleep, sleep};

use crate::bulk::Bulk;
use crate::client_bound::ClientBound;
use crate::config::ProxyConfig;
use crate::fast::buffers::{Buffer, Buffers, Size};
use crate::fast::framing::Framing;
use crate::fast::transfer::poll_read;
use crate::upstream::{FITS_BYTES, Long, look_every, shorten};

/// A request whose head was sent.
pub(super) struct Upload<'a> {
    pub(super) buffers: &'a Rc<Buffers>,
    pub(super) bulk: &'a Rc<Bulk>,
    pub(super) framing: Framing,
    /// What the client sent beyond this request.
    pub(super) ahead: &'a mut Option<Buffer>,
    /// For how long the client may take nothing.
    pub(super) bound: &'a mut ClientBound,
    /// Set once the replica was sent all of it.
    pub(super) uploaded: &'a Cell<bool>,
    /// When some of it was last taken.
    pub(super) progress: &'a Cell<Instant>,
    /// Whether the replica has all that the client sent, and not the whole request.
    pub(super) wanted: &'a Cell<bool>,
    /// Set once the replica is sent more than it may have room for.
    pub(super) long: &'a Cell<Option<Long>>,
    /// For how long it then may take nothing and say nothing.
    pub(super) long_bound: Duration,
    pub(super) config: &'a ProxyConfig,
    /// `false` once the replica takes no more of it.
    pub(super) intact: &'a Cell<bool>,
}

/// How the passing on of a body ended.
enum Passed {
    Whole,
    /// The replica takes no more. It may have answered before the end.
    ReplicaStopped,
    ClientLeft(Left),
}

/// How a client ended its request before its answer had ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    Gone,
    /// It sends what is no body.
    Malformed,
}

impl Upload<'_> {
    /// Ends only if the client has gone, or breaks the protocol.
    pub(super) async fn run(
        mut self,
        client: &mut ReadHalf<'_>,
        replica: &mut WriteHalf<'_>,
    ) -> Left {
        if !self.intact.get() {
            return pending().await;
        }
        let mut look = pin!(None);
        if !self.framing.is_done() {
            match self.pass(client, replica, look.as_mut()).await {
                Passed::Whole => self.uploaded.set(true),
                Passed::ReplicaStopped => {
                    self.intact.set(false);
                    return pending().await;
                }
                Passed::ClientLeft(left) => return left,
            }
        }
        let replica = (*replica).as_ref();
        // What a client sends ahead is kept, as far as one buffer goes; only its end matters now.
        poll_fn(|cx| {
            self.poll_look(cx, look.as_mut(), replica);
            self.bound.rest(Some((*client).as_ref()));
            if self.ahead.is_some() {
                return Poll::Pending;
            }
            match ready!(poll_read(
                client,
                cx,
                self.ahead,
                self.buffers,
                Size::Small,
                None
            )) {
                Ok(1..) => Poll::Pending,
                Ok(0) | Err(_) => Poll::Ready(Left::Gone),
            }
        })
        .await
    }

    /// While nothing more is there for the replica: has the short bound hold again once it had room for all of it.
    fn poll_look(&self, cx: &mut Context<'_>, look: Pin<&mut Option<Sleep>>, replica: &TcpStream) {
        let Some(mut look) = look.as_pin_mut() else {
            return;
        };
        while self.long.get().is_some() && look.as_mut().poll(cx).is_ready() {
            if shorten(replica, self.config) {
                self.long.set(None);
            }
            let next = Instant::now() + look_every(self.config);
            look.as_mut().reset(next);
        }
    }

    async fn pass(
        &mut self,
        client: &mut ReadHalf<'_>,
        replica: &mut WriteHalf<'_>,
        mut look: Pin<&mut Option<Sleep>>,
    ) -> Passed {
        let mut size = Size::of_rest(self.framing.rest());
        let mut place = self.bulk.place();
        let may_fit = self.framing.is_within(FITS_BYTES);
        if !may_fit {
            look.set(Some(sleep(look_every(self.config))));
        }
        // As of now the client may have no room.
        self.bound
            .sent(self.progress.get(), Some((*client).as_ref()));
        while !self.framing.is_done() {
            self.wanted.set(true);
            let mut slot = None;
            let read = poll_fn(|cx| {
                let read = poll_read(client, cx, &mut slot, self.buffers, size, Some(&mut place));
                if read.is_pending() {
                    self.poll_look(cx, look.as_mut(), (*replica).as_ref());
                }
                read
            });
            let read = read.await;
            let (Ok(_), Some(mut buffer)) = (read, slot) else {
                return Passed::ClientLeft(Left::Gone);
            };
            self.wanted.set(false);
            if !may_fit && self.long.get().is_none() {
                let long = Long::begin((*replica).as_ref(), self.long_bound, Instant::now());
                self.long.set(Some(long));
            }
            if buffer.is_full() {
                size = Size::Large;
            }
            let Ok(count) = self.framing.advance(buffer.filled()) else {
                return Passed::ClientLeft(Left::Malformed);
            };
            let part = &buffer.filled()[..count];
            let mut taken = 0;
            while taken < count {
                let Ok(more @ 1..) = replica.write(&part[taken..]).await else {
                    return Passed::ReplicaStopped;
                };
                taken += more;
                self.progress.set(Instant::now());
            }
            self.bound
                .sent(self.progress.get(), Some((*client).as_ref()));
            buffer.consume(count);
            if !buffer.is_empty() {
                *self.ahead = Some(buffer);
            }
        }
        Passed::Whole
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use socket2::SockRef;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    /// Two ends of a connection, which holds as little as it may.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a free port");
        let room = SockRef::from(&listener).set_recv_buffer_size(4 << 10);
        room.expect("it listens");
        let near = TcpStream::connect(listener.local_addr().expect("bound")).await;
        let near = near.expect("it listens");
        let room = SockRef::from(&near).set_send_buffer_size(4 << 10);
        room.expect("open");
        (near, listener.accept().await.expect("a connection").0)
    }

    #[tokio::test]
    async fn each_bit_of_a_part_that_the_replica_takes_is_progress() {
        const PART_BYTES: usize = 64 << 10;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a free port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).await;
        let mut client = client.expect("it listens");
        let (mut from_client, _) = listener.accept().await.expect("a connection");
        client.write_all(&[b'x'; PART_BYTES]).await.expect("room");
        let mut whole = vec![0; PART_BYTES];
        while from_client.peek(&mut whole).await.expect("open") < PART_BYTES {}
        let (mut to_replica, mut replica) = pair().await;

        let (uploaded, wanted, long) = (Cell::default(), Cell::default(), Cell::default());
        let intact = Cell::new(true);
        let progress = Cell::new(Instant::now());
        let (buffers, bulk, mut ahead) = (Rc::default(), Rc::default(), None);
        let config = ProxyConfig::default();
        let mut bound = ClientBound::new(config.client_user_timeout);
        let upload = Upload {
            buffers: &buffers,
            bulk: &bulk,
            framing: Framing::Length(2 * PART_BYTES as u64),
            ahead: &mut ahead,
            bound: &mut bound,
            uploaded: &uploaded,
            progress: &progress,
            wanted: &wanted,
            long: &long,
            long_bound: Duration::from_secs(60),
            config: &config,
            intact: &intact,
        };
        let (mut from_client, _) = from_client.split();
        let (_, mut to_replica) = to_replica.split();
        let mut upload = pin!(upload.run(&mut from_client, &mut to_replica));
        let (mut last, mut steps, mut taken) = (progress.get(), 0, 0);
        while taken < PART_BYTES {
            let mut room = [0; 1 << 10];
            let mut read = pin!(replica.read(&mut room));
            taken += poll_fn(|cx| {
                assert!(upload.as_mut().poll(cx).is_pending(), "more is to come");
                steps += u32::from(progress.get() != last);
                last = progress.get();
                read.as_mut().poll(cx).map(|count| count.expect("open"))
            })
            .await;
        }
        assert!(steps > 1, "the part was written at once");
        assert!(wanted.get());
    }
}
