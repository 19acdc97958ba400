//! The way to the API server, on which nothing is waited for that will never come.
//!
//! A connection may go silent without an end: packets are dropped on the way, or the server stands still. kube's own client
//! would wait for as long as TCP does, or for ever. Here a path that is gone is noticed by the connection itself
//! ([`UNACKNOWLEDGED_MAX`]), whatever is under way on it; and a server that takes requests and says nothing, or stops in the
//! middle of an answer, by how long that takes ([`ANSWER_MAX`]). Whoever watched or asked is told, and tries again on
//! another connection.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::{Client, Config};
use tokio::time::timeout;
use tower::retry::RetryLayer;
use tower::timeout::TimeoutLayer;
use tower::util::option_layer;
use tower::{BoxError, Layer, Service, ServiceExt};

/// The longest that a TCP connection to the API server may take. What follows on it counts as part of the answer.
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// The longest that the head of an answer may take, and each pause within an answer that has an end: an API server that is up
/// is told by its own store within less.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(10);

/// After how long at rest a connection is probed, how often again, and how many probes may stay without an answer. One that is
/// merely quiet answers the first.
const PROBE_AFTER: Duration = Duration::from_secs(5);
const PROBE_EVERY: Duration = Duration::from_secs(2);
const PROBES_MAX: u32 = 4;

/// How long what was sent may stay without an acknowledgement. Linux also lets it decide when probes have failed, instead of
/// their number, and looks when the next one is due.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(12);

/// A client for what `config` names. Calls nobody yet.
///
/// # Errors
/// If the configuration cannot be used, as where it names a proxy on the way: no client for those is compiled in.
pub(super) fn client(config: Config) -> Result<Client, kube::Error> {
    if let Some(proxy_url) = &config.proxy_url {
        let proxy_url = Box::new(proxy_url.clone());
        return Err(kube::Error::ProxyProtocolUnsupported { proxy_url });
    }
    let namespace = config.default_namespace.clone();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_MAX));
    tcp.set_keepalive(Some(PROBE_AFTER));
    tcp.set_keepalive_interval(Some(PROBE_EVERY));
    tcp.set_keepalive_retries(Some(PROBES_MAX));
    // What was sent and is not acknowledged would else be sent again for a quarter of an hour.
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));
    let connector = config.rustls_https_connector_with_connector(tcp)?;
    let caller = legacy::Client::builder(TokioExecutor::new()).build(connector);
    let caller = caller.map_err(BoxError::from);
    let retries = config.default_retry.then(RetryPolicy::server_retry);
    // From the innermost outwards, in the order of kube's own.
    let builder = ClientBuilder::new(caller, namespace)
        .with_layer(&config.extra_headers_layer()?)
        .with_layer(&option_layer(config.auth_layer()?))
        .with_layer(&option_layer(retries.map(RetryLayer::new)))
        .with_layer(&config.base_uri_layer())
        .with_layer(&TimeoutLayer::new(ANSWER_MAX))
        .with_layer(&Bounded);
    Ok(builder.build())
}

/// Bounds the pauses within answers that have an end.
#[derive(Clone, Copy, Debug)]
struct Bounded;

impl<S> Layer<S> for Bounded {
    type Service = BoundedCalls<S>;

    fn layer(&self, inner: S) -> Self::Service {
        BoundedCalls(inner)
    }
}

/// See [`Bounded`].
#[derive(Clone, Debug)]
struct BoundedCalls<S>(S);

/// Whether the answer goes on for as long as there is something to tell: of a watch, or of a log that is followed. How long
/// a watch may be silent is known to who watches.
fn is_endless(request: &Request<Body>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    let mut parts = query.split('&');
    parts.any(|part| matches!(part, "watch=true" | "follow=true"))
}

/// No word came within an answer.
#[derive(Debug, thiserror::Error)]
#[error("the answer stopped before its end, and nothing came for {ANSWER_MAX:?}")]
struct Stopped;

