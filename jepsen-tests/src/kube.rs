//! A Kubernetes cluster to test on, through `kubectl` and `helm`, as whoever runs a release would use them.
//!
//! Only the cluster that [`KUBECONFIG_VARIABLE`] names is ever touched, and in namespaces of the tests' own: an inherited
//! `KUBECONFIG` may be somebody's production.

use std::env;
use std::ffi::OsStr;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

pub mod watched;

/// Names the configuration of the cluster to test on.
pub const KUBECONFIG_VARIABLE: &str = "RAFTSERVE_TEST_KUBECONFIG";

/// Names the image of raftserve to test, which the nodes have or can pull.
pub const IMAGE_VARIABLE: &str = "RAFTSERVE_TEST_IMAGE";

/// Names the image of the release before this one, which the nodes have or can pull: upgrades from it are tested where it is set.
pub const IMAGE_BEFORE_VARIABLE: &str = "RAFTSERVE_TEST_IMAGE_BEFORE";

/// Set to `1` where nodes may be drained or killed, and volumes deleted.
pub const DISRUPTIVE_VARIABLE: &str = "RAFTSERVE_TEST_DISRUPTIVE";

/// Names the program that kills nodes and changes their networks: `PROGRAM node kill N`, `PROGRAM node up N` and
/// `PROGRAM exec nodeN COMMAND`, as kube-lab has them.
pub const LAB_VARIABLE: &str = "RAFTSERVE_TEST_LAB";

/// Set to `1` where what a failed case has made is to stay, to be looked at. Others then go on beside its pods.
pub const KEEP_VARIABLE: &str = "RAFTSERVE_TEST_KEEP";

/// Names how many requests a case is to see, instead of the short form's.
pub const REQUESTS_VARIABLE: &str = "RAFTSERVE_TEST_REQUESTS";

/// How long a command may take. What waits for the cluster says so itself, and waits less.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(300);

/// How often a node is told to be killed, until it is.
const KILL_TRIES: u32 = 5;

#[expect(
    clippy::disallowed_methods,
    reason = "a test is told by its environment where it may run, there being no command line of its own"
)]
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Power over nodes.
#[derive(Clone, Debug)]
pub struct Lab {
    program: PathBuf,
}

impl Lab {
    /// Kills a node. The program gives up where a process that it is about to kill ends just then; what is left is for the
    /// next try.
    ///
    /// # Errors
    /// If it cannot be done.
    pub async fn kill(&self, number: &str) -> anyhow::Result<()> {
        let mut tries = KILL_TRIES;
        loop {
            tries -= 1;
            match self.node("kill", number).await {
                Err(error) if tries > 0 => eprintln!("{error:#}; once more"),
                ended => return ended,
            }
        }
    }

    /// Starts a node.
    ///
    /// # Errors
    /// If it cannot be done.
    pub async fn start(&self, number: &str) -> anyhow::Result<()> {
        self.node("up", number).await
    }

    /// Runs a command in a node's network.
    ///
    /// # Errors
    /// If it cannot be done.
    pub async fn exec(&self, number: &str, command: &[&str]) -> anyhow::Result<()> {
        let node = format!("node{number}");
        self.run(&[&["exec", &node], command].concat()).await
    }

    async fn node(&self, verb: &str, number: &str) -> anyhow::Result<()> {
        self.run(&["node", verb, number]).await
    }

    async fn run(&self, args: &[&str]) -> anyhow::Result<()> {
        // What starts a node lives on and would hold pipes open.
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let status = timeout(COMMAND_TIME_MAX, command.status()).await;
        let status = status.context("the lab takes too long")??;
        anyhow::ensure!(status.success(), "{}: {status}", args.join(" "));
        Ok(())
    }
}

