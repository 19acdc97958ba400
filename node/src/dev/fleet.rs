//! The three peers, kept running: one task for each, which starts its process, starts it again when
//! it ends, and stops it in the end.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::peer_process::{PeerLaunch, PeerProcess};
use crate::node::REMOVED_EXIT;

/// The pause before a peer that was killed on purpose is started again, so that its absence shows.
const KILLED_PAUSE: Duration = Duration::from_secs(1);

/// The pause before a peer that ended by itself is started again; it doubles with each further end.
const ENDED_PAUSE: Duration = Duration::from_millis(500);

/// The longest such pause.
const ENDED_PAUSE_MAX: Duration = Duration::from_secs(10);

/// A peer that lived this long did not fail at its start: the pause is short again.
const HEALTHY_LIFE: Duration = Duration::from_secs(30);

/// How often a log is looked at, whether it has grown too long.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How many pieces of news may wait to be shown. Whoever has more waits.
const NEWS_MAX: usize = 64;

/// What a peer's process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerPhase {
    /// It runs, under this process id.
    Running {
        /// The process id.
        pid: u32,
    },
    /// It was killed on purpose, and is about to be started again.
    Killed,
    /// It ended by itself, and is about to be started again.
    Ended,
    /// It was stopped for good.
    Stopped,
    /// The cluster has removed it.
    Removed,
}

/// Something that happened to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PeerNews {
    /// It was killed on purpose.
    Killed {
        /// Its number.
        peer: u16,
        /// The process that is no more.
        pid: u32,
    },
    /// It runs again.
    Restarted {
        /// Its number.
        peer: u16,
        /// The new process.
        pid: u32,
    },
    /// It ended by itself, or could not be started.
    Ended {
        /// Its number.
        peer: u16,
        /// How it ended.
        how: String,
        /// What it said last.
        last_words: Vec<String>,
    },
    /// The cluster has removed it, so that it is not started again.
    Removed {
        /// Its number.
        peer: u16,
    },
    /// It did not stop when told to, and was killed.
    StopForced {
        /// Its number.
        peer: u16,
    },
}

impl fmt::Display for PeerNews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed { peer, pid } => {
                write!(f, "peer {peer} was killed with SIGKILL (process {pid})")
            }
            Self::Restarted { peer, pid } => write!(f, "peer {peer} runs again (process {pid})"),
            Self::Ended {
                peer,
                how,
                last_words,
            } => {
                write!(f, "peer {peer} ended by itself: {how}")?;
                last_words
                    .iter()
                    .try_for_each(|line| write!(f, "\n    {line}"))
            }
            Self::Removed { peer } => write!(
                f,
                "peer {peer} was removed from the cluster, and is not started again"
            ),
            Self::StopForced { peer } => {
                write!(f, "peer {peer} did not stop when told to, and was killed")
            }
        }
    }
}

/// The three peers.
#[derive(Debug)]
pub(super) struct Fleet {
    phases: Vec<watch::Receiver<PeerPhase>>,
    kills: Vec<mpsc::Sender<()>>,
    news: mpsc::Receiver<PeerNews>,
    stop: CancellationToken,
    hurry: CancellationToken,
    keepers: JoinSet<()>,
}

impl Fleet {
    /// Starts all peers.
    ///
    /// # Errors
    /// If one of them cannot be started; those that were are killed.
    pub(super) async fn start(launches: Vec<PeerLaunch>) -> Result<Self> {
        let (tell, news) = mpsc::channel(NEWS_MAX);
        let mut fleet = Self {
            phases: Vec::new(),
            kills: Vec::new(),
            news,
            stop: CancellationToken::new(),
            hurry: CancellationToken::new(),
            keepers: JoinSet::new(),
        };
        for launch in launches {
            let started = launch
                .start()
                .with_context(|| format!("cannot start peer {}", launch.number));
            let process = match started {
                Ok(process) => process,
                Err(error) => {
                    fleet.stop(&CancellationToken::new()).await;
                    return Err(error);
                }
            };
            let (phase, phases) = watch::channel(running(&process));
            let (kill, kills) = mpsc::channel(1);
            fleet.phases.push(phases);
            fleet.kills.push(kill);
            let keeper = Keeper {
                launch,
                phase,
                kills,
                news: tell.clone(),
                stop: fleet.stop.clone(),
                hurry: fleet.hurry.clone(),
                pause: ENDED_PAUSE,
            };
            fleet.keepers.spawn(keeper.run(process));
        }
        Ok(fleet)
    }

    /// What each peer's process does, in the order of their numbers.
    pub(super) fn phases(&self) -> Vec<watch::Receiver<PeerPhase>> {
        self.phases.clone()
    }

    /// What kills the peers, in the order of their numbers.
    pub(super) fn kills(&self) -> Vec<mpsc::Sender<()>> {
        self.kills.clone()
    }

    /// The next thing that happens. Cancel safe.
    pub(super) async fn news(&mut self) -> Option<PeerNews> {
        self.news.recv().await
    }

