//! A new version takes the old one's place, and never needs more room than it may.

use anyhow::ensure;
use jepsen_tests::wait;

use crate::stage::{SETTLE, ask, on_namespace, peers, ready, service};

/// How many replicas the service wants, and by how many more an update may have.
const WANTED: u32 = 3;
const SURGE: u32 = 1;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_has_one_pod_more_than_is_wanted_at_the_most_and_fails_no_request()
-> anyhow::Result<()> {
    on_namespace("update", async |namespace| {
        let cluster = peers(namespace, 1).await?;
        let first = service("web", WANTED);
        cluster.admin(0).apply(&first).await?;
        let before = ready(&cluster, WANTED as usize).await?;
        let watched = namespace.watch_pods("raftserve.io/service=web")?;
        // Another word is another secret, which no running pod can be given.
        let second = first.replace("hush", "other");
        cluster.admin(0).update("web", &second).await?;
        wait::until("the new version alone", SETTLE, async || {
            // Whichever version answers.
            let answered = ask(&cluster, 0).await;
            assert!(answered.is_ok(), "{answered:?}");
            let pods = namespace.pods("").await?;
            let ready = cluster.admin(0).replicas().await?;
            let new = ready
                .iter()
                .filter(|it| it.version == 2 && it.first_ready_at.is_some());
            ensure!(
                new.count() == WANTED as usize && pods.len() == WANTED as usize,
                "{ready:?}; {pods:?}"
            );
            Ok(())
        })
        .await?;
        let after = ready(&cluster, WANTED as usize).await?;
        ensure!(before.is_disjoint(&after), "{before:?}, {after:?}");
        let seen = watched.seen()?;
        ensure!(
            seen.most == (WANTED + SURGE) as usize,
            "{} at one time: {seen:?}",
            seen.most
        );
        ensure!(
            seen.pods.values().all(|pod| pod.restarts == 0),
            "restarted: {seen:?}"
        );
        cluster.pass();
        Ok(())
    })
    .await
}
