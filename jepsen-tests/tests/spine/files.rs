//! `file_mounts`: what replicas find of the files that the command line sent, and what becomes of those that it should not
//! send.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, anyhow, ensure};
use jepsen_tests::cli::Ran;
use jepsen_tests::cluster::{Cluster, Options};
use jepsen_tests::{http, wait};
use tonic::Code;

use crate::stage::{self, SETTLE, Share};

/// Exit codes, as `raftserve --help` says.
const EXIT_USAGE: i32 = 2;
const EXIT_NOT_FOUND: i32 = 3;

/// Serves its working directory. `setup` runs a file that has to be executable, which reads one at home.
fn yaml(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "name: files\n\
         service:\n  readiness_probe: {{path: /said, endpoint_probe_interval_seconds: 0.2}}\n\
         resources: {{ports: 8080}}\n\
         envs: {{FOLDER: {folder}}}\n\
         file_mounts:\n  ~/.name: $FOLDER/name\n  app: $FOLDER/app\n\
         setup: app/bin/greet > said\n\
         run: exec python3 -m http.server 8080 --bind 127.0.0.1\n\
         _metadata: {{raftserve: {{drain_timeout_seconds: 5, stop_grace_seconds: 5}}}}\n"
    )
}

/// The files that it names.
fn make_files(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder.join("app/bin"))?;
    fs::write(folder.join("name"), "you")?;
    let greet = folder.join("app/bin/greet");
    fs::write(&greet, "#!/bin/sh\necho hello $(cat ~/.name)\n")?;
    fs::set_permissions(&greet, PermissionsExt::from_mode(0o755))?;
    fs::write(folder.join("app/sh-not"), "never run")?;
    symlink("sh-not", folder.join("app/link"))?;
    Ok(())
}

