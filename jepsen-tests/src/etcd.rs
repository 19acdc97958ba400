//! etcd, as what raftserve is compared with: three members on loopback, with their default settings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use tempfile::TempDir;
use tonic::transport::Endpoint;

use crate::cluster::PATIENCE;
use crate::ports::PortBlock;
use crate::{binary, wait};

/// The generated client of the calls that we make.
#[allow(missing_docs, clippy::all, reason = "generated from etcd.proto")]
pub mod pb {
    tonic::include_proto!("etcdserverpb");
}

use pb::kv_client::KvClient;
use pb::maintenance_client::MaintenanceClient;

/// How many members: as many as we have peers.
const MEMBERS: usize = 3;

/// Elections after this long without a leader, and its heartbeats: etcd's own defaults.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The pause between heartbeats.
    pub heartbeat: Duration,
    /// The silence after which an election begins.
    pub election: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election: Duration::from_secs(1),
        }
    }
}

/// Three members. Killed when dropped.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Option<Child>>,
    timing: Timing,
    ports: PortBlock,
    directory: TempDir,
}

impl Etcd {
    /// Whether etcd is installed.
    #[must_use]
    pub fn is_there() -> bool {
        binary::have("etcd")
    }

    /// The version that is installed, as etcd says it.
    ///
    /// # Errors
    /// If there is none.
    pub fn version() -> anyhow::Result<String> {
        let output = Command::new("etcd")
            .arg("--version")
            .output()
            .context("cannot run etcd")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let first = text.lines().next().context("etcd tells no version")?;
        Ok(first.trim().to_owned())
    }

    /// Starts three members and waits until one leads.
    ///
    /// # Errors
    /// If they do not become a cluster.
    pub async fn start(timing: Timing) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("raftserve-etcd-")
            .tempdir()
            .context("cannot make a directory for etcd")?;
        let mut etcd = Self {
            members: (0..MEMBERS).map(|_| None).collect(),
            timing,
            ports: PortBlock::take()?,
            directory,
        };
        for index in 0..MEMBERS {
            etcd.start_member(index)?;
        }
        etcd.leader().await?;
        Ok(etcd)
    }

    /// Where a member takes the calls of clients.
    #[must_use]
    pub fn client_address(&self, index: usize) -> SocketAddr {
        self.ports.peer(index).admin
    }

    /// Starts a member, without waiting for anything.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_member(&mut self, index: usize) -> anyhow::Result<()> {
        let url = |address: SocketAddr| format!("http://{address}");
        let peer = |index| url(self.ports.peer(index).peer);
        let cluster: Vec<String> = (0..MEMBERS)
            .map(|index| format!("m{index}={}", peer(index)))
            .collect();
        let client = url(self.client_address(index));
        let log = std::fs::File::create(self.path(&format!("m{index}.log")))
            .context("cannot make a log file")?;
        let millis = |time: Duration| time.as_millis().to_string();
        let mut command = orphanless("etcd");
        command
            .args(["--name", &format!("m{index}")])
            .arg("--data-dir")
            .arg(self.path(&format!("m{index}")))
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer(index)])
            .args(["--initial-advertise-peer-urls", &peer(index)])
            .args(["--initial-cluster", &cluster.join(",")])
            .args(["--initial-cluster-state", "new"])
            .args(["--heartbeat-interval", &millis(self.timing.heartbeat)])
            .args(["--election-timeout", &millis(self.timing.election)])
            .args(["--logger", "zap", "--log-level", "error"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.members[index] = Some(command.spawn().context("cannot start etcd")?);
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The processes.
    ///
    /// # Errors
    /// If a member was killed.
    pub fn pids(&self) -> anyhow::Result<Vec<i32>> {
        let pid = |member: &Option<Child>| {
            let child = member.as_ref().context("a member was killed")?;
            i32::try_from(child.id()).context("a process number")
        };
        self.members.iter().map(pid).collect()
    }

    /// Kills a member with SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// If it did not run.
    pub fn kill(&mut self, index: usize) -> anyhow::Result<()> {
        let mut member = self.members[index].take().context("it does not run")?;
        member.kill().context("cannot kill etcd")?;
        member.wait().map(drop).context("cannot wait for etcd")
    }

    /// The members that run.
    #[must_use]
    pub fn running(&self) -> Vec<usize> {
        let running = |index: &usize| self.members[*index].is_some();
        (0..MEMBERS).filter(running).collect()
    }

    /// A client of one member.
    ///
    /// # Errors
    /// If it cannot be connected to.
    pub async fn client(
        &self,
        index: usize,
    ) -> anyhow::Result<KvClient<tonic::transport::Channel>> {
        let uri = format!("http://{}", self.client_address(index));
        let endpoint = Endpoint::from_shared(uri)?.tcp_nodelay(true);
        let channel = endpoint.connect().await.context("cannot connect to etcd")?;
        Ok(KvClient::new(channel))
    }

    /// Waits until all members that run follow the same leader, which is one of them.
    ///
    /// # Errors
    /// If there is none in time.
    pub async fn leader(&self) -> anyhow::Result<usize> {
        wait::until("a leader of etcd", PATIENCE, async || {
            let (mut leads, mut followed) = (None, Vec::new());
            for index in self.running() {
                let uri = format!("http://{}", self.client_address(index));
                let channel = Endpoint::from_shared(uri)?.connect().await?;
                let mut client = MaintenanceClient::new(channel);
                let status = client.status(pb::StatusRequest {}).await?.into_inner();
                let own = status.header.context("a header")?.member_id;
                if own == status.leader {
                    leads = Some(index);
                }
                followed.push(status.leader);
            }
            if followed.iter().any(|leader| *leader != followed[0]) {
                bail!("they follow {followed:?}");
            }
            leads.context("no member leads")
        })
        .await
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in self.members.iter_mut().flatten() {
            // One that is gone already is as well.
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

/// A program that ends when we do, however that may be, where `setpriv` is installed. Its process number is the
/// child's.
#[must_use]
pub fn orphanless(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let found = Command::new("setpriv")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match found {
        Ok(status) if status.success() => {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL"]).arg(program.as_ref());
            command
        }
        _ => Command::new(program),
    }
}
