//! The thread that carries a replica's output from its pipe to disk. A slow disk slows the replica's
//! writes down, as a slow terminal would; nothing is dropped for being too much.

use std::io::{self, PipeReader, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::provider::log_files::LogWriter;

/// The size of one read: the capacity of a pipe.
const CHUNK_BYTES: usize = 64 << 10;

/// How long the rest of the output may take to reach the disk once nothing of the replica runs.
/// Only a process that escaped the sweep keeps the pipe open longer.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// A running pump.
pub(super) struct Pump {
    writer: Arc<Mutex<LogWriter>>,
    done: oneshot::Receiver<()>,
}

impl Pump {
    /// Starts carrying.
    ///
    /// # Errors
    /// If no thread can be made.
    pub(super) fn start(mut from: PipeReader, to: LogWriter) -> io::Result<Self> {
        let writer = Arc::new(Mutex::new(to));
        let (tell, done) = oneshot::channel();
        let shared = Arc::clone(&writer);
        std::thread::Builder::new()
            .name("output".to_owned())
            .stack_size(256 << 10)
            .spawn(move || {
                let mut buffer = vec![0; CHUNK_BYTES];
                loop {
                    match from.read(&mut buffer) {
                        Ok(0) => break,
                        Ok(count) => shared
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .append(&buffer[..count]),
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(_) => break,
                    }
                }
                // Nobody waits for the end any more: fine.
                let _ = tell.send(());
            })?;
        Ok(Self { writer, done })
    }

    /// Waits until everything was carried, and returns the end of it. To be called once all that
    /// wrote is gone.
    pub(super) async fn finish(self) -> String {
        // Both ways of not being done in time leave the same to be returned.
        let _ = tokio::time::timeout(DRAIN_MAX, self.done).await;
        self.writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .last_words()
    }
}
