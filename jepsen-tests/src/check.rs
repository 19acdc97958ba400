//! Whether what happened was allowed. Each checker is a pure function over a history, and says what it
//! found in words; an empty answer is a clean history.

mod affinity;
mod availability;
mod census;
mod durability;
mod linear;
mod revisions;
mod rollout;

pub use affinity::{Sightings, one_replica_per_key};
pub use availability::{every_request_answered, no_failure_through_live_peers};
pub use census::exactly_these_run;
pub use durability::never_goes_back;
pub use linear::registers_are_linearizable;
pub use revisions::{Counted, each_request_counted_once, revisions_never_go_back};
pub use rollout::{Change, RolloutBounds, rolling_update_keeps_its_bounds};

/// Fails with all that a checker found.
///
/// # Errors
/// If it found anything: at most the first ten of it, and how many there are.
pub fn clean(what: &str, found: &[String]) -> anyhow::Result<()> {
    if found.is_empty() {
        return Ok(());
    }
    let shown: Vec<&str> = found.iter().take(10).map(String::as_str).collect();
    anyhow::bail!(
        "{what}: {} violations, such as:\n  {}",
        found.len(),
        shown.join("\n  ")
    )
}
