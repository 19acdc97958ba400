//! The API server goes away and comes back.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, ensure};
use jepsen_tests::admin::v1;
use jepsen_tests::kube::Namespace;
use jepsen_tests::wait;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::stage::{SETTLE, any_admin, ask, on_namespace, peers_by, ready, service, uids};

/// The only way to the API server for the peers of a test.
struct Door {
    open: watch::Sender<bool>,
    keeper: JoinHandle<()>,
}

impl Door {
    /// A door to the namespace's API server, open, and a configuration that goes through it.
    async fn build(namespace: &Namespace, config: &Path) -> anyhow::Result<Self> {
        let view = [
            "config",
            "view",
            "--raw",
            "--flatten",
            "--minify",
            "-o",
            "json",
        ];
        let mut settings: Value = serde_json::from_str(&namespace.kube().kubectl(&view).await?)?;
        let cluster = &mut settings["clusters"][0]["cluster"];
        let server = cluster["server"].as_str().context("no server")?;
        let server = server.strip_prefix("https://").context("not over TLS")?;
        let behind = tokio::net::lookup_host(server).await?.next();
        let behind = behind.with_context(|| format!("{server} has no address"))?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let server = format!("https://{}", listener.local_addr()?);
        // The certificate is for another address, and not what is tested.
        *cluster = json!({ "server": server, "insecure-skip-tls-verify": true });
        tokio::fs::write(config, settings.to_string()).await?;
        let (open, opened) = watch::channel(true);
        Ok(Self {
            open,
            keeper: tokio::spawn(keep(listener, behind, opened)),
        })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

async fn keep(listener: TcpListener, behind: SocketAddr, open: watch::Receiver<bool>) {
    while let Ok((mut client, _)) = listener.accept().await {
        let mut open = open.clone();
        tokio::spawn(async move {
            if !*open.borrow_and_update() {
                return;
            }
            let Ok(mut server) = TcpStream::connect(behind).await else {
                return;
            };
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                _ = open.wait_for(|open| !open) => {}
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_api_server_is_away_status_says_so_and_traffic_goes_on() -> anyhow::Result<()> {
    on_namespace("away", async |namespace| {
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("kubeconfig");
        let door = Door::build(namespace, &config).await?;
        let cluster = peers_by(namespace, 1, &config).await?;
        cluster.admin(0).apply(&service("web", 1)).await?;
        let before = ready(&cluster, 1).await?;

        door.open.send_replace(false);
        let told = async || {
            let service = cluster.admin(0).service("web").await?;
            let service = service.context("no service")?;
            anyhow::Ok(service.hindrance)
        };
        wait::until("word of it", SETTLE, async || {
            let told = told().await?;
            ensure!(told.contains("does not answer"), "{told:?}");
            Ok(())
        })
        .await?;
        cluster.admin(0).update("web", &service("web", 2)).await?;
        ensure!(ask(&cluster, 0).await? == "1", "traffic goes on");

        door.open.send_replace(true);
        let after = ready(&cluster, 2).await?;
        ensure!(after.is_superset(&before), "{after:?} after {before:?}");
        ensure!(told().await?.is_empty(), "it is still told");
        cluster.pass();
        Ok(())
    })
    .await
}

/// Where replicas of `service` are, if exactly `count` are ready and no other one is on record.
async fn serving(
    admin: &jepsen_tests::admin::Admin,
    service: &str,
    count: usize,
) -> anyhow::Result<Vec<String>> {
    let all = admin.replicas().await?;
    let own: Vec<_> = all.iter().filter(|it| it.service_name == service).collect();
    let ready = own.iter().all(|it| it.status() == v1::ReplicaStatus::Ready);
    ensure!(own.len() == count && ready, "{own:?}");
    Ok(own.iter().map(|it| it.endpoint.clone()).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_without_the_api_server_probes_and_follows_and_stops_nothing()
-> anyhow::Result<()> {
    on_namespace("away-led", async |namespace| {
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("kubeconfig");
        let door = Door::build(namespace, &config).await?;
        let mut cluster = peers_by(namespace, 3, &config).await?;
        let leader = cluster.leader().await?;
        cluster.admin(leader).apply(&service("web", 2)).await?;
        let before = ready(&cluster, 2).await?;
        let pods = uids(namespace).await?;

        door.open.send_replace(false);
        cluster.kill(leader)?;
        cluster.leader().await?;
        let admin = any_admin(&cluster)?;
        let endpoints = serving(&admin, "web", 2).await?;
        let there = endpoints[0]
            .strip_prefix("http://")
            .context("over HTTP")?
            .to_owned();
        let plain = format!(
            "name: plain\nservice: {{}}\n\
             _metadata: {{raftserve: {{provider: {{static: {{addresses: [\"{there}\"]}}}}}}}}\n"
        );
        admin.apply(&plain).await?;
        wait::until("a static service", SETTLE, async || {
            serving(&admin, "plain", 1).await.map(drop)
        })
        .await?;
        serving(&admin, "web", 2).await?;
        ensure!(uids(namespace).await? == pods, "other pods");

        // Of one that is gone, probes tell. It is missed only once the new leader sees what exists.
        let (victim, _) = pods.first().context("two pods")?;
        let kill = ["delete", "pod", victim, "--grace-period=0", "--force"];
        namespace.kubectl(&kill).await?;
        wait::until("word of the dead replica", SETTLE, async || {
            let all = admin.replicas().await?;
            let web = || all.iter().filter(|it| it.service_name == "web");
            let dead = web().any(|it| it.status() == v1::ReplicaStatus::NotReady);
            ensure!(web().count() == 2 && dead, "{all:?}");
            Ok(())
        })
        .await?;
        admin.delete("plain").await?;

        door.open.send_replace(true);
        let after = wait::until("a replacement", SETTLE, async || {
            let after = ready(&cluster, 2).await?;
            ensure!(after != before, "still {before:?}");
            Ok(after)
        })
        .await?;
        ensure!(
            after.intersection(&before).count() == 1,
            "{after:?} after {before:?}"
        );
        cluster.pass();
        Ok(())
    })
    .await
}
