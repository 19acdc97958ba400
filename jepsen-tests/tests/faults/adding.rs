//! `raftserve cluster add`, and what the command line says of peers and services that are not there.

use anyhow::{Context, ensure};
use jepsen_tests::cli::{Ran, read};
use jepsen_tests::cluster::{Cluster, PATIENCE};
use jepsen_tests::wait;
use serde_json::Value;

use crate::members::{agreed, eager};
use crate::stage::{self, SOME, TEST_TIME_MAX};

/// Exit codes, as `raftserve --help` says.
const EXIT_USAGE: i32 = 2;
const EXIT_NOT_FOUND: i32 = 3;
const EXIT_TIMEOUT: i32 = 5;

/// The value of a flag in a command.
fn value<'a>(argv: &'a Value, flag: &str) -> anyhow::Result<&'a str> {
    let argv = argv.as_array().context("a list of words")?;
    let at = argv.iter().position(|word| word == flag);
    let value = at.and_then(|at| argv.get(at + 1)?.as_str());
    value.with_context(|| format!("no {flag} in {argv:?}"))
}

/// The command that `cluster add` shows for a new peer is the one that the harness starts it with, but for ports that
/// the harness has chosen.
fn check_command(cluster: &Cluster, newcomer: usize, argv: &Value) -> anyhow::Result<()> {
    let setup = &cluster.peer(newcomer).setup;
    let ports = setup.ports;
    ensure!(value(argv, "--peer-addr")? == ports.peer.to_string());
    ensure!(value(argv, "--admin-addr")? == ports.admin.to_string());
    ensure!(value(argv, "--ops-addr")? == ports.ops.to_string());
    ensure!(value(argv, "--data-dir")? == setup.data_dir.to_str().context("a path in UTF-8")?);
    Ok(())
}

/// Asks for a peer at the newcomer's address, and starts it as it is told to, as soon as it is told.
async fn add(cluster: &mut Cluster, newcomer: usize, more: &[&str]) -> anyhow::Result<Value> {
    let setup = cluster.peer(newcomer).setup.clone();
    let data_dir = setup.data_dir.to_str().context("a path in UTF-8")?;
    let address = cluster.peer(newcomer).address();
    let cli = cluster.cli(0);
    let flags = [
        "cluster",
        "add",
        "--peer-addr",
        &address,
        "--data-dir",
        data_dir,
    ];
    let args = [&flags[..], more].concat();
    let told = cli.json(&[&args[..], &["--no-wait"]].concat()).await?;
    check_command(cluster, newcomer, &told["argv"])?;
    let join = value(&told["argv"], "--join")?.to_owned();
    let names = join.split(',').map(str::to_owned).collect();
    cluster.peer_mut(newcomer).setup.company = jepsen_tests::peer::Company::Joins(names);
    let args = [&args[..], &["--output", "json"]].concat();
    let (ran, started) = tokio::join!(cli.run(&args), async {
        cluster.peer_mut(newcomer).start()?;
        cluster.await_ready(newcomer).await
    });
    started?;
    let ran: Ran = ran?;
    for said in [
        "Run this where the new peer shall be",
        "raftserve node",
        "waiting for",
    ] {
        ensure!(ran.stderr.contains(said), "nothing of {said:?}: {ran:?}");
    }
    let done = read(&args, &ran)?;
    cluster.note(&format!("added: {}", done["peer"]));
    ensure!(done["peer"]["id"] == cluster.node_id(newcomer)?, "{done}");
    ensure!(done["peer"]["peer_address"] == address, "{done}");
    Ok(done)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_add_shows_the_command_and_waits_for_the_vote() -> anyhow::Result<()> {
    stage::run(TEST_TIME_MAX, async {
        let mut cluster = Cluster::start_with(eager(1)).await?;
        let newcomers: Vec<usize> = (0..3)
            .map(|_| cluster.newcomer(&[0]))
            .collect::<anyhow::Result<_>>()?;
        let mut running = stage::clients(&cluster);
        running.progress(SOME).await?;

        // The second of two gets no vote, and the third takes it along.
        let second = add(&mut cluster, newcomers[0], &[]).await?;
        ensure!(second["peer"]["vote"] == "needs_another", "{second}");
        agreed(&cluster, &[0], &[1]).await?;
        let third = add(&mut cluster, newcomers[1], &[]).await?;
        ensure!(third["peer"]["vote"] == "has", "{third}");
        agreed(&cluster, &[0, 1, 2], &[]).await?;
        running.progress(SOME).await?;

        // Asked again, it says so at once.
        let address = cluster.peer(2).address();
        let again = ["cluster", "add", "--peer-addr", &address];
        let again = cluster.cli(1).json(&again).await?;
        ensure!(again["peer"]["vote"] == "has", "{again}");

        cluster
            .peer_mut(newcomers[2])
            .setup
            .flags
            .push("--learner".to_owned());
        let fourth = add(&mut cluster, newcomers[2], &["--learner"]).await?;
        ensure!(fourth["peer"]["vote"] == "by_hand", "{fourth}");
        agreed(&cluster, &[0, 1, 2], &[3]).await?;
        stage::check(&cluster, running).await?;
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_said_and_not_waited_for_in_silence() -> anyhow::Result<()> {
    stage::run(TEST_TIME_MAX, async {
        let mut cluster = Cluster::start().await?;
        let cli = cluster.cli(0);
        let ran = cli.run(&["cluster", "add", "--timeout", "1s"]).await?;
        ensure!(ran.code == Some(EXIT_TIMEOUT), "{ran:?}");
        ensure!(ran.stdout.contains("raftserve node --data-dir "), "{ran:?}");
        for said in ["waiting for a new peer", "remedy:", "not done after 1s"] {
            ensure!(ran.stderr.contains(said), "nothing of {said:?}: {ran:?}");
        }
        let far = ["cluster", "add", "--peer-addr", "10.0.0.4:7001"];
        let ran = cli.run(&far).await?;
        ensure!(ran.code == Some(EXIT_USAGE), "{ran:?}");
        ensure!(ran.stderr.contains("--credentials-dir"), "{ran:?}");

        let ran = cli.run(&["events", "nobody", "--no-follow"]).await?;
        ensure!(ran.code == Some(EXIT_NOT_FOUND), "{ran:?}");
        ensure!(ran.stderr.contains("nobody"), "{ran:?}");

        // Who is down is seen by those that are left, with a quorum and without.
        for dead in [1, 2] {
            cluster.kill(dead)?;
            wait::until("a peer that is seen to be down", PATIENCE, async || {
                let shown = cli.json(&["cluster", "members"]).await?;
                let shown = shown["members"].as_array().context("members")?;
                let up: Vec<bool> = shown.iter().filter_map(|it| it["up"].as_bool()).collect();
                let wanted: Vec<bool> = (0..3).map(|peer| peer == 0 || peer > dead).collect();
                ensure!(up == wanted, "{up:?}");
                Ok(())
            })
            .await?;
        }
        wait::until("a status without a quorum", PATIENCE, async || {
            let status = cli.json(&["cluster", "status"]).await?;
            ensure!(
                status["quorum"] == false && status["leader_id"].is_null(),
                "{status}"
            );
            ensure!(status["quorum_reason"].is_string(), "{status}");
            Ok(())
        })
        .await?;
        let ran = cli.run(&["cluster", "add", "--timeout", "1s"]).await?;
        ensure!(ran.code == Some(EXIT_TIMEOUT), "{ran:?}");
        ensure!(ran.stderr.contains("waiting for a leader"), "{ran:?}");
        cluster.pass();
        Ok(())
    })
    .await
}
