//! The path of a request: route, prepare, dispatch, answer.

mod affinity;
mod attempt;
mod balance;
mod prepare;
mod spare;
mod terms;
mod wait;

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body;
use raftserve_model::SessionKey;
use tokio::time::{Instant, timeout_at};

use crate::access_log::Record;
use crate::answer::{Dialect, Refusal, no_such_service};
use crate::body::{
    Answer as _, Bodies, Ending, Held, Patience, Received, ResponseBody, Streamed, UploadBody,
};
use crate::connection::{Client, Unsent};
use crate::deadline;
use crate::drain::Phase;
use crate::grpc;
use crate::hash_key;
use crate::headers::{Field, Seen, end_hop, is_asked_for};
use crate::load::InFlight;
use crate::metrics::count_shared;
use crate::routes::ServiceRoute;
use crate::running::Running;
use crate::trace;
use crate::tracer::{Asked, Sampled, Trace};
use crate::tunnel;
use crate::upstream::Checkout;
use crate::view::ServiceView;
use crate::worker::Worker;
use prepare::{Prepared, Switch};
use terms::Terms;

/// A replica's answer, and what its request holds there.
struct Sent {
    response: Box<Response<Received>>,
    in_flight: InFlight,
    checkout: Checkout,
    /// On how many replicas the request was tried.
    tries: usize,
}

/// How a replica's answer goes on to the client.
struct Answer {
    ending: Ending,
    patience: Patience,
    /// How long it may be silent once it has switched protocols.
    tunnel_idle: Duration,
    running: Running,
}

impl Sent {
    /// Does without the answer. The connection is kept if that has no body.
    fn discard(self) {
        if self.response.body().is_end_stream() {
            self.checkout.give_back(Instant::now());
        }
    }
}

