//! Streams that break and go on at another peer.

use tonic::{Code, Status};

use super::connect::Servers;
use super::failure::Failure;
use crate::admin::errors::Reason;

/// How often a stream may break without a single message in between before giving up.
const BROKEN_MAX: usize = 5;

/// How often a stream broke since its last message.
#[derive(Default)]
pub(super) struct Breaks(usize);

impl Breaks {
    /// A message has come.
    pub(super) fn mended(&mut self) {
        self.0 = 0;
    }

    /// The stream has ended, with `status` if it said why: on to the next peer.
    ///
    /// # Errors
    /// That reason if another peer would say the same, or if it breaks again and again.
    pub(super) fn broken(
        &mut self,
        status: Option<&Status>,
        servers: &mut Servers,
    ) -> Result<(), Failure> {
        if let Some(status) = status.filter(|status| !may_resume(status)) {
            return Err(Failure::of(status));
        }
        self.0 += 1;
        if self.0 == BROKEN_MAX {
            return Err(Failure::of(
                &Reason::Stopping.status("the stream keeps breaking"),
            ));
        }
        servers.next();
        Ok(())
    }
}

fn may_resume(status: &Status) -> bool {
    match Reason::of(status) {
        Some(reason) => matches!(reason, Reason::Stopping | Reason::SlowConsumer),
        None => !matches!(status.code(), Code::InvalidArgument | Code::Unimplemented),
    }
}
