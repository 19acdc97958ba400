//! Peers are killed with SIGKILL, one, two or all three of them, again and again, under clients that write; and stand
//! still, have slow disks, disks that fail or are full, lose their volumes, and are away for so long that only a
//! snapshot brings them back. Their logs are cut so soon that every round meets snapshots, purges or a new segment.

mod plan;

use std::time::Duration;

use anyhow::{Context, ensure};
use jepsen_tests::cluster::{Cluster, PATIENCE};
use jepsen_tests::faulty_disk::{self, FaultyDisk};
use jepsen_tests::register::{self, Running, Workload};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;
use tokio::time::sleep;

use crate::failing_disk::with_faulty_disks;
use crate::growth;
use crate::members::{agreed, eager};
use crate::stage::{self, SOME, names};
use plan::{CHAPTER, DiskError, Fault, Plan, Role, plans};

/// How many rounds, instead of [`ROUNDS`].
const ROUNDS_VARIABLE: &str = "RAFTSERVE_KILL_ROUNDS";

/// Decides what happens to whom and when, and what clients ask, instead of a random number.
const SEED_VARIABLE: &str = "RAFTSERVE_KILL_SEED";

/// Rounds without a setting.
const ROUNDS: usize = 50;

/// The longest that a round may take on average. A few times what it takes on a busy machine.
const ROUND_TIME_MAX: Duration = Duration::from_secs(10);

#[expect(
    clippy::disallowed_methods,
    reason = "a test is told by its environment how long to go on, there being no command line of its own"
)]
fn setting(variable: &str) -> anyhow::Result<Option<u64>> {
    match std::env::var(variable) {
        Ok(text) => Ok(Some(
            text.parse().with_context(|| format!("{variable}={text}"))?,
        )),
        Err(_) => Ok(None),
    }
}

/// Who does not run after a fault.
#[derive(Default)]
struct Down {
    peers: Vec<usize>,
    /// The entry that a peer has only by a snapshot of another peer, if it was away for so long.
    lacking: Option<u64>,
}

impl From<Vec<usize>> for Down {
    fn from(peers: Vec<usize>) -> Self {
        Self {
            peers,
            lacking: None,
        }
    }
}

/// What rounds happen to.
struct Scene {
    cluster: Cluster,
    disks: Vec<FaultyDisk>,
}

impl Scene {
    async fn round(&mut self, running: &mut Running, plan: &Plan) -> anyhow::Result<()> {
        running.progress(SOME).await?;
        if let Fault::Wipe(_) = plan.fault {
            // Two volumes of three must be well when the third is lost.
            for peer in 0..self.cluster.size() {
                self.cluster.await_ready(peer).await?;
            }
        }
        let leader = self.cluster.leader().await?;
        sleep(plan.moment).await;
        let logs: Vec<usize> = (0..self.cluster.size())
            .map(|peer| self.cluster.peer(peer).log_text().len())
            .collect();
        let down = self.befall(running, leader, &plan.fault).await?;
        for peer in &down.peers {
            self.cluster.peer_mut(*peer).start()?;
        }
        let mut told = true;
        if let (Some(after), Some(again)) = (plan.again, down.peers.first()) {
            sleep(after).await;
            self.cluster.kill(*again)?;
            if let Some(lacking) = down.lacking {
                // Killed between a snapshot's last step and the line about it, it begins with the snapshot.
                let folder = &self.cluster.peer(*again).setup.data_dir;
                told = growth::newest_snapshot(folder)? < lacking;
            }
            self.cluster.peer_mut(*again).start()?;
        }
        match plan.fault {
            Fault::Away(role) => {
                let peer = self.with_role(role, leader);
                self.cluster.await_ready(peer).await?;
                if told {
                    growth::installed(&self.cluster, peer, logs[peer]).await?;
                }
            }
            Fault::Wipe(role) => {
                let peer = self.with_role(role, leader);
                self.cluster.await_ready(peer).await?;
                agreed(&self.cluster, &[0, 1, 2], &[]).await?;
            }
            Fault::Kill { .. }
            | Fault::Pause { .. }
            | Fault::SlowDisk { .. }
            | Fault::BrokenDisk { .. } => {}
        }
        if plan.awaited {
            for peer in down.peers {
                self.cluster.await_ready(peer).await?;
            }
        }
        Ok(())
    }

    fn with_role(&self, role: Role, leader: usize) -> usize {
        let after = match role {
            Role::Leader => 0,
            Role::Next => 1,
            Role::Last => 2,
        };
        (leader + after) % self.cluster.size()
    }

