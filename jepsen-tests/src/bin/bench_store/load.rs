//! The load: so many clients in a closed loop, over so many connections.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use bytes::Bytes;
use jepsen_tests::usage::Usage;
use tokio::task::JoinSet;

use crate::system::{Connection, Running, Target};

/// The size of each value.
const VALUE_BYTES: usize = 256;

/// Keys in use. All exist before reads begin.
const KEYS: u64 = 10_000;

/// Clients that put all keys there before reads are measured.
const FILLERS: usize = 64;

/// Threads for clients: as many as the servers of a machine of two processors leave room for.
const THREADS: usize = 2;

/// What a client does, again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    Put,
    Get,
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Step {
    pub(crate) operation: Operation,
    pub(crate) clients: usize,
    /// Of one client, from the beginning of one operation to that of the next, however long they take; none if each begins
    /// when the last one is done.
    every: Option<Duration>,
}

impl Step {
    pub(crate) fn new(operation: Operation, clients: usize) -> Self {
        Self {
            operation,
            clients,
            every: None,
        }
    }

    /// So many operations a second, of all clients together.
    pub(crate) fn paced(self, per_second: u32) -> Self {
        let every = Duration::from_secs_f64(self.clients as f64 / f64::from(per_second));
        Self {
            every: Some(every),
            ..self
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.operation {
            Operation::Put => "writes",
            Operation::Get => "linearizable reads",
        };
        write!(f, "{what}, {} clients", self.clients)
    }
}

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) per_second: f64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    /// Processor time of all three servers for a thousand operations.
    pub(crate) cpu_per_thousand: Duration,
    /// Bytes that all three servers wrote to disk for one operation.
    pub(crate) disk_bytes_each: f64,
    /// Resident memory of one server, on average, at the end.
    pub(crate) memory_bytes: u64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.0}/s, p50 {:.2} ms, p99 {:.2} ms, {:.0} ms cpu per 1,000, {:.0} disk bytes each, {} MiB",
            self.per_second,
            self.p50.as_secs_f64() * 1e3,
            self.p99.as_secs_f64() * 1e3,
            self.cpu_per_thousand.as_secs_f64() * 1e3,
            self.disk_bytes_each,
            self.memory_bytes >> 20
        )
    }
}

/// What the clients of one measurement share.
struct Shared {
    /// Latencies count from then on.
    counting: AtomicBool,
    ended: AtomicBool,
    next: AtomicU64,
    value: Bytes,
}

/// Keys are visited in an order that is neither sorted nor random: the same for all systems.
fn key(number: u64) -> String {
    const STRIDE: u64 = 7_919;
    format!("key{:012}", number.wrapping_mul(STRIDE) % KEYS)
}

