//! What both sides of the proxy share of HTTP/2: the life of a connection.

pub(crate) mod calm;
mod pulse;
pub(crate) mod server;
mod window;

use calm::{Allowance, Calm};
pub(crate) use pulse::{Heard, Pulse};
use window::Window;
