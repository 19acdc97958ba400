//! The ops port: health and metrics over plain HTTP.
//!
//! *Live* says that the process answers. *Ready* is a latch: false until this peer has once known a
//! leader and caught up with it, then true until it drains or its storage is poisoned; losing the
//! leader or the quorum does not clear it, or a lost quorum would take the endpoint down with it.
//! *Quorum* tells that instead.
//!
//! `/prestop` answers when the peer may be stopped: a pod's hook waits for it. It changes nothing but that clients of a peer
//! whose pod is deleted, as the API server says, are told so. Whoever asks waits as if nobody else had asked before, and few
//! may, so that probes always find a place; the kubelet has places of its own, since a hook that is refused ends the pod.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

/// The most connections at a time: scrapers and probes are few.
const CONNECTIONS_MAX: usize = 64;

/// The most who wait at a time to hear that the peer may be stopped, besides the kubelet.
const WAITING_MAX: usize = 16;

/// The same of the kubelet's hooks. It runs one, and another one if its own answer was lost.
const HOOKS_MAX: usize = 4;

/// How the kubelet names itself when it runs a hook, before its version.
const HOOK: &str = "kube-lifecycle/";

/// The longest that a client may take to send a request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// The readiness of this peer, shared between who sets it and who tells it.
#[derive(Debug)]
pub struct Readiness {
    ready: watch::Sender<bool>,
    draining: AtomicBool,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            ready: watch::Sender::new(false),
            draining: AtomicBool::new(false),
        }
    }
}

impl Readiness {
    /// The peer has known a leader and caught up.
    pub fn caught_up(&self) {
        if !self.draining.load(Ordering::Acquire) {
            self.ready.send_replace(true);
        }
    }

    /// The peer is going: it is not ready from now on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.ready.send_replace(false);
    }

    /// Whether requests should come here, as it changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// One word for people.
    fn as_str(&self) -> &'static str {
        if self.draining.load(Ordering::Acquire) {
            "draining"
        } else if self.is_ready() {
            "ready"
        } else {
            "catching up"
        }
    }
}

/// What the ops port asks the rest of the peer.
pub trait Report: Send + Sync + 'static {
    /// Whether a leader with a quorum is known.
    fn has_quorum(&self) -> bool;
    /// All metrics in Prometheus's text format.
    fn metrics(&self) -> String;
    /// Ends when this peer may be stopped, and says why then.
    fn departure(&self) -> BoxFuture<'static, &'static str>;
}

/// What every connection asks.
struct Ops {
    readiness: Arc<Readiness>,
    report: Arc<OnceLock<Arc<dyn Report>>>,
    /// The places of those who wait until the peer may be stopped.
    waiting: Semaphore,
    /// Those of the kubelet alone.
    hooks: Semaphore,
}

impl Ops {
    fn new(readiness: Arc<Readiness>, report: Arc<OnceLock<Arc<dyn Report>>>) -> Self {
        Self {
            readiness,
            report,
            waiting: Semaphore::new(WAITING_MAX),
            hooks: Semaphore::new(HOOKS_MAX),
        }
    }

    /// A place to wait at for whoever asks whether the peer may be stopped, if there is one.
    fn place<B>(&self, request: &Request<B>) -> Option<SemaphorePermit<'_>> {
        let agent = request.headers().get(header::USER_AGENT);
        let is_hook = agent.is_some_and(|agent| agent.as_bytes().starts_with(HOOK.as_bytes()));
        let own = is_hook.then(|| self.hooks.try_acquire().ok()).flatten();
        own.or_else(|| self.waiting.try_acquire().ok())
    }

    async fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".to_owned());
        }
        let report = self.report.get().map(AsRef::as_ref);
        match (request.uri().path(), report) {
            ("/prestop", Some(report)) => {
                let Some(_place) = self.place(request) else {
                    let said = format!("{WAITING_MAX} others wait for it already\n");
                    return text(StatusCode::TOO_MANY_REQUESTS, said);
                };
                let why = report.departure().await;
                text(StatusCode::OK, format!("{why}\n"))
            }
            (path, report) => answer(path, &self.readiness, report),
        }
    }
}

