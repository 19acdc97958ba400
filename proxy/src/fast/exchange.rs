//! One request and its answer over a connection to a replica.

mod download;
mod upload;

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::answer;
use super::buffers::{Buffers, Size};
use super::framing::Framing;
use super::transfer::{read, write_all};
use super::{Connection, Outgoing};
use crate::answer::{Dialect, Refusal};
use crate::body::LINGER;
use crate::choice::Choice;
use crate::connection::Unsent;
use crate::drain::Phase;
use crate::load::InFlight;
use crate::running::Running;
use crate::upstream::{Upstream, long, shorten};
use crate::view::ServiceView;

use download::{Download, Ended};
use upload::{Left, Upload};

/// What becomes of the client's connection.
pub(super) enum End {
    /// It may bring another request.
    Keep,
    Close,
    /// Nothing was sent and nothing taken from it: the general path may have it.
    Unsent,
}

/// A request that was sent as far as it was there.
struct Sent {
    upstream: Rc<Upstream>,
    stream: TcpStream,
    held: Held,
    /// How much of what was read from the client it took.
    taken: usize,
    /// What of its body is still to come.
    framing: Framing,
    /// `false` if the replica stopped reading. It may still have answered.
    intact: bool,
    /// Whether the connection was a kept one.
    kept: bool,
}

/// What a request holds until its answer has ended.
type Held = (InFlight, Running);

/// Sends a request and passes its answer on.
pub(super) async fn run(connection: &mut Connection, outgoing: Outgoing) -> End {
    let mut outgoing = outgoing;
    let Some(sent) = send(connection, &mut outgoing).await else {
        return End::Unsent;
    };
    let Outgoing {
        service,
        text,
        to_head,
        close,
        again,
        began,
        ..
    } = outgoing;
    drop(text);
    let Sent {
        upstream,
        mut stream,
        held,
        taken,
        framing,
        intact,
        kept,
    } = sent;
    connection.take(taken, again);
    let close = close || connection.client.lifetime.is_over(began);
    let mut held = Some(held);
    let uploaded = Cell::new(intact && framing.is_done());
    let intact = Cell::new(intact);
    let progress = Cell::new(Instant::now());
    let (wanted, answering) = (Cell::new(false), Cell::new(false));
    let long_held = Cell::new(None);
    let upload = Upload {
        buffers: &connection.worker.buffers,
        bulk: &connection.worker.bodies.bulk,
        framing,
        ahead: &mut connection.buffer,
        bound: &mut connection.bound,
        uploaded: &uploaded,
        progress: &progress,
        wanted: &wanted,
        long: &long_held,
        long_bound: long(
            service.route.silence_max(),
            &connection.worker.shared.config,
        ),
        config: &connection.worker.shared.config,
        intact: &intact,
    };
    let download = Download {
        worker: &connection.worker,
        service: &service,
        upstream: &upstream,
        limit: &mut connection.limit,
        progress: &progress,
        uploaded: &uploaded,
        intact: &intact,
        wanted: &wanted,
        long: &long_held,
        held: &mut held,
        answering: &answering,
        replay: &mut connection.replay,
        to_head,
        close,
    };
    let ended = {
        let (mut from_client, mut to_client) = connection.stream.split();
        let (mut from_replica, mut to_replica) = stream.split();
        let mut download = pin!(download.run(&mut from_replica, &mut to_client));
        let mut upload = pin!(upload.run(&mut from_client, &mut to_replica));
        let ended = poll_fn(|cx| match download.as_mut().poll(cx) {
            Poll::Pending => upload.as_mut().poll(cx).map(|left| match left {
                Left::Malformed if !answering.get() => Ended::Refused(Refusal::BAD_BODY),
                Left::Malformed | Left::Gone => Ended::Cut,
            }),
            ready => ready,
        })
        .await;
        if matches!(ended, Ended::Whole { .. }) && !uploaded.get() {
            rest(upload, &uploaded, &intact).await;
        }
        ended
    };
    connection.bound.rest(Some(&connection.stream));
    let closes = match ended {
        Ended::Whole { keeps, closes } => {
            if keeps && uploaded.get() {
                let config = &connection.worker.shared.config;
                if long_held.get().is_some() {
                    shorten(&stream, config);
                }
                upstream.give_back_plain(stream, config);
            } else {
                drop(stream); // It need not wait for the client.
            }
            closes
        }
        Ended::Refused(why) => {
            drop(stream);
            let running = held.take().map(|(_, running)| running);
            if let Some(running) = &running {
                running.try_failed(why.code());
            }
            if connection.put_back() {
                connection.client.unsent.replace(Some(Unsent {
                    began,
                    replica: upstream.replica,
                    kept: kept && why == Refusal::Broke,
                    why,
                    sent: true,
                    trace: running.and_then(Running::abandon),
                }));
                return End::Unsent;
            }
            let closes = close || !uploaded.get();
            refuse(connection, &service, &why, running, to_head, closes).await
        }
        Ended::Cut => return End::Close,
    };
    if !uploaded.get() {
        let _ = timeout(
            LINGER,
            linger(&mut connection.stream, &connection.worker.buffers),
        )
        .await;
        return End::Close;
    }
    if closes { End::Close } else { End::Keep }
}

