//! The replicated state machine.

use raftserve_model::LogIndex;

use crate::command::{Command, Outcome};

/// Everything that the cluster has agreed on.
#[derive(Clone, Debug, Default)]
pub struct State {}

impl State {
    /// Applies the entry at `index`.
    pub fn apply(&mut self, _index: LogIndex, _command: &Command) -> Outcome {
        Outcome::Done
    }
}
