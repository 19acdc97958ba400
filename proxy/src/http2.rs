//! What both sides of the proxy share of HTTP/2: the life of a connection.

mod calm;
mod pulse;
pub(crate) mod server;

use calm::Calm;
pub(crate) use pulse::{Heard, Pulse};
