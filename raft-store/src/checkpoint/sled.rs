//! sled 0.34 as a state store. No type of it leaves this file.
//!
//! Its flush does not make data durable on Linux, values above a quarter of its segments go to files that it
//! never syncs, and damage can make it panic or take very long. So values are split below that size, the caller
//! syncs the files, and reading happens on a thread that may fail.

use std::path::Path;

use super::{StateStore, StateStoreError};
use crate::codec::CodecError;

/// Parts of values: far below the size from which sled makes a file per value.
const PART_MAX: usize = 8 << 10;

/// sled's own page cache. It is read and written once, in order.
const CACHE_BYTES: u64 = 64 << 20;

/// Parts inserted at a time.
const BATCH_PARTS: usize = 256;

/// Precedes a part that another one follows.
const MORE: u8 = 0;
/// Precedes the last part of a value.
const LAST: u8 = 1;

pub(super) struct SledStore;

fn open(dir: &Path) -> Result<::sled::Db, StateStoreError> {
    let config = ::sled::Config::new()
        .path(dir)
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(None);
    config.open().map_err(backend)
}

fn backend(error: ::sled::Error) -> StateStoreError {
    StateStoreError::Backend(Box::new(error))
}

impl StateStore for SledStore {
    fn write(
        &self,
        dir: &Path,
        values: &mut dyn Iterator<Item = Result<Vec<u8>, CodecError>>,
    ) -> Result<(), StateStoreError> {
        let db = open(dir)?;
        let mut key = 0_u64;
        let mut batch = ::sled::Batch::default();
        for value in values {
            let value = value.map_err(StateStoreError::Encode)?;
            let parts = value.len().div_ceil(PART_MAX).max(1);
            for at in 0..parts {
                let end = value.len().min((at + 1) * PART_MAX);
                let mut part = Vec::with_capacity(1 + end - at * PART_MAX);
                part.push(if at + 1 == parts { LAST } else { MORE });
                part.extend_from_slice(&value[at * PART_MAX..end]);
                // Big-endian, so that keys sort as numbers do.
                batch.insert(&key.to_be_bytes(), part);
                key += 1;
                if key.is_multiple_of(BATCH_PARTS as u64) {
                    db.apply_batch(std::mem::take(&mut batch))
                        .map_err(backend)?;
                }
            }
        }
        db.apply_batch(batch).map_err(backend)?;
        db.flush().map(drop).map_err(backend)
    }

    fn read(
        &self,
        dir: &Path,
        take: &mut dyn FnMut(Vec<u8>) -> bool,
    ) -> Result<(), StateStoreError> {
        let db = open(dir)?;
        let mut value = Vec::new();
        for pair in db.iter() {
            let (_, part) = pair.map_err(backend)?;
            let Some((mark, bytes)) = part.split_first() else {
                break;
            };
            value.extend_from_slice(bytes);
            if *mark == LAST && !take(std::mem::take(&mut value)) {
                break;
            }
        }
        Ok(())
    }
}
