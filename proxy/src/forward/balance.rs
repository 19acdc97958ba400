//! A request that no session binds: any ready replica may answer it.
//!
//! When it is tried again, always on a replica not tried before:
//! * nothing of it was sent: in any case;
//! * its connection broke, or it was silent, before an answer began: if it is idempotent and the replica may be
//!   sent all of it again, within the budget;
//! * it was answered with a status that its settings name: if it is safe, within the budget.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use http::{Request, StatusCode};
use raftserve_model::ReplicaId;
use tokio::time::timeout;

use super::attempt::{Failure, attempt};
use super::spare::{Spare, deposit, withdraw};
use super::{Sent, Terms, wait};
use crate::answer::Refusal;
use crate::body::UploadBody;
use crate::choice::Choice;
use crate::connection::Unsent;
use crate::metrics::count;
use crate::upstream::Upstream;
use crate::view::ServiceView;
use crate::worker::Worker;

/// Sends the request to a replica that the policy picks, or to several, one after the other. An `earlier` try
/// counts as the first.
pub(super) async fn send<'a>(
    worker: &'a Rc<Worker>,
    service: &Rc<ServiceView>,
    choice: Choice<'a>,
    terms: Terms<'a>,
    mut request: Box<Request<UploadBody>>,
    earlier: Option<Unsent>,
) -> Result<Sent, Refusal> {
    let service = wait::for_ready(worker, service, &request).await?;
    // What was sent already has been counted then.
    if !earlier.as_ref().is_some_and(|earlier| earlier.sent) {
        deposit(&service, &terms);
    }
    let spare = spare(&request, &terms, &service);
    let mut way = Way {
        worker,
        service,
        choice,
        terms,
        spare,
        tried: Vec::new(),
    };
    let mut upstream = way.first(earlier)?;
    loop {
        way.tried.push(upstream.replica);
        let (next, unsent) = match way.attempt(&upstream, request).await {
            Ok(sent) => match way.next_after(sent.response.status()) {
                None => {
                    let tries = way.tried.len();
                    return Ok(Sent { tries, ..sent });
                }
                Some(next) => {
                    sent.discard();
                    (next, None)
                }
            },
            Err(Failure::NotSent(unsent, why)) => {
                let next = way.next().ok_or(why)?;
                (next, Some(unsent))
            }
            Err(Failure::Sent(why)) => (way.next_within_budget().ok_or(why)?, None),
            Err(Failure::Client(why)) => return Err(why),
        };
        upstream = next;
        request = match unsent {
            Some(unsent) => unsent,
            None => way.again().ok_or(Refusal::Broke)?,
        };
    }
}

/// A request on its way, and where it has been.
struct Way<'a> {
    worker: &'a Rc<Worker>,
    service: Rc<ServiceView>,
    choice: Choice<'a>,
    terms: Terms<'a>,
    spare: Option<Box<Spare>>,
    tried: Vec<ReplicaId>,
}

/// The request, kept to be sent again. `None` if it must not be, or there is nowhere else to send it.
fn spare(
    request: &Request<UploadBody>,
    terms: &Terms<'_>,
    service: &ServiceView,
) -> Option<Box<Spare>> {
    let method = request.method();
    let retries = terms.retries;
    let wanted = retries.after_sent && method.is_idempotent()
        || method.is_safe() && (!retries.statuses.is_empty() || retries.hedge_after.is_some());
    let somewhere = retries.max > 0 && service.ready_count() >= 2;
    (wanted && somewhere).then(|| Spare::of(request))
}

