//! What the spans of one request say.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::time::SystemTime;

use http::{HeaderMap, HeaderValue, StatusCode, Version};
use raftserve_model::{ReplicaId, ServiceName, ServiceVersion};
use tokio::time::Instant;

use super::{Context, Tracer};
use crate::access_log::{HOST_MAX, METHOD_MAX, PATH_MAX, clipped};
use crate::connection::Client;
use crate::trace::{self, TRACEPARENT};
use crate::upstream::Upstream;

/// How many tries of a request are told; its settings allow far fewer.
const TRIES_MAX: usize = 32;

/// Why a try ended whose request was given up, or got its answer from another.
const CANCELLED: &str = "cancelled";

/// Why an answer has no end.
const BROKE_OFF: &str = "answer_broke_off";

/// A request that has ended, as it is traced.
#[derive(Debug)]
pub struct RequestSpans {
    /// The trace that it belongs to.
    pub trace_id: [u8; 16],
    /// Its own span.
    pub span_id: [u8; 8],
    /// The caller's span, if it has told of one.
    pub parent_id: Option<[u8; 8]>,
    /// What other tracing systems want passed on.
    pub state: String,
    /// When its head had arrived.
    pub start: SystemTime,
    /// When the last of its answer was there.
    pub end: SystemTime,
    /// What it asked for.
    pub asked: Asked,
    /// Which status the client got, if it got one.
    pub status: Option<StatusCode>,
    /// Why it failed, if the proxy knows.
    pub error: Option<&'static str>,
    /// Its tries, in the order in which they began.
    pub tries: Vec<TrySpan>,
}

/// What a request asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The service that it was routed to.
    pub service: ServiceName,
    /// Its method.
    pub method: String,
    /// Its host, with a port if it named one.
    pub host: String,
    /// Its path, without the query.
    pub path: String,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The client's address.
    pub client: HeaderValue,
    /// What the client speaks.
    pub version: Version,
}

/// A try of a request at one replica.
#[derive(Clone, Debug)]
pub struct TrySpan {
    /// Its own span, which the replica is told as its caller's.
    pub span_id: [u8; 8],
    /// When it began.
    pub start: SystemTime,
    /// When it failed, or the last of its answer was there.
    pub end: SystemTime,
    /// The replica.
    pub replica: ReplicaId,
    /// The version that it runs.
    pub version: ServiceVersion,
    /// Where it listens.
    pub address: SocketAddr,
    /// The status of its answer.
    pub status: Option<StatusCode>,
    /// Why it failed, if it did.
    pub error: Option<&'static str>,
}

/// The id of a try's span.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TryId([u8; 8]);

/// A request that runs and whose spans are to be told.
#[derive(Debug)]
pub(crate) struct Trace {
    tracer: Tracer,
    context: Context,
    start: Instant,
    start_of_day: SystemTime,
    asked: Asked,
    status: Cell<Option<StatusCode>>,
    error: Cell<Option<&'static str>>,
    tries: RefCell<Vec<Running>>,
}

/// A try, which has no end of its own while its answer goes on.
#[derive(Debug)]
struct Running {
    span: TrySpan,
    ended: bool,
}

/// A try that runs. Dropped without a word of how it ended, it was given up.
#[derive(Debug)]
pub(crate) struct Try<'a> {
    trace: &'a Trace,
    id: TryId,
}

impl Asked {
    pub(crate) fn new(
        (service, client): (&ServiceName, &Client),
        method: &str,
        host: &str,
        path: &str,
        version: Version,
    ) -> Self {
        Self {
            service: service.clone(),
            method: clipped(method, METHOD_MAX),
            host: clipped(host, HOST_MAX),
            path: clipped(path, PATH_MAX),
            scheme: client.proto,
            client: client.address.clone(),
            version,
        }
    }
}

impl Trace {
    pub(crate) fn new(tracer: &Tracer, context: Context, start: Instant, asked: Asked) -> Self {
        #[expect(clippy::disallowed_methods, reason = "a span tells the time of day")]
        let start_of_day = SystemTime::now();
        Self {
            tracer: tracer.clone(),
            context,
            start,
            start_of_day,
            asked,
            status: Cell::default(),
            error: Cell::default(),
            tries: RefCell::default(),
        }
    }

    /// The context that begins here, if its caller has told of none.
    pub(crate) fn begun(&self) -> Option<[u8; 55]> {
        let Context {
            trace_id,
            span_id,
            parent_id,
            ..
        } = self.context;
        parent_id
            .is_none()
            .then(|| trace::line(trace_id, span_id, true))
    }

