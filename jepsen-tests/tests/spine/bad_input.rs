//! Whatever is wrong with the input: one clear error that names it and the remedy, an exit code, and
//! nothing half done.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use jepsen_tests::cli::Ran;
use jepsen_tests::cluster::{Cluster, Options, PATIENCE};
use jepsen_tests::peer::{Company, PeerSetup};
use jepsen_tests::ports::PortBlock;
use jepsen_tests::program::Service;
use jepsen_tests::wait;

use crate::stage::{self, SETTLE, Share, bring_up};

/// Exit codes, as `raftserve --help` says.
const EXIT_USAGE: i32 = 2;
const EXIT_NOT_FOUND: i32 = 3;
const EXIT_REFUSED: i32 = 6;

/// How long a peer that cannot start may take to say so.
const REFUSED_MAX: Duration = Duration::from_secs(15);

/// A YAML with an error, and what the message must name.
struct BadYaml {
    yaml: &'static str,
    names: &'static [&'static str],
}

const BAD_YAMLS: [BadYaml; 9] = [
    BadYaml {
        yaml: "service:\n  readiness_probe: /\n  replicass: 2\nresources:\n  ports: 8080\nrun: x\n",
        names: &["replicass", "bad.yaml:3", "replicas"],
    },
    BadYaml {
        yaml: "servce:\n  replicas: 2\nrun: x\n",
        names: &["servce", "bad.yaml:1"],
    },
    BadYaml {
        yaml: "service:\n  replicas: two\nresources:\n  ports: 8080\nrun: x\n",
        names: &["service.replicas", "bad.yaml:2", "two"],
    },
    BadYaml {
        yaml: "service:\n  readiness_probe: health\nresources:\n  ports: 8080\nrun: x\n",
        names: &["readiness_probe", "bad.yaml:2", "/"],
    },
    BadYaml {
        yaml: "service:\n  replicas: 2\n  replica_policy:\n    min_replicas: 1\nresources:\n  \
               ports: 8080\nrun: x\n",
        names: &["replicas", "replica_policy"],
    },
    BadYaml {
        yaml: "service:\n  replicas: 1\nresources:\n  ports: 8080\nrun: ''\n",
        names: &["run", "bad.yaml:5"],
    },
    BadYaml {
        yaml: "service:\n  replicas: 1\nresources:\n  ports: 8080\nrun: x\n_metadata:\n  \
               raftserve:\n    session_affinity:\n      header: x-a\n      cookie: b\n",
        names: &["header", "cookie", "bad.yaml:10"],
    },
    BadYaml {
        yaml: "service:\n  replicas: 1\nresources:\n  ports: 8080\nrun: x\n_metadata:\n  \
               raftserve:\n    provder: process\n",
        names: &["provder", "bad.yaml:8"],
    },
    BadYaml {
        yaml: "service: [1\nrun: x\n",
        names: &["bad.yaml"],
    },
];

