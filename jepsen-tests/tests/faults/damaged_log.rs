//! A log that changed on disk while its peer was away.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use jepsen_tests::cluster::{Cluster, PATIENCE};

use crate::stage::{self, SOME, TEST_TIME_MAX};

/// The newest segment of a peer's log.
fn segment(cluster: &Cluster, peer: usize) -> anyhow::Result<PathBuf> {
    let folder = cluster.peer(peer).setup.data_dir.join("wal");
    let entries = std::fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<anyhow::Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|it| it == "wal"));
    paths.into_iter().max().context("a log has a segment")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_with_a_damaged_log_names_the_place_and_the_others_go_on() -> anyhow::Result<()> {
    stage::run(TEST_TIME_MAX, async {
        let mut cluster = Cluster::start().await?;
        let mut running = stage::clients(&cluster);
        running.progress(5 * SOME).await?;
        let victim = stage::follower(&cluster).await?;
        cluster.kill(victim)?;
        let path = segment(&cluster, victim)?;
        let whole = std::fs::read(&path)?;
        // Well before the end, which could be taken for torn, what was durable changes by one bit.
        for tenths in [1, 3, 6] {
            let at = whole.len() * tenths / 10;
            let file = OpenOptions::new().write(true).open(&path)?;
            file.write_all_at(&[whole[at] ^ 0x10], at as u64)?;
            let before = cluster.peer(victim).log_text().len();
            cluster.peer_mut(victim).start()?;
            let status = cluster.peer_mut(victim).ended(PATIENCE).await?;
            ensure!(status.code() == Some(1), "{status}");
            let log = cluster.peer(victim).log_text().split_off(before);
            let last = log.lines().last().unwrap_or_default();
            eprintln!("bit changed in byte {at} of {}: {last}", whole.len());
            let name = path.to_str().context("a path in UTF-8")?;
            for word in [name, "is corrupt at byte ", "Put back the file"] {
                ensure!(last.contains(word), "nothing of {word:?}: {last}");
            }
            let told = last.split("at byte ").nth(1).context("an offset")?;
            let told: String = told.chars().take_while(char::is_ascii_digit).collect();
            let told: usize = told.parse()?;
            ensure!(
                told <= at && at - told < 4_096,
                "byte {told}, but {at} was damaged"
            );
            running.progress(SOME).await?;
            file.write_all_at(&[whole[at]], at as u64)?;
        }
        ensure!(
            std::fs::read(&path)? == whole,
            "a log that was refused was changed"
        );
        cluster.restart(victim).await?;
        stage::check(&cluster, running).await?;
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_end_of_the_log_is_cut_off_and_the_peer_comes_back() -> anyhow::Result<()> {
    stage::run(TEST_TIME_MAX, async {
        let mut cluster = Cluster::start().await?;
        let mut running = stage::clients(&cluster);
        // What a power cut leaves after the last sync: part of a record, zeros, or anything.
        for torn in [vec![0x40, 0, 0, 0, 9], vec![0; 4_096], vec![0xa5; 700]] {
            running.progress(5 * SOME).await?;
            let victim = stage::follower(&cluster).await?;
            cluster.kill(victim)?;
            let path = segment(&cluster, victim)?;
            OpenOptions::new()
                .append(true)
                .open(&path)?
                .write_all(&torn)?;
            cluster.restart(victim).await?;
            let log = cluster.peer(victim).log_text();
            ensure!(
                log.contains("its remains are cut off"),
                "nothing told of a torn end"
            );
        }
        stage::check(&cluster, running).await?;
        cluster.pass();
        Ok(())
    })
    .await
}
