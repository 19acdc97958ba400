//! A replica that is taken away while it answers: what it has begun goes on, for as long as its service lets it drain.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use jepsen_tests::admin::v1;
use jepsen_tests::cluster::Cluster;
use jepsen_tests::{http, wait};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use crate::stage::{self, SETTLE, Share};

/// Answers at once, or with a word now and then until there is a file of the name that it is given.
const SOURCE: &str = r#"
import http.server, os, sys, time
own = os.environ["SKYPILOT_SERVE_REPLICA_ID"]
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("x-replica", own)
        if self.path != "/stream":
            self.send_header("content-length", "0")
            self.end_headers()
            return
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        while not os.path.exists(sys.argv[1]):
            self.wfile.write(b"5\r\nword\n\r\n")
            time.sleep(0.05)
        self.wfile.write(b"4\r\nend\n\r\n0\r\n\r\n")
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

/// Far longer than a test takes.
const LONG: Duration = Duration::from_secs(600);

/// A service of that program, which may drain for so long.
struct Streams {
    cluster: Cluster,
    drain: Duration,
}

impl Streams {
    async fn begin(drain: Duration) -> anyhow::Result<Self> {
        let streams = Self {
            cluster: Cluster::start().await?,
            drain,
        };
        fs::write(streams.cluster.path("stream.py"), SOURCE)?;
        let yaml = streams.yaml(2);
        streams.cluster.admin(0).apply(&yaml).await?;
        streams.cluster.settled("web", SETTLE).await?;
        Ok(streams)
    }

    fn yaml(&self, replicas: u32) -> String {
        let (program, end) = (self.cluster.path("stream.py"), self.cluster.path("end"));
        let drain = self.drain.as_secs();
        format!(
            "name: web\n\
             service:\n  replicas: {replicas}\n  load_balancing_policy: round_robin\n  \
             readiness_probe: {{path: /, timeout_seconds: 10, endpoint_probe_interval_seconds: 0.2}}\n\
             resources: {{ports: 8080}}\n\
             run: exec python3 {} {}\n\
             _metadata: {{raftserve: {{drain_timeout_seconds: {drain}, stop_grace_seconds: 5}}}}\n",
            program.display(),
            end.display()
        )
    }

    /// Where requests go: to another peer than what is asked of the cluster.
    fn proxy(&self) -> SocketAddr {
        self.cluster.peer(1).setup.ports.proxy
    }

    /// A stream of each replica, by its number.
    async fn one_of_each(&self) -> anyhow::Result<BTreeMap<u32, Stream>> {
        let mut streams = BTreeMap::new();
        let all = async {
            while streams.len() < 2 {
                let stream = Stream::begin(self.proxy()).await?;
                streams.entry(stream.replica).or_insert(stream);
            }
            anyhow::Ok(())
        };
        timeout(SETTLE, all).await.context("a stream of each")??;
        Ok(streams)
    }

    /// Takes a replica away, and returns the number of the one that drains.
    async fn take_one(&self) -> anyhow::Result<u32> {
        let admin = self.cluster.admin(0);
        admin.update("web", &self.yaml(1)).await?;
        wait::until("a replica that drains", SETTLE, async || {
            let replicas = admin.replicas().await?;
            let drains = |it: &&v1::Replica| it.status() == v1::ReplicaStatus::ShuttingDown;
            let drains = replicas.iter().find(drains).map(|it| it.id);
            drains.with_context(|| format!("{replicas:?}"))
        })
        .await
    }

    /// Waits until the other one alone is asked.
    async fn only_the_other_is_asked(&self, drains: u32) -> anyhow::Result<()> {
        const ASKS: usize = 10;
        wait::until("the other to be asked alone", SETTLE, async || {
            for _ in 0..ASKS {
                let reply = http::get(self.proxy(), "/web/").await;
                let Ok(reply) = reply else {
                    bail!("{reply:?}");
                };
                let replica = reply.header("x-replica");
                ensure!(reply.status == 200, "{reply:?}");
                ensure!(replica != Some(drains.to_string()), "{reply:?}");
            }
            Ok(())
        })
        .await
    }
}

/// An answer that goes on.
struct Stream {
    replica: u32,
    lines: Lines<BufReader<OwnedReadHalf>>,
    _sends: OwnedWriteHalf,
}

impl Stream {
    async fn begin(proxy: SocketAddr) -> anyhow::Result<Self> {
        let (reads, mut sends) = TcpStream::connect(proxy).await?.into_split();
        sends
            .write_all(b"GET /web/stream HTTP/1.1\r\nhost: h\r\n\r\n")
            .await?;
        let mut stream = Self {
            replica: 0,
            lines: BufReader::new(reads).lines(),
            _sends: sends,
        };
        loop {
            let line = stream.line().await?.context("a head")?.to_lowercase();
            if let Some(number) = line.strip_prefix("x-replica: ") {
                stream.replica = number.parse().context("a number")?;
            }
            if line.is_empty() {
                ensure!(stream.replica > 0, "it names its replica");
                return Ok(stream);
            }
        }
    }

    /// The next line, or `None` at the end, and at a reset.
    async fn line(&mut self) -> anyhow::Result<Option<String>> {
        let line = timeout(SETTLE, self.lines.next_line()).await;
        Ok(line.context("a line")?.ok().flatten())
    }

    /// So many more words come.
    async fn goes_on(&mut self, words: usize) -> anyhow::Result<()> {
        let mut seen = 0;
        while seen < words {
            let line = self.line().await?;
            let line = line.with_context(|| format!("it was cut after {seen} words"))?;
            seen += usize::from(line == "word");
        }
        Ok(())
    }

    /// Reads to its end: the last words of it.
    async fn rest(&mut self) -> anyhow::Result<Vec<String>> {
        let mut rest = Vec::new();
        while let Some(line) = self.line().await? {
            rest.push(line);
            if rest.ends_with(&["0".to_owned(), String::new()]) {
                break;
            }
        }
        Ok(rest)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_taken_away_keeps_its_streams_until_the_drain_time_is_over()
-> anyhow::Result<()> {
    const DRAIN: Duration = Duration::from_secs(4);
    stage::run(Share::Half, async {
        let streams = Streams::begin(DRAIN).await?;
        let mut each = streams.one_of_each().await?;
        let asked = Instant::now();
        let drains = streams.take_one().await?;
        let mut cut = each.remove(&drains).context("it has a stream")?;
        streams.only_the_other_is_asked(drains).await?;
        cut.goes_on(10).await?;
        let rest = cut.rest().await?;
        let lasted = asked.elapsed();
        ensure!(lasted >= DRAIN, "it was cut after {lasted:?}");
        ensure!(!rest.contains(&"end".to_owned()), "{rest:?}");
        for stream in each.values_mut() {
            stream.goes_on(10).await?;
        }
        streams.cluster.settled("web", SETTLE).await?;
        streams.cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_taken_away_ends_with_its_last_stream() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let streams = Streams::begin(LONG).await?;
        let mut each = streams.one_of_each().await?;
        let drains = streams.take_one().await?;
        streams.only_the_other_is_asked(drains).await?;
        for stream in each.values_mut() {
            stream.goes_on(10).await?;
        }
        fs::write(streams.cluster.path("end"), "")?;
        for stream in each.values_mut() {
            let rest = stream.rest().await?;
            ensure!(rest.contains(&"end".to_owned()), "{rest:?}");
        }
        streams.cluster.settled("web", SETTLE).await?;
        streams.cluster.pass();
        Ok(())
    })
    .await
}
