//! The bookkeeping of a peer's own client session: which sequence number comes next, and up to
//! which all outcomes have been received.

use std::collections::BTreeSet;

use raftserve_store::command::ClientId;

/// One request's place in the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) client: ClientId,
    pub(super) sequence: u64,
    pub(super) acknowledged: u64,
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

    /// The next request's ticket; none without a session.
    pub(super) fn issue(&mut self) -> Option<Ticket> {
        let client = self.client?;
        self.last += 1;
        self.open.insert(self.last);
        let lowest = self.open.first().copied().unwrap_or(self.last);
        Some(Ticket {
            client,
            sequence: self.last,
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

    #[test]
    fn acknowledges_below_the_lowest_open_request() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.issue(), None);
        ledger.restart(LogIndex(9));
        let first = ledger.issue().unwrap();
        let second = ledger.issue().unwrap();
        assert_eq!((first.sequence, first.acknowledged), (1, 0));
        assert_eq!((second.sequence, second.acknowledged), (2, 0));
        ledger.close(second);
        assert_eq!(ledger.issue().unwrap().acknowledged, 0);
        ledger.close(first);
        assert_eq!(ledger.issue().unwrap().acknowledged, 2);
    }

    #[test]
    fn a_ticket_of_an_abandoned_session_changes_nothing() {
        let mut ledger = Ledger::default();
        ledger.restart(LogIndex(9));
        let old = ledger.issue().unwrap();
        ledger.abandon(LogIndex(8));
        assert_eq!(ledger.client(), Some(LogIndex(9)));
        ledger.abandon(LogIndex(9));
        ledger.restart(LogIndex(10));
        let new = ledger.issue().unwrap();
        ledger.close(old);
        assert_eq!(ledger.issue().unwrap().acknowledged, new.sequence - 1);
    }
}
