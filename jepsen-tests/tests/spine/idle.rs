//! What a peer takes that has nothing to do.

use anyhow::ensure;
use jepsen_tests::cluster::Cluster;
use jepsen_tests::usage::anonymous_bytes;

use crate::stage::{self, Share};

/// The promise is 60 MiB of resident memory; what is mapped of the program itself is less in a release build than
/// here, and is left out.
const ANONYMOUS_MAX: u64 = 44 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_peer_holds_little_memory() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let cluster = Cluster::start().await?;
        for index in 0..cluster.size() {
            let held = anonymous_bytes(cluster.peer(index).pid()?)?;
            ensure!(held <= ANONYMOUS_MAX, "peer {index} holds {held} bytes");
        }
        cluster.pass();
        Ok(())
    })
    .await
}
