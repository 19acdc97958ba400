//! Records of the state in a store of small values.
//!
//! A record is kept under its key followed by the number of the part, from 0; a part is a byte that says whether
//! another follows, and at most [`PART_MAX`] bytes of the record's frame. Backends that put large values elsewhere
//! never see one.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::store::{StateStore, StateStoreError, VALUE_MAX, ValueEdit};
use crate::codec;
use crate::state::{Edit, Key, Record};

const PART_MAX: usize = VALUE_MAX - 1;

/// Begins a part that another one follows.
const MORE: u8 = 0;
/// Begins the last part of a record.
const LAST: u8 = 1;

/// Records under their keys.
#[derive(Debug)]
pub(super) struct Records {
    store: Box<dyn StateStore>,
    /// The records of several parts, and of how many: what a smaller record in their place must remove.
    large: BTreeMap<Vec<u8>, u32>,
    pending: Vec<ValueEdit>,
    pending_bytes: usize,
}

impl Records {
    /// Over a store that holds nothing.
    pub(super) fn empty(store: Box<dyn StateStore>) -> Self {
        Self {
            store,
            large: BTreeMap::new(),
            pending: Vec::new(),
            pending_bytes: 0,
        }
    }

    /// Over a store that holds records, which are handed to `take`.
    pub(super) fn read(
        store: Box<dyn StateStore>,
        take: &mut dyn FnMut(Record),
    ) -> Result<Self, StateStoreError> {
        let mut records = Self::empty(store);
        let mut joining = Joining::default();
        let mut failure = None;
        let mut take_part = |key: &[u8], part: &[u8]| match joining.add(key, part) {
            Ok(None) => ControlFlow::Continue(()),
            Ok(Some(whole)) => match codec::decode::<Record>(&whole.frame) {
                Ok(record) if record.key().as_bytes() == whole.key => {
                    if whole.parts > 1 {
                        records.large.insert(whole.key, whole.parts);
                    }
                    take(record);
                    ControlFlow::Continue(())
                }
                Ok(_) => {
                    failure = Some(damaged("a record is under another's key"));
                    ControlFlow::Break(())
                }
                Err(error) => {
                    failure = Some(StateStoreError::Codec(error));
                    ControlFlow::Break(())
                }
            },
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        };
        records.store.scan(&mut take_part)?;
        match failure {
            Some(failure) => Err(failure),
            None if joining.parts > 0 => Err(damaged("the last record lacks its end")),
            None => Ok(records),
        }
    }

    /// Notes an edit; says how many bytes wait to be written.
    pub(super) fn push(&mut self, edit: Edit) -> Result<usize, StateStoreError> {
        match edit {
            Edit::Put(record) => {
                let frame = codec::encode(&record).map_err(StateStoreError::Codec)?;
                self.put(&record.key(), &frame);
            }
            Edit::Remove(key) => self.cut(&key, 0),
        }
        Ok(self.pending_bytes)
    }

    fn put(&mut self, key: &Key, frame: &[u8]) {
        let parts = frame.chunks(PART_MAX).count();
        for (number, bytes) in (0..).zip(frame.chunks(PART_MAX)) {
            let mut part = Vec::with_capacity(1 + bytes.len());
            part.push(if number as usize + 1 == parts {
                LAST
            } else {
                MORE
            });
            part.extend_from_slice(bytes);
            self.pend(part_key(key, number), Some(part));
        }
        let parts = u32::try_from(parts).expect("a frame is far below 2^32 parts");
        self.cut(key, parts);
    }

    /// Removes what there may be from part `parts` on.
    fn cut(&mut self, key: &Key, parts: u32) {
        let before = self.large.get(key.as_bytes()).copied().unwrap_or(1);
        for number in parts..before {
            self.pend(part_key(key, number), None);
        }
        if parts > 1 {
            self.large.insert(key.as_bytes().to_vec(), parts);
        } else if before > 1 {
            self.large.remove(key.as_bytes());
        }
    }

    fn pend(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.pending_bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        self.pending.push((key, value));
    }

    /// Writes what waits; says how many bytes that were.
    pub(super) fn write(&mut self) -> Result<usize, StateStoreError> {
        self.store.write(std::mem::take(&mut self.pending))?;
        Ok(std::mem::take(&mut self.pending_bytes))
    }

    #[cfg(test)]
    pub(super) fn store(&self) -> &dyn StateStore {
        self.store.as_ref()
    }

    pub(super) fn flush(&mut self) -> Result<(), StateStoreError> {
        self.store.flush()
    }
}

fn part_key(key: &Key, number: u32) -> Vec<u8> {
    [key.as_bytes(), &number.to_be_bytes()].concat()
}

fn damaged(what: &str) -> StateStoreError {
    StateStoreError::Damaged(what.to_owned())
}

/// Puts records together from their parts.
#[derive(Default)]
struct Joining {
    key: Vec<u8>,
    frame: Vec<u8>,
    parts: u32,
}

impl Joining {
    /// Adds the next part in the order of keys; gives the record once it is whole.
    fn add(&mut self, key: &[u8], part: &[u8]) -> Result<Option<Self>, StateStoreError> {
        let (key, number) = key
            .split_last_chunk::<4>()
            .ok_or_else(|| damaged("a key is too short"))?;
        if self.parts == 0 {
            self.key = key.to_vec();
        }
        if key != self.key || u32::from_be_bytes(*number) != self.parts {
            return Err(damaged("a record lacks a part"));
        }
        self.parts += 1;
        match part.split_first() {
            Some((&MORE, bytes)) if self.frame.len() + bytes.len() <= codec::FRAME_MAX => {
                self.frame.extend_from_slice(bytes);
                Ok(None)
            }
            Some((&LAST, bytes)) => {
                self.frame.extend_from_slice(bytes);
                Ok(Some(std::mem::take(self)))
            }
            _ => Err(damaged("a part is none")),
        }
    }
}
