//! What is counted while peers are killed.

use std::fmt;
use std::time::Duration;

/// What became of the requests of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Requests {
    /// How many were sent; those still under way are in none of the other counts.
    pub(super) sent: u64,
    /// How many were answered by the first peer asked.
    pub(super) answered: u64,
    /// How many were answered by another peer, asked once after the first could not.
    pub(super) answered_by_another: u64,
    /// How many were not answered by either, or with a server error.
    pub(super) failed: u64,
}

/// How traffic went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// The pause between two kills.
    pub(super) kill_every: Duration,
    /// How many times a peer was killed.
    pub(super) kills: u64,
    /// Requests without a session.
    pub(super) plain: Requests,
    /// Requests with a session.
    pub(super) in_session: Requests,
    /// The sessions; none for a service without session affinity.
    pub(super) sessions: Option<SessionTally>,
    /// Why the last request that failed did.
    pub(super) last_failure: Option<String>,
}

/// How sessions fared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SessionTally {
    /// How many keys are in use.
    pub(super) keys: usize,
    /// How many of them were seen bound to a replica.
    pub(super) bound: usize,
    /// How often a key was seen bound to another replica than before.
    pub(super) moved: u64,
}

impl fmt::Display for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} sent, {} failed ({} answered by the first peer asked, {} by another)",
            self.sent, self.failed, self.answered, self.answered_by_another
        )
    }
}

impl fmt::Display for SessionTally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} moved to another replica ({} keys, each through all peers; {} bound)",
            self.moved, self.keys, self.bound
        )
    }
}

impl fmt::Display for Tally {
    /// On one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "peers killed: {}; plain requests: {}",
            self.kills, self.plain
        )?;
        match &self.sessions {
            Some(sessions) => write!(
                f,
                "; requests in sessions: {}; sessions: {sessions}",
                self.in_session
            ),
            None => write!(f, "; sessions: the service has no session affinity"),
        }
    }
}
