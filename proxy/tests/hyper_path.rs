//! All tests of the data plane once more, with the HTTP library carrying every request of HTTP/1.1. Those of
//! chaos do both by themselves, as they measure what the whole process holds.

#![allow(
    clippy::duplicate_mod,
    reason = "each file of tests brings the support that it uses"
)]

#[path = "affinity.rs"]
mod affinity;
#[path = "as_sent.rs"]
mod as_sent;
#[path = "body_limit.rs"]
mod body_limit;
#[path = "connections.rs"]
mod connections;
#[path = "failures.rs"]
mod failures;
#[path = "http1_uploads.rs"]
mod http1_uploads;
#[path = "observability.rs"]
mod observability;
#[path = "protocols.rs"]
mod protocols;
#[path = "queue.rs"]
mod queue;
#[path = "retries.rs"]
mod retries;
#[path = "routing.rs"]
mod routing;
#[path = "shutdown.rs"]
mod shutdown;
#[path = "smuggling.rs"]
mod smuggling;
#[path = "streaming.rs"]
mod streaming;
#[path = "tls.rs"]
mod tls;
#[path = "traces.rs"]
mod traces;
