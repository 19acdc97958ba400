//! The path of a request: route, prepare, dispatch, answer.

mod affinity;
mod balance;
mod prepare;

use std::rc::Rc;

use http::header::{CONNECTION, CONTENT_LENGTH, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use crate::answer::{Dialect, Refusal, no_such_service};
use crate::body::{Ending, Held, ResponseBody, Streamed};
use crate::connection::Client;
use crate::drain::Phase;
use crate::headers::end_hop;
use crate::load::InFlight;
use crate::metrics::{Running, count};
use crate::routes::ServiceRoute;
use crate::tunnel;
use crate::upstream::Checkout;
use crate::view::ServiceView;
use crate::worker::Worker;

/// A replica's answer, and what its request holds there.
struct Sent {
    response: Response<Incoming>,
    in_flight: InFlight,
    checkout: Checkout,
}

/// Answers one request.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    client: Rc<Client>,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let http1 = request.version() < Version::HTTP_2;
    let mut response = route(&worker, &client, request).await;
    let stays = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if http1 && !stays && worker.drain.phase() != Phase::Serving {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    response
}

async fn route(
    worker: &Rc<Worker>,
    client: &Client,
    request: Request<Incoming>,
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
    drop(view); // A long answer must not keep an old table alive.

    let running = Running::start(&service.counters);
    let ending = Ending::of(&request, dialect);
    match forward(worker, client, &service, request, prefix_len).await {
        Ok((sent, upgrade)) => {
            let response = finish(worker, &service.route, sent, upgrade, running, ending);
            service.counters.answered(response.status());
            response
        }
        Err(refusal) => {
            service.counters.answered(refusal.status());
            refusal.answer(Some(&service.route), dialect)
        }
    }
}

async fn forward(
    worker: &Rc<Worker>,
    client: &Client,
    service: &Rc<ServiceView>,
    request: Request<Incoming>,
    prefix_len: usize,
) -> Result<(Sent, Option<OnUpgrade>), Refusal> {
    let prepared = prepare::outgoing(request, client, &service.route, prefix_len)
        .map_err(Refusal::BadRequest)?;
    let sent = match prepared.key {
        Some(key) => affinity::send(worker, service, key, prepared.request).await?,
        None => balance::send(worker, service, prepared.request, client.unsent.take()).await?,
    };
    Ok((sent, prepared.upgrade))
}

/// Turns a replica's answer into ours.
fn finish(
    worker: &Worker,
    route: &ServiceRoute,
    sent: Sent,
    upgrade: Option<OnUpgrade>,
    running: Running,
    ending: Ending,
) -> Response<ResponseBody> {
    let Sent {
        mut response,
        in_flight,
        checkout,
    } = sent;
    let hop = end_hop(response.headers_mut());
    if hop.chunked {
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    *response.version_mut() = Version::HTTP_11;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let (Some(client), Some(protocol)) = (upgrade, hop.upgrade) else {
            return Refusal::Broke.answer(Some(route), Dialect::Http); // Nobody asked it to switch.
        };
        let replica = hyper::upgrade::on(&mut response);
        let held = (in_flight, running);
        worker.spawn(tunnel::run(client, replica, held));
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
        return response.map(|_| ResponseBody::whole(bytes::Bytes::new()));
    }
    let held = Held {
        in_flight,
        running,
        checkout,
    };
    response
        .map(|body| ResponseBody::Streamed(Streamed::new(body, held, route.stream_timeout, ending)))
}
