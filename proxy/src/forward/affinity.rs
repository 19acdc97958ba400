//! A request of a strictly bound session: the replica it is bound to answers it, or none.
//!
//! One that is not bound yet waits with all others while its service has no ready replica, and is bound after.
//!
//! If that replica breaks off before its answer begins, an idempotent request is sent again as any other would be, within
//! the budget, to the replica that the session is bound to then: the same one if it is still there, another only once
//! the log has moved the session.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use http::{Request, StatusCode};
use raftserve_model::SessionKey;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::attempt::{exchange, refusal, untaken_anew};
use super::spare::{Spare, deposit, withdraw};
use super::{Sent, Terms, wait};
use crate::answer::Refusal;
use crate::body::UploadBody;
use crate::metrics::count;
use crate::session::{BindError, BoundReplica, Lookup};
use crate::tracer::Try;
use crate::upstream::{ExchangeError, Untaken, Upstream, Wire};
use crate::view::ServiceView;
use crate::worker::Worker;

/// How often a waiting request looks again even if it was told of no change: a lease comes back, and
/// a replica's port opens, without a word. Also how often at most it asks for the same binding, and
/// connects to the same replica or sends to one that refuses requests, however much else changes meanwhile.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Sends the request to the replica that its session is bound to, binding the session first if need be.
pub(super) async fn send(
    worker: &Rc<Worker>,
    service: &Rc<ServiceView>,
    terms: Terms<'_>,
    key: SessionKey,
    request: Box<Request<UploadBody>>,
) -> Result<Sent, Refusal> {
    deposit(service, &terms, Instant::now());
    let mut session = Session {
        worker,
        service,
        terms,
        key,
        spare: spare(&request, &terms),
        tries: 1,
        queued: false,
        patience: None,
        asked: None,
        refused: None,
        why: String::new(),
    };
    session.send(request).await
}

/// The request, kept to be sent again. `None` if it must not be.
fn spare(request: &Request<UploadBody>, terms: &Terms<'_>) -> Option<Box<Spare>> {
    let retries = terms.retries;
    let some = retries.max > 0 && retries.budget_percent > 0;
    let wanted = retries.after_sent && some && request.method().is_idempotent();
    wanted.then(|| Spare::of(request))
}

struct Session<'a> {
    worker: &'a Rc<Worker>,
    service: &'a Rc<ServiceView>,
    terms: Terms<'a>,
    key: SessionKey,
    /// The request, if it may be sent again after it was sent.
    spare: Option<Box<Spare>>,
    /// How often it was sent, or is about to be.
    tries: u32,
    /// Whether it has waited with others for a ready replica. It does so once.
    queued: bool,
    /// Made at the first wait, so that a bound session costs none.
    patience: Option<Patience>,
    /// When its binding was last asked for in vain.
    asked: Option<Instant>,
    /// What was last refused, if anything was.
    refused: Option<Refused>,
    /// What the request last waited for.
    why: String,
}

/// Which binding's replica, at which address, refused something, and when.
#[derive(Clone, Copy)]
struct Refused {
    bound: BoundReplica,
    address: SocketAddr,
    at: Instant,
    what: Rests,
}

/// What is not tried again for a moment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rests {
    /// To connect: requests may go over what is open.
    Connections,
    /// To send anything.
    Requests,
}

/// How a try at the bound replica ended, if it did not fail for good.
enum Outcome {
    Sent(Box<Sent>),
    /// Nothing was sent, or it may be sent again, and what is known may have changed meanwhile: look at once.
    LookAgain(Box<Request<UploadBody>>),
    /// Nothing was sent: wait for a change.
    Wait(Box<Request<UploadBody>>),
}

