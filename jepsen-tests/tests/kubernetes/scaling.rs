//! `kubectl scale` and `helm upgrade`, up and down, under load: members follow, and nobody notices.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use jepsen_tests::wait;

use crate::served::Served;
use crate::stage::{PATIENCE, RELEASE, Release, on_release};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_come_and_go_with_the_statefulset_and_no_request_fails() -> anyhow::Result<()> {
    on_release("scale", &[], async |release| {
        let served = release.serve().await?;
        let load = release.load(served.requests(0)).await?;
        let settled = async |peers, voters, learners| {
            release.await_ready(peers).await?;
            release.await_members(voters, learners).await?;
            eprintln!("{peers} peers after {:?}", load.progress().elapsed);
            anyhow::Ok(())
        };
        release.upgrade(&["replicas=5"]).await?;
        settled(5, 5, 0).await?;
        let five = served.voters().await?;
        release.upgrade(&["replicas=3"]).await?;
        release.await_shrunk(5, 3).await?;
        settled(3, 3, 0).await?;
        let three = served.voters().await?;
        let kept: BTreeMap<_, _> = five.into_iter().take(3).collect();
        ensure!(three == kept, "{three:?} instead of {kept:?}");
        // Who leads is among those that go.
        served.lead(2).await?;
        for peers in [1, 3] {
            release.scale(peers).await?;
            settled(peers, peers, 0).await?;
        }
        // Whoever has a vote keeps it, also where that makes their number even.
        for peers in [5, 4] {
            release.scale(peers).await?;
            settled(peers, peers, 0).await?;
        }
        release.scale(1).await?;
        settled(1, 1, 0).await?;
        // Scaled by another tool, the number stays what it is.
        release.upgrade(&["replicas=3"]).await?;
        ensure!(release.wanted().await? == 1, "helm upgrade scaled");
        let notes = release.namespace.helm(&["get", "notes", RELEASE]).await?;
        ensure!(notes.contains("1 peer starts"), "{notes}");
        release.scale(3).await?;
        settled(3, 3, 0).await?;
        // Of four, the last stays a learner; it is removed like the others.
        release.scale(4).await?;
        settled(4, 3, 1).await?;
        for peers in [2, 3] {
            release.scale(peers).await?;
            settled(peers, peers, 0).await?;
        }
        while load.progress().done < release.kube.requests {
            for peers in [5, 3] {
                release.scale(peers).await?;
                settled(peers, peers, 0).await?;
            }
        }
        let tally = load.finish(release.kube.requests).await?;
        eprintln!("scaled: {}", tally.line());
        tally.all_good()?;
        served.finish(0).await
    })
    .await
}

impl Release {
    /// Waits until a peer that stays knows of `after` voters, of `before` until then: all that go leave at once.
    async fn await_shrunk(&self, before: usize, after: usize) -> anyhow::Result<()> {
        wait::until("fewer voters", PATIENCE, async || {
            let pods = self.pods().await?;
            let first = pods.first().context("no peer")?;
            let voters = self.metric(&first.name, "raft_voters").await?;
            // A panic, since a wait would only look again.
            assert!(
                voters == before as f64 || voters == after as f64,
                "{voters} voters on the way from {before} to {after}"
            );
            ensure!(voters == after as f64, "still {voters}");
            Ok(())
        })
        .await
    }
}

impl Served {
    /// Has the peer of an ordinal lead.
    async fn lead(&self, ordinal: usize) -> anyhow::Result<()> {
        let admin = self.admin().await?;
        let pod = format!("{RELEASE}-{ordinal}.");
        wait::until("the peer to lead", PATIENCE, async || {
            let members = admin.members().await?;
            let heir = members.iter().find(|it| it.peer_address.starts_with(&pod));
            let heir = heir.context("it is no member")?;
            admin.transfer_leader(heir.id).await?;
            Ok(())
        })
        .await
    }

    /// The addresses of all voters, which tell the ordinals of their pods, with their ids.
    async fn voters(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        let members = self.admin().await?.members().await?;
        let voters = members.into_iter().filter(|it| it.voter);
        Ok(voters.map(|it| (it.peer_address, it.id)).collect())
    }
}
