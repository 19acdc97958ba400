//! How a peer's store behaves with 10,000 replicas in 1,000 services and a million sessions.
//!
//! `cargo run --release -p raftserve-store --example state_scale [SESSIONS] [DIRECTORY]`
//!
//! Everything goes the way that it goes in a peer: entries into the log, the log's writer, the state machine,
//! snapshots, the checkpoint, a stop and a start. The directory is made below the one given (by default the
//! present one), whose disk is measured too.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::stream;
use openraft::alias::EntryOf;
use openraft::entry::RaftEntry;
use openraft::storage::{RaftLogStorageExt, RaftStateMachine};
use openraft::{EntryPayload, RaftSnapshotBuilder};
use raftserve_model::spec::ServiceSpec;
use raftserve_model::{
    Incarnation, LogIndex, LogTime, NodeId, ReplicaId, ServiceId, ServiceVersion, SessionKey,
};
use raftserve_store::command::{Action, BIND_KEYS_MAX, Change, Command, Precondition, Request};
use raftserve_store::disk::RealDisk;
use raftserve_store::entry::LogId;
use raftserve_store::raft::{TypeConfig, log_id_to};
use raftserve_store::snapshot::Snapshots;
use raftserve_store::store::{Opened, SavedState, Store};
use raftserve_store::{DataDir, State};

const SERVICES: u64 = 1_000;
const REPLICAS: u32 = 10;
const ROUNDS: usize = 3;

type Error = Box<dyn std::error::Error>;

const SPEC: &str = "service:
  readiness_probe: /health
  replicas: 10
_metadata:
  raftserve:
    session_affinity: {header: x-session, max_sessions: 1000000}
resources:
  ports: 8080
run: exec ./serve
";

/// A peer's store under load.
struct Peer {
    opened: Opened,
    index: u64,
    time: u64,
}

impl Peer {
    fn open(dir: &Path, saved: SavedState) -> Result<(Self, Duration), Error> {
        let store = Store {
            saved,
            ..Store::default()
        };
        let start = Instant::now();
        let opened = store.open(&mut DataDir::open(dir)?)?;
        let took = start.elapsed();
        let index = opened.reader.last().map_or(0, |last| last.index.0);
        let time = opened.reader.state().now().0;
        Ok((
            Self {
                opened,
                index,
                time,
            },
            took,
        ))
    }

    fn entry(&mut self, action: Action) -> EntryOf<TypeConfig> {
        self.index += 1;
        self.time += 1;
        let id = LogId {
            term: 1,
            node: NodeId(1),
            index: LogIndex(self.index),
        };
        let command = Command::at(LogTime(self.time), action);
        EntryOf::<TypeConfig>::new(log_id_to(id), EntryPayload::Normal(command))
    }

    /// Writes and applies; says how long each took.
    async fn run(&mut self, actions: Vec<Action>) -> Result<(Duration, Duration), Error> {
        let entries: Vec<_> = actions.into_iter().map(|it| self.entry(it)).collect();
        let start = Instant::now();
        self.opened.log.blocking_append(entries.clone()).await?;
        let written = start.elapsed();
        let start = Instant::now();
        let entries = stream::iter(entries.into_iter().map(|entry| Ok((entry, None))));
        self.opened.machine.apply(entries).await?;
        Ok((written, start.elapsed()))
    }

    fn state(&self) -> Arc<State> {
        self.opened.reader.state()
    }
}

fn key(number: u64) -> SessionKey {
    SessionKey::of(ServiceId(0), &number.to_be_bytes())
}

/// Makes the services, their replicas, and sessions spread over them.
async fn fill(peer: &mut Peer, sessions: u64) -> Result<Vec<ServiceId>, Error> {
    let spec: Arc<ServiceSpec> = Arc::new(ServiceSpec::parse(SPEC, Default::default())?.spec);
    peer.run(vec![Action::StartControl {
        node: NodeId(1),
        incarnation: Incarnation(1),
    }])
    .await?;
    let generation = peer.state().control().generation;
    let control = |changes| Action::Control {
        generation,
        changes,
    };
    let mut services = Vec::new();
    for number in 0..SERVICES {
        let name = format!("service-{number}").parse()?;
        peer.run(vec![Action::Request(Request::PutService {
            name,
            spec: Arc::clone(&spec),
            precondition: Precondition::Absent,
        })])
        .await?;
        let service = ServiceId(peer.index);
        services.push(service);
        let create = |port| Change::Create {
            service,
            version: ServiceVersion(1),
            port,
        };
        let numbers = 1..=REPLICAS;
        let started = numbers.clone().flat_map(|number| {
            let replica = ReplicaId { service, number };
            let address = format!("10.0.0.1:{number}");
            [
                Change::Started { replica, address },
                Change::Ready { replica },
            ]
        });
        peer.run(vec![
            control((20_000..20_000 + REPLICAS as u16).map(create).collect()),
            control(started.collect()),
        ])
        .await?;
    }
    let keys: Vec<u64> = (0..sessions).collect();
    for (chunk, service) in keys.chunks(BIND_KEYS_MAX).zip(services.iter().cycle()) {
        peer.run(vec![bind(*service, chunk.iter().copied())])
            .await?;
    }
    Ok(services)
}

