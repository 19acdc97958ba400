//! What was acknowledged survives the death of all peers at any moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use jepsen_tests::admin::Admin;
use jepsen_tests::check::{clean, never_goes_back};
use jepsen_tests::cluster::PATIENCE;
use jepsen_tests::program::Service;
use jepsen_tests::wait;

use crate::stage::{self, Share, bring_up};

/// When all peers are killed, counted from the first write that is acknowledged in the round: from in
/// the middle of the next write to several group commits later.
const MOMENTS_MS: [u64; 8] = [0, 3, 8, 20, 45, 90, 180, 350];

/// What the writers know.
#[derive(Debug, Default)]
struct Ledger {
    proposed: AtomicU64,
    acknowledged: AtomicU64,
    stop: AtomicBool,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_update_is_lost_when_all_peers_are_killed() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let (mut cluster, counters) = stage::three_peers().await?;
        let service = Service::new("web", 1, &counters);
        bring_up(&cluster, &service).await?;
        let first = cluster.settled(&service.name, stage::SETTLE).await?;
        let ledger = Arc::new(Ledger::default());
        ledger.proposed.store(1, Ordering::SeqCst);
        ledger.acknowledged.store(1, Ordering::SeqCst);
        let mut reads = Vec::new();

        for moment in MOMENTS_MS {
            ledger.stop.store(false, Ordering::SeqCst);
            let before = ledger.acknowledged.load(Ordering::SeqCst);
            let writers: Vec<_> = (0..cluster.size())
                .map(|peer| {
                    let admin = cluster.admin(peer);
                    tokio::spawn(write(admin, service.clone(), Arc::clone(&ledger)))
                })
                .collect();
            wait::until("a write", PATIENCE, async || {
                let now = ledger.acknowledged.load(Ordering::SeqCst);
                ensure!(now > before, "none in this round");
                Ok(())
            })
            .await?;
            // When the fault comes, not what is waited for.
            tokio::time::sleep(Duration::from_millis(moment)).await;
            cluster.kill_all()?;
            ledger.stop.store(true, Ordering::SeqCst);
            for writer in writers {
                writer.await?;
            }
            cluster.restart_all().await?;
            for peer in 0..cluster.size() {
                let acknowledged = ledger.acknowledged.load(Ordering::SeqCst);
                let found = cluster.admin(peer).service(&service.name).await?;
                let found = found.context("the service is gone")?;
                reads.push((acknowledged, u64::from(found.version)));
            }
        }
        eprintln!("{reads:?}, {ledger:?}");
        let proposed = ledger.proposed.load(Ordering::SeqCst);
        clean("versions", &never_goes_back(&reads, proposed))?;
        let last = cluster.settled(&service.name, stage::SETTLE).await?;
        ensure!(
            first == last,
            "the replica was replaced: {first:?}, {last:?}"
        );
        cluster.pass();
        Ok(())
    })
    .await
}

/// Writes new versions until told to stop or the peer is gone. A write without an answer is not repeated:
/// it may have happened or not.
async fn write(admin: Admin, service: Service, ledger: Arc<Ledger>) {
    while !ledger.stop.load(Ordering::SeqCst) {
        let note = ledger.proposed.fetch_add(1, Ordering::SeqCst);
        let yaml = service.clone().with_note(note).yaml();
        match admin.update(&service.name, &yaml).await {
            Ok(done) => {
                let version = u64::from(done.version);
                ledger.acknowledged.fetch_max(version, Ordering::SeqCst);
            }
            Err(_) => return,
        }
    }
}
