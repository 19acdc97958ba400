//! A thousand sessions, through all three peers at once, through everything that happens to peers.

use std::time::Duration;

use anyhow::ensure;
use jepsen_tests::check::{
    clean, every_request_answered, no_failure_through_live_peers, one_replica_per_key,
};
use jepsen_tests::cluster::{Cluster, PATIENCE};
use jepsen_tests::history::{Request, summary};
use jepsen_tests::load::{Load, Running, Spread};
use jepsen_tests::program::Service;
use jepsen_tests::wait;

use crate::stage::{self, Share, bring_up};

/// Session keys.
const KEYS: usize = 1_000;

/// Steps that are to be seen between two faults.
const STEPS_SEEN: usize = 150;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_a_thousand_sessions_stays_on_one_replica_whatever_dies() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let (mut cluster, counters) = stage::three_peers().await?;
        let service = Service::new("chat", 3, &counters).with_sessions();
        bring_up(&cluster, &service).await?;
        let keys = stage::keys(KEYS);
        let load = Load {
            keys: keys.clone().into(),
            spread: Spread::AtOnce,
            workers: 3,
            pace: Duration::from_millis(10),
            ..stage::load(&cluster, &service)
        };
        // Most keys are first sent while peers come and go.
        let running = load.clone().start();
        disturb(&mut cluster, &running).await?;
        let mut history = running.stop().await?;
        let calm = Load {
            steps: Some(KEYS),
            workers: 6,
            pace: Duration::ZERO,
            ..load
        };
        let last = calm.run().await?;
        clean("after all of it", &every_request_answered(&last))?;
        history.extend(last);
        eprintln!("{}", summary(&history));

        clean(
            "replicas' count",
            &one_replica_per_key(&keys, &counters.sightings()?),
        )?;
        clean(
            "clients' count",
            &one_replica_per_key(&keys, &answered(&history)),
        )?;
        let outages = cluster.outages();
        clean(
            "live peers",
            &no_failure_through_live_peers(&history, outages),
        )?;
        let listed = cluster.admin(0).sessions(&service.name).await?;
        ensure!(listed.len() == KEYS, "{} sessions", listed.len());
        counters.check_single_starts()?;
        ensure!(counters.starts()?.len() == 3, "no replica was replaced");
        cluster.pass();
        Ok(())
    })
    .await
}

/// Loses the leader, a follower and all three, and hands leadership over, under load.
async fn disturb(cluster: &mut Cluster, running: &Running) -> anyhow::Result<()> {
    progress(running).await?;
    let leader = cluster.leader().await?;
    cluster.kill(leader)?;
    progress(running).await?;
    cluster.restart(leader).await?;
    progress(running).await?;

    let leader = cluster.leader().await?;
    let follower = cluster.another(leader)?;
    cluster.kill(follower)?;
    progress(running).await?;
    cluster.restart(follower).await?;

    let handed = cluster
        .cli(follower)
        .run(&["cluster", "transfer-leader"])
        .await?;
    ensure!(handed.code == Some(0), "{handed:?}");
    progress(running).await?;

    cluster.kill_all()?;
    cluster.restart_all().await?;
    progress(running).await
}

async fn progress(running: &Running) -> anyhow::Result<()> {
    let goal = running.done() + STEPS_SEEN;
    wait::until("requests", PATIENCE, async || {
        ensure!(running.done() >= goal, "{} of {goal}", running.done());
        Ok(())
    })
    .await
}

/// Which replicas answered each key, by what clients saw.
fn answered(history: &[Request]) -> jepsen_tests::check::Sightings {
    use jepsen_tests::history::Outcome;
    let mut seen = jepsen_tests::check::Sightings::new();
    for request in history {
        for attempt in &request.attempts {
            if let (
                Some(key),
                Outcome::Answered {
                    replica: Some(it), ..
                },
            ) = (&request.key, &attempt.outcome)
            {
                seen.entry(key.clone()).or_default().insert(it.clone());
            }
        }
    }
    seen
}
