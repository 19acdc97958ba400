//! What every test stands on: a namespace, peers that make pods in it, and a service that tells which replica answers.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use jepsen_tests::admin::v1;
use jepsen_tests::cluster::{Cluster, Options};
use jepsen_tests::kube::{Kube, Namespace};
use jepsen_tests::{http, wait};

/// The longest that anything may take on a loaded machine; only a hang meets it.
pub(crate) const SETTLE: Duration = Duration::from_secs(90);

/// Runs `case` in a namespace of its own, if there is a cluster to test on.
pub(crate) async fn on_namespace(
    name: &str,
    case: impl AsyncFnOnce(&Namespace) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let Some(kube) = Kube::named().await? else {
        return Ok(());
    };
    let namespace = kube.open_namespace(&format!("pods-{name}")).await?;
    let began = Instant::now();
    if let Err(error) = case(&namespace).await {
        namespace.give_up().await;
        return Err(error.context(name.to_owned()));
    }
    eprintln!("pods-{name}: played in {:.1?}", began.elapsed());
    namespace.delete().await
}

/// Peers that make pods in the namespace.
pub(crate) async fn peers(namespace: &Namespace, peers: usize) -> anyhow::Result<Cluster> {
    peers_by(namespace, peers, namespace.kube().config()).await
}

/// The same, by a configuration of their own.
pub(crate) async fn peers_by(
    namespace: &Namespace,
    peers: usize,
    config: &Path,
) -> anyhow::Result<Cluster> {
    let flags = [
        "--provider",
        "kubernetes",
        "--kubernetes-namespace",
        &namespace.name,
    ];
    Cluster::start_with(Options {
        peers,
        flags: flags.map(str::to_owned).into(),
        environment: vec![("KUBECONFIG".into(), config.as_os_str().to_owned())],
        ..Options::default()
    })
    .await
}

/// The names of all pods with their uids.
pub(crate) async fn uids(namespace: &Namespace) -> anyhow::Result<BTreeSet<(String, String)>> {
    let pods = namespace.pods("").await?;
    Ok(pods.into_iter().map(|pod| (pod.name, pod.uid)).collect())
}

/// What replicas are given to keep to themselves.
pub(crate) const SECRET: &str = "hush";

/// A service whose replicas answer with their numbers.
pub(crate) fn service(name: &str, replicas: u32) -> String {
    format!(
        "name: {name}\n\
         service: {{readiness_probe: /, replicas: {replicas}}}\n\
         resources: {{ports: 8080}}\n\
         _metadata: {{raftserve: {{drain_timeout_seconds: 1, stop_grace_seconds: 2}}}}\n\
         secrets: {{WORD: {SECRET}}}\n\
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
            !matches!(
                it.status(),
                v1::ReplicaStatus::Ready | v1::ReplicaStatus::Failed | v1::ReplicaStatus::Preempted
            )
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
