//! Many at once. By themselves in one process and one after the other, as open files are counted for all of it.

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use raftserve_proxy::{Http1Path, NoSessions, ProxyConfig};
use support::{Hand, LIMIT, Rig, config, http2_client, log, recorder, service, soon, upstream};

const GET: &str = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";

fn rig(config: ProxyConfig, address: std::net::SocketAddr) -> Rig {
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
        a_thousand_streams(path).await;
        ten_thousand_idle_connections(path).await;
    }
}

/// One proxy, one replica, and a thousand streams at once over four connections.
async fn a_thousand_streams(path: Http1Path) {
    const STREAMS: usize = 1000;
    let address = upstream(|_| async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        http::Response::new(Full::new(Bytes::from_static(b"ok")))
    })
    .await;
    let config = ProxyConfig {
        http1_path: path,
        ..config()
    };
    let rig = rig(config, address);
    let mut asks = Vec::new();
    let mut kept = Vec::new();
    for _ in 0..4 {
        let (mut sender, connection) = http2_client(&rig).await;
        for _ in 0..STREAMS / 4 {
            let answer = sender.send_request(request());
            asks.push(tokio::spawn(async move {
                let answer = answer.await.expect("an answer");
                answer
                    .into_body()
                    .collect()
                    .await
                    .expect("a body")
                    .to_bytes()
            }));
        }
        kept.push((sender, connection));
    }
    for ask in asks {
        assert_eq!(soon("an answer", ask).await.expect("no panic"), "ok");
    }
    assert_eq!(rig.metric("requests_total"), STREAMS as u64);
    rig.idle().await;
}

/// Ten thousand idle connections, as far as the limit of open files goes: both ends are here.
async fn ten_thousand_idle_connections(path: Http1Path) {
    let limit = std::fs::read_to_string("/proc/self/limits").expect("it is there");
    let files = limit
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let files = files.and_then(|line| line.split_whitespace().next()?.parse().ok());
    let count = files.unwrap_or(1024_usize).saturating_sub(400) / 2;
    let count = count.min(10_000);
    let mut config = config();
    config.header_timeout = LIMIT * 3;
    config.http1_path = path;
    let rig = rig(config, recorder("a", &log()).await);
    // One after the other: the queue of a listener is short, and each request needs a connection of the replica's.
    let mut clients = Vec::with_capacity(count);
    for _ in 0..count {
        let mut client = Hand::connect(rig.address).await;
        assert_eq!(client.ask(GET).await.1, "a");
        clients.push(client);
    }
    for _ in 0..10 {
        assert_eq!(support::get(rig.address, "h", "/").await.0, 200);
    }
    assert_eq!(rig.metric("requests_total"), count as u64 + 10);
    assert_eq!(rig.metric("requests_in_flight"), 0);
}
