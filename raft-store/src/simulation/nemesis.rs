//! What goes wrong, and when: drawn from the seed.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::ChangeMembers;
use raftserve_model::NodeId;

use super::cluster::{Cluster, End, Running};
use super::growth;
use super::runtime::{self, Process};
use crate::disk::simulated::Random;
use crate::raft::PeerRecord;

/// Between one thing that goes wrong and the next.
const PAUSE_MAX: Duration = Duration::from_millis(1200);

/// How long a peer stays away, and a fault lasts, at most.
pub(super) const AWAY_MAX: Duration = Duration::from_millis(2500);

/// Ids are never used again, so that there is an end to replacing peers.
const PEERS_MAX: u64 = 7;

/// What may go wrong in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    Kill,
    PowerCut,
    /// All peers lose their power at once.
    Blackout,
    BrokenDisk,
    SlowDisk,
    /// The peers are in two groups that cannot reach each other.
    Partition,
    /// One link carries nothing in one direction.
    OneWay,
    /// Messages are late, lost and doubled.
    Storm,
    TransferLeader,
    Membership,
    /// A peer takes a snapshot that is not due.
    Snapshot,
    /// A peer looks out of turn what may be purged.
    Purge,
}

impl Trouble {
    pub(super) const ALL: [Self; 12] = [
        Self::Kill,
        Self::PowerCut,
        Self::Blackout,
        Self::BrokenDisk,
        Self::SlowDisk,
        Self::Partition,
        Self::OneWay,
        Self::Storm,
        Self::TransferLeader,
        Self::Membership,
        Self::Snapshot,
        Self::Purge,
    ];
}

fn one_of<T: Copy>(of: &[T]) -> Option<T> {
    let at = |random: &mut Random| random.below(of.len() as u64) as usize;
    (!of.is_empty()).then(|| of[runtime::draw(at)])
}

/// Makes trouble until `until`, counted from the beginning of the world.
pub(super) async fn run(cluster: Cluster, troubles: Vec<Trouble>, until: Duration) {
    while runtime::now() < until {
        runtime::sleep(runtime::below(PAUSE_MAX)).await;
        let Some(trouble) = one_of(&troubles) else {
            return;
        };
        runtime::note(format_args!("trouble: {trouble:?}"));
        make(&cluster, trouble);
    }
}

fn take_snapshot(cluster: &Cluster, node: NodeId) {
    if let Some(running) = cluster.running(node) {
        runtime::spawn_in(running.process, async move {
            let _ = running.raft.trigger().snapshot().await;
        });
    }
}

fn make(cluster: &Cluster, trouble: Trouble) {
    let nodes = cluster.nodes();
    let Some(node) = one_of(&nodes) else { return };
    match trouble {
        Trouble::Kill => end_and_return(cluster, node, End::Kill),
        Trouble::PowerCut => end_and_return(cluster, node, End::PowerCut),
        Trouble::Blackout => {
            for node in nodes {
                end_and_return(cluster, node, End::PowerCut);
            }
        }
        // The peer ends when it notices; see [`Cluster::look`].
        Trouble::BrokenDisk => cluster.break_disk(node),
        Trouble::SlowDisk => {
            cluster.slow_disk(node, true);
            later(cluster, move |cluster| cluster.slow_disk(node, false));
        }
        Trouble::Partition => partition(cluster, &nodes),
        Trouble::OneWay => {
            if let Some(other) = one_of(&nodes) {
                cut(cluster, BTreeSet::from([(node, other)]));
            }
        }
        Trouble::Storm => storm(cluster),
        Trouble::TransferLeader => {
            // To other voters alone, as the product does: openraft's leader takes no more writes until somebody else leads,
            // and nobody else ever does if its target may not.
            let may_lead = |(leader, it): &(NodeId, Running)| {
                *leader != node && it.members().0.contains(&node)
            };
            if let Some((_, leader)) = cluster.leader().filter(may_lead) {
                let process = leader.process;
                runtime::spawn_in(process, async move {
                    // It may fail for many reasons, and nothing may come of that.
                    let _ = leader.raft.trigger().transfer_leader(node).await;
                });
            }
        }
        Trouble::Membership => change_members(cluster),
        Trouble::Snapshot => take_snapshot(cluster, node),
        Trouble::Purge => {
            if let Some(running) = cluster.running(node) {
                runtime::spawn_in(
                    running.process,
                    async move { growth::purge(&running).await },
                );
            }
        }
    }
}

