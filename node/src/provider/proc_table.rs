//! The host's processes, as `/proc` tells: which process is which, beyond reuse of its number, and
//! which belong to a replica.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// The environment variable that marks a replica's processes, inherited by all that they start.
pub const MARKER_NAME: &str = "RAFTSERVE_REPLICA";

/// How long a sweep goes on killing. A killed process is gone within milliseconds unless it hangs
/// in the kernel, which no patience mends.
const SWEEP_TIME_MAX: Duration = Duration::from_secs(5);

/// The pause between two scans of a sweep: enough for killed processes to be gone.
const SWEEP_PAUSE: Duration = Duration::from_millis(5);

/// Scans in a row that must find nothing: a process that starts another and ends while a scan goes
/// on can slip past one of them.
const SWEEP_CLEAN_SCANS: u32 = 2;

/// How long a sweep waits for processes in the middle of an `exec`, which show no environment until
/// the kernel has read the new program from disk. After that they are taken for such as never will.
const EXEC_TIME_MAX: Duration = Duration::from_secs(1);

/// The flag of the kernel's own threads in `/proc/PID/stat` (`PF_KTHREAD`).
const KERNEL_THREAD: u64 = 0x0020_0000;

/// A process beyond reuse of its number: the number and when it started, in clock ticks since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStamp {
    /// Its number.
    pub pid: i32,
    /// When it started.
    pub start: u64,
}

/// The line `/proc/PID/stat` as far as we need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessStat {
    /// Which process.
    pub stamp: ProcessStamp,
    /// Its parent.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
    /// Whether it has ended, though its parent may not have taken note.
    pub dead: bool,
    /// Whether it is a thread of the kernel's own.
    pub kernel: bool,
    /// Its exit status in the form of waitpid(2), meaningful once it is dead.
    pub exit_status: i32,
}