/// Puts every key there.
async fn fill(target: Target) -> anyhow::Result<()> {
    let mut fillers = JoinSet::new();
    let connection = target.connect().await?;
    for filler in 0..FILLERS as u64 {
        let connection = connection.clone();
        fillers.spawn(async move {
            let value = Bytes::from(vec![7; VALUE_BYTES]);
            for number in (filler..KEYS).step_by(FILLERS) {
                connection.put(key(number), &value).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = fillers.join_next().await {
        done.context("a client panicked")??;
    }
    Ok(())
}

/// One operation that ended while they counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) began: Instant,
    pub(crate) took: Duration,
}

/// Runs `step` for `warm_up` and then `length`, which counts.
pub(crate) async fn measure(
    running: &Running,
    step: Step,
    connections: usize,
    warm_up: Duration,
    length: Duration,
) -> anyhow::Result<Figures> {
    let target = running.target().await?;
    if step.operation == Operation::Get {
        fill(target).await?;
    }
    let pids = running.pids()?;
    let counting = async {
        let (before, begun) = (Usage::of(&pids)?, Instant::now());
        tokio::time::sleep(length).await;
        anyhow::Ok((begun.elapsed(), Usage::of(&pids)? - before))
    };
    let (calls, (took, used)) = calls_until(target, step, connections, warm_up, counting).await?;
    let mut latencies: Vec<Duration> = calls.iter().map(|call| call.took).collect();
    latencies.sort_unstable();
    let count = latencies.len() as f64;
    Ok(Figures {
        per_second: count / took.as_secs_f64(),
        p50: quantile(&latencies, 0.5),
        p99: quantile(&latencies, 0.99),
        cpu_per_thousand: used.cpu.mul_f64(1_000.0 / count),
        disk_bytes_each: used.disk_bytes as f64 / count,
        memory_bytes: used.memory_bytes / pids.len() as u64,
    })
}

/// Runs `step` for `warm_up` and then until `ended`, which is begun only then. Returns the calls that ended meanwhile, of
/// which there are some, and what `ended` brought.
pub(crate) async fn calls_until<T>(
    target: Target,
    step: Step,
    connections: usize,
    warm_up: Duration,
    ended: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<(Vec<Call>, T)> {
    let shared = Arc::new(Shared {
        counting: AtomicBool::new(false),
        ended: AtomicBool::new(false),
        next: AtomicU64::new(0),
        value: Bytes::from(vec![b'v'; VALUE_BYTES]),
    });
    let threads = start_threads(target, step, connections, &shared)?;
    tokio::time::sleep(warm_up).await;
    shared.counting.store(true, Ordering::Relaxed);
    let brought = ended.await;
    shared.ended.store(true, Ordering::Relaxed);
    let mut calls = Vec::new();
    for thread in threads {
        let measured = thread.join();
        calls.extend(measured.map_err(|_| anyhow!("a thread of clients panicked"))??);
    }
    let brought = brought?;
    ensure!(!calls.is_empty(), "nothing was answered");
    Ok((calls, brought))
}

type Calls = anyhow::Result<Vec<Call>>;

/// Starts the clients, on as many threads as there are processors for. A connection and its clients have one thread, so
/// that what they tell each other wakes no other.
fn start_threads(
    target: Target,
    step: Step,
    connections: usize,
    shared: &Arc<Shared>,
) -> anyhow::Result<Vec<JoinHandle<Calls>>> {
    let connections = connections.min(step.clients);
    let threads = THREADS.min(connections);
    let clients_of = |connection| (connection..step.clients).step_by(connections).count();
    let start = |thread| {
        let clients: Vec<usize> = (thread..connections)
            .step_by(threads)
            .map(clients_of)
            .collect();
        let shared = Arc::clone(shared);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let run = move || runtime.block_on(run_clients(target, step, clients, shared));
        let thread = std::thread::Builder::new().name("clients".to_owned());
        thread.spawn(run).context("cannot start a thread")
    };
    (0..threads).map(start).collect()
}

/// Runs so many clients on each of some connections.
async fn run_clients(
    target: Target,
    step: Step,
    clients: Vec<usize>,
    shared: Arc<Shared>,
) -> Calls {
    let mut running = JoinSet::new();
    for clients in clients {
        let connection = target.connect().await?;
        for _ in 0..clients {
            running.spawn(run_client(connection.clone(), step, Arc::clone(&shared)));
        }
    }
    let mut calls = Vec::new();
    while let Some(ended) = running.join_next().await {
        calls.extend(ended.context("a client panicked")??);
    }
    Ok(calls)
}

/// Works until the end, and returns each operation that ended while they counted. One that is late because others took long
/// counts from when it was due.
async fn run_client(connection: Connection, step: Step, shared: Arc<Shared>) -> Calls {
    let mut calls = Vec::new();
    let mut due = step.every.map(tokio::time::interval);
    while !shared.ended.load(Ordering::Relaxed) {
        let key = key(shared.next.fetch_add(1, Ordering::Relaxed));
        let began = match &mut due {
            Some(due) => due.tick().await.into_std(),
            None => Instant::now(),
        };
        match step.operation {
            Operation::Put => connection.put(key, &shared.value).await?,
            Operation::Get => {
                let value = connection.get(key).await?;
                ensure!(
                    value.len() == VALUE_BYTES,
                    "a value of {} bytes",
                    value.len()
                );
            }
        }
        let took = began.elapsed();
        if shared.counting.load(Ordering::Relaxed) && !shared.ended.load(Ordering::Relaxed) {
            calls.push(Call { began, took });
        }
    }
    Ok(calls)
}

/// The least time that at least this part of the sorted times does not exceed.
pub(crate) fn quantile(sorted: &[Duration], part: f64) -> Duration {
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_all_visited_and_of_one_length() {
        let keys: std::collections::BTreeSet<String> = (0..KEYS).map(key).collect();
        assert_eq!(keys.len() as u64, KEYS);
        assert!(keys.iter().all(|key| key.len() == 15));
    }

    #[test]
    fn quantiles_are_times_that_were_measured() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(quantile(&times, 0.5), Duration::from_millis(100));
        assert_eq!(quantile(&times, 0.99), Duration::from_millis(198));
    }
}