    /// Stops all peers at once, in good order where that works in time and without a `hurry`, and
    /// returns what did not.
    pub(super) async fn stop(&mut self, hurry: &CancellationToken) -> Vec<PeerNews> {
        self.stop.cancel();
        let mut forced = Vec::new();
        loop {
            tokio::select! {
                () = hurry.cancelled(), if !self.hurry.is_cancelled() => self.hurry.cancel(),
                Some(news) = self.news.recv() => match news {
                    PeerNews::StopForced { .. } => forced.push(news),
                    PeerNews::Killed { .. }
                    | PeerNews::Restarted { .. }
                    | PeerNews::Ended { .. }
                    | PeerNews::Removed { .. } => {}
                },
                ended = self.keepers.join_next() => if ended.is_none() {
                    break;
                },
            }
        }
        while let Ok(news) = self.news.try_recv() {
            if matches!(news, PeerNews::StopForced { .. }) {
                forced.push(news);
            }
        }
        forced
    }
}

fn running(process: &PeerProcess) -> PeerPhase {
    match process.pid() {
        Some(pid) => PeerPhase::Running { pid },
        None => PeerPhase::Ended,
    }
}

/// What keeps one peer running.
struct Keeper {
    launch: PeerLaunch,
    phase: watch::Sender<PeerPhase>,
    kills: mpsc::Receiver<()>,
    news: mpsc::Sender<PeerNews>,
    stop: CancellationToken,
    hurry: CancellationToken,
    pause: Duration,
}

/// Why a process is no more.
enum Gone {
    Killed,
    ByItself(String),
    Stopped,
    Removed,
}

impl Keeper {
    async fn run(mut self, mut process: PeerProcess) {
        let end = loop {
            let since = Instant::now();
            let pid = process.pid().unwrap_or_default();
            let pause = match self.keep(&mut process).await {
                Gone::Stopped => break PeerPhase::Stopped,
                Gone::Removed => {
                    self.tell(PeerNews::Removed {
                        peer: self.launch.number,
                    })
                    .await;
                    break PeerPhase::Removed;
                }
                Gone::Killed => {
                    self.phase.send_replace(PeerPhase::Killed);
                    self.tell(PeerNews::Killed {
                        peer: self.launch.number,
                        pid,
                    })
                    .await;
                    KILLED_PAUSE
                }
                Gone::ByItself(how) => self.ended(how, since).await,
            };
            match self.restart(pause).await {
                Some(again) => process = again,
                None => break PeerPhase::Stopped,
            }
        };
        self.phase.send_replace(end);
    }

    /// Watches over the process until it is gone.
    async fn keep(&mut self, process: &mut PeerProcess) -> Gone {
        let mut look = tokio::time::interval(LOG_INTERVAL);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    if matches!(process.stop(&self.hurry).await, Ok(true) | Err(_)) {
                        self.tell(PeerNews::StopForced { peer: self.launch.number }).await;
                    }
                    return Gone::Stopped;
                }
                ended = process.wait() => return match ended {
                    Ok(status) if status.code() == Some(i32::from(REMOVED_EXIT)) => Gone::Removed,
                    Ok(status) => Gone::ByItself(status.to_string()),
                    Err(error) => Gone::ByItself(error.to_string()),
                },
                Some(()) = self.kills.recv() => return match process.kill().await {
                    Ok(_) => Gone::Killed,
                    Err(error) => Gone::ByItself(error.to_string()),
                },
                _ = look.tick() => {
                    // A log that cannot be put aside goes on growing, which harms nobody for long.
                    let _ = self.launch.rotate_log();
                }
            }
        }
    }

    /// Tells of an end that nobody asked for, and says how long to wait before the next start.
    async fn ended(&mut self, how: String, since: Instant) -> Duration {
        self.phase.send_replace(PeerPhase::Ended);
        let news = PeerNews::Ended {
            peer: self.launch.number,
            how,
            last_words: self.launch.last_words(),
        };
        self.tell(news).await;
        if since.elapsed() > HEALTHY_LIFE {
            self.pause = ENDED_PAUSE;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(ENDED_PAUSE_MAX);
        pause
    }

    /// Starts the process again after a pause; none if all are to stop meanwhile.
    async fn restart(&mut self, mut pause: Duration) -> Option<PeerProcess> {
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                () = sleep(pause) => {}
            }
            match self.launch.start() {
                Ok(process) => {
                    // Kills asked for while it did not run are answered by that.
                    while self.kills.try_recv().is_ok() {}
                    self.phase.send_replace(running(&process));
                    self.tell(PeerNews::Restarted {
                        peer: self.launch.number,
                        pid: process.pid().unwrap_or_default(),
                    })
                    .await;
                    return Some(process);
                }
                Err(error) => {
                    let how = format!("it could not be started: {error}");
                    pause = self.ended(how, Instant::now()).await;
                }
            }
        }
    }

    async fn tell(&self, news: PeerNews) {
        // Nobody listens any more once all is being torn down.
        let _ = self.news.send(news).await;
    }
}
