//! Pods and leaders die.

use std::collections::BTreeMap;

use anyhow::ensure;
use jepsen_tests::cluster::Cluster;
use jepsen_tests::kube::Namespace;
use jepsen_tests::{http, wait};

use crate::stage::{SECRET, SETTLE, any_admin, ask, on_namespace, peers, ready, service, uids};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_pod_is_replaced_and_its_replacement_serves() -> anyhow::Result<()> {
    on_namespace("killed", async |namespace| {
        let cluster = peers(namespace, 1).await?;
        cluster.admin(0).apply(&service("web", 2)).await?;
        let before = ready(&cluster, 2).await?;
        let reply = http::get(cluster.peer(0).setup.ports.proxy, "/").await;
        let reply = reply.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        ensure!(
            reply.header("x-word").as_deref() == Some(SECRET),
            "secrets reach it"
        );
        let victim = uids(namespace).await?.into_iter().next().expect("two pods");
        let kill = ["delete", "pod", &victim.0, "--grace-period=0", "--force"];
        namespace.kubectl(&kill).await?;
        let after = wait::until("a replacement", SETTLE, async || {
            let after = ready(&cluster, 2).await?;
            ensure!(after != before, "still {before:?}");
            Ok(after)
        })
        .await?;
        let new = after
            .difference(&before)
            .next()
            .expect("one is new")
            .to_string();
        wait::until("its answer", SETTLE, async || {
            let answer = ask(&cluster, 0).await?;
            ensure!(answer == new, "{answer}");
            Ok(())
        })
        .await?;
        let left = uids(namespace).await?;
        ensure!(left.len() == 2 && !left.contains(&victim), "{left:?}");
        ensure_hushed(namespace, &cluster).await?;
        cluster.pass();
        Ok(())
    })
    .await
}

/// Looks for the service's secret wherever somebody without a right to it may look.
async fn ensure_hushed(namespace: &Namespace, cluster: &Cluster) -> anyhow::Result<()> {
    let mut said = vec![
        ("the log", cluster.peer(0).log_text()),
        (
            "Events",
            namespace.kubectl(&["get", "events", "-o", "yaml"]).await?,
        ),
        (
            "pods",
            namespace.kubectl(&["get", "pods", "-o", "yaml"]).await?,
        ),
    ];
    let looks: [(&str, &[&str]); 3] = [
        ("status", &["status", "web", "--verbose"]),
        (
            "status in full",
            &["status", "web", "--verbose", "--output", "yaml"],
        ),
        ("events", &["events", "web", "--no-follow"]),
    ];
    for (what, look) in looks {
        let ran = cluster.cli(0).run(look).await?;
        ensure!(ran.code == Some(0), "{ran:?}");
        said.push((what, ran.stdout + &ran.stderr));
    }
    for (what, text) in said {
        // The log names services by their ids.
        let told = text.contains("web") || text.contains("ServiceId(");
        ensure!(told, "nothing of the service in {what}: {text}");
        ensure!(!text.contains(SECRET), "the secret is in {what}: {text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_killed_while_it_launches_leaves_each_pod_made_once() -> anyhow::Result<()> {
    on_namespace("launch", async |namespace| {
        let mut cluster = peers(namespace, 3).await?;
        let leader = cluster.leader().await?;
        cluster.admin(leader).apply(&service("web", 4)).await?;
        wait::until("a first pod", SETTLE, async || {
            ensure!(!uids(namespace).await?.is_empty(), "none yet");
            Ok(())
        })
        .await?;
        cluster.kill(leader)?;
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        wait::until("four ready replicas", SETTLE, async || {
            let now = uids(namespace).await?;
            ensure_once(&mut seen, now.iter())?;
            let ready = any_admin(&cluster)?.replicas().await?;
            let count = ready
                .iter()
                .filter(|it| it.first_ready_at.is_some())
                .count();
            ensure!(count == 4, "{ready:?}");
            Ok(())
        })
        .await?;
        let now = uids(namespace).await?;
        ensure_once(&mut seen, now.iter())?;
        ensure!(now.len() == 4 && seen.len() == 4, "{now:?} of {seen:?}");
        ensure!(
            ready(&cluster, 4).await? == (1..=4).collect(),
            "others than the first four"
        );

        // All peers gone and back: the same pods, adopted.
        cluster.restart(leader).await?;
        cluster.kill_all()?;
        cluster.restart_all().await?;
        ready(&cluster, 4).await?;
        ensure!(uids(namespace).await? == now, "adopted, not made anew");
        cluster.pass();
        Ok(())
    })
    .await
}

/// No name is ever another pod than it was. A panic, since a wait would only look again.
fn ensure_once<'a>(
    seen: &mut BTreeMap<String, String>,
    now: impl Iterator<Item = &'a (String, String)>,
) -> anyhow::Result<()> {
    for (name, uid) in now {
        let before = seen.entry(name.clone()).or_insert_with(|| uid.clone());
        assert_eq!(before, uid, "{name} was made twice");
    }
    Ok(())
}