/// Answers one request.
///
/// What it takes to choose a service and to make the replica's request is done at once. The future is what is left to
/// wait for: it lives as long as the request, and its size is what each costs.
pub(crate) fn serve(
    worker: Rc<Worker>,
    client: Rc<Client>,
    request: Request<Received>,
) -> impl Future<Output = Response<ResponseBody>> {
    let now = Instant::now();
    client.lifetime.used(now);
    let http1 = request.version() < Version::HTTP_2;
    client.answer_end.set(None);
    let begun = begin(&worker, &client, request, now);
    async move {
        let mut response = match begun {
            Ok(mut begun) => {
                let outcome = begun.send(&worker).await;
                begun.finish(&worker, outcome)
            }
            Err(refused) => *refused,
        };
        let stays = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if stays {
            client.turns.tunnel();
        }
        let closes = worker.drain.phase() != Phase::Serving || client.lifetime.is_over(now);
        if http1 {
            client.answer_end.set(response.body().end());
        }
        if http1 && !stays && closes {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        if !http1 {
            response.headers_mut().remove(CONNECTION);
        }
        response
    }
}

/// A request of a service, ready to be sent.
///
/// Boxed, and lent to what is awaited: what each await holds by itself is copied from one to the next.
struct Begun {
    service: Rc<ServiceView>,
    start: Instant,
    /// The index of the rule that it meets.
    rule: Option<usize>,
    hash: Option<u64>,
    /// `None` once it was sent.
    request: Option<Box<Request<UploadBody>>>,
    switch: Option<Box<Switch>>,
    session: Option<SessionKey>,
    dialect: Dialect,
    ending: Ending,
    /// When its answer must have ended.
    end: Option<Instant>,
    running: Running,
    /// How the short path failed at it.
    earlier: Cell<Option<Unsent>>,
}

/// Finds a request's service, and makes the request that a replica gets.
fn begin(
    worker: &Rc<Worker>,
    client: &Rc<Client>,
    mut request: Request<Received>,
    now: Instant,
) -> Result<Box<Begun>, Box<Response<ResponseBody>>> {
    // Of this request, whatever becomes of it: the next one must not find it.
    let mut earlier = client.unsent.take();
    let mut seen = Seen::of(request.headers());
    let dialect = Dialect::of(request.headers(), seen);
    let refused = |refusal: Refusal| Box::new(refusal.answer(None, dialect));
    if request.method() == Method::CONNECT {
        return Err(refused(Refusal::Connect));
    }
    let view = worker.view();
    let host = prepare::host(&request, seen).map_err(|why| refused(Refusal::BadRequest(why)))?;
    let path = request.uri().path();
    let Some(found) = view.table.resolve(host, path, client.listener) else {
        count_shared(&worker.shared.metrics.unrouted);
        return Err(match view.table.is_known() {
            true => Box::new(no_such_service(&view.table, dialect)),
            false => refused(Refusal::Starting),
        });
    };
    let prefix_len = found.prefix_len;
    let service = Rc::clone(view.at(found.index));
    let told = worker.shared.config.access_log.as_ref().map(|log| {
        let mut record = Record::new(log, &service.route.name, &client.address);
        record.asked(request.method().as_str(), host, request.uri().path());
        record.version = request.version();
        Box::new(record)
    });
    let earlier_trace = earlier.as_mut().and_then(|earlier| earlier.trace.take());
    let (traced, context) = traced(
        (worker, client),
        &service,
        host,
        &request,
        now,
        earlier_trace,
    );
    let rule = service.rule(host, prefix_len, &request);
    let head_max = service.route.traffic.request_head_bytes_max;
    let head_fits = head_max.is_none_or(|most| prepare::head_bytes(&request) <= most as usize);
    drop(view); // A long answer must not keep an old table alive.
    if let Some(begun) = context {
        trace::replace(request.headers_mut(), &begun);
        seen = seen.with(Field::Traceparent);
    }
    // What the short path took for it counts as well.
    let came = earlier.as_ref().map_or(now, |earlier| earlier.began);
    let mut running = Running::start(&service.counters, Some(client), came, (told, traced));
    let call_end = match dialect {
        Dialect::Grpc => grpc::deadline(&request, now),
        Dialect::Http => None,
    };
    let terms = Terms::of(&service.route, rule, None);
    let end = match (terms.deadline(now), call_end) {
        (Some(service), Some(call)) => Some(service.min(call)),
        (service, call) => service.or(call),
    };
    if let Some(end) = end {
        deadline::set(&mut request, dialect, end, now);
    }
    let ending = Ending::of(&request, dialect);
    let hash = service.hash(&request, client);
    let prepared = match head_fits {
        true => prepare(
            &service,
            (rule, dialect),
            client,
            (request, seen),
            prefix_len,
            &worker.bodies,
        ),
        false => Err(Refusal::HeadTooLarge),
    };
    let prepared = match prepared {
        Ok(prepared) => prepared,
        Err(refusal) => {
            running.refused(refusal.status(), refusal.code());
            return Err(Box::new(refusal.answer(Some(&service.route), dialect)));
        }
    };
    if let Some(record) = running.record() {
        record.trace = trace::of(prepared.request.headers());
    }
    let Prepared {
        request,
        switch,
        key,
    } = prepared;
    Ok(Box::new(Begun {
        service,
        start: now,
        rule,
        hash,
        request: Some(request),
        switch,
        session: key,
        dialect,
        ending,
        end,
        running,
        earlier: Cell::new(earlier),
    }))
}

fn prepare(
    service: &ServiceView,
    (rule, dialect): (Option<usize>, Dialect),
    client: &Client,
    (request, seen): (Request<Received>, Seen),
    prefix_len: usize,
    bodies: &Bodies,
) -> Result<Prepared, Refusal> {
    let bytes_max = service.route.body_bytes_max(service.met(rule));
    if bytes_max.is_some_and(|most| request.body().size_hint().lower() > most) {
        return Err(Refusal::TooLarge { bytes_max });
    }
    let met = service.met(rule);
    let wire = prepare::wire(&service.route, dialect);
    prepare::outgoing(
        (request, seen),
        client,
        &service.route,
        wire,
        prefix_len,
        (met, bodies),
    )
    .map_err(Refusal::BadRequest)
}

impl Begun {
    /// Has a replica answer it, within its time.
    async fn send(&mut self, worker: &Rc<Worker>) -> Result<Sent, Refusal> {
        let request = self.request.take().expect("it is sent once");
        let terms = Terms::of(&self.service.route, self.rule, self.running.trace());
        let sent = pin!(self.dispatch(worker, &terms, request));
        match self.end {
            None => sent.await,
            // Boxed, as is all that only some requests come to: each would pay for the room.
            Some(end) => Box::pin(timeout_at(end, sent))
                .await
                .unwrap_or(Err(Refusal::Overdue)),
        }
    }

    /// Sends it to the replica of its session, or to one that the policy picks by its key.
    async fn dispatch(
        &self,
        worker: &Rc<Worker>,
        terms: &Terms<'_>,
        request: Box<Request<UploadBody>>,
    ) -> Result<Sent, Refusal> {
        let service = &self.service;
        let mut now = Some(self.start);
        if let Some(key) = self.session {
            let sent = affinity::send(worker, service, *terms, key, request);
            return Box::pin(sent).await;
        }
        let hash = match service.key_in_body() {
            Some(pointer) => {
                now = None; // It waits for the body.
                let found = hash_key::of_body(pointer, request.body(), terms.idle());
                Box::pin(found).await.or(self.hash)
            }
            None => self.hash,
        };
        let choice = service.choose(terms.rule, hash);
        let earlier = self.earlier.take();
        balance::send(worker, service, (choice, now), terms, request, earlier).await
    }

    /// The answer that came of it.
    fn finish(
        self: Box<Self>,
        worker: &Worker,
        outcome: Result<Sent, Refusal>,
    ) -> Response<ResponseBody> {
        let Self {
            service,
            rule,
            switch,
            dialect,
            ending,
            end,
            mut running,
            ..
        } = *self;
        match outcome {
            Ok(sent) => {
                let terms = Terms::of(&service.route, rule, None);
                let answer = Answer {
                    ending,
                    patience: Patience::new(terms.idle(), end),
                    tunnel_idle: terms.tunnel_idle(),
                    running,
                };
                finish(worker, &service.route, sent, switch, answer)
            }
            Err(refusal) => {
                running.refused(refusal.status(), refusal.code());
                refusal.answer(Some(&service.route), dialect)
            }
        }
    }
}

/// Where the request's spans are gathered, if they are to be told; and if its trace begins here, the context that it has.
/// What the short path began goes on.
fn traced(
    (worker, client): (&Worker, &Client),
    service: &ServiceView,
    host: &str,
    request: &Request<Received>,
    now: Instant,
    earlier: Option<Rc<Trace>>,
) -> (Option<Rc<Trace>>, Option<[u8; 55]>) {
    let Some(tracer) = &worker.shared.config.tracer else {
        return (None, None);
    };
    let trace = match earlier {
        Some(trace) => trace,
        None => match tracer.sample_headers(request.headers()) {
            Sampled::No => return (None, None),
            Sampled::Begun(line) => return (None, Some(line)),
            Sampled::Yes(context) => {
                let asked = Asked::new(
                    (&service.route.name, client),
                    request.method().as_str(),
                    host,
                    request.uri().path(),
                    request.version(),
                );
                Rc::new(Trace::new(tracer, context, now, asked))
            }
        },
    };
    let begun = trace.begun();
    (Some(trace), begun)
}

/// Turns a replica's answer into ours.
fn finish(
    worker: &Worker,
    route: &ServiceRoute,
    sent: Sent,
    switch: Option<Box<Switch>>,
    answer: Answer,
) -> Response<ResponseBody> {
    let Sent {
        mut response,
        in_flight,
        checkout,
        tries,
    } = sent;
    let Answer {
        ending,
        patience,
        tunnel_idle,
        mut running,
    } = answer;
    let now = Instant::now();
    let seen = Seen::of(response.headers());
    let hop = end_hop(response.headers_mut(), seen);
    if hop.chunked {
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    *response.version_mut() = Version::HTTP_11;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let switch = switch.zip(hop.upgrade);
        let switch = switch.filter(|(switch, agreed)| is_asked_for(agreed, &switch.asked));
        let Some((switch, agreed)) = switch else {
            let refusal = Refusal::Broke; // Nobody asked it to switch, or to switch to that.
            running.refused(refusal.status(), refusal.code());
            return refusal.answer(Some(route), Dialect::Http);
        };
        running.answered_by(
            &checkout.upstream,
            StatusCode::SWITCHING_PROTOCOLS,
            tries,
            now,
        );
        let replica = hyper::upgrade::on(&mut *response);
        let held = (in_flight, running);
        let bulk = Rc::clone(&worker.bodies.bulk);
        let tunnel = tunnel::run(switch.client, replica, tunnel_idle, bulk, held);
        worker.spawn(tunnel);
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, agreed);
        return response.map(|_| ResponseBody::whole(bytes::Bytes::new()));
    }
    running.answered_by(&checkout.upstream, response.status(), tries, now);
    let held = Held {
        in_flight,
        running,
        checkout,
    };
    let place = worker.bodies.bulk.place();
    response.map(|body| {
        let body = Streamed::new(body, (held, now), patience, place, ending);
        ResponseBody::streamed(body)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<A, B, C, F>(_: fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_request_on_its_way_is_small() {
        let bytes = size_of_future(serve);
        assert!(bytes <= 1408, "{bytes} bytes");
    }
}
