//! Spans as a collector gets them that is made of OpenTelemetry's own messages.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::stage::{self, PATHS, Stage, client, program};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_is_told_of_a_request_and_its_try() -> anyhow::Result<()> {
    stage::run(&["curl"], &["grpc", "opentelemetry.proto"], async {
        for path in PATHS {
            told_on(path).await.context(path)?;
        }
        Ok(())
    })
    .await
}

async fn told_on(path: &str) -> anyhow::Result<()> {
    let mut collector = Command::new("python3")
        .arg(program("collector.py"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let out = collector.stdout.take().context("it is piped")?;
    let mut lines = BufReader::new(out).lines();
    let mut line = async || {
        let line = timeout(Duration::from_secs(30), lines.next_line()).await;
        line.context("the collector says nothing")??
            .context("the collector has ended")
    };
    let endpoint = format!("http://127.0.0.1:{}", line().await?);
    let stage = Stage::start(path, &["--otlp-endpoint", &endpoint, "--otlp-sample", "0"]).await?;
    stage.serve("http_replica.py", 1).await?;

    let url = format!("http://{}/echo?secret=1", stage.clear());
    let context = format!("traceparent: {PARENT}");
    let (out, _) = client("curl", &["--silent", "--header", &context, &url]).await?;
    let request: Value = serde_json::from_str(&line().await?)?;
    let tried: Value = serde_json::from_str(&line().await?)?;
    ensure!(request["of"]["service.name"] == "raftserve", "{request}");
    for (span, parent, kind) in [
        (&request, &Value::from(&PARENT[36..52]), 2),
        (&tried, &request["span"], 3),
    ] {
        ensure!(span["trace"] == PARENT[3..35], "{span}");
        ensure!(span["parent"] == *parent && span["kind"] == kind, "{span}");
        ensure!(span["name"] == "GET", "{span}");
        ensure!(
            span["nanos"].as_u64().is_some_and(|nanos| nanos > 0),
            "{span}"
        );
        let attributes = &span["attributes"];
        ensure!(attributes["http.response.status_code"] == 200, "{span}");
        ensure!(attributes["url.path"] == "/echo", "{span}");
        ensure!(!span.to_string().contains("secret"), "{span}");
    }
    let told = format!(
        "{}{}-01",
        &PARENT[..36],
        tried["span"].as_str().context("an id")?
    );
    ensure!(out.contains(&told), "{told} in {out}");
    stage.cluster.pass();
    Ok(())
}
