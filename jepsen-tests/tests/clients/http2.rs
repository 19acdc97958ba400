//! HTTP/2 by nghttp, and as h2spec has read it.

use anyhow::ensure;
use jepsen_tests::binary;
use serde_json::Value;

use crate::stage::{self, Stage, client, ended};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nghttp_is_served() -> anyhow::Result<()> {
    // No registry of a language has it.
    if !binary::may_have("nghttp") {
        return Ok(());
    }
    stage::run(&[], &[], async {
        let stage = Stage::start("fast", &[]).await?;
        stage.serve("http_replica.py", 1).await?;
        let body = stage.path("body");
        std::fs::write(&body, "0123456789")?;
        let body = body.to_string_lossy();
        let echo = [
            format!("http://{}/echo", stage.clear()),
            format!("https://{}/echo", stage.tls),
        ];
        for url in &echo {
            let args = [
                "--data",
                &body,
                "--trailer",
                "x-sum: 45",
                "--no-content-length",
            ];
            let (out, _) = client("nghttp", &[&args[..], &[url]].concat()).await?;
            let said: Value = serde_json::from_str(&out)?;
            ensure!(said["method"] == "POST" && said["bytes"] == 10, "{said}");
            ensure!(
                said["trailers"] == serde_json::json!(["x-sum: 45"]),
                "{said}"
            );
            // Many streams of one connection.
            let (out, _) = client("nghttp", &["--multiply", "50", url]).await?;
            ensure!(out.matches("\"GET\"").count() == 50, "{out}");
        }
        stage.cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2spec_finds_no_fault() -> anyhow::Result<()> {
    stage::run(&["h2spec"], &[], async {
        let stage = Stage::start("fast", &[]).await?;
        stage.serve("http_replica.py", 1).await?;
        let (clear, tls) = (
            stage.clear().port().to_string(),
            stage.tls.port().to_string(),
        );
        let common = ["-h", "127.0.0.1", "-P", "/echo", "-o", "5"];
        let args = [&common[..], &["-p", &tls, "-t", "-k"]].concat();
        let (out, _) = client("h2spec", &args).await?;
        ensure!(out.contains(", 0 failed"), "{out}");
        // What does not begin as HTTP/2 is taken for HTTP/1.1 on a port that speaks both, and answered so.
        let args = [&common[..], &["-p", &clear]].concat();
        let (_, out, said) = ended("h2spec", &args).await?;
        let failed: Vec<&str> = out.lines().filter(|line| line.contains('×')).collect();
        let known = |line: &&str| line.contains("Sends invalid connection preface");
        ensure!(out.contains(", 1 failed"), "{out}\n{said}");
        ensure!(failed.iter().all(known), "{out}\n{said}");
        stage.cluster.pass();
        Ok(())
    })
    .await
}
