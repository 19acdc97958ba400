//! Tells the spans of requests to an OpenTelemetry collector, by OTLP over gRPC.
//!
//! A thread of its own takes finished requests out of the proxy's bounded queue, gathers them for a moment, and sends
//! them. A collector that is away or slow is tried again a few times, with pauses; then these spans are dropped and
//! counted, and meanwhile the queue may overflow, which is counted too. Nothing that serves requests waits for any of it.

mod messages;
pub mod rpc;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::thread;
use std::time::Duration;

use raftserve_proxy::{FinishedTraces, RequestSpans};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

use messages::Origin;
use rpc::ExportTraceServiceRequest;
use rpc::trace_service_client::TraceServiceClient;

/// The most requests in one message. Some hundred bytes each, twice or so: well below gRPC's 4 MiB.
const BATCH_MAX: usize = 512;

/// How long the first of a batch waits for others.
const GATHER: Duration = Duration::from_secs(1);

/// The longest that one message may take (the default of OTLP's exporters).
const EXPORT_MAX: Duration = Duration::from_secs(10);

/// How often a batch is sent before it is given up.
const TRIES_MAX: u32 = 4;

/// The pause before the second try; doubled before each further one.
const PAUSE: Duration = Duration::from_secs(1);

/// How long all that is left may take when the peer stops.
const LAST_MAX: Duration = Duration::from_secs(2);

/// Where a collector is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector(Uri);

impl Collector {
    /// Reads `http://HOST:PORT`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let uri: Uri = text
            .parse()
            .map_err(|error| format!("is no URL: {error}"))?;
        match uri.scheme_str() {
            Some("http") => Ok(Self(uri)),
            _ => Err("must be http://HOST:PORT: spans are told in cleartext".to_owned()),
        }
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Exports what one proxy tells.
pub struct Exporter {
    collector: Collector,
    origin: Origin,
    traces: FinishedTraces,
    /// Whether the last batch was lost: that is logged once.
    failing: bool,
}

impl Exporter {
    /// For the spans of the peer of this name.
    #[must_use]
    pub fn new(collector: &Collector, peer: &str, traces: FinishedTraces) -> Self {
        Self {
            collector: collector.clone(),
            origin: Origin::new(peer),
            traces,
            failing: false,
        }
    }

    /// Starts its thread, which ends some seconds after `shutdown` at the latest; then the future is ready.
    ///
    /// # Errors
    /// The system gives no thread, or no event queue for it.
    pub fn start(
        self,
        shutdown: CancellationToken,
    ) -> io::Result<impl Future<Output = ()> + Send + 'static> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (ended, end) = oneshot::channel::<()>();
        let body = move || {
            runtime.block_on(self.run(shutdown));
            drop(ended);
        };
        thread::Builder::new().name("otlp".to_owned()).spawn(body)?;
        Ok(async {
            let _ = end.await;
        })
    }

    /// Exports batch by batch until it is told to stop, and then what there is.
    async fn run(mut self, shutdown: CancellationToken) {
        let channel = Endpoint::from(self.collector.0.clone())
            .connect_timeout(EXPORT_MAX)
            .connect_lazy();
        let mut collector = TraceServiceClient::new(channel);
        let mut batch = Vec::new();
        while !shutdown.is_cancelled() {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                () = self.gather(&mut batch) => {}
            }
            if batch.is_empty() {
                return; // Nobody is left who tells any.
            }
            let export = self.export(&mut collector, &batch);
            let sent = shutdown.run_until_cancelled(export).await;
            if let Some(sent) = sent {
                self.note(&batch, sent);
                batch.clear();
            }
        }
        self.end(&mut collector, batch).await;
    }

    /// Sends what there is, as far as that can be done in time.
    async fn end(
        &mut self,
        collector: &mut TraceServiceClient<Channel>,
        mut batch: Vec<RequestSpans>,
    ) {
        let end = Instant::now() + LAST_MAX;
        loop {
            while batch.len() < BATCH_MAX && self.traces.take_now(&mut batch) {}
            if batch.is_empty() {
                return;
            }
            let sent = timeout_at(end, self.send(collector, &batch)).await;
            let late = |_| Err(Status::deadline_exceeded("this peer stops"));
            self.note(&batch, sent.unwrap_or_else(late));
            batch.clear();
        }
    }

    /// Awaits a first request's spans, and for a moment more of them.
    async fn gather(&mut self, batch: &mut Vec<RequestSpans>) {
        if self.traces.take(batch, BATCH_MAX).await == 0 {
            return;
        }
        let end = Instant::now() + GATHER;
        while batch.len() < BATCH_MAX {
            let most = BATCH_MAX - batch.len();
            match timeout_at(end, self.traces.take(batch, most)).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
    }

    /// Sends a batch, again if that may help. What the collector rejects it will reject again.
    async fn export(
        &self,
        collector: &mut TraceServiceClient<Channel>,
        batch: &[RequestSpans],
    ) -> Result<i64, Status> {
        let mut pause = PAUSE;
        let mut tries = 1;
        loop {
            let sent = match timeout(EXPORT_MAX, self.send(collector, batch)).await {
                Ok(sent) => sent,
                Err(_) => Err(Status::deadline_exceeded("the collector does not answer")),
            };
            match sent {
                Err(status) if tries < TRIES_MAX && is_passing(status.code()) => {
                    tries += 1;
                    sleep(pause).await;
                    pause *= 2;
                }
                ended => return ended,
            }
        }
    }

    /// Sends a batch once. Returns how many spans the collector did not want.
    async fn send(
        &self,
        collector: &mut TraceServiceClient<Channel>,
        batch: &[RequestSpans],
    ) -> Result<i64, Status> {
        let request = ExportTraceServiceRequest {
            resource_spans: vec![self.origin.spans(batch)],
        };
        let answer = collector.export(request).await?.into_inner();
        Ok(answer.partial_success.map_or(0, |part| part.rejected_spans))
    }

    /// Notes what became of a batch.
    fn note(&mut self, batch: &[RequestSpans], sent: Result<i64, Status>) {
        let failed = match sent {
            Ok(0) => None,
            Ok(rejected) => {
                self.traces
                    .lost(usize::try_from(rejected).unwrap_or(0).min(batch.len()));
                Some(format!("it rejected {rejected} spans"))
            }
            Err(status) => {
                self.traces.lost(batch.len());
                Some(status.to_string())
            }
        };
        match failed {
            Some(why) if !self.failing => {
                tracing::warn!(collector = %self.collector, %why, "spans are lost");
                self.failing = true;
            }
            None if self.failing => {
                tracing::info!(collector = %self.collector, "spans are told again");
                self.failing = false;
            }
            Some(_) | None => {}
        }
    }
}

/// Whether the same message may be taken later (OTLP 1.x, on failures of gRPC). That resources are exhausted is not among
/// them: it may well be the message's size.
fn is_passing(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
    )
}
