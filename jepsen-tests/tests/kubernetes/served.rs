//! A service whose replicas are pods, behind the peers of a release, and what must hold of those pods whatever is done to the
//! peers: never more than wanted, none restarted or replaced without cause, none left behind.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use jepsen_tests::access::Credential;
use jepsen_tests::admin::{Admin, v1};
use jepsen_tests::kube::watched::{Seen, Watched};
use jepsen_tests::kube::{Namespace, Pod};
use jepsen_tests::steady::Steady;
use jepsen_tests::wait;
use tempfile::TempDir;

use crate::stage::{PATIENCE, RELEASE, Release, peers_only};

/// How many replicas it has.
pub(crate) const REPLICAS: usize = 2;

/// The service's name.
pub(crate) const NAME: &str = "steady";

/// Its pods.
pub(crate) const PODS: &str = "raftserve.io/service=steady";

/// The key of what peers are to keep, whatever becomes of them.
pub(crate) const KEPT: &str = "kept";

/// The port of a peer's admin API.
pub(crate) const ADMIN: u16 = 7_000;

/// A replica answers with its number, in one piece: who dies between the head of an answer and its end has begun what no proxy
/// may begin anew. It asks for as much of a processor as a peer: without, everything on the node that does ask goes first, and
/// for a moment in which the peers are busy nobody answers. It passes Pod Security `restricted`, as everything in the tests'
/// namespaces must.
const SERVICE: &str = r#"
name: steady
service:
  readiness_probe: {path: /, endpoint_probe_interval_seconds: 1}
  replicas: 2
resources: {cpus: 0.25, ports: 8080, image_id: "docker:python:3.11-slim"}
_metadata: {raftserve: {drain_timeout_seconds: 5, stop_grace_seconds: 5}}
config:
  kubernetes:
    pod_config:
      spec:
        securityContext:
          {runAsNonRoot: true, runAsUser: 10001, seccompProfile: {type: RuntimeDefault}}
        containers:
          - securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
run: |
  exec python3 -c '
  import http.server, os, signal, sys
  class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"
      disable_nagle_algorithm = True
      wbufsize = 65536
      def do_GET(self):
          body = os.environ["SKYPILOT_SERVE_REPLICA_ID"].encode()
          self.send_response(200)
          self.send_header("content-length", str(len(body)))
          self.end_headers()
          self.wfile.write(body)
      def log_message(self, *args):
          pass
  class Server(http.server.ThreadingHTTPServer):
      request_queue_size = 512
  signal.signal(signal.SIGTERM, lambda *args: sys.exit(0))
  Server(("", 8080), Handler).serve_forever()
  '
"#;

/// The service, and the watch of its pods.
pub(crate) struct Served {
    release: Release,
    /// Where its pods are.
    namespace: Namespace,
    watched: Watched,
    credential: Credential,
    _folder: Arc<TempDir>,
}

impl Release {
    /// What was made at install for an administrator.
    pub(crate) async fn credential(&self, folder: &TempDir) -> anyhow::Result<Credential> {
        let secret = async |secret: &str, key: &str| {
            let name = format!("{RELEASE}-{secret}");
            let template = format!("go-template={{{{index .data \"{key}\" | base64decode}}}}");
            let read = ["get", "secret", &name, "-o", &template];
            self.namespace.kubectl(&read).await
        };
        let authorities = folder.path().join("ca.crt");
        tokio::fs::write(&authorities, secret("certificates", "ca.crt").await?).await?;
        Ok(Credential {
            authorities,
            token: Some(secret("credentials", "admin-token").await?),
            name: Some("localhost".to_owned()),
        })
    }

    /// Brings the service up, and begins to watch its pods.
    pub(crate) async fn serve(&self) -> anyhow::Result<Served> {
        self.serve_in(&self.namespace).await
    }

    /// The same, where its pods are in `namespace`.
    pub(crate) async fn serve_in(&self, namespace: &Namespace) -> anyhow::Result<Served> {
        let folder = TempDir::new()?;
        let served = Served {
            release: self.clone(),
            namespace: namespace.clone(),
            watched: namespace.watch_pods(PODS)?,
            credential: self.credential(&folder).await?,
            _folder: Arc::new(folder),
        };
        // As a client would, which is told to try again where the cluster could not agree in time.
        wait::until("the service's start", PATIENCE, async || {
            Ok(served.admin().await?.apply(SERVICE).await?)
        })
        .await?;
        served.await_ready().await?;
        Ok(served)
    }
}

impl Served {
    /// The admin API of the peer in a pod.
    pub(crate) fn admin_at(&self, address: std::net::IpAddr) -> Admin {
        Admin::with(SocketAddr::new(address, ADMIN), &self.credential)
    }

    /// The admin API of a peer that is ready.
    pub(crate) async fn admin(&self) -> anyhow::Result<Admin> {
        let pods = self.release.pods().await?;
        let ready = pods.iter().find(|pod| pod.ready && !pod.going);
        let address = ready.and_then(|pod| pod.address);
        Ok(self.admin_at(address.context("no peer is ready")?))
    }

