//! What processes use, as `/proc` tells: processor time, bytes that reached the disk, memory.

use std::fs;
use std::ops::{Add, Sub};
use std::time::Duration;

use anyhow::Context;

/// A tick of the times in `/proc`: a hundredth of a second to every program, whatever the kernel's own.
const TICK_MS: u64 = 10;

/// What some processes have used so far, or within a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time, user and system.
    pub cpu: Duration,
    /// Bytes that the kernel was made to write to storage.
    pub disk_bytes: u64,
    /// Resident memory now: of differences, the later one.
    pub memory_bytes: u64,
}

impl Add for Usage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            cpu: self.cpu + other.cpu,
            disk_bytes: self.disk_bytes + other.disk_bytes,
            memory_bytes: self.memory_bytes + other.memory_bytes,
        }
    }
}

impl Sub for Usage {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            disk_bytes: self.disk_bytes.saturating_sub(before.disk_bytes),
            memory_bytes: self.memory_bytes,
        }
    }
}

impl Usage {
    /// What the processes have used since they began, in sum.
    ///
    /// # Errors
    /// If one has gone.
    pub fn of(pids: &[i32]) -> anyhow::Result<Self> {
        let each = pids.iter().map(|pid| Self::of_one(*pid));
        each.sum::<anyhow::Result<Sum>>().map(|sum| sum.0)
    }

    fn of_one(pid: i32) -> anyhow::Result<Self> {
        let read = |name| {
            let path = format!("/proc/{pid}/{name}");
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let ticks = ticks(&read("stat")?).context("an unknown form of /proc/PID/stat")?;
        let disk_bytes = field(&read("io")?, "write_bytes:").context("no write_bytes")?;
        let memory = field(&read("status")?, "VmRSS:").context("no VmRSS")?;
        Ok(Self {
            cpu: Duration::from_millis(ticks * TICK_MS),
            disk_bytes,
            memory_bytes: memory * 1024,
        })
    }
}

/// The memory of a process that no file is behind: what it has allocated.
///
/// # Errors
/// If it has gone.
pub fn anonymous_bytes(pid: i32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let kilobytes = field(&status, "RssAnon:").context("no RssAnon")?;
    Ok(kilobytes * 1024)
}

struct Sum(Usage);

impl std::iter::Sum<Usage> for Sum {
    fn sum<I: Iterator<Item = Usage>>(each: I) -> Self {
        Self(each.fold(Usage::default(), Add::add))
    }
}

/// User and system time of a line of `/proc/PID/stat`: the 14th and 15th field. The second one, the name, is
/// in parentheses and may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let (user, system) = (fields.next()?, fields.next()?);
    Some(user.parse::<u64>().ok()? + system.parse::<u64>().ok()?)
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 1 0 0 0 120 30 0 0 20 0 1 0 5 0 0";
        assert_eq!(ticks(stat), Some(150));
        assert_eq!(ticks("7"), None);
    }

    #[test]
    fn own_usage_is_readable() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let usage = Usage::of(&[pid, pid]).unwrap();
        assert!(usage.memory_bytes > 1 << 20, "{usage:?}");
        assert!(Usage::of(&[-1]).is_err());
    }
}
