//! A request of a service, from its arrival to the end of its answer: what is counted, timed and told of it.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::StatusCode;
use tokio::time::Instant;

use crate::access_log::Record;
use crate::connection::Client;
use crate::metrics::{Counters, Latencies, count};
use crate::tracer::Trace;
use crate::upstream::Upstream;

/// A request that runs. Dropped when its answer has ended, however it ended.
#[derive(Debug)]
pub(crate) struct Running {
    counters: Arc<Counters>,
    start: Instant,
    /// When its answer has ended, if that is known.
    end: Option<Instant>,
    /// Those of the version that answers.
    latencies: Option<Arc<Latencies>>,
    told: Option<Box<Record>>,
    traced: Option<Rc<Trace>>,
    /// An HTTP/2 connection whose requests run is not idle.
    _client: Option<Rc<Client>>,
}

impl Running {
    pub(crate) fn start(
        counters: &Arc<Counters>,
        client: Option<&Rc<Client>>,
        start: Instant,
        (told, traced): (Option<Box<Record>>, Option<Rc<Trace>>),
    ) -> Self {
        count(&counters.requests);
        Self {
            counters: Arc::clone(counters),
            start,
            end: None,
            latencies: None,
            told,
            traced,
            _client: client.map(Rc::clone),
        }
    }

    /// What the access log will say of it, if there is one.
    pub(crate) fn record(&mut self) -> Option<&mut Record> {
        self.told.as_deref_mut()
    }

    /// Where its tries are told, if it is traced.
    pub(crate) fn trace(&self) -> Option<&Trace> {
        self.traced.as_deref()
    }

    /// A replica's answer has begun at `now`.
    pub(crate) fn answered_by(
        &mut self,
        upstream: &Upstream,
        status: StatusCode,
        tries: usize,
        now: Instant,
    ) {
        let passed = now.saturating_duration_since(self.start);
        let latencies = upstream.latencies();
        latencies.first_byte.observe(passed);
        upstream.counters.passed_on(passed);
        self.latencies = Some(latencies);
        self.counters.answered(status);
        if let Some(trace) = &self.traced {
            trace.answered_by(upstream.replica, status);
        }
        let version = upstream.version();
        if let Some(record) = self.record() {
            record.answered(status, passed);
            record.replica = Some((upstream.replica, version));
            record.tries = tries;
        }
    }

    /// The proxy answers it itself, and why.
    pub(crate) fn refused(&mut self, status: StatusCode, code: &'static str) {
        self.counters.answered(status);
        let passed = self.start.elapsed();
        if let Some(record) = self.record() {
            record.answered(status, passed);
            record.refusal = Some(code);
        }
        if let Some(trace) = &self.traced {
            trace.refused(status, code);
        }
    }

    /// So much of its answer goes to the client.
    pub(crate) fn sent(&mut self, bytes: usize) {
        if let Some(record) = self.record() {
            record.bytes += bytes as u64;
        }
    }

    /// Its answer has ended, whole, at `now`.
    pub(crate) fn end(mut self, now: Instant) {
        self.end = Some(now);
    }

    /// Its last try has failed, for this reason.
    pub(crate) fn try_failed(&self, error: &'static str) {
        if let Some(trace) = &self.traced {
            trace.last_failed(error);
        }
    }

    /// It begins anew on the general path, which counts it, and goes on with its trace.
    pub(crate) fn abandon(mut self) -> Option<Rc<Trace>> {
        self.told = None;
        let traced = self.traced.take();
        let counters = Arc::clone(&self.counters);
        drop(self);
        counters.requests.fetch_sub(1, Ordering::Relaxed);
        counters.ended.fetch_sub(1, Ordering::Relaxed);
        traced
    }

    /// Its answer broke off.
    pub(crate) fn broke_off(&mut self) {
        if let Some(record) = self.record() {
            record.broke_off = true;
        }
        if let Some(trace) = &self.traced {
            trace.broke_off();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        count(&self.counters.ended);
        let mut end = self.end;
        let mut passed = || {
            let end = *end.get_or_insert_with(Instant::now);
            end.saturating_duration_since(self.start)
        };
        if let Some(latencies) = &self.latencies {
            latencies.total.observe(passed());
        }
        if let Some(record) = self.told.take() {
            record.end(passed());
        }
        if let Some(trace) = self.traced.take() {
            trace.end();
        }
    }
}
