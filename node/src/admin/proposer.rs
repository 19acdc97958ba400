//! Carries a user's request into the log exactly once, within a time the user will wait.
//!
//! A request travels in a client session (Raft dissertation, section 6.3): the caller's own if it
//! brought a request id, else one that this peer keeps. Within the budget, an attempt that failed is
//! repeated, an attempt whose outcome is unknown only ever under the same number.

use std::future::Future;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use raftserve_model::LogIndex;
use raftserve_store::Outcome;
use raftserve_store::command::{Action, Refusal, Request};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::Status;

use super::errors::{self, Reason};
use super::ledger::{Issue, Ledger, Ticket};
use super::v1;
use crate::consensus::{Consensus, ProposeError};

/// How long a write may take before the caller is told that there is no quorum: under the two
/// seconds promised, with room for the way back on a busy machine.
pub const WRITE_BUDGET: Duration = Duration::from_millis(1_600);

/// The least time given to one attempt: long enough for a commit on a slow disk, short enough for
/// several attempts within the budget.
const ATTEMPT_MIN: Duration = Duration::from_millis(300);

/// The pause between two attempts: elections end within a few of these.
const PAUSE: Duration = Duration::from_millis(50);

/// How often a request is started anew because the peer's own session had expired. Once is what an
/// idle peer needs; twice would mean that sessions expire as they are opened.
const SESSIONS_TRIED_MAX: usize = 2;

/// Where requests are proposed. A seam for tests.
pub(super) trait Log: Send + Sync + 'static {
    /// See [`Consensus::propose`].
    fn propose(
        &self,
        action: Action,
        deadline: Duration,
    ) -> impl Future<Output = Result<(LogIndex, Outcome), ProposeError>> + Send;
}

impl Log for Consensus {
    async fn propose(
        &self,
        action: Action,
        deadline: Duration,
    ) -> Result<(LogIndex, Outcome), ProposeError> {
        Consensus::propose(self, action, deadline).await
    }
}

/// What came of an action.
struct Proposed {
    index: LogIndex,
    outcome: Outcome,
    /// An earlier attempt of the same action may have been the one that counted.
    after_unknown: bool,
}

/// See the module.
pub(super) struct Proposer<L: Log> {
    log: L,
    ledger: Mutex<Ledger>,
    /// Told when a number is closed.
    closed: Notify,
    /// Held while a session is opened, so that a burst of first requests opens one.
    opening: tokio::sync::Mutex<()>,
}

impl<L: Log> Proposer<L> {
    pub(super) fn new(log: L) -> Self {
        Self {
            log,
            ledger: Mutex::default(),
            closed: Notify::new(),
            opening: tokio::sync::Mutex::default(),
        }
    }

    /// Executes `request` exactly once. Returns the index and the outcome, which is no refusal.
    ///
    /// # Errors
    /// The refusal as a status; or `UNAVAILABLE` once the budget is spent.
    pub(super) async fn execute(
        &self,
        id: Option<v1::RequestId>,
        request: Request,
    ) -> Result<(LogIndex, Outcome), Status> {
        let deadline = Instant::now() + WRITE_BUDGET;
        let proposed = match id {
            Some(id) => self.send(callers(id)?, &request, deadline).await?,
            None => self.execute_in_own_session(&request, deadline).await?,
        };
        match proposed.outcome {
            Outcome::Refused(Refusal::UnknownClient) if proposed.after_unknown => {
                Err(outcome_unknown("the client session expired meanwhile"))
            }
            Outcome::Refused(refusal) => Err(errors::refused(&refusal)),
            outcome => Ok((proposed.index, outcome)),
        }
    }

