//! Clients: writers, of which each counts up a service of its own, and readers.
//!
//! A write is repeated, at any peer and under the same sequence number, until it is acknowledged. Since every
//! execution of it makes a new version of the service, one too many shows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::ReadPolicy;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use raftserve_model::spec::{
    LoadBalancingPolicy, ProbeKind, Provider, ReadinessProbe, ServiceSpec, Traffic,
};
use raftserve_model::{LogIndex, LogTime, NodeId, ServiceName};

use super::cluster::{Cluster, Running};
use super::network::{CLIENTS, Silence, call};
use super::observer::Register;
use super::runtime;
use crate::command::{Action, Command, Outcome, Precondition, Request};
use crate::entry::LogId;
use crate::raft::log_id_from;

/// How long a client waits for one peer.
const PATIENCE: Duration = Duration::from_millis(800);

/// Between attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// Between one client's operations.
const THINK_MAX: Duration = Duration::from_millis(100);

/// What the clients of a run share.
#[derive(Clone)]
pub(super) struct Clients {
    cluster: Cluster,
    registers: Arc<Mutex<BTreeMap<usize, Register>>>,
    /// Set when no new operation is to begin.
    stop: Arc<AtomicBool>,
}

/// What came back from one peer.
enum Answer<T> {
    Done(T),
    /// Ask this one, if it is known.
    NotLeader(Option<NodeId>),
    Unknown,
}

impl Clients {
    pub(super) fn new(cluster: Cluster) -> Self {
        Self {
            cluster,
            registers: Arc::default(),
            stop: Arc::default(),
        }
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn register<T>(&self, of: usize, act: impl FnOnce(&mut Register) -> T) -> T {
        act(self.registers.lock().unwrap().entry(of).or_default())
    }

    fn any_peer(&self) -> NodeId {
        let nodes = self.cluster.nodes();
        let at = runtime::draw(|random| random.below(nodes.len() as u64));
        nodes[at as usize]
    }

    /// Proposes until it is acknowledged.
    async fn propose(&self, action: Action) -> (LogId, Outcome) {
        let mut hint = None;
        loop {
            let peer = hint.take().unwrap_or_else(|| self.any_peer());
            let answered = call(
                &self.cluster,
                (CLIENTS, peer),
                PATIENCE,
                action.clone(),
                propose_at,
            );
            match answered.await {
                Ok(Answer::Done(done)) => {
                    self.cluster.observe(|it| it.acknowledged(done.0, &done.1));
                    runtime::note(format_args!("acknowledged {}", done.0));
                    return done;
                }
                Ok(Answer::NotLeader(leader)) => hint = leader,
                Ok(Answer::Unknown) | Err(_) => {}
            }
            self.cluster.observe(|it| it.counts.retries += 1);
            runtime::sleep(runtime::below(PAUSE)).await;
        }
    }

    /// Opens a session, under whose number writes are carried out once.
    async fn open_session(&self) -> Result<LogIndex, String> {
        match self.propose(Action::OpenClient).await.1 {
            Outcome::Index(client) => Ok(client),
            opened => Err(format!("a client session was answered {opened:?}")),
        }
    }

    /// Makes version `sequence` of service `of`, which must not have been made before.
    async fn count_up(&self, client: LogIndex, of: usize, sequence: u32) -> Result<(), String> {
        let action = Action::Client {
            client,
            sequence: sequence.into(),
            acknowledged: u64::from(sequence) - 1,
            request: Request::PutService {
                name: service(of),
                spec: spec(of, sequence),
                precondition: Precondition::Any,
            },
        };
        let (id, outcome) = self.propose(action).await;
        match &outcome {
            Outcome::ServicePut { version, .. } if version.0 == sequence => Ok(()),
            _ => Err(format!(
                "exactly once: write {sequence} of client {of} at {id} gave {outcome:?}"
            )),
        }
    }

    /// Counts up service `me` until told to stop.
    pub(super) async fn write(self, me: usize) {
        let client = match self.open_session().await {
            Ok(client) => client,
            Err(what) => return self.cluster.observe(|it| it.violation(what)),
        };
        let mut sequence = 0u32;
        while !self.stopped() {
            runtime::sleep(runtime::below(THINK_MAX)).await;
            sequence += 1;
            self.register(me, |register| register.at_most = sequence);
            if let Err(what) = self.count_up(client, me, sequence).await {
                self.cluster.observe(|it| it.violation(what));
            }
            self.register(me, |register| register.at_least = sequence);
        }
    }

    /// Writes service `of`, which nobody has written before, and reads it at each member: every read must find the write.
    pub(super) async fn write_and_read(&self, of: usize) -> Result<(), String> {
        let client = self.open_session().await?;
        self.count_up(client, of, 1).await?;
        let (leading, leader) = self.cluster.leader().ok_or("nobody leads any more")?;
        let (voters, learners) = leader.members();
        for member in voters.into_iter().chain(learners) {
            let found = match self.read_index_at(leading).await {
                Ok(Answer::Done(index)) => self.read_at(member, of, index).await,
                _ => None,
            };
            if found != Some(1) {
                return Err(format!(
                    "version 1 of service {of} is acknowledged, and a read at the healed peer {member} gave {found:?}"
                ));
            }
        }
        Ok(())
    }

    /// Reads any of `services` at any peer until told to stop.
    pub(super) async fn read(self, services: usize) {
        while !self.stopped() {
            runtime::sleep(runtime::below(THINK_MAX)).await;
            let of = runtime::draw(|random| random.below(services as u64)) as usize;
            let before = self.register(of, |register| register.at_least);
            let Some(found) = self.read_once(of).await else {
                continue;
            };
            self.cluster.observe(|it| it.counts.reads += 1);
            if let Err(what) = self.register(of, |register| register.read(before, found)) {
                self.cluster
                    .observe(|it| it.violation(format!("linearizable: {what}")));
            }
        }
    }

    /// Asks the leader for an index, and some peer for the state once it has applied that (ReadIndex).
    async fn read_once(&self, of: usize) -> Option<u32> {
        let mut leader = self.any_peer();
        for _ in 0..3 {
            match self.read_index_at(leader).await {
                Ok(Answer::Done(index)) => return self.read_at(self.any_peer(), of, index).await,
                Ok(Answer::NotLeader(Some(other))) => leader = other,
                Ok(Answer::NotLeader(None) | Answer::Unknown) | Err(_) => return None,
            }
        }
        None
    }

    async fn read_index_at(&self, leader: NodeId) -> Result<Answer<LogIndex>, Silence> {
        call(&self.cluster, (CLIENTS, leader), PATIENCE, (), read_index).await
    }

    async fn read_at(&self, peer: NodeId, of: usize, index: LogIndex) -> Option<u32> {
        let request = (of, index);
        let read = call(&self.cluster, (CLIENTS, peer), PATIENCE, request, read_from);
        read.await.ok()
    }

    /// Whether the newest state holds every write that was acknowledged, and nothing that was never sent.
    pub(super) fn check_registers(&self) -> Result<(), String> {
        let registers = self.registers.lock().unwrap().clone();
        for (of, register) in registers {
            let found = self.cluster.observe(|it| {
                let state = it.newest().map(|(_, state)| state.clone());
                state.map_or(0, |state| version(&state, of))
            });
            if !(register.at_least..=register.at_most).contains(&found) {
                return Err(format!(
                    "service {of} ends at {found}, and not in {register:?}"
                ));
            }
        }
        Ok(())
    }
}

async fn propose_at(running: Running, action: Action) -> Option<Answer<(LogId, Outcome)>> {
    let now = u64::try_from(runtime::now().as_millis()).unwrap();
    let command = Command::at(LogTime(now), action);
    Some(match running.raft.client_write(command).await {
        Ok(written) => Answer::Done((log_id_from(&written.log_id), written.data)),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
            Answer::NotLeader(to.leader_id)
        }
        Err(_) => Answer::Unknown,
    })
}

