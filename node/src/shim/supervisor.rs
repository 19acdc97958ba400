//! Keeping a replica from its start to its end: `setup`, `run`, a stop that is asked for, and
//! clearing away whatever is left.

use std::future;
use std::io::{self, PipeWriter};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::pump::Pump;
use super::{Kept, child, control, epitaph};
use crate::provider::log_files::LogWriter;
use crate::provider::proc_table::{self, Also, ProcessStamp};
use crate::provider::record::{LaunchDocument, Phase, Record};
use crate::provider::run_dir::{RunDir, RunLock};
use crate::provider::{End, Exit, Step};

/// How many stops may be asked for before the first is seen. Whoever asks waits for room.
const STOPS_QUEUED_MAX: usize = 8;

/// How often a stopping process group is looked at once its leader has gone: those that are not our
/// children end without a word to us.
const GROUP_POLL: Duration = Duration::from_millis(20);

/// Keeps the replica to its end, and records it.
///
/// # Errors
/// If it cannot go on; the caller's death then takes the replica with it.
pub(super) async fn run(kept: Kept) -> io::Result<()> {
    let Kept {
        dir,
        lock,
        launch,
        lifeline,
        listener,
        record,
    } = kept;
    let (output, writer) = io::pipe()?;
    let pump = Pump::start(output, LogWriter::create(dir.log())?)?;
    let (record, watched) = watch::channel(record);
    let (ask, stops) = mpsc::channel(STOPS_QUEUED_MAX);
    tokio::spawn(control::serve(listener, watched, ask));
    let mut supervisor = Supervisor {
        stop: StopState::Wanted,
        children: unix::signal(SignalKind::child())?,
        terminate: unix::signal(SignalKind::terminate())?,
        lifeline,
        was_cut: false,
        stops,
        record,
        dir,
        lock,
        launch,
    };
    let (step, end) = supervisor.run_steps(&writer).await?;
    drop(writer);
    supervisor.conclude(step, end, pump).await
}

/// Whether the replica is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StopState {
    /// It is.
    Wanted,
    /// It was told to end, and is killed at this time.
    KillAt(Instant),
    /// It was killed.
    Killed,
}

/// How a step ended: by itself or by force, or not even begun for this reason.
type StepEnd = Result<End, io::Error>;

struct Supervisor {
    stop: StopState,
    children: unix::Signal,
    terminate: unix::Signal,
    lifeline: Option<UnixStream>,
    /// Whether the lifeline's other end is gone.
    was_cut: bool,
    stops: mpsc::Receiver<Duration>,
    record: watch::Sender<Record>,
    dir: RunDir,
    lock: RunLock,
    launch: LaunchDocument,
}

/// What woke the supervisor.
enum Wake {
    Child,
    Stop(Duration),
    LifelineCut,
    Overdue,
    Poll,
}

impl Supervisor {
    /// Runs `setup`, then `run` if that went well and nobody asked for a stop meanwhile.
    async fn run_steps(&mut self, output: &PipeWriter) -> io::Result<(Step, StepEnd)> {
        if let Some(setup) = self.launch.setup.clone() {
            let end = self.run_step(Step::Setup, &setup, output).await?;
            let went_well = matches!(end, Ok(End::Code(0))) && self.stop == StopState::Wanted;
            if !went_well || self.dir.is_stopped()? {
                return Ok((Step::Setup, end));
            }
        }
        let run = self.launch.run.clone();
        Ok((Step::Run, self.run_step(Step::Run, &run, output).await?))
    }

    async fn run_step(
        &mut self,
        step: Step,
        text: &str,
        output: &PipeWriter,
    ) -> io::Result<StepEnd> {
        self.publish(Phase::Active(step), None)?;
        let child = match child::spawn(&self.dir, &self.launch, step, text, output) {
            Ok(child) => child,
            Err(error) => return Ok(Err(error)),
        };
        self.publish(Phase::Active(step), Some(child))?;
        Ok(Ok(self.wait(child).await))
    }

