//! Many requests at once, and the history of what became of them.
//!
//! A client here behaves as a good client of several endpoints does: it sends each request to one peer,
//! and if it gets no answer, or 502, 503 or 504, it sends it to the next peer, at most once to each.
//! Every attempt is written down, so that a checker can tell a client's luck from a peer's failure.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use futures_util::future::join_all;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::history::{Attempt, Outcome, Request};
use crate::http::{Connection, Failure};
use crate::program::{REPLICA_HEADER, SESSION_HEADER};

/// The longest that a load runs, whatever its end depends on: beyond any test's time.
const TIME_MAX: Duration = Duration::from_secs(120);

/// The most requests of one worker: bounds the history's memory.
const REQUESTS_PER_WORKER_MAX: usize = 200_000;

/// A peer's proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The index of the peer.
    pub peer: usize,
    /// Where its proxy listens.
    pub address: SocketAddr,
}

/// To how many peers a worker sends at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// To one, each in turn.
    InTurn,
    /// To all of them at once, with the same key.
    AtOnce,
}

/// What to send.
#[derive(Clone, Debug)]
pub struct Load {
    /// To whom.
    pub targets: Vec<Target>,
    /// The path of each request.
    pub path: String,
    /// The session keys to go through, again and again; none for requests without a key.
    pub keys: Arc<[String]>,
    /// How many workers send, each one step at a time.
    pub workers: usize,
    /// How each step spreads over the targets.
    pub spread: Spread,
    /// The least time between two steps of a worker; as fast as answers come if zero.
    pub pace: Duration,
    /// How many steps all workers take together; none to go on until stopped.
    pub steps: Option<usize>,
}

impl Load {
    /// Four workers, requests without keys to each peer in turn, as fast as answers come, until stopped.
    #[must_use]
    pub fn new(targets: Vec<Target>, path: &str) -> Self {
        Self {
            targets,
            path: path.to_owned(),
            keys: Arc::new([]),
            workers: 4,
            spread: Spread::InTurn,
            pace: Duration::ZERO,
            steps: None,
        }
    }

    /// Starts to send.
    #[must_use]
    pub fn start(self) -> Running {
        let shared = Arc::new(Shared {
            load: self,
            stop: AtomicBool::new(false),
            next: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            started: Instant::now(),
        });
        let mut workers = JoinSet::new();
        for worker in 0..shared.load.workers {
            workers.spawn(work(Arc::clone(&shared), worker));
        }
        Running { shared, workers }
    }

    /// Sends until the steps are done.
    ///
    /// # Errors
    /// If they are not done in two minutes.
    pub async fn run(self) -> anyhow::Result<Vec<Request>> {
        let wanted = self.steps;
        let running = self.start();
        let shared = Arc::clone(&running.shared);
        let history = running.join().await?;
        let done = shared.done.load(Ordering::Relaxed);
        match wanted {
            Some(steps) if done < steps => bail!("{done} of {steps} steps in {TIME_MAX:?}"),
            _ => Ok(history),
        }
    }
}

/// A load under way. Stops when dropped.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    workers: JoinSet<Vec<Request>>,
}

impl Running {
    /// How many steps are done so far.
    #[must_use]
    pub fn done(&self) -> usize {
        self.shared.done.load(Ordering::Relaxed)
    }

    /// Stops, and returns the history of all workers.
    ///
    /// # Errors
    /// If a worker panicked.
    pub async fn stop(self) -> anyhow::Result<Vec<Request>> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.join().await
    }

    async fn join(mut self) -> anyhow::Result<Vec<Request>> {
        let mut history = Vec::new();
        while let Some(requests) = self.workers.join_next().await {
            history.extend(requests?);
        }
        Ok(history)
    }
}

#[derive(Debug)]
struct Shared {
    load: Load,
    stop: AtomicBool,
    next: AtomicUsize,
    done: AtomicUsize,
    started: Instant,
}

impl Shared {
    /// The number of the next step, unless it is time to end.
    fn step(&self) -> Option<usize> {
        if self.stop.load(Ordering::Relaxed) || self.started.elapsed() > TIME_MAX {
            return None;
        }
        let step = self.next.fetch_add(1, Ordering::Relaxed);
        self.load
            .steps
            .is_none_or(|steps| step < steps)
            .then_some(step)
    }
}

