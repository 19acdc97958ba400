//! What a checkpoint is kept in.

use std::fmt::Debug;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::codec::CodecError;
use crate::wal::Failed;

/// The largest value that is handed to a backend: larger ones are split.
pub const VALUE_MAX: usize = 8 << 10;

/// Makes stores, each in a directory of its own.
pub trait Backend: Debug + Send + Sync + 'static {
    /// Opens the store in `dir`, which exists; an empty one if the directory is.
    ///
    /// # Errors
    /// [`StateStoreError`]. It may also panic or take long: whoever calls it is ready for that.
    fn open(&self, dir: &Path) -> Result<Box<dyn StateStore>, StateStoreError>;
}

/// An ordered store of values under keys.
///
/// It promises nothing about crashes, nor that damage is noticed: what is read is used only if its digest is that
/// of what was written. It may panic.
pub trait StateStore: Debug + Send {
    /// Carries out edits, in order: puts the value under the key, in place of what is there; or removes the key,
    /// which need not be there. Keys are of any length but 0; values are at most [`VALUE_MAX`] bytes.
    ///
    /// # Errors
    /// [`StateStoreError`]; any part of the edits may have been carried out.
    fn write(&mut self, edits: Vec<ValueEdit>) -> Result<(), StateStoreError>;

    /// Hands every key and its value to `take`, in the order of the keys' bytes, until that breaks.
    ///
    /// # Errors
    /// [`StateStoreError`].
    fn scan(&self, take: Take<'_>) -> Result<(), StateStoreError>;

    /// Hands all that was written to the operating system. Files are synced by the caller.
    ///
    /// # Errors
    /// [`StateStoreError`].
    fn flush(&mut self) -> Result<(), StateStoreError>;
}

/// Takes a key and its value; says whether to go on.
pub type Take<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// A key, and the value to put under it or none to remove it.
pub type ValueEdit = (Vec<u8>, Option<Vec<u8>>);

/// Why a state was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum StateStoreError {
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
    /// What was saved before cannot be told apart from what is free.
    #[error("cannot list {}", .path.display())]
    Unlisted {
        /// The directory of saved states.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The backend refused.
    #[error("the state store failed")]
    Backend(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A record has no encoding, or is none.
    #[error("the state store holds something that is not a record")]
    Codec(#[source] CodecError),
    /// What is there is not what was written.
    #[error("the state store is damaged: {0}")]
    Damaged(String),
    /// Reading took too long.
    #[error("the saved state was not read within {0:?}")]
    NotReadInTime(Duration),
    /// The backend panicked while it was read.
    #[error("reading the saved state panicked")]
    Panicked,
    /// The log failed before it was closed, so the stop is not in good order.
    #[error("the log had failed")]
    Log(#[source] Failed),
    /// Writing down the rest took too long, and was given up.
    #[error("the state could not be written down in time")]
    TooLong,
    /// Writing failed before the stop, as was logged then.
    #[error("writing down the state had ended before")]
    Ended,
}

impl StateStoreError {
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }

    /// An error of a backend.
    pub fn backend(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Backend(Box::new(error))
    }
}
