//! The process provider with real processes: shims of the built binary, shells, signals.
//!
//! Processes are counted by the marker in their environment, as the provider itself finds them, and
//! each test kills what carries its marker when it ends, well or not.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use raftserve_model::spec::{Destination, FileMount, MountContent, MountedFile};
use raftserve_model::{ClusterId, ReplicaId, ServiceId, ServiceVersion};
use raftserve_node::provider::proc_table::{self, Also, ProcessStamp};
use raftserve_node::provider::process::ProcessProvider;
use raftserve_node::provider::record::Record;
use raftserve_node::provider::run_dir::RunDir;
use raftserve_node::provider::{
    End, Exit, LogQuery, Provider, ProviderError, ReplicaKey, ReplicaLaunch, ReplicaState, Step,
};
use raftserve_node::shim::ShimExit;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::net::UnixListener;

/// Far more than anything here takes; only a failure waits so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// A grace that no test waits for to the end.
const LONG: Duration = Duration::from_secs(20);

/// The highest number of a replica in any test.
const REPLICAS_MAX: u32 = 120;

/// Runs until it is told to stop.
const SLEEPER: &str = "exec sleep 1000";

/// A host with a provider's root, and replicas of one service.
struct Host {
    root: PathBuf,
    cluster: ClusterId,
    _directory: TempDir,
}

impl Drop for Host {
    fn drop(&mut self) {
        // First what may still start something.
        for pid in shims(&self.root) {
            signal_if_there(pid, Signal::KILL);
        }
        for number in 1..=REPLICAS_MAX {
            if !self.dir(number).path().exists() {
                continue;
            }
            let _ = proc_table::sweep(&self.marker(number), Also::Nobody);
        }
    }
}

impl Host {
    fn new() -> Self {
        Self::below("")
    }

    fn below(path: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            root: directory.path().join(path),
            cluster: ClusterId(rand::random()),
            _directory: directory,
        }
    }

    fn provider(&self) -> ProcessProvider {
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_raftserve"));
        ProcessProvider::with_executable(&self.root, self.cluster, binary, None).unwrap()
    }

    fn dir(&self, number: u32) -> RunDir {
        let cluster = self.root.join(self.cluster.to_string());
        RunDir::new(cluster.join(key(number).to_string()))
    }

    fn marker(&self, number: u32) -> String {
        format!("{}/{}", self.cluster, key(number).id)
    }

    /// The live processes of a replica, its shim not among them.
    fn processes(&self, number: u32) -> Vec<i32> {
        proc_table::marked(&self.marker(number)).unwrap()
    }

    fn assert_none_run(&self, number: u32) {
        let left = self.processes(number);
        assert!(left.is_empty(), "replica {number} still runs: {left:?}");
    }

    fn record(&self, number: u32) -> Record {
        self.dir(number).record().unwrap().unwrap()
    }

    /// The replica's program, once its shell runs and can be counted.
    async fn child(&self, number: u32) -> ProcessStamp {
        eventually("the program runs", async || {
            let child = self.record(number).child?;
            self.processes(number).contains(&child.pid).then_some(child)
        })
        .await
    }

    /// The process of [`SLEEPER`], once its shell has given way to it. In the `exec` between the two
    /// it cannot be counted, and the shell forgets a deadly signal that comes just before.
    async fn sleeper(&self, number: u32) -> ProcessStamp {
        eventually("it sleeps", async || {
            let child = self.child(number).await;
            let arguments = std::fs::read(format!("/proc/{}/cmdline", child.pid)).ok()?;
            arguments.starts_with(b"sleep").then_some(child)
        })
        .await
    }

    /// A shim started by hand, as by a leader that was paused after all its checks.
    fn late_shim(&self, number: u32) -> tokio::process::Child {
        tokio::process::Command::new(env!("CARGO_BIN_EXE_raftserve"))
            .args(["replica-shim", "--dir"])
            .arg(self.dir(number).path())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    /// Prepares a replica without starting anything.
    async fn prepare(&self, number: u32) {
        let provider = ProcessProvider::with_executable(
            &self.root,
            self.cluster,
            "/no/such/binary".into(),
            None,
        )
        .unwrap();
        provider.ensure(launch(number, SLEEPER)).await.unwrap_err();
    }
}

