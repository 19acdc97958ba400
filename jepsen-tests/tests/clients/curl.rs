//! curl: all that a user of HTTP sends, over each kind of connection.

use std::fs::File;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::stage::{self, PATHS, Stage, client};

/// How long a body is that fits no buffer on the way.
const LARGE: usize = 100_000_000;

/// A kind of connection.
struct Dialect {
    url: String,
    flags: Vec<String>,
    /// What curl calls what was spoken.
    version: &'static str,
}

fn dialects(stage: &Stage) -> [Dialect; 5] {
    let of = |url: String, flags: &[&str], version| Dialect {
        url,
        flags: flags.iter().map(ToString::to_string).collect(),
        version,
    };
    let clear = format!("http://{}", stage.clear());
    let tls = format!("https://{}", stage.tls);
    let authorities = stage.authorities();
    [
        of(clear.clone(), &["--http1.1"], "1.1"),
        of(clear.clone(), &["--http2-prior-knowledge"], "2"),
        // An upgrade to HTTP/2, which RFC 9113 has given up: the answer comes without.
        of(clear, &["--http2"], "1.1"),
        of(tls.clone(), &["--http1.1", "--cacert", &authorities], "1.1"),
        of(tls, &["--http2", "--cacert", &authorities], "2"),
    ]
}

/// What curl got.
struct Got {
    status: String,
    version: String,
    /// Lines of heads and trailers, names in lower case.
    fields: Vec<String>,
    body: String,
    said: String,
}

impl Got {
    fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.body).with_context(|| self.body.clone())
    }

    fn has(&self, field: &str) -> bool {
        self.fields.iter().any(|line| line == field)
    }
}

