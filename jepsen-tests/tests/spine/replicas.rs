//! Replicas die.

use anyhow::ensure;
use jepsen_tests::processes::{self, Process};
use jepsen_tests::program::Service;
use jepsen_tests::wait;
use rustix::process::Signal;

use crate::stage::{self, SETTLE, Share, bring_up};

/// Who is killed along with a replica.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Program,
    ProgramAndLeader,
    Keeper,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_replica_is_replaced_by_whoever_leads_and_nothing_is_left_of_it()
-> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let (mut cluster, counters) = stage::three_peers().await?;
        let service = Service::new("web", 2, &counters);
        bring_up(&cluster, &service).await?;
        for fault in [Fault::Program, Fault::ProgramAndLeader, Fault::Keeper] {
            let before = cluster.settled(&service.name, SETTLE).await?;
            let (victim, process) = before.iter().next().expect("two replicas run");
            let leader = cluster.leader().await?;
            match fault {
                Fault::Program => processes::signal(process.pid, Signal::KILL)?,
                Fault::ProgramAndLeader => {
                    processes::signal(process.pid, Signal::KILL)?;
                    cluster.kill(leader)?;
                }
                Fault::Keeper => {
                    processes::signal(parent_of(*process)?, Signal::KILL)?;
                }
            }
            wait::until("the old one's end", SETTLE, async || {
                ensure!(
                    processes::alive(process.pid) != Some(*process),
                    "{process:?}"
                );
                Ok(())
            })
            .await?;
            let after = wait::until("the replacement", SETTLE, async || {
                let now = cluster.settled(&service.name, SETTLE).await?;
                ensure!(
                    !now.contains_key(victim),
                    "{fault:?}: {victim} is still there"
                );
                Ok(now)
            })
            .await?;
            ensure!(after.len() == 2, "{fault:?}: {after:?}");
            for (replica, process) in &after {
                let same = before.get(replica).is_none_or(|before| before == process);
                ensure!(same, "{fault:?}: {replica} is another process now");
            }
            if matches!(fault, Fault::ProgramAndLeader) {
                cluster.restart(leader).await?;
            }
        }
        counters.check_single_starts()?;
        cluster.pass();
        Ok(())
    })
    .await
}

/// The parent of a process: the keeper, for a replica's first.
fn parent_of(process: Process) -> anyhow::Result<i32> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid))?;
    let parent = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .and_then(|text| text.trim().parse().ok());
    anyhow::Context::context(parent, "a process has a parent")
}
