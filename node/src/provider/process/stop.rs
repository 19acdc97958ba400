//! Stopping a replica for good: tombstone first, then its shim is asked, then made to.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Site, blocking, io_error};
use crate::provider::proc_table::{self, Also};
use crate::provider::record::{ControlRequest, Phase};
use crate::provider::run_dir::{RunDir, RunLock, SocketPath};
use crate::provider::run_files;
use crate::provider::{ProviderError, ReplicaKey};
use crate::shim;

/// How much longer than the grace a shim may take to kill, sweep and record before it counts as
/// hung and is killed itself: its own sweep and the rest of the output take up to 7 s.
const SHIM_MARGIN: Duration = Duration::from_secs(8);

/// How long the lock may stay held after its holder was killed.
const RELEASE_MAX: Duration = Duration::from_secs(5);

/// How often the lock is tried. Each try costs a few system calls.
const LOCK_POLL: Duration = Duration::from_millis(10);

pub(super) async fn stop(
    site: Arc<Site>,
    replica: ReplicaKey,
    grace: Duration,
) -> Result<(), ProviderError> {
    let dir = site.run_dir(&replica);
    let target = dir.clone();
    blocking(move || target.create().and_then(|()| target.write_tombstone()))
        .await
        .map_err(io_error("leave a tombstone in", dir.path()))?;
    let deadline = Instant::now() + grace + SHIM_MARGIN;
    let lock = match take_over(&dir, grace, deadline).await? {
        Some(lock) => lock,
        None => {
            kill_shim(&dir).await?;
            let deadline = Instant::now() + RELEASE_MAX;
            let left = |reason: &str| ProviderError::Stop {
                replica: replica.clone(),
                reason: reason.to_owned(),
            };
            take_over(&dir, Duration::ZERO, deadline)
                .await?
                .ok_or_else(|| left("the process that keeps it does not end"))?
        }
    };
    finish(&site, dir, replica, lock).await
}

/// Waits for the lock, asking whoever holds it to stop; none if it does not come in time.
async fn take_over(
    dir: &RunDir,
    grace: Duration,
    deadline: Instant,
) -> Result<Option<RunLock>, ProviderError> {
    loop {
        let target = dir.clone();
        let lock = blocking(move || target.try_lock())
            .await
            .map_err(io_error("lock", dir.path()))?;
        if lock.is_some() {
            return Ok(lock);
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        // It may not listen yet, or not any more: then the lock tells, in a moment.
        let _ = timeout_at(deadline, ask(dir, grace)).await;
        sleep(LOCK_POLL).await;
    }
}

/// Asks the shim to stop, and waits until it has hung up.
async fn ask(dir: &RunDir, grace: Duration) -> io::Result<()> {
    let path = SocketPath::new(&dir.control_socket())?;
    let mut stream = UnixStream::connect(path.as_path()).await?;
    let mut request = serde_json::to_vec(&ControlRequest::Stop {
        grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
    })?;
    request.push(b'\n');
    stream.write_all(&request).await?;
    let mut records = [0; 1024];
    while stream.read(&mut records).await? > 0 {}
    Ok(())
}

/// Kills a shim that does not answer. Its program dies with it.
async fn kill_shim(dir: &RunDir) -> Result<(), ProviderError> {
    let target = dir.clone();
    blocking(move || -> io::Result<()> {
        match target.record()? {
            Some(record) if record.boot_id == proc_table::boot_id()? => record.shim.kill(),
            _ => Ok(()),
        }
    })
    .await
    .map_err(io_error("kill the keeper of", dir.path()))
}

/// With the lock in hand nothing can start any more: clears away what is left, and settles the
/// record.
async fn finish(
    site: &Site,
    dir: RunDir,
    replica: ReplicaKey,
    lock: RunLock,
) -> Result<(), ProviderError> {
    let own = site.marker(replica.id);
    blocking(move || {
        // What was taken over bears the mark of the cluster that launched it.
        let marker = match dir.launch() {
            Ok(Some(launch)) => launch.marker,
            _ => own,
        };
        proc_table::sweep(&marker, Also::Nobody).map_err(|error| ProviderError::Stop {
            replica,
            reason: error.to_string(),
        })?;
        settle(&dir, &lock).map_err(io_error("settle", dir.path()))
    })
    .await
}

fn settle(dir: &RunDir, lock: &RunLock) -> io::Result<()> {
    if let Ok(Some(mut record)) = dir.record()
        && let Phase::Active(step) = record.phase
    {
        record.phase = Phase::Exited(shim::lost(step));
        dir.write_record(lock, &record)?;
    }
    run_files::discard(dir)?;
    dir.remove_work(lock)
}
