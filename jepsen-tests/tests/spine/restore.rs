//! A snapshot file, and a new cluster that begins with it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use jepsen_tests::check::{clean, every_request_answered};
use jepsen_tests::cli::Ran;
use jepsen_tests::cluster::{Cluster, Options};
use jepsen_tests::load::{Load, Spread};
use jepsen_tests::processes;
use jepsen_tests::program::Service;
use jepsen_tests::wait;

use crate::stage::{self, SETTLE, Share, bring_up};

/// How long a peer that is refused may take to end.
const END: Duration = Duration::from_secs(20);

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path of the test is text")
}

fn refused(ran: &Ran, code: i32, words: &[&str]) -> anyhow::Result<()> {
    ensure!(ran.code == Some(code), "{ran:?}");
    for word in words {
        ensure!(ran.stderr.contains(word), "{word:?} is not said: {ran:?}");
    }
    Ok(())
}

/// One request for each key through the peers that run, so that each is bound.
pub(crate) async fn visit(
    cluster: &Cluster,
    service: &Service,
    keys: &[String],
) -> anyhow::Result<()> {
    let running = cluster.started();
    let targets = cluster.targets();
    let visits = Load {
        targets: running.iter().map(|index| targets[*index]).collect(),
        keys: keys.to_vec().into(),
        spread: Spread::AtOnce,
        steps: Some(keys.len()),
        ..stage::load(cluster, service)
    };
    clean("visits", &every_request_answered(&visits.run().await?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_take_over_adopts_replicas_and_sessions_as_they_are() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let (mut cluster, counters) = stage::three_peers().await?;
        let chat = Service::new("chat", 2, &counters).with_sessions();
        bring_up(&cluster, &chat).await?;
        let keys = stage::keys(40);
        visit(&cluster, &chat, &keys).await?;
        let (file, dir) = (cluster.path("backup.snap"), cluster.path("restored"));
        let cli = cluster.cli(1);
        let saved = cli
            .json(&["cluster", "snapshot", "save", text(&file)?])
            .await?;
        let before = cluster.settled("chat", SETTLE).await?;
        let sessions = cluster.admin(1).sessions("chat").await?;
        ensure!(sessions.len() == keys.len(), "{sessions:?}");
        let former = cluster.cluster_id()?.to_owned();
        ensure!(saved["cluster_id"] == former.as_str(), "{saved}");
        let seen = cluster.admin(1).status().await?.applied_index;

        let restore = ["cluster", "snapshot", "restore", text(&file)?, "--data-dir"];
        let early = cli
            .offline(&[&restore[..], &[text(&dir)?, "--take-over"]].concat())
            .await?;
        refused(&early, 6, &["still runs", &former, "--fork"])?;
        ensure!(!dir.exists(), "a refused restore has made a directory");
        cluster.kill_all()?;
        let restored = cli
            .offline_json(&[&restore[..], &[text(&dir)?, "--take-over"]].concat())
            .await?;
        ensure!(
            restored["parent_cluster_id"] == former.as_str(),
            "{restored}"
        );
        cluster.peer_mut(0).setup.data_dir = dir;
        cluster.begin_anew();
        cluster.restart(0).await?;
        ensure!(
            cluster.cluster_id()? == restored["cluster_id"],
            "{restored}"
        );
        cluster.leader().await?;

        ensure!(cluster.settled("chat", SETTLE).await? == before);
        ensure!(cluster.admin(0).sessions("chat").await? == sessions);
        visit(&cluster, &chat, &keys).await?;
        ensure!(cluster.admin(0).sessions("chat").await?.len() == keys.len());
        let status = cluster.admin(0).status().await?;
        ensure!(status.applied_index > seen + (1 << 32), "{status:?}");
        counters.check_single_starts()?;

        // A peer of the former cluster is refused by name, though it has its whole directory.
        cluster.peer_mut(1).start()?;
        let end = cluster.peer_mut(1).ended(END).await?;
        let said = cluster.peer(1).log_tail(5);
        ensure!(!end.success() && said.contains(&former), "{end}: {said}");

        // What was adopted can be stopped, and new replicas have numbers of their own.
        let yaml = chat.clone().with_note(2).yaml();
        cluster.admin(0).update("chat", &yaml).await?;
        let service = cluster.admin(0).service("chat").await?.context("chat")?;
        cluster.settled("chat", SETTLE).await?;
        cluster.admin(0).terminate("chat", 1).await?;
        let replaced = wait::until("a replacement", SETTLE, async || {
            let now = cluster.settled("chat", SETTLE).await?;
            let old = format!("{}-1", service.id);
            ensure!(!now.contains_key(&old), "{now:?}");
            Ok(now)
        })
        .await?;
        let new = format!("{}-1000001", service.id);
        ensure!(replaced.contains_key(&new), "{replaced:?}");
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_runs_beside_its_parent_and_touches_nothing_of_it() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let (parent, counters) = stage::one_peer().await?;
        let web = Service::new("web", 1, &counters);
        bring_up(&parent, &web).await?;
        let before = parent.settled("web", SETTLE).await?;
        let (file, dir) = (parent.path("backup.snap"), parent.path("forked"));
        let cli = parent.cli(0);
        cli.json(&["cluster", "snapshot", "save", text(&file)?])
            .await?;
        let restore = ["cluster", "snapshot", "restore", text(&file)?, "--data-dir"];
        cli.offline_json(&[&restore[..], &[text(&dir)?, "--fork"]].concat())
            .await?;

        // On the same host, and even below the same root.
        let mut fork = Cluster::prepare(&Options {
            peers: 1,
            ..Options::default()
        })?;
        fork.peer_mut(0).setup.data_dir = dir;
        fork.peer_mut(0).setup.replica_root = parent.path("replicas");
        fork.restart(0).await?;
        let child = fork.cluster_id()?.to_owned();
        let service = wait::until("the fork's own replica", SETTLE, async || {
            let service = fork.admin(0).service("web").await?.context("web")?;
            ensure!(service.ready_replicas == 1, "{service:?}");
            Ok(service)
        })
        .await?;
        let own = processes::census(&child)?;
        let number = format!("{}-1000001", service.id);
        ensure!(own.keys().eq([&number]), "{own:?}");
        let theirs = processes::census(parent.cluster_id()?)?;
        let kept = before.iter().all(|(key, it)| theirs[key] == [*it]);
        ensure!(kept && theirs.len() == before.len(), "{theirs:?}");
        fork.admin(0).delete("web").await?;
        wait::until("the fork's replica to be gone", SETTLE, async || {
            let own = processes::census(&child)?;
            ensure!(own.is_empty(), "{own:?}");
            Ok(())
        })
        .await?;
        fork.pass();
        ensure!(parent.settled("web", SETTLE).await? == before);
        parent.pass();
        Ok(())
    })
    .await
}

