//! A request's body on its way to a replica.
//!
//! Its first part is kept while no answer has begun, so that a request which a replica surely did not act on
//! can be sent again, whole, after some of it was sent.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, sleep, timeout};

use super::{Bodies, ReceiveError, Received};
use crate::bulk::Place;
use crate::http2::server::STREAM_WINDOW;
use crate::memory::{Allotment, Taken};

/// How much of a body is kept to be sent again. Most calls of gRPC and most prompts are smaller.
const KEPT_MAX: usize = 64 << 10;

/// How much is kept of each, whatever the peer's budget for it has left. Beyond it the whole of [`KEPT_MAX`] is taken at once: most
/// bodies end before it, and touch nothing that workers share.
const KEPT_FREELY: usize = 4 << 10;

/// What each kept part counts as beside its bytes: so much it takes.
const PART_COST: usize = 128;
const _: () = assert!(size_of::<Part>() <= PART_COST);

/// How many parts are kept as they came, and how small a later one is copied: as it came it is a piece of what was read
/// with it, which may be far larger and another's. Most bodies have no more parts.
const UNCOPIED: usize = 4;
const SMALL: usize = 1 << 10;

/// How long a client that is still sending may go on once its answer is whole. A connection closed at once would be reset,
/// and the answer might be lost (RFC 9112, 9.6); a client that sends slowly would keep a replica's connection for as long as it likes.
pub(crate) const LINGER: Duration = Duration::from_secs(1);

/// Why a request's body did not reach a replica whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    #[error("the client broke its request off")]
    Client(#[source] ReceiveError),
    #[error("the request's body is larger than its service allows")]
    TooLarge,
    /// Its answer has ended, or it is sent elsewhere.
    #[error("the request was given up")]
    Cut,
}

/// What is wrong with what a client sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It broke off, or breaks the protocol.
    Broken,
    /// There is more of it than there may be.
    TooLarge,
    /// The rest of it does not come.
    Stalled,
}

/// The body that a replica gets. The latest one made of a [`Source`] is the only one that reads from it.
#[derive(Debug)]
pub(crate) struct UploadBody {
    /// `None` for a request without a body.
    source: Option<Rc<Source>>,
    /// How many of the kept frames it has given.
    given: usize,
    /// Its place in the order of all made of the source.
    turn: u32,
}

/// What a client sends.
#[derive(Debug)]
pub(crate) struct Source {
    /// `None` once nothing more of it is wanted.
    incoming: RefCell<Option<Received>>,
    /// Whether all of it was taken.
    ended: Cell<bool>,
    /// When the client last sent a part, and the replica took it.
    last: Cell<Instant>,
    /// Its frames so far; `None` once they are too many, or not needed any more.
    kept: RefCell<Option<Kept>>,
    /// Where room for them comes from.
    allotment: Allotment,
    turn: Cell<u32>,
    /// Where it waits while it is a large one.
    place: RefCell<Place>,
    /// How many more bytes it may have.
    room: Cell<u64>,
    fault: Cell<Option<Fault>>,
    /// Whether its frames are kept whatever their size: nobody has got them yet.
    peeking: Cell<bool>,
    /// Whoever waits for the client's next part, or for room for the one before.
    reader: RefCell<Option<Waker>>,
    /// Whether it is the client's turn: all that came was taken, and more was asked for.
    wanted: Cell<bool>,
}

#[derive(Debug, Default)]
struct Kept {
    frames: Vec<Part>,
    /// What they hold, with [`PART_COST`] for each.
    bytes: usize,
    /// Their room beyond [`KEPT_FREELY`].
    room: Option<Taken>,
}

impl Kept {
    /// Whether more may be kept, for somebody who wants to see it before it is sent on.
    fn may_grow(&self) -> bool {
        self.bytes <= KEPT_FREELY || self.bytes < KEPT_MAX && self.room.is_some()
    }

