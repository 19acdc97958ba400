//! A thousand sessions, through all three peers at once, through everything that happens to peers.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use jepsen_tests::check::{
    clean, every_request_answered, no_failure_through_live_peers, one_replica_per_key,
};
use jepsen_tests::cluster::{Cluster, PATIENCE};
use jepsen_tests::history::{Request, summary};
use jepsen_tests::http::Connection;
use jepsen_tests::load::{Load, Running, Spread};
use jepsen_tests::processes;
use jepsen_tests::program::{REPLICA_HEADER, SESSION_HEADER, Service};
use jepsen_tests::wait;
use rustix::process::Signal;

use crate::stage::{self, SETTLE, Share, bring_up};

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

/// A session's next request waits until the log has given it another replica, and is answered there: by every peer, and
/// by the same one from then on. None is refused, and none is sent to a replica that it is not bound to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_whose_replica_is_gone_goes_on_with_another() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let (cluster, counters) = stage::three_peers().await?;
        let service = Service::new("chat", 2, &counters).with_sessions();
        bring_up(&cluster, &service).await?;
        for round in 0..3 {
            let key = format!("round-{round}");
            let ask = async |peer: usize| {
                let mut connection = Connection::new(cluster.targets()[peer].address);
                let reply = connection.get("/chat/", &[(SESSION_HEADER, &key)]).await;
                let reply = reply.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
                ensure!(reply.status == 200, "peer {peer}: {reply:?}");
                reply.header(REPLICA_HEADER).context("a replica's number")
            };
            let first = ask(0).await?;
            let before = cluster.settled(&service.name, SETTLE).await?;
            let bound = |name: &&String| name.rsplit('-').next() == Some(first.as_str());
            let victim = before.keys().find(bound).context("it runs")?;
            let victim = before[victim];
            processes::signal(victim.pid, Signal::KILL)?;
            // What it had begun to read would be lost with it; what comes once its sockets are closed must not be. That
            // is so when the last of its threads has ended, and only then can it be reaped.
            wait::until("its end", SETTLE, async || {
                let gone = !Path::new(&format!("/proc/{}", victim.pid)).exists();
                ensure!(gone, "{victim:?}");
                Ok(())
            })
            .await?;
            let next = ask(round).await?;
            ensure!(next != first, "replica {first} is gone");
            for peer in 0..3 {
                let same = ask(peer).await?;
                ensure!(
                    same == next,
                    "peer {peer} sends {key} to {same}, not {next}"
                );
            }
            cluster.settled(&service.name, SETTLE).await?;
        }
        cluster.pass();
        Ok(())
    })
    .await
}