fn key(number: u32) -> ReplicaKey {
    ReplicaKey {
        name: "svc".parse().unwrap(),
        id: ReplicaId {
            service: ServiceId(5),
            number,
        },
    }
}

fn launch(number: u32, run: &str) -> ReplicaLaunch {
    ReplicaLaunch {
        replica: key(number),
        version: ServiceVersion(1),
        setup: None,
        run: run.to_owned(),
        envs: BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]),
        secrets: BTreeMap::new(),
        resources: BTreeMap::new(),
        placement: raftserve_model::spec::Placement::default(),
        file_mounts: Vec::new(),
        port: 20_000,
        stop_grace: LONG,
        lifeline: None,
    }
}

/// Waits until `look` finds something.
async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    in_time(what, found).await
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

async fn state(provider: &ProcessProvider, number: u32) -> Option<ReplicaState> {
    let seen = provider.observe().await.unwrap();
    seen.into_iter()
        .find(|seen| seen.replica == key(number))
        .map(|seen| seen.state)
}

/// Waits for the replica's end by the provider's own notices.
async fn ended(provider: &ProcessProvider, number: u32) -> Exit {
    let mut changes = provider.changes();
    in_time("it ends", async {
        loop {
            changes.borrow_and_update();
            if let Some(ReplicaState::Exited(exit)) = state(provider, number).await {
                return exit;
            }
            changes.changed().await.unwrap();
        }
    })
    .await
}

/// Everything that the replica has said.
async fn output(provider: &ProcessProvider, number: u32, query: LogQuery) -> String {
    let replica = key(number);
    let mut stream = provider.logs(&replica, query).await.unwrap();
    let mut bytes = Vec::new();
    in_time("the output ends", async {
        while let Some(piece) = stream.next().await {
            bytes.extend_from_slice(&piece.unwrap());
        }
    })
    .await;
    String::from_utf8(bytes).unwrap()
}

/// The shims that work below `path`.
fn shims(path: &Path) -> Vec<i32> {
    let works_below = |pid: &i32| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut arguments = arguments.split(|byte| *byte == 0);
        arguments.next();
        arguments.next() == Some(b"replica-shim")
            && arguments.any(|text| text.starts_with(path.as_os_str().as_encoded_bytes()))
    };
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter(works_below)
        .collect()
}

