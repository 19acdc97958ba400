//! What every test stands on: one peer with a port for TLS, a service of one of the programs here, and clients that are run.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use jepsen_tests::access::Authority;
use jepsen_tests::binary;
use jepsen_tests::cluster::{Cluster, Options};
use jepsen_tests::ports::PortBlock;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// The longest that a test may take. Far above what any needs, so that only a hang meets it.
const TEST_TIME_MAX: Duration = Duration::from_secs(180);

/// The longest that a client may run.
const CLIENT_TIME_MAX: Duration = Duration::from_secs(90);

/// How many tests run at a time.
static PLACES: Semaphore = Semaphore::const_new(2);

/// Which code carries HTTP/1.1.
pub(crate) const PATHS: [&str; 2] = ["fast", "hyper"];

/// Runs a test once it has its place; skips it where a program or a module of Python is missing.
pub(crate) async fn run(
    programs: &[&str],
    modules: &[&str],
    test: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let have = |program: &&str| match *program {
        "grpcurl" => binary::have_with(program, "-version"),
        _ => binary::have(program),
    };
    if !binary::have("python3")
        || !programs.iter().all(have)
        || !modules.iter().all(|module| binary::have_module(module))
    {
        return Ok(());
    }
    let _place = PLACES.acquire().await.context("nobody closes it")?;
    timeout(TEST_TIME_MAX, test)
        .await
        .with_context(|| format!("the test did not end in {TEST_TIME_MAX:?}"))?
}

/// A peer, and what clients need to reach it.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    /// The port with TLS.
    pub(crate) tls: SocketAddr,
    folder: TempDir,
    _ports: PortBlock,
}

impl Stage {
    /// Starts the peer, which carries HTTP/1.1 so.
    pub(crate) async fn start(path: &str, flags: &[&str]) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let authority = Authority::new()?;
        let certificates = folder.path().join("certificates");
        authority.issue(&certificates, &[&authority])?;
        fs::write(folder.path().join("ca.pem"), authority.pem())?;
        let ports = PortBlock::take()?;
        let tls = ports.peer(0).proxy;
        let certificates = certificates.to_str().context("a path in UTF-8")?;
        let own = [
            "--http1-path",
            path,
            "--tls-dir",
            certificates,
            "--tls-addr",
            &tls.to_string(),
        ];
        let options = Options {
            peers: 1,
            flags: own.iter().chain(flags).map(ToString::to_string).collect(),
            ..Options::default()
        };
        Ok(Self {
            cluster: Cluster::start_with(options).await?,
            tls,
            folder,
            _ports: ports,
        })
    }

    /// The port without TLS.
    pub(crate) fn clear(&self) -> SocketAddr {
        self.cluster.peer(0).setup.ports.proxy
    }

    /// A path within the test's own folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The authorities that clients believe, as an argument.
    pub(crate) fn authorities(&self) -> String {
        self.path("ca.pem").to_string_lossy().into_owned()
    }

    /// Brings up the only service: so many replicas of a program, by turns.
    pub(crate) async fn serve(&self, file: &str, replicas: u32) -> anyhow::Result<()> {
        self.serve_as("only", file, replicas).await
    }

    /// The same under a name of its own.
    pub(crate) async fn serve_as(
        &self,
        name: &str,
        file: &str,
        replicas: u32,
    ) -> anyhow::Result<()> {
        self.bring_up(name, file, replicas, "").await
    }

    /// Brings up the only service, whose replicas speak gRPC and nothing else.
    pub(crate) async fn serve_grpc(&self, file: &str, replicas: u32) -> anyhow::Result<()> {
        let probe = "_metadata: {raftserve: {readiness_probe: {grpc: {}}}}\n";
        self.bring_up("only", file, replicas, probe).await
    }

    async fn bring_up(
        &self,
        name: &str,
        file: &str,
        replicas: u32,
        more: &str,
    ) -> anyhow::Result<()> {
        let mut yaml = format!("name: {name}\n{more}service:\n");
        yaml.push_str("  readiness_probe: {path: /, timeout_seconds: 10, endpoint_probe_interval_seconds: 0.2}\n");
        writeln!(yaml, "  replicas: {replicas}")?;
        yaml.push_str("  load_balancing_policy: round_robin\n");
        yaml.push_str("resources: {ports: 8080}\n");
        writeln!(yaml, "run: exec python3 {}", program(file).display())?;
        self.cluster.admin(0).apply(&yaml).await?;
        self.cluster.settled(name, CLIENT_TIME_MAX).await?;
        Ok(())
    }
}

/// A program here.
pub(crate) fn program(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients/programs")
        .join(file)
}

/// Runs a client to its end, and returns what it printed, and said besides.
///
/// # Errors
/// If it fails, or takes too long.
pub(crate) async fn client(name: &str, args: &[&str]) -> anyhow::Result<(String, String)> {
    let (code, out, said) = ended(name, args).await?;
    ensure!(
        code == Some(0),
        "{name} {args:?} ended with {code:?}:\n{out}\n{said}"
    );
    Ok((out, said))
}

/// The same, whatever its exit code is.
pub(crate) async fn ended(
    name: &str,
    args: &[&str],
) -> anyhow::Result<(Option<i32>, String, String)> {
    let running = Command::new(name)
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(CLIENT_TIME_MAX, running)
        .await
        .with_context(|| format!("{name} {args:?} did not end"))??;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    ))
}

/// Runs a program of Python here.
pub(crate) async fn python(file: &str, args: &[&str]) -> anyhow::Result<String> {
    let file = program(file);
    let file = file.to_str().context("a path in UTF-8")?;
    let args: Vec<&str> = std::iter::once(file).chain(args.iter().copied()).collect();
    Ok(client("python3", &args).await?.0)
}
