//! A leader stands still, others lead on, and it wakes up without knowing.

use anyhow::{Context, ensure};
use jepsen_tests::cluster::PATIENCE;
use jepsen_tests::register::number;
use jepsen_tests::wait;
use rustix::process::Signal;

use crate::stage::{self, SOME, TEST_TIME_MAX};

/// How often.
const ROUNDS: usize = 5;

/// Reads that lie in the sleeping leader's sockets when it wakes up.
const READS: usize = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stood_still_answers_no_stale_read() -> anyhow::Result<()> {
    stage::run(TEST_TIME_MAX, async {
        let mut cluster = jepsen_tests::cluster::Cluster::start().await?;
        let mut running = stage::clients(&cluster);
        let mut answered = 0;
        for _ in 0..ROUNDS {
            let (leader, term) = cluster.leader_and_term().await?;
            let (asleep, other) = (cluster.admin(leader), cluster.another(leader)?);
            // Over a connection that is there before it stands still.
            asleep.put_key("seen", "1", None, None).await?;
            cluster.note(&format!("peer {leader} stands still in term {term}"));
            cluster.peer(leader).signal(Signal::STOP)?;
            let write = async || {
                Ok(cluster
                    .admin(other)
                    .put_key("seen", "2", None, None)
                    .await?)
            };
            let written = wait::until("a write without the leader", PATIENCE, write).await?;
            let reads: Vec<_> = (0..READS)
                .map(|_| {
                    let asleep = asleep.clone();
                    tokio::spawn(async move { asleep.key("seen").await })
                })
                .collect();
            // Lets the reads be sent; which of them are does not change what is promised.
            tokio::task::yield_now().await;
            cluster.peer(leader).signal(Signal::CONT)?;
            for read in reads {
                let Ok(entry) = read.await? else { continue };
                let (_, revision) = number(entry.as_ref())?;
                let floor = written.modified_index;
                ensure!(revision >= floor, "stale: {entry:?} after {written:?}");
                answered += 1;
            }
            cluster.await_ready(leader).await?;
            running.progress(SOME).await?;
        }
        cluster.note(&format!(
            "{answered} of {} reads on waking up were answered",
            ROUNDS * READS
        ));
        stage::check(&cluster, running)
            .await
            .context("what the clients saw")?;
        cluster.pass();
        Ok(())
    })
    .await
}
