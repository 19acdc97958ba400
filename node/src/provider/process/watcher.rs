//! Noticing changes at once: a connection to each live shim, whose records and end of file say that
//! there is something new, and a slow look at everything for what no connection tells.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::inspect::observe;
use super::{Site, blocking, prune};
use crate::provider::record::Phase;
use crate::provider::run_dir::{RunDir, SocketPath};
use crate::provider::{Observation, ReplicaKey, ReplicaState};

/// How often everything is looked at. Finds the run directories that other peers made, and the
/// shims that could not be connected to.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often old leftovers are dropped; they grow slowly.
const PRUNE_EVERY: Duration = Duration::from_secs(600);

/// How long a shim that hung up may take to be gone from the host's processes.
const DEATH_MAX: Duration = Duration::from_secs(1);

/// Watches until cancelled. The returned number moves whenever there may be something new.
pub(super) fn start(site: Arc<Site>, cancelled: CancellationToken) -> watch::Receiver<u64> {
    let (changes, receiver) = watch::channel(0);
    let watcher = Arc::new(Watcher {
        site,
        changes,
        connected: Mutex::default(),
        cancelled,
    });
    tokio::spawn(watcher.run());
    receiver
}

struct Watcher {
    site: Arc<Site>,
    changes: watch::Sender<u64>,
    connected: Mutex<BTreeSet<ReplicaKey>>,
    cancelled: CancellationToken,
}

impl Watcher {
    async fn run(self: Arc<Self>) {
        let mut before: Vec<Observation> = Vec::new();
        let mut prune_at = Instant::now();
        loop {
            // A failed look changes nothing; who observes for itself is told why.
            if let Ok(now) = observe(Arc::clone(&self.site)).await {
                self.connect_to(&now);
                if now != before {
                    self.bump();
                    before = now;
                }
            }
            if Instant::now() >= prune_at {
                prune_at = Instant::now() + PRUNE_EVERY;
                self.prune().await;
            }
            tokio::select! {
                biased;
                () = self.cancelled.cancelled() => return,
                () = self.site.look_now.notified() => {}
                () = sleep(LOOK_EVERY) => {}
            }
        }
    }

    async fn prune(&self) {
        #[expect(
            clippy::disallowed_methods,
            reason = "compared with the times of files, which come from the same clock"
        )]
        let now = SystemTime::now();
        let site = Arc::clone(&self.site);
        if let Err(error) = blocking(move || prune::prune(&site, now)).await {
            tracing::warn!(%error, "cannot drop what is left of stopped replicas");
        }
    }

    fn bump(&self) {
        self.changes.send_modify(|number| *number += 1);
    }

    /// Connects to each shim that is alive and not connected to yet.
    fn connect_to(self: &Arc<Self>, seen: &[Observation]) {
        let mut connected = self
            .connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for observation in seen {
            let alive = matches!(
                observation.state,
                ReplicaState::SettingUp
                    | ReplicaState::Running { .. }
                    | ReplicaState::Stopping
                    | ReplicaState::Preempted
            );
            if alive && connected.insert(observation.replica.clone()) {
                let watcher = Arc::clone(self);
                tokio::spawn(watcher.attend(observation.replica.clone()));
            }
        }
    }

    async fn attend(self: Arc<Self>, replica: ReplicaKey) {
        let dir = self.site.run_dir(&replica);
        tokio::select! {
            biased;
            () = self.cancelled.cancelled() => {}
            () = self.listen(&dir) => {}
        }
        self.connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&replica);
        self.bump();
    }

    /// Listens to one shim until it is dead.
    async fn listen(&self, dir: &RunDir) {
        let Ok(path) = SocketPath::new(&dir.control_socket()) else {
            return;
        };
        let Ok(mut stream) = UnixStream::connect(path.as_path()).await else {
            return;
        };
        let mut record = [0; 4096];
        while matches!(stream.read(&mut record).await, Ok(count) if count > 0) {
            self.bump();
        }
        // The kernel closes a dying process's sockets before it is dead to others.
        let dead = async {
            while is_active(dir).await {
                sleep(Duration::from_millis(2)).await;
            }
        };
        // Then the slow look will find it.
        let _ = timeout(DEATH_MAX, dead).await;
    }
}

/// Whether the record speaks of a replica that runs, and its shim of that record is alive.
async fn is_active(dir: &RunDir) -> bool {
    let dir = dir.clone();
    blocking(move || match dir.record() {
        Ok(Some(record)) => matches!(record.phase, Phase::Active(_)) && record.shim.is_alive(),
        _ => false,
    })
    .await
}
