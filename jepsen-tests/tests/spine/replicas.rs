//! Replicas die.

use anyhow::ensure;
use jepsen_tests::admin::v1;
use jepsen_tests::cluster::Cluster;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_cannot_see_the_replicas_leaves_them_alone() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let (mut cluster, counters) = stage::three_peers().await?;
        let service = Service::new("web", 2, &counters);
        bring_up(&cluster, &service).await?;
        let before = cluster.settled(&service.name, SETTLE).await?;
        let leader = cluster.leader().await?;
        let blind = cluster.another(leader)?;
        cluster.peer_mut(blind).stop(SETTLE).await?;
        cluster.peer_mut(blind).setup.replica_root = cluster.path("elsewhere");
        cluster.restart(blind).await?;
        let id = cluster.node_id(blind)?.to_string();
        wait::until("leadership of the blind peer", SETTLE, async || {
            let moved = cluster
                .cli(leader)
                .run(&["cluster", "transfer-leader", &id])
                .await?;
            ensure!(moved.code == Some(0), "{moved:?}");
            ensure!(cluster.leader().await? == blind, "another one leads");
            Ok(())
        })
        .await?;
        // It has planned for every service once it has refused this one's replica.
        let late = Service::new("late", 1, &counters);
        cluster.admin(blind).apply(&late.yaml()).await?;
        wait::until("a refusal", SETTLE, async || {
            let replicas = cluster.admin(blind).replicas().await?;
            let refused = |it: &&v1::Replica| it.status() == v1::ReplicaStatus::FailedProvision;
            let refused = replicas.iter().find(refused);
            ensure!(
                refused.is_some_and(|it| it.service_name == late.name),
                "{replicas:?}"
            );
            Ok(())
        })
        .await?;
        let after = cluster.settled(&service.name, SETTLE).await?;
        ensure!(after == before, "{after:?} were {before:?}");
        let hindrance = cluster.cli(blind).run(&["check"]).await?;
        ensure!(hindrance.code != Some(0), "{hindrance:?}");
        ensure!(hindrance.stdout.contains("--replica-root"), "{hindrance:?}");
        counters.check_single_starts()?;
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_a_replica_that_starts_is_not_ready_yet_is_told_by_every_peer() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let cluster = Cluster::start().await?;
        let yaml = "name: web\nservice:\n  readiness_probe: /nowhere\n  replicas: 1\nresources:\n  \
                    ports: 8080\nrun: exec python3 -m http.server 8080\n";
        cluster.admin(0).apply(yaml).await?;
        wait::until("the reason", SETTLE, async || {
            for peer in 0..cluster.size() {
                let replicas = cluster.admin(peer).replicas().await?;
                let [replica] = replicas.as_slice() else {
                    anyhow::bail!("{replicas:?}");
                };
                ensure!(
                    replica.status() == v1::ReplicaStatus::Starting,
                    "{replica:?}"
                );
                ensure!(replica.reason.contains("404"), "{replica:?}");
            }
            Ok(())
        })
        .await?;
        cluster.pass();
        Ok(())
    })
    .await
}

/// How often the port is taken away: more often than a version may fail.
const LOST: u32 = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_port_another_process_took_is_made_again_at_another() -> anyhow::Result<()>
{
    stage::run(Share::Half, async {
        let cluster = Cluster::start().await?;
        let folder = cluster.path("ports");
        std::fs::create_dir(&folder)?;
        // Each waits until its port is taken, and ends as one does that cannot have it.
        let run = format!(
            "cd {}; n=$SKYPILOT_SERVE_REPLICA_ID; [ $n -gt {LOST} ] && exec python3 -m http.server $PORT; \
             echo $PORT > $n.new; mv $n.new $n; while [ ! -e $n.taken ]; do sleep 0.05; done; exit 1",
            folder.display()
        );
        let yaml = format!(
            "name: web\nservice:\n  readiness_probe: /\n  replicas: 1\nresources:\n  ports: 8080\nrun: '{run}'\n"
        );
        cluster.admin(0).apply(&yaml).await?;
        let mut holders = Vec::new();
        for number in 1..=LOST {
            let file = folder.join(number.to_string());
            let port = wait::until("the port of a replica", SETTLE, async || {
                Ok(std::fs::read_to_string(&file)?.trim().parse::<u16>()?)
            })
            .await?;
            holders.push(std::net::TcpListener::bind(("127.0.0.1", port))?);
            std::fs::write(folder.join(format!("{number}.taken")), "")?;
        }
        wait::until("a replica that has its port", SETTLE, async || {
            let replicas = cluster.admin(1).replicas().await?;
            let ready = replicas.iter().find(|it| it.status() == v1::ReplicaStatus::Ready);
            ensure!(ready.is_some_and(|it| it.id == LOST + 1), "{replicas:?}");
            let lost = replicas.iter().filter(|it| it.reason.contains("took its port"));
            ensure!(lost.count() > 0, "{replicas:?}");
            Ok(())
        })
        .await?;
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
