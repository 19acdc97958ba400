//! A body on its way into a stream of HTTP/2.

use std::error::Error;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::{Body, Frame};
use tokio::time::Instant;

use super::backlog::{Backlog, Part, Share};
use super::upload::{UploadBody, UploadError};
use crate::limit::Limit;

/// A body on its way to a client.
pub(crate) trait Answer: Body {
    /// When the client last sent a part of the request that this answers, as far as it is known and matters.
    fn asked_last(&self) -> Option<Instant>;

    /// When all of it must have been taken, if that is bounded.
    fn end(&self) -> Option<Instant>;

    /// Ends it, whose time ran out before all of it was taken.
    fn overdue(&mut self) -> Result<Frame<Self::Data>, Self::Error>;
}

impl Answer for UploadBody {
    fn asked_last(&self) -> Option<Instant> {
        None
    }

    /// It ends with its answer.
    fn end(&self) -> Option<Instant> {
        None
    }

    fn overdue(&mut self) -> Result<Frame<Bytes>, UploadError> {
        Err(UploadError::Cut)
    }
}

/// What is asked of a client that takes an answer.
#[derive(Debug)]
pub(crate) struct Client {
    /// How long it may leave no room, unless it sends its request meanwhile.
    pub(crate) patience: Duration,
    /// What its connection holds.
    pub(crate) backlog: Rc<Backlog>,
}

/// Sends a body, as fast as the receiver takes it. No more is handed over than there is room for: what waits, waits here,
/// where its time is bounded.
#[derive(Debug)]
pub(crate) struct Pipe<B> {
    body: B,
    out: SendStream<Part>,
    /// A part that waits for room, and whether it is the last.
    waits: Option<(Bytes, bool)>,
    /// What its connection holds, if that is bounded.
    share: Option<Share>,
    /// How long a receiver may leave no room, if not for ever.
    patience: Option<Duration>,
    /// The end of that, once there was no room; armed anew only when it fires.
    limit: Option<Limit>,
    stalled: bool,
}

