//! The leader dies under load.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use jepsen_tests::check::{
    clean, every_request_answered, no_failure_through_live_peers, one_replica_per_key,
};
use jepsen_tests::cluster::{Cluster, PATIENCE};
use jepsen_tests::history::summary;
use jepsen_tests::load::{Running, Spread};
use jepsen_tests::program::Service;
use jepsen_tests::wait;

use crate::stage::{self, Share, bring_up};

/// Within this, writes succeed again. The usual time is far shorter, and is measured elsewhere.
const WRITES_AGAIN: Duration = Duration::from_secs(10);

/// Steps of each load that are to be seen after each fault, so that there is something to judge.
const STEPS_SEEN: usize = 200;

/// How often the leader is killed.
const ROUNDS: u64 = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_through_the_survivors_fails_when_the_leader_dies() -> anyhow::Result<()> {
    stage::run(Share::Whole, async {
        let (mut cluster, counters) = stage::three_peers().await?;
        let service = Service::new("web", 2, &counters).with_sessions();
        bring_up(&cluster, &service).await?;

        let mut free = stage::load(&cluster, &service);
        free.workers = 3;
        free.pace = Duration::from_millis(5);
        let keys = stage::keys(200);
        let mut bound = free.clone();
        bound.keys = keys.clone().into();
        bound.workers = 2;
        bound.spread = Spread::AtOnce;
        let loads = [free.start(), bound.start()];
        progress(&loads).await?;

        for round in 1..=ROUNDS {
            let leader = cluster.leader().await?;
            let survivor = cluster.another(leader)?;
            cluster.kill(leader)?;
            let killed = Instant::now();
            let yaml = service.clone().with_note(round).yaml();
            let admin = cluster.admin(survivor);
            let written = wait::until("a write", WRITES_AGAIN, async || {
                Ok(admin.update(&service.name, &yaml).await?)
            })
            .await?;
            eprintln!("writes succeed after {:?}", killed.elapsed());
            progress(&loads).await?;
            cluster.restart(leader).await?;
            caught_up(&cluster, leader, &service.name, written.version).await?;
            progress(&loads).await?;
        }

        let [free, bound] = loads;
        let mut history = free.stop().await?;
        history.extend(bound.stop().await?);
        eprintln!("{}", summary(&history));
        clean("requests", &every_request_answered(&history))?;
        let outages = cluster.outages();
        clean(
            "survivors",
            &no_failure_through_live_peers(&history, outages),
        )?;
        clean(
            "sessions",
            &one_replica_per_key(&keys, &counters.sightings()?),
        )?;
        counters.check_single_starts()?;
        cluster.pass();
        Ok(())
    })
    .await
}

/// Waits until each load has gone on for a while.
async fn progress(loads: &[Running]) -> anyhow::Result<()> {
    for load in loads {
        let goal = load.done() + STEPS_SEEN;
        wait::until("requests", PATIENCE, async || {
            ensure!(load.done() >= goal, "{} of {goal}", load.done());
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Waits until a peer that came back has everything: the leader says so, it says so, and it knows the
/// service's newest version without asking anybody.
async fn caught_up(cluster: &Cluster, peer: usize, name: &str, version: u32) -> anyhow::Result<()> {
    let own_id = cluster.node_id(peer)?;
    wait::until("the peer to catch up", PATIENCE, async || {
        let (leader, _) = cluster.leader_and_term().await?;
        let target = cluster.admin(leader).status().await?.applied_index;
        let members = cluster.admin(leader).members().await?;
        let member = members.iter().find(|it| it.id == own_id);
        let member = member.context("it is no member")?;
        ensure!(member.voter, "{member:?}");
        if leader != peer {
            let matched = member.matched_index.unwrap_or(0);
            ensure!(matched >= target, "{matched} of {target}: {member:?}");
        }
        let known = cluster.admin(peer).stale_service(name).await?;
        let known = known.context("it does not know the service")?;
        ensure!(known.version >= version, "it knows {known:?}");
        Ok(())
    })
    .await
}
