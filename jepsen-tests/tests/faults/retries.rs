//! A request that is sent again to other peers while its leader dies is carried out once.

use std::time::Duration;

use anyhow::{Context, ensure};
use jepsen_tests::admin::v1::RequestId;
use jepsen_tests::cluster::{Cluster, PATIENCE};
use jepsen_tests::wait;

use crate::stage::{self, TEST_TIME_MAX};

/// When the leader dies, counted from the request: from before it is read to after it is answered.
const MOMENTS_US: [u64; 12] = [
    0, 200, 500, 1_000, 1_500, 2_000, 3_000, 4_000, 6_000, 9_000, 15_000, 40_000,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_takes_effect_once_whenever_the_leader_dies() -> anyhow::Result<()> {
    stage::run(TEST_TIME_MAX, async {
        let mut cluster = Cluster::start().await?;
        let client_id = cluster.admin(0).open_client().await?;
        let (mut revision, mut first_answers) = (0, 0);
        for (moment, sequence) in MOMENTS_US.into_iter().zip(1..) {
            let leader = cluster.leader().await?;
            let admins = stage::admins(&cluster);
            let id = RequestId {
                client_id,
                sequence,
                acknowledged: sequence - 1,
            };
            // A swap: carried out a second time, it would meet its own effect and be refused.
            let put = async |peer: usize| {
                let value = sequence.to_string();
                Ok(admins[peer]
                    .put_key("swapped", value, Some(revision), Some(id))
                    .await?)
            };
            // Every other request goes through a follower, which forwards it.
            let asked = match sequence % 2 {
                0 => leader,
                _ => cluster.another(leader)?,
            };
            let fault = async {
                // When the fault comes, not what is waited for.
                tokio::time::sleep(Duration::from_micros(moment)).await;
                cluster.kill(leader)
            };
            let (first, killed): (anyhow::Result<_>, _) = tokio::join!(put(asked), fault);
            killed?;
            first_answers += usize::from(first.is_ok());
            let others: Vec<usize> = (0..cluster.size()).filter(|it| *it != leader).collect();
            let mut answers: Vec<_> = first.into_iter().collect();
            for peer in others {
                let answer = wait::until("an answer", PATIENCE, async || put(peer).await);
                answers.push(answer.await.with_context(|| format!("request {id:?}"))?);
            }
            cluster.restart(leader).await?;
            answers.push(wait::until("an answer", PATIENCE, async || put(leader).await).await?);
            let same = answers.iter().all(|answer| *answer == answers[0]);
            ensure!(same, "one request, several answers: {answers:?}");
            ensure!(
                answers[0].version == sequence,
                "write {sequence}: {answers:?}"
            );
            revision = answers[0].modified_index;
        }
        cluster.note(&format!(
            "{first_answers} of {} were answered before the leader was gone",
            MOMENTS_US.len()
        ));
        stage::agree(&cluster).await?;
        cluster.pass();
        Ok(())
    })
    .await
}
