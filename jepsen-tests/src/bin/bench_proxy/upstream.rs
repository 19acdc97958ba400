//! The replicas of HTTP/1.1: as little as a benchmark needs, so that they are not what is measured.

use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

/// How many parts a stream has, and how far they are apart.
pub(crate) const PARTS: usize = 200;
const PART_EVERY: Duration = Duration::from_millis(10);

/// The system's monotonic time in nanoseconds, which all processes share.
pub(crate) fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Serves on these ports until it is killed.
pub(crate) fn run(ports: &[String]) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.context("no runtime")?.block_on(async {
        let (aside, mut listeners) = (aside(), Vec::new());
        for port in ports {
            let port: u16 = port.parse().context("a port is a number")?;
            let listener = TcpListener::bind(("127.0.0.1", port)).await;
            let listener = listener.with_context(|| format!("cannot listen on port {port}"))?;
            let aside = aside.clone();
            listeners.push(tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(stream, aside.clone()));
                }
            }));
        }
        for listener in listeners {
            listener.await.context("it runs until it is killed")?;
        }
        Ok(())
    })
}

fn answer(kind: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

async fn serve(mut stream: TcpStream, aside: mpsc::Sender<TcpStream>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let small = answer("application/json", &[b'x'; 100]);
    let mut big = Vec::new();
    let mut read = Vec::with_capacity(4 << 10);
    loop {
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
        while let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            if read.starts_with(b"GET /sse") {
                stream_parts(&mut stream).await?;
            } else if read.starts_with(b"GET /1m") {
                if big.is_empty() {
                    big = answer("application/octet-stream", &vec![b'y'; 1 << 20]);
                }
                stream.write_all(&big).await.ok()?;
            } else if read.starts_with(b"GET /64m") {
                let _ = aside.send(stream).await;
                return None;
            } else {
                stream.write_all(&small).await.ok()?;
            }
            read.drain(..end + 4);
        }
    }
}

/// How many large answers may wait to begin.
const STREAMS_MAX: usize = 256;

/// A thread of its own for what is large: small answers do not wait for it here.
fn aside() -> mpsc::Sender<TcpStream> {
    let (sender, mut streams) = mpsc::channel::<TcpStream>(STREAMS_MAX);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a second runtime").block_on(async {
            while let Some(stream) = streams.recv().await {
                let stream = stream.into_std().and_then(TcpStream::from_std);
                tokio::spawn(large(stream.expect("it is open")));
            }
        });
    });
    sender
}

async fn large(mut stream: TcpStream) -> Option<()> {
    const PIECES: usize = 1 << 10;
    let piece = vec![b'z'; 64 << 10];
    let length = PIECES * piece.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.ok()?;
    for _ in 0..PIECES {
        stream.write_all(&piece).await.ok()?;
    }
    Some(())
}

async fn stream_parts(stream: &mut TcpStream) -> Option<()> {
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.ok()?;
    let mut pace = interval(PART_EVERY);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for _ in 0..PARTS {
        pace.tick().await;
        let part = format!("data: {:019} tok\n\n", now());
        let chunk = format!("{:x}\r\n{part}\r\n", part.len());
        stream.write_all(chunk.as_bytes()).await.ok()?;
    }
    stream.write_all(b"0\r\n\r\n").await.ok()
}