async fn read_index(running: Running, (): ()) -> Option<Answer<LogIndex>> {
    let asked = running.raft.get_read_linearizer(ReadPolicy::ReadIndex);
    Some(match asked.await {
        Ok(linearizer) => Answer::Done(LogIndex(linearizer.read_log_id().index())),
        Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to))) => {
            Answer::NotLeader(to.leader_id)
        }
        Err(_) => Answer::Unknown,
    })
}

async fn read_from(running: Running, (of, index): (usize, LogIndex)) -> Option<u32> {
    let mut applied = running.reader.applied();
    applied.wait_for(|applied| *applied >= index).await.ok()?;
    Some(version(&running.reader.state(), of))
}

fn service(of: usize) -> ServiceName {
    format!("service-{of}").parse().unwrap()
}

fn version(state: &crate::State, of: usize) -> u32 {
    let service = state.service_by_name(&service(of));
    service.map_or(0, |service| service.version.0)
}

fn spec(of: usize, sequence: u32) -> Arc<ServiceSpec> {
    Arc::new(ServiceSpec {
        source: format!("{of}: {sequence}"),
        replicas: 1,
        readiness: ReadinessProbe {
            kind: ProbeKind::Http,
            path: "/".into(),
            post_data: None,
            headers: Default::default(),
            initial_delay: Duration::from_secs(1200),
            timeout: Duration::from_secs(15),
            interval: Duration::from_secs(10),
            failure_threshold: Duration::from_secs(180),
        },
        port: 8080,
        policy: LoadBalancingPolicy::LeastLoad,
        stream_timeout: Duration::from_secs(120),
        provider: Provider::Peers,
        setup: None,
        run: "serve".into(),
        envs: Default::default(),
        secrets: Default::default(),
        resources: Default::default(),
        placement: Default::default(),
        affinity: None,
        drain_timeout: Duration::from_secs(30),
        stop_grace: Duration::from_secs(10),
        traffic: Traffic::default(),
        file_mounts: Vec::new(),
    })
}
