//! Syncs that take long.

use std::time::Duration;

use anyhow::ensure;
use jepsen_tests::cluster::PATIENCE;
use jepsen_tests::faulty_disk::Fault;
use jepsen_tests::wait;

use crate::failing_disk::on_faulty_disks;
use crate::stage::{self, SOME, TEST_TIME_MAX};

/// From well below to well above what an election takes.
const DELAYS_MS: [u64; 2] = [200, 2_500];

/// How many terms may begin while one disk is slow. The leader's may cost its leadership, but not again and
/// again: whoever leads next has a quorum without it.
const TERMS_MAX: u64 = 4;

/// Far above what is taken for a disk that does not answer.
const UNANSWERED: Duration = Duration::from_secs(8);

/// For how many seconds a peer's disk has not answered.
const STALLED: &str = "raftserve_raft_log_stalled_seconds";

/// The most patient election timing, so that a busy machine is not taken for a slow disk.
const PATIENT: &str = "wan";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_slow_disk_costs_no_write_and_no_row_of_elections() -> anyhow::Result<()> {
    stage::run(TEST_TIME_MAX, async {
        let (mut cluster, disks) = on_faulty_disks(PATIENT)?;
        cluster.restart_all().await?;
        let mut running = stage::clients(&cluster);
        for delay in DELAYS_MS.map(Duration::from_millis) {
            for leads in [true, false] {
                running.progress(SOME).await?;
                let (leader, term) = cluster.leader_and_term().await?;
                let slow = match leads {
                    true => leader,
                    false => cluster.another(leader)?,
                };
                cluster.note(&format!(
                    "syncs of peer {slow} take {delay:?} more; {leader} leads"
                ));
                let hits = disks[slow].hits()?;
                disks[slow].set(Fault::SlowSync(delay), 0)?;
                running.progress(6 * SOME).await?;
                ensure!(disks[slow].hits()? > hits, "the fault met nothing");
                disks[slow].set(Fault::None, 0)?;
                let (leader, now) = cluster.leader_and_term().await?;
                cluster.note(&format!("peer {leader} leads, {} terms later", now - term));
                ensure!(now - term <= TERMS_MAX, "from term {term} to {now}");
            }
        }
        stage::check(&cluster, running).await?;
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_does_not_answer_is_told_until_it_does() -> anyhow::Result<()> {
    stage::run(TEST_TIME_MAX, async {
        let (mut cluster, disks) = on_faulty_disks(PATIENT)?;
        cluster.restart_all().await?;
        let mut running = stage::clients(&cluster);
        running.progress(SOME).await?;
        for leads in [false, true] {
            let leader = cluster.leader().await?;
            let slow = match leads {
                true => leader,
                false => cluster.another(leader)?,
            };
            disks[slow].set(Fault::SlowSync(UNANSWERED), 0)?;
            let node = cluster.node_id(slow)?;
            for asked in 0..cluster.size() {
                wait::until("a stalled disk", PATIENCE, async || {
                    let health = cluster.admin(asked).health().await?;
                    let told = health.members.iter().find(|it| it.id == node);
                    let told = told.and_then(|it| it.disk_stalled_for);
                    ensure!(!health.healthy && told.is_some(), "{health:?}");
                    Ok(())
                })
                .await?;
            }
            wait::until("a metric of it", PATIENCE, async || {
                let seconds = cluster.metric(slow, STALLED).await?;
                ensure!(seconds > 0, "it answers");
                Ok(())
            })
            .await?;
            disks[slow].set(Fault::None, 0)?;
            wait::until("disks that answer", PATIENCE, async || {
                let health = cluster.admin(slow).health().await?;
                ensure!(health.healthy, "{health:?}");
                let seconds = cluster.metric(slow, STALLED).await?;
                ensure!(seconds == 0, "none for {seconds} s");
                Ok(())
            })
            .await?;
        }
        stage::check(&cluster, running).await?;
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn elections_end_on_slow_disks() -> anyhow::Result<()> {
    stage::run(TEST_TIME_MAX, async {
        let (mut cluster, disks) = on_faulty_disks("lan")?;
        cluster.restart_all().await?;
        let mut running = stage::clients(&cluster);
        for disk in &disks {
            disk.set(Fault::SlowSync(Duration::from_millis(100)), 0)?;
        }
        for _ in 0..3 {
            running.progress(SOME).await?;
            let (leader, term) = cluster.leader_and_term().await?;
            cluster.kill(leader)?;
            running.progress(SOME).await?;
            let (_, now) = cluster.leader_and_term().await?;
            cluster.note(&format!("a write {} terms later", now - term));
            cluster.restart(leader).await?;
        }
        for disk in &disks {
            disk.set(Fault::None, 0)?;
        }
        stage::check(&cluster, running).await?;
        cluster.pass();
        Ok(())
    })
    .await
}