/// The cluster.
#[derive(Clone, Debug)]
pub struct Kube {
    config: PathBuf,
    /// The image under test.
    pub image: String,
    /// The image of the release before it, if there is one.
    pub image_before: Option<String>,
    /// Whether nodes and volumes may be broken.
    pub disruptive: bool,
    /// How nodes are killed, if they can be.
    pub lab: Option<Lab>,
    /// How many requests a case is to see.
    pub requests: usize,
    keep: bool,
}

impl Kube {
    /// The cluster that the environment names; none if it names none, which is told.
    ///
    /// # Errors
    /// If it is named and cannot be used.
    pub async fn named() -> anyhow::Result<Option<Self>> {
        let Some(config) = variable(KUBECONFIG_VARIABLE) else {
            eprintln!("skipped: {KUBECONFIG_VARIABLE} names no cluster");
            return Ok(None);
        };
        let kube = Self {
            config: PathBuf::from(config),
            image: variable(IMAGE_VARIABLE)
                .unwrap_or_else(|| "localhost/raftserve:test".to_owned()),
            image_before: variable(IMAGE_BEFORE_VARIABLE),
            disruptive: variable(DISRUPTIVE_VARIABLE).is_some_and(|value| value == "1"),
            lab: variable(LAB_VARIABLE).map(|program| Lab {
                program: PathBuf::from(program),
            }),
            requests: match variable(REQUESTS_VARIABLE) {
                Some(count) => count.parse().context(REQUESTS_VARIABLE)?,
                None => 6_000,
            },
            keep: variable(KEEP_VARIABLE).is_some_and(|value| value == "1"),
        };
        kube.kubectl(&["version"]).await?;
        kube.helm(&["version"]).await?;
        Ok(Some(kube))
    }

    async fn run<S: AsRef<OsStr>>(
        &self,
        program: &str,
        args: &[S],
        input: Option<&str>,
    ) -> anyhow::Result<String> {
        let mut command = Command::new(program);
        command
            .args(args)
            .env("KUBECONFIG", &self.config)
            .stdin(input.map_or_else(Stdio::null, |_| Stdio::piped()))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let shown = || {
            let args = args.iter().map(|arg| arg.as_ref().to_string_lossy());
            format!("{program} {}", args.collect::<Vec<_>>().join(" "))
        };
        let ran = async {
            let mut child = command.spawn()?;
            if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
                stdin.write_all(input.as_bytes()).await?;
            }
            child.wait_with_output().await
        };
        let output = timeout(COMMAND_TIME_MAX, ran)
            .await
            .with_context(|| format!("{} takes more than {COMMAND_TIME_MAX:?}", shown()))?
            .with_context(|| format!("cannot run {program}"))?;
        if !output.status.success() {
            bail!("{}: {}", shown(), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `kubectl` to its end.
    ///
    /// # Errors
    /// If it fails, with what it said.
    pub async fn kubectl<S: AsRef<OsStr>>(&self, args: &[S]) -> anyhow::Result<String> {
        self.run("kubectl", args, None).await
    }

    /// Runs `helm` to its end.
    ///
    /// # Errors
    /// If it fails, with what it said.
    pub async fn helm<S: AsRef<OsStr>>(&self, args: &[S]) -> anyhow::Result<String> {
        self.run("helm", args, None).await
    }

    /// Where the configuration of the cluster is.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// A namespace that is empty and new, for the test `name`, and lets in only pods that pass Pod Security `restricted`.
    ///
    /// # Errors
    /// If it cannot be had.
    pub async fn namespace(&self, name: &str) -> anyhow::Result<Namespace> {
        let namespace = self.open_namespace(name).await?;
        // The chart claims to pass it, so it must.
        let level = "pod-security.kubernetes.io/enforce=restricted";
        self.kubectl(&["label", "namespace", &namespace.name, level])
            .await?;
        Ok(namespace)
    }

    /// The same, for pods of any kind.
    ///
    /// # Errors
    /// If it cannot be had.
    pub async fn open_namespace(&self, name: &str) -> anyhow::Result<Namespace> {
        let name = format!("raftserve-test-{name}");
        self.kubectl(&["delete", "namespace", &name, "--ignore-not-found", "--wait"])
            .await?;
        self.kubectl(&["create", "namespace", &name]).await?;
        Ok(Namespace {
            kube: self.clone(),
            name,
        })
    }

    /// The addresses of the nodes.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn nodes(&self) -> anyhow::Result<Vec<(String, IpAddr)>> {
        let nodes: Value =
            serde_json::from_str(&self.kubectl(&["get", "nodes", "-o", "json"]).await?)?;
        let items = nodes["items"].as_array().context("no nodes")?;
        items
            .iter()
            .map(|node| {
                let addresses = node["status"]["addresses"].as_array();
                let inner = addresses
                    .into_iter()
                    .flatten()
                    .find(|address| address["type"] == "InternalIP")
                    .and_then(|address| address["address"].as_str())
                    .context("a node without an address")?;
                let name = node["metadata"]["name"].as_str().unwrap_or_default();
                Ok((name.to_owned(), inner.parse()?))
            })
            .collect()
    }
}

/// A namespace of a test's own.
#[derive(Clone, Debug)]
pub struct Namespace {
    kube: Kube,
    /// Its name.
    pub name: String,
}

/// A pod as it was last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its identity: a pod of the same name that came later has another.
    pub uid: String,
    /// Its address, once it has one.
    pub address: Option<IpAddr>,
    /// The node that it runs on.
    pub node: String,
    /// Whether it gets requests.
    pub ready: bool,
    /// Whether it is told to stop.
    pub going: bool,
    /// How often its container was started again.
    pub restarts: u64,
}

