//! What is measured, and with which load.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use jepsen_tests::usage::Usage;

use crate::peers::{HTTP1_PORTS, PROXY_PORT, Peer, Running, message};

/// How many connections idle at once: enough that what the first ones share does not count.
const IDLE_CONNECTIONS: u32 = 5_000;

const BIG_BYTES: f64 = (1 << 20) as f64;

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// 64 connections of HTTP/1.1, answers of 100 bytes.
    H1,
    /// Calls as of gRPC over HTTP/2 in cleartext: 16 connections with 10 streams each.
    H2c,
    /// 200 streams with a part each 10 ms.
    Sse,
    /// Answers of 1 MiB on 16 connections.
    Big,
    /// Connections that idle after a request.
    Idle,
    /// One small request after the other, while 200 answers of 64 MiB are taken: how long the middle one lasts.
    Beside,
    /// [`Self::H1`], with one worker and two, each path and the whole peer by themselves.
    Workers,
}

/// One figure, the smaller the better but for [`Scenario::Big`], and what else is worth knowing.
pub(crate) struct Measured {
    pub(crate) figure: f64,
    pub(crate) note: String,
}

impl Scenario {
    pub(crate) const ALL: [Self; 7] = [
        Self::H1,
        Self::H2c,
        Self::Sse,
        Self::Big,
        Self::Idle,
        Self::Beside,
        Self::Workers,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::H1 => "h1",
            Self::H2c => "h2c",
            Self::Sse => "sse",
            Self::Big => "big",
            Self::Idle => "idle",
            Self::Beside => "beside",
            Self::Workers => "workers",
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::H1 | Self::H2c | Self::Workers => "us/request",
            Self::Sse => "us/part",
            Self::Big => "GB/CPU-s",
            Self::Idle => "KB/connection",
            Self::Beside => "us",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|each| each.name() == name)
    }

    /// What a peer is compared with.
    pub(crate) fn yardstick(self, peer: Peer) -> Peer {
        match self {
            Self::Workers => peer.with_one_worker().unwrap_or(peer),
            _ => Peer::Haproxy,
        }
    }

    pub(crate) fn concerns(self, peer: Peer) -> bool {
        let has_two = peer.with_one_worker().is_some();
        match self {
            Self::Workers => {
                let is_of_two = |two: &Peer| two.with_one_worker() == Some(peer);
                has_two || Peer::ALL.iter().any(is_of_two)
            }
            Self::H2c => !has_two && !matches!(peer, Peer::Hyper | Peer::NodeHyper),
            _ => !has_two,
        }
    }

    pub(crate) fn measure(
        self,
        proxy: &Running,
        seconds: u64,
        folder: &Path,
    ) -> anyhow::Result<Measured> {
        let pid = proxy.pid()?;
        match self {
            Self::Idle => return idle(pid),
            Self::Beside => return beside(seconds),
            _ => {}
        }
        if self != Self::Sse {
            self.load(1, folder)?; // Opens connections and fills buffers.
        }
        let before = Usage::of(&[pid])?;
        let (count, note) = self.load(seconds, folder)?;
        let cpu = (Usage::of(&[pid])? - before).cpu.as_secs_f64();
        if count == 0.0 || cpu == 0.0 {
            bail!("{}: nothing was done: {note}", self.name());
        }
        let figure = match self {
            Self::Big => count * BIG_BYTES / 1e9 / cpu,
            _ => cpu * 1e6 / count,
        };
        Ok(Measured { figure, note })
    }

    /// Puts load on for so long: how much was done, and how it went.
    fn load(self, seconds: u64, folder: &Path) -> anyhow::Result<(f64, String)> {
        let wrk = |connections: &str, path: &str| {
            let said = wrk(connections, seconds, path)?;
            let count = before(&said, " requests in").context("wrk said no count")?;
            let rate = after(&said, "Requests/sec:").unwrap_or_default();
            let median = median(&said).unwrap_or("?");
            Ok((count, format!("{rate:.0}/s, p50 {median}")))
        };
        match self {
            Self::H1 | Self::Workers | Self::Idle | Self::Beside => wrk("-c64", "/"),
            Self::Big => wrk("-c16", "/1m"),
            Self::H2c => {
                let body = folder.join("message");
                fs::write(&body, message()).context("cannot write a message")?;
                let (duration, body) = (format!("-D{seconds}"), body.display().to_string());
                let target = format!("http://127.0.0.1:{PROXY_PORT}/svc.Echo/Unary");
                let words = [
                    "h2load",
                    &duration,
                    "-c16",
                    "-m10",
                    "-t1",
                    "-d",
                    &body,
                    "-H",
                    "content-type: application/grpc",
                    "-H",
                    "te: trailers",
                    &target,
                ];
                let said = output(&words.map(str::to_owned))?;
                let count = before(&said, " succeeded").context("h2load said no count")?;
                let failed = before(&said, " failed").unwrap_or_default();
                Ok((
                    count,
                    format!("{:.0}/s, {failed} failed", count / seconds as f64),
                ))
            }
            Self::Sse => streams(PROXY_PORT),
        }
    }

    /// How it goes without any proxy, where that tells what of a figure is the load's own.
    pub(crate) fn direct(self) -> anyhow::Result<Option<String>> {
        match self {
            Self::Sse => streams(HTTP1_PORTS[0]).map(|(_, note)| Some(note)),
            _ => Ok(None),
        }
    }
}

