//! WebSockets by Python's library of that name.

use crate::stage::{self, PATHS, Stage, python};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_go_both_ways_and_end_as_the_server_says() -> anyhow::Result<()> {
    stage::run(&[], &["websockets"], async {
        for path in PATHS {
            let stage = Stage::start(path, &[]).await?;
            stage.serve("websocket_replica.py", 1).await?;
            let clear = format!("ws://{}/chat?room=1", stage.clear());
            python("websocket_client.py", &[&clear]).await?;
            let tls = format!("wss://{}/chat?room=1", stage.tls);
            python("websocket_client.py", &[&tls, &stage.authorities()]).await?;
            stage.cluster.pass();
        }
        Ok(())
    })
    .await
}
