//! Who the members are, as every peer says, and what a peer says that is one no more.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use jepsen_tests::admin::v1::Member;
use jepsen_tests::cluster::{Cluster, Options, PATIENCE};
use jepsen_tests::wait;

/// How long members may take to change: a removal waits five seconds for leases, and several may be due.
pub(crate) const CHANGE: Duration = Duration::from_secs(40);

/// So many peers, who give a learner its vote after a second.
pub(crate) fn eager(peers: usize) -> Options {
    Options {
        peers,
        flags: ["--promote-after", "1"].map(str::to_owned).into(),
        ..Options::default()
    }
}

fn ids(cluster: &Cluster, peers: &[usize]) -> anyhow::Result<BTreeSet<u64>> {
    peers.iter().map(|peer| cluster.node_id(*peer)).collect()
}

/// Waits until all of them say that `voters` vote, that `learners` do not, and that nobody else is a member.
pub(crate) async fn agreed(
    cluster: &Cluster,
    voters: &[usize],
    learners: &[usize],
) -> anyhow::Result<()> {
    let wanted = (ids(cluster, voters)?, ids(cluster, learners)?);
    wait::until(
        &format!("voters and learners {wanted:?}"),
        CHANGE,
        async || {
            for asked in voters.iter().chain(learners) {
                let members = cluster.admin(*asked).members().await?;
                let (voting, learning): (Vec<_>, Vec<_>) =
                    members.iter().partition(|member| member.voter);
                let ids = |members: Vec<&_>| members.into_iter().map(|it: &Member| it.id).collect();
                let found = (ids(voting), ids(learning));
                ensure!(found == wanted, "peer {asked} says {found:?}");
            }
            Ok(())
        },
    )
    .await?;
    let shown = cluster.cli(voters[0]).json(&["cluster", "members"]).await?;
    let shown = shown["members"].as_array().context("a list of members")?;
    let voting = shown.iter().filter(|member| member["role"] != "learner");
    let voting: Option<BTreeSet<u64>> = voting.map(|member| member["id"].as_u64()).collect();
    ensure!(voting.as_ref() == Some(&wanted.0), "{shown:?}");
    cluster.note(&format!("voters and learners: {wanted:?}"));
    Ok(())
}

/// By which whoever keeps peers running is told that there is no use in starting this one again.
const REMOVED_EXIT: i32 = 6;

/// Starts a peer that may not come back, and waits until it has ended and said so.
pub(crate) async fn refused(cluster: &mut Cluster, peer: usize, id: u64) -> anyhow::Result<()> {
    let before = cluster.peer(peer).log_text().len();
    cluster.peer_mut(peer).start()?;
    told_to_go(cluster, peer, id, before).await
}

/// Waits until a peer has ended by itself, and checks what it has said after so many bytes of its log.
pub(crate) async fn told_to_go(
    cluster: &mut Cluster,
    peer: usize,
    id: u64,
    before: usize,
) -> anyhow::Result<()> {
    let status = cluster.peer_mut(peer).ended(PATIENCE).await?;
    ensure!(
        status.code() == Some(REMOVED_EXIT),
        "peer {peer} ended with {status}"
    );
    let log = cluster.peer(peer).log_text().split_off(before);
    let last = log.lines().last().unwrap_or_default();
    cluster.note(&format!("peer {peer} ended: {last}"));
    let folder = cluster.peer(peer).setup.data_dir.clone();
    let folder = folder.to_str().context("a path in UTF-8")?;
    for word in [
        &format!("peer {id} ") as &str,
        "removed",
        &format!("empty {folder} and start it again"),
        "new id",
    ] {
        ensure!(last.contains(word), "nothing of {word:?}: {last}");
    }
    Ok(())
}
