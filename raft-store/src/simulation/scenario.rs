//! One run: a cluster is made, suffers, is healed, and must make progress.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use openraft::Config;
use raftserve_model::NodeId;

use super::clients::Clients;
use super::cluster::{Cluster, End, Setting};
use super::growth::Growth;
use super::nemesis::{self, Trouble};
use super::observer::Counts;
use super::runtime::{self, Process, Summary};
use super::storage::Defect;
use crate::disk::simulated::Random;
use crate::raft::{PeerRecord, Profile, raft_config};
use crate::wal::WalOptions;

/// How long after everything is healed the cluster may take to be as good as new: several elections.
const RECOVERY_MAX: Duration = Duration::from_secs(20);

/// Everything about a run.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) voters: u64,
    pub(super) writers: usize,
    pub(super) readers: usize,
    pub(super) troubles: Vec<Trouble>,
    /// How long there is trouble.
    pub(super) lasts: Duration,
    pub(super) setting: Setting,
}

impl Plan {
    /// The plan of a seed.
    pub(super) fn drawn(seed: u64) -> Self {
        // Not the run's own randomness, so that a plan can be changed and the rest stays as it was.
        let mut random = Random(seed ^ 0x5eed);
        let mut troubles = Trouble::ALL.to_vec();
        // Each seed leaves some out: a fault that ends every process hides what only happens in long lives.
        for _ in 0..random.below(7) {
            troubles.remove(random.below(troubles.len() as u64) as usize);
        }
        let kept = [0, 3, 20][random.below(3) as usize];
        let config = Config {
            max_payload_entries: [1, 3, 512][random.below(3) as usize],
            replication_lag_threshold: 2 * kept + 10,
            ..raft_config(Profile::Fast)
        };
        let millis =
            |of: [u64; 2], random: &mut Random| Duration::from_millis(of[random.below(2) as usize]);
        let growth = Growth {
            snapshot_entries: [4, 25, 150][random.below(3) as usize],
            look: millis([20, 250], &mut random),
            purge_look: millis([20, 500], &mut random),
            kept,
            kept_bytes: [600, 1 << 30][random.below(2) as usize],
            batch: 1 + random.below(3),
        };
        let wal = WalOptions {
            segment_size: [2 << 10, 64 << 10][random.below(2) as usize],
            cache_max: [512, 64 << 10][random.below(2) as usize],
            ..WalOptions::default()
        };
        Self {
            seed,
            voters: [1, 3, 3, 3, 5][random.below(5) as usize],
            writers: 3,
            readers: 2,
            troubles,
            lasts: Duration::from_secs(6),
            setting: Setting {
                config,
                wal,
                growth,
                clock_drift_per_mille: [0, 20, 200][random.below(3) as usize],
                disk_delay_max: Duration::from_micros([100, 2000][random.below(2) as usize]),
                defect: Defect::None,
            },
        }
    }
}

/// What a run has seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Report {
    pub(super) summary: Summary,
    pub(super) counts: Counts,
}

/// Runs a plan.
///
/// # Errors
/// What did not hold, with the seed and how it came to that.
pub(super) fn simulate(plan: &Plan) -> Result<Report, String> {
    run(plan, |cluster| scenario(cluster, plan.clone()))
}