impl Session<'_> {
    async fn send(&mut self, mut request: Box<Request<UploadBody>>) -> Result<Sent, Refusal> {
        loop {
            match self.lookup() {
                Lookup::Bound(bound) => match self.send_to(bound, request).await? {
                    Outcome::Sent(sent) => return Ok(*sent),
                    Outcome::LookAgain(unsent) => {
                        request = unsent;
                        continue;
                    }
                    Outcome::Wait(unsent) => request = unsent,
                },
                Lookup::Unbound if self.must_queue() => {
                    self.queued = true;
                    wait::for_ready(self.worker, self.service, &request).await?;
                    // What it may wait for its binding begins only now.
                    self.patience = None;
                    continue;
                }
                Lookup::Unbound if is_recent(self.asked) => {}
                Lookup::Unbound => {
                    self.bind().await?;
                    if self.lookup() != Lookup::Unbound {
                        continue;
                    }
                    self.asked = Some(Instant::now());
                }
                Lookup::Wait => self.waits_for("its binding is not certain at this peer"),
                Lookup::Refused { reason } => return Err(Refusal::SessionRefused(reason)),
            }
            if !self.wait().await {
                return Err(Refusal::Session(std::mem::take(&mut self.why)));
            }
        }
    }

    /// Whether it waits as any other request: there is nothing yet to which it could be bound.
    fn must_queue(&self) -> bool {
        let view = self.worker.view();
        let service = view.service(self.service.route.id);
        !self.queued && service.is_none_or(|service| !wait::is_ready(service))
    }

    fn lookup(&self) -> Lookup {
        let sessions = &self.worker.shared.sessions;
        sessions.lookup(self.service.route.id, self.key)
    }

    fn waits_for(&mut self, why: &str) {
        self.why.clear();
        self.why.push_str(why);
    }

    /// Has the session bound. What came of it is seen by looking again.
    async fn bind(&mut self) -> Result<(), Refusal> {
        count(&self.service.counters.session_binds);
        let end = self.patience().end;
        let sessions = &self.worker.shared.sessions;
        let bind = sessions.bind(self.service.route.id, self.key);
        match timeout_at(end, bind).await {
            Ok(Ok(_)) => self.waits_for("its binding has not reached this peer yet"),
            Ok(Err(BindError::Unavailable(reason))) => self.waits_for(&reason),
            Ok(Err(BindError::Refused(reason))) => return Err(Refusal::SessionRefused(reason)),
            // What an earlier try was told says more.
            Err(_) if self.why.is_empty() => self.waits_for("it could not be bound in time"),
            Err(_) => {}
        }
        Ok(())
    }

    /// Sends to exactly this replica. After each wait the binding must still be the same: one taken
    /// before a wait, or before this process was paused in it, is not acted on.
    async fn send_to(
        &mut self,
        bound: BoundReplica,
        mut request: Box<Request<UploadBody>>,
    ) -> Result<Outcome, Refusal> {
        let worker = self.worker;
        let config = &worker.shared.config;
        let Some(upstream) = self.upstream(bound) else {
            self.waits_for("its replica has no address now");
            return Ok(Outcome::Wait(request));
        };
        let rests = self.rests(bound, &upstream);
        if rests == Some(Rests::Requests) {
            return Ok(Outcome::Wait(request));
        }
        let in_flight = upstream.begin();
        let now = Instant::now();
        let pooled = upstream.checkout(Wire::of(&request), config, now);
        if pooled.is_none() && rests.is_some() {
            return Ok(Outcome::Wait(request));
        }
        let headers = request.headers_mut();
        let traced = self.terms.trace;
        let traced = traced.map(|trace| Try::begin(trace, &upstream, headers));
        let (mut checkout, fresh) = match pooled {
            Some(checkout) => (checkout, false),
            None => match upstream
                .connect(Wire::of(&request), config, self.terms.connect())
                .await
            {
                Ok(checkout) => (checkout, true),
                Err(error) => {
                    let why = worker.unconnected(self.service, &upstream, &error);
                    if why != Refusal::Full {
                        self.rest(bound, &upstream, Rests::Connections);
                    }
                    match why {
                        Refusal::Exhausted => {
                            self.waits_for("this peer has no more files or ports for connections");
                        }
                        Refusal::Full => {
                            self.waits_for("its replica has as many requests as it takes at once");
                        }
                        Refusal::Refused => self.waits_for("its replica leaves its connections"),
                        Refusal::NoHttp2 => self.waits_for("its replica begins no HTTP/2"),
                        _ => {}
                    }
                    end(traced, Err(&why));
                    return Ok(Outcome::Wait(request));
                }
            },
        };
        if fresh && self.lookup() != Lookup::Bound(bound) {
            checkout.give_back(Instant::now());
            return Ok(Outcome::LookAgain(request));
        }
        let began = if fresh { Instant::now() } else { now };
        let silence_max = self.terms.first_byte();
        let outcome = exchange(&mut checkout, request, began, silence_max).await;
        let outcome = outcome.map_err(|error| (refusal(&error, &self.terms), error));
        let known = outcome.as_ref().map(|response| response.status());
        end(traced, known.map_err(|(why, _)| why));
        match outcome {
            Ok(response) => Ok(Outcome::Sent(Box::new(Sent {
                response,
                in_flight,
                checkout,
                tries: self.tries as usize,
            }))),
            Err((_, ExchangeError::NotSent(unsent, Untaken::Stream))) => {
                self.rest(bound, &upstream, Rests::Requests);
                self.waits_for("its replica refuses requests");
                Ok(Outcome::Wait(unsent))
            }
            Err((_, ExchangeError::NotSent(unsent, why))) if fresh => {
                untaken_anew(worker, self.service, &upstream, why);
                self.rest(bound, &upstream, Rests::Connections);
                Ok(Outcome::Wait(unsent))
            }
            Err((_, ExchangeError::NotSent(unsent, _))) => {
                upstream.clear();
                Ok(Outcome::LookAgain(unsent))
            }
            Err((why, ExchangeError::Broke)) => {
                upstream.clear();
                self.once_more(why).map(Outcome::LookAgain)
            }
            Err((why, ExchangeError::Client(_) | ExchangeError::Silent)) => Err(why),
        }
    }

    /// The request again, after its replica broke off. If there is none, `why`; and if only the budget forbids it, what
    /// tells the client that it may well try again.
    fn once_more(&mut self, why: Refusal) -> Result<Box<Request<UploadBody>>, Refusal> {
        let spare = self.spare.as_ref().filter(|spare| spare.is_kept());
        let Some(spare) = spare.filter(|_| self.tries <= self.terms.retries.max) else {
            return Err(why);
        };
        self.why = "its replica broke off before it answered".to_owned();
        if !withdraw(self.service, &self.terms) {
            return Err(Refusal::Session(std::mem::take(&mut self.why)));
        }
        self.tries += 1;
        spare.again().ok_or(why)
    }

    /// The bound replica in the present routes.
    fn upstream(&self, bound: BoundReplica) -> Option<Rc<Upstream>> {
        let view = self.worker.view();
        let service = view.service(self.service.route.id)?;
        service.replica(bound.replica).cloned()
    }

    /// What is not tried at the replica now.
    fn rests(&self, bound: BoundReplica, upstream: &Upstream) -> Option<Rests> {
        let refused = self.refused?;
        let is_same = refused.bound == bound && refused.address == upstream.address;
        (is_same && is_recent(Some(refused.at))).then_some(refused.what)
    }

    /// Leaves the replica alone for a moment.
    fn rest(&mut self, bound: BoundReplica, upstream: &Upstream, what: Rests) {
        self.refused = Some(Refused {
            bound,
            address: upstream.address,
            at: Instant::now(),
            what,
        });
        self.waits_for("its replica accepts no connection");
    }

    fn patience(&mut self) -> &mut Patience {
        let shared = &self.worker.shared;
        self.patience.get_or_insert_with(|| Patience {
            end: Instant::now() + shared.config.session_wait,
            sessions: shared.sessions.changed(),
            routes: shared.routes.published(),
        })
    }

    /// Waits for anything to change. `false` once the request's patience is over.
    async fn wait(&mut self) -> bool {
        if self.patience.is_none() {
            // What changed between the look and this subscription would be missed: look again first.
            count(&self.service.counters.session_waits);
            self.patience();
            return true;
        }
        self.patience().wait().await
    }
}

/// Tells how a try ended, if it is traced.
fn end(traced: Option<Try<'_>>, outcome: Result<StatusCode, &Refusal>) {
    if let Some(traced) = traced {
        traced.end(outcome.map_err(Refusal::code));
    }
}

fn is_recent(at: Option<Instant>) -> bool {
    at.is_some_and(|at| at.elapsed() < AGAIN_AFTER)
}

/// How long a request still waits, and what for.
struct Patience {
    end: Instant,
    sessions: watch::Receiver<u64>,
    routes: watch::Receiver<u64>,
}

impl Patience {
    async fn wait(&mut self) -> bool {
        let now = Instant::now();
        if now >= self.end {
            return false;
        }
        tokio::select! {
            Ok(()) = self.sessions.changed() => {}
            Ok(()) = self.routes.changed() => {}
            () = sleep_until(self.end.min(now + AGAIN_AFTER)) => {}
        }
        true
    }
}
