//! One peer as a process: how it is started, told to stop, killed, and what it last said.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::home::Home;
use super::ports::Block;

/// How long requests may finish once a peer is told to stop. Told again, it stops at once: there is no
/// other peer whom traffic could be left to.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// How long a peer may take to stop after that. Past it, it is killed, which loses nothing.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// Once a peer's log has grown to this, it is put aside as `.old` in place of the one before.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// How much of a log's end is read for its last words.
const LAST_WORDS_BYTES: u64 = 4 << 10;

/// How many lines are shown of what a peer said last.
const LAST_WORDS_LINES: usize = 5;

/// The variable that marks the peers of one data directory, and all that they start themselves.
pub(super) const DEV_MARKER: &str = "RAFTSERVE_DEV";

/// How a peer is started: the same each time.
#[derive(Clone, Debug)]
pub(super) struct PeerLaunch {
    /// Its number, from 1.
    pub(super) number: u16,
    /// Its ports.
    pub(super) block: Block,
    /// What it prints.
    pub(super) log: PathBuf,
    marker: PathBuf,
    args: Vec<String>,
}

impl PeerLaunch {
    /// The launch of peer `number` of those that listen at `blocks`.
    pub(super) fn new(home: &Home, number: u16, blocks: &[Block]) -> Self {
        let block = blocks[usize::from(number - 1)];
        let path = |path: PathBuf| path.display().to_string();
        let peers: Vec<String> = blocks
            .iter()
            .map(|block| block.peer().to_string())
            .collect();
        let flags = [
            ("--data-dir", path(home.peer_data(number))),
            ("--peers", peers.join(",")),
            ("--peer-addr", block.peer().to_string()),
            ("--admin-addr", block.admin().to_string()),
            ("--ops-addr", block.ops().to_string()),
            ("--proxy-addr", block.proxy().to_string()),
            ("--service-port-base", block.service_base().to_string()),
            ("--replica-root", path(home.replicas())),
            ("--lifeline", path(home.lifeline())),
            ("--profile", "fast".to_owned()),
            ("--log-format", "text".to_owned()),
        ];
        let args = flags
            .into_iter()
            .flat_map(|(name, value)| [name.to_owned(), value]);
        Self {
            number,
            block,
            log: home.peer_log(number),
            marker: home.path().to_owned(),
            args: std::iter::once("node".to_owned()).chain(args).collect(),
        }
    }

    /// Starts the process, in a process group of its own so that Ctrl-C does not reach it.
    ///
    /// # Errors
    /// If the system refuses.
    pub(super) fn start(&self) -> io::Result<PeerProcess> {
        self.rotate_log()?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)?;
        // The very program that runs now, even if its file was replaced meanwhile.
        let child = Command::new("/proc/self/exe")
            .arg0("raftserve")
            .args(&self.args)
            .env(DEV_MARKER, &self.marker)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        Ok(PeerProcess { child })
    }

    /// Puts a log that has grown long aside. The process that writes to it appends, and goes on at the
    /// beginning; what it writes in the moment of the change is lost.
    ///
    /// # Errors
    /// If the log cannot be read or written.
    pub(super) fn rotate_log(&self) -> io::Result<()> {
        match fs::metadata(&self.log) {
            Ok(log) if log.len() > LOG_BYTES_MAX => {
                fs::copy(&self.log, self.log.with_extension("log.old"))?;
                OpenOptions::new().write(true).open(&self.log)?.set_len(0)
            }
            _ => Ok(()),
        }
    }

    /// The last lines of the log, for an error message; empty if there are none.
    pub(super) fn last_words(&self) -> Vec<String> {
        last_lines(&self.log).unwrap_or_default()
    }
}

/// A peer that runs, or has just ended.
#[derive(Debug)]
pub(super) struct PeerProcess {
    child: Child,
}

impl PeerProcess {
    /// Its process id; none once it was seen to end.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for its end. Cancel safe.
    ///
    /// # Errors
    /// If the system cannot tell.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Kills it with SIGKILL and waits for its end.
    ///
    /// # Errors
    /// If the system cannot tell.
    pub(super) async fn kill(&mut self) -> io::Result<ExitStatus> {
        self.child.start_kill()?;
        self.child.wait().await
    }

    /// Has it stop in good order; kills it if that takes long, or once there is a hurry. Returns
    /// whether it took too long.
    ///
    /// # Errors
    /// If the system cannot tell.
    pub(super) async fn stop(&mut self, hurry: &CancellationToken) -> io::Result<bool> {
        for grace in [DRAIN_GRACE, STOP_GRACE] {
            self.terminate();
            tokio::select! {
                ended = self.child.wait() => return ended.map(|_| false),
                () = hurry.cancelled() => break,
                () = sleep(grace) => {}
            }
        }
        self.kill().await.map(|_| !hurry.is_cancelled())
    }

    fn terminate(&self) {
        if let Some(pid) = self.pid().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            // It has not been waited for, so the number is still its own.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

fn last_lines(path: &Path) -> io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let start = length.saturating_sub(LAST_WORDS_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let cut_in_two = usize::from(start > 0);
    let lines: Vec<&str> = text
        .lines()
        .skip(cut_in_two)
        .filter(|line| !line.trim().is_empty())
        .collect();
    let skipped = lines.len().saturating_sub(LAST_WORDS_LINES);
    Ok(lines[skipped..]
        .iter()
        .map(|line| (*line).to_owned())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_whole_lines_from_the_end() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("log");
        fs::write(
            &path,
            format!("{}\na\nb\n\nc\nd\ne\nf\n", "x".repeat(9_000)),
        )
        .unwrap();
        assert_eq!(last_lines(&path).unwrap(), ["b", "c", "d", "e", "f"]);
        fs::write(&path, "only\n").unwrap();
        assert_eq!(last_lines(&path).unwrap(), ["only"]);
    }

    #[test]
    fn each_peer_gets_its_own_flags_and_all_peers_names() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::at(root.path()).unwrap();
        let blocks = [1, 2, 3].map(Block::default_of);
        let launch = PeerLaunch::new(&home, 2, &blocks);
        let flag = |name: &str| {
            let at = launch.args.iter().position(|arg| arg == name).unwrap();
            launch.args[at + 1].as_str()
        };
        assert_eq!(launch.args[0], "node");
        assert_eq!(
            flag("--peers"),
            "127.0.0.1:7001,127.0.0.1:7101,127.0.0.1:7201"
        );
        assert_eq!(flag("--peer-addr"), "127.0.0.1:7101");
        assert_eq!(flag("--service-port-base"), "30101");
        assert!(flag("--data-dir").ends_with("/peer-2"));
        assert!(flag("--replica-root").ends_with("/replicas"));
    }
}
