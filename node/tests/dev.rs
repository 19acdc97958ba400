//! `raftserve dev` as a user has it: the built binary, its output, the endpoints it prints, and what
//! is left when it ends in one way or another.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take before it counts as never: far more than it takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The pause between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(20);

/// Two plain replicas that answer quickly to be probed again.
const PLAIN: &str = "\
service:
  readiness_probe:
    path: /
    endpoint_probe_interval_seconds: 1
  replicas: 2
resources:
  ports: 8080
run: python3 -m http.server 8080 --bind 127.0.0.1
";

/// One cluster at a time: each is three peers, and two of them on two cores would slow each other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether python3 can be run. If not, the test is skipped with a line that names it, or fails where
/// tools are required.
#[expect(
    clippy::disallowed_methods,
    reason = "a test is told by its environment whether it may be skipped"
)]
fn has_python() -> bool {
    let found = Command::new("python3").arg("--version").output().is_ok();
    let required = std::env::var_os("RAFTSERVE_REQUIRE_TOOLS").is_some_and(|value| value == "1");
    assert!(
        found || !required,
        "python3 is missing, and tools are required"
    );
    if !found {
        eprintln!("skipped: python3 is missing");
    }
    found
}

/// Looks again and again until there is something to return.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        thread::sleep(PAUSE);
    }
}

/// A `raftserve dev` that runs.
struct Dev {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Dev {
    fn start(scratch: &Path, args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_raftserve"))
            .arg("dev")
            .args(args)
            .env("TMPDIR", scratch)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (tell, lines) = sync_channel(10_000);
        pass_on(child.stdout.take().unwrap(), tell.clone());
        pass_on(child.stderr.take().unwrap(), tell);
        Self {
            child,
            lines,
            seen: Vec::new(),
        }
    }

    /// The first line from here on that `is_it` says something about.
    fn line<T>(&mut self, what: &str, is_it: impl Fn(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    let found = is_it(&line);
                    self.seen.push(line);
                    if let Some(found) = found {
                        return found;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("waited for {what}:\n{}", self.output()),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("it ended before {what}:\n{}", self.output())
                }
            }
        }
    }

    /// Its data directory, as it says itself.
    fn home(&mut self) -> PathBuf {
        self.line("the data directory", |line| {
            let (path, _) = line.strip_prefix("data directory ")?.rsplit_once(" (")?;
            Some(PathBuf::from(path))
        })
    }

    /// The service's URL on each peer, which it says once the service is up.
    fn endpoints(&mut self) -> Vec<String> {
        (1..=3)
            .map(|peer| {
                self.line("the endpoints", |line| {
                    let rest = line.strip_prefix(&format!("  peer {peer}  http://"))?;
                    rest.split_whitespace().next().map(str::to_owned)
                })
            })
            .collect()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for its end.
    fn ended(&mut self) -> ExitStatus {
        let status = until("the end of raftserve dev", || {
            self.child.try_wait().unwrap()
        });
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.seen.push(line);
        }
        status
    }

    fn output(&self) -> String {
        self.seen.join("\n")
    }
}

impl Drop for Dev {
    /// A test that failed half way takes its cluster with it.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pass_on(from: impl Read + Send + 'static, to: SyncSender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if to.send(line).is_err() {
                return;
            }
        }
    });
}

/// The status line of a GET.
fn get(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET / HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

/// What is in the environment of whatever belongs to a data directory: peers and keepers of replicas
/// are marked with the directory, replicas with a mark of their own.
fn marks(home: &Path) -> BTreeSet<String> {
    let mut marks = BTreeSet::from([format!("RAFTSERVE_DEV={}", home.display())]);
    let children = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten();
    for cluster in children(home.join("replicas")) {
        for replica in children(cluster.path()) {
            let Ok(text) = fs::read(replica.path().join("launch.json")) else {
                continue;
            };
            let launch: serde_json::Value = serde_json::from_slice(&text).unwrap();
            marks.insert(format!(
                "RAFTSERVE_REPLICA={}",
                launch["marker"].as_str().unwrap()
            ));
        }
    }
    marks
}

/// The processes that bear one of the marks.
fn marked(marks: &BTreeSet<String>) -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment)
            .split('\0')
            .any(|entry| marks.contains(entry))
    })
    .collect()
}

