//! Lets requests in: at most so many at once. Who may make which is the door's to decide.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::service::Interceptor;
use tonic::{Extensions, Request, Status};

use super::errors::Reason;

/// The most requests being worked on at once. Their messages have at most 2 MiB each, 128 MiB together, and the contents of
/// files in them, 768 KiB each, are copied once. A message of a great many empty items takes many times its size until it has
/// been decoded and refused, which only those whom the door lets make such a request can ask for. A write takes milliseconds,
/// so this allows thousands per second.
pub(super) const REQUESTS_MAX: usize = 64;

/// The most requests about keys at once, whose messages are at most 72 KiB: they hold as much at most, and one
/// group of the log takes them all.
pub(super) const KEY_REQUESTS_MAX: usize = 1_024;

/// See the module. Clones share the bound.
#[derive(Clone)]
pub(super) struct Gate {
    room: Arc<Semaphore>,
    max: usize,
}

impl Gate {
    /// Lets in at most `max` requests.
    pub(super) fn new(max: usize) -> Self {
        Self {
            room: Arc::new(Semaphore::new(max)),
            max,
        }
    }

    /// Lets a request in, which counts as being worked on until the permit is dropped.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if there is no room.
    pub(super) fn admit(&self) -> Result<OwnedSemaphorePermit, Status> {
        Arc::clone(&self.room).try_acquire_owned().map_err(|_| {
            Reason::TooManyRequests.status(format!(
                "this peer works on {} requests already; try again, or ask another peer",
                self.max
            ))
        })
    }
}

impl Interceptor for Gate {
    /// Runs before a message is read from the network.
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let permit = self.admit()?;
        request.extensions_mut().insert(Arc::new(permit));
        Ok(request)
    }
}

/// Takes the message out of a request. The request counts as being worked on until the second value
/// is dropped.
pub(super) fn admitted<M>(request: Request<M>) -> (M, Extensions) {
    let (_, held, message) = request.into_parts();
    (message, held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_request_too_many_is_refused_until_another_is_done() {
        let mut gate = Gate::new(REQUESTS_MAX);
        let mut held: Vec<_> = (0..REQUESTS_MAX)
            .map(|_| admitted(gate.clone().call(Request::new(())).unwrap()))
            .collect();
        let status = gate.call(Request::new(())).unwrap_err();
        assert_eq!(Reason::of(&status), Some(Reason::TooManyRequests));
        held.pop();
        assert!(gate.call(Request::new(())).is_ok());
    }
}