fn bind(service: ServiceId, keys: impl IntoIterator<Item = u64>) -> Action {
    Action::BindSessions {
        service,
        keys: keys.into_iter().map(key).collect(),
    }
}

/// Times in order.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn at(&mut self, share: f64) -> Duration {
        self.0.sort_unstable();
        let at = (self.0.len() as f64 * share) as usize;
        self.0
            .get(at.min(self.0.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    }

    fn line(&mut self) -> String {
        let (p50, p99, max) = (self.at(0.5), self.at(0.99), self.at(1.0));
        let micros = |it: Duration| it.as_micros();
        let (p50, p99, max) = (micros(p50), micros(p99), micros(max));
        format!(
            "p50 {p50:>6} us   p99 {p99:>6} us   max {max:>6} us   of {}",
            self.0.len()
        )
    }
}

/// What a busy cluster writes, one entry at a time: a few sessions bound or renewed, and now and then a replica
/// that changes.
fn work(peer: &Peer, services: &[ServiceId], turn: u64) -> Action {
    let service = services[(turn % SERVICES) as usize];
    if turn.is_multiple_of(10) {
        let replica = ReplicaId {
            service,
            number: 1 + (turn / SERVICES % u64::from(REPLICAS)) as u32,
        };
        let change = Change::NotReady {
            replica,
            reason: "timeout".to_owned(),
        };
        return Action::Control {
            generation: peer.state().control().generation,
            changes: vec![change, Change::Ready { replica }],
        };
    }
    bind(service, (0..8).map(|it| turn * 8 + it))
}

async fn apply_times(peer: &mut Peer, services: &[ServiceId]) -> Result<(), Error> {
    let mut mixed = Times::default();
    for turn in 0..20_000 {
        let action = work(peer, services, turn);
        mixed.0.push(peer.run(vec![action]).await?.1);
    }
    println!("apply, usual entries            {}", mixed.line());
    for (what, first) in [("renewed", 0), ("new", 10_000_000)] {
        let mut full = Times::default();
        for turn in 0..1_000_u64 {
            let service = services[(turn % SERVICES) as usize];
            let from = first + turn * BIND_KEYS_MAX as u64;
            let keys = from..from + BIND_KEYS_MAX as u64;
            full.0.push(peer.run(vec![bind(service, keys)]).await?.1);
        }
        println!(
            "apply, {BIND_KEYS_MAX} sessions {what:<8}     {}",
            full.line()
        );
    }
    Ok(())
}

/// Works until `done`, or for so many turns; gives the times of writing and applying.
async fn loaded(
    peer: &mut Peer,
    services: &[ServiceId],
    done: &AtomicBool,
    turns: u64,
) -> Result<(Times, Times), Error> {
    let (mut writes, mut applies) = (Times::default(), Times::default());
    let mut turn = 0;
    while !done.load(Ordering::Relaxed) && turn < turns {
        let action = work(peer, services, turn);
        let (written, applied) = peer.run(vec![action]).await?;
        writes.0.push(written);
        applies.0.push(applied);
        turn += 1;
    }
    Ok((writes, applies))
}

async fn snapshot_times(peer: &mut Peer, services: &[ServiceId]) -> Result<(), Error> {
    let mut ratios: [Vec<f64>; 2] = Default::default();
    for _ in 0..ROUNDS {
        let quiet = AtomicBool::new(false);
        let (mut writes, mut applies) = loaded(peer, services, &quiet, 20_000).await?;
        println!("quiet:     log write            {}", writes.line());
        println!("           apply                {}", applies.line());
        let done = Arc::new(AtomicBool::new(false));
        let mut builder = peer.opened.machine.get_snapshot_builder().await;
        let building = Arc::clone(&done);
        let builder = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            let start = Instant::now();
            let built = runtime.map(|it| it.block_on(builder.build_snapshot()));
            building.store(true, Ordering::Relaxed);
            (start.elapsed(), built.is_ok_and(|it| it.is_ok()))
        });
        let (mut busy_writes, mut busy_applies) = loaded(peer, services, &done, u64::MAX).await?;
        let (took, built) = builder.join().map_err(|_| "the builder panicked")?;
        println!("snapshot:  built in {took:.2?}, {built}");
        println!("meanwhile: log write            {}", busy_writes.line());
        println!("           apply                {}", busy_applies.line());
        let ratio = |busy: &mut Times, quiet: &mut Times| {
            busy.at(0.99).as_secs_f64() / quiet.at(0.99).as_secs_f64()
        };
        ratios[0].push(ratio(&mut busy_writes, &mut writes));
        ratios[1].push(ratio(&mut busy_applies, &mut applies));
    }
    for (what, ratios) in ["log write", "apply"].into_iter().zip(&mut ratios) {
        ratios.sort_by(f64::total_cmp);
        println!("p99 of {what} while a snapshot is taken, to quiet: {ratios:.2?}");
    }
    Ok(())
}