#[test]
fn serves_through_three_peers_and_ctrl_c_leaves_nothing() {
    if !has_python() {
        return;
    }
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    let yaml = scratch.path().join("web.yaml");
    fs::write(&yaml, PLAIN).unwrap();
    // Taken by us, or by somebody else already, which is as good.
    let _taken = TcpListener::bind("127.0.0.1:7000");
    let mut dev = Dev::start(scratch.path(), &[yaml.to_str().unwrap()]);
    let moved = dev.line("word of the taken port", |line| {
        line.contains("peer 1 moves to ports")
            .then(|| line.to_owned())
    });
    assert!(!moved.contains(" 7000 (admin)"), "{moved}");
    let home = dev.home();
    assert!(home.starts_with(scratch.path().canonicalize().unwrap()));
    let endpoints = dev.endpoints();
    assert_ne!(endpoints[0], "127.0.0.1:30001");
    for endpoint in &endpoints {
        assert_eq!(get(endpoint).unwrap(), "HTTP/1.1 200 OK", "{endpoint}");
    }
    let marks = marks(&home);
    assert_eq!(marks.len(), 3, "one of the directory, one of each replica");
    assert!(
        marked(&marks).len() >= 3 + 2 + 2,
        "peers, keepers and replicas"
    );
    dev.signal(Signal::INT);
    let status = dev.ended();
    assert!(status.success(), "{status}\n{}", dev.output());
    assert_eq!(marked(&marks), [0; 0], "{}", dev.output());
    assert!(!dev.output().contains("killed"), "{}", dev.output());
    assert!(!home.exists());
    for endpoint in &endpoints {
        assert!(get(endpoint).is_err(), "{endpoint}");
    }
}

#[test]
fn sigkill_leaves_nothing_running_and_the_next_run_resumes() {
    if !has_python() {
        return;
    }
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    let yaml = scratch.path().join("file.yaml");
    fs::write(&yaml, PLAIN).unwrap();
    // Deeper than the 108 bytes that a socket's address may have.
    let data = scratch.path().join("d".repeat(120));
    let (yaml_arg, data_arg) = (yaml.to_str().unwrap(), data.to_str().unwrap());
    let args = [yaml_arg, "-n", "web", "--data-dir", data_arg];
    let mut dev = Dev::start(scratch.path(), &args);
    let home = dev.home();
    dev.endpoints();

    let mut second = Dev::start(scratch.path(), &args);
    assert!(!second.ended().success());
    let refusal = second.output();
    assert!(
        refusal.contains(data_arg) && refusal.contains("in use"),
        "{refusal}"
    );

    let marks = marks(&home);
    dev.signal(Signal::KILL);
    dev.ended();
    until("everything to end with it", || {
        marked(&marks).is_empty().then_some(())
    });
    assert!(home.join("peer-1").exists());

    fs::write(&yaml, PLAIN.replace("replicas: 2", "replicas: 1")).unwrap();
    let mut again = Dev::start(scratch.path(), &args);
    again.line("the update", |line| {
        line.contains("service web is updated to version 2")
            .then_some(())
    });
    for endpoint in again.endpoints() {
        assert_eq!(get(&endpoint).unwrap(), "HTTP/1.1 200 OK", "{endpoint}");
    }
    again.signal(Signal::TERM);
    let status = again.ended();
    let output = again.output();
    assert!(status.success(), "{status}\n{output}");
    assert!(output.contains("the data stays in"), "{output}");
    assert!(home.join("peer-1").exists());
    assert_eq!(marked(&marks), [0; 0]);
}