    /// Executes `request` outside every session: never twice, since an attempt is only repeated where the one
    /// before is certain not to have entered a log. Costs the cluster no memory of the request.
    ///
    /// # Errors
    /// The refusal as a status; or `UNAVAILABLE`, which says whether the request may have been executed.
    pub(super) async fn execute_at_most_once(
        &self,
        request: Request,
    ) -> Result<(LogIndex, Outcome), Status> {
        let deadline = Instant::now() + WRITE_BUDGET;
        let action = Action::Request(request);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let proposing = self.log.propose(action.clone(), left);
            match timeout_at(deadline, proposing).await {
                Ok(Ok((_, Outcome::Refused(refusal)))) => return Err(errors::refused(&refusal)),
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(ProposeError::OutcomeUnknown { reason })) => {
                    return Err(outcome_unknown(&reason));
                }
                Err(_) => return Err(outcome_unknown("no answer in time")),
                Ok(Err(ProposeError::NotFinalized { reason })) => {
                    return Err(not_finalized(&reason));
                }
                Ok(Err(ProposeError::NotProposed { reason })) => {
                    if Instant::now() + PAUSE >= deadline {
                        return Err(not_proposed(&reason));
                    }
                }
            }
            sleep_until(Instant::now() + PAUSE).await;
        }
    }

    /// Opens a client session for a caller.
    ///
    /// # Errors
    /// `UNAVAILABLE` once the budget is spent.
    pub(super) async fn open_client(&self) -> Result<LogIndex, Status> {
        self.open_session(Instant::now() + WRITE_BUDGET).await
    }

    async fn execute_in_own_session(
        &self,
        request: &Request,
        deadline: Instant,
    ) -> Result<Proposed, Status> {
        let mut tried = 0;
        loop {
            tried += 1;
            let open = self.ticket(deadline).await?;
            let proposed = self.send(open.ticket, request, deadline).await?;
            // Not executed under that number, and nobody else knows the number: free to start anew.
            let expired = proposed.outcome == Outcome::Refused(Refusal::UnknownClient)
                && !proposed.after_unknown;
            if !expired || tried == SESSIONS_TRIED_MAX {
                return Ok(proposed);
            }
            self.ledger().abandon(open.ticket.client);
        }
    }

    /// The next number in the peer's own session, which is opened if there is none.
    async fn ticket(&self, deadline: Instant) -> Result<OpenTicket<'_, L>, Status> {
        loop {
            // Registered before looking, so that no closing is missed.
            let mut closed = pin!(self.closed.notified());
            closed.as_mut().enable();
            match self.issue() {
                Ok(ticket) => return Ok(ticket),
                Err(Issue::Full) => timeout_at(deadline, closed)
                    .await
                    .map_err(|_| not_proposed("too many writes are under way"))?,
                Err(_) => timeout_at(deadline, self.ensure_session(deadline))
                    .await
                    .map_err(|_| not_proposed("no client session could be opened in time"))??,
            }
        }
    }

    async fn ensure_session(&self, deadline: Instant) -> Result<(), Status> {
        let _opening = self.opening.lock().await;
        if self.ledger().client().is_none() {
            let client = self.open_session(deadline).await?;
            self.ledger().restart(client);
        }
        Ok(())
    }

    async fn open_session(&self, deadline: Instant) -> Result<LogIndex, Status> {
        // A session opened by an attempt whose outcome stayed unknown is never used and expires.
        let proposed =
            self.propose(&Action::OpenClient, deadline)
                .await
                .map_err(|error| match error {
                    ProposeError::NotProposed { reason }
                    | ProposeError::OutcomeUnknown { reason } => not_proposed(&reason),
                    ProposeError::NotFinalized { reason } => not_finalized(&reason),
                })?;
        match proposed.outcome {
            Outcome::Index(client) => Ok(client),
            other => Err(Reason::Internal.status(format!("opening a client session gave {other}"))),
        }
    }

    async fn send(
        &self,
        ticket: Ticket,
        request: &Request,
        deadline: Instant,
    ) -> Result<Proposed, Status> {
        let action = Action::Client {
            client: ticket.client,
            sequence: ticket.sequence,
            acknowledged: ticket.acknowledged,
            request: request.clone(),
        };
        self.propose(&action, deadline)
            .await
            .map_err(|error| refused(&error))
    }

    /// Proposes `action` until it has an outcome or the time is up.
    async fn propose(&self, action: &Action, deadline: Instant) -> Result<Proposed, ProposeError> {
        let mut unknown = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let attempt = (left / 2).max(ATTEMPT_MIN).min(left);
            let proposing = self.log.propose(action.clone(), attempt);
            let error = match timeout_at(deadline, proposing).await {
                Ok(Ok((index, outcome))) => {
                    return Ok(Proposed {
                        index,
                        outcome,
                        after_unknown: unknown.is_some(),
                    });
                }
                Ok(Err(error)) => error,
                Err(_) => ProposeError::OutcomeUnknown {
                    reason: "no answer in time".to_owned(),
                },
            };
            match error {
                ProposeError::OutcomeUnknown { .. } => unknown = Some(error.clone()),
                // Nor has a try before it: the version was no higher then.
                ProposeError::NotFinalized { .. } => return Err(error),
                ProposeError::NotProposed { .. } => {}
            }
            if Instant::now() + PAUSE >= deadline {
                return Err(unknown.unwrap_or(error));
            }
            sleep_until(Instant::now() + PAUSE).await;
        }
    }

    fn issue(&self) -> Result<OpenTicket<'_, L>, Issue> {
        match self.ledger().issue() {
            Issue::Ticket(ticket) => Ok(OpenTicket {
                ticket,
                proposer: self,
            }),
            other => Err(other),
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger
            .lock()
            .expect("no code panics while it holds the ledger")
    }
}

/// A number of the peer's own session, closed when dropped: also when the caller went away, since
/// then nobody sends it again.
struct OpenTicket<'a, L: Log> {
    ticket: Ticket,
    proposer: &'a Proposer<L>,
}

impl<L: Log> Drop for OpenTicket<'_, L> {
    fn drop(&mut self) {
        self.proposer.ledger().close(self.ticket);
        self.proposer.closed.notify_waiters();
    }
}

fn callers(id: v1::RequestId) -> Result<Ticket, Status> {
    if id.client_id == 0 {
        return Err(errors::invalid_request(
            "request_id.client_id",
            "must be one that Cluster.OpenClient returned",
        ));
    }
    if id.sequence <= id.acknowledged {
        return Err(errors::invalid_request(
            "request_id.sequence",
            "must be 1 or greater, and greater than `acknowledged`",
        ));
    }
    Ok(Ticket {
        client: LogIndex(id.client_id),
        sequence: id.sequence,
        acknowledged: id.acknowledged,
    })
}

/// What became of a proposal that did not come back with an outcome.
pub(super) fn refused(error: &ProposeError) -> Status {
    match error {
        ProposeError::NotProposed { reason } => not_proposed(reason),
        ProposeError::OutcomeUnknown { reason } => outcome_unknown(reason),
        ProposeError::NotFinalized { reason } => not_finalized(reason),
    }
}

fn not_finalized(reason: &str) -> Status {
    Reason::NotFinalized.status(format!("nothing was changed: {reason}"))
}

fn not_proposed(reason: &str) -> Status {
    Reason::NotProposed.status(format!(
        "nothing was changed, since the cluster could not agree: {reason}; try again, also on another peer"
    ))
}

fn outcome_unknown(reason: &str) -> Status {
    Reason::OutcomeUnknown.status(format!(
        "the request may or may not have been carried out: {reason}; look before sending it anew, or \
         repeat it with the same request id"
    ))
}

#[cfg(test)]
mod tests;
