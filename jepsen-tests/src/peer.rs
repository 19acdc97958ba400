//! One peer: a process of the built binary, with a directory, ports and a log file of its own.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::Signal;

use crate::access::Credential;
use crate::admin::Admin;
use crate::load::Target;
use crate::ports::PeerPorts;
use crate::{http, processes, wait};

/// How long a peer may take to end once it is killed.
const KILLED_MAX: Duration = Duration::from_secs(10);

/// The most of a log line that is shown: the rest is in the file.
const LOG_LINE_MAX: usize = 300;

/// Which peers a peer is told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Company {
    /// `--peers`: the peer addresses of all that found the cluster, itself among them.
    Named(Vec<String>),
    /// `--join`: the peer addresses of some that run.
    Joins(Vec<String>),
}

/// What all starts of a peer have in common.
#[derive(Clone, Debug)]
pub struct PeerSetup {
    /// The binary.
    pub binary: PathBuf,
    /// Which peer it is, from 0.
    pub index: usize,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Where it listens.
    pub ports: PeerPorts,
    /// Which other peers it is told of.
    pub company: Company,
    /// Where replicas live, the same for all peers of the host.
    pub replica_root: PathBuf,
    /// A socket whose end of file stops the peer.
    pub lifeline: Option<PathBuf>,
    /// Its election timing.
    pub profile: String,
    /// Further flags.
    pub flags: Vec<String>,
    /// Its standard output and error go here.
    pub log: PathBuf,
    /// With what clients come to it, if it is protected.
    pub credential: Option<Credential>,
    /// What is added to its environment.
    pub environment: Vec<(OsString, OsString)>,
}

impl PeerSetup {
    /// The command that starts it.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = clean_command(&self.binary);
        let company = match &self.company {
            Company::Named(peers) => ["--peers", &peers.join(",")].map(str::to_owned),
            Company::Joins(peers) => ["--join", &peers.join(",")].map(str::to_owned),
        };
        command
            .arg("node")
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(company)
            .args(["--peer-addr", &self.ports.peer.to_string()])
            .args(["--admin-addr", &self.ports.admin.to_string()])
            .args(["--ops-addr", &self.ports.ops.to_string()])
            .args(["--proxy-addr", &self.ports.proxy.to_string()])
            .args(["--service-port-base", &self.ports.service_base.to_string()])
            .arg("--replica-root")
            .arg(&self.replica_root)
            .args(["--profile", &self.profile])
            .args(["--log-level", "info", "--log-format", "text"])
            .args(&self.flags)
            .envs(self.environment.iter().cloned());
        if let Some(lifeline) = &self.lifeline {
            command.arg("--lifeline").arg(lifeline);
        }
        command
    }
}

/// The binary without arguments, without input, and without any of our own settings in its environment.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "the names are looked through to keep our own settings from the program under test"
)]
pub fn clean_command(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"RAFTSERVE_") {
            command.env_remove(name);
        }
    }
    command
        .env("NO_COLOR", "1")
        .env("XDG_CONFIG_HOME", "/nonexistent")
        .stdin(Stdio::null());
    command
}

/// A peer. Killed when dropped.
#[derive(Debug)]
pub struct Peer {
    /// What its starts have in common.
    pub setup: PeerSetup,
    child: Option<Child>,
}

impl Peer {
    /// A peer that does not run yet.
    #[must_use]
    pub fn new(setup: PeerSetup) -> Self {
        Self { setup, child: None }
    }

    /// Starts it, without waiting for anything.
    ///
    /// # Errors
    /// If it runs already or cannot be started.
    pub fn start(&mut self) -> anyhow::Result<()> {
        if self.child.is_some() {
            bail!("peer {} runs already", self.setup.index);
        }
        let log = append(&self.setup.log)?;
        let child = self
            .setup
            .command()
            .stdout(log.try_clone().context("cannot share the peer's log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.setup.binary.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Whether it was started and not ended by us since.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.child.is_some()
    }

    /// Its process number.
    ///
    /// # Errors
    /// If it was not started.
    pub fn pid(&self) -> anyhow::Result<i32> {
        let child = self.child.as_ref().context("the peer was not started")?;
        i32::try_from(child.id()).context("a process number")
    }

    /// Kills it with SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// If it was not started, or had ended by itself.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("the peer was not started")?;
        if let Some(status) = child.try_wait().context("cannot ask after the peer")? {
            bail!("peer {} had ended by itself: {status}", self.setup.index);
        }
        child.kill().context("cannot kill the peer")?;
        child.wait().context("cannot wait for the peer")?;
        Ok(())
    }

    /// Asks it to stop with SIGTERM, and waits until it has.
    ///
    /// # Errors
    /// If it was not started, or does not stop within `limit`.
    pub async fn stop(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.ended(limit).await
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// If it was not started or is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        processes::signal(self.pid()?, signal)
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// If it was not started, or has not ended within `limit`.
    pub async fn ended(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let child = self.child.as_mut().context("the peer was not started")?;
        let status = wait::until("the peer's end", limit, async || {
            child.try_wait()?.context("it still runs")
        })
        .await?;
        self.child = None;
        Ok(status)
    }

    /// Whether it says that it takes requests.
    ///
    /// # Errors
    /// If it does not, with what it says; or if it has ended.
    pub async fn check_ready(&mut self) -> anyhow::Result<()> {
        let child = self.child.as_mut().context("the peer was not started")?;
        if let Some(status) = child.try_wait()? {
            bail!("peer {} ended: {status}", self.setup.index);
        }
        match http::get(self.setup.ports.ops, "/healthz/ready").await {
            Ok(reply) if reply.status == 200 => Ok(()),
            other => bail!("peer {} is not ready: {other:?}", self.setup.index),
        }
    }

    /// A client of its admin API.
    #[must_use]
    pub fn admin(&self) -> Admin {
        match &self.setup.credential {
            None => Admin::new(self.setup.ports.admin),
            Some(credential) => Admin::with(self.setup.ports.admin, credential),
        }
    }

    /// Where other peers reach it.
    #[must_use]
    pub fn address(&self) -> String {
        self.setup.ports.peer.to_string()
    }

    /// Its proxy.
    #[must_use]
    pub fn target(&self) -> Target {
        Target {
            peer: self.setup.index,
            address: self.setup.ports.proxy,
        }
    }

    /// All that it wrote since it was first started.
    #[must_use]
    pub fn log_text(&self) -> String {
        let text = std::fs::read(&self.setup.log).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The last lines that it wrote.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let text = self.log_text();
        let all: Vec<String> = text
            .lines()
            .map(|line| line.chars().take(LOG_LINE_MAX).collect())
            .collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // SIGKILL also ends a process that is paused. If it is gone, all is well.
            let _ = child.kill();
            let start = std::time::Instant::now();
            while start.elapsed() < KILLED_MAX && matches!(child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

fn append(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}
