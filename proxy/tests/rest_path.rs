//! The tests of connections and requests once more, with the HTTP library carrying every request of HTTP/1.1, and every
//! connection put to rest after each.

#![allow(
    clippy::duplicate_mod,
    reason = "each file of tests brings the support that it uses"
)]

#[path = "as_sent.rs"]
mod as_sent;
#[path = "body_limit.rs"]
mod body_limit;
#[path = "connections.rs"]
mod connections;
#[path = "failures.rs"]
mod failures;
#[path = "protocols.rs"]
mod protocols;
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
