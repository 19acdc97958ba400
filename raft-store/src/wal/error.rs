//! What can go wrong with the log, and what to do then.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::OutOfOrder;
use crate::codec::CodecError;

/// Why a log cannot be opened, or written any further.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The operating system refused.
    #[error("cannot {what} {}", .path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Data that was durable has changed.
    #[error(
        "log segment {} is corrupt at byte {offset}: {what}. Put back the file from a copy made since the peer \
         ran last; or remove this peer's data directory, so that it joins again under a new id",
        .path.display()
    )]
    Corrupt {
        /// The segment.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        what: String,
        /// What could not be decoded, if that is what is wrong.
        source: Option<CodecError>,
    },
    /// A segment is not there.
    #[error(
        "log segment {} is missing. Put it back from a copy made since the peer ran last; or remove this \
         peer's data directory, so that it joins again under a new id",
        .path.display()
    )]
    Missing {
        /// The segment.
        path: PathBuf,
    },
    /// Written by a newer release.
    #[error(
        "log segment {} holds format {found} at byte {offset}, which this release does not know. Run the release \
         that wrote it, or a later one",
        .path.display()
    )]
    Format {
        /// The segment.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// The version found.
        found: u16,
    },
    /// A record has no encoding.
    #[error("cannot encode a log record")]
    Encode(#[source] CodecError),
    /// The writing thread cannot be started.
    #[error("cannot start the log writer")]
    Thread(#[source] io::Error),
}

impl WalError {
    pub(crate) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        Self::Io { what, path, source }
    }

    pub(super) fn corrupt(path: &Path, offset: u64, what: &str) -> Self {
        Self::Corrupt {
            path: path.to_owned(),
            offset,
            what: what.to_owned(),
            source: None,
        }
    }

    pub(super) fn body(path: &Path, offset: u64, source: CodecError) -> Self {
        Self::Corrupt {
            path: path.to_owned(),
            offset,
            what: "a record cannot be decoded".to_owned(),
            source: Some(source),
        }
    }

    pub(super) fn format(path: &Path, found: u16) -> Self {
        let path = path.to_owned();
        Self::Format {
            path,
            offset: 0,
            found,
        }
    }

    pub(super) fn record_version(path: &Path, offset: u64, found: u8) -> Self {
        Self::Format {
            path: path.to_owned(),
            offset,
            found: found.into(),
        }
    }
}

/// The log takes no more writes. What was being written may or may not be on disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the log takes no more writes: {reason}")]
pub struct Failed {
    /// The first error, with its causes.
    pub reason: Arc<str>,
}

impl Failed {
    pub(super) fn new(reason: &str) -> Self {
        let reason = reason.into();
        Self { reason }
    }

    pub(super) fn closed() -> Self {
        Self::new("it was closed")
    }

    pub(super) fn from(error: &dyn std::error::Error) -> Self {
        let mut reason = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            reason.push_str(": ");
            reason.push_str(&error.to_string());
            cause = error.source();
        }
        Self::new(&reason)
    }
}

impl From<Failed> for io::Error {
    fn from(failed: Failed) -> Self {
        Self::other(failed)
    }
}

/// Why entries were not appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// They do not follow the log.
    #[error("entries out of order")]
    OutOfOrder(#[source] OutOfOrder),
    /// See [`Failed`].
    #[error(transparent)]
    Failed(Failed),
}
