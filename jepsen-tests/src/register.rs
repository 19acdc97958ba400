//! Clients of the key-value store whose histories can be checked: of registers that all of them write, and
//! of counted writes, which are repeated in a client session until they are known to have been carried out.
//!
//! The seed decides what each client asks and whom, though not when, nor what the cluster makes of it.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::admin::{Admin, Fate, v1};
use crate::check::Counted;
use crate::history::{Action, Answer, Operation};

/// How long a call that must be answered may take, through however many faults: beyond any that a test makes.
const INSIST_MAX: Duration = Duration::from_secs(30);

/// How long some writes may take: only a cluster that is stuck takes so long, on however busy a machine.
const PROGRESS_MAX: Duration = Duration::from_secs(60);

/// The pause after a peer refused: elections and restarts take several.
const REFUSED_PAUSE: Duration = Duration::from_millis(10);

/// The most operations of a run: bounds the history's memory at some hundred MiB.
const OPERATIONS_MAX: usize = 2_000_000;

/// What to ask of a cluster.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The peers.
    pub peers: Vec<Admin>,
    /// How many clients read and write registers.
    pub clients: usize,
    /// How many count their writes.
    pub counters: usize,
    /// The least time between two calls of a client.
    pub pace: Duration,
    /// Decides what is asked.
    pub seed: u64,
    /// What all keys of the run begin with: no two runs on a cluster may share it.
    pub prefix: String,
}

/// What all clients share.
#[derive(Debug)]
struct Shared {
    keys: Mutex<Arc<[String]>>,
    peers: Mutex<Arc<[Admin]>>,
    operations: Mutex<Vec<Operation>>,
    counted: Mutex<Vec<Counted>>,
    increments: AtomicU64,
    written: AtomicU64,
    next_value: AtomicU64,
    stop: AtomicBool,
}

/// A workload under way. Its clients end when it is dropped.
#[derive(Debug)]
pub struct Running {
    workload: Workload,
    shared: Arc<Shared>,
    clients: JoinSet<anyhow::Result<()>>,
}

/// What a workload saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// All calls on registers, each in the place of its end.
    pub operations: Vec<Operation>,
    /// All counted writes.
    pub counted: Vec<Counted>,
    /// How often the counter that the counting clients share was raised, and where it is.
    pub increments: (u64, String),
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn note(&self, operation: Operation) -> anyhow::Result<()> {
        let mut operations = lock(&self.operations);
        anyhow::ensure!(operations.len() < OPERATIONS_MAX, "too long a run");
        operations.push(operation);
        Ok(())
    }
}

impl Workload {
    /// Four clients of registers and two that count, none faster than a call in 2 ms.
    #[must_use]
    pub fn new(peers: Vec<Admin>, seed: u64, prefix: &str) -> Self {
        Self {
            peers,
            clients: 4,
            counters: 2,
            pace: Duration::from_millis(2),
            seed,
            prefix: prefix.to_owned(),
        }
    }

    /// Starts the clients, on the registers `names`.
    #[must_use]
    pub fn start(self, names: &[String]) -> Running {
        let shared = Arc::new(Shared {
            keys: Mutex::new(self.named(names)),
            peers: Mutex::new(self.peers.clone().into()),
            operations: Mutex::default(),
            counted: Mutex::default(),
            increments: AtomicU64::new(0),
            written: AtomicU64::new(0),
            next_value: AtomicU64::new(1),
            stop: AtomicBool::new(false),
        });
        let mut clients = JoinSet::new();
        for number in 0..self.clients + self.counters {
            let client = Client {
                number,
                random: StdRng::seed_from_u64(self.seed ^ (number as u64 + 1).rotate_left(32)),
                workload: self.clone(),
                shared: Arc::clone(&shared),
                seen: None,
            };
            match number < self.clients {
                true => clients.spawn(client.use_registers()),
                false => clients.spawn(client.count()),
            };
        }
        Running {
            workload: self,
            shared,
            clients,
        }
    }

