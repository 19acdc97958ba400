//! The process between a peer and a replica: a hidden subcommand of the same binary, in a session
//! of its own, so that the replica outlives any peer and has exactly one keeper.
//!
//! To start a replica is to start a shim, as often as anyone likes. Whichever shim gets the lock of
//! the run directory is the replica's; all others leave at once. A replica whose former shim died is
//! cleaned away and recorded as lost, not started again.
//!
//! The shim keeps the pipe that the replica writes to, so no peer's death breaks its output, and
//! takes in whatever the replica leaves behind. The replica's program dies with the shim
//! (`PR_SET_PDEATHSIG`); what that program had started itself is found by the marker in its
//! environment by whoever cleans up next.

mod child;
mod control;
mod epitaph;
mod pump;
mod supervisor;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use raftserve_proxy::OpenFiles;
use tokio::net::{UnixListener, UnixStream};

use crate::provider::proc_table::{self, Also, ProcessStamp};
use crate::provider::record::{LaunchDocument, Phase, Record};
use crate::provider::run_dir::{RunDir, RunLock, SocketPath};
use crate::provider::{End, Exit, Step, run_files};

/// The hidden subcommand that keeps a replica.
pub const REPLICA_SHIM: &str = "replica-shim";

/// The hidden subcommand that becomes a replica's shell.
pub const REPLICA_EXEC: &str = "replica-exec";

/// What a shim says on its standard output once the replica is its own.
pub const READY: &str = "ready";

/// How long the keeper of the lifeline may take to accept a connection: it is on this host.
const LIFELINE_CONNECT_MAX: Duration = Duration::from_secs(5);

/// Why a shim ended, as its exit code. The numbers lie outside those that shells and panics use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ShimExit {
    /// It kept the replica to its end.
    Done = 0,
    /// Another shim keeps the replica.
    Held = 75,
    /// The replica was stopped for good.
    Tombstoned = 76,
    /// The replica's program was started before, and ended.
    Ended = 77,
    /// It could not begin; its standard output says why. Nothing was started.
    Failed = 78,
}

impl ShimExit {
    /// What an exit code means, if it is one of a shim.
    #[must_use]
    pub fn from_code(code: i32) -> Option<Self> {
        [
            Self::Done,
            Self::Held,
            Self::Tombstoned,
            Self::Ended,
            Self::Failed,
        ]
        .into_iter()
        .find(|exit| *exit as i32 == code)
    }
}

/// Runs one of the hidden subcommands if that is what the arguments (without the program's own
/// name) ask for. To be called before anything starts a thread.
#[must_use]
pub fn dispatch(args: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut args = args.into_iter();
    let first = args.next()?;
    if first == REPLICA_SHIM {
        Some(ExitCode::from(run(args) as u8))
    } else if first == REPLICA_EXEC {
        Some(child::exec(args))
    } else {
        None
    }
}

fn run(args: impl Iterator<Item = OsString>) -> ShimExit {
    let kept = parse(args).and_then(|told| {
        if let Some(open_files) = told.open_files {
            OpenFiles::lower(open_files)?;
        }
        keep(&told.dir, told.lifeline)
    });
    kept.unwrap_or_else(|error| {
        // If whoever started this shim is gone, nobody needs to know.
        let _ = writeln!(io::stdout(), "{error}");
        ShimExit::Failed
    })
}

/// What a shim is told.
struct Told {
    dir: RunDir,
    lifeline: Option<PathBuf>,
    /// The soft limit of open files, for it and the replica.
    open_files: Option<u64>,
}

fn parse(mut args: impl Iterator<Item = OsString>) -> io::Result<Told> {
    let (mut dir, mut lifeline, mut open_files) = (None, None, None);
    while let Some(flag) = args.next() {
        let value = args.next();
        match flag.to_str() {
            Some("--dir") => dir = value.map(PathBuf::from),
            Some("--lifeline") => lifeline = value.map(PathBuf::from),
            Some("--open-files") => {
                let number = value.as_ref().and_then(|text| text.to_str()?.parse().ok());
                let wrong = || io::Error::other(format!("--open-files {value:?} is no number"));
                open_files = Some(number.ok_or_else(wrong)?);
            }
            _ => return Err(io::Error::other(format!("unknown argument {flag:?}"))),
        }
    }
    let dir = dir.ok_or_else(|| io::Error::other("--dir is missing"))?;
    Ok(Told {
        dir: RunDir::new(dir),
        lifeline,
        open_files,
    })
}