impl Namespace {
    /// Runs `kubectl` here.
    ///
    /// # Errors
    /// As [`Kube::kubectl`].
    pub async fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        self.kube
            .kubectl(&[&["-n", &self.name], args].concat())
            .await
    }

    /// Runs `helm` here.
    ///
    /// # Errors
    /// As [`Kube::helm`].
    pub async fn helm(&self, args: &[&str]) -> anyhow::Result<String> {
        self.kube.helm(&[&["-n", &self.name], args].concat()).await
    }

    /// The cluster that it is of.
    #[must_use]
    pub fn kube(&self) -> &Kube {
        &self.kube
    }

    /// Creates objects, or changes them, from their JSON.
    ///
    /// # Errors
    /// As [`Kube::kubectl`].
    pub async fn apply(&self, objects: &Value) -> anyhow::Result<()> {
        let args = ["-n", &self.name, "apply", "-f", "-"];
        let objects = objects.to_string();
        let applied = self.kube.run("kubectl", &args, Some(&objects)).await;
        applied.map(drop)
    }

    /// Has the API server look at objects, as YAML, as if they were created here. What it said.
    ///
    /// # Errors
    /// As [`Kube::kubectl`]; also if an object has a field that is not known.
    pub async fn try_create(&self, objects: &str) -> anyhow::Result<String> {
        let args = ["-n", &self.name, "create", "--dry-run=server"];
        let args = [&args[..], &["--validate=strict", "-f", "-"]].concat();
        self.kube.run("kubectl", &args, Some(objects)).await
    }

    /// All objects of a kind that `selector` finds, as JSON, by name.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn objects(&self, kind: &str, selector: &str) -> anyhow::Result<Vec<Value>> {
        let text = self
            .kubectl(&["get", kind, "-l", selector, "-o", "json"])
            .await?;
        let mut list: Value = serde_json::from_str(&text)?;
        let Value::Array(mut items) = list["items"].take() else {
            bail!("no list of {kind}: {list}");
        };
        items.sort_by_key(|item| item["metadata"]["name"].to_string());
        Ok(items)
    }

    /// The pods that `selector` finds, by name.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn pods(&self, selector: &str) -> anyhow::Result<Vec<Pod>> {
        let items = self.objects("pods", selector).await?;
        Ok(items.iter().map(pod).collect())
    }

    /// A configuration for `kubectl`, put into `folder`, whose context is this namespace.
    ///
    /// # Errors
    /// If it cannot be written.
    pub async fn context(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        let view = ["config", "view", "--raw", "--flatten", "--minify"];
        let text = self.kube.kubectl(&view).await?;
        let config = folder.join(format!("{}.kubeconfig", self.name));
        tokio::fs::write(&config, text).await?;
        let here = Kube {
            config: config.clone(),
            ..self.kube.clone()
        };
        let namespace = format!("--namespace={}", self.name);
        here.kubectl(&["config", "set-context", "--current", &namespace])
            .await?;
        Ok(config)
    }

    /// A path on a pod's port, read through the API server, so that it works wherever the tests run.
    ///
    /// # Errors
    /// If the pod does not answer with 200.
    pub async fn pod_path(&self, pod: &str, port: u16, path: &str) -> anyhow::Result<String> {
        let raw = format!(
            "/api/v1/namespaces/{}/pods/{pod}:{port}/proxy{path}",
            self.name
        );
        self.kube.kubectl(&["get", "--raw", &raw]).await
    }

    /// The port that a Service's port has on every node.
    ///
    /// # Errors
    /// If it has none.
    pub async fn node_port(&self, service: &str, port: &str) -> anyhow::Result<u16> {
        let text = self
            .kubectl(&["get", "service", service, "-o", "json"])
            .await?;
        let service: Value = serde_json::from_str(&text)?;
        let ports = service["spec"]["ports"].as_array();
        ports
            .into_iter()
            .flatten()
            .find(|it| it["name"] == port)
            .and_then(|it| it["nodePort"].as_u64())
            .and_then(|it| u16::try_from(it).ok())
            .context("the Service has no such port on the nodes")
    }

    /// Where every node takes requests for a Service.
    ///
    /// # Errors
    /// If it does not.
    pub async fn entrances(&self, service: &str, port: &str) -> anyhow::Result<Vec<SocketAddr>> {
        let port = self.node_port(service, port).await?;
        let nodes = self.kube.nodes().await?;
        Ok(nodes
            .into_iter()
            .map(|(_, address)| SocketAddr::new(address, port))
            .collect())
    }

    /// What follows a failure, once it has been described: [`Self::delete`], unless all is to stay.
    pub async fn give_up(&self) {
        if self.kube.keep {
            return;
        }
        if let Err(error) = self.clone().delete().await {
            eprintln!("{}: {error:#}", self.name);
        }
    }

    /// Tells what is here to end, at once, and does not wait for it: whoever asks for the same namespace again does.
    ///
    /// # Errors
    /// If it cannot be told.
    pub async fn delete(self) -> anyhow::Result<()> {
        // Peers that are told to go with all that they know the cluster by take their whole grace.
        let ends: [&[&str]; 2] = [
            &["delete", "statefulsets", "--all", "--cascade=orphan"],
            &[
                "delete",
                "pods",
                "--all",
                "--grace-period=1",
                "--wait=false",
            ],
        ];
        for end in ends {
            self.kubectl(end).await?;
        }
        let args = ["delete", "namespace", &self.name, "--wait=false"];
        self.kube.kubectl(&args).await.map(drop)
    }
}

fn pod(pod: &Value) -> Pod {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (metadata, status) = (&pod["metadata"], &pod["status"]);
    let conditions = status["conditions"].as_array();
    let ready = conditions
        .into_iter()
        .flatten()
        .any(|it| it["type"] == "Ready" && it["status"] == "True");
    Pod {
        name: text(&metadata["name"]),
        uid: text(&metadata["uid"]),
        address: text(&status["podIP"]).parse().ok(),
        node: text(&pod["spec"]["nodeName"]),
        ready,
        going: metadata["deletionTimestamp"].is_string(),
        restarts: status["containerStatuses"][0]["restartCount"]
            .as_u64()
            .unwrap_or(0),
    }
}

/// The chart of this repository.
#[must_use]
pub fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../chart")
}