#[test]
fn chaos_fails_no_request_and_moves_no_session() {
    if !has_python() {
        return;
    }
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    let yaml = scratch.path().join("web.yaml");
    let affinity = "_metadata:\n  raftserve:\n    session_affinity:\n      header: x-session-id\n";
    fs::write(&yaml, format!("{PLAIN}{affinity}")).unwrap();
    let mut dev = Dev::start(scratch.path(), &[yaml.to_str().unwrap(), "--chaos", "2s"]);
    let home = dev.home();
    dev.line("the third kill, and every session bound", |line| {
        let (_, count) = line.split_once("peers killed: ")?;
        let kills: u32 = count.split(';').next()?.parse().ok()?;
        (kills >= 3 && line.contains("; 60 bound)")).then_some(())
    });
    let marks = marks(&home);
    dev.signal(Signal::INT);
    let status = dev.ended();
    let output = dev.output();
    assert!(status.success(), "{status}\n{output}");
    let last = output
        .lines()
        .rfind(|line| line.contains("peers killed: "))
        .unwrap();
    assert_eq!(last.matches(" sent, 0 failed").count(), 2, "{output}");
    assert!(last.contains("sessions: 0 moved"), "{output}");
    assert!(last.contains("; 60 bound)"), "{output}");
    assert_eq!(marked(&marks), [0; 0], "{output}");
}

#[test]
fn a_peer_that_was_removed_is_not_started_again() {
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    let data = scratch.path().join("data");
    let args = ["--data-dir", data.to_str().unwrap()];
    let mut dev = Dev::start(scratch.path(), &args);
    let servers = dev.line("the admin ports", |line| {
        let (_, servers) = line.split_once("up SERVICE.yaml --server ")?;
        Some(servers.to_owned())
    });
    let removed = Command::new(env!("CARGO_BIN_EXE_raftserve"))
        .args(["cluster", "remove", "3", "-y", "--server", &servers])
        .output()
        .unwrap();
    assert!(removed.status.success(), "{removed:?}");
    let said = "was removed from the cluster, and is not started again";
    let told = |line: &str| line.contains(said).then_some(());
    dev.line("its removal", told);
    dev.signal(Signal::INT);
    assert!(dev.ended().success(), "{}", dev.output());
    assert!(!dev.output().contains("runs again"), "{}", dev.output());

    // Nor is it waited for the next time.
    let mut again = Dev::start(scratch.path(), &args);
    again.line("its removal", told);
    again.line("the admin ports", |line| {
        line.contains("up SERVICE.yaml --server ").then_some(())
    });
    again.signal(Signal::INT);
    assert!(again.ended().success(), "{}", again.output());
}

#[test]
fn faulty_yaml_is_told_before_anything_is_made() {
    let scratch = tempfile::tempdir().unwrap();
    let yaml = scratch.path().join("web.yaml");
    fs::write(&yaml, PLAIN.replace("replicas:", "replicaz:")).unwrap();
    let data = scratch.path().join("data");
    let args = [yaml.to_str().unwrap(), "--data-dir", data.to_str().unwrap()];
    let mut dev = Dev::start(scratch.path(), &args);
    assert_eq!(dev.ended().code(), Some(2));
    let output = dev.output();
    assert!(
        output.contains("replicaz") && output.contains("line 5"),
        "{output}"
    );
    assert!(!data.exists());
}

#[test]
fn service_that_cannot_come_up_is_told_and_leaves_nothing() {
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    let yaml = scratch.path().join("web.yaml");
    fs::write(&yaml, PLAIN.replace("python3", "no-such-program")).unwrap();
    let mut dev = Dev::start(scratch.path(), &[yaml.to_str().unwrap()]);
    let home = dev.home();
    dev.line("the first failure", |line| {
        line.contains("is FAILED").then_some(())
    });
    let marks = marks(&home);
    assert_eq!(dev.ended().code(), Some(1));
    let last = dev.seen.last().unwrap();
    assert!(
        last.contains("did not come up") && last.contains("no-such-program"),
        "{last}"
    );
    assert_eq!(marked(&marks), [0; 0]);
    assert!(!home.exists());
}
