//! Of the volumes of a lost cluster some are lost, too.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use jepsen_tests::wait;
use serde_json::{Value, json};

use crate::stage::{PATIENCE, Walk, walk_abreast_as};

/// The class of the volumes that come back, which is theirs alone: those of both cases are asked for by name or by label.
const CLASS: &str = "raftserve-test-fewer-volumes";

/// Chooses the volumes that one case comes back with.
const LABEL: &str = "raftserve-test-volumes";

impl Walk {
    /// A volume with nothing on it, of the class and size that the example's peers have.
    async fn empty_volume(&self, name: &str) -> anyhow::Result<String> {
        let claim = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": name },
            "spec": {
                "storageClassName": "standard",
                "accessModes": ["ReadWriteOnce"],
                "resources": { "requests": { "storage": "1Gi" } },
            },
        });
        self.namespace.apply(&claim).await?;
        let volume = wait::until("an empty volume", PATIENCE, async || {
            let bound = ["get", "pvc", name, "-o", "jsonpath={.spec.volumeName}"];
            let volume = self.kubectl(&bound).await?;
            ensure!(!volume.is_empty(), "none yet");
            Ok(volume)
        })
        .await?;
        self.reclaim(&volume, "Retain").await?;
        self.kubectl(&["delete", "pvc", name, "--wait"]).await?;
        self.unclaim(&volume, CLASS).await?;
        Ok(volume)
    }

    /// The ids of all members, and whether each has a vote.
    async fn members(&self) -> anyhow::Result<BTreeMap<u64, bool>> {
        let shown = ["cluster", "members", "--output", "json"];
        let shown: Value = serde_json::from_str(&self.raftserve(&shown).await?)?;
        let members = shown["members"].as_array().context("no members")?;
        let member = |it: &Value| Some((it["id"].as_u64()?, it["role"] != "learner"));
        let members: Option<BTreeMap<_, _>> = members.iter().map(member).collect();
        members.with_context(|| shown.to_string())
    }

    /// Waits until this limit is read, which an election may delay.
    async fn await_limit(&self, wanted: &str) -> anyhow::Result<()> {
        wait::until("the limit", PATIENCE, async || {
            let kept = self.raftserve(&["kv", "get", "config/limit"]).await?;
            ensure!(kept.contains(wanted), "{kept}");
            Ok(())
        })
        .await
    }

    /// Waits until a pod's container has told, in this run or the one before, what is to be done.
    async fn await_advice(&self, pod: &str) -> anyhow::Result<()> {
        wait::until("what to do instead", PATIENCE, async || {
            let now = self.kubectl(&["logs", pod]).await;
            let before = self.kubectl(&["logs", pod, "--previous"]).await;
            let said = before.unwrap_or_default() + &now.unwrap_or_default();
            ensure!(said.contains("cluster recover"), "{pod}: {said}");
            Ok(())
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_volume_among_three_makes_a_new_peer_in_place_of_the_lost_one()
-> anyhow::Result<()> {
    walk_abreast_as("lost-volumes", "lost-cluster", async |lost| {
        if !lost.namespace.kube().disruptive {
            eprintln!("skipped: volumes are not to be deleted here");
            return Ok(());
        }
        lost.install(3, &[]).await?;
        let service = lost.file("chat.yaml")?;
        lost.raftserve(&["up", &service, "-y", "--async"]).await?;
        lost.put("config/limit", "20").await?;
        let before = lost.members().await?;
        let mut volumes = lost.volumes().await?;
        volumes.remove(0);
        lost.lose_all_but(&volumes, CLASS).await?;

        // Whichever peer finds whichever volume.
        let found = lost
            .elsewhere("lost-cluster", "walk-found-volumes", "raftserve-fewer")
            .await?;
        volumes.push(found.empty_volume("first").await?);
        let mark = format!("{LABEL}={}", volumes[0]);
        for volume in &volumes {
            found.kubectl(&["label", "pv", volume, &mark]).await?;
        }
        let selector = format!("storage.selector.{mark}");
        let class = format!("storage.storageClassName={CLASS}");
        found.install(3, &[&class, &selector]).await?;
        let there: BTreeSet<String> = found.volumes().await?.into_iter().collect();
        let wanted: BTreeSet<String> = volumes.iter().cloned().collect();
        ensure!(there == wanted, "{there:?} instead of {wanted:?}");
        found.await_limit("20").await?;
        wait::until("three voters", PATIENCE, async || {
            let after = found.members().await?;
            let old = after.keys().filter(|id| before.contains_key(id)).count();
            ensure!(
                after.len() == 3 && old == 2 && after.values().all(|votes| *votes),
                "{after:?} after {before:?}"
            );
            Ok(())
        })
        .await?;
        found.await_chat().await?;
        found.await_limit("20").await?;

        found.give_back(&volumes).await?;
        found.namespace.delete().await?;
        lost.come_back().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_empty_volumes_no_peer_serves_and_each_says_what_to_do() -> anyhow::Result<()> {
    walk_abreast_as("lost-majority", "lost-cluster", async |lost| {
        if !lost.namespace.kube().disruptive {
            eprintln!("skipped: volumes are not to be deleted here");
            return Ok(());
        }
        lost.install(3, &[]).await?;
        let volumes = lost.volumes().await?;
        lost.lose_all_but(&volumes[..1], CLASS).await?;
        let left = lost
            .elsewhere("lost-cluster", "walk-left-volume", "raftserve-left")
            .await?;
        let named = [
            volumes[0].clone(),
            left.empty_volume("first").await?,
            left.empty_volume("second").await?,
        ];
        let class = format!("storage.storageClassName={CLASS}");
        let same = format!("storage.volumeNames={{{}}}", named.join(","));
        left.helm("install", &[&class, &same]).await?;
        // At once: a kubelet may throw away the words of one that has ended while the other is still silent.
        tokio::try_join!(
            left.await_advice("raftserve-left-1"),
            left.await_advice("raftserve-left-2")
        )?;
        let peers = left.peers().await?;
        ensure!(
            peers.len() == 3 && peers.iter().all(|pod| !pod.ready),
            "{peers:?}"
        );

        left.give_back(&named).await?;
        left.namespace.delete().await?;
        lost.come_back().await
    })
    .await
}