impl<S, B> Service<Request<Body>> for BoundedCalls<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<UnsyncBoxBody<Bytes, BoxError>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let is_endless = is_endless(&request);
        let answering = self.0.call(request);
        async move {
            let answer = answering.await?;
            Ok(answer.map(|body| {
                let body = body.map_err(Into::<BoxError>::into);
                match is_endless {
                    true => body.boxed_unsync(),
                    false => bounded(body).boxed_unsync(),
                }
            }))
        }
        .boxed()
    }
}

/// `body`, which fails where nothing comes for [`ANSWER_MAX`].
fn bounded<B>(body: B) -> impl http_body::Body<Data = Bytes, Error = BoxError> + Send
where
    B: http_body::Body<Data = Bytes, Error = BoxError> + Send + 'static,
{
    let frames = BodyStream::new(Box::pin(body));
    let frames = futures_util::stream::try_unfold(frames, async |mut frames| {
        let next = timeout(ANSWER_MAX, frames.next()).await;
        let next = next.map_err(|_| BoxError::from(Stopped))?;
        let next: Option<Frame<Bytes>> = next.transpose()?;
        Ok::<_, BoxError>(next.map(|frame| (frame, frames)))
    });
    StreamBody::new(frames)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::convert::Infallible;
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use k8s_openapi::api::core::v1::Pod;
    use kube::Api;
    use kube::api::ListParams;
    use serde_json::{Value, json};
    use socket2::{SockFilter, SockRef, Socket};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::{Notify, watch};
    use tokio::time::Instant;

    use super::*;

    /// An API server with pods, on a socket: it takes connections and requests, and can fall silent, as one that stands
    /// still, or get nothing any more of what is sent to it.
    #[derive(Clone)]
    pub(crate) struct Server(Arc<Held>);

    struct Held {
        address: SocketAddr,
        pods: Mutex<Vec<Value>>,
        is_silent: AtomicBool,
        /// What takes connections, and those that were taken.
        sockets: Mutex<Vec<Socket>>,
        /// Somebody has a watch.
        watched: Notify,
        /// How many pods there are.
        count: watch::Sender<usize>,
    }

    /// Within so long it is noticed that nothing gets to the API server any more.
    pub(crate) const PATH_GONE_MAX: Duration = Duration::from_secs(14);

    /// A socket's filter that passes so many bytes of each packet: "return N" (BPF_RET | BPF_K). What is kept off by it is not
    /// acknowledged either.
    const fn passing(bytes: u32) -> [SockFilter; 1] {
        [SockFilter::new(0x06, 0, 0, bytes)]
    }

    type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

    fn whole(value: &Value) -> UnsyncBoxBody<Bytes, Infallible> {
        http_body_util::Full::from(value.to_string()).boxed_unsync()
    }

    impl Server {
        pub(crate) async fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let server = Self(Arc::new(Held {
                address: listener.local_addr().unwrap(),
                pods: Mutex::default(),
                is_silent: AtomicBool::new(false),
                sockets: Mutex::new(vec![SockRef::from(&listener).try_clone().unwrap()]),
                watched: Notify::new(),
                count: watch::Sender::new(0),
            }));
            let serving = server.clone();
            tokio::spawn(async move {
                while let Ok((connection, _)) = listener.accept().await {
                    serving.keep(&connection);
                    let server = serving.clone();
                    let answer = service_fn(move |request: Request<_>| {
                        let server = server.clone();
                        let query = request.uri().query().unwrap_or_default().to_owned();
                        async move { Ok::<_, Infallible>(server.answer(&query).await) }
                    });
                    let io = TokioIo::new(connection);
                    tokio::spawn(http1::Builder::new().serve_connection(io, answer));
                }
            });
            server
        }

        pub(crate) fn client(&self) -> Client {
            let url = format!("http://{}", self.0.address).parse().unwrap();
            let mut config = Config::new(url);
            "ns".clone_into(&mut config.default_namespace);
            client(config).unwrap()
        }

        /// Has one pod more, and tells whoever watches.
        pub(crate) fn add(&self, mut pod: Value) {
            let mut pods = self.pods();
            pod["metadata"]["resourceVersion"] = (pods.len() + 1).to_string().into();
            pods.push(pod);
            self.0.count.send_replace(pods.len());
        }

        fn pods(&self) -> MutexGuard<'_, Vec<Value>> {
            let pods = &self.0.pods;
            pods.lock().unwrap_or_else(PoisonError::into_inner)
        }

        /// Takes what comes and says nothing, also to those who watch, or answers what is asked from now on.
        pub(crate) fn silence(&self, is_silent: bool) {
            self.0.is_silent.store(is_silent, Ordering::SeqCst);
        }

        fn keep(&self, connection: &TcpStream) {
            let socket = SockRef::from(connection).try_clone().unwrap();
            self.sockets().push(socket);
        }

        fn sockets(&self) -> MutexGuard<'_, Vec<Socket>> {
            let sockets = &self.0.sockets;
            sockets.lock().unwrap_or_else(PoisonError::into_inner)
        }

        /// Loses every packet that is sent to it, also those that would begin a connection, as a network may, and sends none;
        /// or gets them. What it has sent before and is not acknowledged would still be sent again, and heard.
        pub(crate) fn lose(&self, is_lost: bool) {
            self.silence(is_lost);
            let filter = passing(if is_lost { 0 } else { u32::MAX });
            for socket in self.sockets().iter() {
                socket.attach_filter(&filter).unwrap();
            }
        }

        /// Waits until somebody has a watch.
        pub(crate) async fn watched(&self) {
            self.0.watched.notified().await;
        }

        async fn answer(&self, query: &str) -> Answer {
            if self.0.is_silent.load(Ordering::SeqCst) {
                return std::future::pending().await;
            }
            if !query.contains("watch=true") {
                let pods = self.pods();
                return Response::new(whole(&json!({
                    "apiVersion": "v1", "kind": "PodList",
                    "metadata": { "resourceVersion": pods.len().to_string() }, "items": *pods,
                })));
            }
            let mut parts = query.split('&');
            let known = parts.find_map(|part| part.strip_prefix("resourceVersion="));
            let known: usize = known.and_then(|known| known.parse().ok()).unwrap_or(0);
            let events = futures_util::stream::unfold(known, {
                let server = self.clone();
                move |known| server.clone().event(known)
            });
            self.0.watched.notify_one();
            Response::new(StreamBody::new(events).boxed_unsync())
        }

        /// What is told once there are more pods than `known`, and how many are known then.
        async fn event(self, known: usize) -> Option<(Result<Frame<Bytes>, Infallible>, usize)> {
            let mut count = self.0.count.subscribe();
            let speaks = || !self.0.is_silent.load(Ordering::SeqCst);
            let more = count.wait_for(|count| *count > known && speaks()).await;
            more.ok()?;
            let pod = self.pods()[known].clone();
            let line = format!("{}\n", json!({"type": "ADDED", "object": pod}));
            Some((Ok(Frame::data(Bytes::from(line))), known + 1))
        }
    }

    /// As the body of an answer: `text`, and nothing after it.
    async fn stops_after(text: &'static str) -> (Client, Arc<Notify>) {
        let said_all = Arc::new(Notify::new());
        let saying = Arc::clone(&said_all);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let saying = Arc::clone(&saying);
                let answer = service_fn(move |_: Request<_>| {
                    let said = Frame::data(Bytes::from_static(text.as_bytes()));
                    let said = futures_util::stream::iter([Ok::<_, Infallible>(said)]);
                    let saying = Arc::clone(&saying);
                    let silence = futures_util::stream::once(async move {
                        saying.notify_one();
                        std::future::pending().await
                    });
                    let body = StreamBody::new(said.chain(silence));
                    std::future::ready(Ok::<_, Infallible>(Response::new(body)))
                });
                let io = TokioIo::new(connection);
                tokio::spawn(http1::Builder::new().serve_connection(io, answer));
            }
        });
        let client = client(Config::new(url.parse().unwrap())).unwrap();
        (client, said_all)
    }

    /// From here on, time passes as soon as nobody has anything else to do.
    async fn in_time<T>(within: Duration, doing: impl Future<Output = T>) -> T {
        tokio::time::pause();
        let began = Instant::now();
        let done = timeout(2 * within, doing).await.expect("an end");
        assert!(began.elapsed() <= within, "{:?}", began.elapsed());
        done
    }

    const MARGIN: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn a_silent_api_server_is_not_waited_for_for_ever() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        let client = client(Config::new(url.parse().unwrap())).unwrap();
        let pods: Api<Pod> = Api::namespaced(client, "ns");
        let asked = tokio::spawn(async move { pods.get("p").await });
        let (_connection, _) = silent.accept().await.unwrap();
        let error = in_time(ANSWER_MAX + MARGIN, asked).await.unwrap();
        let error = error.unwrap_err();
        assert!(matches!(error, kube::Error::Service(_)), "{error:?}");
    }

    #[tokio::test]
    async fn an_answer_that_stops_before_its_end_is_given_up() {
        let (client, said_all) = stops_after("{\"kind\": \"PodList\", ").await;
        let pods: Api<Pod> = Api::namespaced(client, "ns");
        let asked = tokio::spawn(async move { pods.list(&ListParams::default()).await });
        said_all.notified().await;
        let error = in_time(ANSWER_MAX + MARGIN, asked).await.unwrap();
        let error = crate::controller::chain(&error.unwrap_err());
        assert!(error.contains("stopped before its end"), "{error}");
    }

    #[tokio::test]
    async fn what_has_no_end_may_be_silent_for_long() {
        let (client, _) = stops_after("one line\n").await;
        let pods: Api<Pod> = Api::namespaced(client, "ns");
        let follow = kube::api::LogParams {
            follow: true,
            ..kube::api::LogParams::default()
        };
        let log = pods.log_stream("p", &follow).await.unwrap();
        let mut lines = futures_util::AsyncBufReadExt::lines(log);
        assert_eq!(lines.next().await.unwrap().unwrap(), "one line");
        tokio::time::pause();
        let more = timeout(Duration::from_secs(3_600), lines.next()).await;
        assert!(more.is_err(), "{more:?}");
    }

    /// What a watch of all pods tells.
    async fn watched(
        server: &Server,
    ) -> impl futures_util::Stream<Item = kube::Result<()>> + use<> {
        let pods: Api<Pod> = Api::namespaced(server.client(), "ns");
        let events = pods.watch(&kube::api::WatchParams::default(), "0").await;
        events.unwrap().map(|event| event.map(drop)).boxed()
    }

    /// In true time, which is the kernel's.
    #[tokio::test]
    async fn a_connection_whose_packets_are_lost_is_given_up_and_one_that_is_quiet_is_not() {
        let (lossy, quiet) = (Server::start().await, Server::start().await);
        let (mut lost, mut kept) = (watched(&lossy).await, watched(&quiet).await);
        let began = Instant::now();
        lossy.lose(true);
        let error = timeout(2 * PATH_GONE_MAX, lost.next()).await;
        let error = error
            .expect("it is noticed")
            .expect("and told")
            .unwrap_err();
        let took = began.elapsed();
        assert!(took <= PATH_GONE_MAX + CONNECT_MAX, "{took:?}: {error}");
        let told = kept.next().now_or_never();
        assert!(told.is_none(), "{told:?}");
        // Nor does a new one come about.
        let pods: Api<Pod> = Api::namespaced(lossy.client(), "ns");
        let began = Instant::now();
        pods.get("p").await.unwrap_err();
        assert!(began.elapsed() < ANSWER_MAX, "{:?}", began.elapsed());
    }

    #[test]
    fn a_proxy_on_the_way_is_refused_and_not_passed_by() {
        let mut config = Config::new("http://127.0.0.1:1".parse().unwrap());
        config.proxy_url = Some("http://proxy:3128".parse().unwrap());
        let error = client(config).err().unwrap();
        assert!(error.to_string().contains("proxy:3128"), "{error}");
    }

    #[tokio::test]
    async fn an_api_server_that_answers_is_heard() {
        let server = Server::start().await;
        server.add(json!({"metadata": {"name": "p", "uid": "u"}}));
        let pods: Api<Pod> = Api::namespaced(server.client(), "ns");
        let listed = pods.list(&ListParams::default()).await.unwrap();
        assert_eq!(listed.items[0].metadata.name.as_deref(), Some("p"));
    }
}
