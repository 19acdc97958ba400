//! A collector of gRPC that receives what a proxy's requests were, and one that is away.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use raftserve_model::spec::{LoadBalancingPolicy, Traffic};
use raftserve_model::{ReplicaId, ServiceId, ServiceVersion};
use raftserve_proxy::{
    Endpoint as Route, NoSessions, Proxy, ProxyConfig, RouteTable, Routes, ServiceRoute, Tracer,
    USUAL_WEIGHT,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response};

use super::rpc::any_value::Value;
use super::rpc::span::SpanKind;
use super::rpc::trace_service_server::{TraceService, TraceServiceServer};
use super::rpc::{ExportTraceServiceResponse, Span};
use super::*;

/// The longest that anything is waited for: far above what it takes.
const LIMIT: Duration = Duration::from_secs(30);

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";

/// A collector that keeps what it gets, once it has refused so many messages.
#[derive(Clone, Default)]
struct Kept {
    messages: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    refuses: Arc<AtomicU32>,
    for_good: Arc<AtomicBool>,
    came: Arc<watch::Sender<usize>>,
}

#[tonic::async_trait]
impl TraceService for Kept {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let left = self
            .refuses
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            });
        if left.is_ok() && self.for_good.load(Ordering::Relaxed) {
            return Err(Status::resource_exhausted("too much"));
        }
        if left.is_ok() {
            return Err(Status::unavailable("not yet"));
        }
        let message = request.into_inner();
        self.messages.lock().unwrap().push(message);
        self.came.send_modify(|count| *count += 1);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Kept {
    async fn serve(&self) -> SocketAddr {
        let listener = listener().await;
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(self.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        address
    }

    /// All spans, once there are so many.
    async fn spans(&self, count: usize) -> Vec<Span> {
        let all = || -> Vec<Span> {
            let messages = self.messages.lock().unwrap().clone();
            let resources = messages.into_iter().flat_map(|each| each.resource_spans);
            let scopes = resources.flat_map(|each| each.scope_spans);
            scopes.flat_map(|each| each.spans).collect()
        };
        let mut came = self.came.subscribe();
        let enough = came.wait_for(|_| all().len() >= count);
        drop(timeout(LIMIT, enough).await.expect("spans").unwrap());
        all()
    }
}

async fn listener() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap()
}

/// A replica that answers each request on a connection, and keeps their heads.
async fn replica(heads: &Arc<Mutex<Vec<String>>>) -> SocketAddr {
    let (listener, heads) = (listener().await, Arc::clone(heads));
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let heads = Arc::clone(&heads);
            tokio::spawn(async move {
                while let Some(head) = head(&mut stream).await {
                    heads.lock().unwrap().push(head);
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    stream.write_all(answer).await.unwrap();
                }
            });
        }
    });
    address
}

async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        head.push(char::from(stream.read_u8().await.ok()?));
    }
    Some(head)
}

/// A proxy whose replicas listen there, and who exports its spans.
struct Rig {
    proxy: Proxy,
    stop: CancellationToken,
    exporting: JoinHandle<()>,
}

impl Rig {
    fn start(collector: SocketAddr, share: f64, replicas: &[SocketAddr]) -> Self {
        let endpoints = replicas.iter().zip(1..).map(|(&address, number)| Route {
            replica: ReplicaId {
                service: ServiceId(1),
                number,
            },
            address,
            version: ServiceVersion(3),
            weight: USUAL_WEIGHT,
            ready: true,
        });
        let service = ServiceRoute {
            id: ServiceId(1),
            name: "svc".parse().unwrap(),
            port: None,
            policy: LoadBalancingPolicy::RoundRobin,
            stream_timeout: LIMIT,
            affinity: None,
            traffic: Traffic::default(),
            endpoints: endpoints.collect(),
        };
        let (tracer, traces) = Tracer::new(share);
        let config = ProxyConfig {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            workers: NonZeroUsize::new(1),
            linger: Duration::ZERO,
            tracer: Some(tracer),
            ..ProxyConfig::default()
        };
        let routes = Arc::new(Routes::new(RouteTable::new([Arc::new(service)])));
        let proxy = Proxy::start(config, routes, Arc::new(NoSessions), None).unwrap();
        let collector = Collector::parse(&format!("http://{collector}")).unwrap();
        let stop = CancellationToken::new();
        let exporter = Exporter::new(&collector, "7", traces);
        let exporting = tokio::spawn(exporter.start(stop.clone()).unwrap());
        Self {
            proxy,
            stop,
            exporting,
        }
    }

