//! A Kubernetes cluster is lost with all that is in it but the volumes; on another, the same services go on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::{Context, ensure};
use jepsen_tests::access::Credential;
use jepsen_tests::admin::Admin;
use jepsen_tests::http::Connection;
use jepsen_tests::wait;
use serde_json::{Value, json};

use crate::stage::{PATIENCE, PEERS, Walk, walk_abreast};

/// As `htpasswd -nb skypilot yourpassword` prints it.
const AUTH_STRING: &str = "skypilot:$apr1$serving1$L2SX10hn6.s.FF0HGEHlA/";
const USER: &str = "skypilot";
const PASSWORD: &str = "yourpassword";

/// The ports of a peer's admin API, and for all services.
const ADMIN: u16 = 7_000;
const PROXY: u16 = 8_080;

/// Clients of the service, by what they send as `x-session-id`.
const CLIENTS: [&str; 5] = ["ada", "bo", "cy", "di", "ed"];

/// The class of the volumes that come back, which is theirs alone.
const CLASS: &str = "raftserve-test-lost-cluster";

/// Which replica each session is bound to, and in which epoch, by key.
type Table = BTreeMap<String, (u32, u64)>;

impl Walk {
    async fn log_in(&self) -> anyhow::Result<()> {
        let login = ["login", "--user", USER, "--password-stdin"];
        self.raftserve_reading(&format!("{PASSWORD}\n"), &login)
            .await
            .map(drop)
    }

    /// The admin API of the first peer, with the credential that its values name.
    async fn admin(&self) -> anyhow::Result<Admin> {
        let folder = tempfile::tempdir()?;
        let authorities = folder.path().join("ca.crt");
        let secret = format!("{}-certificates", self.release);
        let template = r#"go-template={{index .data "ca.crt" | base64decode}}"#;
        let read = ["get", "secret", &secret, "-o", template];
        tokio::fs::write(&authorities, self.kubectl(&read).await?).await?;
        let peers = self.peers().await?;
        let address = peers.first().and_then(|pod| pod.address);
        let address = SocketAddr::new(address.context("no peer")?, ADMIN);
        let mut credential = Credential {
            authorities,
            token: None,
            name: Some("localhost".to_owned()),
        };
        let anonymous = Admin::with(address, &credential);
        credential.token = Some(anonymous.log_in(USER, PASSWORD).await?.token);
        Ok(Admin::with(address, &credential))
    }

    /// Asks through every peer, once for each client.
    async fn ask_as_clients(&self) -> anyhow::Result<()> {
        for peer in self.peers().await? {
            let address = SocketAddr::new(peer.address.context("no address")?, PROXY);
            for client in CLIENTS {
                let mut connection = Connection::new(address);
                let answer = connection.get("/chat/", &[("x-session-id", client)]).await;
                let answer = answer.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
                ensure!(answer.status == 200, "{client}: {}", answer.status);
            }
        }
        Ok(())
    }

    /// Of each service the name, the id, the version, and the YAML.
    async fn services(&self) -> anyhow::Result<Vec<(String, u64, u32, String)>> {
        let admin = self.admin().await?;
        let mut found = Vec::new();
        for service in admin.services().await? {
            let told = admin.service(&service.name).await?;
            let told = told.context("it is gone")?;
            found.push((told.name, told.id, told.version, told.yaml));
        }
        Ok(found)
    }

    pub(super) async fn await_chat(&self) -> anyhow::Result<()> {
        wait::until("the service's replicas", PATIENCE, async || {
            let shown = self.raftserve(&["status", "chat"]).await?;
            ensure!(
                shown.contains(" READY ") && shown.contains("2/2"),
                "{shown}"
            );
            Ok(())
        })
        .await
    }

    /// The volumes of the peers, in the peers' order.
    pub(super) async fn volumes(&self) -> anyhow::Result<Vec<String>> {
        let claims = self
            .namespace
            .objects("persistentvolumeclaims", PEERS)
            .await?;
        let volume = |claim: &Value| claim["spec"]["volumeName"].as_str().map(str::to_owned);
        let volumes: Option<Vec<_>> = claims.iter().map(volume).collect();
        let volumes = volumes.context("a claim without a volume")?;
        ensure!(volumes.len() == 3, "{volumes:?}");
        Ok(volumes)
    }

