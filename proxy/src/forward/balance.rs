//! A request that no session binds: any ready replica may answer it.
//!
//! When it is tried again, on a replica not tried before:
//! * nothing of it was sent: in any case;
//! * its connection broke, or it was silent, before an answer began: if it is idempotent, its settings allow that
//!   (`after_sent`) and all of it may be sent again, within the budget;
//! * it was answered with a status that its settings name: if it is safe, within the budget;
//! * a try lasts longer than its settings have it: if it is safe, or may be sent again after its connection broke, within
//!   the budget.
//!
//! Where there is no other replica, the one whose kept connection ended without an answer gets it once more, over a new
//! connection: it may have closed the kept one as unused, just when the request was on its way (RFC 9112, 9.3.1).

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use http::{Request, StatusCode};
use raftserve_model::ReplicaId;
use tokio::time::{Instant, timeout_at};

use super::attempt::{Failure, attempt};
use super::spare::{Spare, deposit, withdraw};
use super::{Sent, Terms, wait};
use crate::answer::Refusal;
use crate::body::{Upload, UploadBody};
use crate::choice::Choice;
use crate::connection::Unsent;
use crate::metrics::count;
use crate::upstream::Upstream;
use crate::view::ServiceView;
use crate::worker::Worker;

/// Sends the request to a replica that the policy picks, or to several, one after the other. An `earlier` try
/// counts as the first.
pub(super) fn send<'a>(
    worker: &'a Rc<Worker>,
    service: &Rc<ServiceView>,
    (choice, now): (Choice<'a>, Option<Instant>),
    terms: &'a Terms<'a>,
    mut request: Box<Request<UploadBody>>,
    earlier: Option<Unsent>,
) -> impl Future<Output = Result<Sent, Refusal>> + use<'a> {
    let mut way = Way {
        worker,
        service: Rc::clone(service),
        choice,
        terms,
        now,
        spare: None,
        tried: Vec::new(),
        anew: false,
    };
    // A block, since the arguments of an async function are kept beside what is made of them.
    async move {
        if !wait::is_ready(&way.service) {
            way.now = None;
            // Boxed, as is all that only some requests come to.
            way.service = Box::pin(wait::for_ready(worker, &way.service, &request)).await?;
        }
        // What was sent already has been counted then.
        if !earlier.as_ref().is_some_and(|earlier| earlier.sent) {
            deposit(&way.service, terms, way.now());
        }
        way.spare = spare(&request, terms);
        let mut upstream = way.first(earlier)?;
        loop {
            let (next, unsent) = match way.attempt(&mut upstream, request).await {
                Ok(sent) => match way.next_after(upstream.replica, sent.response.status()) {
                    None => {
                        let tries = way.tries(upstream.replica);
                        return Ok(Sent { tries, ..sent });
                    }
                    Some(next) => {
                        sent.discard();
                        (next, None)
                    }
                },
                Err(Failure::NotSent(unsent, why)) => {
                    let next = way.next(upstream.replica).ok_or(why)?;
                    (next, Some(unsent))
                }
                Err(Failure::Sent { why, kept }) => {
                    let next = way.next_after_failure(upstream.replica, kept);
                    (next.ok_or(why)?, None)
                }
                Err(Failure::Client(why)) => return Err(why),
            };
            upstream = next;
            request = match unsent {
                Some(unsent) => unsent,
                None => way.again().ok_or(Refusal::Broke)?,
            };
        }
    }
}

/// A request on its way, and where it has been.
struct Way<'a> {
    worker: &'a Rc<Worker>,
    service: Rc<ServiceView>,
    choice: Choice<'a>,
    terms: &'a Terms<'a>,
    /// The time, until something is waited for: so the clock is looked at once.
    now: Option<Instant>,
    spare: Option<Box<Spare>>,
    /// Where it was tried before the present try.
    tried: Vec<ReplicaId>,
    /// Whether one of them got it once more, over a new connection.
    anew: bool,
}

