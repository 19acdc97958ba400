//! The clients that no common load generator is: of streams, and of connections that idle.

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::upstream::{PARTS, now};

const STREAMS: usize = 200;
const ROUNDS: usize = 2;

/// The pause between the starts of two streams: so spread over three of their parts' pauses, they are at work one after the
/// other and not all at once.
const START_PAUSE: Duration = Duration::from_micros(150);

/// How long connections idle before their memory is looked at.
const IDLE: Duration = Duration::from_secs(2);

/// The longest that a stream may take: several times what it should.
const STREAM_MAX: Duration = Duration::from_secs(15);

fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.context("no runtime")?.block_on(future)
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a.example\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
}

/// Takes streams and prints how many parts came, and how long each was on its way.
pub(crate) fn sse(words: &[String]) -> anyhow::Result<()> {
    let port: u16 = words
        .first()
        .context("a port")?
        .parse()
        .context("a port is a number")?;
    let mut delays = block_on(async {
        let mut delays = Vec::with_capacity(STREAMS * ROUNDS * PARTS);
        for _ in 0..ROUNDS {
            let mut streams = Vec::with_capacity(STREAMS);
            for _ in 0..STREAMS {
                streams.push(tokio::spawn(stream(port)));
                tokio::task::yield_now().await;
                // Shorter than what the runtime's timer can tell apart, and nothing else waits yet.
                std::thread::sleep(START_PAUSE);
            }
            for stream in streams {
                let stream = timeout(STREAM_MAX, stream)
                    .await
                    .context("a stream hangs")?;
                delays.extend(stream.context("no panic")??);
            }
        }
        anyhow::Ok(delays)
    })?;
    delays.sort_unstable();
    let at = |part: usize| delays[(delays.len() - 1) * part / 100] / 1_000;
    println!(
        "{} one way p50 {} us, p99 {} us",
        delays.len(),
        at(50),
        at(99)
    );
    Ok(())
}

/// The delays of the parts of one stream.
async fn stream(port: u16) -> anyhow::Result<Vec<u64>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))
        .await
        .context("cannot connect")?;
    stream
        .write_all(request("/sse").as_bytes())
        .await
        .context("cannot send")?;
    let (mut text, mut delays) = (Vec::new(), Vec::with_capacity(PARTS));
    const MARK: &[u8] = b"data: ";
    loop {
        if stream.read_buf(&mut text).await.context("cannot read")? == 0 {
            bail!("cut after {} parts", delays.len());
        }
        let read = now();
        while let Some(at) = text.windows(MARK.len()).position(|bytes| bytes == MARK) {
            let Some(sent) = text.get(at + MARK.len()..at + MARK.len() + 19) else {
                break;
            };
            let sent: u64 = std::str::from_utf8(sent)
                .context("text")?
                .parse()
                .context("a time")?;
            delays.push(read.saturating_sub(sent));
            text.drain(..at + MARK.len() + 19);
        }
        if text.ends_with(b"0\r\n\r\n") {
            if delays.len() != PARTS {
                bail!("{} parts", delays.len());
            }
            return Ok(delays);
        }
    }
}

/// Opens connections, makes one request on each, says so, and holds them until its input ends.
pub(crate) fn idle(words: &[String]) -> anyhow::Result<()> {
    let [port, count] = words else {
        bail!("a port and a count");
    };
    let port: u16 = port.parse().context("a port is a number")?;
    let count: usize = count.parse().context("a count is a number")?;
    let _held = block_on(async {
        let mut held = Vec::with_capacity(count);
        let mut answer = vec![0; 4 << 10];
        for _ in 0..count {
            let mut stream = TcpStream::connect(("127.0.0.1", port))
                .await
                .context("cannot connect")?;
            stream
                .write_all(request("/").as_bytes())
                .await
                .context("cannot send")?;
            let read = stream.read(&mut answer).await.context("cannot read")?;
            if !answer[..read].starts_with(b"HTTP/1.1 200") {
                bail!("no answer");
            }
            held.push(stream.into_std().context("cannot hold")?);
        }
        sleep(IDLE).await;
        Ok(held)
    })?;
    println!("ready");
    let _ = std::io::stdin().read(&mut [0]);
    Ok(())
}
