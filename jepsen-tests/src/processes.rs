//! What runs on this host, as `/proc` tells: peers, the keepers of replicas, and the replicas' own
//! processes, which carry a marker in their environment that all they start inherits.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How often, and how far apart, a process without an environment is looked at: an exec takes far less.
const EXEC_LOOKS: usize = 10;
const EXEC_PAUSE: Duration = Duration::from_millis(2);

/// The environment variable that marks a replica's processes: `CLUSTER/SERVICE-NUMBER`.
const MARKER: &[u8] = b"RAFTSERVE_REPLICA=";

/// How long killed processes may take to be gone. A kernel that is slow to reap them is not what is
/// tested.
const GONE_MAX: Duration = Duration::from_secs(10);

/// The pause between two looks at what is left.
const PAUSE: Duration = Duration::from_millis(10);

/// A process beyond reuse of its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub started: u64,
}

/// The processes of each replica, by the part of the marker after the cluster: `SERVICE-NUMBER`.
pub type Census = BTreeMap<String, Vec<Process>>;

/// Sends a signal to a process.
///
/// # Errors
/// If there is no such process.
pub fn signal(pid: i32, signal: Signal) -> anyhow::Result<()> {
    let number = Pid::from_raw(pid).context("0 is no process")?;
    kill_process(number, signal).with_context(|| format!("cannot signal process {pid}"))
}

