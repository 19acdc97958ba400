//! One try of a request at one replica.

use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response};
use tokio::time::Instant;

use super::{Sent, Terms};
use crate::answer::Refusal;
use crate::body::{Fault, Received, UploadBody};
use crate::tracer::{Trace, Try};
use crate::upstream::{Checkout, ExchangeError, Untaken, Upstream, Wire};
use crate::view::ServiceView;
use crate::worker::Worker;

/// How a try failed, and what to answer if there is no other.
pub(super) enum Failure {
    /// Nothing was sent: here is the request again.
    NotSent(Box<Request<UploadBody>>, Refusal),
    /// The request was sent, or may have been.
    Sent {
        why: Refusal,
        /// Its connection was a kept one, which ended without an answer: the replica may have closed it as unused.
        kept: bool,
    },
    /// The client broke its request off.
    Client(Refusal),
}

impl Failure {
    fn code(&self) -> &'static str {
        let (Self::NotSent(_, why) | Self::Sent { why, .. } | Self::Client(why)) = self;
        why.code()
    }
}

/// Tries a request at `upstream`.
pub(super) async fn attempt(
    worker: &Worker,
    service: &ServiceView,
    upstream: Rc<Upstream>,
    request: Box<Request<UploadBody>>,
    (terms, now): (&Terms<'_>, Instant),
) -> Result<Sent, Failure> {
    match terms.trace {
        None => send(worker, service, upstream, request, (terms, now)).await,
        Some(trace) => {
            Box::pin(send_traced(
                worker,
                service,
                upstream,
                request,
                (trace, terms, now),
            ))
            .await
        }
    }
}

/// The same, and tells of it.
async fn send_traced(
    worker: &Worker,
    service: &ServiceView,
    upstream: Rc<Upstream>,
    mut request: Box<Request<UploadBody>>,
    (trace, terms, now): (&Trace, &Terms<'_>, Instant),
) -> Result<Sent, Failure> {
    let traced = Try::begin(trace, &upstream, request.headers_mut());
    let outcome = send(worker, service, upstream, request, (terms, now)).await;
    traced.end(match &outcome {
        Ok(sent) => Ok(sent.response.status()),
        Err(failure) => Err(failure.code()),
    });
    outcome
}

/// Sends a request to `upstream` at `now`.
async fn send(
    worker: &Worker,
    service: &ServiceView,
    upstream: Rc<Upstream>,
    mut request: Box<Request<UploadBody>>,
    (terms, now): (&Terms<'_>, Instant),
) -> Result<Sent, Failure> {
    let config = &worker.shared.config;
    let silence_max = terms.first_byte();
    let in_flight = upstream.begin();
    if let Some(mut checkout) = upstream.checkout(Wire::of(&request), config, now) {
        match exchange(&mut checkout, request, now, silence_max).await {
            Ok(response) => {
                return Ok(Sent {
                    response,
                    in_flight,
                    checkout,
                    tries: 1,
                });
            }
            // The replica closed a connection that it had no request on. That is its right; the
            // others in the pool are likely gone as well, and a new one tells whether it is there.
            Err(ExchangeError::NotSent(unsent, Untaken::Connection | Untaken::Leaves)) => {
                upstream.clear();
                request = unsent;
            }
            Err(error) => return Err(failure(error, terms, true)),
        }
    }
    let connect = Box::pin(upstream.connect(Wire::of(&request), config, terms.connect()));
    let mut checkout = match connect.await {
        Ok(checkout) => checkout,
        Err(error) => {
            let why = worker.unconnected(service, &upstream, &error);
            return Err(Failure::NotSent(request, why));
        }
    };
    match exchange(&mut checkout, request, Instant::now(), silence_max).await {
        Ok(response) => Ok(Sent {
            response,
            in_flight,
            checkout,
            tries: 1,
        }),
        Err(error) => {
            if let ExchangeError::NotSent(_, why) = &error {
                untaken_anew(worker, service, &upstream, *why);
            }
            Err(failure(error, terms, false))
        }
    }
}

/// Holds it against the replica that it took nothing over a connection just made.
pub(super) fn untaken_anew(
    worker: &Worker,
    service: &ServiceView,
    upstream: &Upstream,
    why: Untaken,
) {
    match why {
        Untaken::Connection => worker.connect_failed(service, upstream),
        Untaken::Leaves => upstream.failed(),
        Untaken::Stream => {} // Counted as with any connection.
    }
}

/// Sends the request at `began`, waits for the head of its answer, and holds what comes of it for or against the replica.
pub(super) async fn exchange(
    checkout: &mut Checkout,
    request: Box<Request<UploadBody>>,
    began: Instant,
    silence_max: Duration,
) -> Result<Box<Response<Received>>, ExchangeError> {
    let outcome = checkout.exchange(request, began, silence_max).await;
    match &outcome {
        Ok(response) => checkout.upstream.answered(response.status()),
        Err(
            ExchangeError::Broke
            | ExchangeError::Silent
            | ExchangeError::NotSent(_, Untaken::Stream),
        ) => checkout.upstream.failed(),
        Err(
            ExchangeError::NotSent(_, Untaken::Connection | Untaken::Leaves)
            | ExchangeError::Client(_),
        ) => {}
    }
    outcome
}

/// The failure of a try over a connection that was `kept` for it, or is new.
fn failure(error: ExchangeError, terms: &Terms<'_>, kept: bool) -> Failure {
    let why = refusal(&error, terms);
    match error {
        ExchangeError::NotSent(unsent, _) => Failure::NotSent(unsent, why),
        ExchangeError::Client(_) => Failure::Client(why),
        ExchangeError::Broke => Failure::Sent { why, kept },
        ExchangeError::Silent => Failure::Sent { why, kept: false },
    }
}

/// The answer to a request that failed in this way.
pub(super) fn refusal(error: &ExchangeError, terms: &Terms<'_>) -> Refusal {
    match error {
        ExchangeError::NotSent(_, Untaken::Connection) => Refusal::Unreachable,
        ExchangeError::NotSent(_, Untaken::Leaves | Untaken::Stream) => Refusal::Refused,
        ExchangeError::Client(Fault::TooLarge) => Refusal::TooLarge {
            bytes_max: terms.body_bytes_max(),
        },
        ExchangeError::Client(Fault::Broken) => Refusal::BAD_BODY,
        ExchangeError::Client(Fault::Stalled) => Refusal::ClientSilent,
        ExchangeError::Broke => Refusal::Broke,
        ExchangeError::Silent => Refusal::Silent,
    }
}
