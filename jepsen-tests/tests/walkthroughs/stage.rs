//! What every walk-through stands on: the example's folder, a namespace, and the three programs that its reader types.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use jepsen_tests::kube::{Kube, Namespace, Pod, chart};
use jepsen_tests::peer::clean_command;
use jepsen_tests::steady::{Running, Steady};
use jepsen_tests::{binary, http, wait};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::{Mutex, RwLock};

/// The release's name, and that of its StatefulSet and client Service, but where a walk-through says otherwise.
pub(crate) const RELEASE: &str = "raftserve";

/// The peers' pods.
pub(crate) const PEERS: &str = "app.kubernetes.io/name=raftserve,app.kubernetes.io/component=peer";

/// Long beside anything that the cluster does by itself.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// The longest that a walk-through may take.
const WALK_MAX: Duration = Duration::from_secs(600);

/// How long a command of `raftserve` may take; `up` waits for its replicas.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(180);

/// The ops port of a pod.
pub(crate) const OPS: u16 = 7002;

/// They share the nodes: who sends a load has them to itself, since load would meet load.
static MACHINE: RwLock<()> = RwLock::const_new(());

/// Where an example's files are.
pub(crate) fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/kubernetes")
}

/// Walks through the example `name` in a namespace of its own, if there is a cluster to do so. No other walk-through goes on
/// meanwhile.
pub(crate) async fn walk(
    name: &str,
    case: impl AsyncFnOnce(&Walk) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    walk_as(name, name, case).await
}

/// The same, in a namespace that is not named for the example.
pub(crate) async fn walk_as(
    name: &str,
    example: &str,
    case: impl AsyncFnOnce(&Walk) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let _machine = MACHINE.write().await;
    go(name, example, case).await
}

/// As [`walk`], but beside others of its kind.
pub(crate) async fn walk_abreast(
    name: &str,
    case: impl AsyncFnOnce(&Walk) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    walk_abreast_as(name, name, case).await
}

/// As [`walk_as`], but beside others of its kind.
pub(crate) async fn walk_abreast_as(
    name: &str,
    example: &str,
    case: impl AsyncFnOnce(&Walk) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let _machine = MACHINE.read().await;
    go(name, example, case).await
}

async fn go(
    name: &str,
    example: &str,
    case: impl AsyncFnOnce(&Walk) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let Some(kube) = Kube::named().await? else {
        return Ok(());
    };
    let began = Instant::now();
    let home = Arc::new(tempfile::tempdir()?);
    let walk = Walk::begin(
        &kube,
        example,
        &format!("walk-{name}"),
        home,
        Arc::default(),
    )
    .await?;
    let walked = tokio::time::timeout(WALK_MAX, case(&walk)).await;
    let walked = walked.with_context(|| format!("it did not end in {WALK_MAX:?}"));
    if let Err(error) = walked.and_then(|walked| walked) {
        walk.describe().await;
        walk.give_up().await;
        return Err(error.context(name.to_owned()));
    }
    eprintln!("{name}: walked in {:.1?}", began.elapsed());
    walk.namespace.delete().await
}

/// A walk-through under way.
#[derive(Debug)]
pub(crate) struct Walk {
    pub(crate) namespace: Namespace,
    /// The release's name.
    pub(crate) release: String,
    folder: PathBuf,
    program: PathBuf,
    /// With the reader's settings.
    home: Arc<TempDir>,
    /// The reader's context, which is the namespace.
    config: PathBuf,
    /// All namespaces of the walk-through so far.
    namespaces: Arc<Mutex<Vec<Namespace>>>,
}

impl Walk {
    /// Nothing is done yet.
    async fn begin(
        kube: &Kube,
        example: &str,
        name: &str,
        home: Arc<TempDir>,
        namespaces: Arc<Mutex<Vec<Namespace>>>,
    ) -> anyhow::Result<Self> {
        let namespace = kube.open_namespace(name).await?;
        namespaces.lock().await.push(namespace.clone());
        Ok(Self {
            config: namespace.context(home.path()).await?,
            namespace,
            release: RELEASE.to_owned(),
            folder: examples().join(example),
            program: binary::raftserve()?,
            home,
            namespaces,
        })
    }

