//! What a proxy does when no more files may be opened. By itself in one process, and one test: the limit is that of
//! all of it.

mod support;

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use raftserve_model::spec::UpstreamSettings;
use raftserve_proxy::{Http1Path, OpenFiles, ProxyConfig, ReachError, ReplicaDialer};
use support::{
    FakeSessions, Hand, LIMIT, Rig, by_header, config, http2_client, log, recorder, replica,
    service, soon,
};

const PLAIN: &str = "GET / HTTP/1.1\r\nhost: svc\r\n\r\n";
const BOUND: &str = "GET / HTTP/1.1\r\nhost: bound\r\nsession: s\r\n\r\n";
const UNROUTED: &str = "GET / HTTP/1.1\r\nhost: nobody\r\n\r\n";

async fn rig(path: Http1Path) -> Rig {
    let log = log();
    let plain = service(1, "svc", &[recorder("a", &log).await]);
    let mut bound = service(2, "bound", &[recorder("b", &log).await]);
    bound.affinity = by_header("session");
    let config = ProxyConfig {
        http1_path: path,
        session_wait: Duration::from_millis(250),
        ..config()
    };
    let sessions = FakeSessions::new(&[replica(2, 1)], Duration::ZERO);
    Rig::with(config, [plain, bound], sessions)
}

fn call(host: &str) -> Request<Full<Bytes>> {
    Request::post(format!("http://{host}.example/pkg.Service/Method"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::default())
        .expect("a good request")
}

#[tokio::test]
async fn a_lack_of_files_is_answered_with_503_and_held_against_no_replica() {
    let limit = OpenFiles::raise().expect("it needs no privilege");
    let prober = ReplicaDialer::new(&UpstreamSettings::default(), LIMIT);
    for path in [Http1Path::Fast, Http1Path::Hyper] {
        let mut rig = rig(path).await;
        let mut client = Hand::connect(rig.address).await;
        let mut session = Hand::connect(rig.address).await;
        let (mut calls, _) = http2_client(&rig).await;
        // Once they are accepted, no connection is opened but to replicas.
        for each in [&mut client, &mut session] {
            assert_eq!(each.ask(UNROUTED).await.0[0], "http/1.1 404 not found");
        }
        let answer = soon("an answer", calls.send_request(call("nobody"))).await;
        assert_eq!(answer.expect("an answer").headers()["grpc-status"], "12"); // UNIMPLEMENTED

        OpenFiles::lower(0).expect("it needs no privilege");
        let (head, body) = client.ask(PLAIN).await;
        let (session_head, session_body) = session.ask(BOUND).await;
        let answer = soon("an answer", calls.send_request(call("svc"))).await;
        let reached = prober.open(rig.address, false).await.map(drop);
        assert_eq!(OpenFiles::raise().expect("again").begun_with, Some(0));

        assert!(matches!(reached, Err(ReachError::Local(_))), "{reached:?}");
        assert_eq!(head[0], "http/1.1 503 service unavailable");
        assert!(head.contains(&"retry-after: 1".to_owned()), "{head:?}");
        assert!(body.contains("peer_exhausted"), "{body}");
        assert_eq!(session_head[0], "http/1.1 503 service unavailable");
        assert!(session_body.contains("no more files"), "{session_body}");
        assert_eq!(answer.expect("an answer").headers()["grpc-status"], "14"); // UNAVAILABLE
        assert!(rig.metric("connects_lacking_resources_total") >= 2);
        for blame in ["connect_failures_total", "ejections_total"] {
            assert_eq!(rig.metric(blame), 0, "{blame}");
        }
        assert!(rig.failures.try_recv().is_err(), "no replica is suspected");

        assert_eq!(client.ask(PLAIN).await.1, "a", "at once");
        assert_eq!(session.ask(BOUND).await.1, "b");
        rig.idle().await;
    }
    assert_eq!(OpenFiles::raise().expect("again").now, limit.now);
}
