//! A cluster of peers on loopback, and everything that belongs to it.
//!
//! Whatever happens to a test, nothing is left: dropping a [`Cluster`] kills its peers and its replicas,
//! and if the test's process dies, the end of the lifeline stops them.

mod lifeline;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;

use crate::access::Credential;
use crate::admin::{self, Admin, v1};
use crate::check::{clean, exactly_these_run};
use crate::cli::Cli;
use crate::history::Outage;
use crate::load::Target;
use crate::peer::{Company, Peer, PeerSetup};
use crate::ports::{PEERS_MAX, PeerPorts, PortBlock};
use crate::{binary, http, processes, wait};
use lifeline::Lifeline;

/// How long a start, a return or an election may take before a test gives up. Promises are checked by
/// the tests themselves; this only bounds a hang.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Lines of each peer's log that are shown when a test fails.
const LOG_LINES: usize = 40;

/// How a cluster is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many peers found it: one, three or five.
    pub peers: usize,
    /// The election timing.
    pub profile: String,
    /// Further flags of all peers, those that join later too.
    pub flags: Vec<String>,
    /// With what clients come, if the flags protect the peers.
    pub credential: Option<Credential>,
    /// What is added to the environment of those that found it.
    pub environment: Vec<(OsString, OsString)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            peers: 3,
            profile: "fast".to_owned(),
            flags: Vec::new(),
            credential: None,
            environment: Vec::new(),
        }
    }
}

/// A cluster. See the module.
#[derive(Debug)]
pub struct Cluster {
    directory: Option<TempDir>,
    peers: Vec<Peer>,
    /// How many places for peers were given away: those that peers have, and had.
    places: usize,
    node_ids: BTreeMap<u64, usize>,
    cluster_id: Option<String>,
    /// The ids of clusters whose replicas this one took over.
    former_ids: Vec<String>,
    outages: Vec<Outage>,
    passed: bool,
    made: Instant,
    _lifeline: Lifeline,
    blocks: Vec<PortBlock>,
}