    /// Lets the fault happen. Returns who does not run any more.
    async fn befall(
        &mut self,
        running: &mut Running,
        leader: usize,
        fault: &Fault,
    ) -> anyhow::Result<Down> {
        match fault {
            Fault::Kill { victims, goes_on } => {
                let mut down = Vec::new();
                for (role, apart) in victims {
                    sleep(*apart).await;
                    let victim = self.with_role(*role, leader);
                    self.cluster.kill(victim)?;
                    down.push(victim);
                }
                if *goes_on {
                    running.progress(SOME).await?;
                }
                Ok(down.into())
            }
            Fault::Away(role) => {
                let victim = self.with_role(*role, leader);
                self.cluster.kill(victim)?;
                let lacking = growth::leaves_behind(&self.cluster, victim).await?;
                Ok(Down {
                    peers: vec![victim],
                    lacking: Some(lacking),
                })
            }
            Fault::Pause {
                victim,
                lasting,
                killed,
            } => {
                let victim = self.with_role(*victim, leader);
                self.cluster.peer(victim).signal(Signal::STOP)?;
                sleep(*lasting).await;
                if *killed {
                    self.cluster.kill(victim)?;
                    return Ok(vec![victim].into());
                }
                self.cluster.peer(victim).signal(Signal::CONT)?;
                Ok(Down::default())
            }
            Fault::SlowDisk {
                victim,
                delay,
                killed,
            } => {
                let victim = self.with_role(*victim, leader);
                let hits = self.disks[victim].hits()?;
                self.disks[victim].set(faulty_disk::Fault::SlowSync(*delay), 0)?;
                running.progress(2 * SOME).await?;
                ensure!(self.disks[victim].hits()? > hits, "the fault met nothing");
                if *killed {
                    self.cluster.kill(victim)?;
                }
                self.disks[victim].set(faulty_disk::Fault::None, 0)?;
                Ok(match killed {
                    true => vec![victim].into(),
                    false => Down::default(),
                })
            }
            Fault::BrokenDisk {
                victim,
                error,
                spared,
            } => {
                let victim = self.with_role(*victim, leader);
                self.breaks(victim, *error, *spared).await?;
                running.progress(SOME).await?;
                Ok(vec![victim].into())
            }
            Fault::Wipe(role) => {
                let victim = self.with_role(*role, leader);
                let volume = self.cluster.node_id(victim)?;
                self.cluster.kill(victim)?;
                let folder = &self.cluster.peer(victim).setup.data_dir;
                let aside = self.cluster.path(&format!("volume-of-{volume}"));
                std::fs::rename(folder, aside)?;
                Ok(vec![victim].into())
            }
        }
    }

    /// A peer whose disk fails ends by itself and says why.
    async fn breaks(&mut self, victim: usize, error: DiskError, spared: u32) -> anyhow::Result<()> {
        let disk = &self.disks[victim];
        let (hits, before) = (disk.hits()?, self.cluster.peer(victim).log_text().len());
        disk.set(error.fault(), spared)?;
        let status = self.cluster.peer_mut(victim).ended(PATIENCE).await?;
        disk.set(faulty_disk::Fault::None, 0)?;
        ensure!(disk.hits()? > hits, "the fault met nothing");
        let log = self.cluster.peer(victim).log_text().split_off(before);
        let last = log.lines().last().unwrap_or_default();
        self.cluster
            .note(&format!("peer {victim} ended with {status}: {last}"));
        ensure!(
            status.code() == Some(1),
            "peer {victim} ended with {status}"
        );
        ensure!(last.contains(error.told()), "nothing of it: {last}");
        Ok(())
    }
}

/// Rounds with clients of their own, and a check of all that they saw. Returns it.
async fn chapter(
    scene: &mut Scene,
    first: usize,
    plans: &[Plan],
    seed: u64,
) -> anyhow::Result<Vec<jepsen_tests::history::Operation>> {
    let admins = stage::admins(&scene.cluster);
    let workload = Workload::new(admins.clone(), seed, &format!("{first}/"));
    let mut running = workload.start(&names(first));
    for (number, plan) in (first..).zip(plans) {
        scene.cluster.note(&format!("round {number}: {plan:?}"));
        running.use_registers(&names(number));
        let done = scene.round(&mut running, plan).await;
        done.with_context(|| format!("round {number}: {plan:?}"))?;
    }
    for peer in 0..scene.cluster.size() {
        scene.cluster.await_ready(peer).await?;
    }
    running.progress(SOME).await?;
    growth::everywhere(&scene.cluster).await?;
    let seen = running.stop().await?;
    let (calls, counted) = (seen.operations.len(), seen.counted.len());
    scene.cluster.note(&format!(
        "{calls} calls and {counted} counted writes to check"
    ));
    ensure!(counted > 0, "no counted write");
    register::check(seen, &admins).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_is_lost_or_done_twice_however_peers_are_killed() -> anyhow::Result<()> {
    let rounds = setting(ROUNDS_VARIABLE)?.map_or(Ok(ROUNDS), usize::try_from)?;
    let seed = setting(SEED_VARIABLE)?.unwrap_or_else(rand::random);
    eprintln!("{rounds} rounds with {SEED_VARIABLE}={seed}");
    let limit = stage::TEST_TIME_MAX + ROUND_TIME_MAX * u32::try_from(rounds)?;
    stage::run(limit, async {
        let mut options = eager(3);
        options.flags.extend(growth::flags());
        let (cluster, disks) = with_faulty_disks(&options)?;
        let mut scene = Scene { cluster, disks };
        scene.cluster.restart_all().await?;
        let mut random = StdRng::seed_from_u64(seed);
        let plans = plans(seed, rounds);
        let mut seen = Vec::new();
        for (first, plans) in (0..).step_by(CHAPTER).zip(plans.chunks(CHAPTER)) {
            seen.extend(chapter(&mut scene, first, plans, random.random()).await?);
        }
        // Nothing but disks holds it now: snapshots, and what of the logs is left.
        scene.cluster.kill_all()?;
        scene.cluster.restart_all().await?;
        // What was written long ago is there too.
        let keys: std::collections::BTreeSet<String> =
            seen.iter().map(|it| it.key.clone()).collect();
        let keys: Vec<String> = keys.into_iter().collect();
        seen.extend(register::read_all(&stage::admins(&scene.cluster), &keys).await?);
        register::check_operations(&seen)?;
        stage::agree(&scene.cluster).await?;
        scene.cluster.note(&format!(
            "{rounds} rounds, {} calls: all is well",
            seen.len()
        ));
        scene.cluster.pass();
        Ok(())
    })
    .await
    .with_context(|| format!("again with {SEED_VARIABLE}={seed} {ROUNDS_VARIABLE}={rounds}"))
}