impl<B> Pipe<B>
where
    B: Body<Data = Bytes, Error: Error + 'static> + Answer + Unpin,
{
    /// Of a body that goes to a `client`, or to a replica.
    pub(crate) fn new(body: B, out: SendStream<Part>, client: Option<Client>) -> Self {
        let patience = client.as_ref().map(|client| client.patience);
        Self {
            body,
            out,
            waits: None,
            share: client.map(|client| Share::new(client.backlog)),
            patience,
            limit: None,
            stalled: false,
        }
    }

    /// Ready once all was handed over, or the stream has ended before. A body that breaks off resets it, and so does a
    /// receiver that leaves no room for too long: else it would hold for ever what the body holds.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.waits.is_some() {
                let Some(room) = ready!(self.poll_room(cx)) else {
                    self.give_up();
                    return Poll::Ready(());
                };
                if self.send(room) {
                    return Poll::Ready(());
                }
                continue;
            }
            // What is read would only be held.
            if self.poll_share(cx).is_pending() {
                let taken = self.taken_last();
                if self.poll_patience(cx, taken).is_ready() {
                    self.give_up();
                    return Poll::Ready(());
                }
                return self.out.poll_reset(cx).map(|_| ());
            }
            self.stalled = false;
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                // The receiver may have lost interest meanwhile.
                return self.out.poll_reset(cx).map(|_| ());
            };
            let frame = match frame {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    self.out.send_reset(reason(&error));
                    return Poll::Ready(());
                }
                None => {
                    let _ = self.out.send_data(Bytes::new().into(), true); // Else it has ended anyway.
                    return Poll::Ready(());
                }
            };
            match frame.into_data() {
                Ok(data) => {
                    let last = self.body.is_end_stream();
                    self.wait(data, last);
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        let _ = self.out.send_trailers(trailers);
                        return Poll::Ready(());
                    }
                }
            }
        }
    }

    /// Ends the stream, whose receiver left no room for too long.
    fn give_up(&mut self) {
        let mut reset = Reason::CANCEL;
        if self.is_over() {
            match self.body.overdue().map(Frame::into_trailers) {
                Ok(Ok(trailers)) => {
                    let _ = self.out.send_trailers(trailers); // Else it has ended anyway.
                    return;
                }
                Ok(Err(_)) => {}
                Err(error) => reset = reason(&error),
            }
        }
        self.out.send_reset(reset);
    }

    /// Whether the body's time has run out.
    fn is_over(&self) -> bool {
        self.body.end().is_some_and(|end| Instant::now() >= end)
    }

    /// Has a part wait for room.
    fn wait(&mut self, data: Bytes, last: bool) {
        self.out.reserve_capacity(data.len());
        self.waits = Some((data, last));
    }

    /// Hands over as much of what waits as has room. `true` if nothing follows, or the stream has ended.
    fn send(&mut self, room: usize) -> bool {
        let Some((mut data, last)) = self.waits.take() else {
            return false;
        };
        let rest = data.split_off(room.min(data.len()));
        let last_piece = rest.is_empty();
        let data = match &self.share {
            Some(share) => share.count(data),
            None => data.into(),
        };
        if self.out.send_data(data, last && last_piece).is_err() {
            return true;
        }
        if !last_piece {
            self.wait(rest, last);
        }
        last && last_piece
    }

    /// Ready with the room that there is for what waits. Where there never will be any, sending fails. `None` if there was
    /// none for too long.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Option<usize>> {
        let needs = self
            .waits
            .as_ref()
            .is_some_and(|(data, _)| !data.is_empty());
        loop {
            let room = self.out.capacity();
            if room > 0 && needs && self.poll_share(cx).is_pending() {
                let taken = self.taken_last();
                return self.poll_patience(cx, taken).map(|()| None);
            }
            if room > 0 || !needs {
                self.stalled = false;
                return Poll::Ready(Some(room));
            }
            match self.out.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(_) => return Poll::Ready(Some(0)),
                Poll::Pending => return self.poll_patience(cx, None).map(|()| None),
            }
        }
    }

    /// Ready while the connection may hold more.
    fn poll_share(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.share {
            Some(share) => share.poll_room(cx),
            None => Poll::Ready(()),
        }
    }

    /// When the receiver last took some of what its other streams wait for as well.
    fn taken_last(&self) -> Option<Instant> {
        self.share.as_ref()?.taken_last()
    }

    /// Ready once the body's time has run out, or there was no room for too long, and for as long after it was `taken` what
    /// this waits for: as over HTTP/1, a client that takes a little now and then is waited for. One that sends its request
    /// meanwhile is there, and may well listen once it has said all.
    fn poll_patience(&mut self, cx: &mut Context<'_>, taken: Option<Instant>) -> Poll<()> {
        let Some(patience) = self.patience else {
            return Poll::Pending;
        };
        if !std::mem::replace(&mut self.stalled, true) {
            let end = Instant::now() + patience;
            let end = self.body.end().map_or(end, |over| over.min(end));
            match &mut self.limit {
                Some(limit) => limit.set(end),
                None => self.limit = Some(Limit::new(end)),
            }
        }
        let Some(limit) = &mut self.limit else {
            return Poll::Pending;
        };
        let over = self.body.end();
        loop {
            ready!(limit.poll(cx));
            if over.is_some_and(|over| limit.end() >= over) {
                return Poll::Ready(());
            }
            let last = self.body.asked_last().max(taken);
            let later = last.map(|last| last + patience);
            let later = later.map(|later| over.map_or(later, |over| over.min(later)));
            match later.filter(|&later| later > limit.end()) {
                Some(later) => limit.set(later),
                None => return Poll::Ready(()),
            }
        }
    }
}

impl Pipe<UploadBody> {
    /// As [`Self::poll`]. A body that is cut while one of its parts waits for room resets the stream as well: the room
    /// may never come.
    pub(crate) fn poll_until_cut(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.poll(cx).is_pending() {
            ready!(self.body.poll_cut(cx));
            self.out.send_reset(Reason::CANCEL);
        }
        Poll::Ready(())
    }
}