/// Takes streams from a port: how many parts came, and how long they were on their way.
fn streams(port: u16) -> anyhow::Result<(f64, String)> {
    let own = std::env::current_exe().context("this program has a path")?;
    let said = output(&[own.display().to_string(), "sse".into(), port.to_string()])?;
    let (count, note) = said.trim().split_once(' ').context("no parts came")?;
    Ok((count.parse().context("no count")?, note.to_owned()))
}

/// How much memory each connection that idles adds.
fn idle(pid: i32) -> anyhow::Result<Measured> {
    let own = std::env::current_exe().context("this program has a path")?;
    let before = Usage::of(&[pid])?.memory_bytes;
    let mut client = Command::new("taskset")
        .args(["-c", "1"])
        .arg(own)
        .args([
            "idle",
            &PROXY_PORT.to_string(),
            &IDLE_CONNECTIONS.to_string(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start a client")?;
    let said = client.stdout.take().context("it has an output")?;
    let mut line = String::new();
    BufReader::new(said)
        .read_line(&mut line)
        .context("the client says when it is ready")?;
    let after = Usage::of(&[pid])?.memory_bytes;
    drop(client.stdin.take()); // It ends with its input.
    client.wait().context("the client ends")?;
    if line.trim() != "ready" {
        bail!("not all connections were served");
    }
    let added = after.saturating_sub(before) as f64;
    Ok(Measured {
        figure: added / 1024.0 / f64::from(IDLE_CONNECTIONS),
        note: format!("{:.1} MB without any", before as f64 / 1e6),
    })
}

/// How long a small request takes beside large answers, and how much of these passes meanwhile.
fn beside(seconds: u64) -> anyhow::Result<Measured> {
    let large = thread::spawn(move || wrk("-c200", seconds + 2, "/64m"));
    thread::sleep(Duration::from_secs(1)); // The others have begun.
    let small = wrk("-c1", seconds, "/")?;
    let large = large.join().expect("no panic")?;
    let median = median(&small).context("wrk said no latency")?;
    let number = median.trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
    let unit = match &median[number.len()..] {
        "us" => 1.0,
        "ms" => 1e3,
        _ => 1e6,
    };
    let number: f64 = number.parse().context("a time is a number")?;
    let passed = large
        .lines()
        .find_map(|line| line.strip_prefix("Transfer/sec:"));
    Ok(Measured {
        figure: number * unit,
        note: format!("beside {}/s", passed.unwrap_or("?").trim()),
    })
}

/// Asks for a path over so many connections (`-c64`), for so long. What wrk says of it.
fn wrk(connections: &str, seconds: u64, path: &str) -> anyhow::Result<String> {
    let duration = format!("-d{seconds}");
    let target = format!("http://127.0.0.1:{PROXY_PORT}{path}");
    let words = [
        "wrk",
        "-t1",
        connections,
        &duration,
        "--timeout=30",
        "--latency",
        &target,
    ];
    let said = output(&words.map(str::to_owned))?;
    if said.contains("Non-2xx") || said.contains("Socket errors") {
        bail!("requests failed: {said}");
    }
    Ok(said)
}

/// What wrk says of the middle request.
fn median(said: &str) -> Option<&str> {
    let mut lines = said.lines();
    let median = lines.find_map(|line| line.trim().strip_prefix("50%"))?;
    Some(median.trim())
}

fn output(words: &[String]) -> anyhow::Result<String> {
    let output = Command::new("taskset")
        .args(["-c", "1"])
        .args(words)
        .output()
        .with_context(|| format!("cannot run {}", words[0]))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{} failed: {said}{}",
            words[0],
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(said)
}

/// The number right before some words.
fn before(text: &str, words: &str) -> Option<f64> {
    let head = &text[..text.find(words)?];
    head.rsplit(|character: char| !character.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

/// The number right after some words.
fn after(text: &str, words: &str) -> Option<f64> {
    let rest = text[text.find(words)? + words.len()..].trim_start();
    rest.split_whitespace().next()?.parse().ok()
}