async fn work(shared: Arc<Shared>, worker: usize) -> Vec<Request> {
    let load = &shared.load;
    let lanes = match load.spread {
        Spread::InTurn => 1,
        Spread::AtOnce => load.targets.len(),
    };
    let mut lanes: Vec<Lane> = (0..lanes).map(|_| Lane::new(&load.targets)).collect();
    let mut ticks = interval(load.pace.max(Duration::from_nanos(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut history = Vec::new();
    while history.len() < REQUESTS_PER_WORKER_MAX {
        if !load.pace.is_zero() {
            ticks.tick().await;
        }
        let Some(step) = shared.step() else { break };
        let key = match load.keys.len() {
            0 => None,
            count => load.keys.get(step % count).map(String::as_str),
        };
        let sent = lanes.iter_mut().enumerate().map(|(lane, it)| {
            // Workers that keep pace would all go to one peer if the step alone decided.
            let first = (step + worker + lane) % load.targets.len();
            it.request(&load.path, key, first)
        });
        history.extend(join_all(sent).await);
        shared.done.fetch_add(1, Ordering::Relaxed);
    }
    history
}

/// One connection to each target, for one request at a time.
struct Lane {
    connections: Vec<(usize, Connection)>,
}

impl Lane {
    fn new(targets: &[Target]) -> Self {
        let connect = |target: &Target| (target.peer, Connection::new(target.address));
        Self {
            connections: targets.iter().map(connect).collect(),
        }
    }

    /// Sends a request to the target at `first`, then to those after it until one answers.
    async fn request(&mut self, path: &str, key: Option<&str>, first: usize) -> Request {
        let count = self.connections.len();
        let mut attempts = Vec::with_capacity(1);
        for step in 0..count {
            let (peer, connection) = &mut self.connections[(first + step) % count];
            let attempt = try_once(*peer, connection, path, key).await;
            let settled = is_settled(&attempt.outcome);
            attempts.push(attempt);
            if settled {
                break;
            }
        }
        Request {
            key: key.map(str::to_owned),
            attempts,
        }
    }
}

async fn try_once(
    peer: usize,
    connection: &mut Connection,
    path: &str,
    key: Option<&str>,
) -> Attempt {
    let started = Instant::now();
    let headers: Vec<(&str, &str)> = key.map(|key| (SESSION_HEADER, key)).into_iter().collect();
    let outcome = match connection.get(path, &headers).await {
        Ok(reply) => Outcome::Answered {
            status: reply.status,
            replica: reply.header(REPLICA_HEADER),
        },
        Err(Failure::Refused(why)) => Outcome::Refused(why),
        Err(Failure::Unknown(why)) => Outcome::Unknown(why),
    };
    Attempt {
        peer,
        started,
        ended: Instant::now(),
        outcome,
    }
}

/// Whether another peer could not do better.
fn is_settled(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Answered { status, .. } if !matches!(status, 502..=504))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers every request with `answer`, for ever.
    async fn server(peer: usize, answer: &'static str) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut last = [0; 4];
                    while let Ok(byte) = stream.read_u8().await {
                        last = [last[1], last[2], last[3], byte];
                        if &last == b"\r\n\r\n"
                            && stream.write_all(answer.as_bytes()).await.is_err()
                        {
                            return;
                        }
                    }
                });
            }
        });
        Target { peer, address }
    }

    const OK: &str = "HTTP/1.1 200 OK\r\nx-replica: 4\r\ncontent-length: 0\r\n\r\n";
    const BUSY: &str = "HTTP/1.1 503 no\r\ncontent-length: 0\r\n\r\n";

    #[tokio::test]
    async fn steps_are_counted_and_spread() {
        let targets = vec![server(0, OK).await, server(1, OK).await];
        let mut load = Load::new(targets, "/");
        load.steps = Some(40);
        load.workers = 1;
        let history = load.run().await.unwrap();
        assert_eq!(history.len(), 40);
        assert!(history.iter().all(Request::is_ok));
        let first = history.iter().filter(|it| it.attempts[0].peer == 0).count();
        assert_eq!(first, 20);
    }

    #[tokio::test]
    async fn all_peers_get_the_same_key_at_once() {
        let targets = vec![
            server(0, OK).await,
            server(1, OK).await,
            server(2, OK).await,
        ];
        let mut load = Load::new(targets, "/");
        load.spread = Spread::AtOnce;
        load.keys = Arc::new(["a".to_owned(), "b".to_owned()]);
        load.steps = Some(2);
        let history = load.run().await.unwrap();
        for key in ["a", "b"] {
            let of_key = history.iter().filter(|it| it.key.as_deref() == Some(key));
            let mut peers: Vec<usize> = of_key.map(|it| it.attempts[0].peer).collect();
            peers.sort_unstable();
            assert_eq!(peers, [0, 1, 2]);
        }
    }

    #[tokio::test]
    async fn busy_and_dead_peers_are_tried_once_each_and_written_down() {
        let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = dead.local_addr().unwrap();
        drop(dead);
        let targets = vec![
            Target { peer: 0, address },
            server(1, BUSY).await,
            server(2, OK).await,
        ];
        let mut load = Load::new(targets, "/");
        load.workers = 1;
        load.steps = Some(1);
        let history = load.run().await.unwrap();
        let outcomes: Vec<&Outcome> = history[0].attempts.iter().map(|it| &it.outcome).collect();
        assert!(matches!(outcomes[0], Outcome::Refused(_)), "{outcomes:?}");
        assert!(matches!(outcomes[1], Outcome::Answered { status: 503, .. }));
        assert!(outcomes[2].is_ok() && history[0].is_ok());
    }

    #[tokio::test]
    async fn a_load_ends_when_told() {
        let running = Load::new(vec![server(0, OK).await], "/").start();
        while running.done() < 10 {
            tokio::task::yield_now().await;
        }
        assert!(running.stop().await.unwrap().len() >= 10);
    }
}