    /// The same reader, with another namespace and a release of another name.
    pub(crate) async fn elsewhere(
        &self,
        example: &str,
        name: &str,
        release: &str,
    ) -> anyhow::Result<Self> {
        let home = Arc::clone(&self.home);
        let namespaces = Arc::clone(&self.namespaces);
        let mut walk = Self::begin(self.namespace.kube(), example, name, home, namespaces).await?;
        release.clone_into(&mut walk.release);
        Ok(walk)
    }

    /// A file of the example.
    pub(crate) fn file(&self, name: &str) -> anyhow::Result<String> {
        let path = self.folder.join(name);
        ensure!(path.is_file(), "there is no {}", path.display());
        path.to_str().map(str::to_owned).context("a path in UTF-8")
    }

    /// `helm VERB RELEASE ./chart --values values.yaml`, with the image under test.
    pub(crate) async fn helm(&self, verb: &str, settings: &[&str]) -> anyhow::Result<()> {
        self.helm_of(&chart(), verb, settings).await
    }

    /// The same, of another chart.
    pub(crate) async fn helm_of(
        &self,
        chart: &Path,
        verb: &str,
        settings: &[&str],
    ) -> anyhow::Result<()> {
        let image = &self.namespace.kube().image;
        self.helm_with(chart, image, verb, settings).await
    }

    /// The same, with another image.
    pub(crate) async fn helm_with(
        &self,
        chart: &Path,
        image: &str,
        verb: &str,
        settings: &[&str],
    ) -> anyhow::Result<()> {
        let (repository, tag) = image.rsplit_once(':').unwrap_or((image, ""));
        let chart = chart.display().to_string();
        let values = self.file("values.yaml")?;
        let repository = format!("image.repository={repository}");
        let tag = format!("image.tag={tag}");
        let mut arguments = vec![verb, &self.release, &chart, "--values", &values];
        for setting in [&repository[..], &tag].iter().chain(settings) {
            arguments.extend(["--set", setting]);
        }
        self.namespace.helm(&arguments).await.map(drop)
    }

    /// Installs the chart, and waits until so many peers are ready.
    pub(crate) async fn install(&self, peers: usize, settings: &[&str]) -> anyhow::Result<()> {
        self.helm("install", settings).await?;
        self.await_peers(peers).await
    }

