//! Client sessions: a request is executed exactly once, however often it is sent (Raft
//! dissertation, section 6.3).
//!
//! A session is expired by log time and never silently recreated: a request in an expired session is
//! refused rather than perhaps executed again.

use std::time::Duration;

use bincode::{Decode, Encode};
use imbl::{OrdMap, OrdSet};
use raftserve_model::LogTime;

use super::edits::{Edit, edits};
use super::record::Record;
use super::summed::{Sum, Summed};
use crate::command::{ClientId, Outcome};

/// The most sessions open at once; opening one more closes the one unused for longest.
pub const CLIENTS_MAX: usize = 10_000;

/// How long a session lives after its last request.
pub const CLIENT_TTL: Duration = Duration::from_secs(3_600);

/// The most outcomes kept for one session: how many requests it may have in flight.
pub const OUTCOMES_MAX: usize = 64;

/// The most bytes that all sessions' outcomes take up together; beyond it, the sessions unused for longest are closed.
/// Sixteen outcomes for each of the most sessions, as outcomes mostly are.
pub const CLIENT_BYTES_MAX: usize = 16 << 20;

/// What is counted for an outcome besides its texts: about what it takes up in memory.
const OUTCOME_BYTES: usize = 96;

/// The most sessions that one entry expires, so that it stays cheap to apply.
const EXPIRED_MAX: usize = 256;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Client {
    last_used: LogTime,
    /// Outcomes up to this number are forgotten.
    acknowledged: u64,
    /// Keys are above `acknowledged`.
    outcomes: OrdMap<u64, Outcome>,
}

impl Client {
    fn seen(&mut self, sequence: u64, acknowledged: u64) -> Seen {
        if acknowledged > self.acknowledged {
            self.acknowledged = acknowledged;
            self.outcomes = self.outcomes.split(&acknowledged).1;
        }
        if let Some(outcome) = self.outcomes.get(&sequence) {
            Seen::Before(outcome.clone())
        } else if sequence <= self.acknowledged {
            Seen::Forgotten
        } else if self.outcomes.len() >= OUTCOMES_MAX {
            Seen::TooMany
        } else {
            Seen::New
        }
    }

    /// What its outcomes take up.
    fn bytes(&self) -> usize {
        let outcomes = self.outcomes.values();
        outcomes.map(|it| OUTCOME_BYTES + it.text_bytes()).sum()
    }

    pub(super) fn record(&self, id: ClientId) -> ClientRecord {
        let outcomes = self.outcomes.iter();
        ClientRecord {
            id,
            last_used: self.last_used,
            acknowledged: self.acknowledged,
            outcomes: outcomes
                .map(|(sequence, outcome)| (*sequence, outcome.clone()))
                .collect(),
        }
    }
}

/// A client session as snapshots carry it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ClientRecord {
    pub(super) id: ClientId,
    last_used: LogTime,
    acknowledged: u64,
    outcomes: Vec<(u64, Outcome)>,
}

/// What is known about a request before it is executed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Never executed: execute it.
    New,
    /// Executed, with this outcome.
    Before(Outcome),
    /// Executed, and its outcome forgotten.
    Forgotten,
    /// The session is not open.
    NoSession,
    /// The session has as many requests in flight as it may.
    TooMany,
}

/// Every open session.
#[derive(Clone, Debug, Default)]
pub(super) struct Clients {
    by_id: Summed<ClientId, Client>,
    /// Exactly the sessions of `by_id`, by when they were last used.
    by_age: OrdSet<(LogTime, ClientId)>,
    /// Of all sessions.
    bytes: usize,
}

impl Clients {
    pub(super) fn open(&mut self, id: ClientId, now: LogTime) {
        self.expire(now);
        if self.by_id.len() >= CLIENTS_MAX
            && let Some((_, oldest)) = self.by_age.get_min().copied()
        {
            self.close(oldest);
        }
        self.insert(
            id,
            Client {
                last_used: now,
                ..Client::default()
            },
        );
    }

    pub(super) fn seen(
        &mut self,
        id: ClientId,
        sequence: u64,
        acknowledged: u64,
        now: LogTime,
    ) -> Seen {
        self.expire(now);
        let Some(last_used) = self.by_id.get(&id).map(|client| client.last_used) else {
            return Seen::NoSession;
        };
        if last_used.plus(CLIENT_TTL) <= now {
            // More expired than one entry closes.
            self.close(id);
            return Seen::NoSession;
        }
        self.by_age.remove(&(last_used, id));
        self.by_age.insert((now, id));
        let seen = self.alter(id, |client| {
            client.last_used = now;
            client.seen(sequence, acknowledged)
        });
        seen.unwrap_or(Seen::NoSession)
    }

    pub(super) fn executed(&mut self, id: ClientId, sequence: u64, outcome: Outcome) {
        self.alter(id, |client| {
            client.outcomes.insert(sequence, outcome);
        });
        while self.bytes > CLIENT_BYTES_MAX
            && let Some((_, oldest)) = self.by_age.get_min().copied()
        {
            self.close(oldest);
        }
    }

    fn alter<R>(&mut self, id: ClientId, change: impl FnOnce(&mut Client) -> R) -> Option<R> {
        let (mut before, mut after) = (0, 0);
        let outcome = self.by_id.alter(&id, |client| {
            before = client.bytes();
            let outcome = change(client);
            after = client.bytes();
            outcome
        });
        self.bytes = self.bytes - before + after;
        outcome
    }

    pub(super) fn expire(&mut self, now: LogTime) {
        for _ in 0..EXPIRED_MAX {
            match self.by_age.get_min().copied() {
                Some((last_used, id)) if last_used.plus(CLIENT_TTL) <= now => self.close(id),
                _ => return,
            }
        }
    }

