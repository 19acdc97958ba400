//! One release in a namespace of its own, and what the cases ask of it.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::future::join_all;
use jepsen_tests::http::REQUEST_TIME_MAX;
use jepsen_tests::kube::{Kube, Namespace, Pod, chart};
use jepsen_tests::steady::{Running, Steady};
use jepsen_tests::wait;
use tokio::sync::RwLock;

/// The release's name, and that of its StatefulSet and client Service.
pub(crate) const RELEASE: &str = "rs";

/// The peers' pods.
pub(crate) const PEERS: &str = "app.kubernetes.io/instance=rs,app.kubernetes.io/component=peer";

/// The ops port of a pod.
const OPS: u16 = 7002;

/// Long beside anything that the cluster does by itself.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// The longest that a case may take in its short form; the full one has ten times as many requests.
const CASE_MAX: Duration = Duration::from_secs(1_500);

/// Requests a second.
pub(crate) const RATE: u32 = 200;

/// They share nodes: who sends a load has them to itself, since load would meet load; so has who kills a node.
static MACHINE: RwLock<()> = RwLock::const_new(());

/// Runs `case` on the cluster that the environment names, in the namespace `name`, with a release of the chart. No other case
/// runs meanwhile.
pub(crate) async fn on_release<F>(
    name: &str,
    settings: &[&str],
    case: impl FnOnce(Release) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let _machine = MACHINE.write().await;
    play(name, settings, case).await
}

/// The same, beside others of its kind.
pub(crate) async fn on_release_abreast<F>(
    name: &str,
    settings: &[&str],
    case: impl FnOnce(Release) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let _machine = MACHINE.read().await;
    play(name, settings, case).await
}

async fn play<F>(
    name: &str,
    settings: &[&str],
    case: impl FnOnce(Release) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let Some(kube) = Kube::named().await? else {
        return Ok(());
    };
    let began = Instant::now();
    let namespace = kube.namespace(name).await?;
    let release = Release {
        kube,
        namespace: namespace.clone(),
    };
    let played = async {
        release.install(settings).await?;
        eprintln!("{name}: installed in {:.1?}", began.elapsed());
        case(release.clone()).await
    };
    let played = tokio::time::timeout(CASE_MAX, played).await;
    let played = played.with_context(|| format!("the case did not end in {CASE_MAX:?}"));
    if let Err(error) = played.and_then(|played| played) {
        release.describe().await;
        namespace.give_up().await;
        return Err(error.context(name.to_owned()));
    }
    eprintln!("{name}: played in {:.1?}", began.elapsed());
    namespace.delete().await
}

/// A release of the chart.
#[derive(Clone, Debug)]
pub(crate) struct Release {
    pub(crate) kube: Kube,
    pub(crate) namespace: Namespace,
}

/// What a peer tells about itself, by metric.
pub(crate) type Metrics = BTreeMap<String, f64>;

impl Release {
    fn arguments(&self, verb: &str, settings: &[&str]) -> Vec<String> {
        let (repository, tag) = self
            .kube
            .image
            .rsplit_once(':')
            .unwrap_or((&self.kube.image, ""));
        let chart = chart().display().to_string();
        let own = [verb, RELEASE, &chart].map(str::to_owned);
        let image = [
            format!("image.repository={repository}"),
            format!("image.tag={tag}"),
            "service.type=NodePort".to_owned(),
            format!("fullnameOverride={RELEASE}"),
        ];
        let settings = settings.iter().map(|it| (*it).to_owned());
        let set = image.into_iter().chain(settings);
        own.into_iter()
            .chain(set.flat_map(|it| ["--set".to_owned(), it]))
            .collect()
    }

    /// Installs the release, and waits until every peer is ready.
    pub(crate) async fn install(&self, settings: &[&str]) -> anyhow::Result<()> {
        self.helm("install", settings).await?;
        let wanted = self.wanted().await?;
        self.await_ready(wanted).await
    }

    /// Changes the release. Does not wait.
    pub(crate) async fn upgrade(&self, settings: &[&str]) -> anyhow::Result<()> {
        self.helm("upgrade", settings).await
    }

    async fn helm(&self, verb: &str, settings: &[&str]) -> anyhow::Result<()> {
        let arguments = self.arguments(verb, settings);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.namespace.helm(&arguments).await.map(drop)
    }

    /// How many peers the StatefulSet wants.
    pub(crate) async fn wanted(&self) -> anyhow::Result<usize> {
        let path = [
            "get",
            "statefulset",
            RELEASE,
            "-o",
            "jsonpath={.spec.replicas}",
        ];
        Ok(self.namespace.kubectl(&path).await?.parse()?)
    }

    /// Sets how many it wants.
    pub(crate) async fn scale(&self, peers: usize) -> anyhow::Result<()> {
        let replicas = format!("--replicas={peers}");
        self.namespace
            .kubectl(&["scale", "statefulset", RELEASE, &replicas])
            .await
            .map(drop)
    }

    /// Waits until the last change has reached every pod.
    pub(crate) async fn await_rollout(&self) -> anyhow::Result<()> {
        let set = format!("statefulset/{RELEASE}");
        self.namespace
            .kubectl(&["rollout", "status", &set, "--timeout=280s"])
            .await
            .map(drop)
    }