/// What comes of a try that began at `now`, unless it lasts for longer than `patience` from the last of the request's body on.
async fn within<T>(
    now: Instant,
    patience: Duration,
    upload: &Upload,
    attempt: &mut (impl Future<Output = T> + Unpin),
) -> Option<T> {
    let mut end = now + patience;
    loop {
        if let Ok(ended) = timeout_at(end, &mut *attempt).await {
            return Some(ended);
        }
        let last = match upload.is_wanted() {
            true => Some(Instant::now()),
            false => upload.last(),
        };
        end = last.map(|last| last + patience).filter(|&it| it > end)?;
    }
}

/// The request, kept to be sent again. `None` if it must not be.
fn spare(request: &Request<UploadBody>, terms: &Terms<'_>) -> Option<Box<Spare>> {
    let method = request.method();
    let retries = terms.retries;
    let besides = !retries.statuses.is_empty()
        || retries.per_try_timeout.is_some()
        || retries.hedge_after.is_some();
    let wanted = retries.after_sent && method.is_idempotent() || besides && method.is_safe();
    (wanted && retries.max > 0).then(|| Spare::of(request))
}

impl Way<'_> {
    fn now(&self) -> Instant {
        self.now.unwrap_or_else(Instant::now)
    }

    /// Where it goes first, or after an earlier try.
    fn first(&mut self, earlier: Option<Unsent>) -> Result<Rc<Upstream>, Refusal> {
        let Some(earlier) = earlier else {
            let first = self.service.pick(self.choice, &[]);
            return first.cloned().ok_or(Refusal::NoneReady);
        };
        let next = match earlier.sent {
            true => self.next_after_failure(earlier.replica, earlier.kept),
            false => self.next(earlier.replica),
        };
        next.ok_or(earlier.why)
    }

    /// How often it was tried, this time among them.
    fn tries(&self, replica: ReplicaId) -> usize {
        let others = self.tried.len() + usize::from(!self.tried.contains(&replica));
        others + usize::from(self.anew)
    }

    /// One try, or two beside each other. A try that lasts long is given up only for another one. `upstream` becomes the
    /// replica whose outcome it is.
    async fn attempt(
        &mut self,
        upstream: &mut Rc<Upstream>,
        request: Box<Request<UploadBody>>,
    ) -> Result<Sent, Failure> {
        if let Some(patience) = self.hedge_after() {
            return Box::pin(self.hedged(upstream, request, patience)).await;
        }
        if let Some(patience) = self.per_try_timeout() {
            return Box::pin(self.in_turn(upstream, request, patience)).await;
        }
        let now = self.now.take().unwrap_or_else(Instant::now);
        let (service, upstream) = (&self.service, Rc::clone(upstream));
        attempt(self.worker, service, upstream, request, (self.terms, now)).await
    }

    /// Tries one after the other, each of which is given up for the next once it has lasted so long.
    async fn in_turn(
        &mut self,
        upstream: &mut Rc<Upstream>,
        request: Box<Request<UploadBody>>,
        patience: Duration,
    ) -> Result<Sent, Failure> {
        let mut request = request;
        loop {
            let now = self.now.take().unwrap_or_else(Instant::now);
            let service = Rc::clone(&self.service);
            let upload = request.body().upload();
            let (to, terms) = (Rc::clone(upstream), (self.terms, now));
            let mut present = Box::pin(attempt(self.worker, &service, to, request, terms));
            if let Some(ended) = within(now, patience, &upload, &mut present).await {
                return ended;
            }
            let next = self.next_within_budget(upstream.replica, false);
            let Some((next, again)) = next.and_then(|next| Some((next, self.again()?))) else {
                return present.await;
            };
            drop(present);
            upstream.failed();
            (*upstream, request) = (next, again);
        }
    }

    /// A try, and another one beside it if it lasts so long.
    async fn hedged(
        &mut self,
        upstream: &mut Rc<Upstream>,
        request: Box<Request<UploadBody>>,
        patience: Duration,
    ) -> Result<Sent, Failure> {
        let (worker, service) = (self.worker, Rc::clone(&self.service));
        let terms = self.terms;
        let now = self.now.take().unwrap_or_else(Instant::now);
        let upload = request.body().upload();
        let to = Rc::clone(upstream);
        let mut first = Box::pin(attempt(worker, &service, to, request, (terms, now)));
        if let Some(ended) = within(now, patience, &upload, &mut first).await {
            return ended;
        }
        let next = self.next_within_budget(upstream.replica, false);
        let Some((next, request)) = next.and_then(|next| Some((next, self.again()?))) else {
            return first.await;
        };
        self.tried.push(next.replica);
        let (now, to) = (Instant::now(), Rc::clone(&next));
        let second = Box::pin(attempt(worker, &service, to, request, (terms, now)));
        count(&service.counters.hedges);
        match select(first, second).await {
            Either::Left((Ok(sent), _)) => Ok(sent),
            Either::Right((Err(_), first)) => first.await,
            Either::Right((Ok(sent), _)) => {
                *upstream = next;
                Ok(sent)
            }
            Either::Left((Err(_), second)) => {
                *upstream = next;
                second.await
            }
        }
    }

    /// After how long a second try starts beside the first.
    fn hedge_after(&self) -> Option<Duration> {
        let spare = self.spare.as_ref()?;
        let after = self.terms.retries.hedge_after?;
        (self.tried.is_empty() && spare.method().is_safe() && spare.has_no_body()).then_some(after)
    }

    fn per_try_timeout(&self) -> Option<Duration> {
        self.spare.as_ref()?;
        self.terms.retries.per_try_timeout
    }

    /// Another replica than this for a request of which nothing was sent.
    fn next(&mut self, tried: ReplicaId) -> Option<Rc<Upstream>> {
        let next = self.untried(tried)?;
        count(&self.service.counters.retries);
        count(&next.counters.retries);
        Some(next)
    }

    /// Another replica than this for a request that it was sent and did not answer, if its settings allow that; or else the
    /// same one, if the request was lost with a connection that was kept.
    fn next_after_failure(&mut self, tried: ReplicaId, kept: bool) -> Option<Rc<Upstream>> {
        if !self.terms.retries.after_sent {
            return None;
        }
        self.next_within_budget(tried, kept)
    }

    /// Another replica than this for a request that was sent, if there is a spare one; or else the same one, if the request
    /// was lost with a connection that was kept.
    fn next_within_budget(&mut self, tried: ReplicaId, kept: bool) -> Option<Rc<Upstream>> {
        if !self.spare.as_ref()?.is_kept() {
            return None;
        }
        let next = match self.untried(tried) {
            None if kept => self.once_more(tried)?,
            next => next?,
        };
        let fits = withdraw(&self.service, self.terms);
        fits.then(|| count(&next.counters.retries));
        fits.then_some(next)
    }

    /// The same replica, which has no kept connection any more.
    fn once_more(&mut self, tried: ReplicaId) -> Option<Rc<Upstream>> {
        if std::mem::replace(&mut self.anew, true) || self.is_last() {
            return None;
        }
        let upstream = Rc::clone(self.service.replica(tried)?);
        upstream.clear();
        Some(upstream)
    }

    /// Whether it was tried as often as it may be.
    fn is_last(&self) -> bool {
        u32::try_from(self.tried.len()).unwrap_or(u32::MAX) > self.terms.retries.max
    }

    /// Another replica than this for a request that it answered with this status.
    fn next_after(&mut self, tried: ReplicaId, status: StatusCode) -> Option<Rc<Upstream>> {
        let retried = self.terms.retries.statuses.contains(&status.as_u16());
        let safe = self
            .spare
            .as_ref()
            .is_some_and(|spare| spare.method().is_safe());
        if retried && safe {
            self.next_within_budget(tried, false)
        } else {
            None
        }
    }

    /// Another replica than this, and than all that were tried before.
    fn untried(&mut self, tried: ReplicaId) -> Option<Rc<Upstream>> {
        if !self.tried.contains(&tried) {
            self.tried.push(tried);
        }
        if self.is_last() {
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
