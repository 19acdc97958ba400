//! What a run asked, when, of whom, and how that ended.

mod operation;

pub use operation::{Action, Answer, Operation};

use std::time::{Duration, Instant};

/// One try of a request at one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The index of the peer.
    pub peer: usize,
    /// When the client began, with the connection if it had to be made.
    pub started: Instant,
    /// When the client knew how it ended.
    pub ended: Instant,
    /// How it ended.
    pub outcome: Outcome,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With an answer, read to its end.
    Answered {
        /// The HTTP status.
        status: u16,
        /// The replica that says it answered, if it says so.
        replica: Option<String>,
    },
    /// Without a connection, so nothing was sent.
    Refused(String),
    /// Without a whole answer after the request was sent: it may have been carried out.
    Unknown(String),
}

impl Outcome {
    /// Whether the request was answered with success.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        matches!(self, Self::Answered { status, .. } if (200..300).contains(status))
    }
}

/// One request of a client, with all its attempts in order. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The session key that it carried.
    pub key: Option<String>,
    /// The attempts, each at another peer.
    pub attempts: Vec<Attempt>,
}

impl Request {
    /// Whether the client got its answer in the end.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.attempts
            .last()
            .is_some_and(|attempt| attempt.outcome.is_ok())
    }
}

/// How many requests a history holds, and how long their attempts took: for whoever reads the output of a
/// test. No promise hangs on it.
#[must_use]
pub fn summary(requests: &[Request]) -> String {
    let mut times: Vec<Duration> = requests
        .iter()
        .flat_map(|request| &request.attempts)
        .map(|attempt| attempt.ended.duration_since(attempt.started))
        .collect();
    times.sort_unstable();
    let at =
        |part: usize| times.get((times.len() * part / 1_000).min(times.len().saturating_sub(1)));
    format!(
        "{} requests, {} attempts: median {:?}, p99 {:?}, max {:?}",
        requests.len(),
        times.len(),
        at(500).copied().unwrap_or_default(),
        at(990).copied().unwrap_or_default(),
        times.last().copied().unwrap_or_default()
    )
}

/// A time in which a peer was not there, by our own doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// The index of the peer.
    pub peer: usize,
    /// Just before the fault was injected.
    pub from: Instant,
    /// When the peer said that it is ready again; none if it has not.
    pub until: Option<Instant>,
}

impl Outage {
    /// Whether any of the attempt fell into the outage.
    #[must_use]
    pub fn touches(&self, attempt: &Attempt) -> bool {
        self.peer == attempt.peer
            && attempt.ended >= self.from
            && self.until.is_none_or(|until| attempt.started <= until)
    }
}