fn later(cluster: &Cluster, act: impl FnOnce(&Cluster) + Send + 'static) {
    let cluster = cluster.clone();
    runtime::spawn_in(Process::WORLD, async move {
        runtime::sleep(runtime::below(AWAY_MAX)).await;
        act(&cluster);
    });
}

/// Ends a peer; it comes back some time later.
pub(super) fn end_and_return(cluster: &Cluster, node: NodeId, end: End) {
    if cluster.stop(node, end) {
        cluster.observe(|it| match end {
            End::Kill => it.counts.kills += 1,
            End::PowerCut => it.counts.power_cuts += 1,
        });
    }
    let cluster = cluster.clone();
    runtime::spawn_in(Process::WORLD, async move {
        runtime::sleep(runtime::below(AWAY_MAX)).await;
        cluster.start(node).await;
    });
}

fn cut(cluster: &Cluster, links: BTreeSet<(NodeId, NodeId)>) {
    cluster.change_weather(|weather| weather.cut.extend(&links));
    later(cluster, move |cluster| {
        cluster.change_weather(|weather| weather.cut.retain(|link| !links.contains(link)));
    });
}

fn partition(cluster: &Cluster, nodes: &[NodeId]) {
    let (mut here, mut there) = (Vec::new(), Vec::new());
    for node in nodes {
        let side = if runtime::chance(500) {
            &mut here
        } else {
            &mut there
        };
        side.push(*node);
    }
    let links = here
        .iter()
        .flat_map(|a| there.iter().flat_map(|b| [(*a, *b), (*b, *a)]));
    cut(cluster, links.collect());
}

fn storm(cluster: &Cluster) {
    let worse = |random: &mut Random| (random.below(300), random.below(300), random.below(150));
    let (loss, doubled, delay_ms) = runtime::draw(worse);
    cluster.change_weather(|weather| {
        weather.loss_per_mille = loss;
        weather.doubled_per_mille = doubled;
        weather.delay_max = Duration::from_millis(1 + delay_ms);
    });
    later(cluster, calm);
}

/// The network as it usually is; links that are cut stay so.
pub(super) fn calm(cluster: &Cluster) {
    cluster.change_weather(|weather| {
        let cut = std::mem::take(&mut weather.cut);
        *weather = super::network::Weather {
            cut,
            ..Default::default()
        };
    });
}

/// A step of a peer's life cycle: it joins as a learner, becomes a voter, in place of another or beside
/// them, or leaves.
fn change_members(cluster: &Cluster) {
    let Some((me, leader)) = cluster.leader() else {
        return;
    };
    let (voters, learners) = leader.members();
    let fresh = NodeId(cluster.nodes().len() as u64 + 1);
    let process = leader.process;
    let cluster = cluster.clone();
    if let Some(learner) = one_of(&learners) {
        let mut after: BTreeSet<NodeId> = voters.iter().copied().collect();
        after.insert(learner);
        let gone = one_of(&voters).filter(|gone| *gone != me && voters.len() >= 3);
        let gone = gone.filter(|_| voters.len() >= 5 || runtime::chance(600));
        if let Some(gone) = gone {
            after.remove(&gone);
        }
        runtime::spawn_in(process, async move {
            let changed = leader.raft.change_membership(after, false).await;
            if changed.is_ok()
                && let Some(gone) = gone
            {
                runtime::note(format_args!("peer {gone} is removed"));
                runtime::spawn_in(Process::WORLD, async move { cluster.retire(gone) });
            }
        });
    } else if fresh.0 <= PEERS_MAX {
        cluster.add(fresh);
        runtime::spawn_in(Process::WORLD, async move {
            cluster.start(fresh).await;
            runtime::spawn_in(process, async move {
                let _ = leader
                    .raft
                    .add_learner(fresh, PeerRecord::default(), false)
                    .await;
            });
        });
    } else if voters.len() > 3
        && let Some(gone) = one_of(&voters).filter(|gone| *gone != me)
    {
        runtime::spawn_in(process, async move {
            let removal = ChangeMembers::RemoveVoters(BTreeSet::from([gone]));
            if leader.raft.change_membership(removal, false).await.is_ok() {
                runtime::note(format_args!("peer {gone} is removed"));
                runtime::spawn_in(Process::WORLD, async move { cluster.retire(gone) });
            }
        });
    }
}
