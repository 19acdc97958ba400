//! A steady stream of requests, whatever becomes of them: a request is sent when its time comes, not when the one before
//! has been answered, so that a pause of the server is seen by all requests that it would have met.
//!
//! Unlike [`crate::load`] it knows no peers, only entrances, and repeats nothing unless it is told to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::http::{self, Connection, Failure};
use crate::source_ports::SourcePorts;

/// How many connections are kept and used again, beside those that are made for one request.
const KEPT: usize = 16;

/// The most requests under way: beyond, the server is so far behind that the test has failed.
const UNDER_WAY_MAX: usize = 4_096;

/// How many failures are remembered in words.
const FAILURES_MAX: usize = 20_000;

/// How many of them are shown.
const SHOWN_MAX: usize = 20;

/// The most that a request may be sent after its time. A longer pause of the load could hide one of the server.
const LATE_MAX: Duration = Duration::from_secs(2);

/// What to send.
#[derive(Clone, Debug)]
pub struct Steady {
    /// Requests a second.
    pub rate: u32,
    /// The path.
    pub path: String,
    /// The status that is expected.
    pub status: u16,
    /// How often a request that failed is sent once more, to the next entrance.
    pub retries: usize,
    /// How long each try is waited for.
    pub patience: Duration,
    /// Whether every other request uses a kept connection.
    pub keep: bool,
    /// The client's ports of all connections, if none is to be used twice.
    pub ports: Option<Arc<SourcePorts>>,
}

/// One request without the expected answer.
#[derive(Clone, Debug)]
pub struct Missed {
    /// When it was sent, since the load began.
    pub at: Duration,
    /// What became of each try, in turn.
    pub tries: Vec<Try>,
}

/// One try without the expected answer.
#[derive(Clone, Debug)]
pub struct Try {
    /// Where.
    pub at: SocketAddr,
    /// When it began, since the load did.
    pub began: Duration,
    /// When it ended.
    pub ended: Duration,
    /// What became of it.
    pub why: String,
}

/// What came of it all.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How many were answered as expected.
    pub good: usize,
    /// How many were not.
    pub bad: usize,
    /// How many needed another try.
    pub retried: usize,
    /// The first of the bad.
    pub missed: Vec<Missed>,
    /// The first of those that were good only at another try.
    pub saved: Vec<Missed>,
    /// Latencies of the good, in milliseconds, and how many had each.
    pub latencies: BTreeMap<u64, usize>,
    /// The most that a request was sent after its time.
    pub latest: Duration,
    /// Whether so many requests were under way that no more were sent.
    pub broke_off: bool,
}

impl Tally {
    /// Looks whether the load was what it was to be: `count` requests at least, none of them sent long after its time.
    fn ensure_sent(&self, count: usize) -> anyhow::Result<()> {
        anyhow::ensure!(
            !self.broke_off,
            "the load broke off with {UNDER_WAY_MAX} requests under way: {}",
            self.line()
        );
        anyhow::ensure!(
            self.good + self.bad >= count,
            "fewer than {count} requests: {}",
            self.line()
        );
        anyhow::ensure!(
            self.latest <= LATE_MAX,
            "the load itself paused for {:?}",
            self.latest
        );
        Ok(())
    }

    /// The latency that a share of the good kept below, in milliseconds.
    #[must_use]
    pub fn percentile(&self, share: f64) -> u64 {
        let wanted = (self.good as f64 * share).ceil() as usize;
        let mut seen = 0;
        for (latency, count) in &self.latencies {
            seen += count;
            if seen >= wanted {
                return *latency;
            }
        }
        0
    }

    /// One line for people.
    #[must_use]
    pub fn line(&self) -> String {
        format!(
            "{} answered, {} failed, {} at another try; p50 {} ms, p99 {} ms, slowest {} ms",
            self.good,
            self.bad,
            self.retried,
            self.percentile(0.5),
            self.percentile(0.99),
            self.percentile(1.0)
        )
    }

    /// # Errors
    /// If a request failed, with the first of them.
    pub fn all_good(&self) -> anyhow::Result<()> {
        match self.bad {
            0 => Ok(()),
            bad => {
                let shown: Vec<String> = self
                    .missed
                    .iter()
                    .take(SHOWN_MAX)
                    .map(|it| format!("{it:?}"))
                    .collect();
                anyhow::bail!("{bad} requests failed:\n{}", shown.join("\n"))
            }
        }
    }
}

/// The entrances, which may change while requests are sent.
pub type Entrances = Arc<RwLock<Vec<SocketAddr>>>;

