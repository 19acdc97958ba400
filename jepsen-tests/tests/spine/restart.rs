//! All three peers die at once and come back.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use jepsen_tests::check::{clean, every_request_answered, one_replica_per_key};
use jepsen_tests::cluster::Cluster;
use jepsen_tests::history::{Outcome, Request};
use jepsen_tests::load::{Load, Spread};
use jepsen_tests::processes::Process;
use jepsen_tests::program::{Counters, Service};

use crate::stage::{self, SETTLE, Share, bring_up};

/// What must be the same before and after.
#[derive(Debug, PartialEq)]
struct Picture {
    cluster_id: String,
    services: Vec<(String, u64, u32)>,
    replicas: Vec<(u64, u32, u32, String)>,
    processes: BTreeMap<String, Process>,
    sessions: BTreeMap<String, (u32, u64)>,
}

async fn picture(cluster: &Cluster, names: [&str; 2]) -> anyhow::Result<Picture> {
    let mut processes = BTreeMap::new();
    for name in names {
        processes.extend(cluster.settled(name, SETTLE).await?);
    }
    let admin = cluster.admin(1);
    let services = admin.services().await?;
    let replicas = admin.replicas().await?;
    Ok(Picture {
        cluster_id: cluster.cluster_id()?.to_owned(),
        services: services
            .into_iter()
            .map(|it| (it.name, it.id, it.version))
            .collect(),
        replicas: replicas
            .into_iter()
            .map(|it| (it.service_id, it.id, it.version, it.endpoint))
            .collect(),
        processes,
        sessions: admin.sessions(names[0]).await?,
    })
}

/// Attempts that were told for good that there is no such service, which a client does not repeat.
fn denials(history: &[Request]) -> Vec<String> {
    let attempts = history.iter().flat_map(|request| &request.attempts);
    attempts
        .filter(|it| matches!(it.outcome, Outcome::Answered { status, .. } if status / 100 == 4))
        .map(|it| format!("{it:?}"))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_as_it_was_after_all_three_peers_died() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let (mut cluster, counters) = stage::three_peers().await?;
        let chat = Service::new("chat", 3, &counters).with_sessions();
        let other = Counters::create(cluster.path("count-other"))?;
        let web = Service::new("web", 1, &other);
        bring_up(&cluster, &chat).await?;
        bring_up(&cluster, &web).await?;
        let keys = stage::keys(300);
        let once = Load {
            keys: keys.clone().into(),
            spread: Spread::AtOnce,
            steps: Some(keys.len()),
            ..stage::load(&cluster, &chat)
        };
        clean("first", &every_request_answered(&once.clone().run().await?))?;

        for round in 1..=2 {
            let yaml = web.clone().with_note(round).yaml();
            cluster.admin(2).update(&web.name, &yaml).await?;
            let before = picture(&cluster, ["chat", "web"]).await?;
            ensure!(before.sessions.len() == keys.len(), "{before:?}");
            let meanwhile = Load {
                pace: Duration::from_millis(2),
                ..stage::load(&cluster, &web)
            };
            let meanwhile = meanwhile.start();
            cluster.kill_all()?;
            cluster.restart_all().await?;
            clean("meanwhile", &denials(&meanwhile.stop().await?))?;
            let after = picture(&cluster, ["chat", "web"]).await?;
            ensure!(before == after, "before {before:#?}\nafter {after:#?}");
            let again = once.clone().run().await?;
            clean("after a restart", &every_request_answered(&again))?;
        }
        clean(
            "sessions",
            &one_replica_per_key(&keys, &counters.sightings()?),
        )?;
        counters.check_single_starts()?;
        other.check_single_starts()?;
        cluster.pass();
        Ok(())
    })
    .await
}