    pub(super) fn next_expiry(&self) -> Option<LogTime> {
        self.by_age
            .get_min()
            .map(|(last_used, _)| last_used.plus(CLIENT_TTL))
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let clients = self.by_id.iter();
        clients.map(|(id, client)| Record::Client(client.record(*id)))
    }

    /// What makes a store of `base` one of these.
    pub(super) fn edits_since<'a>(&'a self, base: &'a Self) -> impl Iterator<Item = Edit> + 'a {
        edits(&base.by_id, &self.by_id)
    }

    pub(super) fn sum(&self) -> Sum {
        self.by_id.sum()
    }

    pub(super) fn restore(&mut self, record: ClientRecord) {
        self.insert(
            record.id,
            Client {
                last_used: record.last_used,
                acknowledged: record.acknowledged,
                outcomes: record.outcomes.into_iter().collect(),
            },
        );
    }

    fn insert(&mut self, id: ClientId, client: Client) {
        self.by_age.insert((client.last_used, id));
        self.bytes += client.bytes();
        self.by_id.insert(id, client);
    }

    fn close(&mut self, id: ClientId) {
        if let Some(client) = self.by_id.remove(&id) {
            self.bytes -= client.bytes();
            self.by_age.remove(&(client.last_used, id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Refusal;
    use raftserve_model::LogIndex;

    fn at(secs: u64) -> LogTime {
        LogTime(secs * 1_000)
    }

    #[test]
    fn a_request_sent_twice_is_executed_once() {
        let (mut clients, id) = (Clients::default(), LogIndex(5));
        clients.open(id, at(0));
        assert_eq!(clients.seen(id, 1, 0, at(1)), Seen::New);
        clients.executed(id, 1, Outcome::Index(LogIndex(6)));
        assert_eq!(
            clients.seen(id, 1, 0, at(2)),
            Seen::Before(Outcome::Index(LogIndex(6)))
        );
        assert_eq!(clients.seen(id, 2, 1, at(3)), Seen::New);
        assert_eq!(clients.seen(id, 1, 0, at(3)), Seen::Forgotten);
    }

    #[test]
    fn an_expired_session_is_refused_and_not_recreated() {
        let (mut clients, id) = (Clients::default(), LogIndex(5));
        clients.open(id, at(0));
        assert_eq!(clients.seen(id, 1, 0, at(3_600)), Seen::NoSession);
        assert_eq!(clients.len(), 0);
        assert_eq!(clients.by_age.len(), 0);
    }

    #[test]
    fn a_request_in_an_expired_session_is_refused_however_many_expire_with_it() {
        let mut clients = Clients::default();
        for id in 0..2 * EXPIRED_MAX as u64 {
            clients.open(LogIndex(id), at(0));
        }
        let last = LogIndex(2 * EXPIRED_MAX as u64 - 1);
        assert_eq!(clients.seen(last, 1, 0, at(3_600)), Seen::NoSession);
        assert_eq!(clients.len(), EXPIRED_MAX - 1);
    }

    #[test]
    fn sessions_are_bounded_in_number_and_the_one_unused_for_longest_goes() {
        let mut clients = Clients::default();
        for id in 0..CLIENTS_MAX as u64 {
            clients.open(LogIndex(id), at(0));
        }
        assert_eq!(clients.seen(LogIndex(0), 1, 0, at(1)), Seen::New);
        clients.open(LogIndex(CLIENTS_MAX as u64), at(2));
        assert_eq!(clients.len(), CLIENTS_MAX);
        assert_eq!(clients.seen(LogIndex(1), 1, 0, at(2)), Seen::NoSession);
        assert_eq!(clients.seen(LogIndex(0), 2, 0, at(2)), Seen::New);
    }

    #[test]
    fn outcomes_are_bounded_in_bytes_and_the_sessions_unused_for_longest_go() {
        let mut clients = Clients::default();
        let outcome = Outcome::Refused(Refusal::Limit("x".repeat(200_000)));
        let counted =
            |clients: &Clients| -> usize { clients.by_id.values().map(Client::bytes).sum() };
        let sessions = CLIENT_BYTES_MAX / 200_000 + 10;
        for id in 0..sessions as u64 {
            clients.open(LogIndex(id), at(id));
            clients.seen(LogIndex(id), 1, 0, at(id));
            clients.executed(LogIndex(id), 1, outcome.clone());
            assert!(clients.bytes <= CLIENT_BYTES_MAX);
            assert_eq!(clients.bytes, counted(&clients));
        }
        let now = at(sessions as u64);
        assert!(clients.len() < sessions, "some had to go");
        assert_eq!(clients.seen(LogIndex(0), 1, 0, now), Seen::NoSession);
        let last = LogIndex(sessions as u64 - 1);
        assert_eq!(clients.seen(last, 1, 0, now), Seen::Before(outcome));
        clients.seen(last, 2, 1, now);
        assert_eq!(
            clients.bytes,
            counted(&clients),
            "what is acknowledged counts no more"
        );
        let mut restored = Clients::default();
        for (id, client) in clients.by_id.iter() {
            restored.restore(client.record(*id));
        }
        assert_eq!(restored.bytes, clients.bytes);
    }

    #[test]
    fn requests_in_flight_are_bounded() {
        let (mut clients, id) = (Clients::default(), LogIndex(5));
        clients.open(id, at(0));
        for sequence in 1..=OUTCOMES_MAX as u64 {
            assert_eq!(clients.seen(id, sequence, 0, at(0)), Seen::New);
            clients.executed(id, sequence, Outcome::Done);
        }
        assert_eq!(clients.seen(id, 1_000, 0, at(0)), Seen::TooMany);
        assert_eq!(clients.seen(id, 1_000, 1, at(0)), Seen::New);
    }
}