    /// Whether there is room for them, now that one more came.
    fn fits(&mut self, allotment: &Allotment) -> bool {
        if self.bytes > KEPT_FREELY && self.room.is_none() {
            self.room = allotment.take((KEPT_MAX - KEPT_FREELY) as u64);
        }
        self.bytes <= KEPT_FREELY || self.bytes <= KEPT_MAX && self.room.is_some()
    }
}

#[derive(Clone, Debug)]
enum Part {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Part {
    /// What it holds beside itself.
    fn bytes(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Trailers(trailers) => {
                let fields = trailers.iter();
                let bytes = fields.map(|(name, value)| name.as_str().len() + value.len());
                bytes.sum::<usize>() + PART_COST * trailers.len()
            }
        }
    }
}

/// A hold on the upload of a request that was sent: `None` if it has no body.
#[derive(Clone, Debug)]
pub(crate) struct Upload(Option<Rc<Source>>);

impl Upload {
    /// When the client last sent a part that the replica took.
    pub(crate) fn last(&self) -> Option<Instant> {
        self.0.as_ref().map(|source| source.last.get())
    }

    /// Whether the replica has taken all that the client sent, and waits for the rest.
    pub(crate) fn is_wanted(&self) -> bool {
        self.0.as_ref().is_some_and(|source| source.wanted.get())
    }

    /// Whether the request has no body.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether [`Self::again`] would give a body.
    pub(crate) fn is_kept(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|source| source.kept.borrow().is_some() && source.fault.get().is_none())
    }

    /// The same body once more, from its start, if all that was taken of it is still kept. What was made
    /// before gives nothing more.
    pub(crate) fn again(&self) -> Option<UploadBody> {
        let Some(source) = &self.0 else {
            return Some(UploadBody::empty());
        };
        if source.kept.borrow().is_none() || source.fault.get().is_some() {
            return None;
        }
        source.next_turn();
        Some(UploadBody {
            turn: source.turn.get(),
            source: Some(Rc::clone(source)),
            given: 0,
        })
    }

    /// Lets go of what is kept: an answer has begun.
    pub(crate) fn settle(&self) {
        if let Some(source) = &self.0 {
            *source.kept.borrow_mut() = None;
        }
    }

    /// Ends the upload where it is.
    pub(crate) fn cut(&self) {
        if let Some(source) = &self.0 {
            source.cut();
        }
    }

    /// Ends the upload after [`LINGER`], if it has not ended by then: its answer is whole. With it ends its `connection`,
    /// if that has no other request.
    pub(crate) fn answered(self, connection: Option<AbortHandle>) {
        let Some(source) = self.0.filter(Source::is_under_way) else {
            return;
        };
        // What lets go of it before need not wait.
        let source = Rc::downgrade(&source);
        spawn_local(async move {
            sleep(LINGER).await;
            if let Some(source) = source.upgrade() {
                source.cut();
                if let Some(connection) = connection {
                    connection.abort();
                }
            }
        });
    }

    /// Why the client's body came to nothing, if it did.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.0.as_ref().and_then(|source| source.fault.get())
    }
}

impl UploadBody {
    /// The body of a request, which breaks off where it has more than `bytes_max`. Of a worker's `bodies` it has
    /// what it needs.
    pub(crate) fn new(incoming: Received, bytes_max: Option<u64>, bodies: &Bodies) -> Self {
        if incoming.is_end_stream() {
            return Self::empty();
        }
        let source = Source {
            incoming: RefCell::new(Some(incoming)),
            ended: Cell::new(false),
            last: Cell::new(Instant::now()),
            kept: RefCell::new(Some(Kept::default())),
            allotment: bodies.kept.clone(),
            turn: Cell::new(0),
            place: RefCell::new(bodies.bulk.place()),
            room: Cell::new(bytes_max.unwrap_or(u64::MAX)),
            fault: Cell::new(None),
            peeking: Cell::new(false),
            reader: RefCell::default(),
            wanted: Cell::new(false),
        };
        Self {
            source: Some(Rc::new(source)),
            given: 0,
            turn: 0,
        }
    }

