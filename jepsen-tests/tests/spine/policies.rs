//! Policies and rules that change while requests run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, ensure};
use jepsen_tests::check::{clean, every_request_answered, no_failure_through_live_peers};
use jepsen_tests::cluster::Cluster;
use jepsen_tests::history::summary;
use jepsen_tests::http::Connection;
use jepsen_tests::program::{REPLICA_HEADER, SESSION_HEADER, Service, TAG_HEADER};
use jepsen_tests::wait;

use crate::stage::{self, SETTLE, Share, bring_up, keys};

/// So many keys tell three replicas apart.
const KEYS: usize = 24;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_and_shares_change_live_and_peers_agree_on_every_key() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let (cluster, counters) = stage::three_peers().await?;
        let hash_on = format!("hash_on: {{header: {SESSION_HEADER}}}");
        let service = Service::new("web", 3, &counters)
            .with_traffic(&format!("{{policy: ring_hash, {hash_on}}}"));
        bring_up(&cluster, &service).await?;
        let ring = agreed(&cluster).await?;
        let replicas: BTreeSet<&String> = ring.values().map(|(replica, _)| replica).collect();
        ensure!(replicas.len() == 3, "{ring:?}");

        let mut load = stage::load(&cluster, &service);
        load.keys = keys(KEYS).into();
        load.pace = Duration::from_millis(5);
        let running = load.start();

        let maglev = format!("{{policy: maglev, {hash_on}}}");
        update(&cluster, &service.clone().with_traffic(&maglev)).await?;
        let table = until_agreed(&cluster, |met| *met != ring).await?;
        ensure!(counters.starts()?.len() == 3, "a policy replaced a replica");

        // The first version is now the third: what serves is relabelled, and all of it goes to it.
        let canary = "{policy: p2c, routes: [{weights: {3: 90, 4: 10}}]}";
        update(&cluster, &service.clone().with_traffic(canary)).await?;
        ensure!(counters.starts()?.len() == 3, "a rule replaced a replica");
        update(
            &cluster,
            &service.clone().with_tag("v2").with_traffic(canary),
        )
        .await?;
        // The version that its rule names is gone, and another one serves.
        let ring_again = service.clone().with_tag("v2");
        update(&cluster, &ring_again).await?;
        let last = until_agreed(&cluster, |met| met.values().all(|(_, tag)| tag == "v2")).await?;
        ensure!(last != table, "other replicas, and the same keys on them");

        let history = running.stop().await?;
        eprintln!("{}", summary(&history));
        ensure!(history.len() > 100, "{} requests", history.len());
        clean("requests", &every_request_answered(&history))?;
        clean("peers", &no_failure_through_live_peers(&history, &[]))?;
        counters.check_single_starts()?;
        cluster.pass();
        Ok(())
    })
    .await
}

/// Gives the service a new version, through the second peer's command line.
async fn update(cluster: &Cluster, service: &Service) -> anyhow::Result<()> {
    let file = cluster.path("update.yaml");
    std::fs::write(&file, service.yaml())?;
    let file = file.to_str().context("a path in UTF-8")?;
    let said = cluster
        .cli(1)
        .json(&["update", &service.name, file, "-y", "--timeout", "60s"])
        .await?;
    ensure!(said["name"] == service.name, "{said}");
    cluster.settled(&service.name, SETTLE).await.map(drop)
}

/// Each key's replica and tag, which all peers must say alike.
type Met = BTreeMap<String, (String, String)>;

async fn agreed(cluster: &Cluster) -> anyhow::Result<Met> {
    until_agreed(cluster, |_| true).await
}

/// What the peers say once they say the same, and what is wanted.
async fn until_agreed(cluster: &Cluster, wanted: impl Fn(&Met) -> bool) -> anyhow::Result<Met> {
    wait::until("peers to agree on every key", SETTLE, async || {
        let mut said = Vec::new();
        for target in cluster.targets() {
            let mut connection = Connection::new(target.address);
            let mut met = Met::new();
            for key in keys(KEYS) {
                let reply = connection.get("/web/", &[(SESSION_HEADER, &key)]).await;
                let reply = reply.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
                ensure!(reply.status == 200, "{reply:?}");
                let header = |name| reply.header(name).unwrap_or_default();
                met.insert(key, (header(REPLICA_HEADER), header(TAG_HEADER)));
            }
            said.push(met);
        }
        let alike = said.iter().all(|met| *met == said[0]);
        ensure!(alike && wanted(&said[0]), "{said:?}");
        Ok(said.swap_remove(0))
    })
    .await
}
