//! A replica's output as a stream, from any process of the host.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;

use super::inspect::is_over;
use super::{blocking, io_error};
use crate::provider::log_files::LogReader;
use crate::provider::run_dir::RunDir;
use crate::provider::{LogQuery, LogStream, ProviderError, ReplicaKey};

/// How often a follower looks for more: what people take for at once.
const FOLLOW_POLL: Duration = Duration::from_millis(100);

struct Tail {
    reader: LogReader,
    dir: RunDir,
    follow: bool,
}

pub(super) async fn logs(
    dir: RunDir,
    replica: &ReplicaKey,
    query: LogQuery,
) -> Result<LogStream, ProviderError> {
    let target = dir.clone();
    let reader = blocking(move || -> io::Result<Option<LogReader>> {
        if target.launch()?.is_none() {
            return Ok(None);
        }
        LogReader::open(target.log(), query.tail).map(Some)
    })
    .await
    .map_err(io_error("read", dir.path()))?
    .ok_or_else(|| ProviderError::Unknown(replica.clone()))?;
    let tail = Tail {
        reader,
        dir,
        follow: query.follow,
    };
    Ok(Box::pin(stream::unfold(Some(tail), next)))
}

/// The next piece, and what to go on with: nothing after an error.
async fn next(tail: Option<Tail>) -> Option<(io::Result<Bytes>, Option<Tail>)> {
    let mut tail = tail?;
    loop {
        let (read, back) = blocking(move || (tail.read(), tail)).await;
        tail = back;
        match read {
            Ok(Read::Chunk(chunk)) => return Some((Ok(chunk), Some(tail))),
            Ok(Read::End) => return None,
            Ok(Read::Later) => tokio::time::sleep(FOLLOW_POLL).await,
            Err(error) => return Some((Err(error), None)),
        }
    }
}

enum Read {
    Chunk(Bytes),
    Later,
    End,
}

impl Tail {
    fn read(&mut self) -> io::Result<Read> {
        // Looked up before the last attempt to read, or the very last words could be missed.
        let over = !self.follow || is_over(&self.dir)?;
        Ok(match self.reader.next_chunk()? {
            Some(chunk) => Read::Chunk(chunk),
            None if over => Read::End,
            None => Read::Later,
        })
    }
}
