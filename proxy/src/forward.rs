//! The path of a request: route, prepare, dispatch, answer.

mod affinity;
mod attempt;
mod balance;
mod prepare;
mod terms;
mod wait;

use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use http::header::{CONNECTION, CONTENT_LENGTH, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::time::{Instant, timeout_at};

use crate::access_log::Record;
use crate::answer::{Dialect, Refusal, no_such_service};
use crate::body::{Ending, Held, Patience, ResponseBody, Streamed};
use crate::connection::Client;
use crate::drain::Phase;
use crate::grpc;
use crate::hash_key;
use crate::headers::end_hop;
use crate::load::InFlight;
use crate::metrics::count;
use crate::routes::ServiceRoute;
use crate::running::Running;
use crate::trace;
use crate::tunnel;
use crate::upstream::Checkout;
use crate::view::ServiceView;
use crate::worker::Worker;
use terms::Terms;

/// A replica's answer, and what its request holds there.
struct Sent {
    response: Response<Incoming>,
    in_flight: InFlight,
    checkout: Checkout,
    /// On how many replicas the request was tried.
    tries: usize,
}

/// How a replica's answer goes on to the client.
struct Answer {
    ending: Ending,
    patience: Patience,
    running: Running,
}

impl Sent {
    /// Does without the answer. The connection is kept if that has no body.
    fn discard(self) {
        if self.response.body().is_end_stream() {
            self.checkout.give_back();
        }
    }
}

/// Answers one request.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    client: Rc<Client>,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let now = Instant::now();
    client.lifetime.used(now);
    let http1 = request.version() < Version::HTTP_2;
    let mut response = route(&worker, &client, request, now).await;
    let stays = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if stays {
        client.tunnelled.store(true, Ordering::Relaxed);
    }
    let closes = worker.drain.phase() != Phase::Serving || client.lifetime.is_over(now);
    if http1 && !stays && closes {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    if !http1 {
        response.headers_mut().remove(CONNECTION);
    }
    response
}

async fn route(
    worker: &Rc<Worker>,
    client: &Rc<Client>,
    mut request: Request<Incoming>,
    now: Instant,
) -> Response<ResponseBody> {
    let dialect = Dialect::of(request.headers());
    if request.method() == Method::CONNECT {
        return Refusal::Connect.answer(None, dialect);
    }
    let view = worker.view();
    let host = match prepare::host(&request) {
        Ok(host) => host,
        Err(why) => return Refusal::BadRequest(why).answer(None, dialect),
    };
    let Some(found) = view
        .table
        .resolve(host, request.uri().path(), client.listener)
    else {
        count(&worker.shared.metrics.unrouted);
        return match view.table.is_known() {
            true => no_such_service(&view.table, dialect),
            false => Refusal::Starting.answer(None, dialect),
        };
    };
    let prefix_len = found.prefix_len;
    let service = Rc::clone(view.at(found.index));
    let told = worker.shared.config.access_log.as_ref().map(|log| {
        let mut record = Record::new(log, &service.route.name, &client.address);
        record.asked(request.method().as_str(), host, request.uri().path());
        record.version = request.version();
        Box::new(record)
    });
    let rule = service.rule(host, prefix_len, &request);
    drop(view); // A long answer must not keep an old table alive.

    let mut running = Running::start(&service.counters, Some(client), now, told);
    let terms = Terms::of(&service.route, rule);
    let call_end = match dialect {
        Dialect::Grpc => grpc::deadline(&mut request, now),
        Dialect::Http => None,
    };
    let end = match (terms.deadline(now), call_end) {
        (Some(service), Some(call)) => Some(service.min(call)),
        (service, call) => service.or(call),
    };
    let ending = Ending::of(&request, dialect);
    let outcome = {
        let running = &mut running;
        let forwarded = pin!(forward(
            worker, client, &service, terms, request, prefix_len, running
        ));
        match end {
            None => forwarded.await,
            Some(end) => timeout_at(end, forwarded)
                .await
                .unwrap_or(Err(Refusal::Overdue)),
        }
    };
    match outcome {
        Ok((sent, upgrade)) => {
            let answer = Answer {
                ending,
                patience: Patience::new(terms.idle(), end),
                running,
            };
            finish(worker, &service.route, sent, upgrade, answer)
        }
        Err(refusal) => {
            running.refused(refusal.status(), refusal.code());
            refusal.answer(Some(&service.route), dialect)
        }
    }
}

async fn forward(
    worker: &Rc<Worker>,
    client: &Client,
    service: &Rc<ServiceView>,
    terms: Terms<'_>,
    request: Request<Incoming>,
    prefix_len: usize,
    running: &mut Running,
) -> Result<(Sent, Option<OnUpgrade>), Refusal> {
    let hash = service.hash(&request, client);
    let met = service.met(terms.rule);
    let prepared = prepare::outgoing(request, client, &service.route, prefix_len, met)
        .map_err(Refusal::BadRequest)?;
    if let Some(record) = running.record() {
        record.trace = trace::of(prepared.request.headers());
    }
    let sent = match prepared.key {
        Some(key) => affinity::send(worker, service, terms, key, prepared.request).await?,
        None => {
            let hash = match service.key_in_body() {
                Some(pointer) => {
                    let silence_max = terms.idle();
                    let body = prepared.request.body();
                    let found = hash_key::of_body(pointer, body, silence_max).await;
                    found.or(hash)
                }
                None => hash,
            };
            let choice = service.choose(terms.rule, hash);
            let earlier = client.unsent.take();
            balance::send(worker, service, choice, terms, prepared.request, earlier).await?
        }
    };
    Ok((sent, prepared.upgrade))
}

/// Turns a replica's answer into ours.
fn finish(
    worker: &Worker,
    route: &ServiceRoute,
    sent: Sent,
    upgrade: Option<OnUpgrade>,
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
        mut running,
    } = answer;
    let hop = end_hop(response.headers_mut());
    if hop.chunked {
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    *response.version_mut() = Version::HTTP_11;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let (Some(client), Some(protocol)) = (upgrade, hop.upgrade) else {
            let refusal = Refusal::Broke; // Nobody asked it to switch.
            running.refused(refusal.status(), refusal.code());
            return refusal.answer(Some(route), Dialect::Http);
        };
        running.answered_by(&checkout.upstream, StatusCode::SWITCHING_PROTOCOLS, tries);
        let replica = hyper::upgrade::on(&mut response);
        let held = (in_flight, running);
        worker.spawn(tunnel::run(client, replica, held));
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
        return response.map(|_| ResponseBody::whole(bytes::Bytes::new()));
    }
    running.answered_by(&checkout.upstream, response.status(), tries);
    let held = Held {
        in_flight,
        running,
        checkout,
    };
    response.map(|body| ResponseBody::Streamed(Streamed::new(body, held, patience, ending)))
}
