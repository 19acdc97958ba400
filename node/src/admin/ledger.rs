//! The bookkeeping of a peer's own client session: which sequence number comes next, and up to
//! which all outcomes have been received.

use std::collections::BTreeSet;

use raftserve_store::command::ClientId;
use raftserve_store::state::OUTCOMES_MAX;

/// How far the newest number may be from the oldest open one: the cluster keeps the outcomes in
/// between, and refuses more than it keeps.
const WINDOW: u64 = OUTCOMES_MAX as u64;

/// One request's place in the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) client: ClientId,
    pub(super) sequence: u64,
    pub(super) acknowledged: u64,
}

/// What came of asking for a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Issue {
    Ticket(Ticket),
    /// There is no session; open one.
    NoSession,
    /// Wait until a ticket is closed.
    Full,
}

/// Hands out sequence numbers. A number is open from its ticket until it is closed; everything
/// below the lowest open one is acknowledged.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    client: Option<ClientId>,
    last: u64,
    open: BTreeSet<u64>,
}

impl Ledger {
    /// The session in use.
    pub(super) fn client(&self) -> Option<ClientId> {
        self.client
    }

    /// Starts over in a session just opened. Tickets of the one before are void.
    pub(super) fn restart(&mut self, client: ClientId) {
        *self = Self {
            client: Some(client),
            ..Self::default()
        };
    }

    /// Forgets the session `client`, if it is still the one in use.
    pub(super) fn abandon(&mut self, client: ClientId) {
        if self.client == Some(client) {
            *self = Self::default();
        }
    }

    /// The next request's ticket.
    pub(super) fn issue(&mut self) -> Issue {
        let Some(client) = self.client else {
            return Issue::NoSession;
        };
        let sequence = self.last + 1;
        let lowest = self.open.first().copied().unwrap_or(sequence);
        if sequence - lowest >= WINDOW {
            return Issue::Full;
        }
        self.last = sequence;
        self.open.insert(sequence);
        Issue::Ticket(Ticket {
            client,
            sequence,
            acknowledged: lowest - 1,
        })
    }

    /// The request of `ticket` will not be sent again, whether its outcome is known or was given up.
    pub(super) fn close(&mut self, ticket: Ticket) {
        if self.client == Some(ticket.client) {
            self.open.remove(&ticket.sequence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raftserve_model::LogIndex;

    fn issue(ledger: &mut Ledger) -> Ticket {
        match ledger.issue() {
            Issue::Ticket(ticket) => ticket,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn acknowledges_below_the_lowest_open_request() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.issue(), Issue::NoSession);
        ledger.restart(LogIndex(9));
        let first = issue(&mut ledger);
        let second = issue(&mut ledger);
        assert_eq!((first.sequence, first.acknowledged), (1, 0));
        assert_eq!((second.sequence, second.acknowledged), (2, 0));
        ledger.close(second);
        assert_eq!(issue(&mut ledger).acknowledged, 0);
        ledger.close(first);
        assert_eq!(issue(&mut ledger).acknowledged, 2);
    }

    #[test]
    fn a_ticket_of_an_abandoned_session_changes_nothing() {
        let mut ledger = Ledger::default();
        ledger.restart(LogIndex(9));
        let old = issue(&mut ledger);
        ledger.abandon(LogIndex(8));
        assert_eq!(ledger.client(), Some(LogIndex(9)));
        ledger.abandon(LogIndex(9));
        ledger.restart(LogIndex(10));
        let new = issue(&mut ledger);
        ledger.close(old);
        assert_eq!(issue(&mut ledger).acknowledged, new.sequence - 1);
    }

    #[test]
    fn one_slow_request_holds_up_no_more_than_the_cluster_would_refuse() {
        let mut ledger = Ledger::default();
        ledger.restart(LogIndex(9));
        let slow = issue(&mut ledger);
        for _ in 1..WINDOW {
            let quick = issue(&mut ledger);
            ledger.close(quick);
        }
        assert_eq!(ledger.issue(), Issue::Full);
        ledger.close(slow);
        assert_eq!(issue(&mut ledger).acknowledged, WINDOW);
    }
}