    /// The peers' pods.
    pub(crate) async fn pods(&self) -> anyhow::Result<Vec<Pod>> {
        self.namespace.pods(PEERS).await
    }

    /// Waits until there are `count` pods, all ready and none told to stop.
    pub(crate) async fn await_ready(&self, count: usize) -> anyhow::Result<()> {
        wait::until("all peers ready", PATIENCE, async || {
            let pods = self.pods().await?;
            let well = pods.iter().all(|pod| pod.ready && !pod.going);
            ensure!(well && pods.len() == count, "{pods:?}");
            Ok(())
        })
        .await
    }

    /// Waits until another pod stands where `pod` stood, and all three are ready.
    pub(crate) async fn await_successor(&self, pod: &Pod) -> anyhow::Result<()> {
        wait::until("the pod's successor", PATIENCE, async || {
            let pods = self.pods().await?;
            ensure!(pods.iter().all(|other| other.uid != pod.uid), "{pods:?}");
            Ok(())
        })
        .await?;
        self.await_ready(3).await
    }

    /// What the peer in a pod tells about itself.
    pub(crate) async fn metrics(&self, pod: &str) -> anyhow::Result<Metrics> {
        let text = self.namespace.pod_path(pod, OPS, "/metrics").await?;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Ok(lines
            .filter_map(|line| {
                let (name, value) = line.rsplit_once(' ')?;
                Some((name.to_owned(), value.parse().ok()?))
            })
            .collect())
    }

    /// One of them.
    pub(crate) async fn metric(&self, pod: &str, name: &str) -> anyhow::Result<f64> {
        let metrics = self.metrics(pod).await?;
        let found = metrics.get(&format!("raftserve_{name}")).copied();
        found.with_context(|| format!("{pod} tells no {name}"))
    }

    /// The pod of the peer that leads.
    pub(crate) async fn leader(&self) -> anyhow::Result<Pod> {
        wait::until("a leader", PATIENCE, async || {
            let pods = self.pods().await?;
            let leads = pods
                .iter()
                .map(|pod| self.metric(&pod.name, "raft_is_leader"));
            let leads = join_all(leads).await;
            let mut told = pods.into_iter().zip(leads);
            let leader = told.find(|(_, leads)| leads.as_ref().is_ok_and(|leads| *leads == 1.0));
            Ok(leader.context("nobody leads")?.0)
        })
        .await
    }

    /// Waits until every peer knows of exactly so many voters and learners.
    pub(crate) async fn await_members(&self, voters: usize, learners: usize) -> anyhow::Result<()> {
        let what = format!("{voters} voters and {learners} learners");
        wait::until(&what, PATIENCE, async || {
            for pod in self.pods().await?.iter().filter(|pod| !pod.going) {
                let seen = [
                    self.metric(&pod.name, "raft_voters").await?,
                    self.metric(&pod.name, "raft_learners").await?,
                ];
                ensure!(
                    seen == [voters as f64, learners as f64],
                    "{}: {seen:?}",
                    pod.name
                );
            }
            Ok(())
        })
        .await
    }

    /// The cluster's id, as it is written down.
    pub(crate) async fn cluster(&self) -> anyhow::Result<String> {
        let name = format!("{RELEASE}-cluster");
        let path = ["get", "configmap", &name, "-o", "jsonpath={.data.cluster}"];
        self.namespace.kubectl(&path).await
    }

    /// Where every node takes requests for the peers.
    pub(crate) async fn entrances(&self) -> anyhow::Result<Vec<SocketAddr>> {
        self.namespace.entrances(RELEASE, "http").await
    }

    /// Starts a load through the client Service, once every node takes it.
    pub(crate) async fn load(&self, load: Steady) -> anyhow::Result<Running> {
        let entrances = self.entrances().await?;
        // The first requests after an install may come before the nodes know the endpoints.
        wait::until("the Service", PATIENCE, async || {
            for entrance in &entrances {
                let answer = jepsen_tests::http::get(*entrance, &load.path).await;
                ensure!(
                    answer
                        .as_ref()
                        .is_ok_and(|answer| answer.status == load.status),
                    "{entrance}: {answer:?}"
                );
            }
            Ok(())
        })
        .await?;
        Ok(load.start(entrances))
    }

    /// Says what is there when a case has failed.
    async fn describe(&self) {
        let looks: [&[&str]; 3] = [
            &["get", "pods,statefulsets,endpointslices", "-o", "wide"],
            &["get", "events", "--sort-by=.lastTimestamp"],
            &["logs", "-l", PEERS, "--tail=60", "--prefix"],
        ];
        let namespace = &self.namespace.name;
        for look in looks {
            match self.namespace.kubectl(look).await {
                Ok(text) => eprintln!("--- {namespace} {look:?}\n{text}"),
                Err(error) => eprintln!("--- {namespace} {look:?}: {error:#}"),
            }
        }
    }
}

/// A load of requests that peers without services answer themselves, with 404: they have been reached.
pub(crate) fn peers_only() -> Steady {
    Steady {
        rate: RATE,
        path: "/no-such-service/".to_owned(),
        status: 404,
        retries: 0,
        patience: REQUEST_TIME_MAX,
        keep: true,
        ports: None,
    }
}