/// How far a load has come. Told at each request that is sent and at each that is done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// How many requests are done, well or not.
    pub done: usize,
    /// Since when requests are sent.
    pub elapsed: Duration,
}

/// A load under way.
#[derive(Debug)]
pub struct Running {
    entrances: Entrances,
    tally: Arc<Mutex<Tally>>,
    sending: tokio::task::JoinHandle<JoinSet<()>>,
    stop: Arc<std::sync::atomic::AtomicBool>,
    progress: watch::Receiver<Progress>,
    began: Instant,
}

impl Steady {
    /// Starts to send to `entrances`, each in turn.
    #[must_use]
    pub fn start(self, entrances: Vec<SocketAddr>) -> Running {
        let entrances = Arc::new(RwLock::new(entrances));
        let tally = Arc::new(Mutex::new(Tally::default()));
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (told, progress) = watch::channel(Progress::default());
        let began = Instant::now();
        let sender = Sender {
            steady: Arc::new(self),
            entrances: Arc::clone(&entrances),
            tally: Arc::clone(&tally),
            kept: Arc::new(Mutex::new(Vec::new())),
            told: Arc::new(told),
            began,
        };
        let sending = tokio::spawn(sender.run(Arc::clone(&stop)));
        Running {
            entrances,
            tally,
            sending,
            stop,
            progress,
            began,
        }
    }
}

impl Running {
    /// From now on sends to `entrances`.
    pub fn aim(&self, entrances: Vec<SocketAddr>) {
        *self
            .entrances
            .write()
            .unwrap_or_else(PoisonError::into_inner) = entrances;
    }

    /// Waits until the load has come so far; also until it has ended, as it does when too many requests are under way.
    pub async fn reaches(&self, far: impl FnMut(&Progress) -> bool) -> Progress {
        let mut progress = self.progress.clone();
        match progress.wait_for(far).await {
            Ok(reached) => *reached,
            // The last that was told.
            Err(_) => *self.progress.borrow(),
        }
    }

    /// How far it has come.
    #[must_use]
    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Since when requests are sent.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Sends until `count` requests are done, and no more. Returns what came of them all.
    ///
    /// # Errors
    /// If fewer were sent, if the load paused or broke off by itself, or if a task panicked.
    pub async fn finish(self, count: usize) -> anyhow::Result<Tally> {
        self.reaches(|progress| progress.done >= count).await;
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let mut under_way = self.sending.await?;
        while let Some(ended) = under_way.join_next().await {
            ended?;
        }
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.ensure_sent(count)?;
        Ok(tally.clone())
    }
}

/// A connection, to where, and how often it failed.
type Kept = (SocketAddr, Connection);

#[derive(Clone)]
struct Sender {
    steady: Arc<Steady>,
    entrances: Entrances,
    tally: Arc<Mutex<Tally>>,
    kept: Arc<Mutex<Vec<Kept>>>,
    told: Arc<watch::Sender<Progress>>,
    began: Instant,
}

impl Sender {
    async fn run(self, stop: Arc<std::sync::atomic::AtomicBool>) -> JoinSet<()> {
        let mut under_way = JoinSet::new();
        let period = Duration::from_secs(1) / self.steady.rate.max(1);
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for number in 0_usize.. {
            let due = ticks.tick().await;
            while under_way.try_join_next().is_some() {}
            if stop.load(std::sync::atomic::Ordering::Relaxed) {
                break;
            }
            let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.latest = tally.latest.max(due.elapsed());
            tally.broke_off = under_way.len() >= UNDER_WAY_MAX;
            let broke_off = tally.broke_off;
            drop(tally);
            if broke_off {
                break;
            }
            under_way.spawn(self.clone().send(number));
            self.tell(0);
        }
        under_way
    }

    fn tell(&self, done: usize) {
        let elapsed = self.began.elapsed();
        self.told.send_modify(|progress| {
            progress.done += done;
            progress.elapsed = progress.elapsed.max(elapsed);
        });
    }

    /// The entrance for the `number`th try.
    fn entrance(&self, number: usize) -> Option<SocketAddr> {
        let entrances = self
            .entrances
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let count = entrances.len();
        (count > 0).then(|| entrances[number % count])
    }

    async fn send(self, number: usize) {
        self.try_all(number).await;
        self.tell(1);
    }

