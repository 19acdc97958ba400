//! A replica that takes connections and never answers costs nobody else anything.

use std::time::Duration;

use anyhow::ensure;
use tokio::time::timeout;

use crate::stage::{self, Stage, client};

/// Far below the time that one probe of the silent replica takes.
const SOON: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_that_hangs_delays_no_other() -> anyhow::Result<()> {
    stage::run(&["curl"], &[], async {
        let stage = Stage::start("fast", &[]).await?;
        let silent = "name: silent\n\
                      service: {readiness_probe: {path: /, timeout_seconds: 600}, replicas: 5}\n\
                      resources: {ports: 8080}\n\
                      run: exec python3 -c 'import os, socket, signal;\
                      it = socket.create_server((\"127.0.0.1\", int(os.environ[\"PORT\"])));\
                      signal.pause()'\n";
        stage.cluster.admin(0).apply(silent).await?;
        // It is probed, made again and asked meanwhile.
        for _ in 0..2 {
            timeout(SOON, stage.serve("http_replica.py", 2)).await??;
            let url = format!("http://{}/only/echo", stage.clear());
            let (out, _) = client("curl", &["--silent", "--fail", &url]).await?;
            ensure!(out.contains("\"GET\""), "{out}");
            stage.cluster.admin(0).delete("only").await?;
            stage.cluster.gone("only", SOON).await?;
        }
        let silent = stage.cluster.admin(0).service("silent").await?;
        ensure!(
            silent.is_some_and(|it| it.ready_replicas == 0),
            "it never answers"
        );
        stage.cluster.pass();
        Ok(())
    })
    .await
}
