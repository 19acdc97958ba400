//! A rolling update under load.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use jepsen_tests::admin::{Events, v1};
use jepsen_tests::check::{
    Change, RolloutBounds, clean, every_request_answered, no_failure_through_live_peers,
    rolling_update_keeps_its_bounds,
};
use jepsen_tests::history::summary;
use jepsen_tests::http;
use jepsen_tests::program::{Service, TAG_HEADER};

use crate::stage::{self, SETTLE, Share, bring_up};

const BOUNDS: RolloutBounds = RolloutBounds {
    wanted: 3,
    surge: 1,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_update_fails_no_request_and_keeps_its_bounds() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let (cluster, counters) = stage::three_peers().await?;
        let service = Service::new("web", 3, &counters);
        bring_up(&cluster, &service).await?;
        let first: Vec<u32> = ready_numbers(&cluster.admin(0).replicas().await?);
        let events = cluster.admin(1).events(None).await?;
        let mut load = stage::load(&cluster, &service);
        load.pace = Duration::from_millis(5);
        let running = load.start();

        let file = cluster.path("v2.yaml");
        std::fs::write(&file, service.clone().with_tag("v2").yaml())?;
        let file = file.to_str().context("a path in UTF-8")?;
        let update = ["update", "web", file, "-y", "--timeout", "60s"];
        let said = cluster.cli(2).json(&update).await?;
        ensure!(said["version"] == 2, "{said}");
        let after = cluster.settled(&service.name, SETTLE).await?;
        let last = cluster.admin(0).status().await?.applied_index;
        let changes = changes_until(events, last).await?;
        let history = running.stop().await?;
        eprintln!("{}, {} changes", summary(&history), changes.len());

        ensure!(changes.len() >= 9, "{changes:?}");
        let bounds = rolling_update_keeps_its_bounds(&first, &changes, BOUNDS);
        clean("bounds", &bounds)?;
        ensure!(history.len() > 100, "{} requests", history.len());
        clean("requests", &every_request_answered(&history))?;
        clean("peers", &no_failure_through_live_peers(&history, &[]))?;
        let numbers: BTreeSet<u32> = ready_numbers(&cluster.admin(0).replicas().await?)
            .into_iter()
            .collect();
        ensure!(
            after.len() == 3 && first.iter().all(|old| !numbers.contains(old)),
            "{after:?}"
        );
        for target in cluster.targets() {
            let reply = http::get(target.address, "/web/").await;
            let tag = reply
                .as_ref()
                .ok()
                .and_then(|reply| reply.header(TAG_HEADER));
            ensure!(tag.as_deref() == Some("v2"), "{reply:?}");
        }
        counters.check_single_starts()?;
        cluster.pass();
        Ok(())
    })
    .await
}

/// Each update is another version that runs the same replicas: they are labelled anew, and never missed meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn updates_that_change_no_replica_fail_no_request() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let (cluster, counters) = stage::three_peers().await?;
        let service = Service::new("web", 2, &counters);
        bring_up(&cluster, &service).await?;
        let before = cluster.settled(&service.name, SETTLE).await?;
        let mut load = stage::load(&cluster, &service);
        load.pace = Duration::from_millis(2);
        let running = load.start();
        for note in 1..=20 {
            let yaml = service.clone().with_note(note).yaml();
            cluster.admin(0).update("web", &yaml).await?;
        }
        let after = cluster.settled(&service.name, SETTLE).await?;
        let history = running.stop().await?;
        eprintln!("{}", summary(&history));
        ensure!(history.len() > 100, "{} requests", history.len());
        clean("requests", &every_request_answered(&history))?;
        clean("peers", &no_failure_through_live_peers(&history, &[]))?;
        ensure!(before == after, "{before:?} became {after:?}");
        counters.check_single_starts()?;
        cluster.pass();
        Ok(())
    })
    .await
}

fn ready_numbers(replicas: &[v1::Replica]) -> Vec<u32> {
    replicas
        .iter()
        .filter(|it| it.status() == v1::ReplicaStatus::Ready)
        .map(|it| it.id)
        .collect()
}

/// What happened to replicas up to a log index.
async fn changes_until(mut events: Events, last: u64) -> anyhow::Result<Vec<Change>> {
    let mut changes = Vec::new();
    loop {
        let (index, batch) = tokio::time::timeout(SETTLE, events.next())
            .await
            .context("no bookmark")??;
        for event in batch.iter().filter(|it| it.replica_id > 0) {
            let name = event.replica_status().as_str_name();
            let status = name.strip_prefix("REPLICA_STATUS_").unwrap_or(name);
            changes.push(Change {
                index,
                replica: event.replica_id,
                status: (event.kind != "REPLICA_REMOVED").then(|| status.to_owned()),
            });
        }
        if index >= last {
            return Ok(changes);
        }
    }
}
