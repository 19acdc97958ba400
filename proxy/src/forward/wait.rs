//! A request that waits for its service to have a ready replica.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use http::Request;
use tokio::time::{Instant, timeout_at};

use crate::answer::Refusal;
use crate::body::UploadBody;
use crate::memory::head_memory;
use crate::queue::Full;
use crate::view::ServiceView;
use crate::worker::Worker;

/// Whether a request need not wait. While others do, it waits behind them.
pub(super) fn is_ready(service: &ServiceView) -> bool {
    service.ready_count() > 0 && service.queue.is_empty()
}

/// The request's service once it has a ready replica.
///
/// Dropped, as when the client leaves, it leaves the line.
pub(super) async fn for_ready(
    worker: &Rc<Worker>,
    service: &Rc<ServiceView>,
    request: &Request<UploadBody>,
) -> Result<Rc<ServiceView>, Refusal> {
    let start = Instant::now();
    let settings = &service.route.traffic.queue;
    let end = start + settings.wait;
    // The view of this moment: who lines up by an older one could miss the call.
    let current = || worker.view().service(service.route.id).cloned();
    let now = current().ok_or(Refusal::NoneReady)?;
    if is_ready(&now) {
        return Ok(now);
    }
    if settings.requests == 0 {
        return match now.ready_count() {
            0 => Err(Refusal::NoneReady),
            _ => Ok(now),
        };
    }
    let head = head_memory(request);
    let body = request.body();
    let place = now.queue.enter(head + body.held(), settings.requests);
    let mut place = place.map_err(|_| Refusal::QueueFull)?;
    drop(now);
    let wake = || worker.shared.queues.send_modify(|begun| *begun += 1);
    if place.is_first() {
        wake();
    }
    loop {
        let called = poll_fn(|cx| {
            if let Poll::Ready(called) = place.poll_called(cx) {
                return Poll::Ready(Ok(called));
            }
            while body.poll_ahead(cx).is_ready() {
                place.holds(head + body.held())?;
            }
            Poll::Pending
        });
        let called = match timeout_at(end, called).await {
            Ok(called) => called.map_err(|Full| Refusal::QueueFull)?,
            Err(_) => false,
        };
        match current().filter(|_| called) {
            Some(service) if service.ready_count() > 0 => {
                place.ended(start.elapsed(), true);
                return Ok(service);
            }
            // It was called, and whoever was ready is not any more, perhaps put to sleep.
            Some(_) => {
                place.returns();
                wake();
            }
            None => {
                place.ended(start.elapsed(), false);
                return Err(Refusal::NoneReady);
            }
        }
    }
}
