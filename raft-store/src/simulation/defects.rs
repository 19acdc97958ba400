//! The observer is worth what it finds: each defect put in by hand must be found within a few seeds.

use std::time::Duration;

use super::nemesis::Trouble;
use super::scenario::{Plan, simulate};
use super::storage::Defect;

/// Most are found by the first or second; lost entries, where votes and whole segments are lost too, by the seventh.
const SEEDS_MAX: u64 = 12;

/// A leader lacks entries that were committed before, and they are named.
const LOST_ENTRIES: &str = "leader completeness: ";
const LOST_VOTE: &str = "the vote of peer ";

/// Runs seeds until one fails by `symptom`. Any that fails before must do so by one of the `others`: a panic, or a cluster that
/// stands still, finds nothing out. The same run without the defect must pass.
fn found_by(
    symptom: &str,
    others: &[&str],
    defect: Defect,
    troubles: &[Trouble],
    disk_delay_max: Duration,
) {
    for seed in 0..SEEDS_MAX {
        let mut plan = Plan::drawn(seed);
        plan.voters = 3;
        plan.readers = 0;
        plan.troubles = troubles.to_vec();
        plan.setting.defect = defect;
        plan.setting.disk_delay_max = disk_delay_max;
        plan.setting.growth.kept = 20;
        plan.setting.growth.kept_bytes = u64::MAX;
        let Err(failure) = simulate(&plan) else {
            continue;
        };
        let said = failure.lines().last().unwrap_or_default();
        if said.starts_with(symptom) {
            plan.setting.defect = Defect::None;
            let control = simulate(&plan);
            control.unwrap_or_else(|failure| panic!("seed {seed} without {defect:?}: {failure}"));
            return;
        }
        let known = others.iter().any(|other| said.contains(other));
        assert!(known, "seed {seed}, {defect:?}: {failure}");
    }
    panic!("{defect:?} stays unseen");
}

const FAST: Duration = Duration::from_micros(100);
const SLOW: Duration = Duration::from_millis(20);

#[test]
fn a_disk_that_does_not_sync_is_found_out() {
    let troubles = [Trouble::PowerCut, Trouble::Blackout];
    let others = [LOST_VOTE, " is corrupt at byte "];
    found_by(LOST_ENTRIES, &others, Defect::SkipsSync, &troubles, FAST);
}

#[test]
fn entries_acknowledged_before_they_are_durable_are_found_out() {
    let troubles = [Trouble::Blackout];
    found_by(
        LOST_ENTRIES,
        &[],
        Defect::AcknowledgesEarly,
        &troubles,
        SLOW,
    );
}

#[test]
fn a_vote_that_is_not_written_is_found_out() {
    found_by(LOST_VOTE, &[], Defect::ForgetsVote, &[Trouble::Kill], FAST);
}

#[test]
fn a_vote_that_entries_overtake_is_found_out() {
    let troubles = [Trouble::Blackout, Trouble::Storm];
    found_by(
        LOST_VOTE,
        &[],
        Defect::WritesVoteAfterEntries,
        &troubles,
        SLOW,
    );
}
