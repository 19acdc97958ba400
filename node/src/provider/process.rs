//! Replicas as processes of this host, for peers that all run on it. Each replica has a directory
//! under a root that the peers share, and a shim ([`crate::shim`]) that keeps it; what a peer knows
//! of a replica it reads from there, so any peer can take over at any moment.

mod inspect;
mod prune;
mod root;
mod start;
mod stop;
mod tail;
mod take_over;
mod watcher;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use raftserve_model::{ClusterId, ReplicaId, ServiceId};
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) use self::root::ReplicaRoot;
use super::host::HostFingerprint;
use super::run_dir::RunDir;
use super::{
    Launched, LogQuery, LogStream, Observation, Provider, ProviderError, ReplicaKey, ReplicaLaunch,
};

/// Makes replicas as processes of this host. To be made inside a tokio runtime with time and I/O.
pub struct ProcessProvider {
    site: Arc<Site>,
    changes: watch::Receiver<u64>,
    _watching: DropGuard,
}

/// Where the replicas of one cluster live on this host.
#[derive(Debug)]
struct Site {
    cluster: ClusterId,
    directory: PathBuf,
    executable: PathBuf,
    /// How many files replicas may open at first, if not as many as this peer: its own limit before it was raised.
    open_files: Option<u64>,
    /// There is a new shim to connect to.
    look_now: Notify,
}

impl ProcessProvider {
    /// The provider for `cluster` under `root`, which is made if it is not there. Its replicas begin with
    /// `open_files` as their soft limit of open files; with that of this process without it.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new(
        root: &Path,
        cluster: ClusterId,
        open_files: Option<u64>,
    ) -> Result<Self, ProviderError> {
        // The path of this very binary, even if another was put in its place since it started.
        let executable = PathBuf::from("/proc/self/exe");
        Self::with_executable(root, cluster, executable, open_files)
    }

    /// As [`ProcessProvider::new`], with the binary that has the shim's subcommands.
    ///
    /// # Errors
    /// [`ProviderError::TakenOver`] if another cluster has its replicas; or if the directory cannot be made.
    pub fn with_executable(
        root: &Path,
        cluster: ClusterId,
        executable: PathBuf,
        open_files: Option<u64>,
    ) -> Result<Self, ProviderError> {
        let root = std::path::absolute(root).map_err(io_error("find", root))?;
        let directory = root.join(cluster.to_string());
        std::fs::create_dir_all(&directory).map_err(io_error("make", &directory))?;
        match take_over::owner(&directory)? {
            Some(by) if by != cluster => return Err(ProviderError::TakenOver { cluster, by }),
            _ => {}
        }
        let site = Arc::new(Site {
            cluster,
            directory,
            executable,
            open_files,
            look_now: Notify::new(),
        });
        let cancelled = CancellationToken::new();
        let changes = watcher::start(Arc::clone(&site), cancelled.clone());
        Ok(Self {
            site,
            changes,
            _watching: cancelled.drop_guard(),
        })
    }

    /// What this peer has to announce so that others can tell whether they share its host.
    ///
    /// # Errors
    /// If the host does not tell.
    pub fn fingerprint(&self) -> io::Result<HostFingerprint> {
        HostFingerprint::of(self.site.directory.parent().unwrap_or(Path::new("/")))
    }
}

impl Site {
    fn run_dir(&self, replica: &ReplicaKey) -> RunDir {
        RunDir::new(self.directory.join(replica.to_string()))
    }

    /// What marks the processes of a replica, on a host that may hold replicas of many clusters.
    fn marker(&self, replica: ReplicaId) -> String {
        format!("{}/{replica}", self.cluster)
    }
}

impl Provider for ProcessProvider {
    fn shared_root(&self) -> Option<&Path> {
        self.site.directory.parent()
    }

    fn ensure(&self, launch: ReplicaLaunch) -> BoxFuture<'_, Result<Launched, ProviderError>> {
        Box::pin(async {
            start::ensure(Arc::clone(&self.site), launch).await?;
            Ok(Launched::Started)
        })
    }

    fn stop<'a>(
        &'a self,
        replica: &'a ReplicaKey,
        grace: Duration,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        Box::pin(stop::stop(Arc::clone(&self.site), replica.clone(), grace))
    }

    fn take_over(&self, from: ClusterId) -> BoxFuture<'_, Result<(), ProviderError>> {
        let site = Arc::clone(&self.site);
        Box::pin(blocking(move || take_over::take_over(&site, from)))
    }

    fn observe(&self) -> BoxFuture<'_, Result<Vec<Observation>, ProviderError>> {
        Box::pin(inspect::observe(Arc::clone(&self.site)))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    fn logs<'a>(
        &'a self,
        replica: &'a ReplicaKey,
        query: LogQuery,
    ) -> BoxFuture<'a, Result<LogStream, ProviderError>> {
        Box::pin(tail::logs(self.site.run_dir(replica), replica, query))
    }

    fn forget(&self, service: ServiceId) -> BoxFuture<'_, Result<(), ProviderError>> {
        Box::pin(prune::forget(Arc::clone(&self.site), service))
    }
}

/// For `map_err`: what was being done to which path.
fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ProviderError {
    let path = path.to_owned();
    move |source| ProviderError::Io {
        doing,
        path,
        source,
    }
}

/// Runs what blocks on the disk away from the runtime's threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, and with it whoever waits here.
            Err(_) => std::future::pending().await,
        },
    }
}
