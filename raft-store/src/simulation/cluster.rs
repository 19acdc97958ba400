//! The peers: each with its disk, and while it runs, its store and its Raft.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use openraft::alias::WatchReceiverOf;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::Fatal;
use openraft::{Config, Raft, RaftMetrics, ServerState};
use raftserve_model::NodeId;

use super::SimulatedTypes;
use super::growth::{self, Growth};
use super::network::{Network, Weather};
use super::observer::Observer;
use super::runtime::{self, Process};
use super::storage::{Defect, LyingDisk, WatchedLog, WatchedMachine, Witness};
use crate::disk::Disk;
use crate::disk::simulated::{Fault, SimulatedDisk};
use crate::raft::{LogStore, Retention, SnapshotTrigger, StateMachine, StateReader};
use crate::snapshot::Snapshots;
use crate::store;
use crate::wal::{Known, Wal, WalOptions, Writer};

/// Where a log begins.
const FIRST_SEGMENT: &str = "/wal/00000001.wal";

/// A peer that runs.
#[derive(Clone)]
pub(super) struct Running {
    pub(super) process: Process,
    pub(super) life: u64,
    pub(super) raft: Raft<SimulatedTypes, WatchedMachine>,
    pub(super) reader: StateReader,
    pub(super) snapshots: Arc<Snapshots>,
    pub(super) trigger: SnapshotTrigger,
    pub(super) retention: Retention,
    /// One snapshot is received at a time.
    pub(super) inbox: Arc<tokio::sync::Mutex<()>>,
    metrics: WatchReceiverOf<SimulatedTypes, RaftMetrics<SimulatedTypes>>,
    wal: Arc<Wal>,
    writer: Arc<Mutex<Writer>>,
    writing: Arc<AtomicBool>,
}

impl Running {
    pub(super) fn leads(&self) -> bool {
        self.metrics.borrow_watched().state == ServerState::Leader
    }

    /// The voters, and the members that are not.
    pub(super) fn members(&self) -> (Vec<NodeId>, Vec<NodeId>) {
        let metrics = self.metrics.borrow_watched();
        let membership = &metrics.membership_config;
        let learners = membership.membership().learner_ids();
        (membership.voter_ids().collect(), learners.collect())
    }

    /// The index of the last entry of the log.
    pub(super) fn last_log(&self) -> Option<u64> {
        self.wal.last().map(|id| id.index.0)
    }

    /// The index up to which the log is purged.
    pub(super) fn purged(&self) -> Option<u64> {
        self.wal.purged().map(|id| id.index.0)
    }

    /// Whether its log has nothing left to write.
    pub(super) fn is_idle(&self) -> bool {
        !self.wal.has_work()
    }

    pub(super) fn term(&self) -> u64 {
        self.metrics.borrow_watched().current_term
    }

    /// The log's writer, as long as there is something to write.
    async fn write(self) {
        while self.wal.has_work() {
            runtime::sleep(runtime::disk_delay()).await;
            if self.wal.has_work() {
                self.writer.lock().unwrap().step();
            }
        }
        self.writing.store(false, Ordering::Relaxed);
    }
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Killed; what it has written stays.
    Kill,
    /// The power goes: what was not synced may be lost.
    PowerCut,
}

struct Peer {
    disk: SimulatedDisk,
    running: Option<Running>,
    starting: bool,
    lives: u64,
    slow_disk: bool,
    /// Whether its disk fails soon, or has failed, in this life.
    disk_breaks: bool,
    /// It is never started again.
    retired: bool,
}

/// What every peer of a run has in common.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) config: Config,
    pub(super) wal: WalOptions,
    pub(super) growth: Growth,
    /// Clocks run so many thousandths faster or slower at most.
    pub(super) clock_drift_per_mille: u64,
    pub(super) disk_delay_max: Duration,
    pub(super) defect: Defect,
}

struct Inner {
    peers: BTreeMap<NodeId, Peer>,
    weather: Weather,
    setting: Setting,
}

/// The cluster. Clones are the same one.
#[derive(Clone)]
pub(super) struct Cluster {
    inner: Arc<Mutex<Inner>>,
    pub(super) observer: Arc<Mutex<Observer>>,
}