    async fn try_all(&self, number: usize) {
        let at = self.began.elapsed();
        let began = Instant::now();
        let mut tries = Vec::new();
        let mut good = false;
        for step in 0..=self.steady.retries {
            let try_began = self.began.elapsed();
            let Some(entrance) = self.entrance(number + step) else {
                break;
            };
            let answer = timeout(self.steady.patience, async {
                match self.steady.keep && number.is_multiple_of(2) {
                    true => self.over_kept(entrance).await,
                    false => self.connection(entrance).get(&self.steady.path, &[]).await,
                }
            });
            let late = |_| Failure::Unknown(format!("no answer in {:?}", self.steady.patience));
            let answer = answer.await.map_err(late).flatten();
            let why = match answer {
                Ok(reply) if reply.status == self.steady.status => {
                    good = true;
                    break;
                }
                Ok(reply) => format!(
                    "{} {}",
                    reply.status,
                    String::from_utf8_lossy(&reply.body).trim()
                ),
                Err(Failure::Refused(why)) => format!("refused: {why}"),
                Err(Failure::Unknown(why)) => format!("broke off: {why}"),
            };
            tries.push(Try {
                at: entrance,
                began: try_began,
                ended: self.began.elapsed(),
                why,
            });
        }
        let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        let retried = !tries.is_empty();
        let missed = Missed { at, tries };
        if !good {
            tally.bad += 1;
            if tally.missed.len() < FAILURES_MAX {
                tally.missed.push(missed);
            }
            return;
        }
        tally.good += 1;
        *tally.latencies.entry(took).or_default() += 1;
        if retried {
            tally.retried += 1;
            if tally.saved.len() < FAILURES_MAX {
                tally.saved.push(missed);
            }
        }
    }

    fn connection(&self, entrance: SocketAddr) -> Connection {
        match &self.steady.ports {
            Some(ports) => Connection::from_ports(entrance, Arc::clone(ports)),
            None => Connection::new(entrance),
        }
    }

    async fn over_kept(&self, entrance: SocketAddr) -> Result<http::Reply, Failure> {
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = {
            let mut all = lock();
            let place = all.iter().position(|(to, _)| *to == entrance);
            place.map(|place| all.swap_remove(place).1)
        };
        let mut connection = kept.unwrap_or_else(|| self.connection(entrance));
        let answer = connection.get(&self.steady.path, &[]).await;
        let mut all = lock();
        if answer.is_ok() && all.len() < KEPT {
            all.push((entrance, connection));
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers each connection's requests with `status`.
    async fn server(status: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut last = [0; 4];
                    while let Ok(byte) = stream.read_u8().await {
                        last = [last[1], last[2], last[3], byte];
                        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                        if &last == b"\r\n\r\n"
                            && stream.write_all(answer.as_bytes()).await.is_err()
                        {
                            return;
                        }
                    }
                });
            }
        });
        address
    }

    fn steady(retries: usize) -> Steady {
        Steady {
            rate: 1_000,
            path: "/".to_owned(),
            status: 200,
            retries,
            patience: http::REQUEST_TIME_MAX,
            keep: true,
            ports: None,
        }
    }

    #[tokio::test]
    async fn what_fails_is_counted_and_a_retry_goes_elsewhere() {
        let entrances = vec![server("200 OK").await, server("503 no").await];
        let tally = steady(0)
            .start(entrances.clone())
            .finish(100)
            .await
            .unwrap();
        assert!(tally.good > 0 && tally.bad > 0, "{}", tally.line());
        assert!(tally.all_good().is_err());
        let tally = steady(1).start(entrances).finish(100).await.unwrap();
        tally.all_good().unwrap();
        assert!(tally.retried > 0, "{}", tally.line());
    }

    #[test]
    fn a_load_that_was_not_what_was_asked_for_is_no_load() {
        let sent = Tally {
            good: 60,
            bad: 40,
            latest: LATE_MAX,
            ..Tally::default()
        };
        sent.ensure_sent(100).unwrap();
        let fewer = sent.ensure_sent(101).unwrap_err().to_string();
        assert!(fewer.contains("fewer than 101"), "{fewer}");
        let paused = Tally {
            latest: LATE_MAX + Duration::from_millis(1),
            ..sent.clone()
        };
        assert!(paused.ensure_sent(100).is_err());
        let broke_off = Tally {
            broke_off: true,
            ..sent
        };
        assert!(broke_off.ensure_sent(100).is_err());
    }

    #[tokio::test]
    async fn requests_go_out_whether_or_not_others_are_answered() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let running = steady(0).start(vec![silent.local_addr().unwrap()]);
        let mut held = Vec::new();
        for _ in 0..100 {
            held.push(silent.accept().await.unwrap());
        }
        assert_eq!(running.progress().done, 0);
    }
}