    /// Waits for the end of the program, and after a stop was asked for also for that of its whole
    /// process group, carrying out what is asked for meanwhile.
    async fn wait(&mut self, child: ProcessStamp) -> End {
        let mut end = None;
        loop {
            end = end.or(reap(child.pid));
            if let Some(end) = end {
                match self.stop {
                    StopState::Wanted | StopState::Killed => return end,
                    StopState::KillAt(_) if proc_table::group_is_empty(child.pid) => return end,
                    StopState::KillAt(_) => {}
                }
            }
            match self.wake(end.is_some()).await {
                Wake::Child | Wake::Poll => {}
                Wake::Stop(grace) => self.begin_stop(child, grace),
                Wake::LifelineCut => {
                    self.lifeline = None;
                    self.was_cut = true;
                    self.kill(child);
                }
                Wake::Overdue => self.kill(child),
            }
        }
    }

    async fn wake(&mut self, poll: bool) -> Wake {
        let lifeline = &mut self.lifeline;
        let kill_at = match self.stop {
            StopState::KillAt(at) => Some(at),
            StopState::Wanted | StopState::Killed => None,
        };
        let default_grace = Duration::from_millis(self.launch.stop_grace_ms);
        tokio::select! {
            biased;
            () = cut(lifeline) => Wake::LifelineCut,
            () = overdue(kill_at) => Wake::Overdue,
            Some(grace) = self.stops.recv() => Wake::Stop(grace),
            Some(()) = self.terminate.recv() => Wake::Stop(default_grace),
            Some(()) = self.children.recv() => Wake::Child,
            () = sleep(GROUP_POLL), if poll => Wake::Poll,
        }
    }

    /// Asks the program to end. A later stop can only shorten the time it has.
    fn begin_stop(&mut self, child: ProcessStamp, grace: Duration) {
        let at = Instant::now() + grace;
        match self.stop {
            StopState::Wanted => {
                signal_group(child, Signal::TERM);
                self.stop = StopState::KillAt(at);
            }
            StopState::KillAt(before) => self.stop = StopState::KillAt(before.min(at)),
            StopState::Killed => {}
        }
    }

    fn kill(&mut self, child: ProcessStamp) {
        signal_group(child, Signal::KILL);
        self.stop = StopState::Killed;
    }

    /// Clears away what is left, and records the end. After this the shim has nothing to do.
    async fn conclude(self, step: Step, end: StepEnd, pump: Pump) -> io::Result<()> {
        let swept = proc_table::sweep(&self.launch.marker, Also::OwnDescendants);
        reap(0);
        let last_words = pump.finish().await;
        let mut exit = match end {
            Ok(end) => epitaph::describe(step, end, &last_words),
            Err(error) => Exit {
                step,
                end: End::NotStarted,
                message: format!("{step} could not be started: {error}"),
            },
        };
        if self.was_cut {
            exit.message = format!("{step} was stopped along with what it was started for");
        }
        if let Err(error) = swept {
            exit.message = format!("{}; {error}", exit.message);
        }
        let child = self.record.borrow().child;
        self.publish(Phase::Exited(exit), child)
    }

    fn publish(&self, phase: Phase, child: Option<ProcessStamp>) -> io::Result<()> {
        let mut record = self.record.borrow().clone();
        record.phase = phase;
        record.child = child;
        self.dir.write_record(&self.lock, &record)?;
        self.record.send_replace(record);
        Ok(())
    }
}

/// Signals the program's process group, unless the program was reaped: then its number may be
/// another's, and what is left of the group is for the sweep.
fn signal_group(child: ProcessStamp, signal: Signal) {
    let exists = proc_table::stat(child.pid).is_some_and(|stat| stat.stamp == child);
    if let Some(group) = Pid::from_raw(child.pid).filter(|_| exists) {
        // An empty group is what was wanted.
        let _ = kill_process_group(group, signal);
    }
}

/// Takes note of all children that ended, and returns how `wanted` did if it is among them.
fn reap(wanted: i32) -> Option<End> {
    let mut end = None;
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if pid.as_raw_nonzero().get() == wanted {
            end = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Some(End::Code(code)),
                (None, Some(signal)) => Some(End::Signal(signal)),
                (None, None) => None,
            };
        }
    }
    end
}

/// Waits for the end of the lifeline; for ever if there is none.
async fn cut(lifeline: &mut Option<UnixStream>) {
    let Some(stream) = lifeline else {
        return future::pending().await;
    };
    let mut ignored = [0; 64];
    while matches!(stream.read(&mut ignored).await, Ok(count) if count > 0) {}
}

async fn overdue(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => future::pending().await,
    }
}