    /// The id of a next try.
    pub(crate) fn next_try(&self) -> TryId {
        TryId(trace::ids(rand::random()).1)
    }

    /// What a replica is told of its caller.
    pub(crate) fn line(&self, id: TryId) -> [u8; 55] {
        trace::line(self.context.trace_id, id.0, true)
    }

    /// Its head goes to this replica.
    pub(crate) fn tries(&self, id: TryId, upstream: &Upstream) {
        let now = self.now();
        let mut tries = self.tries.borrow_mut();
        if tries.len() < TRIES_MAX {
            tries.push(Running {
                span: TrySpan {
                    span_id: id.0,
                    start: now,
                    end: now,
                    replica: upstream.replica,
                    version: upstream.version(),
                    address: upstream.address,
                    status: None,
                    error: None,
                },
                ended: false,
            });
        }
    }

    /// The try has failed, for this reason.
    pub(crate) fn failed(&self, id: TryId, error: &'static str) {
        self.end_try(id, None, Some(error));
    }

    /// The same of the only try that has not ended.
    pub(crate) fn last_failed(&self, error: &'static str) {
        let tries = self.tries.borrow();
        let last = tries.last().filter(|last| !last.ended);
        let id = last.map(|last| TryId(last.span.span_id));
        drop(tries);
        if let Some(id) = id {
            self.failed(id, error);
        }
    }

    fn end_try(&self, id: TryId, status: Option<StatusCode>, error: Option<&'static str>) {
        let now = self.now();
        let mut tries = self.tries.borrow_mut();
        let mut those = tries.iter_mut().rev();
        if let Some(found) = those.find(|each| each.span.span_id == id.0) {
            found.ended = true;
            found.span.end = now;
            found.span.status = status;
            found.span.error = error;
        }
    }

    /// The client gets this replica's answer.
    pub(crate) fn answered_by(&self, replica: ReplicaId, status: StatusCode) {
        self.status.set(Some(status));
        let mut tries = self.tries.borrow_mut();
        let mut those = tries.iter_mut().rev();
        if let Some(found) = those.find(|each| each.span.replica == replica) {
            found.ended = false;
            found.span.status = Some(status);
        }
    }

    /// The client gets the proxy's own answer.
    pub(crate) fn refused(&self, status: StatusCode, error: &'static str) {
        self.status.set(Some(status));
        self.error.set(Some(error));
    }

    /// The answer has no end.
    pub(crate) fn broke_off(&self) {
        self.error.set(Some(BROKE_OFF));
    }

    /// Tells its spans: it has ended.
    pub(crate) fn end(&self) {
        let end = self.now();
        let error = match (self.error.get(), self.status.get()) {
            (None, None) => Some(CANCELLED),
            (error, _) => error,
        };
        let tries = self.tries.take().into_iter();
        let tries = tries.map(|Running { mut span, ended }| {
            if !ended {
                span.end = end;
                span.error = error;
            }
            span
        });
        self.tracer.tell(RequestSpans {
            trace_id: self.context.trace_id,
            span_id: self.context.span_id,
            parent_id: self.context.parent_id,
            state: self.context.state.clone(),
            start: self.start_of_day,
            end,
            asked: self.asked.clone(),
            status: self.status.get(),
            error,
            tries: tries.collect(),
        });
    }

    /// The time of day as it passes steadily from the request's start: no span ends before it begins.
    fn now(&self) -> SystemTime {
        self.start_of_day + self.start.elapsed()
    }
}

impl<'a> Try<'a> {
    /// Begins a try, and names it to the replica as its caller.
    pub(crate) fn begin(trace: &'a Trace, upstream: &Upstream, headers: &mut HeaderMap) -> Self {
        let id = trace.next_try();
        headers.insert(TRACEPARENT, trace::value(&trace.line(id)));
        trace.tries(id, upstream);
        Self { trace, id }
    }

    /// It ended with an answer's head, or in this way.
    pub(crate) fn end(self, outcome: Result<StatusCode, &'static str>) {
        let (status, error) = (outcome.ok(), outcome.err());
        self.trace.end_try(self.id, status, error);
        std::mem::forget(self);
    }
}

impl Drop for Try<'_> {
    fn drop(&mut self) {
        self.trace.failed(self.id, CANCELLED);
    }
}