/// As where one directory is recovered twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_second_to_take_over_leaves_the_replicas_alone_and_says_why() -> anyhow::Result<()>
{
    stage::run(Share::Half, async {
        let (mut cluster, counters) = stage::one_peer().await?;
        let web = Service::new("web", 1, &counters);
        bring_up(&cluster, &web).await?;
        let file = cluster.path("backup.snap");
        let cli = cluster.cli(0);
        cli.json(&["cluster", "snapshot", "save", text(&file)?])
            .await?;
        let before = cluster.settled("web", SETTLE).await?;
        cluster.kill_all()?;
        let (heir, second) = (cluster.path("heir"), cluster.path("second"));
        for dir in [&heir, &second] {
            let restore = ["cluster", "snapshot", "restore", text(&file)?, "--data-dir"];
            cli.offline_json(&[&restore[..], &[text(dir)?, "--take-over"]].concat())
                .await?;
        }
        cluster.peer_mut(0).setup.data_dir = heir;
        cluster.begin_anew();
        cluster.restart(0).await?;
        ensure!(cluster.settled("web", SETTLE).await? == before);

        let mut late = Cluster::prepare(&Options {
            peers: 1,
            ..Options::default()
        })?;
        late.peer_mut(0).setup.data_dir = second;
        late.peer_mut(0).setup.replica_root = cluster.path("replicas");
        late.restart(0).await?;
        wait::until("a reason", SETTLE, async || {
            let service = late.admin(0).service("web").await?.context("web")?;
            let said = &service.hindrance;
            ensure!(
                said.contains("replicas cannot be made") && said.contains(cluster.cluster_id()?),
                "{service:?}"
            );
            Ok(())
        })
        .await?;
        let log = late.peer(0).log_text();
        let told = log.matches("cannot see what exists").count();
        // A peer that stalls reigns anew, and says it again.
        ensure!(
            told >= 1 && told <= log.matches("control begins").count(),
            "{} bytes of log",
            log.len()
        );
        ensure!(cluster.settled("web", SETTLE).await? == before);
        late.pass();
        cluster.pass();
        Ok(())
    })
    .await
}

/// CRC-32C, as it is defined: bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let shift = |crc: u32| (crc >> 1) ^ ((crc & 1) * 0x82f6_3b78);
    let sum = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| shift(crc))
    });
    !sum
}

