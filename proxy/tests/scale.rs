//! Many at once. By themselves in one process and one after the other, as open files are counted for all of it.

mod support;

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use raftserve_proxy::{Http1Path, NoSessions, ProxyConfig};
use rustix::process::{Resource, getrlimit, setrlimit};
use support::{
    LIMIT, Rig, config, http2_client, is_required, log, recorder, resident_bytes, service, soon,
    until,
};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, block_in_place};

const GET: &str = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";

fn rig(config: ProxyConfig, address: SocketAddr) -> Rig {
    let mut svc = service(1, "svc", &[address]);
    // A thousand connects at once are more than the queue of a listener takes.
    svc.traffic.upstream.connect_timeout = LIMIT;
    Rig::with(config, [svc], Arc::new(NoSessions))
}

fn request() -> Request<Full<Bytes>> {
    let request = Request::get("http://svc/").body(Full::default());
    request.expect("a good request")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_and_many_connections_are_all_served() {
    for path in [Http1Path::Fast, Http1Path::Hyper] {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            a_thousand_streams(path, version).await;
        }
        ten_thousand_idle_connections(path).await;
    }
}

/// A replica whose answers have so many parts, each of which is sent once `step` has come so far.
async fn in_steps(parts: usize, step: watch::Receiver<usize>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let step = step.clone();
            let answer = service_fn(move |_: Request<Incoming>| {
                let step = step.clone();
                let parts = stream::unfold((0, step), move |(n, mut step)| async move {
                    if n == parts || step.wait_for(|&step| step >= n).await.is_err() {
                        return None;
                    }
                    let part = Frame::data(Bytes::from(format!("{n:02}")));
                    Some((Ok::<_, Infallible>(part), (n + 1, step)))
                });
                let body = StreamBody::new(parts);
                async move { Ok::<_, Infallible>(Response::new(body)) }
            });
            let serve = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
            tokio::spawn(serve);
        }
    });
    address
}

/// Asks for so many answers at once: over four connections of HTTP/2, or one of HTTP/1.1 each.
async fn ask_at_once(
    rig: &Rig,
    version: Version,
    count: usize,
) -> Vec<JoinHandle<hyper::Result<Response<Incoming>>>> {
    const STREAMS_EACH: usize = 250;
    let mut asks = Vec::new();
    if version == Version::HTTP_2 {
        for _ in 0..count.div_ceil(STREAMS_EACH) {
            let (mut sender, _connection) = http2_client(rig).await;
            let streams = STREAMS_EACH.min(count - asks.len());
            asks.extend((0..streams).map(|_| tokio::spawn(sender.send_request(request()))));
        }
        return asks;
    }
    for _ in 0..count {
        let stream = tokio::net::TcpStream::connect(rig.address).await;
        let stream = TokioIo::new(stream.expect("it listens"));
        let (mut sender, connection) = client::conn::http1::handshake(stream)
            .await
            .expect("it speaks HTTP/1.1");
        tokio::spawn(connection);
        let request = Request::get("/").header("host", "svc");
        let request = request.body(Full::<Bytes>::default());
        let request = request.expect("a good request");
        asks.push(tokio::spawn(
            async move { sender.send_request(request).await },
        ));
    }
    asks
}

/// One proxy, one replica, and a thousand streams that flow at once, as far as the limit of open files goes.
async fn a_thousand_streams(path: Http1Path, version: Version) {
    const STREAMS: usize = 1000;
    const PARTS: usize = 20;
    /// What a stream may hold at its client, here and at its replica, which are all in this process.
    const EACH_MAX: usize = 128 << 10;
    /// The same on the short path, where an answer that has begun holds no buffer: 34 to 37 KB, and 43 to 45 KB with one. Of
    /// fewer streams each has a larger share of what all need.
    const SHORT_EACH_MAX: usize = 41 << 10;
    /// Both ends of a client's connection and of one to the replica.
    const FILES_EACH: usize = 4;
    let streams = as_many_as_may_be(STREAMS, FILES_EACH, "streams");
    let each_max = match (path, version) {
        (Http1Path::Fast, Version::HTTP_11) if streams == STREAMS => SHORT_EACH_MAX,
        _ => EACH_MAX,
    };
    let (next, step) = watch::channel(0);
    let address = in_steps(PARTS, step).await;
    let config = ProxyConfig {
        http1_path: path,
        ..config()
    };
    let rig = rig(config, address);
    let before = resident_bytes();
    let taken = Arc::<AtomicUsize>::default();
    let asks = ask_at_once(&rig, version, streams).await.into_iter();
    let asks: Vec<_> = asks
        .map(|ask| {
            let taken = Arc::clone(&taken);
            tokio::spawn(async move {
                let answer = ask.await.expect("no panic").expect("an answer");
                let mut body = answer.into_body();
                let mut whole = Vec::new();
                while let Some(frame) = body.frame().await {
                    let frame = frame.expect("a whole body");
                    let part = frame.data_ref().expect("data");
                    whole.extend_from_slice(part);
                    taken.fetch_add(part.len(), Ordering::Relaxed);
                }
                whole
            })
        })
        .collect();
    for n in 0..PARTS {
        let all = (n + 1) * 2 * streams;
        until("a part of each stream", || {
            taken.load(Ordering::Relaxed) == all
        })
        .await;
        if n == PARTS / 2 {
            assert_eq!(rig.metric("requests_in_flight"), streams as u64);
            let grown = resident_bytes().saturating_sub(before);
            assert!(
                grown < streams * each_max,
                "{path:?} {version:?}: {grown} bytes more"
            );
        }
        next.send_replace(n + 1);
    }
    let expected: String = (0..PARTS).map(|n| format!("{n:02}")).collect();
    for ask in asks {
        let whole = soon("an answer", ask).await.expect("no panic");
        assert_eq!(whole, expected.as_bytes());
    }
    assert_eq!(rig.metric("requests_total"), streams as u64);
    rig.idle().await;
    until("no request running", || {
        rig.metric("requests_in_flight") == 0
    })
    .await;
}

