//! Making sure that nothing of a data directory runs any more: the last thing before exit.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::peer_process::DEV_MARKER;
use crate::provider::proc_table::{self, MARKER_NAME, ProcessStamp};
use crate::provider::run_dir::RunDir;

/// How long what was cut off its lifeline may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long what was killed may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// The pause between two looks at the process table.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Looks in a row that must find nothing: a process in the middle of an `exec` shows no environment
/// to one of them.
const CLEAN_LOOKS: u32 = 2;

/// What was left of a data directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Leftovers {
    /// Processes that had to be killed.
    pub(super) killed: Vec<i32>,
    /// Processes that are there even so.
    pub(super) remaining: Vec<i32>,
}

/// Waits until no process of the data directory is left, and kills those that stay too long.
pub(super) async fn clear(home: &Path, replicas: &Path) -> Leftovers {
    let marks = Marks::of(home, replicas);
    if marks.wait_gone(PATIENCE).await {
        return Leftovers::default();
    }
    let mut killed = BTreeSet::new();
    let deadline = Instant::now() + KILL_PATIENCE;
    loop {
        let found = marks.find();
        for stamp in &found {
            // What cannot be killed is found again below.
            let _ = stamp.kill();
        }
        killed.extend(found.iter().map(|stamp| stamp.pid));
        if marks.wait_gone(Duration::ZERO).await || Instant::now() > deadline {
            break;
        }
        sleep(LOOK_INTERVAL).await;
    }
    let remaining: Vec<i32> = marks.find().iter().map(|stamp| stamp.pid).collect();
    Leftovers {
        killed: killed
            .into_iter()
            .filter(|pid| !remaining.contains(pid))
            .collect(),
        remaining,
    }
}

/// By what the processes of a data directory are known: an entry of their environment.
struct Marks {
    entries: BTreeSet<Vec<u8>>,
}

impl Marks {
    fn of(home: &Path, replicas: &Path) -> Self {
        let entry = |name: &str, value: &OsStr| [name.as_bytes(), b"=", value.as_bytes()].concat();
        let mut entries = BTreeSet::from([entry(DEV_MARKER, home.as_os_str())]);
        for dir in run_dirs(replicas) {
            // A replica without a launch document was never started.
            if let Ok(Some(launch)) = RunDir::new(dir).launch() {
                entries.insert(entry(MARKER_NAME, OsStr::new(&launch.marker)));
            }
        }
        Self { entries }
    }

    /// The live processes that bear one of the marks, but for this one.
    fn find(&self) -> Vec<ProcessStamp> {
        let own = std::process::id().cast_signed();
        let Ok(processes) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        processes
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| *pid != own)
            .filter_map(|pid| {
                // The stamp comes first: should the number pass to another process, it will not fit.
                let stat = proc_table::stat(pid).filter(|stat| !stat.dead)?;
                self.is_on(pid).then_some(stat.stamp)
            })
            .collect()
    }

    fn is_on(&self, pid: i32) -> bool {
        // One that may not be read belongs to somebody else.
        fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environment| {
            environment
                .split(|byte| *byte == 0)
                .any(|entry| self.entries.contains(entry))
        })
    }

    async fn wait_gone(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut clean = 0;
        loop {
            clean = if self.find().is_empty() { clean + 1 } else { 0 };
            if clean == CLEAN_LOOKS {
                return true;
            }
            if clean == 0 && Instant::now() >= deadline {
                return false;
            }
            sleep(LOOK_INTERVAL).await;
        }
    }
}

/// The replicas' run directories: two levels down, by cluster and by replica.
fn run_dirs(replicas: &Path) -> Vec<PathBuf> {
    let children = |path: PathBuf| {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.path())
    };
    children(replicas.to_owned()).flat_map(children).collect()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn sleeper(home: &Path) -> Child {
        let mut command = Command::new("/bin/sleep");
        command.arg("600").env(DEV_MARKER, home).spawn().unwrap()
    }

    #[tokio::test]
    async fn only_what_bears_the_mark_is_cleared_away() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let marks = Marks::of(ours.path(), &ours.path().join("replicas"));
        let (mut own, mut other) = (sleeper(ours.path()), sleeper(theirs.path()));
        let pid = own.id().cast_signed();
        // Until its exec, the child shows the environment of this process.
        while marks.find().is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(!marks.wait_gone(Duration::ZERO).await);
        marks.find().iter().for_each(|stamp| stamp.kill().unwrap());
        assert!(!own.wait().unwrap().success());
        let left = clear(ours.path(), &ours.path().join("replicas")).await;
        assert_eq!(left, Leftovers::default(), "{pid}");
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