/// Runs `scenario` on a new cluster until it ends or something does not hold.
pub(super) fn run<F, Fut>(plan: &Plan, scenario: F) -> Result<Report, String>
where
    F: FnOnce(Cluster) -> Fut,
    Fut: Future<Output = Result<(), String>>,
{
    runtime::begin(plan.seed);
    let cluster = Cluster::new(plan.setting.clone());
    let ended = runtime::run(scenario(cluster.clone()), |process| {
        look(&cluster, process);
        let holds = cluster.observe(|it| it.violations().is_empty());
        if holds && runtime::panics().is_empty() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    let mut failures = runtime::panics();
    failures.extend(cluster.observe(|it| it.violations().to_vec()));
    failures.extend(ended.and_then(Result::err));
    let report = Report {
        summary: runtime::summary(),
        counts: cluster.observe(|it| it.counts),
    };
    let failure = (!failures.is_empty()).then(|| {
        format!(
            "RAFTSERVE_SIM_SEED={}, {report:?}, {plan:#?}\n{}\n{}",
            plan.seed,
            runtime::newest_lines(),
            failures.join("\n"),
        )
    });
    runtime::end();
    failure.map_or(Ok(report), Err)
}

/// After each step.
fn look(cluster: &Cluster, process: Process) {
    if let Some(failed) = cluster.look(process) {
        runtime::note(format_args!("the disk of peer {failed} has failed it"));
        cluster.observe(|it| it.counts.disk_errors += 1);
        nemesis::end_and_return(cluster, failed, End::PowerCut);
    }
}

/// Makes a cluster of `voters`, and waits until it has a leader.
pub(super) async fn found(cluster: &Cluster, voters: u64) -> Result<(), String> {
    let members = 1..=voters;
    for node in members.clone().map(NodeId) {
        cluster.add(node);
        cluster.start(node).await;
    }
    let first = cluster.running(NodeId(1)).ok_or("the first peer runs")?;
    let members: BTreeMap<_, _> = members
        .map(|node| (NodeId(node), PeerRecord::default()))
        .collect();
    let process = first.process;
    let founding = runtime::spawn_in(process, async move { first.raft.initialize(members).await });
    let founded = founding.await.map_err(|error| error.to_string())?;
    founded.map_err(|error| error.to_string())?;
    within(RECOVERY_MAX, "a leader", || cluster.leader().is_some()).await
}

/// Waits until `condition` holds.
pub(super) async fn within(
    longest: Duration,
    what: &str,
    mut condition: impl FnMut() -> bool,
) -> Result<(), String> {
    let until = runtime::now() + longest;
    while !condition() {
        if runtime::now() > until {
            return Err(format!(
                "no progress: {what} did not come within {longest:?}"
            ));
        }
        runtime::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

async fn scenario(cluster: Cluster, plan: Plan) -> Result<(), String> {
    found(&cluster, plan.voters).await?;
    let clients = Clients::new(cluster.clone());
    let mut busy = Vec::new();
    for writer in 0..plan.writers {
        busy.push(runtime::spawn_in(
            Process::WORLD,
            clients.clone().write(writer),
        ));
    }
    for _ in 0..plan.readers {
        let reading = clients.clone().read(plan.writers);
        busy.push(runtime::spawn_in(Process::WORLD, reading));
    }
    nemesis::run(cluster.clone(), plan.troubles, plan.lasts).await;
    heal(&cluster).await;
    clients.stop();
    for client in busy {
        let ended = runtime::within(RECOVERY_MAX, client).await;
        ended
            .ok_or("no progress: a client waits in vain")?
            .map_err(|error| error.to_string())?;
    }
    converge(&cluster).await?;
    clients.check_registers()?;
    let served = clients.write_and_read(plan.writers);
    let served = runtime::within(RECOVERY_MAX, served).await;
    served.ok_or("no progress: the healed cluster does not serve a write and a read")??;
    equal_states(&cluster).await
}

/// Ends all trouble, and brings every peer back.
pub(super) async fn heal(cluster: &Cluster) {
    runtime::note(format_args!("everything is healed"));
    // What was to end by itself has ended.
    runtime::sleep(nemesis::AWAY_MAX).await;
    nemesis::calm(cluster);
    cluster.change_weather(|weather| weather.cut.clear());
    for node in cluster.nodes() {
        cluster.slow_disk(node, false);
        cluster.mend_disk(node);
        cluster.start(node).await;
    }
}

/// Waits until one leader stays, and every member holds what it does: all that was ever committed.
pub(super) async fn converge(cluster: &Cluster) -> Result<(), String> {
    within(RECOVERY_MAX, "a leader", || cluster.leader().is_some()).await?;
    equal_states(cluster).await?;
    let term = |cluster: &Cluster| cluster.leader().map(|(node, it)| (node, it.term()));
    let before = term(cluster);
    runtime::sleep(Duration::from_secs(2)).await;
    let after = term(cluster);
    if before != after {
        return Err(format!(
            "elections go on without need: {before:?}, then {after:?}"
        ));
    }
    equal_states(cluster).await
}

/// Waits until every member has applied what the leader has, and compares all with the reference.
async fn equal_states(cluster: &Cluster) -> Result<(), String> {
    let members = || {
        let (_, leader) = cluster.leader()?;
        let (voters, learners) = leader.members();
        let members = voters.into_iter().chain(learners);
        let members: Option<Vec<_>> = members
            .map(|node| Some((node, cluster.running(node)?.reader)))
            .collect();
        let last = leader.reader.last();
        members.filter(|members| members.iter().all(|(_, reader)| reader.last() == last))
    };
    within(RECOVERY_MAX, "equal states", || members().is_some()).await?;
    for (node, reader) in members().into_iter().flatten() {
        let (last, state) = (reader.last(), reader.state());
        cluster.observe(|it| it.equals_reference(node, last, &state))?;
    }
    Ok(())
}
