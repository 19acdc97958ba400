//! What happened, as lines and as one number.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};

use crate::disk::simulated::seeds::setting;

/// Lines kept for whoever has to understand a failure.
const LINES_KEPT: usize = 150;

/// FNV-1a's parameters for 64 bits.
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// The order of all that happened. Equal hashes mean that it was the same, byte for byte.
pub(super) struct Trace {
    hash: u64,
    lines: VecDeque<String>,
    aloud: bool,
}

impl Default for Trace {
    fn default() -> Self {
        Self {
            hash: OFFSET,
            lines: VecDeque::new(),
            aloud: setting("RAFTSERVE_SIM_TRACE").is_some(),
        }
    }
}

impl Trace {
    fn eat(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(PRIME);
        }
    }

    /// A task was chosen to run.
    pub(super) fn scheduled(&mut self, now: u64, task: u64) {
        self.hash = (self.hash ^ now).wrapping_mul(PRIME);
        self.hash = (self.hash ^ task).wrapping_mul(PRIME);
    }

    pub(super) fn line(&mut self, now: u64, process: u64, what: fmt::Arguments<'_>) {
        let mut line = format!("{:>12.6} [{process:>4}] ", now as f64 / 1e9);
        line.write_fmt(what).unwrap();
        self.eat(line.as_bytes());
        if self.aloud {
            eprintln!("{line}");
        }
        if self.lines.len() == LINES_KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn newest(&self) -> String {
        let lines: Vec<&str> = self.lines.iter().map(String::as_str).collect();
        lines.join("\n")
    }
}
