//! What makes everything that `raftserve dev` started end with it, however it ends: a unix socket to
//! which each peer and each replica's keeper stays connected. The kernel closes the connections when
//! `raftserve dev` is gone, and at the end of file they stop.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::provider::run_dir::SocketPath;

/// The most connections held at once: three peers and some thousand replicas, with room to spare.
/// One more stays in the socket's queue, which ends with this process just as well.
const HELD_MAX: usize = 4096;

/// The pause after a connection that could not be taken, most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The end of the lifeline that must not be let go.
#[derive(Debug)]
pub(super) struct Lifeline {
    path: PathBuf,
    holder: JoinHandle<()>,
}

impl Lifeline {
    /// Listens at `path`, in place of an earlier run's socket, and holds whatever connects.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub(super) fn hold(path: PathBuf) -> Result<Self> {
        let listener = listen(&path)
            .with_context(|| format!("cannot listen at the lifeline {}", path.display()))?;
        Ok(Self {
            path,
            holder: tokio::spawn(hold_all(listener)),
        })
    }

    /// Lets go: all that is connected ends at once, and nothing can connect any more.
    pub(super) async fn cut(self) {
        // First the name, so that nothing waits in the queue of a socket that is about to close.
        let _ = fs::remove_file(&self.path);
        self.holder.abort();
        // It was aborted; that it ended is all that counts.
        let _ = self.holder.await;
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let short = SocketPath::new(path)?;
    UnixListener::bind(short.as_path())
}

async fn hold_all(listener: UnixListener) {
    let mut held = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if held.len() < HELD_MAX => {
                match accepted {
                    Ok((stream, _)) => {
                        held.spawn(hold_one(stream));
                    }
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                }
            }
            Some(_) = held.join_next() => {}
        }
    }
}

/// Holds one connection until its other end is gone.
async fn hold_one(mut stream: UnixStream) {
    let mut ignored = [0; 64];
    while matches!(stream.read(&mut ignored).await, Ok(count) if count > 0) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn connect(path: &Path) -> io::Result<UnixStream> {
        UnixStream::connect(SocketPath::new(path)?.as_path()).await
    }

    #[tokio::test]
    async fn connections_are_held_until_the_cut_at_a_path_of_any_length() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(120));
        fs::create_dir_all(&deep).unwrap();
        let path = deep.join("lifeline.sock");
        let lifeline = Lifeline::hold(path.clone()).unwrap();
        let mut held = connect(&path).await.unwrap();
        let mut byte = [0];
        let early = tokio::time::timeout(Duration::from_millis(50), held.read(&mut byte)).await;
        assert!(early.is_err(), "the connection was not held");
        lifeline.cut().await;
        assert_eq!(held.read(&mut byte).await.unwrap(), 0);
        assert!(connect(&path).await.is_err());
    }

    #[tokio::test]
    async fn socket_of_an_earlier_run_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("lifeline.sock");
        drop(UnixListener::bind(&path).unwrap());
        let _lifeline = Lifeline::hold(path.clone()).unwrap();
        connect(&path).await.unwrap();
    }
}
