//! Syncs that take long.

use std::time::Duration;

use anyhow::ensure;
use jepsen_tests::faulty_disk::Fault;

use crate::failing_disk::on_faulty_disks;
use crate::stage::{self, SOME, TEST_TIME_MAX};

/// From well below to well above what an election takes.
const DELAYS_MS: [u64; 2] = [200, 2_500];

/// How many terms may begin while one disk is slow. The leader's may cost its leadership, but not again and
/// again: whoever leads next has a quorum without it.
const TERMS_MAX: u64 = 4;

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
