//! The shim's control socket: whoever connects is sent the record at once and whenever it changes,
//! and may ask for a stop. Its end of file means that the shim is dead.

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::provider::record::{ControlRequest, Record};
use crate::provider::run_dir::{RunDir, SocketPath};

/// How many may be connected at once: each peer of the host holds one connection, and a stop takes
/// another. More wait to be accepted.
const CONNECTIONS_MAX: usize = 64;

/// The longest request, generously.
const REQUEST_BYTES_MAX: u64 = 4 << 10;

/// How long a client may take to take in one record.
const SEND_MAX: Duration = Duration::from_secs(5);

/// Listens on the run directory's socket, in place of a dead shim's. Only the holder of the lock may.
///
/// # Errors
/// If the socket cannot be bound.
pub(super) fn bind(dir: &RunDir) -> io::Result<UnixListener> {
    let path = SocketPath::new(&dir.control_socket())?;
    match fs::remove_file(path.as_path()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path.as_path())
}

/// Serves until dropped. The grace of each stop asked for is sent to `stops`.
pub(super) async fn serve(
    listener: UnixListener,
    record: watch::Receiver<Record>,
    stops: mpsc::Sender<Duration>,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, say. There is time.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (record, stops) = (record.clone(), stops.clone());
        tokio::spawn(async move {
            // A client that goes away, or talks nonsense, is let go.
            let _ = converse(stream, record, stops).await;
            drop(permit);
        });
    }
}

async fn converse(
    stream: UnixStream,
    mut record: watch::Receiver<Record>,
    stops: mpsc::Sender<Duration>,
) -> io::Result<()> {
    let (from, mut to) = stream.into_split();
    let mut from = BufReader::new(from).take(REQUEST_BYTES_MAX);
    let mut line = Vec::new();
    record.mark_changed();
    loop {
        tokio::select! {
            biased;
            changed = record.changed() => {
                changed.map_err(io::Error::other)?;
                let mut text = serde_json::to_vec(&*record.borrow_and_update())?;
                text.push(b'\n');
                tokio::time::timeout(SEND_MAX, to.write_all(&text)).await??;
            }
            // Cancelled, it keeps what it has read in `line`.
            count = from.read_until(b'\n', &mut line) => {
                if count? == 0 || line.last() != Some(&b'\n') {
                    return Ok(());
                }
                match serde_json::from_slice(&line)? {
                    ControlRequest::Status => record.mark_changed(),
                    ControlRequest::Stop { grace_ms } => {
                        let grace = Duration::from_millis(grace_ms);
                        stops.send(grace).await.map_err(io::Error::other)?;
                    }
                }
                line.clear();
                from.set_limit(REQUEST_BYTES_MAX);
            }
        }
    }
}