fn told(ran: &Ran, code: i32, names: &[&str]) -> anyhow::Result<()> {
    ensure!(ran.code == Some(code), "exit code {code} is due: {ran:?}");
    for name in names {
        ensure!(ran.stderr.contains(name), "no {name:?} in {ran:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_find_the_files_and_are_replaced_when_one_changes() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let mut cluster = Cluster::start().await?;
        let folder = cluster.path("mounted");
        make_files(&folder)?;
        let file = cluster.path("files.yaml");
        fs::write(&file, yaml(&folder))?;
        let file = file.to_str().context("a path in UTF-8")?;
        let up = ["up", file, "-y", "--timeout", "60s"];
        cluster.cli(0).json(&up).await?;
        let first = cluster.settled("files", SETTLE).await?;

        let proxy = cluster.peer(1).setup.ports.proxy;
        // Through another peer, which may be a little behind.
        let says = async |path: &str, text: &str| {
            wait::until(&format!("{text:?} at {path}"), SETTLE, async || {
                let reply = http::get(proxy, path)
                    .await
                    .map_err(|failure| anyhow!("{failure:?}"))?;
                ensure!(reply.body == text, "{reply:?}");
                Ok(())
            })
            .await
        };
        says("/said", "hello you\n").await?;
        says("/app/link", "never run").await?;
        let shown = cluster.cli(1).json(&["status", "files", "-v"]).await?;
        ensure!(!shown.to_string().contains("never run"), "{shown}");

        // The same files are another version, and the same replica.
        cluster
            .cli(0)
            .json(&["update", "files", file, "-y"])
            .await?;
        let same = cluster.settled("files", SETTLE).await?;
        ensure!(first == same, "{first:?} became {same:?}");
        // Another one is another replica, also after every peer was lost in between.
        fs::write(folder.join("name"), "me")?;
        cluster
            .cli(0)
            .json(&["update", "files", file, "-y"])
            .await?;
        let other = cluster.settled("files", SETTLE).await?;
        ensure!(first != other, "{other:?} was kept");
        says("/said", "hello me\n").await?;
        cluster.kill_all()?;
        cluster.restart_all().await?;
        let service = cluster.admin(0).service("files").await?;
        ensure!(service.is_some_and(|it| it.version == 3), "not version 3");
        let live = cluster.admin(0).replicas().await?;
        let number = live.iter().map(|it| it.id).max().context("no replica")?;
        cluster.admin(0).terminate("files", number).await?;
        wait::until("a replica made after the loss", SETTLE, async || {
            let all = cluster.admin(0).replicas().await?;
            ensure!(all.iter().all(|it| it.id != number), "{all:?}");
            Ok(())
        })
        .await?;
        cluster.settled("files", SETTLE).await?;
        says("/said", "hello me\n").await?;
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_be_sent_is_shown_and_what_cannot_be_is_refused() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        // None of its peers is started.
        let cluster = Cluster::prepare(&Options::default())?;
        let cli = cluster.cli(0);
        let folder = cluster.path("mounted");
        make_files(&folder)?;
        let file = cluster.path("files.yaml");
        fs::write(&file, yaml(&folder))?;
        let file = file.to_str().context("a path in UTF-8")?;
        let dry_run = ["up", file, "--dry-run"];
        let shown = cli.offline_json(&dry_run).await?;
        let files: Vec<(&str, u64, &str)> = shown["files"]
            .as_array()
            .context("no files")?
            .iter()
            .filter_map(|it| {
                Some((
                    it["path"].as_str()?,
                    it["bytes"].as_u64()?,
                    it["mode"].as_str()?,
                ))
            })
            .collect();
        let paths: Vec<&str> = files.iter().map(|(path, ..)| *path).collect();
        ensure!(
            paths == ["~/.name", "app/bin/greet", "app/link", "app/sh-not"],
            "{shown}"
        );
        ensure!(files[1] == ("app/bin/greet", 36, "755"), "{shown}");
        let ran = cli.offline(&dry_run).await?;
        ensure!(ran.stdout.contains("app/bin/greet"), "{ran:?}");
        ensure!(!ran.stdout.contains("never run"), "{ran:?}");

        symlink("/etc", folder.join("app/out"))?;
        let names = ["file_mounts.app", "app/out links to /etc", "remedy:"];
        told(&cli.offline(&dry_run).await?, EXIT_USAGE, &names)?;
        fs::remove_file(folder.join("app/out"))?;
        fs::write(folder.join("app/large"), vec![0; 768 << 10])?;
        let names = [
            "file_mounts: ",
            "bytes in all",
            "app/large 786432",
            "in setup",
        ];
        told(&cli.offline(&dry_run).await?, EXIT_USAGE, &names)?;
        fs::remove_file(folder.join("app/large"))?;
        fs::remove_file(folder.join("name"))?;
        let names = ["file_mounts.~/.name", "cannot read"];
        told(&cli.offline(&dry_run).await?, EXIT_NOT_FOUND, &names)?;
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_take_neither_a_yaml_without_its_files_nor_places_on_the_host() -> anyhow::Result<()>
{
    stage::run(Share::Half, async {
        let (cluster, _) = stage::one_peer().await?;
        let folder = cluster.path("mounted");
        make_files(&folder)?;
        // By the API alone, which sends none.
        let refused = cluster.admin(0).apply(&yaml(&folder)).await;
        let status = refused.err().context("it is taken")?;
        ensure!(status.code() == Code::InvalidArgument, "{status}");
        // Each reason is a plain string within the encoded details.
        let said = String::from_utf8_lossy(status.details());
        ensure!(
            said.contains("file_mounts.~/.name") && said.contains("file_mounts.app"),
            "{said}"
        );
        ensure!(said.contains("raftserve up"), "{said}");

        // Nobody said yes, so that nothing was sent.
        let file = cluster.path("files.yaml");
        fs::write(&file, yaml(&folder))?;
        let file = file.to_str().context("a path in UTF-8")?;
        let ran = cluster.cli(0).run(&["up", file]).await?;
        let from = format!("from {0}/name, {0}/app?", folder.display());
        told(
            &ran,
            EXIT_USAGE,
            &["send along 4 files, 57 bytes in all, ", &from, "-y"],
        )?;

        let target = cluster.path("target");
        let harmful = yaml(&folder).replace("~/.name", &target.display().to_string());
        fs::write(file, harmful)?;
        let ran = cluster.cli(0).run(&["up", file, "-y"]).await?;
        let field = format!("file_mounts.{}", target.display());
        told(&ran, EXIT_USAGE, &[&field, "on the host"])?;
        let ran = cluster.cli(0).offline(&["up", file, "--dry-run"]).await?;
        told(&ran, 0, &[&field, "--provider kubernetes"])?;
        ensure!(!target.exists(), "it was written to");
        ensure!(cluster.admin(0).services().await?.is_empty());
        cluster.pass();
        Ok(())
    })
    .await
}