    /// Has the peers keep a value.
    pub(crate) async fn keep(&self, value: &'static str) -> anyhow::Result<()> {
        wait::until("a write", PATIENCE, async || {
            let admin = self.admin().await?;
            Ok(admin.put_key(KEPT, value, None, None).await.map(drop)?)
        })
        .await
    }

    /// Looks whether they have kept it.
    pub(crate) async fn ensure_kept(&self, value: &str) -> anyhow::Result<()> {
        let entry = wait::until("a read", PATIENCE, async || {
            Ok(self.admin().await?.key(KEPT).await?)
        });
        let entry = entry.await?.context("the key is lost")?;
        ensure!(entry.value == value.as_bytes(), "{entry:?}");
        Ok(())
    }

    /// What stands in the way of the service, as its status tells.
    pub(crate) async fn hindrance(&self) -> anyhow::Result<String> {
        let service = self.admin().await?.service(NAME).await?;
        Ok(service.context("no service")?.hindrance)
    }

    /// What the peers say of its replicas.
    async fn replicas(&self) -> anyhow::Result<Vec<v1::Replica>> {
        let mut all = self.admin().await?.replicas().await?;
        all.retain(|replica| replica.service_name == NAME);
        Ok(all)
    }

    /// Waits until the peers say that every replica is ready, and there are no others that stand.
    pub(crate) async fn await_ready(&self) -> anyhow::Result<BTreeSet<u32>> {
        wait::until("ready replicas", PATIENCE, async || {
            let all = self.replicas().await?;
            let told = |status| {
                let those = all.iter().filter(move |it| it.status() == status);
                those.map(|it| it.id).collect::<BTreeSet<u32>>()
            };
            let ready = told(v1::ReplicaStatus::Ready);
            let gone = [
                v1::ReplicaStatus::Failed,
                v1::ReplicaStatus::FailedProvision,
                v1::ReplicaStatus::Preempted,
            ];
            let gone: usize = gone.map(|status| told(status).len()).iter().sum();
            ensure!(
                ready.len() == REPLICAS && ready.len() + gone == all.len(),
                "{all:?}"
            );
            Ok(ready)
        })
        .await
    }

    /// Waits until all replicas that are ready are elsewhere than on `node`. What was there is not gone before the node says
    /// so.
    pub(crate) async fn await_replaced(&self, node: &str) -> anyhow::Result<()> {
        wait::until("replicas on other nodes", PATIENCE, async || {
            let pods = self.namespace.pods(PODS).await?;
            let well = pods.iter().filter(|pod| pod.ready && pod.node != node);
            let all = self.replicas().await?;
            let ready = all
                .iter()
                .filter(|it| it.status() == v1::ReplicaStatus::Ready);
            ensure!(
                well.count() == REPLICAS && ready.count() == REPLICAS,
                "{all:?}, {pods:?}"
            );
            Ok(())
        })
        .await
    }

    /// Waits until `peer` gives `words` as the reason of a replica's state, and returns when it did.
    pub(crate) async fn await_told(&self, peer: &Pod, words: &str) -> anyhow::Result<Instant> {
        let admin = self.admin_at(peer.address.context("a peer without an address")?);
        wait::until("the reason", PATIENCE, async || {
            let all = admin.replicas().await?;
            ensure!(all.iter().any(|it| it.reason.contains(words)), "{all:?}");
            Ok(Instant::now())
        })
        .await
    }

    /// Requests that only replicas answer with 200.
    pub(crate) fn requests(&self, retries: usize) -> Steady {
        Steady {
            path: format!("/{NAME}/"),
            status: 200,
            retries,
            ..peers_only()
        }
    }

    /// What was seen of the pods.
    pub(crate) fn seen(&self) -> anyhow::Result<Seen> {
        self.watched.seen()
    }

    /// Looks at all that was seen: so many replicas, and no more, were replaced. Then takes the service down, after which
    /// nothing is left.
    pub(crate) async fn finish(self, replaced: usize) -> anyhow::Result<()> {
        let ready = self.await_ready().await?;
        // The node of one that is told to stop may have been away.
        wait::until("no other pods", PATIENCE, async || {
            let pods = self.namespace.pods(PODS).await?;
            ensure!(pods.len() == ready.len(), "{ready:?}, and pods: {pods:?}");
            Ok(())
        })
        .await?;
        let seen = self.seen()?;
        ensure!(seen.most <= REPLICAS, "too many at one time: {seen:?}");
        ensure!(
            seen.pods.values().all(|pod| pod.restarts == 0),
            "restarted: {seen:?}"
        );
        ensure!(
            seen.pods.len() == REPLICAS + replaced,
            "{replaced} were to be replaced: {seen:?}"
        );
        wait::until("the service's end", PATIENCE, async || {
            let admin = self.admin().await?;
            if admin.service(NAME).await?.is_some() {
                admin.delete(NAME).await?;
            }
            Ok(())
        })
        .await?;
        wait::until("no replica", PATIENCE, async || {
            let pods = self.namespace.pods(PODS).await?;
            ensure!(pods.is_empty(), "{pods:?}");
            Ok(())
        })
        .await?;
        let seen = self.seen()?;
        ensure!(seen.pods.values().all(|pod| !pod.stands), "left: {seen:?}");
        ensure!(seen.most <= REPLICAS, "too many at one time: {seen:?}");
        Ok(())
    }
}