    /// Ready once it gives nothing more, whatever its client sends: it was cut, or is sent elsewhere.
    pub(super) fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(source) = &self.source else {
            return Poll::Pending;
        };
        if source.turn.get() != self.turn || source.incoming.borrow().is_none() {
            return Poll::Ready(());
        }
        *source.reader.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    fn empty() -> Self {
        Self {
            source: None,
            given: 0,
            turn: 0,
        }
    }

    /// The first [`KEPT_MAX`] bytes of the body, fewer if it comes in many small parts or all bodies have no more room; or all of
    /// it if it is shorter, or if the client is silent for `silence_max` or breaks off. Whoever reads the body gets them all
    /// the same.
    pub(crate) async fn peek(&self, silence_max: Duration) -> Vec<u8> {
        let Some(source) = &self.source else {
            return Vec::new();
        };
        source.peeking.set(true);
        let may_grow = || source.kept.borrow().as_ref().is_some_and(Kept::may_grow);
        while may_grow() {
            let frame = timeout(silence_max, poll_fn(|cx| source.poll_incoming(cx))).await;
            if !matches!(frame, Ok(Some(Ok(_)))) {
                break;
            }
        }
        source.peeking.set(false);
        let kept = source.kept.borrow();
        let frames = kept.iter().flat_map(|kept| &kept.frames);
        let mut bytes = Vec::new();
        for part in frames {
            if let Part::Data(data) = part {
                let room = KEPT_MAX - bytes.len();
                bytes.extend_from_slice(&data[..data.len().min(room)]);
            }
        }
        bytes
    }

    /// What is held of it while nobody reads it, and may yet come.
    pub(crate) fn held(&self) -> u64 {
        let Some(source) = &self.source else {
            return 0;
        };
        let mut incoming = source.incoming.borrow_mut();
        let untaken = match incoming.as_mut() {
            // No more of it is taken ahead.
            Some(incoming) if incoming.comes_unforeseen() && source.kept_bytes() >= KEPT_MAX => {
                u64::from(STREAM_WINDOW)
            }
            Some(incoming) => incoming.untaken(),
            None => 0,
        };
        let kept = source.kept.borrow();
        untaken + kept.as_ref().map_or(0, |kept| kept.bytes as u64)
    }

    /// Takes and keeps the next part of a body over HTTP/2 that has not told its length, so that [`Self::held`] counts what
    /// it costs; but no more than [`KEPT_MAX`]. Whoever reads the body gets it all the same. Ready once there is a part.
    pub(crate) fn poll_ahead(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(source) = &self.source else {
            return Poll::Pending;
        };
        let is_open = !source.ended.get() && source.fault.get().is_none();
        let unforeseen = |incoming: &Received| incoming.comes_unforeseen();
        let comes = is_open && source.incoming.borrow().as_ref().is_some_and(unforeseen);
        if !comes || source.kept_bytes() >= KEPT_MAX {
            return Poll::Pending;
        }
        source.peeking.set(true);
        let polled = source.poll_incoming(cx);
        source.peeking.set(false);
        polled.map(drop)
    }

    pub(crate) fn upload(&self) -> Upload {
        Upload(self.source.clone())
    }

    /// The next of the kept frames that it has not given yet.
    fn replayed(&mut self) -> Option<Part> {
        let kept = self.source.as_ref()?.kept.borrow();
        let part = kept.as_ref()?.frames.get(self.given).cloned()?;
        drop(kept);
        self.given += 1;
        Some(part)
    }
}

