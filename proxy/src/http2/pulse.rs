//! Whether there is still anybody at the other end of a connection.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::write_through::write_through;

/// Asks for a sign of life after a silence.
#[derive(Debug)]
pub(crate) struct Pulse {
    pings: PingPong,
    heard: Rc<Cell<Instant>>,
    silence: Duration,
    within: Duration,
    /// When the other side was asked, and has not answered yet.
    asked: Option<Instant>,
    /// Armed for the earliest time at which there may be something to do: what is heard costs no timer.
    timer: Pin<Box<Sleep>>,
}

impl Pulse {
    /// Asks after so much `silence`, and waits for the answer for as long as `within`. `heard` is when there was
    /// a sign last.
    pub(crate) fn new(
        pings: PingPong,
        heard: Rc<Cell<Instant>>,
        silence: Duration,
        within: Duration,
    ) -> Self {
        let timer = Box::pin(sleep_until(heard.get() + silence));
        Self {
            pings,
            heard,
            silence,
            within,
            asked: None,
            timer,
        }
    }

    /// Ready once nothing was heard for too long.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.asked.is_some() && self.pings.poll_pong(cx).is_ready() {
                self.asked = None;
            }
            ready!(self.timer.as_mut().poll(cx));
            let (now, heard) = (Instant::now(), self.heard.get());
            let next = match self.asked {
                Some(asked) if heard <= asked => return Poll::Ready(()),
                // It lives, even if its answer is late.
                Some(_) => heard + self.within,
                None if heard + self.silence > now => heard + self.silence,
                None => {
                    let sent = self.pings.send_ping(Ping::opaque());
                    self.asked = sent.is_ok().then_some(now);
                    now + self.within
                }
            };
            self.timer.as_mut().reset(next.max(now + TICK));
        }
    }
}

/// The shortest wait: so that no time is too early to be waited for.
const TICK: Duration = Duration::from_millis(1);

/// A stream that notes when something came in.
#[derive(Debug)]
pub(crate) struct Heard<S> {
    stream: S,
    at: Rc<Cell<Instant>>,
}

impl<S> Heard<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            at: Rc::new(Cell::new(Instant::now())),
        }
    }

    /// When something came in last, from now on too.
    pub(crate) fn at(&self) -> Rc<Cell<Instant>> {
        Rc::clone(&self.at)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.at.set(Instant::now());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    write_through!();

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;

    use bytes::Bytes;
    use h2::{client, server};
    use tokio::io::{DuplexStream, duplex};
    use tokio::time::timeout;

    use super::*;

    const SILENCE: Duration = Duration::from_secs(20);
    const WITHIN: Duration = Duration::from_secs(10);

    type Server = server::Connection<DuplexStream, Bytes>;

    /// Runs a connection until its pulse is over, and says how long that took.
    async fn until_over(serve: impl AsyncFn(Server)) -> Duration {
        let (ours, theirs) = duplex(1 << 10);
        let ours = Heard::new(ours);
        let heard = ours.at();
        let (client, server) = tokio::join!(client::handshake(ours), server::handshake(theirs));
        let (_sender, mut connection) = client.expect("the server is there");
        let pings = connection.ping_pong().expect("they are taken once");
        let mut pulse = Pulse::new(pings, heard, SILENCE, WITHIN);
        let begin = Instant::now();
        let mut serve = pin!(serve(server.expect("the client is there")));
        let mut connection = pin!(connection);
        poll_fn(|cx| {
            let _ = serve.as_mut().poll(cx);
            let done = connection.as_mut().poll(cx);
            assert!(done.is_pending(), "{done:?}");
            pulse.poll(cx)
        })
        .await;
        begin.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_given_up() {
        let over = until_over(async |server| {
            std::future::pending::<()>().await;
            drop(server);
        });
        let took = timeout((SILENCE + WITHIN) * 20, over).await;
        let took = took.expect("some time");
        assert!(took >= SILENCE + WITHIN, "{took:?}");
        assert!(took < SILENCE + WITHIN + Duration::from_secs(1), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_answers_is_not() {
        let alive = until_over(async |mut server| while server.accept().await.is_some() {});
        let over = timeout((SILENCE + WITHIN) * 20, alive).await;
        assert!(over.is_err(), "after {over:?}");
    }
}
