//! The rest of a request's body on its way to the replica, and then the watch for a client that
//! leaves.

use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::Instant;

use crate::fast::buffers::{Buffer, Buffers, Size};
use crate::fast::framing::Framing;
use crate::fast::transfer::{poll_read, read};
use crate::upstream::{FITS_BYTES, Long};

/// A request whose head was sent.
pub(super) struct Upload<'a> {
    pub(super) buffers: &'a Rc<Buffers>,
    pub(super) framing: Framing,
    /// What the client sent beyond this request.
    pub(super) ahead: &'a mut Option<Buffer>,
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
    pub(super) intact: bool,
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
        if !self.intact {
            return pending().await;
        }
        if !self.framing.is_done() {
            match self.pass(client, replica).await {
                Passed::Whole => self.uploaded.set(true),
                Passed::ReplicaStopped => return pending().await,
                Passed::ClientLeft(left) => return left,
            }
        }
        // What a client sends ahead is kept, as far as one buffer goes; only its end matters now.
        if self.ahead.is_none() {
            let (ahead, buffers) = (self.ahead, self.buffers);
            let read = poll_fn(|cx| poll_read(client, cx, ahead, buffers, Size::Small)).await;
            if !read.is_ok_and(|count| count > 0) {
                return Left::Gone;
            }
        }
        pending().await
    }

    async fn pass(&mut self, client: &mut ReadHalf<'_>, replica: &mut WriteHalf<'_>) -> Passed {
        let mut size = Size::of_rest(self.framing.rest());
        if !self.framing.is_within(FITS_BYTES) {
            let long = Long::begin(replica.as_ref(), self.long_bound, Instant::now());
            self.long.set(Some(long));
        }
        while !self.framing.is_done() {
            self.wanted.set(true);
            let Ok(Some(mut buffer)) = read(client, self.buffers, size).await else {
                return Passed::ClientLeft(Left::Gone);
            };
            self.wanted.set(false);
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
    use std::pin::pin;

    use socket2::SockRef;
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

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
        let progress = Cell::new(Instant::now());
        let (buffers, mut ahead) = (Rc::default(), None);
        let upload = Upload {
            buffers: &buffers,
            framing: Framing::Length(2 * PART_BYTES as u64),
            ahead: &mut ahead,
            uploaded: &uploaded,
            progress: &progress,
            wanted: &wanted,
            long: &long,
            long_bound: Duration::from_secs(60),
            intact: true,
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
