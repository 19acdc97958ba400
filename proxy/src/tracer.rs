//! Spans of requests: one for each that is sampled, and one for each of its tries at a replica.
//!
//! A worker gathers what a request's spans say while the request runs, hands them over once its answer has ended, and
//! goes on. Whoever exports them takes them out of a bounded queue. If that is full, spans are dropped, and counted;
//! no request waits for it. Who is sampled is decided by whoever began the trace (W3C Trace Context, level 1, 3.2.2.5);
//! where it begins here, by a share of the trace ids.

mod spans;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderMap, HeaderValue};
use tokio::sync::mpsc;

use crate::metrics::count_shared;
use crate::trace::{self, Parent, TRACEPARENT, TRACESTATE};

pub use spans::{Asked, RequestSpans, TrySpan};
pub(crate) use spans::{Trace, Try, TryId};

/// How many requests' spans may wait to be exported: some megabytes, and a second of a busy peer.
const TRACES_MAX: usize = 8192;

/// What of a `tracestate` is kept: what others may be counted on to pass on (3.3.1.5 there).
const STATE_MAX: usize = 512;

/// Where the spans of requests are told.
#[derive(Clone, Debug)]
pub struct Tracer {
    traces: mpsc::Sender<RequestSpans>,
    dropped: Arc<AtomicU64>,
    /// A trace that begins here is sampled if the last seven bytes of its id, as a number, are below this.
    below: u64,
}

/// The spans that were told, for one who exports them.
#[derive(Debug)]
pub struct FinishedTraces {
    traces: mpsc::Receiver<RequestSpans>,
    dropped: Arc<AtomicU64>,
}

/// What a request belongs to, and who called.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    parent_id: Option<[u8; 8]>,
    state: String,
}

/// Whether a request's spans are told.
#[derive(Clone, Debug)]
pub(crate) enum Sampled {
    Yes(Context),
    /// Its trace goes on as it came.
    No,
    /// A trace that begins here and is not sampled, as the replica gets it.
    Begun([u8; 55]),
}

impl Tracer {
    /// Samples this share of the traces that begin here, between none (0) and all (1).
    #[must_use]
    pub fn new(share: f64) -> (Self, FinishedTraces) {
        const ALL: u64 = 1 << 56;
        let (sender, receiver) = mpsc::channel(TRACES_MAX);
        let dropped = Arc::<AtomicU64>::default();
        let traces = FinishedTraces {
            traces: receiver,
            dropped: Arc::clone(&dropped),
        };
        let tracer = Self {
            traces: sender,
            dropped,
            below: (share.clamp(0.0, 1.0) * ALL as f64) as u64,
        };
        (tracer, traces)
    }

    /// Whether to tell of a request that came with this context, if that is valid, and with this `tracestate`.
    pub(crate) fn sample(
        &self,
        parent: Option<&[u8]>,
        state: Option<&[u8]>,
        random: impl FnOnce() -> [u8; 24],
    ) -> Sampled {
        match parent.and_then(Parent::read) {
            Some(parent) if !parent.sampled => Sampled::No,
            Some(parent) => {
                let (_, span_id) = trace::ids(random());
                let state = state.and_then(|state| std::str::from_utf8(state).ok());
                let state = state.filter(|state| state.len() <= STATE_MAX);
                Sampled::Yes(Context {
                    trace_id: parent.trace_id,
                    span_id,
                    parent_id: Some(parent.span_id),
                    state: state.unwrap_or_default().to_owned(),
                })
            }
            None => {
                let (trace_id, span_id) = trace::ids(random());
                let mut low = [0; 8];
                low[1..].copy_from_slice(&trace_id[9..]);
                if u64::from_be_bytes(low) >= self.below {
                    return Sampled::Begun(trace::line(trace_id, span_id, false));
                }
                Sampled::Yes(Context {
                    trace_id,
                    span_id,
                    parent_id: None,
                    state: String::new(),
                })
            }
        }
    }

    /// The same, of a request in a map of fields.
    pub(crate) fn sample_headers(&self, headers: &HeaderMap) -> Sampled {
        let single = |name| {
            let mut lines = headers.get_all(name).iter();
            let line = lines.next().map(HeaderValue::as_bytes);
            line.filter(|_| lines.next().is_none())
        };
        self.sample(single(TRACEPARENT), single(TRACESTATE), trace::random)
    }

    fn tell(&self, spans: RequestSpans) {
        if self.traces.try_send(spans).is_err() {
            count_shared(&self.dropped);
        }
    }

    /// How many requests' spans were not exported.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl FinishedTraces {
    /// Awaits spans, and appends at most `most` requests' to `into`. Returns how many; 0 once every proxy that
    /// tells some is gone. Cancel safe.
    pub async fn take(&mut self, into: &mut Vec<RequestSpans>, most: usize) -> usize {
        self.traces.recv_many(into, most).await
    }

    /// The same without waiting: whether there was one.
    pub fn take_now(&mut self, into: &mut Vec<RequestSpans>) -> bool {
        let taken = self.traces.try_recv().map(|spans| into.push(spans));
        taken.is_ok()
    }

    /// Counts the spans of so many requests that were taken and could not be exported.
    pub fn lost(&self, requests: usize) {
        let requests = u64::try_from(requests).unwrap_or(u64::MAX);
        self.dropped.fetch_add(requests, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLED: &[u8] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn sample(share: f64, parent: Option<&[u8]>, random: [u8; 24]) -> Sampled {
        Tracer::new(share).0.sample(parent, None, || random)
    }

    #[test]
    fn who_began_a_trace_decides() {
        let unsampled = [&SAMPLED[..54], b"0"].concat();
        for share in [0.0, 1.0] {
            let yes = sample(share, Some(SAMPLED), [7; 24]);
            let Sampled::Yes(context) = yes else {
                panic!("{yes:?}");
            };
            assert_eq!(context.trace_id[..2], [0x0a, 0xf7]);
            assert_eq!(context.parent_id.expect("it has one")[..2], [0xb7, 0xad]);
            assert_eq!(context.span_id, [7; 8]);
            let no = sample(share, Some(&unsampled), [7; 24]);
            assert!(matches!(no, Sampled::No), "{no:?}");
        }
    }

    #[test]
    fn of_traces_that_begin_here_a_share_is_sampled() {
        let mut sampled = [0; 3];
        for n in 0..=255 {
            let mut random = [3; 24];
            random[9] = n;
            for (at, share) in [0.0, 0.25, 1.0].into_iter().enumerate() {
                match sample(share, None, random) {
                    Sampled::Yes(context) => {
                        assert_eq!(context.parent_id, None);
                        sampled[at] += 1;
                    }
                    Sampled::Begun(line) => {
                        assert!(trace::is_valid(&line));
                        assert!(line.ends_with(b"-00"), "the replica follows");
                    }
                    Sampled::No => panic!("there is no caller"),
                }
            }
        }
        assert_eq!(sampled, [0, 64, 256]);
    }

    #[test]
    fn what_is_no_context_begins_a_trace() {
        let sampled = sample(1.0, Some(b"00-junk"), [7; 24]);
        assert!(matches!(sampled, Sampled::Yes(context) if context.parent_id.is_none()));
    }
}
