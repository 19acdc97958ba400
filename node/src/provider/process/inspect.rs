//! What exists of a replica, from what is written in its run directory and from the host's
//! processes. Reads only: takes no lock that a starting shim might want.

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Site, blocking, io_error};
use crate::provider::proc_table;
use crate::provider::record::{Phase, Record};
use crate::provider::run_dir::RunDir;
use crate::provider::{End, Exit, Observation, ProviderError, ReplicaKey, ReplicaState, Step};
use crate::shim;

/// How long a program's end may stay unnoticed by its shim before we take note ourselves. A shim
/// that is not paused needs far less than a millisecond.
const UNNOTICED_MAX: Duration = Duration::from_millis(300);

/// All that exists for the cluster on this host.
pub(super) async fn observe(site: Arc<Site>) -> Result<Vec<Observation>, ProviderError> {
    blocking(move || {
        let boot = proc_table::boot_id().map_err(io_error("read", "/proc/sys/kernel".as_ref()))?;
        let mut seen = Vec::new();
        for replica in list(&site).map_err(io_error("list", &site.directory))? {
            let dir = site.run_dir(&replica);
            if let Some(state) = state_of(&dir, &boot).map_err(io_error("read", dir.path()))? {
                seen.push(Observation { replica, state });
            }
        }
        Ok(seen)
    })
    .await
}

/// The replicas that have a run directory, in order.
pub(super) fn list(site: &Site) -> io::Result<Vec<ReplicaKey>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(&site.directory)? {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(ReplicaKey::parse));
    }
    found.sort();
    Ok(found)
}

/// What exists of one replica; none if nothing was ever prepared or stopped.
pub(super) fn state_of(dir: &RunDir, boot: &str) -> io::Result<Option<ReplicaState>> {
    let patience = Instant::now() + UNNOTICED_MAX;
    loop {
        // In this order: a shim that finds no tombstone has written its record before it looked.
        let stopped = dir.is_stopped()?;
        let record = match dir.record() {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Ok(Some(unreadable(&error, stopped)));
            }
            other => other?,
        };
        let Some(record) = record else {
            let prepared = fs::exists(dir.path())?;
            return Ok(match (stopped, prepared) {
                (true, _) => Some(ReplicaState::Stopped),
                (false, true) => Some(ReplicaState::Prepared),
                (false, false) => None,
            });
        };
        let unnoticed = match record.phase {
            Phase::Active(step) => unnoticed_end(&record, step, boot),
            Phase::Exited(_) => None,
        };
        match unnoticed {
            Some(_) if Instant::now() < patience => std::thread::sleep(Duration::from_millis(5)),
            Some(exit) if !stopped => return Ok(Some(ReplicaState::Exited(exit))),
            _ => return Ok(Some(state_from(record, dir, stopped, boot)?)),
        }
    }
}

fn unreadable(error: &io::Error, stopped: bool) -> ReplicaState {
    if stopped {
        return ReplicaState::Stopping;
    }
    ReplicaState::Exited(Exit {
        step: Step::Run,
        end: End::Lost,
        message: error.to_string(),
    })
}

fn state_from(record: Record, dir: &RunDir, stopped: bool, boot: &str) -> io::Result<ReplicaState> {
    let same_boot = record.boot_id == boot;
    Ok(match (record.phase, stopped) {
        (Phase::Exited(_), true) => ReplicaState::Stopped,
        (Phase::Exited(exit), false) => ReplicaState::Exited(exit),
        (Phase::Active(_), true) if same_boot => ReplicaState::Stopping,
        (Phase::Active(_), true) => ReplicaState::Stopped,
        (Phase::Active(step), false) if !same_boot => ReplicaState::Exited(Exit {
            step,
            end: End::Lost,
            message: format!("{step} was lost: the host was restarted"),
        }),
        (Phase::Active(step), false) if !record.shim.is_alive() => match dir.record()? {
            // It ended in good order between our reading and our looking.
            Some(Record {
                phase: Phase::Exited(exit),
                ..
            }) => ReplicaState::Exited(exit),
            _ => ReplicaState::Exited(shim::lost(step)),
        },
        (Phase::Active(Step::Setup), false) => ReplicaState::SettingUp,
        (Phase::Active(Step::Run), false) => ReplicaState::Running {
            address: format!(
                "127.0.0.1:{}",
                dir.launch()?.map_or(0, |launch| launch.port)
            ),
        },
    })
}

/// The end of a program that its shim has not recorded, perhaps since the shim is paused: a zombie
/// is dead, whatever the record says.
fn unnoticed_end(record: &Record, step: Step, boot: &str) -> Option<Exit> {
    let child = record.child.filter(|_| record.boot_id == boot)?;
    let status = child.unreaped_status()?;
    if !record.shim.is_alive() {
        return None;
    }
    let (end, how) = match status & 0x7f {
        0 => {
            let code = (status >> 8) & 0xff;
            (End::Code(code), format!("exited with code {code}"))
        }
        signal => (
            End::Signal(signal),
            format!("was killed by signal {signal}"),
        ),
    };
    // A setup that went well is followed by run as soon as its shim goes on.
    (step == Step::Run || end != End::Code(0)).then(|| Exit {
        step,
        end,
        message: format!("{step} {how}, and the process that keeps it does not answer"),
    })
}

/// Whether nothing more will ever be written by the replica.
pub(super) fn is_over(dir: &RunDir) -> io::Result<bool> {
    let state = state_of(dir, &proc_table::boot_id()?)?;
    Ok(match state {
        None | Some(ReplicaState::Exited(_) | ReplicaState::Stopped) => true,
        Some(
            ReplicaState::Prepared
            | ReplicaState::SettingUp
            | ReplicaState::Running { .. }
            | ReplicaState::Stopping
            | ReplicaState::Preempted,
        ) => false,
    })
}
