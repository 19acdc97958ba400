//! A leader is told to stop.

use std::time::Duration;

use anyhow::ensure;
use jepsen_tests::admin::Admin;
use jepsen_tests::cluster::{Cluster, Options, PATIENCE};
use jepsen_tests::wait;
use rustix::process::Signal;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::stage::{self, SOME, TEST_TIME_MAX};

/// How often.
const ROUNDS: usize = 3;

/// The election timing with the longest lease: nobody votes for so long after a leader's last word. A hand-over takes a
/// small part of it.
const PATIENT: (&str, Duration) = ("wan", Duration::from_secs(2));

/// Writes at one peer, each after the one before, until told to stop. The longest time from one acknowledgement to
/// the next.
async fn longest_gap(at: Admin, mut stop: oneshot::Receiver<()>) -> Duration {
    let mut longest = Duration::ZERO;
    let mut acknowledged = Instant::now();
    while stop.try_recv().is_err() {
        if at.put_key("steady", "1", None, None).await.is_ok() {
            longest = longest.max(acknowledged.elapsed());
            acknowledged = Instant::now();
        }
    }
    longest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_told_to_stop_hands_over_and_nobody_waits_for_an_election()
-> anyhow::Result<()> {
    stage::run(TEST_TIME_MAX, async {
        let (profile, lease) = PATIENT;
        let options = Options {
            profile: profile.to_owned(),
            ..Options::default()
        };
        let mut cluster = Cluster::start_with(options).await?;
        let mut running = stage::clients(&cluster);
        let mut gaps = Vec::new();
        for round in 1..=ROUNDS {
            running.progress(SOME).await?;
            let (leader, term) = cluster.leader_and_term().await?;
            let other = cluster.another(leader)?;
            cluster.note(&format!("peer {leader} is to stop in term {term}"));
            let (stop, stopped) = oneshot::channel();
            let writer = tokio::spawn(longest_gap(cluster.admin(other), stopped));
            ensure!(cluster.peer_mut(leader).stop(PATIENCE).await?.success());
            let (next, now) = cluster.leader_and_term().await?;
            running.progress(SOME).await?;
            ensure!(stop.send(()).is_ok(), "the writer has ended by itself");
            gaps.push(writer.await?);
            ensure!(
                now == term + 1,
                "peer {next} leads in term {now}, after {term}: an election was tried again"
            );
            let log = cluster.peer(leader).log_text();
            let handed = log.matches("leadership handed over").count();
            ensure!(handed >= 1 && !log.contains("an election will follow"));
            cluster.note(&format!("round {round}: {:?} without a write", gaps.last()));
            cluster.restart(leader).await?;
        }
        // Whatever else the machine is busy with: after an election, each would be longer.
        let shortest = gaps.iter().min();
        ensure!(
            shortest.is_some_and(|gap| *gap < lease),
            "no write for {gaps:?}, and an election takes longer than {lease:?}"
        );
        stage::check(&cluster, running).await?;
        cluster.pass();
        Ok(())
    })
    .await
}

/// A leader that is told to stop when the only peer to hand over to has just been frozen: it has answered lately, takes
/// the order, and never asks for a vote.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_heir_stands_still_ends_in_time_all_the_same() -> anyhow::Result<()> {
    stage::run(TEST_TIME_MAX, async {
        let mut cluster = Cluster::start().await?;
        let mut running = stage::clients(&cluster);
        running.progress(SOME).await?;
        let leader = cluster.leader().await?;
        let heir = cluster.another(leader)?;
        let third = 3 - leader - heir;
        cluster.kill(third)?;
        let (dead, admin) = (cluster.node_id(third)?, cluster.admin(leader));
        wait::until("a leader that misses the dead peer", PATIENCE, async || {
            let members = admin.health().await?.members;
            let missed = members.iter().any(|it| it.id == dead && !it.up);
            ensure!(missed, "{members:?}");
            Ok(())
        })
        .await?;
        running.progress(SOME).await?;
        cluster.note(&format!(
            "peer {heir} stands still, and peer {leader} is to stop"
        ));
        cluster.peer(heir).signal(Signal::STOP)?;
        let began = Instant::now();
        let end = cluster.peer_mut(leader).stop(PATIENCE).await?;
        cluster.note(&format!("it took {:?}", began.elapsed()));
        cluster.peer(heir).signal(Signal::CONT)?;
        ensure!(end.success(), "{end}");
        let log = cluster.peer(leader).log_text();
        ensure!(
            log.contains("an election will follow") && log.contains("has not taken over in time"),
            "{log}"
        );
        // What the heir finds when it goes on is an order of a term that is over, from a leader that is gone.
        cluster.restart(leader).await?;
        cluster.restart(third).await?;
        running.progress(SOME).await?;
        stage::check(&cluster, running).await?;
        cluster.pass();
        Ok(())
    })
    .await
}