/// What a shim holds once the replica is its own.
struct Kept {
    dir: RunDir,
    lock: RunLock,
    launch: LaunchDocument,
    lifeline: Option<UnixStream>,
    listener: UnixListener,
    record: Record,
}

/// Takes the lock and keeps the replica to its end, unless there is nothing to keep.
fn keep(dir: &RunDir, lifeline: Option<PathBuf>) -> io::Result<ShimExit> {
    // Refused only to the leader of a process group, which then has no terminal to lose either.
    let _ = rustix::process::setsid();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let Some(lock) = dir.try_lock()? else {
        return Ok(ShimExit::Held);
    };
    if dir.is_stopped()? {
        return Ok(ShimExit::Tombstoned);
    }
    let launch = dir
        .launch()?
        .ok_or_else(|| io::Error::other("there is no launch.json"))?;
    if let Some(former) = dir.record()? {
        bury(dir, &lock, &launch, former)?;
        return Ok(ShimExit::Ended);
    }
    if launch.has_files {
        run_files::place(dir, &lock).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("cannot put file_mounts in place: {error}"),
            )
        })?;
    }
    // One thread: the program is started from the main thread, since the kernel takes the death of
    // the thread that started it for the death of its parent.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let lifeline = match lifeline {
            Some(path) => Some(connect_lifeline(path).await?),
            None => None,
        };
        let record = Record {
            boot_id: proc_table::boot_id()?,
            shim: ProcessStamp::own()?,
            child: None,
            phase: Phase::Active(first_step(&launch)),
        };
        let listener = control::bind(dir)?;
        dir.write_record(&lock, &record)?;
        // Again, now that the record is there: whoever stops this replica leaves the tombstone
        // before looking for a record, so either they see this shim or it sees their tombstone.
        if dir.is_stopped()? {
            dir.write_record(&lock, &not_begun(record))?;
            return Ok(ShimExit::Tombstoned);
        }
        run_files::discard(dir)?;
        detach_stdout()?;
        let dir = dir.clone();
        let kept = Kept {
            dir,
            lock,
            launch,
            lifeline,
            listener,
            record,
        };
        supervisor::run(kept).await?;
        Ok(ShimExit::Done)
    })
}

fn first_step(launch: &LaunchDocument) -> Step {
    match launch.setup {
        Some(_) => Step::Setup,
        None => Step::Run,
    }
}

fn not_begun(mut record: Record) -> Record {
    if let Phase::Active(step) = record.phase {
        record.phase = Phase::Exited(Exit {
            step,
            end: End::NotStarted,
            message: format!("{step} was not started: the replica was stopped before"),
        });
    }
    record
}

/// Clears away what a former shim of this replica left running, and records that it was lost,
/// unless it recorded an end itself.
fn bury(
    dir: &RunDir,
    lock: &RunLock,
    launch: &LaunchDocument,
    mut former: Record,
) -> io::Result<()> {
    proc_table::sweep(&launch.marker, Also::Nobody)?;
    if let Phase::Active(step) = former.phase {
        former.phase = Phase::Exited(lost(step));
        dir.write_record(lock, &former)?;
    }
    Ok(())
}

/// The end of a replica whose shim died.
#[must_use]
pub fn lost(step: Step) -> Exit {
    Exit {
        step,
        end: End::Lost,
        message: format!("{step} was lost: the process that kept it died"),
    }
}

async fn connect_lifeline(path: PathBuf) -> io::Result<UnixStream> {
    let connect = async {
        let short = SocketPath::new(&path)?;
        UnixStream::connect(short.as_path()).await
    };
    tokio::time::timeout(LIFELINE_CONNECT_MAX, connect)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|error| {
            let text = format!("cannot reach the lifeline {}: {error}", path.display());
            io::Error::new(error.kind(), text)
        })
}

/// Tells whoever started this shim that the replica is kept, then lets go of that pipe.
fn detach_stdout() -> io::Result<()> {
    let mut stdout = io::stdout();
    // The starter may be dead by now; the replica is kept all the same.
    let _ = writeln!(stdout, "{READY}").and_then(|()| stdout.flush());
    let null = File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(())
}
