//! Most peers are lost for good, and one goes on.

use std::time::Duration;

use anyhow::{Context, ensure};
use jepsen_tests::cli::Ran;
use jepsen_tests::program::Service;
use jepsen_tests::wait;

use crate::restore::visit;
use crate::stage::{self, SETTLE, Share, bring_up};

/// How long a peer that is refused may take to end.
const END: Duration = Duration::from_secs(20);

fn refused(ran: &Ran, words: &[&str]) -> anyhow::Result<()> {
    ensure!(ran.code == Some(6), "{ran:?}");
    for word in words {
        ensure!(ran.stderr.contains(word), "{word:?} is not said: {ran:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_survivor_goes_on_with_everything_it_has() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let (mut cluster, counters) = stage::three_peers().await?;
        let chat = Service::new("chat", 2, &counters).with_sessions();
        bring_up(&cluster, &chat).await?;
        let keys = stage::keys(40);
        visit(&cluster, &chat, &keys).await?;
        let before = cluster.settled("chat", SETTLE).await?;
        let sessions = cluster.admin(1).sessions("chat").await?;
        let former = cluster.cluster_id()?.to_owned();
        let leader = cluster.leader().await?;
        let seen = cluster.admin(leader).status().await?.applied_index;
        wait::until("the survivor to have it all", SETTLE, async || {
            let has = cluster.admin(0).status().await?.applied_index;
            ensure!(has >= seen, "{has} of {seen}");
            Ok(())
        })
        .await?;

        let survivor = cluster.peer(0).setup.data_dir.clone();
        let survivor = survivor.to_str().context("text")?;
        let recover = ["cluster", "recover", "--data-dir", survivor];
        let named = [&recover[..], &["--cluster-id", &former]].concat();
        let sure = [&named[..], &["--yes"]].concat();
        let cli = cluster.cli(0);
        refused(&cli.offline(&sure).await?, &["in use by process"])?;
        cluster.kill(0)?;
        cluster.kill(2)?;
        refused(
            &cli.offline(&sure).await?,
            &["peer 2", "answers", "start it"],
        )?;
        cluster.kill(1)?;
        let wrong = "0123456789abcdef0123456789abcdef";
        let other = [&recover[..], &["--cluster-id", wrong, "--yes"]].concat();
        refused(&cli.offline(&other).await?, &[&former, "--cluster-id"])?;
        let unasked = cli.offline(&named).await?;
        ensure!(
            unasked.code == Some(2) && unasked.stderr.contains("-y"),
            "{unasked:?}"
        );
        let unnamed = cli.offline(&recover).await?;
        ensure!(
            unnamed.code == Some(2) && unnamed.stderr.contains("--cluster-id"),
            "{unnamed:?}"
        );
        let shown = cli
            .offline_json(&[&recover[..], &["--dry-run"]].concat())
            .await?;
        ensure!(shown["cluster_id"] == former.as_str(), "{shown}");
        ensure!(shown["last_index"].as_u64() >= Some(seen), "{shown}");

        let recovered = cli.offline_json(&sure).await?;
        cluster.begin_anew();
        cluster.restart(0).await?;
        ensure!(
            cluster.cluster_id()? == recovered["cluster_id"],
            "{recovered}"
        );
        ensure!(cluster.cluster_id()? != former, "{recovered}");
        cluster.leader().await?;
        ensure!(cluster.settled("chat", SETTLE).await? == before);
        ensure!(cluster.admin(0).sessions("chat").await? == sessions);
        visit(&cluster, &chat, &keys).await?;
        counters.check_single_starts()?;

        // Nobody recovers the same cluster a second time while the first recovery goes on.
        let second = cluster.peer(1).setup.data_dir.clone();
        let second = second.to_str().context("text")?;
        let again = ["cluster", "recover", "--data-dir", second];
        let again = [&again[..], &["--cluster-id", &former, "--yes"]].concat();
        let anew = cluster.cluster_id()?.to_owned();
        refused(
            &cli.offline(&again).await?,
            &["may be what", &anew, "--unrelated-cluster"],
        )?;

        // A lost peer that turns up again is refused by name.
        cluster.peer_mut(1).start()?;
        let end = cluster.peer_mut(1).ended(END).await?;
        let said = cluster.peer(1).log_tail(5);
        ensure!(!end.success() && said.contains(&former), "{end}: {said}");
        cluster.pass();
        Ok(())
    })
    .await
}
