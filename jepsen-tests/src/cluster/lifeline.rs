//! A socket that peers and replicas hold on to: when it closes, for whatever reason, they stop.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Context;

/// The most connections that are kept: every start of a peer or replica makes one, and a test makes a
/// few hundred at most.
const CONNECTIONS_MAX: usize = 4_096;

/// An open lifeline. Closes when dropped, and when the process ends in any way.
#[derive(Debug)]
pub(super) struct Lifeline {
    path: PathBuf,
    closing: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Lifeline {
    /// Listens at `path`.
    pub(super) fn open(path: PathBuf) -> anyhow::Result<Self> {
        let listener = UnixListener::bind(&path)
            .with_context(|| format!("cannot listen at {}", path.display()))?;
        let closing = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&closing);
        let thread = std::thread::spawn(move || hold(&listener, &told));
        Ok(Self {
            path,
            closing,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn hold(listener: &UnixListener, closing: &AtomicBool) {
    let mut held = Vec::new();
    while let Ok((stream, _)) = listener.accept() {
        if closing.load(Ordering::Acquire) {
            return;
        }
        if held.len() < CONNECTIONS_MAX {
            held.push(stream);
        }
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Release);
        // Wakes the thread; if that fails it has ended already.
        let woken = UnixStream::connect(&self.path).is_ok();
        if let (true, Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn holders_see_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let lifeline = Lifeline::open(folder.path().join("l.sock")).unwrap();
        let mut holder = UnixStream::connect(lifeline.path()).unwrap();
        drop(lifeline);
        assert_eq!(holder.read(&mut [0; 1]).unwrap(), 0);
    }
}