/// One error, on standard error only, that says everything in `names`.
fn check_refusal(ran: &Ran, code: i32, names: &[&str]) -> anyhow::Result<()> {
    ensure!(ran.code == Some(code), "exit code {code} is due: {ran:?}");
    ensure!(ran.stdout.is_empty(), "{ran:?}");
    let errors = ran.stderr.matches("error:").count();
    ensure!(errors == 1, "{errors} errors: {ran:?}");
    ensure!(!ran.stderr.contains("panicked"), "{ran:?}");
    for name in names {
        ensure!(
            ran.stderr.contains(name),
            "it does not name {name:?}: {ran:?}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_yaml_is_refused_by_name_and_nothing_changes() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let (cluster, counters) = stage::one_peer().await?;
        let cli = cluster.cli(0);
        let path = cluster.path("bad.yaml");
        let file = path.to_str().context("a path in UTF-8")?;
        for bad in &BAD_YAMLS {
            fs::write(&path, bad.yaml)?;
            let ran = cli.run(&["up", file, "-n", "bad", "-y"]).await?;
            check_refusal(&ran, EXIT_USAGE, bad.names).context(bad.yaml)?;
        }
        fs::write(&path, [0x66, 0xff, 0xfe])?;
        let ran = cli.run(&["up", file, "-n", "bad", "-y"]).await?;
        check_refusal(&ran, EXIT_USAGE, &["bad.yaml"])?;
        let ran = cli.run(&["up", "/nowhere/a.yaml", "-y"]).await?;
        check_refusal(&ran, EXIT_NOT_FOUND, &["/nowhere/a.yaml"])?;
        ensure!(
            cluster.admin(0).services().await?.is_empty(),
            "something was made"
        );

        let service = Service::new("web", 1, &counters);
        bring_up(&cluster, &service).await?;
        let before = cluster.settled("web", SETTLE).await?;
        fs::write(&path, service.clone().with_tag("v2").yaml())?;
        let ran = cli.run(&["up", file, "-y"]).await?;
        check_refusal(&ran, EXIT_REFUSED, &["web", "exists", "raftserve update"])?;
        let ran = cli.run(&["update", "nobody", file, "-y"]).await?;
        check_refusal(&ran, EXIT_NOT_FOUND, &["nobody"])?;
        fs::write(&path, BAD_YAMLS[0].yaml)?;
        let ran = cli.run(&["update", "web", file, "-y"]).await?;
        check_refusal(&ran, EXIT_USAGE, BAD_YAMLS[0].names)?;
        let ran = cli.run(&["terminate-replica", "web", "9", "-y"]).await?;
        check_refusal(&ran, EXIT_NOT_FOUND, &["web", "9"])?;
        let found = cluster.admin(0).service("web").await?;
        let version = found.context("the service is gone")?.version;
        ensure!(version == 1, "version {version}");
        let after = cluster.settled("web", SETTLE).await?;
        ensure!(before == after, "before {before:?}, after {after:?}");
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_yaml_is_checked_without_any_peer() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        // None of its peers is started.
        let cluster = Cluster::prepare(&Options::default())?;
        let cli = cluster.cli(0);
        let path = cluster.path("bad.yaml");
        let file = path.to_str().context("a path in UTF-8")?;
        for verb in [&["up", file, "--dry-run"][..], &["update", "web", file, "--dry-run"]] {
            for bad in &BAD_YAMLS {
                fs::write(&path, bad.yaml)?;
                let ran = cli.run(verb).await?;
                check_refusal(&ran, EXIT_USAGE, bad.names).context(bad.yaml)?;
            }
            let good = "name: web\nservice: {replicas: 2}\nresources: {ports: 8080, use_spot: yes}\nrun: x 8080\n";
            fs::write(&path, good)?;
            let ran = cli.run(verb).await?;
            ensure!(ran.code == Some(0), "{ran:?}");
            ensure!(ran.stdout.contains("service web with 2 replicas"), "{ran:?}");
            ensure!(ran.stderr.contains("resources.use_spot needs"), "{ran:?}");
        }
        cluster.pass();
        Ok(())
    })
    .await
}

/// Starts a peer that cannot begin, and checks that it ends soon, with a failure, having named `names`.
async fn check_no_start(cluster: &mut Cluster, peer: usize, names: &[&str]) -> anyhow::Result<()> {
    let log = &cluster.peer(peer).setup.log;
    let before = fs::read_to_string(log).map_or(0, |text| text.len());
    let log = log.clone();
    cluster.peer_mut(peer).start()?;
    let status = cluster.peer_mut(peer).ended(REFUSED_MAX).await?;
    let said = fs::read_to_string(log)?.split_off(before);
    ensure!(
        status.code().is_some_and(|code| code != 0),
        "{status}: {said}"
    );
    ensure!(!said.contains("panicked"), "{said}");
    for name in names {
        ensure!(said.contains(name), "it does not name {name:?}: {said}");
    }
    Ok(())
}