/// How a stream ends whose body broke off so: as the one that it came by, if that was reset, and as one that is not
/// wanted any more, if it was cut.
fn reason(error: &(dyn Error + 'static)) -> Reason {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(UploadError::Cut) = error.downcast_ref() {
            return Reason::CANCEL;
        }
        if let Some(reason) = error.downcast_ref().and_then(h2::Error::reason) {
            return reason;
        }
        cause = error.source();
    }
    Reason::INTERNAL_ERROR
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::io;

    use bytes::Buf;
    use h2::{RecvStream, client, server};
    use http::{Request, Response, Uri};
    use http_body::Frame;
    use http_body_util::BodyExt;
    use tokio::io::{DuplexStream, duplex};
    use tokio::time::{sleep, timeout};

    use super::super::{Received, Stream};
    use super::*;

    /// Far above what anything here takes.
    const LIMIT: Duration = Duration::from_secs(20);

    type Breaks = fn() -> Box<dyn Error + Send + Sync>;

    /// A body of so many parts of so many bytes each, which then ends or breaks.
    struct Parts<'a> {
        left: usize,
        bytes: usize,
        taken: &'a Cell<usize>,
        /// How it ends, after a pause.
        breaks: Option<Breaks>,
        paused: bool,
        /// When its time runs out.
        end: Option<Instant>,
    }

    impl Answer for Parts<'_> {
        fn asked_last(&self) -> Option<Instant> {
            None
        }

        fn end(&self) -> Option<Instant> {
            self.end
        }

        fn overdue(&mut self) -> Result<Frame<Bytes>, Broke> {
            Err(Broke("its time ran out".into()))
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("it broke")]
    struct Broke(#[source] Box<dyn Error + Send + Sync>);

    impl Body for Parts<'_> {
        type Data = Bytes;
        type Error = Broke;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Broke>>> {
            if self.left == 0 && self.breaks.is_some() && !self.paused {
                self.paused = true; // A reset would overtake what was not written yet.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if self.left == 0 {
                return Poll::Ready(self.breaks.take().map(|breaks| Err(Broke(breaks()))));
            }
            self.left -= 1;
            self.taken.set(self.taken.get() + self.bytes);
            Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![7; self.bytes])))))
        }
    }

    async fn handshake(near: DuplexStream) -> server::Connection<DuplexStream, Part> {
        let connection = server::Builder::new().handshake(near).await;
        connection.expect("a client is there")
    }

    fn patient(patience: Duration) -> Option<Client> {
        Some(Client {
            patience,
            backlog: Rc::default(),
        })
    }

    /// Answers one request with this body, and lets `read` have the answer's.
    async fn answered<T>(body: Parts<'_>, read: impl AsyncFnOnce(Received) -> T) -> T {
        let (near, far) = duplex(64 << 10);
        let serve = async {
            let mut connection = handshake(near).await;
            let accepted = connection.accept().await.expect("a request comes");
            let (_request, mut respond) = accepted.expect("it is a good one");
            let out = respond.send_response(Response::new(()), false);
            let mut pipe = Pipe::new(body, out.expect("the client waits"), None);
            let mut piped = false;
            poll_fn(|cx| {
                let closed = connection.poll_closed(cx).map(drop);
                piped = piped || pipe.poll(cx).is_ready();
                closed
            })
            .await;
            assert!(piped, "it noticed that the stream has ended");
        };
        let call = async {
            let mut request = Request::new(());
            *request.uri_mut() = Uri::from_static("http://replica/");
            let (mut sender, connection) = client::handshake(far).await.expect("a server is there");
            let (answer, _) = sender
                .send_request(request, true)
                .expect("it is a good request");
            drop(sender);
            let read = async {
                let (head, frames): (_, RecvStream) =
                    answer.await.expect("it is answered").into_parts();
                read(Received::Http2(Stream::new(&head.headers, frames))).await
            };
            let (read, closed) = tokio::join!(read, connection);
            closed.expect("it ends well");
            read
        };
        let both = async { tokio::join!(serve, call).1 };
        timeout(LIMIT, both).await.expect("in time")
    }

    #[tokio::test]
    async fn whole_bodies_arrive_however_they_are_cut() {
        for (left, bytes) in [
            (0, 0),
            (1, 1),
            (1, 4 << 10),
            (5000, 300),
            (1, 200_000),
            (9, 100_000),
            (3, 0),
        ] {
            let taken = Cell::new(0);
            let parts = Parts {
                left,
                bytes,
                taken: &taken,
                breaks: None,
                paused: false,
                end: None,
            };
            let read = answered(parts, async |body| body.collect().await);
            let whole = read.await.expect("it ends well").to_bytes();
            assert_eq!(whole.len(), left * bytes);
        }
    }

    #[tokio::test]
    async fn a_receiver_that_does_not_read_stops_the_sender() {
        let taken = Cell::new(0);
        // Many times what may be taken.
        let parts = Parts {
            left: 1 << 10,
            bytes: 1 << 10,
            taken: &taken,
            breaks: None,
            paused: false,
            end: None,
        };
        let read = answered(parts, async |body| {
            let mut before = 0;
            while taken.get() != before || before == 0 {
                before = taken.get();
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
            }
            drop(body);
        });
        read.await;
        // The window of a stream that nobody chose is 65,535 bytes, and one part waits.
        let most = 65_535 + (1 << 10);
        assert!(taken.get() <= most, "{} bytes", taken.get());
    }

    /// The library would keep it, however long the receiver takes nothing.
    #[tokio::test(start_paused = true)]
    async fn what_has_no_room_is_not_handed_over_and_is_given_up() {
        const PATIENCE: Duration = Duration::from_secs(7);
        const WINDOW: usize = 65_535;
        const TIME: Duration = Duration::from_secs(3);
        for (left, bytes, kept, time) in [
            (1, WINDOW, None, None),
            (1, WINDOW + 1, Some(1), None),
            (2, WINDOW - 1, Some(WINDOW - 2), None),
            (1, 4 * WINDOW, Some(3 * WINDOW), None),
            (1, WINDOW, None, Some(TIME)),
            (1, WINDOW + 1, Some(1), Some(TIME)),
            (2, WINDOW - 1, Some(WINDOW - 2), Some(TIME)),
            (1, WINDOW + 1, Some(1), Some(2 * PATIENCE)),
        ] {
            let taken = Cell::new(0);
            let parts = Parts {
                left,
                bytes,
                taken: &taken,
                breaks: None,
                paused: false,
                end: time.map(|time| Instant::now() + time),
            };
            let (near, far) = duplex(1 << 20);
            let (mut server, client) = tokio::join!(handshake(near), client::handshake(far));
            let (mut sender, mut client) = client.expect("both");
            let mut request = Request::new(());
            *request.uri_mut() = Uri::from_static("http://replica/");
            // Its answer is not read.
            let (answer, _) = sender.send_request(request, true).expect("a good request");
            let accept = async {
                tokio::select! {
                    accepted = server.accept() => accepted,
                    ended = &mut client => panic!("{ended:?}"),
                }
            };
            let (_, mut respond) = accept.await.expect("a request").expect("a good one");
            let out = respond.send_response(Response::new(()), false);
            let mut pipe = Pipe::new(parts, out.expect("the client waits"), patient(PATIENCE));
            let begun = Instant::now();
            let mut seen = None;
            poll_fn(|cx| {
                assert!(server.poll_closed(cx).is_pending());
                assert!(Pin::new(&mut client).poll(cx).is_pending());
                let polled = pipe.poll(cx);
                seen = seen.or(pipe.waits.as_ref().map(|(data, _)| data.len()));
                polled
            })
            .await;
            assert_eq!(seen, kept, "{left} parts of {bytes} bytes");
            let waited = kept.map_or(Duration::ZERO, |_| time.unwrap_or(PATIENCE).min(PATIENCE));
            assert_eq!(begun.elapsed(), waited, "{left} parts of {bytes} bytes");
            drop(answer);
        }
    }

    /// An answer that goes on for ever, to a request that does for a while.
    struct Both {
        sends_until: Instant,
        taken: Rc<Cell<usize>>,
        end: Option<Instant>,
    }

    const ENDLESS_BYTES: usize = 16 << 10;

    impl Body for Both {
        type Data = Bytes;
        type Error = Broke;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Broke>>> {
            self.taken.set(self.taken.get() + ENDLESS_BYTES);
            Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![7; ENDLESS_BYTES])))))
        }
    }

    impl Answer for Both {
        fn asked_last(&self) -> Option<Instant> {
            Some(self.sends_until.min(Instant::now()))
        }

        fn end(&self) -> Option<Instant> {
            self.end
        }

        fn overdue(&mut self) -> Result<Frame<Bytes>, Self::Error> {
            Ok(Frame::trailers(http::HeaderMap::new()))
        }
    }

    /// So many requests of one client, which takes none of the answers: two ends whose streams have windows of this size.
    async fn untaken(
        count: usize,
        window: u32,
        room: usize,
    ) -> (
        server::Connection<DuplexStream, Part>,
        Vec<SendStream<Part>>,
        impl Sized,
    ) {
        let (near, far) = duplex(room);
        let mut builder = client::Builder::new();
        builder
            .initial_window_size(window)
            .initial_connection_window_size(window)
            .initial_max_send_streams(count);
        let shake = builder.handshake::<_, Bytes>(far);
        let (mut server, client) = tokio::join!(handshake(near), shake);
        let (mut sender, mut client) = client.expect("both");
        let mut outs = Vec::new();
        let mut answers = Vec::new();
        for _ in 0..count {
            let mut request = Request::new(());
            *request.uri_mut() = Uri::from_static("http://replica/");
            let (answer, _) = sender.send_request(request, true).expect("a good request");
            answers.push(answer);
            let accepted = tokio::select! {
                accepted = server.accept() => accepted,
                ended = &mut client => panic!("{ended:?}"),
            };
            let (_, mut respond) = accepted.expect("a request").expect("a good one");
            let out = respond.send_response(Response::new(()), false);
            outs.push(out.expect("the client waits"));
        }
        (server, outs, (sender, client, answers))
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_is_waited_for_from_its_last_part_on() {
        const PATIENCE: Duration = Duration::from_secs(7);
        const SENDS: Duration = Duration::from_secs(60);
        for time in [None, Some(SENDS / 2), Some(SENDS * 2)] {
            let (mut server, mut outs, _client) = untaken(1, 65_535, 1 << 20).await;
            let begun = Instant::now();
            let body = Both {
                sends_until: begun + SENDS,
                taken: Rc::default(),
                end: time.map(|time| begun + time),
            };
            let mut pipe = Pipe::new(body, outs.remove(0), patient(PATIENCE));
            poll_fn(|cx| {
                assert!(server.poll_closed(cx).is_pending());
                pipe.poll(cx)
            })
            .await;
            let waited = SENDS + PATIENCE;
            let waited = time.map_or(waited, |time| time.min(waited));
            assert_eq!(begun.elapsed(), waited);
        }
    }

    /// However much room it has told of, on however many streams.
    #[tokio::test(start_paused = true)]
    async fn what_a_connection_holds_is_bounded_over_all_its_streams() {
        const STREAMS: usize = 200;
        const PATIENCE: Duration = Duration::from_secs(7);
        /// What the socket takes before it is full.
        const SOCKET: usize = 64 << 10;
        /// Each stream may read a part before there is too much, beside what is handed over.
        const HELD_MAX: usize = (2 << 20) + SOCKET;
        let (mut server, outs, client) = untaken(STREAMS, (1 << 31) - 1, SOCKET).await;
        let taken = Rc::new(Cell::new(0));
        let client_of = patient(PATIENCE).expect("one");
        let mut pipes: Vec<_> = outs
            .into_iter()
            .map(|out| {
                let body = Both {
                    sends_until: Instant::now(),
                    taken: Rc::clone(&taken),
                    end: None,
                };
                let client = Client {
                    patience: PATIENCE,
                    backlog: Rc::clone(&client_of.backlog),
                };
                Pipe::new(body, out, Some(client))
            })
            .collect();
        let mut turn = async |pipes: &mut Vec<Pipe<Both>>| {
            poll_fn(|cx| {
                assert!(server.poll_closed(cx).is_pending());
                pipes.retain_mut(|pipe| pipe.poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
        };
        for _ in 0..100 {
            turn(&mut pipes).await;
        }
        assert_eq!(pipes.len(), STREAMS);
        assert!(taken.get() <= HELD_MAX, "{} bytes", taken.get());
        assert!(taken.get() > SOCKET, "{} bytes", taken.get());
        // Nobody who holds a replica does so for ever, not even who gets what others held.
        for _ in 0..10 {
            sleep(PATIENCE).await;
            turn(&mut pipes).await;
        }
        assert!(pipes.is_empty(), "{} are left", pipes.len());
        drop(client);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_not_cut_while_its_client_takes_what_others_have_waiting() {
        const PATIENCE: Duration = Duration::from_secs(7);
        let (mut server, outs, client) = untaken(1, (1 << 31) - 1, 64 << 10).await;
        let client_of = patient(PATIENCE).expect("one");
        let others = Share::new(Rc::clone(&client_of.backlog));
        let mut waiting = others.count(vec![0; 2 << 20].into());
        let out = outs.into_iter().next().expect("a stream");
        let body = Both {
            sends_until: Instant::now(),
            taken: Rc::default(),
            end: None,
        };
        let mut pipe = Pipe::new(body, out, Some(client_of));
        let mut is_cut = async || {
            poll_fn(|cx| {
                assert!(server.poll_closed(cx).is_pending());
                Poll::Ready(pipe.poll(cx).is_ready())
            })
            .await
        };
        for _ in 0..20 {
            assert!(!is_cut().await);
            sleep(PATIENCE / 2).await;
            waiting.advance(1);
        }
        assert!(!is_cut().await);
        sleep(PATIENCE).await;
        assert!(is_cut().await, "nothing is taken any more");
        drop(client);
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_resets_the_stream_as_it_was_reset_itself() {
        let cases: [(Breaks, Reason); 2] = [
            (|| Box::new(h2::Error::from(Reason::CANCEL)), Reason::CANCEL),
            (
                || Box::new(io::Error::other("no disk")),
                Reason::INTERNAL_ERROR,
            ),
        ];
        for (breaks, reason) in cases {
            let taken = Cell::new(0);
            let parts = Parts {
                left: 2,
                bytes: 10,
                taken: &taken,
                breaks: Some(breaks),
                paused: false,
                end: None,
            };
            let read = answered(parts, async |body| body.collect().await);
            let error = read.await.expect_err("it broke off");
            let super::super::ReceiveError::Http2(error) = error else {
                panic!("{error:?}");
            };
            assert_eq!(error.reason(), Some(reason));
        }
    }
}