/// Clients that each make a request and keep their connection, in a process of their own: open files are counted for
/// each.
struct Clients {
    process: Child,
    told: BufReader<ChildStdout>,
}

impl Clients {
    fn start(address: SocketAddr, count: usize) -> Self {
        let this = std::env::current_exe().expect("it runs");
        let mut process = Command::new(this)
            .args(["--exact", "idle_clients", "--ignored", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs once more");
        let told = BufReader::new(process.stdout.take().expect("it is a pipe"));
        let mut clients = Self { process, told };
        clients.tell(&format!("{address} {count}"));
        clients.hear(READY);
        clients
    }

    /// Has some of them make another request.
    fn ask_again(&mut self) {
        self.tell("again");
        self.hear(SERVED);
    }

    fn tell(&mut self, line: &str) {
        let input = self.process.stdin.as_mut().expect("it is a pipe");
        writeln!(input, "{line}").expect("it reads");
    }

    fn hear(&mut self, word: &str) {
        let mut line = String::new();
        while !line.trim_end().ends_with(word) {
            line.clear();
            let read = self.told.read_line(&mut line).expect("text");
            assert!(read > 0, "the clients ended before they were {word}");
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait(); // It ends with its input.
    }
}

const READY: &str = "ready";
const SERVED: &str = "served";

#[test]
#[ignore = "the clients of many_streams_and_many_connections_are_all_served, which runs it"]
fn idle_clients() {
    let mut lines = std::io::stdin().lines();
    let mut next = || lines.next().map(|line| line.expect("text"));
    let Some(line) = next() else {
        return; // Nobody has run it.
    };
    let (address, count) = line.split_once(' ').expect("an address and a count");
    allow_open_files();
    // One after the other: the queue of a listener is short, and each request needs a connection of the replica's.
    let mut clients = Vec::new();
    for _ in 0..count.parse().expect("a count") {
        let client = TcpStream::connect(address).expect("it listens");
        client.set_read_timeout(Some(LIMIT)).expect("open");
        ask(&client);
        clients.push(client);
    }
    println!("{READY}");
    if next().is_some() {
        clients.iter().step_by(step(clients.len())).for_each(ask);
        println!("{SERVED}");
    }
    next();
}

/// Of so many, each how manieth makes another request: about a hundred do.
fn step(count: usize) -> usize {
    (count / 100).max(1)
}

/// One request and its answer.
fn ask(mut client: &TcpStream) {
    client.write_all(GET.as_bytes()).expect("open");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\na") {
        let mut room = [0; 1024];
        let count = client.read(&mut room).expect("an answer");
        assert!(count > 0, "the connection ended");
        answer.extend_from_slice(&room[..count]);
    }
}

/// Raises the limit of open files as far as it goes; it.
fn allow_open_files() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let files = limit.maximum.unwrap_or(u64::MAX);
    setrlimit(Resource::Nofile, limit).expect("no more than may be");
    usize::try_from(files).unwrap_or(usize::MAX)
}

/// As many as the limit of open files allows, `most` at the most, where each needs so many of this process. A line says so
/// where that is fewer.
///
/// # Panics
/// Where it is fewer, and tests must not be skipped.
fn as_many_as_may_be(most: usize, files_each: usize, what: &str) -> usize {
    /// What all else needs.
    const FILES_BESIDE: usize = 400;
    let files = allow_open_files();
    let count = (files.saturating_sub(FILES_BESIDE) / files_each).min(most);
    if count < most {
        let lack =
            format!("the limit of {files} open files allows {count} {what} instead of {most}");
        assert!(!is_required(), "{lack}");
        eprintln!("reduced: {lack}");
    }
    count
}

/// Ten thousand idle connections, as far as the limit of open files goes.
async fn ten_thousand_idle_connections(path: Http1Path) {
    const COUNT: usize = 10_000;
    /// What each may hold once it is at rest, here and at the replica, which is in this process too.
    const EACH_MAX: usize = 16 << 10;
    let count = as_many_as_may_be(COUNT, 1, "idle connections");
    let mut config = config();
    config.header_timeout = LIMIT * 30;
    config.http1_path = path;
    let rig = rig(config, recorder("a", &log()).await);
    let before = resident_bytes();
    let mut clients = block_in_place(|| Clients::start(rig.address, count));
    until("little memory for each", || {
        resident_bytes().saturating_sub(before) < count * EACH_MAX
    })
    .await;
    block_in_place(|| clients.ask_again());
    for _ in 0..10 {
        assert_eq!(support::get(rig.address, "h", "/").await.0, 200);
    }
    let again = count.div_ceil(step(count)) as u64;
    assert_eq!(rig.metric("requests_total"), count as u64 + again + 10);
    assert_eq!(rig.metric("requests_in_flight"), 0);
}