/// A snapshot that is whole, and of a format to come.
fn of_a_later_format(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[8] = 200;
    // The sum of all bytes before it; eight end the file.
    let at = bytes.len() - 12;
    let sum = crc32c(&bytes[..at]);
    bytes[at..at + 4].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_snapshots_and_places_are_refused_with_what_to_do() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let (cluster, _) = stage::one_peer().await?;
        let cli = cluster.cli(0);
        let good = cluster.path("good.snap");
        let save = ["cluster", "snapshot", "save", text(&good)?];
        let saved = cli.json(&save).await?;
        refused(&cli.run(&save).await?, 6, &["exists", "--force"])?;
        let again = cli.run(&[&save[..], &["--force"]].concat()).await?;
        ensure!(again.code == Some(0), "{again:?}");
        let nowhere = ["cluster", "snapshot", "save", "/no/such/folder/x.snap"];
        refused(&cli.run(&nowhere).await?, 1, &["/no/such/folder", "remedy"])?;

        let of_file = async |verb: &str, file: &Path, more: &[&str]| {
            let args = ["cluster", "snapshot", verb, text(file)?];
            cli.offline(&[&args[..], more].concat()).await
        };
        let inspected = of_file("inspect", &good, &["--output", "json"]).await?;
        let inspected: serde_json::Value = serde_json::from_str(&inspected.stdout)?;
        ensure!(
            inspected["cluster_id"] == cluster.cluster_id()?,
            "{inspected}"
        );
        ensure!(inspected["index"].as_u64() > Some(0), "{inspected}");
        ensure!(
            inspected["format"] == 1 && inspected["services"] == 0,
            "{inspected}"
        );
        let whole = of_file("verify", &good, &[]).await?;
        ensure!(
            whole.code == Some(0) && whole.stdout.contains("is whole"),
            "{whole:?}"
        );
        let none = of_file("verify", &good, &["--sha256", "00ff"]).await?;
        ensure!(none.code == Some(2), "{none:?}");
        let other = of_file("verify", &good, &["--sha256", &"0f".repeat(32)]).await?;
        refused(&other, 6, &["not that one", "remedy"])?;
        ensure!(saved["size"] == inspected["size"], "{saved} {inspected}");

        let bytes = std::fs::read(&good)?;
        let (truncated, damaged, foreign, newer) = (
            cluster.path("truncated"),
            cluster.path("damaged"),
            cluster.path("foreign"),
            cluster.path("newer"),
        );
        std::fs::write(&truncated, &bytes[..bytes.len() - 1])?;
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 1;
        std::fs::write(&damaged, flipped)?;
        std::fs::write(&foreign, "this is a letter to a friend, and no snapshot")?;
        std::fs::write(&newer, of_a_later_format(bytes.clone()))?;
        let headless = cluster.path("headless");
        let mut flipped = bytes.clone();
        flipped[8] ^= 2;
        std::fs::write(&headless, flipped)?;
        let target = cluster.path("target");
        for verb in ["inspect", "verify", "restore"] {
            let more = match verb {
                "restore" => vec!["--fork", "--data-dir", text(&target)?],
                _ => vec![],
            };
            for (file, words) in [
                (&truncated, ["truncated", "another copy"]),
                (&damaged, ["damaged", "another copy"]),
                (&headless, ["its head is damaged", "another copy"]),
                (&foreign, ["not a snapshot", "another copy"]),
                (&newer, ["format 200", "release that wrote it"]),
            ] {
                refused(&of_file(verb, file, &more).await?, 6, &words)?;
            }
            let missing = cluster.path("missing");
            refused(
                &of_file(verb, &missing, &more).await?,
                3,
                &["missing", "remedy"],
            )?;
        }
        ensure!(!target.exists(), "a refused restore has made a directory");

        let into = |dir: &'static str| vec!["--data-dir", dir];
        let unclaimed = of_file("restore", &good, &into("/tmp/never")).await?;
        refused(&unclaimed, 2, &["--take-over", "--fork"])?;
        let both = ["--data-dir", "/tmp/never", "--fork", "--take-over"];
        refused(
            &of_file("restore", &good, &both).await?,
            2,
            &["cannot be used"],
        )?;
        std::fs::create_dir(&target)?;
        std::fs::write(target.join("letter"), "dear")?;
        let full = ["--fork", "--data-dir", text(&target)?];
        refused(
            &of_file("restore", &good, &full).await?,
            6,
            &["letter", "empty"],
        )?;
        let in_use = cluster.peer(0).setup.data_dir.clone();
        let busy = ["--fork", "--data-dir", text(&in_use)?];
        refused(
            &of_file("restore", &good, &busy).await?,
            6,
            &["in use by process"],
        )?;
        cluster.pass();
        Ok(())
    })
    .await
}
