//! Starting a shim, and reading from it whether the replica is kept, and by whom.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Site, blocking, io_error};
use crate::provider::proc_table;
use crate::provider::record::{LaunchDocument, Phase};
use crate::provider::run_dir::RunDir;
use crate::provider::run_files;
use crate::provider::{ProviderError, ReplicaKey, ReplicaLaunch};
use crate::shim::{READY, REPLICA_SHIM, ShimExit};

/// How long it may take until a replica is kept: a process start and a few small files, on a host
/// that is short of everything.
const START_MAX: Duration = Duration::from_secs(20);

/// The pause before looking again at a shim that has the lock but no record yet.
const HOLDER_POLL: Duration = Duration::from_millis(10);

/// The longest thing a shim has to say.
const WORDS_BYTES_MAX: u64 = 4 << 10;

pub(super) async fn ensure(site: Arc<Site>, launch: ReplicaLaunch) -> Result<(), ProviderError> {
    let deadline = Instant::now() + START_MAX;
    let replica = launch.replica.clone();
    let dir = site.run_dir(&replica);
    let lifeline = launch.lifeline.clone();
    prepare(&site, &dir, launch).await?;
    loop {
        match look(&dir, &replica).await? {
            Look::Kept => break,
            Look::ToStart => {}
        }
        let started = start_shim(&site, &dir, lifeline.as_deref()).map_err(|error| {
            ProviderError::Create {
                replica: replica.clone(),
                reason: format!("cannot start {}: {error}", site.executable.display()),
            }
        })?;
        let reason = match timeout_at(deadline, started).await {
            Ok(Ok(Start::Kept | Start::Ended(Some(ShimExit::Ended | ShimExit::Done), _))) => break,
            Ok(Ok(Start::Ended(Some(ShimExit::Tombstoned), _))) => {
                return Err(ProviderError::Tombstoned(replica));
            }
            Ok(Ok(Start::Ended(Some(ShimExit::Held), _))) if Instant::now() < deadline => {
                sleep(HOLDER_POLL).await;
                continue;
            }
            Ok(Ok(Start::Ended(Some(ShimExit::Held), _))) | Err(_) => {
                format!("it was not kept by any process within {START_MAX:?}")
            }
            Ok(Ok(Start::Ended(Some(ShimExit::Failed), words))) => words,
            Ok(Ok(Start::Ended(None, words))) => format!("its keeper ended at once: {words}"),
            Ok(Err(_)) => "this peer is shutting down".to_owned(),
        };
        return Err(ProviderError::Create { replica, reason });
    }
    site.look_now.notify_one();
    Ok(())
}

/// Writes down what is to run, unless the replica was stopped.
async fn prepare(site: &Site, dir: &RunDir, launch: ReplicaLaunch) -> Result<(), ProviderError> {
    let marker = site.marker(launch.replica.id);
    let document = LaunchDocument {
        cluster: site.cluster,
        replica: launch.replica.to_string(),
        number: launch.replica.id.number,
        marker,
        version: launch.version,
        setup: launch.setup,
        run: launch.run,
        envs: launch.envs.into_iter().chain(launch.secrets).collect(),
        port: launch.port,
        stop_grace_ms: u64::try_from(launch.stop_grace.as_millis()).unwrap_or(u64::MAX),
        has_files: !launch.file_mounts.is_empty(),
        has_own_home: run_files::has_own_home(&launch.file_mounts),
    };
    let mounts = launch.file_mounts;
    let target = dir.clone();
    let stopped = blocking(move || {
        target.create()?;
        if target.is_stopped()? {
            return Ok(true);
        }
        if document.has_files && target.launch()?.is_none() {
            run_files::keep(&target, &mounts)?;
        }
        target.write_launch_once(&document)?;
        let stopped = target.is_stopped()?;
        if stopped {
            // Meanwhile, and perhaps for good already.
            run_files::discard(&target)?;
        }
        Ok(stopped)
    })
    .await
    .map_err(io_error("prepare", dir.path()))?;
    if stopped {
        return Err(ProviderError::Tombstoned(launch.replica));
    }
    Ok(())
}

enum Look {
    /// It runs, or ended before.
    Kept,
    /// Nothing was started, or its shim died.
    ToStart,
}

async fn look(dir: &RunDir, replica: &ReplicaKey) -> Result<Look, ProviderError> {
    let target = dir.clone();
    let found = blocking(move || -> io::Result<Option<Look>> {
        if target.is_stopped()? {
            return Ok(None);
        }
        Ok(Some(match target.record()? {
            None => Look::ToStart,
            Some(record) => {
                let kept = matches!(record.phase, Phase::Exited(_))
                    || (record.boot_id == proc_table::boot_id()? && record.shim.is_alive());
                if kept { Look::Kept } else { Look::ToStart }
            }
        }))
    })
    .await
    .map_err(io_error("read", dir.path()))?;
    found.ok_or_else(|| ProviderError::Tombstoned(replica.clone()))
}

/// What became of a started shim.
enum Start {
    /// It keeps the replica.
    Kept,
    /// It ended without, and what it said.
    Ended(Option<ShimExit>, String),
}

/// Starts a shim. It is reaped whenever it ends, even if nobody waits for the answer.
fn start_shim(
    site: &Site,
    dir: &RunDir,
    lifeline: Option<&Path>,
) -> io::Result<oneshot::Receiver<Start>> {
    let complaints = File::options()
        .create(true)
        .append(true)
        .open(dir.shim_log())?;
    let mut command = Command::new(&site.executable);
    command
        .arg(REPLICA_SHIM)
        .arg("--dir")
        .arg(dir.path())
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(complaints);
    if let Some(path) = lifeline {
        command.arg("--lifeline").arg(std::path::absolute(path)?);
    }
    if let Some(open_files) = site.open_files {
        command.arg("--open-files").arg(open_files.to_string());
    }
    let child = command.spawn()?;
    let (tell, told) = oneshot::channel();
    tokio::spawn(attend(child, tell));
    Ok(told)
}

async fn attend(mut child: Child, tell: oneshot::Sender<Start>) {
    let mut words = String::new();
    if let Some(stdout) = child.stdout.take() {
        // What could be read is what there is to judge by.
        let mut stdout = BufReader::new(stdout.take(WORDS_BYTES_MAX));
        let _ = stdout.read_line(&mut words).await;
    }
    let words = words.trim().to_owned();
    if words == READY {
        // Nobody may be waiting any more.
        let _ = tell.send(Start::Kept);
        let _ = child.wait().await;
        return;
    }
    let exit = child.wait().await.ok().and_then(|status| status.code());
    let _ = tell.send(Start::Ended(exit.and_then(ShimExit::from_code), words));
}