/// Starts a peer that can, and waits until it is ready.
async fn check_starts(cluster: &mut Cluster, peer: usize) -> anyhow::Result<()> {
    let peer = cluster.peer_mut(peer);
    peer.start()?;
    wait::until("a ready peer", PATIENCE, async || peer.check_ready().await).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_is_named_and_leaves_the_peer_startable() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let options = Options {
            peers: 1,
            ..Options::default()
        };
        let mut cluster = Cluster::prepare(&options)?;
        let ports = cluster.peer(0).setup.ports;
        for address in [ports.proxy, ports.admin, ports.peer, ports.ops] {
            let holder = TcpListener::bind(address)?;
            let named = address.to_string();
            check_no_start(&mut cluster, 0, &[&named, "in use"])
                .await
                .with_context(|| format!("{address} of {ports:?}"))?;
            drop(holder);
        }
        check_starts(&mut cluster, 0).await?;
        let stopped = cluster.peer_mut(0).stop(PATIENCE).await?;
        ensure!(stopped.success(), "SIGTERM: {stopped}");
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_cannot_be_used_are_refused_before_anything_is_begun() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let options = Options {
            peers: 1,
            ..Options::default()
        };
        let mut cluster = Cluster::prepare(&options)?;
        for (flag, path) in [
            ("--tls-dir", "/no/such/certificates"),
            ("--access-log", "/no/such/folder/access.log"),
        ] {
            cluster.peer_mut(0).setup.flags = vec![flag.to_owned(), path.to_owned()];
            check_no_start(&mut cluster, 0, &[path]).await?;
            let directory = &cluster.peer(0).setup.data_dir;
            ensure!(!directory.join("NODE").exists(), "{flag}: a peer began");
        }
        let nowhere = "/no/such/kubeconfig";
        let setup = &mut cluster.peer_mut(0).setup;
        setup.flags = ["--provider", "kubernetes"].map(str::to_owned).into();
        setup.environment = vec![("KUBECONFIG".into(), nowhere.into())];
        let (data, log) = (setup.data_dir.clone(), setup.log.clone());
        check_no_start(&mut cluster, 0, &["set KUBECONFIG"]).await?;
        let said = fs::read_to_string(log)?;
        ensure!(said.matches(nowhere).count() == 1, "{said}");
        ensure!(!data.join("NODE").exists(), "a peer began: {said}");
        cluster.peer_mut(0).setup.environment.clear();

        cluster.peer_mut(0).setup.flags.clear();
        check_starts(&mut cluster, 0).await?;
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_is_foreign_or_in_use_is_refused_by_name() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let (mut cluster, counters) = stage::three_peers().await?;
        let service = Service::new("web", 1, &counters);
        bring_up(&cluster, &service).await?;
        let own_id = cluster.cluster_id()?.to_owned();
        let own = cluster.peer(2).setup.clone();

        // Another peer's, while it runs.
        let in_use = cluster.peer(1).setup.data_dir.clone();
        cluster.kill(2)?;
        cluster.peer_mut(2).setup.data_dir = in_use.clone();
        let named = in_use.to_string_lossy().into_owned();
        check_no_start(&mut cluster, 2, &[&named]).await?;

        // Of another cluster, which this peer was alone: elsewhere, since where one is no other is founded.
        let elsewhere = PortBlock::take()?;
        let foreign = cluster.path("foreign");
        fs::create_dir_all(&foreign)?;
        let setup = &mut cluster.peer_mut(2).setup;
        setup.ports = elsewhere.peer(0);
        setup.company = Company::Named(vec![setup.ports.peer.to_string()]);
        setup.replica_root = foreign.join("replicas");
        setup.data_dir = foreign.join("data");
        check_starts(&mut cluster, 2).await?;
        let foreign_id = cluster.admin(2).status().await?.cluster_id;
        ensure!(foreign_id != own_id, "{foreign_id} twice");
        cluster.peer_mut(2).kill()?;
        cluster.peer_mut(2).setup = PeerSetup {
            data_dir: foreign.join("data"),
            ..own.clone()
        };
        check_no_start(&mut cluster, 2, &[&foreign_id, &own_id]).await?;

        // None of it has touched the cluster, nor the peer's own directory.
        cluster.peer_mut(2).setup = own;
        cluster.restart(2).await?;
        let found = cluster.admin(2).service("web").await?;
        ensure!(
            found.is_some_and(|it| it.version == 1),
            "the service changed"
        );
        cluster.settled("web", SETTLE).await?;
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_peers_join_the_cluster_that_exists_and_never_start_another() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let mut cluster = Cluster::prepare(&Options::default())?;
        cluster.peer_mut(2).setup.company = Company::Named(vec![cluster.peer(2).address()]);
        check_starts(&mut cluster, 2).await?;
        let existing = cluster.admin(2).status().await?.cluster_id;
        for peer in [0, 1] {
            check_starts(&mut cluster, peer).await?;
            let joined = cluster.admin(peer).status().await?.cluster_id;
            ensure!(joined == existing, "{joined} beside {existing}");
        }
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_log_record_is_refused_with_its_place() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let (mut cluster, counters) = stage::one_peer().await?;
        let service = Service::new("web", 1, &counters);
        bring_up(&cluster, &service).await?;
        for note in 1..=20 {
            let yaml = service.clone().with_note(note).yaml();
            cluster.admin(0).update("web", &yaml).await?;
        }
        cluster.kill(0)?;
        let segment = first_segment(&cluster.peer(0).setup.data_dir.join("wal"))?;
        let whole = fs::read(&segment)?;
        let used = whole.iter().rposition(|byte| *byte != 0).unwrap_or(0);
        let mut damaged = whole.clone();
        damaged[used / 2] ^= 0x10;
        fs::write(&segment, &damaged)?;
        let named = segment.to_string_lossy().into_owned();
        check_no_start(&mut cluster, 0, &[&named, "corrupt", "byte"]).await?;
        ensure!(
            fs::read(&segment)? == damaged,
            "the damage was tampered with"
        );

        fs::write(&segment, &whole)?;
        cluster.restart(0).await?;
        let found = cluster.admin(0).service("web").await?;
        ensure!(
            found.is_some_and(|it| it.version == 21),
            "versions were lost"
        );
        cluster.settled("web", SETTLE).await?;
        cluster.pass();
        Ok(())
    })
    .await
}

fn first_segment(folder: &Path) -> anyhow::Result<PathBuf> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("no {}", folder.display()))? {
        segments.push(entry?.path());
    }
    segments.sort();
    segments
        .into_iter()
        .next()
        .context("the log has no segment")
}