/// Answers on `listener` until `shutdown`. `report` may come later than the port.
pub async fn serve(
    listener: TcpListener,
    readiness: Arc<Readiness>,
    report: Arc<OnceLock<Arc<dyn Report>>>,
    shutdown: CancellationToken,
) {
    let ops = Arc::new(Ops::new(readiness, report));
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, most likely: let some go.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let ops = Arc::clone(&ops);
        tokio::spawn(async move {
            answer_all(stream, ops).await;
            drop(permit);
        });
    }
}

async fn answer_all(stream: TcpStream, ops: Arc<Ops>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let ops = Arc::clone(&ops);
        async move { Ok::<_, Infallible>(ops.answer(&request).await) }
    });
    // A client that breaks off is no news.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn answer(path: &str, readiness: &Readiness, report: Option<&dyn Report>) -> Response<Full<Bytes>> {
    let health = |good: bool, word: &str| {
        let status = if good {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        text(status, format!("{word}\n"))
    };
    match path {
        "/healthz/live" => health(true, "live"),
        "/healthz/ready" => health(readiness.is_ready(), readiness.as_str()),
        "/healthz/quorum" => match report.is_some_and(Report::has_quorum) {
            true => health(true, "quorum"),
            false => health(false, "no quorum"),
        },
        // Without a part in the cluster there is nothing to wait for.
        "/prestop" => health(true, "not begun"),
        "/metrics" => {
            let mut body = report.map(Report::metrics).unwrap_or_default();
            let _ = writeln!(
                body,
                "# TYPE raftserve_ready gauge\nraftserve_ready {}",
                u8::from(readiness.is_ready())
            );
            text(StatusCode::OK, body)
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /healthz/live, /healthz/ready, /healthz/quorum and /metrics\n".to_owned(),
        ),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    response
}

/// Binds a port of this peer, plainly, so that a taken one is seen.
///
/// # Errors
/// A sentence that names the surface, the address and the remedy.
pub async fn bind(surface: &str, flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        anyhow::anyhow!(
            "cannot listen on {address} for the {surface} port: {error}; choose another with {flag}"
        )
    })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// A peer that may be stopped once it is told so.
    struct Held(watch::Sender<bool>);

    impl Report for Held {
        fn has_quorum(&self) -> bool {
            true
        }

        fn metrics(&self) -> String {
            String::new()
        }

        fn departure(&self) -> BoxFuture<'static, &'static str> {
            let mut may = self.0.subscribe();
            Box::pin(async move {
                let _ = may.wait_for(|may| *may).await;
                "it may"
            })
        }
    }

    #[tokio::test]
    async fn however_many_others_wait_the_kubelet_is_answered_when_the_peer_may_go() {
        let held = Arc::new(Held(watch::Sender::new(false)));
        let report = Arc::new(OnceLock::new());
        assert!(report.set(Arc::clone(&held) as Arc<dyn Report>).is_ok());
        let ops = Ops::new(Arc::default(), report);
        let from = |agent: &str| {
            let request = Request::get("/prestop").header(header::USER_AGENT, agent);
            request.body(()).unwrap()
        };
        let (stranger, kubelet) = (from("curl/8.5.0"), from("kube-lifecycle/1.34"));
        let mut waiting: Vec<_> = (0..WAITING_MAX)
            .map(|_| Box::pin(ops.answer(&stranger)))
            .collect();
        for stranger in &mut waiting {
            assert!(stranger.now_or_never().is_none());
        }
        let refused = ops.answer(&stranger).await.status();
        assert_eq!(refused, StatusCode::TOO_MANY_REQUESTS);
        let mut hook = Box::pin(ops.answer(&kubelet));
        assert!((&mut hook).now_or_never().is_none());
        held.0.send_replace(true);
        assert_eq!(hook.await.status(), StatusCode::OK);
    }
}
