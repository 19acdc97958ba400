//! The observer is worth what it finds: each defect put in by hand must be found within a few seeds.

use std::time::Duration;

use super::nemesis::Trouble;
use super::scenario::{Plan, simulate};
use super::storage::Defect;

/// Most are found by the first or second.
const SEEDS_MAX: u64 = 12;

/// Runs seeds until one fails, and returns how.
fn found(defect: Defect, troubles: &[Trouble], disk_delay_max: Duration) -> String {
    for seed in 0..SEEDS_MAX {
        let mut plan = Plan::drawn(seed);
        plan.voters = 3;
        plan.readers = 0;
        plan.troubles = troubles.to_vec();
        plan.setting.defect = defect;
        plan.setting.disk_delay_max = disk_delay_max;
        plan.setting.growth.kept = 20;
        plan.setting.growth.kept_bytes = u64::MAX;
        if let Err(failure) = simulate(&plan) {
            return failure.lines().last().unwrap_or_default().to_owned();
        }
    }
    panic!("{defect:?} stays unseen");
}

const FAST: Duration = Duration::from_micros(100);
const SLOW: Duration = Duration::from_millis(20);

#[test]
fn a_disk_that_does_not_sync_is_found_out() {
    let troubles = [Trouble::PowerCut, Trouble::Blackout];
    found(Defect::SkipsSync, &troubles, FAST);
}

#[test]
fn entries_acknowledged_before_they_are_durable_are_found_out() {
    found(Defect::AcknowledgesEarly, &[Trouble::Blackout], SLOW);
}

#[test]
fn a_vote_that_is_not_written_is_found_out() {
    let failure = found(Defect::ForgetsVote, &[Trouble::Kill], FAST);
    assert!(failure.contains("vote"), "{failure}");
}

#[test]
fn a_vote_that_entries_overtake_is_found_out() {
    let troubles = [Trouble::Blackout, Trouble::Storm];
    let failure = found(Defect::WritesVoteAfterEntries, &troubles, SLOW);
    assert!(failure.contains("vote"), "{failure}");
}