/// The id of this boot of the host.
///
/// # Errors
/// If the kernel does not tell.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// What the kernel says of a process; none if there is no such process.
#[must_use]
pub fn stat(pid: i32) -> Option<ProcessStat> {
    parse_stat(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(pid: i32, text: &str) -> Option<ProcessStat> {
    // The name stands in parentheses and may hold anything, parentheses too.
    let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    let flags: u64 = fields.nth(3)?.parse().ok()?;
    let start = fields.nth(12)?.parse().ok()?;
    let exit_status = fields
        .nth(29)
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    Some(ProcessStat {
        stamp: ProcessStamp { pid, start },
        parent,
        group,
        dead: matches!(state, "Z" | "X" | "x"),
        kernel: flags & KERNEL_THREAD != 0,
        exit_status,
    })
}

impl ProcessStamp {
    /// The calling process.
    ///
    /// # Errors
    /// If `/proc` is not there.
    pub fn own() -> io::Result<Self> {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        stat(pid)
            .map(|stat| stat.stamp)
            .ok_or_else(|| io::Error::other("/proc is not mounted"))
    }

    /// Whether this very process runs. One that ended and waits for its parent does not.
    #[must_use]
    pub fn is_alive(self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.stamp == self && !stat.dead)
    }

    /// The exit status of this very process in the form of waitpid(2), if it ended and its parent
    /// has not taken note.
    #[must_use]
    pub fn unreaped_status(self) -> Option<i32> {
        stat(self.pid)
            .filter(|stat| stat.stamp == self && stat.dead)
            .map(|stat| stat.exit_status)
    }

    /// Kills this very process, never another under its number.
    ///
    /// # Errors
    /// If it may not be killed. That it is gone is no error.
    pub fn kill(self) -> io::Result<()> {
        kill_if(self.pid, || stat(self.pid).is_some_and(|s| s.stamp == self))
    }
}

/// Sends SIGKILL to a process if `is_it` confirms it. The descriptor is taken before the check, so
/// a process that gets the number in between is never hit.
fn kill_if(pid: i32, is_it: impl FnOnce() -> bool) -> io::Result<()> {
    let Some(number) = Pid::from_raw(pid) else {
        return Ok(());
    };
    let descriptor = match pidfd_open(number, PidfdFlags::empty()) {
        Ok(descriptor) => descriptor,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if !is_it() {
        return Ok(());
    }
    match pidfd_send_signal(&descriptor, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// All processes' numbers.
fn pids() -> io::Result<impl Iterator<Item = i32>> {
    Ok(fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

/// Whether the process carries the marker. One that may not be read, or is gone, does not.
fn has_marker(pid: i32, marker: &str) -> bool {
    let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else {
        return false;
    };
    environment
        .split(|byte| *byte == 0)
        .filter_map(|entry| entry.strip_prefix(MARKER_NAME.as_bytes()))
        .filter_map(|entry| entry.strip_prefix(b"="))
        .any(|value| value == marker.as_bytes())
}

/// The live processes that carry the marker.
///
/// # Errors
/// If `/proc` cannot be listed.
pub fn marked(marker: &str) -> io::Result<Vec<i32>> {
    Ok(pids()?
        .filter(|pid| has_marker(*pid, marker) && stat(*pid).is_some_and(|stat| !stat.dead))
        .collect())
}

/// Whether a process is in the middle of an `exec`, and so may carry the marker unseen: it shows
/// neither environment nor arguments.
fn any_in_exec() -> io::Result<bool> {
    let is_blank = |pid: i32, what: &str| {
        fs::read(format!("/proc/{pid}/{what}")).is_ok_and(|bytes| bytes.is_empty())
    };
    Ok(pids()?.any(|pid| {
        is_blank(pid, "environ")
            && is_blank(pid, "cmdline")
            && stat(pid).is_some_and(|stat| !stat.dead && !stat.kernel)
    }))
}

/// The live descendants of a process, itself excluded.
fn descendants(root: i32) -> io::Result<Vec<i32>> {
    let table: BTreeMap<i32, ProcessStat> = pids()?
        .filter_map(stat)
        .map(|stat| (stat.stamp.pid, stat))
        .collect();
    let mut found = vec![root];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        next += 1;
        found.extend(
            table
                .values()
                .filter(|stat| stat.parent == parent)
                .map(|stat| stat.stamp.pid),
        );
    }
    found.retain(|pid| *pid != root && table.get(pid).is_some_and(|stat| !stat.dead));
    Ok(found)
}

/// Whether any live process is left in a process group.
#[must_use]
pub fn group_is_empty(group: i32) -> bool {
    let Ok(mut pids) = pids() else { return false };
    !pids.any(|pid| stat(pid).is_some_and(|stat| stat.group == group && !stat.dead))
}

/// Whom a sweep kills besides the processes with the marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Also {
    /// Nobody else.
    Nobody,
    /// All descendants of the caller, which finds those that dropped their environment. Only for a
    /// caller that starts nothing else, and takes in orphans (`PR_SET_CHILD_SUBREAPER`).
    OwnDescendants,
}

/// Kills whatever carries the marker, again and again until nothing does. Blocks; bounded by a few
/// seconds.
///
/// # Errors
/// If something is left, named in the error.
pub fn sweep(marker: &str, also: Also) -> io::Result<()> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let start = Instant::now();
    let mut clean = 0;
    loop {
        let mut found = marked(marker)?;
        for pid in &found {
            kill_if(*pid, || has_marker(*pid, marker))?;
        }
        if also == Also::OwnDescendants {
            let others = descendants(own)?;
            for pid in &others {
                kill_if(*pid, || descendants(own).is_ok_and(|now| now.contains(pid)))?;
            }
            found.extend(others);
        }
        let unclear = start.elapsed() < EXEC_TIME_MAX && any_in_exec()?;
        clean = if found.is_empty() && !unclear {
            clean + 1
        } else {
            0
        };
        if clean == SWEEP_CLEAN_SCANS {
            return Ok(());
        }
        if start.elapsed() > SWEEP_TIME_MAX {
            return Err(io::Error::other(format!(
                "processes {found:?} are still there after SIGKILL"
            )));
        }
        std::thread::sleep(SWEEP_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn stat_survives_any_name() {
        // Fields are numbered as in proc(5): 3 is the state, 52 the exit status.
        let mut fields: Vec<String> = (3..=52).map(|number| number.to_string()).collect();
        fields[0] = "S".to_owned();
        let read = parse_stat(12, &format!("12 (a) b (c)) {}", fields.join(" "))).unwrap();
        assert_eq!(read.stamp, ProcessStamp { pid: 12, start: 22 });
        assert_eq!((read.parent, read.group, read.dead), (4, 5, false));
        assert!(!read.kernel);
        assert_eq!(read.exit_status, 52);
    }

    #[test]
    fn zombie_counts_as_dead_and_tells_its_status() {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "read x; exit 3"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let stamp = stat(i32::try_from(child.id()).unwrap()).unwrap().stamp;
        assert!(stamp.is_alive());
        assert_eq!(stamp.unreaped_status(), None);
        drop(child.stdin.take());
        while stamp.is_alive() {
            std::thread::yield_now();
        }
        assert_eq!(stamp.unreaped_status(), Some(3 << 8));
        child.wait().unwrap();
        assert_eq!(stamp.unreaped_status(), None);
        stamp.kill().unwrap();
    }

    #[test]
    fn kernel_threads_are_known() {
        // The parent of all kernel threads, where they are in sight.
        if fs::read("/proc/2/comm").is_ok_and(|name| name == b"kthreadd\n") {
            assert!(stat(2).unwrap().kernel);
        }
        assert!(!stat(1).unwrap().kernel);
    }

    #[test]
    fn own_stamp_is_alive_and_another_start_is_not() {
        let own = ProcessStamp::own().unwrap();
        assert!(own.is_alive());
        let other = ProcessStamp {
            start: own.start + 1,
            ..own
        };
        assert!(!other.is_alive());
        other.kill().unwrap();
    }

    #[test]
    fn sweep_kills_the_marked_only() {
        let marker = format!("sweep-test/{}", std::process::id());
        let sleeper = |value: &str| {
            Command::new("/bin/sleep")
                .arg("60")
                .env(MARKER_NAME, value)
                .spawn()
                .unwrap()
        };
        let mut ours = sleeper(&marker);
        let mut other = sleeper(&format!("{marker}0"));
        sweep(&marker, Also::Nobody).unwrap();
        assert!(!ours.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
