//! sled 0.34 as a state store. No type of it leaves this file.
//!
//! Its flush does not make data durable on Linux, values above a quarter of its segments go to files that it
//! never syncs, and damage can make it panic or take very long. So values are split far below that size, the caller
//! syncs the files, and whoever opens it is ready for all of that.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::store::{Backend, StateStore, StateStoreError, Take, ValueEdit};

/// sled's own page cache. It is written where little is read.
const CACHE_BYTES: u64 = 16 << 20;

/// The file that sled locks.
const FILE: &str = "db";

/// sled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sled;

#[derive(Debug)]
struct SledStore {
    /// None once it is closed.
    db: Option<::sled::Db>,
    file: PathBuf,
}

impl SledStore {
    fn db(&self) -> &::sled::Db {
        self.db.as_ref().expect("only dropping the store closes it")
    }
}

impl Drop for SledStore {
    /// sled goes on for a while on threads of its own. Waits until it has let go of its file, so that what is
    /// synced then is all there will be, and it can be opened again.
    fn drop(&mut self) {
        self.db = None;
        let locked = File::open(&self.file)
            .and_then(|file| Ok(flock(&file, FlockOperation::LockExclusive)?));
        if let Err(error) = locked {
            tracing::debug!(%error, "cannot wait for sled to end");
        }
    }
}

impl Backend for Sled {
    fn open(&self, dir: &Path) -> Result<Box<dyn StateStore>, StateStoreError> {
        let config = ::sled::Config::new()
            .path(dir)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None);
        let db = config.open().map_err(StateStoreError::backend)?;
        Ok(Box::new(SledStore {
            db: Some(db),
            file: dir.join(FILE),
        }))
    }
}

impl StateStore for SledStore {
    fn write(&mut self, edits: Vec<ValueEdit>) -> Result<(), StateStoreError> {
        let db = self.db();
        // Not as a batch, which locks everything out and is slower: it need not be atomic.
        for (key, value) in edits {
            match value {
                Some(value) => db.insert(key, value),
                None => db.remove(key),
            }
            .map_err(StateStoreError::backend)?;
        }
        Ok(())
    }

    fn scan(&self, take: Take<'_>) -> Result<(), StateStoreError> {
        for pair in self.db().iter() {
            let (key, value) = pair.map_err(StateStoreError::backend)?;
            if take(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StateStoreError> {
        self.db()
            .flush()
            .map(drop)
            .map_err(StateStoreError::backend)
    }
}