    fn named(&self, names: &[String]) -> Arc<[String]> {
        let named = |name: &String| format!("{}{name}", self.prefix);
        names.iter().map(named).collect()
    }

    fn counter(&self) -> String {
        format!("{}counter", self.prefix)
    }
}

impl Running {
    /// The clients use these registers from now on.
    pub fn use_registers(&self, names: &[String]) {
        *lock(&self.shared.keys) = self.workload.named(names);
    }

    /// The clients ask these peers from now on.
    pub fn use_peers(&self, peers: Vec<Admin>) {
        *lock(&self.shared.peers) = peers.into();
    }

    /// How many writes were acknowledged.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.shared.written.load(Ordering::SeqCst)
    }

    /// Waits until another `more` writes are acknowledged.
    ///
    /// # Errors
    /// If they are not within a minute, or a client failed.
    pub async fn progress(&mut self, more: u64) -> anyhow::Result<()> {
        let target = self.written() + more;
        crate::wait::until("acknowledged writes", PROGRESS_MAX, async || {
            let written = self.written();
            anyhow::ensure!(written >= target, "{written} of {target}");
            Ok(())
        })
        .await?;
        match self.clients.try_join_next() {
            None => Ok(()),
            Some(ended) => ended?.and(Err(anyhow::anyhow!("a client ended by itself"))),
        }
    }

    /// Stops the clients, once counted writes that are under way are through: at least a quorum must run.
    ///
    /// # Errors
    /// If a client failed.
    pub async fn stop(mut self) -> anyhow::Result<Seen> {
        self.shared.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.clients.join_next().await {
            ended??;
        }
        Ok(Seen {
            operations: std::mem::take(&mut *lock(&self.shared.operations)),
            counted: std::mem::take(&mut *lock(&self.shared.counted)),
            increments: (
                self.shared.increments.load(Ordering::SeqCst),
                self.workload.counter(),
            ),
        })
    }
}

/// One client.
struct Client {
    number: usize,
    random: StdRng,
    workload: Workload,
    shared: Arc<Shared>,
    /// The register, value and revision that it saw last, to swap.
    seen: Option<(String, Option<u64>, u64)>,
}