/// The process of that number, if it is alive. A zombie is not.
#[must_use]
pub fn alive(pid: i32) -> Option<Process> {
    parse_stat(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(pid: i32, text: &str) -> Option<Process> {
    // The name stands in parentheses and may hold parentheses too.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    let started = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X" | "x")).then_some(Process { pid, started })
}

/// Every replica process of a cluster.
///
/// # Errors
/// If `/proc` cannot be listed.
pub fn census(cluster_id: &str) -> anyhow::Result<Census> {
    let mut found = Census::new();
    for pid in pids()? {
        if let Some((cluster, replica)) = marker(pid)
            && cluster == cluster_id
            && let Some(process) = alive(pid)
        {
            found.entry(replica).or_default().push(process);
        }
    }
    Ok(found)
}

/// The keepers of replicas below a directory: one for each replica that runs.
///
/// # Errors
/// If `/proc` cannot be listed.
pub fn shims(below: &Path) -> anyhow::Result<Vec<Process>> {
    let of_shim = |pid: &i32| {
        let line = command_line(*pid);
        line.iter().any(|word| word == "replica-shim") && mentions(&line, below)
    };
    Ok(pids()?.filter(of_shim).filter_map(alive).collect())
}

/// Kills whatever belongs to a cluster until nothing does: what mentions its directory in its command
/// line, and what carries the marker of any cluster in `cluster_ids`. Blocks.
///
/// # Errors
/// If something is still there after ten seconds.
pub fn kill_all(directory: &Path, cluster_ids: &[String]) -> anyhow::Result<()> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let belongs = |pid: &i32| {
        *pid != own
            && alive(*pid).is_some()
            && (mentions(&command_line(*pid), directory)
                || marker(*pid).is_some_and(|(cluster, _)| cluster_ids.contains(&cluster)))
    };
    let start = Instant::now();
    loop {
        let found: Vec<i32> = pids()?.filter(belongs).collect();
        if found.is_empty() {
            return Ok(());
        }
        if start.elapsed() > GONE_MAX {
            bail!("processes {found:?} are still there after SIGKILL");
        }
        for pid in found {
            // It may be gone by now, which is what is wanted.
            let _ = signal(pid, Signal::KILL);
        }
        std::thread::sleep(PAUSE);
    }
}

/// The first process of a container, by the uid of its pod and its name, where the pod's node is on this host.
///
/// # Errors
/// If there is none.
pub fn first_in_pod(uid: &str, name: &str) -> anyhow::Result<i32> {
    let read = |pid: i32, what: &str| {
        let text = fs::read_to_string(format!("/proc/{pid}/{what}"));
        text.unwrap_or_default()
    };
    let is_it = |pid: &i32| {
        let first = read(*pid, "status")
            .lines()
            .filter_map(|line| line.strip_prefix("NSpid:"))
            .any(|numbers| numbers.split_whitespace().next_back() == Some("1"));
        first && read(*pid, "comm").trim() == name && read(*pid, "cgroup").contains(uid)
    };
    let found = pids()?.find(is_it);
    found.with_context(|| format!("pod {uid} has no {name} on this host"))
}

fn pids() -> anyhow::Result<impl Iterator<Item = i32>> {
    Ok(fs::read_dir("/proc")
        .context("cannot list /proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

/// Cluster and replica of the marker in a process's environment.
fn marker(pid: i32) -> Option<(String, String)> {
    let value = environment(pid)?
        .split(|byte| *byte == 0)
        .find_map(|entry| entry.strip_prefix(MARKER))?
        .to_vec();
    let (cluster, replica) = std::str::from_utf8(&value).ok()?.split_once('/')?;
    Some((cluster.to_owned(), replica.to_owned()))
}

/// In the middle of an exec a process shows no environment for a moment, although its parent goes on
/// already: that is told from having none by looking again.
fn environment(pid: i32) -> Option<Vec<u8>> {
    for _ in 0..EXEC_LOOKS {
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let is_program = fs::read_link(format!("/proc/{pid}/exe")).is_ok();
        if !environment.is_empty() || !is_program {
            return Some(environment);
        }
        std::thread::sleep(EXEC_PAUSE);
    }
    Some(Vec::new())
}

fn command_line(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

fn mentions(line: &[String], directory: &Path) -> bool {
    let directory = directory.to_string_lossy();
    line.iter().any(|word| word.contains(&*directory))
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn sleeper(marker: &str, word: &str) -> Child {
        // Waits for its standard input to end, whatever happens to this test.
        Command::new("/bin/sh")
            .args(["-c", "read x", word])
            .env("RAFTSERVE_REPLICA", marker)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn pid(child: &Child) -> i32 {
        i32::try_from(child.id()).unwrap()
    }

    /// A marker shows as soon as `exec` is done, which `spawn` waits for.
    #[test]
    fn census_finds_the_cluster_asked_for_only() {
        let id = format!("census-{}", std::process::id());
        let mut ours = sleeper(&format!("{id}/7-1"), "");
        let mut twin = sleeper(&format!("{id}/7-1"), "");
        let mut other = sleeper(&format!("{id}0/7-2"), "");
        let found = census(&id).unwrap();
        let mut expected = vec![alive(pid(&ours)).unwrap(), alive(pid(&twin)).unwrap()];
        expected.sort();
        let mut seen = found["7-1"].clone();
        seen.sort();
        assert_eq!((seen, found.len()), (expected, 1));
        for child in [&mut ours, &mut twin, &mut other] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(census(&id).unwrap().is_empty());
    }

    #[test]
    fn zombie_is_not_alive() {
        let mut child = sleeper("x/1-1", "");
        signal(pid(&child), Signal::KILL).unwrap();
        while alive(pid(&child)).is_some() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }

    #[test]
    fn everything_of_a_cluster_is_killed_and_nothing_else() {
        let id = format!("kill-{}", std::process::id());
        let folder = tempfile::tempdir().unwrap();
        let word = folder.path().join("peer-1");
        let mut marked = sleeper(&format!("{id}/7-1"), "");
        let mut named = sleeper("another/7-1", word.to_str().unwrap());
        let mut stranger = sleeper("another/7-1", "");
        // A zombie does not count as left, so nobody needs to reap meanwhile.
        kill_all(folder.path(), std::slice::from_ref(&id)).unwrap();
        assert!(!marked.wait().unwrap().success());
        assert!(!named.wait().unwrap().success());
        assert!(stranger.try_wait().unwrap().is_none());
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }

    #[test]
    fn stat_survives_any_name() {
        let tail = "S 7 9 9 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 168691 1 1";
        let read = parse_stat(12, &format!("12 (a) b (c)) {tail}")).unwrap();
        assert_eq!(read.started, 168_691);
        let zombie = tail.replacen('S', "Z", 1);
        assert_eq!(parse_stat(12, &format!("12 (a) {zombie}")), None);
    }
}