impl Dialect {
    fn args<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        let own = self.flags.iter().map(String::as_str);
        let common = [
            "--silent",
            "--show-error",
            "--max-time",
            "60",
            "--path-as-is",
        ];
        own.chain(common).chain(args.iter().copied()).collect()
    }

    async fn ask(&self, stage: &Stage, target: &str, args: &[&str]) -> anyhow::Result<Got> {
        let url = format!("{}{target}", self.url);
        let heads = stage.path("heads");
        let heads = heads.to_str().context("a path in UTF-8")?;
        let mut args = self.args(args);
        args.extend([
            "--dump-header",
            heads,
            "--write-out",
            "\n%{http_code} %{http_version}",
            &url,
        ]);
        let (out, said) = client("curl", &args).await?;
        let (body, end) = out.rsplit_once('\n').context("its last line")?;
        let (status, version) = end.split_once(' ').context("two words")?;
        let fields = std::fs::read_to_string(heads)?;
        let fields = fields.lines().map(|line| match line.split_once(':') {
            Some((name, value)) => format!("{}:{value}", name.to_lowercase()),
            None => line.to_owned(),
        });
        ensure!(version == self.version, "{target}: HTTP/{version}");
        Ok(Got {
            status: status.to_owned(),
            version: version.to_owned(),
            fields: fields.collect(),
            body: body.to_owned(),
            said,
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_is_served_on_the_short_path() -> anyhow::Result<()> {
    stage::run(&["curl"], &[], all_of(PATHS[0])).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_is_served_on_the_general_path() -> anyhow::Result<()> {
    stage::run(&["curl"], &[], all_of(PATHS[1])).await
}

async fn all_of(path: &str) -> anyhow::Result<()> {
    let stage = Stage::start(path, &[]).await?;
    stage.serve("http_replica.py", 1).await?;
    for dialect in dialects(&stage) {
        let named = || format!("{path}: {} {:?}", dialect.url, dialect.flags);
        any_method(&dialect, &stage).await.with_context(named)?;
        exact_paths(&dialect, &stage).await.with_context(named)?;
        answers_untouched(&dialect, &stage)
            .await
            .with_context(named)?;
        uploads(&dialect, &stage).await.with_context(named)?;
        flushed(&dialect).await.with_context(named)?;
        large_bodies(&dialect, &stage).await.with_context(named)?;
    }
    stage.cluster.pass();
    Ok(())
}

async fn any_method(dialect: &Dialect, stage: &Stage) -> anyhow::Result<()> {
    for method in ["GET", "OPTIONS", "PATCH", "PUT", "DELETE", "PROPFIND"] {
        let got = dialect.ask(stage, "/echo", &["--request", method]).await?;
        ensure!(got.json()?["method"] == method, "{method}: {}", got.body);
    }
    let got = dialect
        .ask(stage, "/pattern?bytes=1000", &["--head"])
        .await?;
    ensure!(
        got.status == "200" && got.has("content-length: 1000"),
        "{:?}",
        got.fields
    );
    let got = dialect
        .ask(
            stage,
            "/echo",
            &["--request", "OPTIONS", "--header", "Origin: http://a"],
        )
        .await?;
    let fields = got.json()?["fields"].clone();
    let fields = fields.as_array().context("a list")?;
    ensure!(
        fields.contains(&json!(["origin", "http://a"])),
        "{}",
        got.body
    );
    Ok(())
}

async fn exact_paths(dialect: &Dialect, stage: &Stage) -> anyhow::Result<()> {
    for target in [
        "/echo/a%2Fb/%20c%c3%A9?x=%2F&y=a+b&&z",
        "/echo//double/./dot/../up;p=1,2",
        "/echo/only%2fpath",
        "/echo?",
    ] {
        let got = dialect.ask(stage, target, &[]).await?;
        ensure!(got.json()?["target"] == target, "{target}: {}", got.body);
    }
    Ok(())
}

async fn answers_untouched(dialect: &Dialect, stage: &Stage) -> anyhow::Result<()> {
    let got = dialect.ask(stage, "/cookies", &[]).await?;
    for cookie in ["set-cookie: a=1; Path=/", "set-cookie: b=2, and; Path=/"] {
        ensure!(got.has(cookie), "{:?}", got.fields);
    }
    let got = dialect.ask(stage, "/echo", &[]).await?;
    ensure!(
        !got.body.contains("cookie"),
        "of another request: {}",
        got.body
    );

    let got = dialect
        .ask(stage, "/pattern?bytes=1000", &["--range", "65-68"])
        .await?;
    ensure!(
        got.status == "206" && got.body == "ABCD",
        "{} {}",
        got.status,
        got.body
    );
    ensure!(
        got.has("content-range: bytes 65-68/1000"),
        "{:?}",
        got.fields
    );
    let known = ["--header", "If-None-Match: \"pattern\""];
    let got = dialect.ask(stage, "/pattern?bytes=1000", &known).await?;
    ensure!(
        got.status == "304" && got.has("etag: \"pattern\""),
        "{:?}",
        got.fields
    );

    let got = dialect
        .ask(stage, "/trailers", &["--header", "TE: trailers"])
        .await?;
    ensure!(
        got.body == "hello" && got.has("x-sum: 99"),
        "{:?}",
        got.fields
    );
    Ok(())
}

async fn uploads(dialect: &Dialect, stage: &Stage) -> anyhow::Result<()> {
    let small = stage.path("small");
    std::fs::write(&small, "0123456789")?;
    let data = format!("@{}", small.display());
    let args = [
        "--verbose",
        "--header",
        "Expect: 100-continue",
        "--data-binary",
        &data,
    ];
    let got = dialect.ask(stage, "/echo", &args).await?;
    ensure!(got.json()?["bytes"] == 10, "{}", got.body);
    if got.version == "1.1" {
        ensure!(got.said.contains("< HTTP/1.1 100 Continue"), "{}", got.said);
    }
    // A named pipe has no length that curl could tell.
    let args = [
        "--header",
        "Transfer-Encoding: chunked",
        "--data-binary",
        &data,
    ];
    if got.version == "1.1" {
        let got = dialect.ask(stage, "/echo", &args).await?;
        ensure!(got.json()?["bytes"] == 10, "{}", got.body);
    }
    Ok(())
}

/// Each event arrives before the replica sends the next.
async fn flushed(dialect: &Dialect) -> anyhow::Result<()> {
    let url = format!("{}/events", dialect.url);
    let mut events = Command::new("curl")
        .args(dialect.args(&["--no-buffer", &url]))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let out = events.stdout.take().context("it is piped")?;
    let mut lines = BufReader::new(out).lines();
    for number in 0..3 {
        let line = timeout(Duration::from_secs(20), lines.next_line()).await;
        let line = line.with_context(|| format!("event {number} was held back"))??;
        ensure!(line == Some(format!("data: {number}")), "{line:?}");
        lines.next_line().await?;
        if number < 2 {
            let url = format!("{}/go-on", dialect.url);
            client("curl", &dialect.args(&[&url])).await?;
        }
    }
    ensure!(events.wait().await?.success(), "curl failed");
    Ok(())
}

async fn large_bodies(dialect: &Dialect, stage: &Stage) -> anyhow::Result<()> {
    let (large, back) = (stage.path("large"), stage.path("back"));
    if !large.exists() {
        let block: Vec<u8> = (0..251_000).map(|at| (at % 251) as u8).collect();
        let mut file = File::create(&large)?;
        let mut left = LARGE;
        while left > 0 {
            let part = left.min(block.len());
            file.write_all(&block[..part])?;
            left -= part;
        }
    }
    let path = large.to_string_lossy();
    let got = dialect
        .ask(stage, "/echo", &["--upload-file", &path])
        .await?;
    let sum = client("sha256sum", &[&path]).await?.0;
    let told = got.json()?;
    ensure!(told["bytes"] == LARGE, "{}", got.body);
    ensure!(
        told["sha256"].as_str() == sum.split(' ').next(),
        "{}",
        got.body
    );
    let target = format!("/pattern?bytes={LARGE}");
    dialect
        .ask(stage, &target, &["--output", &back.to_string_lossy()])
        .await?;
    client("cmp", &[&path, &back.to_string_lossy()]).await?;
    Ok(())
}
