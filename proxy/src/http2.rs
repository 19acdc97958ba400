//! What both sides of the proxy share of HTTP/2: the life of a connection.

mod pulse;
pub(crate) mod server;

pub(crate) use pulse::{Heard, Pulse};