impl Cluster {
    pub(super) fn new(setting: Setting) -> Self {
        let inner = Inner {
            peers: BTreeMap::new(),
            weather: Weather::default(),
            setting,
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
            observer: Arc::default(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub(super) fn observe<T>(&self, act: impl FnOnce(&mut Observer) -> T) -> T {
        act(&mut self.observer.lock().unwrap())
    }

    pub(super) fn weather(&self) -> Weather {
        self.inner().weather.clone()
    }

    pub(super) fn is_mute(&self, from: NodeId, to: NodeId) -> bool {
        self.inner().weather.mute.contains(&(from, to))
    }

    pub(super) fn change_weather(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut self.inner().weather);
    }

    pub(super) fn nodes(&self) -> Vec<NodeId> {
        self.inner().peers.keys().copied().collect()
    }

    pub(super) fn running(&self, node: NodeId) -> Option<Running> {
        self.inner().peers.get(&node)?.running.clone()
    }

    pub(super) fn all_running(&self) -> Vec<(NodeId, Running)> {
        let inner = self.inner();
        let running = inner.peers.iter();
        running
            .filter_map(|(node, peer)| Some((*node, peer.running.clone()?)))
            .collect()
    }

    /// The peer that leads in the latest term.
    pub(super) fn leader(&self) -> Option<(NodeId, Running)> {
        let leaders = self.all_running().into_iter().filter(|it| it.1.leads());
        leaders.max_by_key(|(_, running)| running.term())
    }

    /// A peer with an empty disk, not running yet.
    pub(super) fn add(&self, node: NodeId) {
        let peer = Peer {
            disk: SimulatedDisk::default(),
            running: None,
            starting: false,
            lives: 0,
            slow_disk: false,
            disk_breaks: false,
            retired: false,
        };
        self.inner().peers.insert(node, peer);
    }

    /// Starts a peer that does not run.
    pub(super) async fn start(&self, node: NodeId) {
        let Some((disk, life, slow, setting)) = self.begin_life(node) else {
            return;
        };
        let drift = setting.clock_drift_per_mille;
        let rate = 1000 - drift + runtime::draw(|random| random.below(2 * drift + 1));
        let process = runtime::new_process(rate);
        runtime::set_disk_delay(process, disk_delay(&setting, slow));
        let opened = self.open(node, &disk, &setting);
        let (log, machine, wal, writer, snapshots) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.observe(|it| it.violation(format!("peer {node} cannot start: {error}")));
                return;
            }
        };
        let reader = machine.reader.clone();
        let growth = setting.growth;
        let retention = Retention::new(Arc::clone(&wal), Arc::clone(&snapshots));
        let trigger =
            SnapshotTrigger::new(Arc::clone(&wal), Arc::clone(&snapshots), reader.clone());
        let network = Network {
            me: node,
            cluster: self.clone(),
            acked: Arc::default(),
        };
        let config = Arc::new(setting.config);
        let raft = Raft::new(node, config, network, log, machine);
        let raft = match runtime::spawn_in(process, raft).await {
            Ok(Ok(raft)) => raft,
            Ok(Err(error)) => {
                self.observe(|it| it.violation(format!("peer {node} cannot start: {error}")));
                return;
            }
            Err(_) => return,
        };
        runtime::note(format_args!(
            "peer {node} runs in life {life}, clock {rate}"
        ));
        let running = Running {
            process,
            life,
            metrics: raft.metrics(),
            raft,
            reader,
            snapshots,
            trigger: growth.trigger(trigger),
            retention: growth.retention(retention),
            inbox: Arc::default(),
            wal,
            writer: Arc::new(Mutex::new(writer)),
            writing: Arc::default(),
        };
        growth::begin(node, &running, growth);
        if let Some(peer) = self.inner().peers.get_mut(&node) {
            peer.running = Some(running);
            peer.starting = false;
        }
    }

    /// None if the peer runs already, or never again.
    fn begin_life(&self, node: NodeId) -> Option<(SimulatedDisk, u64, bool, Setting)> {
        let mut inner = self.inner();
        let setting = inner.setting.clone();
        let peer = inner.peers.get_mut(&node)?;
        if peer.running.is_some() || peer.starting || peer.retired {
            return None;
        }
        peer.starting = true;
        peer.lives += 1;
        Some((peer.disk.clone(), peer.lives, peer.slow_disk, setting))
    }

    #[expect(clippy::type_complexity, reason = "used once, above")]
    fn open(
        &self,
        node: NodeId,
        disk: &SimulatedDisk,
        setting: &Setting,
    ) -> Result<(WatchedLog, WatchedMachine, Arc<Wal>, Writer, Arc<Snapshots>), String> {
        for dir in ["/snap", "/wal"] {
            disk.mount(Path::new(dir));
        }
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let disk = match setting.defect {
            Defect::SkipsSync => Arc::new(LyingDisk(disk)),
            _ => disk,
        };
        let said = |error: &dyn std::error::Error| {
            let source = error.source().map(ToString::to_string);
            format!("{error}: {}", source.unwrap_or_default())
        };
        let snapshots = Snapshots::open(Arc::clone(&disk), Path::new("/snap"));
        let snapshots = Arc::new(snapshots.map_err(|error| said(&error))?);
        let opened = Wal::open_idle(disk, Path::new("/wal"), setting.wal, Known::Nothing);
        let (wal, writer) = opened.map_err(|error| said(&error))?;
        let applied = store::restore(Path::new("/"), &wal, snapshots.current());
        let applied = applied.map_err(|error| said(&error))?;
        let wal = Arc::new(wal);
        let entries = wal
            .read_blocking(0..u64::MAX)
            .map_err(|error| said(&error))?;
        self.observe(|observer| {
            let ids = entries.iter().map(|entry| entry.id);
            observer.opened(node, wal.vote(), wal.purged(), ids, applied.last);
        });
        let witness = Witness {
            node,
            observer: Arc::clone(&self.observer),
        };
        let machine = StateMachine::new(applied, Arc::clone(&snapshots));
        let log = WatchedLog {
            inner: LogStore::new(Arc::clone(&wal), Arc::clone(&snapshots)),
            witness: witness.clone(),
            defect: setting.defect,
            held: None,
        };
        let machine = WatchedMachine {
            reader: machine.reader(),
            inner: machine,
            witness,
        };
        Ok((log, machine, wal, writer, snapshots))
    }

