//! Chromium, where it is installed: server-sent events and WebSockets as a page uses them.

use std::process::Stdio;
use std::time::Duration;

use anyhow::ensure;
use jepsen_tests::{binary, http, wait};
use tokio::process::Command;

use crate::stage::{self, PATHS, Stage};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_gets_its_events_as_they_come_and_talks_back() -> anyhow::Result<()> {
    if !binary::may_have("chromium") {
        return Ok(());
    }
    stage::run(&[], &["websockets"], async {
        for path in PATHS {
            let stage = Stage::start(path, &[]).await?;
            stage.serve_as("pages", "http_replica.py", 1).await?;
            stage.serve_as("talk", "websocket_replica.py", 1).await?;
            let at = stage.clear();
            let profile = format!("--user-data-dir={}", stage.path("profile").display());
            let _browser = Command::new("chromium")
                .args([
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-dev-shm-usage",
                ])
                .args([
                    "--no-first-run",
                    "--disable-background-networking",
                    &profile,
                ])
                .arg(format!("http://{at}/pages/page?socket=ws://{at}/talk/chat"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()?;
            wait::until("the page's word", Duration::from_secs(60), async || {
                let told = http::get(at, "/pages/told").await;
                let told = told.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
                ensure!(told.body == "0 1 2 word 4001", "{:?}", told.body);
                Ok(())
            })
            .await?;
            stage.cluster.pass();
        }
        Ok(())
    })
    .await
}
