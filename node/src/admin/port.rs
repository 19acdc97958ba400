//! Serves the connections of the port.
//!
//! What is asked on a connection is worked on in that connection's own task, side by side. So of the answers that come
//! at once, as those of a group of the log do, the connection hears once and writes them at once, and no call is
//! handed from one task to another.

use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::calls::Calls;
use super::listener::Counted;

/// The most requests at once on one connection.
const STREAMS_PER_CONNECTION_MAX: u32 = 64;

/// How often a silent connection is asked whether it lives, and how long it may take to say so.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Serves connections as they come, until `shutdown`; then takes no more, and waits until those that there are have
/// ended. All are cut when the future is dropped.
pub(super) async fn serve(
    mut connections: mpsc::Receiver<Counted>,
    calls: Calls,
    shutdown: CancellationToken,
) {
    let mut served = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = served.join_next() => {}
            accepted = connections.recv() => match accepted {
                Some(stream) => drop(served.spawn(connection(stream, calls.clone(), shutdown.clone()))),
                None => break,
            },
        }
    }
    drop(connections);
    while served.join_next().await.is_some() {}
}

/// Serves one connection to its end. Calls that are under way then are given up.
async fn connection(stream: Counted, calls: Calls, shutdown: CancellationToken) {
    let caller = stream.connect_info();
    let begun = Begun::default();
    let service = service_fn(|request| calls.answer(&caller, request));
    let serving = http2::Builder::new(begun.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        // gRPC knows no use for it.
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = pin!(serving);
    let mut closing = pin!(shutdown.cancelled().fuse());
    let mut under_way = FuturesUnordered::new();
    let ended = poll_fn(|context| {
        if closing.poll_unpin(context).is_ready() {
            serving.as_mut().graceful_shutdown();
        }
        loop {
            // Before the connection, which then writes all answers at once.
            while let Poll::Ready(Some(())) = under_way.poll_next_unpin(context) {}
            if let Poll::Ready(ended) = serving.as_mut().poll(context) {
                return Poll::Ready(ended);
            }
            let mut begun = begun.lock();
            if begun.is_empty() {
                return Poll::Pending;
            }
            under_way.extend(begun.drain(..));
        }
    });
    if let Err(error) = ended.await {
        tracing::debug!(%error, "an admin connection ended");
    }
}

/// Calls that a connection has begun, to be taken up by its task.
#[derive(Clone, Default)]
struct Begun(Arc<Mutex<Vec<BoxFuture<'static, ()>>>>);

impl Begun {
    fn lock(&self) -> MutexGuard<'_, Vec<BoxFuture<'static, ()>>> {
        // Nothing is ever half done in it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F> Executor<F> for Begun
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, call: F) {
        // A panic ends the call, whose stream is reset, and not its neighbours.
        let call = AssertUnwindSafe(call).catch_unwind().map(drop);
        self.lock().push(call.boxed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_that_panics_ends_alone() {
        let begun = Begun::default();
        begun.execute(async { panic!("as a defect would") });
        begun.execute(async {});
        let under_way: FuturesUnordered<_> = begun.lock().drain(..).collect();
        assert_eq!(under_way.count().await, 2);
    }
}