fn signal_if_there(pid: i32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

const FOLLOW: LogQuery = LogQuery {
    follow: true,
    tail: None,
};

#[tokio::test(flavor = "multi_thread")]
async fn files_are_there_before_setup_and_go_with_the_replica() {
    let host = Host::new();
    let provider = host.provider();
    let mount = |destination, mode, text: &str| FileMount {
        destination,
        content: MountContent::File(MountedFile {
            mode,
            bytes: text.as_bytes().into(),
        }),
    };
    let files = ReplicaLaunch {
        setup: Some("./bin/greet".to_owned()),
        file_mounts: vec![
            mount(Destination::Home(".name".to_owned()), 0o600, "you"),
            mount(
                Destination::Working("bin/greet".to_owned()),
                0o755,
                "#!/bin/sh\necho hello $(cat ~/.name)\n",
            ),
        ],
        ..launch(1, "cd / && ls -l ~/.name && exec sleep 1000")
    };
    // Started by one that has the files, and by one that died before its program began.
    let nobody =
        ProcessProvider::with_executable(&host.root, host.cluster, "/no/binary".into(), None);
    let nobody = nobody.unwrap();
    nobody.ensure(files.clone()).await.unwrap_err();
    assert!(host.dir(1).path().join("files.bin").exists());
    provider.ensure(files.clone()).await.unwrap();
    host.sleeper(1).await;
    let work = host.dir(1).work();
    // What was written is kept a moment later.
    let said = eventually("the program's output", async || {
        let said = output(&provider, 1, LogQuery::default()).await;
        said.contains(".name").then_some(said)
    })
    .await;
    assert!(said.contains("hello you"), "{said}");
    assert!(said.contains("-rw-------"), "{said}");
    assert!(
        said.contains(&work.join(".name").display().to_string()),
        "{said}"
    );
    assert!(!host.dir(1).path().join("files.bin").exists());

    // A second creation is none, and changes no file that the program may have changed.
    std::fs::write(work.join(".name"), "me").unwrap();
    provider.ensure(files.clone()).await.unwrap();
    assert_eq!(std::fs::read(work.join(".name")).unwrap(), b"me");
    provider.stop(&key(1), LONG).await.unwrap();
    assert!(!work.exists());

    // One that is stopped before its program ever began leaves none.
    let never = ReplicaLaunch {
        replica: key(2),
        ..files
    };
    nobody.ensure(never.clone()).await.unwrap_err();
    assert!(host.dir(2).path().join("files.bin").exists());
    provider.stop(&key(2), LONG).await.unwrap();
    let late = provider.ensure(never).await.unwrap_err();
    assert!(matches!(late, ProviderError::Tombstoned(_)), "{late}");
    assert!(!host.dir(2).path().join("files.bin").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_leaders_at_once_start_one_program() {
    let host = Host::new();
    let (one, two) = (host.provider(), host.provider());
    for number in 1..=5 {
        let both = tokio::join!(
            one.ensure(launch(number, SLEEPER)),
            two.ensure(launch(number, SLEEPER)),
        );
        both.0.unwrap();
        both.1.unwrap();
        let child = host.sleeper(number).await;
        one.ensure(launch(number, SLEEPER)).await.unwrap();
        assert_eq!(host.processes(number), [child.pid]);
        let running = ReplicaState::Running {
            address: "127.0.0.1:20000".to_owned(),
        };
        assert_eq!(state(&two, number).await, Some(running));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_and_directory_are_the_replicas_own() {
    let host = Host::new();
    let provider = host.provider();
    let mut wanted = launch(
        3,
        "echo run $GREETING $PORT $SKYPILOT_SERVE_REPLICA_ID; pwd; cat made",
    );
    wanted.setup = Some("echo setup >&2; echo by setup > made".to_owned());
    provider.ensure(wanted).await.unwrap();
    let exit = ended(&provider, 3).await;
    assert_eq!((exit.step, exit.end), (Step::Run, End::Code(0)));
    let work = host.dir(3).work();
    assert_eq!(
        output(&provider, 3, FOLLOW).await,
        format!("setup\nrun hello 20000 3\n{}\nby setup\n", work.display())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_is_pushed_with_its_signal_and_never_started_again() {
    let host = Host::new();
    let provider = host.provider();
    provider.ensure(launch(1, SLEEPER)).await.unwrap();
    signal(host.sleeper(1).await.pid, Signal::SEGV);
    let exit = ended(&provider, 1).await;
    assert_eq!(exit.end, End::Signal(11));
    assert!(exit.message.contains("SIGSEGV"), "{}", exit.message);
    provider.ensure(launch(1, SLEEPER)).await.unwrap();
    assert!(matches!(
        state(&provider, 1).await,
        Some(ReplicaState::Exited(_))
    ));
    host.assert_none_run(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_setup_is_told_and_run_is_not_begun() {
    let host = Host::new();
    let provider = host.provider();
    let mut wanted = launch(1, "touch ../begun");
    wanted.setup = Some("echo no luck; exit 4".to_owned());
    provider.ensure(wanted).await.unwrap();
    let exit = ended(&provider, 1).await;
    assert_eq!((exit.step, exit.end), (Step::Setup, End::Code(4)));
    assert_eq!(exit.message, "setup exited with code 4: no luck");
    assert!(!host.dir(1).path().join("begun").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_program_is_named() {
    let host = Host::new();
    let provider = host.provider();
    provider
        .ensure(launch(1, "python3x -m http.server"))
        .await
        .unwrap();
    let exit = ended(&provider, 1).await;
    assert_eq!(exit.end, End::Code(127));
    assert_eq!(
        exit.message,
        "run: program not found: python3x (exit code 127)"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_shim_binary_is_named() {
    let host = Host::new();
    let provider = ProcessProvider::with_executable(
        &host.root,
        host.cluster,
        "/no/such/raftserve".into(),
        None,
    )
    .unwrap();
    let error = provider.ensure(launch(1, SLEEPER)).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/raftserve"), "{error}");
    assert_eq!(state(&provider, 1).await, Some(ReplicaState::Prepared));
    host.provider().ensure(launch(1, SLEEPER)).await.unwrap();
    host.sleeper(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn death_of_the_shim_takes_the_program_along_and_a_stop_sweeps_the_rest() {
    let host = Host::new();
    let provider = host.provider();
    // The second sleeper is not a child of the shim: only the marker finds it.
    provider
        .ensure(launch(1, "setsid sleep 1000 & sleep 1000; true"))
        .await
        .unwrap();
    let child = host.child(1).await;
    eventually("all of it runs", async || {
        (host.processes(1).len() == 3).then_some(())
    })
    .await;
    host.record(1).shim.kill().unwrap();
    assert_eq!(ended(&provider, 1).await.end, End::Lost);
    eventually("the program dies", async || {
        (!child.is_alive()).then_some(())
    })
    .await;
    provider.stop(&key(1), LONG).await.unwrap();
    host.assert_none_run(1);
    assert_eq!(state(&provider, 1).await, Some(ReplicaState::Stopped));
}

#[tokio::test(flavor = "multi_thread")]
async fn ensuring_a_lost_replica_sweeps_it_and_starts_nothing() {
    let host = Host::new();
    let provider = host.provider();
    provider
        .ensure(launch(1, "sleep 1000 & sleep 1000; true"))
        .await
        .unwrap();
    eventually("all of it runs", async || {
        (host.processes(1).len() == 3).then_some(())
    })
    .await;
    host.record(1).shim.kill().unwrap();
    ended(&provider, 1).await;
    provider.ensure(launch(1, SLEEPER)).await.unwrap();
    host.assert_none_run(1);
    assert_eq!(ended(&provider, 1).await.end, End::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_lets_the_whole_group_finish() {
    let host = Host::new();
    let provider = host.provider();
    // The shell itself dies of the signal at once; its child takes its time.
    let run =
        "(trap 'sleep 0.3; echo finished; exit' TERM; echo up; while :; do sleep 0.05; done); true";
    provider.ensure(launch(1, run)).await.unwrap();
    eventually("it traps", async || {
        (output(&provider, 1, LogQuery::default()).await == "up\n").then_some(())
    })
    .await;
    provider.stop(&key(1), LONG).await.unwrap();
    let text = output(&provider, 1, FOLLOW).await;
    assert!(text.ends_with("finished\n"), "{text}");
    host.assert_none_run(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_kills_what_ignores_it_and_sweeps_grandchildren() {
    let host = Host::new();
    let provider = host.provider();
    // One that ignores SIGTERM, one in another session, one that dropped its environment too.
    let run = "trap '' TERM; setsid sleep 1000 & env -i setsid sleep 1000 & echo $!; echo up; while :; do sleep 1; done";
    provider.ensure(launch(1, run)).await.unwrap();
    let bare = eventually("all of it runs", async || {
        let text = output(&provider, 1, LogQuery::default()).await;
        text.strip_suffix("\nup\n").map(|pid| pid.parse().unwrap())
    })
    .await;
    let bare = proc_table::stat(bare).unwrap().stamp;
    provider
        .stop(&key(1), Duration::from_millis(200))
        .await
        .unwrap();
    host.assert_none_run(1);
    assert!(!bare.is_alive());
    let exit = host.record(1).phase;
    assert!(format!("{exit:?}").contains("Signal(9)"), "{exit:?}");
    provider.stop(&key(1), LONG).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn late_ensure_does_not_bring_a_stopped_replica_back() {
    let host = Host::new();
    let (old, new) = (host.provider(), host.provider());
    // Stopped while it ran, and stopped before it ever began.
    old.ensure(launch(1, SLEEPER)).await.unwrap();
    for number in [1, 2] {
        new.stop(&key(number), LONG).await.unwrap();
        for forgotten in [false, true] {
            if forgotten {
                new.forget(key(number).id.service).await.unwrap();
            }
            let late = old.ensure(launch(number, SLEEPER)).await;
            assert!(
                matches!(late, Err(ProviderError::Tombstoned(_))),
                "{late:?}"
            );
        }
        host.assert_none_run(number);
        assert_eq!(state(&old, number).await, Some(ReplicaState::Stopped));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn racing_ensure_and_stop_leave_nothing() {
    let host = Host::new();
    let (old, new) = (host.provider(), host.provider());
    for number in 1..=20 {
        let replica = key(number);
        let (ensured, stopped) = tokio::join!(old.ensure(launch(number, SLEEPER)), async {
            tokio::time::sleep(Duration::from_micros(rand::random_range(0..15_000))).await;
            new.stop(&replica, LONG).await
        });
        stopped.unwrap();
        match ensured {
            Ok(_) | Err(ProviderError::Tombstoned(_)) => {}
            Err(error) => panic!("{error}"),
        }
        host.assert_none_run(number);
        assert_eq!(state(&new, number).await, Some(ReplicaState::Stopped));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn late_shim_finds_the_tombstone() {
    let host = Host::new();
    host.prepare(1).await;
    host.dir(1).write_tombstone().unwrap();
    let mut late = host.late_shim(1);
    let exit = in_time("it leaves", late.wait()).await.unwrap();
    assert_eq!(
        ShimExit::from_code(exit.code().unwrap()),
        Some(ShimExit::Tombstoned)
    );
    assert_eq!(host.dir(1).record().unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_and_a_starting_shim_never_miss_each_other() {
    let host = Host::new();
    let provider = host.provider();
    for number in 1..=60 {
        host.prepare(number).await;
        let mut late = host.late_shim(number);
        let moment = Duration::from_micros(rand::random_range(0..6_000));
        tokio::time::sleep(moment).await;
        provider.stop(&key(number), LONG).await.unwrap();
        let exit = in_time("it leaves", late.wait()).await.unwrap();
        assert!(exit.code().is_some(), "{exit:?}");
        host.assert_none_run(number);
        assert_eq!(state(&provider, number).await, Some(ReplicaState::Stopped));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn zombie_under_a_paused_shim_counts_as_dead_and_can_be_stopped() {
    let host = Host::new();
    let provider = host.provider();
    provider.ensure(launch(1, SLEEPER)).await.unwrap();
    let child = host.sleeper(1).await;
    let shim = host.record(1).shim;
    signal(shim.pid, Signal::STOP);
    signal(child.pid, Signal::KILL);
    let exit = ended(&provider, 1).await;
    assert_eq!(exit.end, End::Signal(9));
    assert!(exit.message.contains("does not answer"), "{}", exit.message);
    provider.stop(&key(1), Duration::ZERO).await.unwrap();
    assert!(!shim.is_alive());
    assert_eq!(state(&provider, 1).await, Some(ReplicaState::Stopped));
}

#[tokio::test(flavor = "multi_thread")]
async fn end_of_the_lifeline_stops_the_replica_at_once() {
    let host = Host::new();
    let provider = host.provider();
    std::fs::create_dir_all(&host.root).unwrap();
    let mut wanted = launch(1, "trap '' TERM; sleep 1000 & sleep 1000");
    let path = host.root.join("lifeline");
    wanted.lifeline = Some(path.clone());
    let refused = provider.ensure(wanted.clone()).await.unwrap_err();
    assert!(refused.to_string().contains("lifeline"), "{refused}");
    host.assert_none_run(1);

    let listener = UnixListener::bind(path).unwrap();
    provider.ensure(wanted).await.unwrap();
    let (held, _) = in_time("the shim calls", listener.accept()).await.unwrap();
    host.child(1).await;
    drop(held);
    assert_eq!(ended(&provider, 1).await.end, End::Signal(9));
    host.assert_none_run(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_data_directory_works() {
    let deep = format!("{}/{}", "a".repeat(120), "b".repeat(120));
    let host = Host::below(&deep);
    let provider = host.provider();
    provider.ensure(launch(1, SLEEPER)).await.unwrap();
    host.sleeper(1).await;
    provider.stop(&key(1), LONG).await.unwrap();
    host.assert_none_run(1);
    assert!(Path::new(&host.root).as_os_str().len() > 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_followed_across_rotation_and_tailed() {
    let host = Host::new();
    let provider = host.provider();
    // 24 MB: the first file is moved twice, and nothing of it dropped.
    let run = "for part in 1 2 3; do seq -f \"$part %015.0f\" 1 444444; done; sleep 0.2; echo end";
    provider.ensure(launch(1, run)).await.unwrap();
    let all = output(&provider, 1, FOLLOW).await;
    assert_eq!(all.lines().count(), 3 * 444_444 + 1);
    let mut lines = all.lines();
    for part in 1..=3 {
        for number in 1..=444_444 {
            assert_eq!(lines.next(), Some(format!("{part} {number:015}").as_str()));
        }
    }
    assert_eq!(lines.next(), Some("end"));
    let files = std::fs::read_dir(host.dir(1).log()).unwrap().count();
    assert_eq!(files, 3);
    ended(&provider, 1).await;
    let query = LogQuery {
        follow: false,
        tail: Some(2),
    };
    assert_eq!(
        output(&provider, 1, query).await,
        format!("3 {:015}\nend\n", 444_444)
    );
    let nobody = key(9);
    assert!(matches!(
        provider.logs(&nobody, query).await.map(|_| ()),
        Err(ProviderError::Unknown(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn long_text_runs_from_a_file() {
    let host = Host::new();
    let provider = host.provider();
    let run = format!(": {}\necho ran", "x".repeat(300 << 10));
    provider.ensure(launch(1, &run)).await.unwrap();
    assert_eq!(ended(&provider, 1).await.end, End::Code(0));
    assert_eq!(output(&provider, 1, FOLLOW).await, "ran\n");
}

/// What the killed leader was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Ensure,
    Stop,
}

/// The variables by which a test tells a process that it starts to be a leader.
const LEADER: &str = "PROCESS_PROVIDER_TEST_LEADER";

/// Not a test by itself: the leader that `leader_killed_at_any_moment_...` starts and kills.
#[tokio::test(flavor = "multi_thread")]
async fn leader_of_another_test() {
    #[expect(
        clippy::disallowed_methods,
        reason = "set by the test that starts this one"
    )]
    let Ok(order) = std::env::var(LEADER) else {
        return;
    };
    let [root, cluster, number, act] = order.split('|').collect::<Vec<_>>()[..] else {
        panic!("{order}");
    };
    let number = number.parse().unwrap();
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_raftserve"));
    let provider =
        ProcessProvider::with_executable(root.as_ref(), cluster.parse().unwrap(), binary, None)
            .unwrap();
    std::fs::write(format!("{root}/go-{number}"), "").unwrap();
    match act {
        "Ensure" => drop(provider.ensure(launch(number, SLEEPER)).await.unwrap()),
        _ => provider.stop(&key(number), LONG).await.unwrap(),
    }
    std::future::pending().await
}

/// Lets a process of its own do `act`, and kills it somewhere on the way.
async fn killed_leader(host: &Host, number: u32, act: Act) {
    let order = format!("{}|{}|{number}|{act:?}", host.root.display(), host.cluster);
    let mut leader = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "leader_of_another_test"])
        .env(LEADER, order)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let go = host.root.join(format!("go-{number}"));
    eventually("the leader begins", async || go.exists().then_some(())).await;
    // As often in the first tenths of a millisecond as in the last ones of ten.
    let moment =
        Duration::from_micros(1 << rand::random_range(3..14)).mul_f64(rand::random_range(1.0..2.0));
    tokio::time::sleep(moment).await;
    leader.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn leader_killed_at_any_moment_doubles_nothing_and_leaves_nothing() {
    let host = Host::new();
    let next = host.provider();
    let begun = std::time::Instant::now();
    let mut kept = Vec::new();
    let mut stopped = Vec::new();
    let mut outcomes = BTreeMap::<String, u32>::new();
    for number in 1..=REPLICAS_MAX {
        if begun.elapsed() > Duration::from_secs(10) {
            break;
        }
        let act = if number % 3 == 0 {
            Act::Stop
        } else {
            Act::Ensure
        };
        if act == Act::Stop {
            next.ensure(launch(number, SLEEPER)).await.unwrap();
        }
        killed_leader(&host, number, act).await;
        let found = state(&next, number).await;
        let found = format!("{act:?}: {found:?}");
        *outcomes.entry(found).or_default() += 1;
        // The next leader acts on the same intent, or on a user's change of mind.
        if act == Act::Ensure && number % 3 == 1 {
            next.ensure(launch(number, SLEEPER)).await.unwrap();
            kept.push(number);
        } else {
            next.stop(&key(number), LONG).await.unwrap();
            stopped.push(number);
        }
    }
    // The moments differ from run to run; this is for whoever tunes them.
    println!("{outcomes:?}");
    for number in &kept {
        let child = host.sleeper(*number).await;
        assert_eq!(host.processes(*number), [child.pid]);
    }
    for number in &stopped {
        host.assert_none_run(*number);
    }
    eventually("one shim is left for each replica", async || {
        (shims(&host.root).len() == kept.len()).then_some(())
    })
    .await;
    for number in kept {
        next.stop(&key(number), LONG).await.unwrap();
        host.assert_none_run(number);
    }
    eventually("no shim is left", async || {
        shims(&host.root).is_empty().then_some(())
    })
    .await;
}
