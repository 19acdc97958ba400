//! A request that no session binds: any ready replica may answer it.

use std::rc::Rc;

use http::Request;
use raftserve_model::ReplicaId;

use super::Sent;
use crate::answer::Refusal;
use crate::body::UploadBody;
use crate::connection::Unsent;
use crate::load::InFlight;
use crate::metrics::count;
use crate::upstream::{ConnectError, ExchangeError, Upstream, Wire};
use crate::view::ServiceView;
use crate::worker::Worker;

/// On how many replicas a request is tried at most: with three, one that just died and one that is
/// dying are both survived, and a service that is down costs a request three connects.
const TRIES_MAX: usize = 3;

/// Sends the request to a replica that the policy picks. Only if nothing of it was sent is it tried
/// on another one, never again on the same. An `earlier` try counts as the first.
pub(super) async fn send(
    worker: &Rc<Worker>,
    service: &Rc<ServiceView>,
    mut request: Request<UploadBody>,
    earlier: Option<Unsent>,
) -> Result<Sent, Refusal> {
    let mut tried = [ReplicaId::default(); TRIES_MAX];
    let mut refusal = Refusal::NoneReady;
    let mut service = Rc::clone(service);
    let first = usize::from(earlier.is_some());
    if let Some(earlier) = earlier {
        tried[0] = earlier.replica;
        refusal = earlier.why;
    }
    for tries in first..TRIES_MAX {
        if tries > 0 {
            // The routes may have changed while the last try was waiting.
            if let Some(current) = worker.view().service(service.route.id) {
                service = Rc::clone(current);
            }
        }
        let Some(upstream) = service.pick(&tried[..tries]) else {
            break;
        };
        if tries > 0 {
            count(&service.counters.retries);
        }
        tried[tries] = upstream.replica;
        match attempt(worker, &service, upstream, request).await {
            Ok(sent) => return Ok(sent),
            Err(Attempt::NotSent(unsent, why)) => {
                request = *unsent;
                refusal = why;
            }
            Err(Attempt::Failed(why)) => return Err(why),
        }
    }
    Err(refusal)
}

enum Attempt {
    /// Nothing was sent: here is the request again, and the answer if there is no other replica.
    NotSent(Box<Request<UploadBody>>, Refusal),
    Failed(Refusal),
}

async fn attempt(
    worker: &Worker,
    service: &ServiceView,
    upstream: &Rc<Upstream>,
    mut request: Request<UploadBody>,
) -> Result<Sent, Attempt> {
    let config = &worker.shared.config;
    let silence_max = service.route.stream_timeout;
    let in_flight = InFlight::start(&upstream.gauge);
    if let Some(mut checkout) = upstream.checkout(Wire::of(&request), config) {
        match checkout.exchange(request, silence_max).await {
            Ok(response) => {
                return Ok(Sent {
                    response,
                    in_flight,
                    checkout,
                });
            }
            // The replica closed a connection that it had no request on. That is its right; the
            // others in the pool are likely gone as well, and a new one tells whether it is there.
            Err(ExchangeError::NotSent(unsent)) => {
                upstream.clear();
                request = *unsent;
            }
            Err(error) => return Err(Attempt::Failed(refusal(&error))),
        }
    }
    let mut checkout = match upstream.connect(Wire::of(&request), config).await {
        Ok(checkout) => checkout,
        Err(error) => {
            worker.connect_failed(service, upstream);
            let why = match error {
                ConnectError::Timeout(_) => Refusal::ConnectTimeout,
                ConnectError::Failed(_) | ConnectError::Handshake(_) => Refusal::Unreachable,
            };
            return Err(Attempt::NotSent(Box::new(request), why));
        }
    };
    match checkout.exchange(request, silence_max).await {
        Ok(response) => Ok(Sent {
            response,
            in_flight,
            checkout,
        }),
        Err(ExchangeError::NotSent(unsent)) => {
            worker.connect_failed(service, upstream);
            Err(Attempt::NotSent(unsent, Refusal::Unreachable))
        }
        Err(error) => Err(Attempt::Failed(refusal(&error))),
    }
}

/// The answer to a request that failed after it was sent, or maybe sent.
pub(super) fn refusal(error: &ExchangeError) -> Refusal {
    match error {
        ExchangeError::NotSent(_) => Refusal::Unreachable,
        ExchangeError::Client => {
            Refusal::BadRequest("the request's body broke off, or breaks the protocol")
        }
        ExchangeError::Broke => Refusal::Broke,
        ExchangeError::Silent => Refusal::Silent,
    }
}