impl Way<'_> {
    /// Where it goes first, or after an earlier try.
    fn first(&mut self, earlier: Option<Unsent>) -> Result<Rc<Upstream>, Refusal> {
        let Some(earlier) = earlier else {
            let first = self.service.pick(self.choice, &[]);
            return first.cloned().ok_or(Refusal::NoneReady);
        };
        self.tried.push(earlier.replica);
        let next = match earlier.sent {
            true => self.next_within_budget(),
            false => self.next(),
        };
        next.ok_or(earlier.why)
    }

    /// One try, or two beside each other. A try that lasts long is given up only for another one.
    async fn attempt(
        &mut self,
        upstream: &Rc<Upstream>,
        request: Box<Request<UploadBody>>,
    ) -> Result<Sent, Failure> {
        let hedged = self.hedge_after();
        match hedged.or_else(|| self.per_try_timeout()) {
            None => {
                let (service, upstream) = (&self.service, Rc::clone(upstream));
                attempt(self.worker, service, upstream, request, self.terms).await
            }
            Some(patience) => Box::pin(self.attempt_twice(upstream, request, patience)).await,
        }
    }

    /// A try, and another one if it lasts so long.
    async fn attempt_twice(
        &mut self,
        upstream: &Rc<Upstream>,
        request: Box<Request<UploadBody>>,
        patience: Duration,
    ) -> Result<Sent, Failure> {
        let (worker, service) = (self.worker, Rc::clone(&self.service));
        let terms = self.terms;
        let hedged = self.hedge_after();
        let mut first = Box::pin(attempt(
            worker,
            &service,
            Rc::clone(upstream),
            request,
            terms,
        ));
        if let Ok(ended) = timeout(patience, &mut first).await {
            return ended;
        }
        let next = self.next_within_budget();
        let Some((next, request)) = next.and_then(|next| Some((next, self.again()?))) else {
            return first.await;
        };
        self.tried.push(next.replica);
        let second = Box::pin(attempt(worker, &service, next, request, terms));
        if hedged.is_none() {
            drop(first);
            upstream.failed();
            return second.await;
        }
        count(&service.counters.hedges);
        match select(first, second).await {
            Either::Left((Ok(sent), _)) | Either::Right((Ok(sent), _)) => Ok(sent),
            Either::Left((Err(_), other)) | Either::Right((Err(_), other)) => other.await,
        }
    }

    /// After how long a second try starts beside the first.
    fn hedge_after(&self) -> Option<Duration> {
        let spare = self.spare.as_ref()?;
        let after = self.terms.retries.hedge_after?;
        (self.tried.len() == 1 && spare.method().is_safe() && spare.has_no_body()).then_some(after)
    }

    fn per_try_timeout(&self) -> Option<Duration> {
        self.spare.as_ref()?;
        self.terms.retries.per_try_timeout
    }

    /// Another replica for a request of which nothing was sent.
    fn next(&mut self) -> Option<Rc<Upstream>> {
        let next = self.untried()?;
        count(&self.service.counters.retries);
        Some(next)
    }

    /// Another replica for a request that was sent, if it may be sent again.
    fn next_within_budget(&mut self) -> Option<Rc<Upstream>> {
        let spare = self.spare.as_ref()?;
        if !self.terms.retries.after_sent && !spare.method().is_safe() || !spare.is_kept() {
            return None;
        }
        let next = self.untried()?;
        withdraw(&self.service, &self.terms).then_some(next)
    }

    /// Another replica for a request that was answered with this status.
    fn next_after(&mut self, status: StatusCode) -> Option<Rc<Upstream>> {
        let retried = self.terms.retries.statuses.contains(&status.as_u16());
        let safe = self
            .spare
            .as_ref()
            .is_some_and(|spare| spare.method().is_safe());
        if retried && safe {
            self.next_within_budget()
        } else {
            None
        }
    }

    fn untried(&mut self) -> Option<Rc<Upstream>> {
        if u32::try_from(self.tried.len()).unwrap_or(u32::MAX) > self.terms.retries.max {
            return None;
        }
        // The routes may have changed while the last try was waiting.
        if let Some(current) = self.worker.view().service(self.service.route.id) {
            self.service = Rc::clone(current);
        }
        self.service.pick(self.choice, &self.tried).cloned()
    }

    /// The request once more.
    fn again(&self) -> Option<Box<Request<UploadBody>>> {
        self.spare.as_ref()?.again()
    }
}