    pub(crate) async fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        self.namespace.kubectl(args).await
    }

    /// `raftserve ARGS`, as the reader types it; what it prints.
    pub(crate) async fn raftserve(&self, args: &[&str]) -> anyhow::Result<String> {
        self.raftserve_reading("", args).await
    }

    /// Puts a key, again where a try meets an election.
    pub(crate) async fn put(&self, key: &str, value: &str) -> anyhow::Result<()> {
        wait::until("an agreed write", PATIENCE, async || {
            let put = self.raftserve(&["kv", "put", key, value]).await;
            put.map(drop)
        })
        .await
    }

    /// `raftserve ARGS` with `input` to read.
    pub(crate) async fn raftserve_reading(
        &self,
        input: &str,
        args: &[&str],
    ) -> anyhow::Result<String> {
        let mut child = Command::from(clean_command(&self.program))
            .args(args)
            .env("KUBECONFIG", &self.config)
            .env("XDG_CONFIG_HOME", self.home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        let output = tokio::time::timeout(COMMAND_TIME_MAX, child.wait_with_output()).await;
        let output = output.with_context(|| format!("raftserve {args:?} takes too long"))??;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("raftserve {args:?}: {}\n{said}{error}", output.status);
        }
        Ok(said)
    }

    /// `raftserve status NAME --endpoint`, as an address and a path.
    pub(crate) async fn endpoint(&self, service: &str) -> anyhow::Result<SocketAddr> {
        let url = self.raftserve(&["status", service, "--endpoint"]).await?;
        let address = url.trim().strip_prefix("http://");
        let address = address.with_context(|| format!("no URL: {url}"))?;
        address
            .parse()
            .with_context(|| format!("{url} names no address"))
    }

    /// `curl http://ADDRESS/PATH`, which is to be answered with 200.
    pub(crate) async fn curl(&self, address: SocketAddr, path: &str) -> anyhow::Result<String> {
        let reply = http::get(address, path).await;
        let reply = reply.map_err(|failure| anyhow::anyhow!("{address}{path}: {failure:?}"))?;
        ensure!(reply.status == 200, "{address}{path}: {}", reply.status);
        Ok(String::from_utf8_lossy(&reply.body).into_owned())
    }

    /// The peers' pods.
    pub(crate) async fn peers(&self) -> anyhow::Result<Vec<Pod>> {
        self.namespace.pods(PEERS).await
    }

    /// Waits until so many peers are there, all ready.
    pub(crate) async fn await_peers(&self, count: usize) -> anyhow::Result<()> {
        wait::until("ready peers", PATIENCE, async || {
            let pods = self.peers().await?;
            let well = pods.iter().all(|pod| pod.ready && !pod.going);
            ensure!(well && pods.len() == count, "{pods:?}");
            Ok(())
        })
        .await
    }

    /// Waits until another pod than `pod` bears its name, and all peers are ready.
    pub(crate) async fn await_successor(&self, pod: &Pod, peers: usize) -> anyhow::Result<()> {
        wait::until("the pod's successor", PATIENCE, async || {
            let pods = self.peers().await?;
            ensure!(pods.iter().all(|other| other.uid != pod.uid), "{pods:?}");
            Ok(())
        })
        .await?;
        self.await_peers(peers).await
    }

    /// The pods of a service's replicas.
    pub(crate) async fn replicas(&self, service: &str) -> anyhow::Result<Vec<Pod>> {
        let of = format!("raftserve.io/service={service}");
        self.namespace.pods(&of).await
    }

    /// The pod of the peer that leads.
    pub(crate) async fn leader(&self) -> anyhow::Result<Pod> {
        wait::until("a leader", PATIENCE, async || {
            for pod in self.peers().await? {
                if self.metric(&pod.name, "raftserve_raft_is_leader").await? == 1.0 {
                    return Ok(pod);
                }
            }
            bail!("nobody leads")
        })
        .await
    }

    /// The sum of a peer's metrics whose names, with labels, begin so.
    pub(crate) async fn metric(&self, pod: &str, name: &str) -> anyhow::Result<f64> {
        let text = self.namespace.pod_path(pod, OPS, "/metrics").await?;
        let values: BTreeMap<&str, f64> = text
            .lines()
            .filter(|line| line.starts_with(name))
            .filter_map(|line| line.rsplit_once(' '))
            .filter_map(|(name, value)| Some((name, value.parse().ok()?)))
            .collect();
        ensure!(!values.is_empty(), "{pod} tells no {name}");
        Ok(values.values().sum())
    }

    /// A steady load on a path, through the port for all services on every node.
    pub(crate) async fn load(&self, rate: u32, path: &str) -> anyhow::Result<Running> {
        let entrances = self.namespace.entrances(&self.release, "http").await?;
        let load = Steady {
            rate,
            path: path.to_owned(),
            status: 200,
            retries: 0,
            patience: jepsen_tests::http::REQUEST_TIME_MAX,
            keep: true,
            ports: None,
        };
        wait::until("the Service", PATIENCE, async || {
            for entrance in &entrances {
                self.curl(*entrance, path).await?;
            }
            Ok(())
        })
        .await?;
        Ok(load.start(entrances))
    }

    /// What follows a failure, once it has been described.
    async fn give_up(&self) {
        for namespace in self.namespaces.lock().await.iter() {
            namespace.give_up().await;
        }
    }

    /// Says what is there when it has failed.
    async fn describe(&self) {
        let looks: [&[&str]; 3] = [
            &["get", "pods,statefulsets,services", "-o", "wide"],
            &["get", "events", "--sort-by=.lastTimestamp"],
            &["logs", "-l", PEERS, "--tail=40", "--prefix"],
        ];
        let namespace = &self.namespace.name;
        for look in looks {
            match self.kubectl(look).await {
                Ok(text) => eprintln!("--- {namespace} {look:?}\n{text}"),
                Err(error) => eprintln!("--- {namespace} {look:?}: {error:#}"),
            }
        }
        match self.raftserve(&["status", "--verbose"]).await {
            Ok(text) => eprintln!("{text}"),
            Err(error) => eprintln!("{error:#}"),
        }
    }
}