impl Source {
    fn next_turn(&self) {
        self.turn.set(self.turn.get() + 1);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Lets go of what the client sends, whoever waits for it.
    fn cut(&self) {
        self.next_turn();
        *self.incoming.borrow_mut() = None;
    }

    /// Whether some of it is still to come, or on its way: whoever sends it lets go of it after its last part.
    fn is_under_way(self: &Rc<Self>) -> bool {
        let incoming = self.incoming.borrow();
        let incoming = incoming.as_ref();
        let has_come = self.ended.get() || incoming.is_none_or(Body::is_end_stream);
        !has_come || Rc::strong_count(self) > 1
    }

    /// How much is kept of it, as it counts; as much as can be, if nothing is any more.
    fn kept_bytes(&self) -> usize {
        let kept = self.kept.borrow();
        kept.as_ref().map_or(KEPT_MAX, |kept| kept.bytes)
    }

    fn keep(&self, frame: &Frame<Bytes>) {
        let mut kept = self.kept.borrow_mut();
        let Some(all) = kept.as_mut() else {
            return;
        };
        let part = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) if data.len() <= SMALL && all.frames.len() >= UNCOPIED => {
                Part::Data(Bytes::copy_from_slice(data))
            }
            (Some(data), _) => Part::Data(data.clone()),
            (None, Some(trailers)) => Part::Trailers(trailers.clone()),
            (None, None) => return,
        };
        all.bytes += PART_COST + part.bytes();
        all.frames.push(part);
        if !all.fits(&self.allotment) && !self.peeking.get() {
            *kept = None;
        }
    }

    fn poll_incoming(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        if self.fault.get().is_some() {
            return Poll::Ready(Some(Err(UploadError::Cut))); // Its end would look like a whole body's.
        }
        let mut place = self.place.borrow_mut();
        let polled = match self.incoming.borrow_mut().as_mut() {
            Some(incoming) => place.poll_frame(incoming, cx),
            None => return Poll::Ready(Some(Err(UploadError::Cut))),
        };
        self.wanted.set(polled.is_pending() && !place.waits());
        drop(place);
        if polled.is_pending() {
            *self.reader.borrow_mut() = Some(cx.waker().clone());
        }
        let frame = ready!(polled);
        self.last.set(Instant::now());
        self.ended.set(frame.is_none());
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
                let Some(room) = self.room.get().checked_sub(bytes) else {
                    self.fault.set(Some(Fault::TooLarge));
                    return Poll::Ready(Some(Err(UploadError::TooLarge)));
                };
                self.room.set(room);
                self.keep(&frame);
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                self.fault.set(Some(Fault::Broken));
                Some(Err(UploadError::Client(error)))
            }
            None => None,
        })
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let Some(source) = self.source.clone() else {
            return Poll::Ready(None);
        };
        if source.turn.get() != self.turn {
            return Poll::Ready(Some(Err(UploadError::Cut)));
        }
        if let Some(part) = self.replayed() {
            return Poll::Ready(Some(Ok(match part {
                Part::Data(data) => Frame::data(data),
                Part::Trailers(trailers) => Frame::trailers(trailers),
            })));
        }
        let frame = ready!(source.poll_incoming(cx));
        self.given += usize::from(matches!(frame, Some(Ok(_))));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.source.as_ref().is_none_or(|source| {
            let incoming = source.incoming.borrow();
            let ended = incoming.as_ref().is_some_and(Body::is_end_stream);
            source.left(self.given).0 == 0 && ended
        })
    }

    fn size_hint(&self) -> SizeHint {
        let Some(source) = &self.source else {
            return SizeHint::with_exact(0);
        };
        let (_, replayed) = source.left(self.given);
        let incoming = source.incoming.borrow();
        let rest = incoming
            .as_ref()
            .map_or_else(SizeHint::new, Body::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + replayed);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + replayed);
        }
        hint
    }
}

impl Source {
    /// How many frames, and bytes in them, are kept beyond the first `given`.
    fn left(&self, given: usize) -> (usize, u64) {
        let kept = self.kept.borrow();
        let frames = kept.as_ref().and_then(|kept| kept.frames.get(given..));
        let frames = frames.unwrap_or_default();
        let bytes = frames.iter().map(|part| match part {
            Part::Data(data) => data.len() as u64,
            Part::Trailers(_) => 0,
        });
        (frames.len(), bytes.sum())
    }
}