fn install_times(peer: &Peer, dir: &Path) -> Result<(), Error> {
    let current = peer.opened.snapshots.current().ok_or("no snapshot")?;
    println!("snapshot:  {} MB", current.file.size()? >> 20);
    let start = Instant::now();
    current.file.verify()?;
    println!("           verified in {:.2?}", start.elapsed());
    std::fs::create_dir(dir)?;
    let other = Snapshots::open(Arc::new(RealDisk), dir)?;
    let start = Instant::now();
    other.install(&current.file, current.head.last)?;
    println!(
        "           copied, verified and installed in {:.2?}",
        start.elapsed()
    );
    Ok(())
}

/// The resident memory of this process now, and at most, in MB.
fn memory() -> Result<(u64, u64), Error> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let field = |name| {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let kilobytes = |name| field(name).ok_or("no such field").map(|it| it >> 10);
    Ok((kilobytes("VmRSS")?, kilobytes("VmHWM")?))
}

async fn stop_and_start(peer: Peer, dir: &Path, services: &[ServiceId]) -> Result<Peer, Error> {
    let mut written = peer.opened.checkpoint.written().ok_or("no checkpoint")?;
    let start = Instant::now();
    let last = peer.opened.reader.last();
    written.wait_for(|written| *written == last).await?;
    println!("checkpoint: up to date after {:.0?}", start.elapsed());
    let mut peer = peer;
    for turn in 0..1_000 {
        let action = work(&peer, services, turn);
        peer.run(vec![action]).await?;
    }
    let digest = peer.state().digest();
    println!("memory:    {:?} MB now, at most", memory()?);
    let start = Instant::now();
    peer.opened.checkpoint.stop()?;
    println!(
        "stop, 1,000 entries after the checkpoint: {:.2?}",
        start.elapsed()
    );
    drop((peer.opened.log, peer.opened.machine, peer.opened.wal));
    // As a start does of itself where many entries follow the snapshot.
    let (peer, took) = Peer::open(dir, SavedState::WhereNewer)?;
    println!("start from the checkpoint: {took:.2?}");
    assert_eq!(peer.state().digest(), digest, "nothing is lost");
    Ok(peer)
}

async fn run(sessions: u64, dir: &Path) -> Result<(), Error> {
    let data = dir.join("data");
    let (mut peer, _) = Peer::open(&data, SavedState::WhereItPays)?;
    let before = memory()?.0;
    let start = Instant::now();
    let services = fill(&mut peer, sessions).await?;
    println!(
        "{SERVICES} services, {} replicas, {sessions} sessions written and applied in {:.1?}",
        peer.state().replicas().count(),
        start.elapsed()
    );
    println!("memory:    {} MB for them", memory()?.0 - before);
    let start = Instant::now();
    let digest = peer.state().digest();
    println!("digest:    {:.2?} ({digest})", start.elapsed());
    apply_times(&mut peer, &services).await?;
    snapshot_times(&mut peer, &services).await?;
    install_times(&peer, &dir.join("other"))?;
    let peer = stop_and_start(peer, &data, &services).await?;
    println!("memory:    {:?} MB now, at most", memory()?);
    drop(peer);
    let (peer, took) = Peer::open(&data, SavedState::WhereItPays)?;
    let last = peer.opened.reader.last().map(|it| it.index.0);
    println!("start from the snapshot, as after a crash: {took:.2?}, up to {last:?}");
    Ok(())
}

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let sessions = arguments.next().map_or(Ok(1_000_000), |it| it.parse())?;
    let parent = arguments.next().unwrap_or_else(|| ".".to_owned());
    let dir = tempfile::Builder::new()
        .prefix("state-scale-")
        .tempdir_in(parent)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(sessions, dir.path()))
}