    /// Ends a peer's process. False if it does not run.
    pub(super) fn stop(&self, node: NodeId, end: End) -> bool {
        let mut inner = self.inner();
        let Some(peer) = inner.peers.get_mut(&node) else {
            return false;
        };
        let Some(running) = peer.running.take() else {
            return false;
        };
        if end == End::PowerCut && runtime::chance(500) && running.wal.has_work() {
            // In the middle of writing.
            let next = peer.disk.operations() + 1 + runtime::draw(|random| random.below(3));
            peer.disk.fail_at(next, Fault::PowerCut);
            running.writer.lock().unwrap().step();
        }
        peer.disk = match end {
            End::Kill => peer.disk.image().after_kill(),
            End::PowerCut => runtime::draw(|random| peer.disk.after_power_cut(random)),
        };
        peer.disk_breaks = false;
        drop(inner);
        runtime::note(format_args!("peer {node} ends by {end:?}"));
        runtime::kill(running.process);
        true
    }

    /// The bytes of a peer's log, which lies in its first segment.
    pub(super) fn log_bytes(&self, node: NodeId) -> usize {
        self.inner().peers[&node]
            .disk
            .bytes(Path::new(FIRST_SEGMENT))
            .len()
    }

    /// Takes the end of a peer's log away, synced or not, as a disk does that lies or an old copy of it. It is down.
    pub(super) fn lose_writes(&self, node: NodeId, keep_bytes: usize) {
        let disk = self.inner().peers[&node].disk.clone();
        disk.damage(Path::new(FIRST_SEGMENT), |bytes| bytes.truncate(keep_bytes));
        self.observe(|observer| observer.lost_writes(node));
    }

    /// Ends a peer for good.
    pub(super) fn retire(&self, node: NodeId) {
        self.stop(node, End::Kill);
        if let Some(peer) = self.inner().peers.get_mut(&node) {
            peer.retired = true;
        }
    }

    /// Lets a peer's disk fail soon, for good.
    pub(super) fn break_disk(&self, node: NodeId) {
        if let Some(peer) = self.inner().peers.get_mut(&node)
            && peer.running.is_some()
        {
            peer.disk_breaks = true;
            let soon = peer.disk.operations() + 1 + runtime::draw(|random| random.below(10));
            let faults = [Fault::Error, Fault::LostSync, Fault::Full];
            let fault = faults[runtime::draw(|random| random.below(3)) as usize];
            peer.disk.fail_at(soon, fault);
        }
    }

    /// A disk that was to fail, and has not been used since, stays whole.
    pub(super) fn mend_disk(&self, node: NodeId) {
        if let Some(peer) = self.inner().peers.get(&node) {
            peer.disk.fail_at(0, Fault::PowerCut);
        }
    }

    /// Makes a peer's disk slow, or no longer.
    pub(super) fn slow_disk(&self, node: NodeId, slow: bool) {
        let mut inner = self.inner();
        let setting = inner.setting.clone();
        if let Some(peer) = inner.peers.get_mut(&node) {
            peer.slow_disk = slow;
            if let Some(running) = &peer.running {
                runtime::set_disk_delay(running.process, disk_delay(&setting, slow));
            }
        }
    }

    /// Looks at a peer after a step of it. Returns it if its disk has failed it, in the log or in a snapshot, so that its
    /// process must end.
    pub(super) fn look(&self, process: Process) -> Option<NodeId> {
        let inner = self.inner();
        let found = inner.peers.iter().find_map(|(node, peer)| {
            let running = peer.running.as_ref()?;
            (running.process == process).then_some((*node, running, peer.disk_breaks))
        });
        let (node, running, breaks) = found?;
        let failed = matches!(
            running.metrics.borrow_watched().running_state,
            Err(Fatal::StorageError(_))
        );
        if running.wal.watch_failure().borrow().is_some() || (failed && breaks) {
            return Some(node);
        }
        if running.wal.has_work() && !running.writing.swap(true, Ordering::Relaxed) {
            runtime::spawn_in(process, running.clone().write());
        }
        let metrics = running.metrics.borrow_watched();
        let leads = metrics.state == ServerState::Leader && metrics.vote.committed;
        let vote = metrics.vote.leader_id;
        let leads = leads.then_some((vote.term, vote.node_id));
        let stopped = metrics
            .running_state
            .as_ref()
            .err()
            .map(ToString::to_string);
        drop(metrics);
        let life = running.life;
        drop(inner);
        self.observe(|observer| {
            observer.leads(node, life, leads);
            if let Some(stopped) = stopped {
                observer.violation(format!("peer {node} has stopped by itself: {stopped}"));
            }
        });
        None
    }
}

fn disk_delay(setting: &Setting, slow: bool) -> Duration {
    setting.disk_delay_max * if slow { 100 } else { 1 }
}