    async fn ask(&self, extra: &str) {
        let mut stream = TcpStream::connect(self.proxy.local_addr()).await.unwrap();
        let request = format!("GET /v1/x?key=SECRET HTTP/1.1\r\nhost: svc:81\r\n{extra}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = timeout(LIMIT, head(&mut stream)).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    fn dropped(&self) -> u64 {
        let text = self.proxy.render_prometheus();
        let mut lines = text.lines();
        let name = "raftserve_proxy_traces_dropped_total ";
        let line = lines.find_map(|line| line.strip_prefix(name));
        line.unwrap().parse().unwrap()
    }

    async fn until_dropped(&self, count: u64) {
        let counted = async {
            while self.dropped() < count {
                tokio::task::yield_now().await;
            }
        };
        timeout(LIMIT, counted).await.expect("they are counted");
    }

    /// Tells the exporter to stop, and awaits its end.
    async fn stop(&mut self) {
        self.stop.cancel();
        timeout(LIMIT, &mut self.exporting).await.unwrap().unwrap();
    }
}

/// The attributes of a span, as texts.
fn attributes(span: &Span) -> BTreeMap<&str, String> {
    let all = span.attributes.iter().map(|each| {
        let value = each.value.as_ref().and_then(|value| value.value.as_ref());
        let text = match value {
            Some(Value::StringValue(text)) => text.clone(),
            Some(Value::IntValue(number)) => number.to_string(),
            None => String::new(),
        };
        (each.key.as_str(), text)
    });
    all.collect()
}

fn traceparents(heads: &Mutex<Vec<String>>) -> Vec<String> {
    let heads = heads.lock().unwrap();
    let lines = heads.iter().flat_map(|head| head.lines());
    lines
        .filter_map(|line| line.strip_prefix("traceparent: "))
        .map(str::to_owned)
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_collector_gets_a_request_and_its_tries_as_one_tree() {
    let (kept, heads) = (Kept::default(), Arc::default());
    // Bound and not listening: nobody else can be there.
    let gone = TcpSocket::new_v4().unwrap();
    gone.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let nobody = gone.local_addr().unwrap();
    let replicas = [nobody, replica(&heads).await];
    let rig = Rig::start(kept.serve().await, 0.0, &replicas);
    // By turns, whoever begins: one of the requests comes to the replica that is not there.
    for _ in 0..2 {
        rig.ask(&format!("traceparent: {PARENT}-01\r\n")).await;
    }
    let spans = kept.spans(5).await;
    let tries = |request: &Span| -> Vec<&Span> {
        let all = spans.iter();
        all.filter(|span| span.parent_span_id == request.span_id)
            .collect()
    };
    let request = spans.iter().find(|span| tries(span).len() == 2);
    let request = request.expect("one request with two tries");
    let [first, second] = tries(request)[..] else {
        unreachable!("there are two")
    };
    assert!(
        spans
            .iter()
            .all(|span| hex(&span.trace_id) == PARENT[3..35])
    );
    assert_eq!(hex(&request.parent_span_id), PARENT[36..]);
    assert_eq!(request.kind(), SpanKind::Server);
    assert_eq!(
        (first.kind(), second.kind()),
        (SpanKind::Client, SpanKind::Client)
    );
    let told = format!("{}-{}-01", &PARENT[..35], hex(&second.span_id));
    assert!(traceparents(&heads).contains(&told));

    let port = replicas[1].port().to_string();
    for (span, expected) in [
        (
            request,
            vec![
                ("http.request.method", "GET"),
                ("http.response.status_code", "200"),
                ("url.path", "/v1/x"),
                ("url.scheme", "http"),
                ("server.address", "svc"),
                ("server.port", "81"),
                ("client.address", "127.0.0.1"),
                ("network.protocol.version", "1.1"),
                ("raftserve.service", "svc"),
            ],
        ),
        (
            second,
            vec![
                ("http.request.method", "GET"),
                ("http.response.status_code", "200"),
                ("http.request.resend_count", "1"),
                ("url.path", "/v1/x"),
                ("server.address", "127.0.0.1"),
                ("server.port", &port),
                ("raftserve.service", "svc"),
                ("raftserve.version", "3"),
                ("raftserve.replica", "2"),
            ],
        ),
    ] {
        let expected: BTreeMap<_, _> = expected
            .into_iter()
            .map(|(key, value)| (key, value.to_owned()))
            .collect();
        assert_eq!(attributes(span), expected);
        assert_eq!(span.status, None);
    }
    assert_eq!(attributes(first)["error.type"], "replica_unreachable");
    assert!(first.status.is_some());
    assert!(!format!("{:?}", kept.messages.lock().unwrap()).contains("SECRET"));
    let messages = kept.messages.lock().unwrap().clone();
    let origin = messages[0].resource_spans[0].resource.clone().unwrap();
    assert!(format!("{origin:?}").contains("raftserve"));
}

#[tokio::test]
async fn unsampled_requests_are_not_exported() {
    let (kept, heads) = (Kept::default(), Arc::default());
    let mut rig = Rig::start(kept.serve().await, 0.0, &[replica(&heads).await]);
    rig.ask("").await;
    rig.ask(&format!("traceparent: {PARENT}-00\r\n")).await;
    rig.stop().await;
    assert!(kept.messages.lock().unwrap().is_empty());
    assert_eq!(rig.dropped(), 0);
}

#[tokio::test]
async fn a_collector_that_is_away_for_a_moment_loses_nothing() {
    let (kept, heads) = (Kept::default(), Arc::default());
    kept.refuses.store(1, Ordering::Relaxed);
    let rig = Rig::start(kept.serve().await, 1.0, &[replica(&heads).await]);
    rig.ask("").await;
    assert_eq!(kept.spans(2).await.len(), 2);
    assert_eq!(kept.refuses.load(Ordering::Relaxed), 0);
    assert_eq!(rig.dropped(), 0);
}

#[tokio::test]
async fn a_collector_that_is_away_costs_no_request_and_its_spans_are_counted() {
    let heads = Arc::default();
    // Bound and not listening: nobody else can be there.
    let gone = TcpSocket::new_v4().unwrap();
    gone.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let nobody = gone.local_addr().unwrap();
    let mut rig = Rig::start(nobody, 1.0, &[replica(&heads).await]);
    for _ in 0..5 {
        rig.ask("").await;
    }
    rig.stop().await;
    assert_eq!(rig.dropped(), 5);
}

#[tokio::test]
async fn what_was_told_last_is_exported_before_the_end() {
    let (kept, heads) = (Kept::default(), Arc::default());
    let mut rig = Rig::start(kept.serve().await, 1.0, &[replica(&heads).await]);
    // More than one message takes.
    let requests = BATCH_MAX + 3;
    for _ in 0..requests {
        rig.ask("").await;
    }
    rig.stop().await;
    // A message that was under way may have been sent again.
    let spans = kept.spans(2 * requests).await;
    let ids: BTreeSet<_> = spans.iter().map(|span| &span.span_id).collect();
    assert_eq!(ids.len(), 2 * requests);
}

#[tokio::test]
async fn what_a_collector_refuses_for_good_is_not_sent_again() {
    let (kept, heads) = (Kept::default(), Arc::default());
    kept.refuses.store(1, Ordering::Relaxed);
    kept.for_good.store(true, Ordering::Relaxed);
    let mut rig = Rig::start(kept.serve().await, 1.0, &[replica(&heads).await]);
    rig.ask("").await;
    rig.until_dropped(1).await;
    rig.ask("").await;
    assert_eq!(kept.spans(2).await.len(), 2, "the exporter goes on");
    rig.stop().await;
    assert_eq!(rig.dropped(), 1);
}