    pub(super) async fn reclaim(&self, volume: &str, policy: &str) -> anyhow::Result<()> {
        let patch = format!(r#"{{"spec": {{"persistentVolumeReclaimPolicy": "{policy}"}}}}"#);
        self.kubectl(&["patch", "pv", volume, "-p", &patch])
            .await
            .map(drop)
    }

    /// Has a volume that was released be claimed anew, by whoever asks for `class`: nobody else is to find it.
    pub(super) async fn unclaim(&self, volume: &str, class: &str) -> anyhow::Result<()> {
        let unclaim = json!([
            { "op": "remove", "path": "/spec/claimRef" },
            { "op": "replace", "path": "/spec/storageClassName", "value": class },
        ]);
        let unclaim = unclaim.to_string();
        self.kubectl(&["patch", "pv", volume, "--type=json", "-p", &unclaim])
            .await
            .map(drop)
    }

    /// All that was in the cluster is lost, its record of what was founded there too, but for these volumes.
    pub(super) async fn lose_all_but(&self, volumes: &[String], class: &str) -> anyhow::Result<()> {
        for volume in volumes {
            self.reclaim(volume, "Retain").await?;
        }
        self.namespace.clone().delete().await?;
        let args = ["delete", "namespace", &self.namespace.name, "--wait"];
        let kube = self.namespace.kube();
        kube.kubectl(&[&args[..], &["--ignore-not-found"]].concat())
            .await?;
        for volume in volumes {
            self.unclaim(volume, class).await?;
        }
        Ok(())
    }

    /// Volumes that nobody wants any more.
    pub(super) async fn give_back(
        &self,
        volumes: impl IntoIterator<Item = &String>,
    ) -> anyhow::Result<()> {
        for volume in volumes {
            self.reclaim(volume, "Delete").await?;
        }
        Ok(())
    }

    /// Not needed any more, but a walk-through ends with its namespace.
    pub(super) async fn come_back(&self) -> anyhow::Result<()> {
        let create = ["create", "namespace", &self.namespace.name];
        self.namespace.kube().kubectl(&create).await.map(drop)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_kubernetes_cluster_with_the_same_volumes_serves_the_same() -> anyhow::Result<()> {
    walk_abreast("lost-cluster", async |lost| {
        if !lost.namespace.kube().disruptive {
            eprintln!("skipped: volumes are not to be deleted here");
            return Ok(());
        }
        let credentials = format!("ingress.authCredentials={AUTH_STRING}");
        lost.install(3, &[&credentials]).await?;
        let refused = lost.raftserve(&["status"]).await;
        ensure!(refused.is_err(), "without a login: {refused:?}");
        lost.log_in().await?;
        let service = lost.file("chat.yaml")?;
        lost.raftserve(&["up", &service, "-y"]).await?;
        lost.put("config/limit", "20").await?;
        let folder = tempfile::tempdir()?;
        let second = folder.path().join("chat.yaml");
        let text = tokio::fs::read_to_string(&service).await?;
        let header = "{header: x-session-id}";
        ensure!(text.contains(header), "{text}");
        let text = text.replace(header, "{header: x-session-id, ttl_seconds: 7200}");
        tokio::fs::write(&second, text).await?;
        let second = second.to_str().context("a path in UTF-8")?;
        lost.raftserve(&["update", "chat", second, "-y"]).await?;
        lost.await_chat().await?;
        lost.ask_as_clients().await?;
        let services = lost.services().await?;
        ensure!(
            services.len() == 1 && services[0].2 == 2 && services[0].3.contains("7200"),
            "{services:?}"
        );
        let sessions = lost.admin().await?.sessions("chat").await?;
        ensure!(sessions.len() == CLIENTS.len(), "{sessions:?}");
        let volumes = lost.volumes().await?;
        lost.lose_all_but(&volumes, CLASS).await?;

        // Neither the release's name nor its namespace is what it was.
        let found = lost
            .elsewhere("lost-cluster", "walk-found-cluster", "raftserve-again")
            .await?;
        let same = format!("storage.volumeNames={{{}}}", volumes.join(","));
        let class = format!("storage.storageClassName={CLASS}");
        found.install(3, &[&credentials, &class, &same]).await?;
        ensure!(found.volumes().await? == volumes);
        found.log_in().await?;
        let kept = found.raftserve(&["kv", "get", "config/limit"]).await?;
        ensure!(kept.contains("20"), "{kept}");
        let now = found.services().await?;
        ensure!(now == services, "{now:?} instead of {services:?}");
        let kept = found.admin().await?.sessions("chat").await?;
        ensure!(kept == sessions, "{kept:?} instead of {sessions:?}");
        found.await_chat().await?;
        let endpoint = found.endpoint("chat").await?;
        found.curl(endpoint, "/").await?;
        found.ask_as_clients().await?;
        let moved = found.admin().await?.sessions("chat").await?;
        moved_once(&sessions, &moved)?;
        found.ask_as_clients().await?;
        let kept = found.admin().await?.sessions("chat").await?;
        ensure!(kept == moved, "{kept:?} instead of {moved:?}");

        found.give_back(&volumes).await?;
        found.namespace.delete().await?;
        lost.come_back().await
    })
    .await
}

/// All sessions are there, each moved from a replica that is gone to one that is new.
fn moved_once(before: &Table, after: &Table) -> anyhow::Result<()> {
    ensure!(before.keys().eq(after.keys()), "{before:?}, then {after:?}");
    let gone: BTreeSet<u32> = before.values().map(|(replica, _)| *replica).collect();
    let last = before.values().map(|(_, epoch)| *epoch).max();
    for (key, (replica, epoch)) in after {
        ensure!(
            !gone.contains(replica) && Some(*epoch) > last,
            "{key}: {before:?}, then {after:?}"
        );
    }
    Ok(())
}