/// Sends the head, and what there is of the body, to a replica that the policy picks. `None` if
/// nothing was sent; why, and where not to try again, is then noted for the general path.
async fn send(connection: &Connection, outgoing: &mut Outgoing) -> Option<Sent> {
    let worker = &connection.worker;
    let config = &worker.shared.config;
    let service = &outgoing.service;
    let mut framing = outgoing.framing.clone();
    let body = &connection.buffer.as_ref()?.filled()[outgoing.head_len..];
    let body = &body[..framing.advance(body).ok()?];
    let pieces = [&outgoing.text[..], body, &[]];
    let upstream = Rc::clone(service.pick(Choice::default(), &[])?);
    let in_flight = upstream.begin();
    let taken = outgoing.head_len + body.len();
    let (began, told) = (outgoing.began, &mut outgoing.told);
    let traced = &mut outgoing.traced;
    if let Some((trace, id)) = traced {
        trace.tries(*id, &upstream);
    }
    let sent = |upstream, (stream, kept), in_flight, intact| {
        let trace = traced.take().map(|(trace, _)| trace);
        let percent = service.route.traffic.retries.budget_percent;
        service.budget.borrow_mut().deposit(began, percent);
        Sent {
            upstream,
            stream,
            held: (
                in_flight,
                Running::start(&service.counters, None, began, (told.take(), trace)),
            ),
            taken,
            framing,
            intact,
            kept,
        }
    };
    if let Some(mut stream) = upstream.checkout_plain(config) {
        match write_all(&mut stream, pieces).await {
            Err(0) => upstream.clear(), // It was closed unused, and the others likely too.
            result => return Some(sent(upstream, (stream, true), in_flight, result.is_ok())),
        }
    }
    let why = match upstream.open_plain(config).await {
        Ok(mut stream) => match write_all(&mut stream, pieces).await {
            Err(0) => {
                worker.connect_failed(service, &upstream);
                Refusal::Unreachable
            }
            result => return Some(sent(upstream, (stream, false), in_flight, result.is_ok())),
        },
        Err(error) => worker.unconnected(service, &upstream, &error),
    };
    let trace = outgoing.traced.take().map(|(trace, id)| {
        trace.failed(id, why.code());
        trace
    });
    connection.client.unsent.replace(Some(Unsent {
        began,
        replica: upstream.replica,
        why,
        sent: false,
        kept: false,
        trace,
    }));
    None
}

/// Answers in the replica's stead. Returns whether the connection closes then.
async fn refuse(
    connection: &mut Connection,
    service: &ServiceView,
    refusal: &Refusal,
    running: Option<Running>,
    to_head: bool,
    closes: bool,
) -> bool {
    let worker = &connection.worker;
    let closes = closes || worker.drain.phase() != Phase::Serving;
    let (head, body) = refusal
        .answer(Some(&service.route), Dialect::Http)
        .into_parts();
    if let Some(mut running) = running {
        running.refused(head.status, refusal.code());
    }
    let body = body.collect().await.map(|body| body.to_bytes());
    let body = body.unwrap_or_default(); // It was made here: nothing can fail.
    let head = http::Response::from_parts(head, ());
    let mut text = worker.buffers.text();
    let date = worker.date.at(Instant::now());
    answer::write_own(&head, body.len(), closes, &date, &mut text);
    let body = if to_head { &[] } else { &body[..] };
    let written = write_all(&mut connection.stream, [&text, body, &[]]).await;
    closes || written.is_err()
}

/// Goes on with the upload after a whole answer, for [`LINGER`] at the most: that a last part comes late is no reason to
/// lose both connections.
async fn rest(
    mut upload: Pin<&mut impl Future<Output = Left>>,
    uploaded: &Cell<bool>,
    intact: &Cell<bool>,
) {
    let rest = poll_fn(|cx| {
        let left = upload.as_mut().poll(cx);
        match uploaded.get() || !intact.get() {
            true => Poll::Ready(()),
            false => left.map(drop),
        }
    });
    let _ = timeout(LINGER, rest).await;
}

/// Reads and drops what still comes, until the client closes as well.
async fn linger(stream: &mut TcpStream, buffers: &Rc<Buffers>) {
    if stream.shutdown().await.is_ok() {
        let (mut stream, _) = stream.split();
        while let Ok(Some(_)) = read(&mut stream, buffers, Size::Large).await {}
    }
}

impl Connection {
    /// Takes what was sent out of what was read. What may have to be sent again is kept aside.
    fn take(&mut self, count: usize, again: bool) {
        debug_assert!(self.replay.is_none(), "it was let go of with its answer");
        let buffer = self.buffer.as_mut().expect("it holds the head");
        if again && buffer.filled().len() == count {
            self.replay = self.buffer.take();
            return;
        }
        buffer.consume(count);
        if buffer.is_empty() {
            self.buffer = None;
        }
    }

    /// Puts the request that was sent back where it was read from. `false` if it may not be sent again, or the
    /// client has sent more since.
    fn put_back(&mut self) -> bool {
        let replay = self.replay.take();
        if replay.is_none() || self.buffer.is_some() {
            return false;
        }
        self.buffer = replay;
        true
    }
}