impl Client {
    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::SeqCst)
    }

    async fn use_registers(mut self) -> anyhow::Result<()> {
        while !self.stopped() {
            let keys = Arc::clone(&lock(&self.shared.keys));
            let key = keys.choose(&mut self.random).context("no registers")?;
            let peers = Arc::clone(&lock(&self.shared.peers));
            let peer = self.random.random_range(0..peers.len());
            let operation = self.call(key, peer, &peers[peer]).await;
            let refused = matches!(operation.answer, Answer::Refused(_));
            self.shared.note(operation)?;
            tokio::time::sleep(match refused {
                true => REFUSED_PAUSE,
                false => self.workload.pace,
            })
            .await;
        }
        Ok(())
    }

    async fn call(&mut self, key: &str, peer: usize, admin: &Admin) -> Operation {
        let (action, condition) = self.choose(key);
        let started = Instant::now();
        let (answer, seen) = match &action {
            Action::Read => read(admin, key).await,
            Action::Write { value } | Action::Swap { value, .. } => {
                write(admin, key, *value, condition).await
            }
        };
        let ended = Instant::now();
        if let Some((value, revision)) = seen {
            self.seen = Some((key.to_owned(), value, revision));
        }
        if matches!(answer, Answer::Written { .. }) {
            self.shared.written.fetch_add(1, Ordering::SeqCst);
        }
        Operation {
            key: key.to_owned(),
            client: self.number,
            peer,
            started,
            ended,
            action,
            answer,
        }
    }

    /// What to ask next, and the revision that a swap expects.
    fn choose(&mut self, key: &str) -> (Action, Option<u64>) {
        let value = |shared: &Shared| shared.next_value.fetch_add(1, Ordering::SeqCst);
        match (self.random.random_range(0..100), &self.seen) {
            (0..40, _) => (Action::Read, None),
            (40..70, Some((known, from, revision))) if known == key => {
                let value = value(&self.shared);
                (Action::Swap { from: *from, value }, Some(*revision))
            }
            _ => {
                let value = value(&self.shared);
                (Action::Write { value }, None)
            }
        }
    }

    /// Writes a register of its own, and raises a counter that others raise too, each write until it is known
    /// to have been carried out.
    async fn count(mut self) -> anyhow::Result<()> {
        let client_id = insist("a client session", |turn| {
            let admin = self.peer(turn);
            async move { admin.open_client().await }
        })
        .await?;
        let own = format!("{}counted-{}", self.workload.prefix, self.number);
        let counter = self.workload.counter();
        let mut sequence = 0;
        let mut nth = 0;
        while !self.stopped() {
            sequence += 1;
            let id = v1::RequestId {
                client_id,
                sequence,
                acknowledged: sequence - 1,
            };
            if self.random.random_range(0..2) == 0 {
                nth += 1;
                let put = self.insist_on(&own, nth, None, id).await?;
                let put = put.context("a conflict without a condition")?;
                lock(&self.shared.counted).push(Counted {
                    key: own.clone(),
                    nth,
                    version: put.version,
                });
            } else {
                let found = insist("a read of the counter", |turn| {
                    let (admin, counter) = (self.peer(turn), counter.clone());
                    async move { admin.key(&counter).await }
                })
                .await?;
                let (count, revision) = number(found.as_ref())?;
                let raised = count.unwrap_or(0) + 1;
                if (self.insist_on(&counter, raised, Some(revision), id).await?).is_some() {
                    self.shared.increments.fetch_add(1, Ordering::SeqCst);
                }
            }
            self.shared.written.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(self.workload.pace).await;
        }
        Ok(())
    }

    fn peer(&self, turn: usize) -> Admin {
        let peers = lock(&self.shared.peers);
        peers[(self.number + turn) % peers.len()].clone()
    }

    /// Sends a write to one peer after the other until it is known what became of it: none if its condition
    /// did not hold.
    async fn insist_on(
        &mut self,
        key: &str,
        value: u64,
        condition: Option<u64>,
        id: v1::RequestId,
    ) -> anyhow::Result<Option<v1::PutKeyResponse>> {
        let first = usize::from(self.random.random::<u16>());
        insist(&format!("write {id:?} of {key}"), |turn| {
            let (admin, key) = (self.peer(first + turn), key.to_owned());
            async move {
                let put = admin.put_key(&key, value.to_string(), condition, Some(id));
                match put.await {
                    Ok(done) => Ok(Some(done)),
                    Err(status) if is_conflict(&status) => Ok(None),
                    Err(status) => Err(status),
                }
            }
        })
        .await
    }
}

/// Repeats a call, at one peer after the other, as long as it may succeed later.
async fn insist<T, F: Future<Output = Result<T, Status>>>(
    what: &str,
    call: impl Fn(usize) -> F,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + INSIST_MAX;
    for turn in 0.. {
        match call(turn).await {
            Ok(done) => return Ok(done),
            Err(status) if !may_be_repeated(&status) => {
                bail!("{what} was refused for good: {status:?}")
            }
            Err(status) if Instant::now() > deadline => {
                bail!("{what} got no answer in {INSIST_MAX:?}: {status:?}")
            }
            Err(_) => tokio::time::sleep(REFUSED_PAUSE).await,
        }
    }
    unreachable!("the deadline ends it")
}

/// Whether a peer is away, or has too much to do, or cannot say what became of the call.
fn may_be_repeated(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::ResourceExhausted)
        || Fate::of(status) == Fate::Unknown
}

fn is_conflict(status: &Status) -> bool {
    let reason = b"KEY_CONFLICT";
    let mut windows = status.details().windows(reason.len());
    status.code() == Code::FailedPrecondition && windows.any(|window| window == reason)
}

