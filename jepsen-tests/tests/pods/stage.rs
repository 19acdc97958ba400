//! What every test stands on: a namespace, peers that make pods in it, and a service that tells which replica answers.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use jepsen_tests::admin::v1;
use jepsen_tests::cluster::{Cluster, Options};
use jepsen_tests::{http, wait};
use serde_json::Value;
use tokio::process::Command;

/// The longest that anything may take on a loaded machine; only a hang meets it.
pub(crate) const SETTLE: Duration = Duration::from_secs(90);

/// How long a command may take.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(60);

/// A namespace of the cluster that the environment names. It goes when this is dropped.
pub(crate) struct Namespace {
    config: OsString,
    pub(crate) name: String,
}

#[expect(
    clippy::disallowed_methods,
    reason = "a test is told by its environment where it may run, there being no command line of its own"
)]
fn kubeconfig() -> Option<OsString> {
    let named = std::env::var_os("RAFTSERVE_TEST_KUBECONFIG").filter(|name| !name.is_empty());
    if named.is_none() {
        eprintln!("skipped: RAFTSERVE_TEST_KUBECONFIG names no cluster");
    }
    named
}

impl Namespace {
    /// A new one for the test `name`; none if there is no cluster to test on.
    pub(crate) async fn create(name: &str) -> anyhow::Result<Option<Self>> {
        let Some(config) = kubeconfig() else {
            return Ok(None);
        };
        let name = format!("raftserve-pods-{name}-{}", std::process::id());
        let namespace = Self { config, name };
        let create = ["create", "namespace", &namespace.name];
        namespace.kubectl(&create).await?;
        Ok(Some(namespace))
    }

    /// Runs `kubectl` in the namespace.
    pub(crate) async fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("kubectl");
        command
            .args(["--namespace", &self.name])
            .args(args)
            .env("KUBECONFIG", &self.config)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(COMMAND_TIME_MAX, command.output()).await;
        let output = output.with_context(|| format!("kubectl {args:?} takes too long"))??;
        if !output.status.success() {
            bail!(
                "kubectl {args:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Creates objects from their JSON.
    pub(crate) async fn apply(&self, cluster: &Cluster, objects: &Value) -> anyhow::Result<()> {
        let file = cluster.path("objects.json");
        tokio::fs::write(&file, objects.to_string()).await?;
        let file = file.to_str().context("a path that is text")?;
        self.kubectl(&["apply", "-f", file]).await.map(drop)
    }

    /// All pods of the namespace.
    pub(crate) async fn pods(&self) -> anyhow::Result<Vec<Value>> {
        let listed = self.kubectl(&["get", "pods", "-o", "json"]).await?;
        let mut listed: Value = serde_json::from_str(&listed)?;
        match listed["items"].take() {
            Value::Array(pods) => Ok(pods),
            other => bail!("no list of pods: {other}"),
        }
    }

    /// The names of all pods with their uids.
    pub(crate) async fn uids(&self) -> anyhow::Result<BTreeSet<(String, String)>> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let pods = self.pods().await?;
        let uids = pods.iter().map(|pod| {
            let metadata = &pod["metadata"];
            (text(&metadata["name"]), text(&metadata["uid"]))
        });
        Ok(uids.collect())
    }

    /// Peers that make pods in it.
    pub(crate) async fn peers(&self, peers: usize) -> anyhow::Result<Cluster> {
        let flags = [
            "--provider",
            "kubernetes",
            "--kubernetes-namespace",
            &self.name,
        ];
        Cluster::start_with(Options {
            peers,
            flags: flags.map(str::to_owned).into(),
            environment: vec![("KUBECONFIG".into(), self.config.clone())],
            ..Options::default()
        })
        .await
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let deleted = std::process::Command::new("kubectl")
            .args(["delete", "namespace", &self.name, "--wait=false"])
            .env("KUBECONFIG", &self.config)
            .stdout(Stdio::null())
            .status();
        if !deleted.is_ok_and(|status| status.success()) {
            eprintln!("namespace {} is left", self.name);
        }
    }
}

/// A service whose replicas answer with their numbers.
pub(crate) fn service(name: &str, replicas: u32) -> String {
    format!(
        "name: {name}\n\
         service: {{readiness_probe: /, replicas: {replicas}}}\n\
         resources: {{ports: 8080}}\n\
         _metadata: {{raftserve: {{drain_timeout_seconds: 1, stop_grace_seconds: 2}}}}\n\
         secrets: {{WORD: hush}}\n\
         run: |\n  exec python3 -c '\n{PROGRAM}'\n"
    )
}

/// Indented for its place in a block of YAML.
const PROGRAM: &str = "  import http.server, os, signal, sys
  class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = \"HTTP/1.1\"
      def do_GET(self):
          body = os.environ[\"SKYPILOT_SERVE_REPLICA_ID\"].encode()
          self.send_response(200)
          self.send_header(\"x-word\", os.environ.get(\"WORD\", \"\"))
          self.send_header(\"content-length\", str(len(body)))
          self.end_headers()
          self.wfile.write(body)
      def log_message(self, *args):
          pass
  signal.signal(signal.SIGTERM, lambda *args: sys.exit(0))
  http.server.ThreadingHTTPServer((\"\", 8080), Handler).serve_forever()
  ";

/// Waits until exactly so many replicas are ready and none is on its way, and returns their numbers.
pub(crate) async fn ready(cluster: &Cluster, replicas: usize) -> anyhow::Result<BTreeSet<u32>> {
    wait::until("ready replicas", SETTLE, async || {
        let all = any_admin(cluster)?.replicas().await?;
        let ready: BTreeSet<u32> = all
            .iter()
            .filter(|it| it.status() == v1::ReplicaStatus::Ready)
            .map(|it| it.id)
            .collect();
        let other = all.iter().any(|it| {
            let status = it.status();
            status != v1::ReplicaStatus::Ready && status != v1::ReplicaStatus::Failed
        });
        ensure!(ready.len() == replicas && !other, "{all:?}");
        Ok(ready)
    })
    .await
}

/// The admin API of a peer that runs.
pub(crate) fn any_admin(cluster: &Cluster) -> anyhow::Result<jepsen_tests::admin::Admin> {
    let started = cluster.started();
    let first = started.first().context("a peer that runs")?;
    Ok(cluster.admin(*first))
}

/// One request through a peer; the number of the replica that answered.
pub(crate) async fn ask(cluster: &Cluster, peer: usize) -> anyhow::Result<String> {
    let proxy = cluster.peer(peer).setup.ports.proxy;
    let reply = http::get(proxy, "/").await;
    let reply = reply.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    ensure!(reply.status == 200, "{}", reply.status);
    Ok(String::from_utf8_lossy(&reply.body).into_owned())
}
