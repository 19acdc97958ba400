//! Unused connections with no library on them, for the short path.

use std::cell::RefCell;
use std::io;
use std::task::{Context, Waker};

use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::config::ProxyConfig;

/// The most recently used last: it is taken first, so that a burst's surplus goes idle and ends.
#[derive(Debug, Default)]
pub(super) struct Pool(RefCell<Vec<Idle>>);

#[derive(Debug)]
struct Idle {
    stream: TcpStream,
    since: Instant,
}

impl Idle {
    /// Whether nothing has come on it, the end included. Costs no system call, as long as nothing has.
    fn is_quiet(&self) -> bool {
        let would_block = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        let mut cx = Context::from_waker(Waker::noop());
        self.stream.poll_read_ready(&mut cx).is_pending()
            || self
                .stream
                .try_read(&mut [0])
                .is_err_and(|error| would_block(&error))
    }
}

impl Pool {
    pub(super) fn take(&self, config: &ProxyConfig) -> Option<TcpStream> {
        let mut idle = self.0.borrow_mut();
        while let Some(last) = idle.pop() {
            if last.since.elapsed() >= config.upstream_idle {
                idle.clear(); // All before it are older.
            } else if last.is_quiet() {
                return Some(last.stream);
            }
        }
        None
    }

    /// Keeps a connection, if there is room.
    pub(super) fn give(&self, stream: TcpStream, config: &ProxyConfig) {
        let mut idle = self.0.borrow_mut();
        if idle.len() < config.upstream_idle_max {
            let since = Instant::now();
            idle.push(Idle { stream, since });
        }
    }

    pub(super) fn clear(&self) {
        self.0.borrow_mut().clear();
    }

    pub(super) fn sweep(&self, now: Instant, config: &ProxyConfig) {
        self.0.borrow_mut().retain(|idle| {
            now.duration_since(idle.since) < config.upstream_idle && idle.is_quiet()
        });
    }
}
