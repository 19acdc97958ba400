//! All tests of the data plane once more, with the HTTP library carrying every request of HTTP/1.1.

#![allow(
    clippy::duplicate_mod,
    reason = "each file of tests brings the support that it uses"
)]

#[path = "affinity.rs"]
mod affinity;
#[path = "failures.rs"]
mod failures;
#[path = "protocols.rs"]
mod protocols;
#[path = "routing.rs"]
mod routing;
#[path = "shutdown.rs"]
mod shutdown;
#[path = "streaming.rs"]
mod streaming;
