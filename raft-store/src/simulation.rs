//! A whole cluster in one thread, on simulated time, disks and network, in which one seed decides everything.
//!
//! The peers run the real store over a disk in memory, and the real openraft over a runtime of one thread
//! (see [`runtime`]). Things go wrong as [`nemesis`] draws it; [`observer`] checks in every step what must
//! always hold. Then everything is healed, and the cluster must make progress.
//!
//! `RAFTSERVE_SIM_SEED=n` replays one seed; `RAFTSERVE_SIM_SEEDS=n` runs so many, from `RAFTSERVE_SIM_FIRST=n` on, or
//! from a random one with `random`; `RAFTSERVE_SIM_TRACE=1` prints what happens. They are for `just sim`.

mod clients;
mod cluster;
mod defects;
mod growth;
mod nemesis;
mod network;
mod observer;
mod regressions;
mod runtime;
mod scenario;
mod storage;
mod trace;

use std::io;
use std::time::Duration;

use crate::command::{Command, Outcome};
use crate::disk::simulated::seeds::{first_seed, number_from};
use crate::raft::{PeerRecord, StoreTypes};
use observer::Counts;
use raftserve_model::NodeId;
use runtime::SimulatedRuntime;
use scenario::{Plan, simulate};

openraft::declare_raft_types!(
    /// A peer's types, but for the runtime.
    SimulatedTypes:
        D = Command,
        R = Outcome,
        NodeId = NodeId,
        Node = PeerRecord,
        AsyncRuntime = SimulatedRuntime,
);

impl StoreTypes for SimulatedTypes {
    /// In place, after the disk has taken its time.
    async fn run_blocking<T: Send + 'static>(
        job: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        runtime::sleep(runtime::disk_delay()).await;
        Ok(job())
    }
}

/// Seeds that CI runs: what fits into half a minute.
const SEEDS: u64 = 16;

/// Any seeds meet everything that is counted, if they are so many. So do those that CI runs.
const SEEDS_MANY: u64 = 100;

#[test]
fn every_seed_keeps_what_must_always_hold_and_makes_progress_once_healed() {
    let seeds = match number_from("RAFTSERVE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = first_seed("RAFTSERVE_SIM_FIRST");
            first..first + number_from("RAFTSERVE_SIM_SEEDS").unwrap_or(SEEDS)
        }
    };
    let (mut counts, mut passed) = (Counts::default(), Duration::ZERO);
    let ran = seeds.end - seeds.start;
    let must_meet_all = ran >= SEEDS_MANY || (seeds.start == 0 && ran >= SEEDS);
    for seed in seeds {
        let report = simulate(&Plan::drawn(seed)).unwrap_or_else(|failure| panic!("{failure}"));
        println!("seed {seed}: {report:?}");
        counts += report.counts;
        passed += report.summary.passed;
    }
    let hours = passed.as_secs_f64() / 3600.0;
    println!("{ran} seeds, {hours:.2} simulated hours: {counts:?}");
    let unmet = counts.unmet();
    assert!(
        !must_meet_all || unmet.is_empty(),
        "the seeds do not meet {unmet:?}: {counts:?}"
    );
}

#[test]
fn a_seed_gives_the_same_trace_again_byte_for_byte_and_another_does_not() {
    let trace = |seed| {
        let plan = Plan {
            lasts: Duration::from_secs(2),
            ..Plan::drawn(seed)
        };
        simulate(&plan).unwrap().summary
    };
    let first = trace(1);
    assert_eq!(first, trace(1));
    assert_ne!(first.trace_hash, trace(2).trace_hash);
}
