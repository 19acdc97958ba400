//! After a switch of protocols: bytes both ways, until both sides have ended, or none has come for too long.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tokio::time::Instant;

use crate::bulk::{Bulk, Place};
use crate::connection::close;
use crate::limit::Limit;
use crate::load::InFlight;
use crate::running::Running;

/// What is read at once from either side. Messages of the protocols that are tunnelled are small, and
/// a tunnel holds two of these for its whole life.
const BUFFER_BYTES: usize = 8 << 10;

/// Joins the two sides, until nothing has passed for `idle_max`. The request counts as in flight until then.
pub(crate) async fn run(
    client: OnUpgrade,
    replica: OnUpgrade,
    idle_max: Duration,
    bulk: Rc<Bulk>,
    _held: (InFlight, Running),
) {
    let (Ok(client), Ok(replica)) = tokio::join!(client, replica) else {
        return; // One side left before the switch was done; dropping the other closes it.
    };
    let (client, replica) = (TokioIo::new(client), TokioIo::new(replica));
    join(client, replica, idle_max, &bulk).await;
}

/// Passes bytes both ways. An error means that a side is gone; there is no one left to tell.
async fn join<C, R>(client: C, replica: R, idle_max: Duration, bulk: &Rc<Bulk>)
where
    C: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + AsyncWrite + Unpin,
{
    let last = Cell::new(Instant::now());
    let mut client = Side::new(client, &last, bulk.place());
    let mut replica = Side::new(replica, &last, bulk.place());
    let mut limit = Limit::new(last.get() + idle_max);
    let ended = {
        let copy =
            copy_bidirectional_with_sizes(&mut client, &mut replica, BUFFER_BYTES, BUFFER_BYTES);
        let mut copy = pin!(copy);
        poll_fn(|cx| {
            if copy.as_mut().poll(cx).is_ready() {
                return Poll::Ready(true);
            }
            loop {
                ready!(limit.poll(cx));
                let end = last.get() + idle_max;
                if end <= limit.end() {
                    return Poll::Ready(false);
                }
                limit.set(end);
            }
        })
        .await
    };
    if !ended {
        tokio::join!(close(client), close(replica));
    }
}

/// One side of a tunnel. It notes when it last took something: only then has something passed.
struct Side<'a, S> {
    stream: S,
    last: &'a Cell<Instant>,
    /// Where it waits while much comes from it.
    place: Place,
}

impl<'a, S> Side<'a, S> {
    fn new(stream: S, last: &'a Cell<Instant>, place: Place) -> Self {
        Self {
            stream,
            last,
            place,
        }
    }

    fn took(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.last.set(Instant::now());
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Side<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, place, .. } = &mut *self;
        ready!(place.poll(cx));
        let before = buffer.filled().len();
        let read = Pin::new(stream).poll_read(cx, buffer);
        place.passed(buffer.filled().len() - before);
        if read.is_pending() {
            place.drained();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Side<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.took(written)
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
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.took(written)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::{sleep, timeout};

    use super::*;

    const IDLE_MAX: Duration = Duration::from_secs(60);

    /// What one side has room for.
    const ROOM: usize = 1 << 10;

    /// How long a tunnel lasts whose two ends are used so.
    async fn lasts(used: impl AsyncFnOnce(DuplexStream, DuplexStream)) -> Duration {
        let (client, near) = duplex(ROOM);
        let (replica, far) = duplex(ROOM);
        let start = Instant::now();
        let tunnel = async {
            let joined = timeout(IDLE_MAX * 20, join(near, far, IDLE_MAX, &Rc::default())).await;
            joined.expect("it ends");
            start.elapsed()
        };
        tokio::join!(tunnel, used(client, replica)).0
    }

    #[tokio::test(start_paused = true)]
    async fn it_lasts_as_long_as_either_side_says_something_in_time() {
        let lasted = lasts(async |mut client, mut replica| {
            for n in 0..10 {
                sleep(IDLE_MAX - Duration::from_secs(1)).await;
                let (from, to) = match n % 2 {
                    0 => (&mut client, &mut replica),
                    _ => (&mut replica, &mut client),
                };
                from.write_all(b"x").await.expect("it is open");
                assert_eq!(to.read_u8().await.expect("it is passed on"), b'x');
            }
            // Both see its end.
            let mut rest = Vec::new();
            assert_eq!(client.read_to_end(&mut rest).await.expect("an end"), 0);
            assert_eq!(replica.read_to_end(&mut rest).await.expect("an end"), 0);
        })
        .await;
        let used = (IDLE_MAX - Duration::from_secs(1)) * 10;
        assert_eq!(lasted, used + IDLE_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_takes_nothing_does_not_keep_it_open() {
        let lasted = lasts(async |mut client, replica| {
            // More than there is room for, and then half of an end.
            let sent = client.write_all(&[7; 64 * ROOM]).await;
            assert!(sent.is_err(), "it is let go of");
            drop(replica);
        })
        .await;
        assert_eq!(lasted, IDLE_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_has_ended_does_not_keep_the_other_for_ever() {
        let lasted = lasts(async |mut client, mut replica| {
            client.shutdown().await.expect("it is open");
            let mut rest = Vec::new();
            assert_eq!(replica.read_to_end(&mut rest).await.expect("an end"), 0);
            assert_eq!(client.read_to_end(&mut rest).await.expect("an end"), 0);
            drop(replica);
        })
        .await;
        assert_eq!(lasted, IDLE_MAX);
    }
}
