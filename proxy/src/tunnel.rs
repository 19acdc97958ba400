//! After a switch of protocols: bytes both ways, until both sides have ended.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional_with_sizes;

use crate::load::InFlight;
use crate::running::Running;

/// What is read at once from either side. Messages of the protocols that are tunnelled are small, and
/// a tunnel holds two of these for its whole life.
const BUFFER_BYTES: usize = 8 << 10;

/// Joins the two sides. The request counts as in flight until both have ended.
pub(crate) async fn run(client: OnUpgrade, replica: OnUpgrade, _held: (InFlight, Running)) {
    let (Ok(client), Ok(replica)) = tokio::join!(client, replica) else {
        return; // One side left before the switch was done; dropping the other closes it.
    };
    let (mut client, mut replica) = (TokioIo::new(client), TokioIo::new(replica));
    // An error means that a side is gone; there is no one left to tell.
    let _ =
        copy_bidirectional_with_sizes(&mut client, &mut replica, BUFFER_BYTES, BUFFER_BYTES).await;
}