impl Cluster {
    /// Starts three peers, and waits until they are one cluster with a leader.
    ///
    /// # Errors
    /// If they do not become one.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(Options::default()).await
    }

    /// Starts as many peers as `options` say, and waits until they are one cluster with a leader.
    ///
    /// # Errors
    /// If they do not become one.
    pub async fn start_with(options: Options) -> anyhow::Result<Self> {
        let mut cluster = Self::prepare(&options)?;
        cluster.restart_all().await?;
        Ok(cluster)
    }

    /// Makes all that is needed to start peers, and starts none.
    ///
    /// # Errors
    /// If there is no binary to test, or the host has no room.
    pub fn prepare(options: &Options) -> anyhow::Result<Self> {
        let binary = binary::raftserve()?;
        let directory = tempfile::Builder::new()
            .prefix("raftserve-jepsen-")
            .tempdir()
            .context("cannot make a directory for the cluster")?;
        let root = directory.path().to_owned();
        let lifeline = Lifeline::open(root.join("lifeline.sock"))?;
        let mut cluster = Self {
            peers: Vec::new(),
            places: 0,
            directory: Some(directory),
            node_ids: BTreeMap::new(),
            cluster_id: None,
            former_ids: Vec::new(),
            outages: Vec::new(),
            passed: false,
            made: Instant::now(),
            _lifeline: lifeline,
            blocks: Vec::new(),
        };
        let places: Vec<PeerPorts> = (0..options.peers)
            .map(|_| cluster.place())
            .collect::<anyhow::Result<_>>()?;
        let company = Company::Named(places.iter().map(|it| it.peer.to_string()).collect());
        let lifeline = cluster._lifeline.path().to_owned();
        let peer = |(index, ports)| {
            Peer::new(PeerSetup {
                binary: binary.clone(),
                index,
                data_dir: root.join(format!("peer-{index}")),
                ports,
                company: company.clone(),
                replica_root: root.join("replicas"),
                lifeline: Some(lifeline.clone()),
                profile: options.profile.clone(),
                flags: options.flags.clone(),
                log: root.join(format!("peer-{index}.log")),
                credential: options.credential.clone(),
                environment: options.environment.clone(),
            })
        };
        cluster.peers = places.into_iter().enumerate().map(peer).collect();
        Ok(cluster)
    }

    /// Ports that no peer of this cluster has or had.
    fn place(&mut self) -> anyhow::Result<PeerPorts> {
        let (block, within) = (self.places / PEERS_MAX, self.places % PEERS_MAX);
        if block == self.blocks.len() {
            self.blocks.push(PortBlock::take()?);
        }
        self.places += 1;
        Ok(self.blocks[block].peer(within))
    }

    /// Makes all that a further peer needs, which is to join through the peers `through`, and does not start it.
    /// Returns its index.
    ///
    /// # Errors
    /// If the host has no room.
    pub fn newcomer(&mut self, through: &[usize]) -> anyhow::Result<usize> {
        let index = self.size();
        let addresses = through.iter().map(|known| self.peers[*known].address());
        let setup = PeerSetup {
            index,
            company: Company::Joins(addresses.collect()),
            data_dir: self.path(&format!("peer-{index}")),
            log: self.path(&format!("peer-{index}.log")),
            ports: self.place()?,
            ..self.peers[0].setup.clone()
        };
        self.peers.push(Peer::new(setup));
        Ok(index)
    }

    /// Gives a peer, which must not run, other ports. Its own flags say so; those of the others do not.
    ///
    /// # Errors
    /// If the host has no room.
    pub fn relocate(&mut self, index: usize) -> anyhow::Result<()> {
        let ports = self.place()?;
        let setup = &mut self.peers[index].setup;
        let (old, new) = (setup.ports.peer.to_string(), ports.peer.to_string());
        setup.ports = ports;
        if let Company::Named(names) = &mut setup.company {
            for name in names.iter_mut().filter(|name| **name == old) {
                name.clone_from(&new);
            }
        }
        self.note(&format!("peer {index} moves from {old} to {new}"));
        Ok(())
    }

    /// The test has succeeded: its logs need not be kept.
    pub fn pass(mut self) {
        self.passed = true;
    }

    /// A path in the cluster's own directory.
    ///
    /// # Panics
    /// Never: the directory is there until the drop.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    fn root(&self) -> &Path {
        let directory = self.directory.as_ref();
        directory.expect("there until the drop").path()
    }

    /// Prints what was done and when, for whoever reads the output of a failed test.
    pub fn note(&self, what: &str) {
        eprintln!("{:9.3} s: {what}", self.made.elapsed().as_secs_f64());
    }

    /// How many peers there are.
    #[must_use]
    pub fn size(&self) -> usize {
        self.peers.len()
    }

    /// A peer.
    ///
    /// # Panics
    /// If there is no such peer.
    #[must_use]
    pub fn peer(&self, index: usize) -> &Peer {
        &self.peers[index]
    }

    /// A peer, to do something to it that [`Cluster`] does not write down.
    ///
    /// # Panics
    /// If there is no such peer.
    #[must_use]
    pub fn peer_mut(&mut self, index: usize) -> &mut Peer {
        &mut self.peers[index]
    }

    /// The admin API of a peer.
    #[must_use]
    pub fn admin(&self, index: usize) -> Admin {
        self.peers[index].admin()
    }

    /// The command line, asking a peer.
    #[must_use]
    pub fn cli(&self, index: usize) -> Cli {
        let setup = &self.peers[index].setup;
        Cli {
            binary: setup.binary.clone(),
            admin: setup.ports.admin,
            credential: setup.credential.clone(),
        }
    }

    /// The proxies of all peers.
    #[must_use]
    pub fn targets(&self) -> Vec<Target> {
        self.peers.iter().map(Peer::target).collect()
    }

    /// The peers that run, as far as we know.
    #[must_use]
    pub fn started(&self) -> Vec<usize> {
        let started = |index: &usize| self.peers[*index].is_started();
        (0..self.peers.len()).filter(started).collect()
    }

    /// Some peer that runs and is not `other`.
    ///
    /// # Errors
    /// If there is none.
    pub fn another(&self, other: usize) -> anyhow::Result<usize> {
        let mut started = self.started().into_iter();
        started
            .find(|index| *index != other)
            .context("no other peer runs")
    }

    /// When which peer was down.
    #[must_use]
    pub fn outages(&self) -> &[Outage] {
        &self.outages
    }

    /// Kills a peer with SIGKILL.
    ///
    /// # Errors
    /// If it did not run.
    pub fn kill(&mut self, index: usize) -> anyhow::Result<()> {
        self.note(&format!("killing peer {index}"));
        self.outages.push(Outage {
            peer: index,
            from: Instant::now(),
            until: None,
        });
        self.peers[index].kill()
    }

    /// Kills all peers with SIGKILL, one right after the other.
    ///
    /// # Errors
    /// If one did not run.
    pub fn kill_all(&mut self) -> anyhow::Result<()> {
        (0..self.size()).try_for_each(|index| self.kill(index))
    }

    /// Starts a peer again and waits until it is ready.
    ///
    /// # Errors
    /// If it does not become ready.
    pub async fn restart(&mut self, index: usize) -> anyhow::Result<()> {
        self.peers[index].start()?;
        self.await_ready(index).await
    }

    /// Starts all peers, again or for the first time, and waits until they are ready and have a leader.
    ///
    /// # Errors
    /// If they do not come back.
    pub async fn restart_all(&mut self) -> anyhow::Result<()> {
        for index in 0..self.size() {
            self.peers[index].start()?;
        }
        for index in 0..self.size() {
            self.await_ready(index).await?;
        }
        self.leader().await.map(drop)
    }

    /// Waits until a peer says that it takes requests, which ends its outage.
    ///
    /// # Errors
    /// If it does not.
    pub async fn await_ready(&mut self, index: usize) -> anyhow::Result<()> {
        let peer = &mut self.peers[index];
        wait::until("a ready peer", PATIENCE, async || peer.check_ready().await).await?;
        self.note(&format!("peer {index} is ready"));
        let now = Instant::now();
        for outage in &mut self.outages {
            if outage.peer == index && outage.until.is_none() {
                outage.until = Some(now);
            }
        }
        self.learn(index).await
    }

    /// Learns which Raft id a peer has, and the cluster's id.
    async fn learn(&mut self, index: usize) -> anyhow::Result<()> {
        let admin = self.admin(index);
        let status = wait::until("a peer's status", PATIENCE, async || {
            Ok(admin.status().await?)
        })
        .await?;
        self.node_ids.retain(|_, known| *known != index);
        self.node_ids.insert(status.node_id, index);
        match &self.cluster_id {
            Some(known) if *known != status.cluster_id => {
                bail!(
                    "peer {index} is of cluster {}, not {known}",
                    status.cluster_id
                )
            }
            _ => self.cluster_id = Some(status.cluster_id),
        }
        Ok(())
    }

    /// The cluster's id.
    ///
    /// # Errors
    /// If no peer was ever ready.
    pub fn cluster_id(&self) -> anyhow::Result<&str> {
        self.cluster_id.as_deref().context("no peer was ever ready")
    }

    /// From now on the peers are of a new cluster, which takes over the replicas of the present one.
    pub fn begin_anew(&mut self) {
        self.former_ids.extend(self.cluster_id.take());
        self.node_ids.clear();
    }

    /// The Raft id of a peer.
    ///
    /// # Errors
    /// If the peer was never ready.
    pub fn node_id(&self, index: usize) -> anyhow::Result<u64> {
        let found = self.node_ids.iter().find(|(_, known)| **known == index);
        Ok(*found.context("the peer was never ready")?.0)
    }

    /// A metric of a peer, with its labels if it has any, without its fraction.
    ///
    /// # Errors
    /// If the peer does not answer, or has no such metric.
    pub async fn metric(&self, index: usize, name: &str) -> anyhow::Result<u64> {
        let reply = http::get(self.peer(index).setup.ports.ops, "/metrics").await;
        let reply = reply.map_err(|error| anyhow::anyhow!("no metrics: {error:?}"))?;
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let value = line.with_context(|| format!("no {name} in {text}"))?;
        let whole = value.trim().split('.').next().unwrap_or_default();
        whole.parse().with_context(|| format!("{name}{value}"))
    }

    /// Waits until the peers that run have a leader among them that says so itself.
    ///
    /// # Errors
    /// If they do not get one.
    pub async fn leader(&self) -> anyhow::Result<usize> {
        Ok(self.leader_and_term().await?.0)
    }

    /// The leader, and its term.
    ///
    /// # Errors
    /// If there is none.
    pub async fn leader_and_term(&self) -> anyhow::Result<(usize, u64)> {
        wait::until("a leader", PATIENCE, async || {
            let mut newest = None;
            for index in self.started() {
                let status = self.admin(index).status().await?;
                if newest
                    .as_ref()
                    .is_none_or(|(_, it): &(usize, v1::StatusResponse)| {
                        (status.term, status.leader_id == status.node_id)
                            > (it.term, it.leader_id == it.node_id)
                    })
                {
                    newest = Some((index, status));
                }
            }
            let (index, status) = newest.context("no peer runs")?;
            if status.leader_id != status.node_id || !status.quorum {
                bail!("peer {index} knows best: {status:?}");
            }
            Ok((index, status.term))
        })
        .await
    }

    /// Waits until a service is as it should be, and everything that runs belongs to it or to another
    /// service: as many ready replicas of its newest version as wanted, nothing else in the making or on
    /// its way out, each a single process under one keeper. Returns the processes, by replica.
    ///
    /// # Errors
    /// If that does not come to be within `limit`.
    pub async fn settled(
        &self,
        name: &str,
        limit: Duration,
    ) -> anyhow::Result<BTreeMap<String, processes::Process>> {
        let running = wait::until(&format!("service {name} to settle"), limit, async || {
            let index = *self.started().first().context("no peer runs")?;
            let admin = self.admin(index);
            let service = admin
                .service(name)
                .await?
                .context("there is no such service")?;
            if service.ready_replicas != service.wanted_replicas
                || service.live_replicas != service.wanted_replicas
                || service.active_versions != [service.version]
            {
                bail!("it is {service:?}");
            }
            let (wanted, census) = self.look(&admin).await?;
            let prefix = format!("{}-", service.id);
            let own: BTreeMap<String, processes::Process> = census
                .into_iter()
                .filter(|(replica, _)| wanted.contains(replica) && replica.starts_with(&prefix))
                .map(|(replica, processes)| (replica, processes[0]))
                .collect();
            // The service was read before its replicas, and one of them may have gone in between.
            if own.len() != usize::try_from(service.wanted_replicas)? {
                bail!("it is {service:?}, and what runs is {own:?}");
            }
            Ok(own)
        })
        .await?;
        self.note(&format!("service {name} is settled"));
        Ok(running)
    }

    /// Waits until a service is gone, and nothing runs that belongs to no other service.
    ///
    /// # Errors
    /// If that does not come to be within `limit`.
    pub async fn gone(&self, name: &str, limit: Duration) -> anyhow::Result<()> {
        wait::until(&format!("service {name} to be gone"), limit, async || {
            let index = *self.started().first().context("no peer runs")?;
            let admin = self.admin(index);
            if let Some(service) = admin.service(name).await? {
                bail!("it is {service:?}");
            }
            self.look(&admin).await.map(drop)
        })
        .await
    }

    /// What should run, and what does, if they agree.
    async fn look(&self, admin: &Admin) -> anyhow::Result<(BTreeSet<String>, processes::Census)> {
        let wanted: BTreeSet<String> = admin
            .replicas()
            .await?
            .iter()
            .filter(|it| admin::is_live(it.status()))
            .map(|it| format!("{}-{}", it.service_id, it.id))
            .collect();
        let mut census = processes::census(self.cluster_id()?)?;
        for former in &self.former_ids {
            census.extend(processes::census(former)?);
        }
        let shims = processes::shims(&self.path("replicas"))?;
        clean("what runs", &exactly_these_run(&wanted, &census, &shims))?;
        Ok((wanted, census))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut ids = self.former_ids.clone();
        ids.extend(self.cluster_id.clone());
        let logs: Vec<String> = match self.passed {
            true => Vec::new(),
            false => self.peers.iter().map(|it| it.log_tail(LOG_LINES)).collect(),
        };
        self.peers.clear();
        let left = processes::kill_all(self.root(), &ids);
        for (index, log) in logs.iter().enumerate() {
            eprintln!("--- peer {index}, last {LOG_LINES} lines ---\n{log}");
        }
        if let (false, Some(directory)) = (self.passed, self.directory.take()) {
            eprintln!("everything is kept in {}", directory.keep().display());
        }
        if let Err(error) = left {
            eprintln!("{error:#}");
        }
    }
}