/// Whether there was nobody to connect to.
fn was_never_sent(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let refused = error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        if refused {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The number that a register holds, and its revision.
///
/// # Errors
/// If it holds something else.
pub fn number(entry: Option<&v1::KeyEntry>) -> anyhow::Result<(Option<u64>, u64)> {
    let Some(entry) = entry else {
        return Ok((None, 0));
    };
    let text = String::from_utf8_lossy(&entry.value);
    let value = text.parse().with_context(|| format!("{entry:?}"))?;
    Ok((Some(value), entry.modified_index))
}

type Told = (Answer, Option<(Option<u64>, u64)>);

async fn read(admin: &Admin, key: &str) -> Told {
    match admin.key(key).await {
        Ok(entry) => match number(entry.as_ref()) {
            Ok((value, revision)) => (Answer::Found { value, revision }, Some((value, revision))),
            // No register of ours: shows as a value that nobody wrote.
            Err(_) => (
                Answer::Found {
                    value: Some(0),
                    revision: 0,
                },
                None,
            ),
        },
        Err(status) => (Answer::Unknown(status.to_string()), None),
    }
}

async fn write(admin: &Admin, key: &str, value: u64, condition: Option<u64>) -> Told {
    match admin.put_key(key, value.to_string(), condition, None).await {
        Ok(done) => {
            let revision = done.modified_index;
            (Answer::Written { revision }, Some((Some(value), revision)))
        }
        Err(status) if is_conflict(&status) => (Answer::Conflict, None),
        Err(status) if was_never_sent(&status) || Fate::of(&status) == Fate::Refused => {
            (Answer::Refused(status.to_string()), None)
        }
        Err(status) => (Answer::Unknown(status.to_string()), None),
    }
}

/// Reads registers at each peer, as operations of a client of its own.
///
/// # Errors
/// If a peer does not answer within half a minute.
pub async fn read_all(peers: &[Admin], keys: &[String]) -> anyhow::Result<Vec<Operation>> {
    let mut operations = Vec::new();
    for (peer, admin) in peers.iter().enumerate() {
        for key in keys {
            let what = format!("peer {peer} to read {key}");
            let (started, found) = crate::wait::until(&what, INSIST_MAX, async || {
                let started = Instant::now();
                Ok((started, admin.key(key).await?))
            })
            .await?;
            let (value, revision) = number(found.as_ref())?;
            operations.push(Operation {
                key: key.clone(),
                client: usize::MAX,
                peer,
                started,
                ended: Instant::now(),
                action: Action::Read,
                answer: Answer::Found { value, revision },
            });
        }
    }
    Ok(operations)
}

/// All that a workload saw, then reads of everything at every peer that runs: no order explains it otherwise
/// than as one register each, and every counted write counted once.
///
/// # Errors
/// With what is wrong.
pub async fn check(mut seen: Seen, peers: &[Admin]) -> anyhow::Result<Vec<Operation>> {
    let keys: std::collections::BTreeSet<String> =
        seen.operations.iter().map(|it| it.key.clone()).collect();
    let keys: Vec<String> = keys.into_iter().collect();
    seen.operations.extend(read_all(peers, &keys).await?);
    check_operations(&seen.operations)?;
    let (increments, counter) = &seen.increments;
    let counted = crate::check::each_request_counted_once(&seen.counted);
    crate::check::clean("counted writes", &counted)?;
    for admin in peers {
        let found = crate::wait::until("the counter", INSIST_MAX, async || {
            Ok(admin.key(counter).await?)
        })
        .await?;
        let (count, _) = number(found.as_ref())?;
        anyhow::ensure!(
            count.unwrap_or(0) == *increments,
            "the counter was raised {increments} times and is at {count:?}"
        );
    }
    Ok(seen.operations)
}

/// Registers are linearizable, and their revisions agree.
///
/// # Errors
/// With what is wrong.
pub fn check_operations(operations: &[Operation]) -> anyhow::Result<()> {
    let unexplained = crate::check::registers_are_linearizable(operations);
    crate::check::clean("linearizability", &unexplained)?;
    let revisions = crate::check::revisions_never_go_back(operations);
    crate::check::clean("revisions", &revisions)
}
