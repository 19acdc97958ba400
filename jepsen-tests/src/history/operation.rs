//! Operations on registers: keys of the cluster's key-value store, each of which holds a number that is
//! written once in the whole run.

use std::fmt;
use std::time::Instant;

/// One call of a client on one register, at one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The register.
    pub key: String,
    /// Which client.
    pub client: usize,
    /// The index of the peer that was asked.
    pub peer: usize,
    /// Just before it was sent.
    pub started: Instant,
    /// When its answer was there, or none was to come.
    pub ended: Instant,
    /// What was asked.
    pub action: Action,
    /// How that ended.
    pub answer: Answer,
}

/// What is asked of a register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// What it holds.
    Read,
    /// To hold `value`.
    Write {
        /// Unique in the run.
        value: u64,
    },
    /// To hold `value` if it holds `from`, or, if none, nothing.
    Swap {
        /// What it is to hold before.
        from: Option<u64>,
        /// Unique in the run.
        value: u64,
    },
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What a read found, and which log index had put it there; 0 for nothing.
    Found {
        /// The value; none if the register is empty.
        value: Option<u64>,
        /// The log index.
        revision: u64,
    },
    /// The write took effect at this log index.
    Written {
        /// The log index.
        revision: u64,
    },
    /// The register did not hold what the swap expected.
    Conflict,
    /// It took no effect and never will.
    Refused(String),
    /// It may have taken effect, or may yet. Of a read: nothing was learnt.
    Unknown(String),
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            client,
            peer,
            action,
            answer,
            ..
        } = self;
        write!(
            f,
            "client {client} at peer {peer}: {action:?} -> {answer:?}"
        )
    }
}
