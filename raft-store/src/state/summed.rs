//! A digest that is kept up to date as the state changes, and the maps that keep it.
//!
//! The digest of the state is the sum of the hashes of its records, so that a change costs the hashes of what
//! it touches, and the order of changes leaves no trace (AdHash: Bellare and Micciancio, "A New Paradigm for
//! Collision-Free Hashing: Incrementality at Reduced Cost", EUROCRYPT 1997, here over four lanes of 64 bits).
//! It finds peers that have come to differ by a defect or by damage. It is no defence against somebody who
//! may write records of his choice.

use std::fmt;
use std::io;
use std::ops::Deref;

use bincode::{Decode, Encode};
use imbl::OrdMap;
use sha2::{Digest as _, Sha256};

use super::record::Record;
use crate::codec;

/// A digest of the whole state: equal exactly if what the cluster agreed on is equal.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// The sum of the hashes of a set of records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum([u64; 4]);

impl Sum {
    /// The sum over one record.
    pub(super) fn of(record: &Record) -> Self {
        let mut hashing = Hashing(Sha256::new());
        codec::write(record, &mut hashing)
            .expect("each record is bounded far below what a frame holds, and hashing cannot fail");
        let hash: [u8; 32] = hashing.0.finalize().into();
        let mut lanes = [0; 4];
        for (lane, bytes) in lanes.iter_mut().zip(hash.as_chunks().0) {
            *lane = u64::from_le_bytes(*bytes);
        }
        Self(lanes)
    }

    #[must_use]
    pub(super) fn plus(self, other: Self) -> Self {
        Self(std::array::from_fn(|lane| {
            self.0[lane].wrapping_add(other.0[lane])
        }))
    }

    #[must_use]
    pub(super) fn minus(self, other: Self) -> Self {
        Self(std::array::from_fn(|lane| {
            self.0[lane].wrapping_sub(other.0[lane])
        }))
    }

    pub(super) fn digest(self) -> Digest {
        let mut bytes = [0; 32];
        for (lane, chunk) in self.0.iter().zip(bytes.as_chunks_mut().0) {
            *chunk = lane.to_le_bytes();
        }
        Digest(bytes)
    }
}

/// Hashes what is written, so that a frame need not be kept for it.
struct Hashing(Sha256);

impl io::Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a map of the state holds, as records.
pub(super) trait Recorded<K>: Clone {
    /// Hands the records of this value under `key` to `take`, except those which `other` has in common with it
    /// and that it knows of without looking at their contents.
    fn records_beyond(&self, key: &K, other: Option<&Self>, take: &mut dyn FnMut(Record));

    /// The sum of the records that [`Recorded::records_beyond`] hands over.
    fn sum_beyond(&self, key: &K, other: Option<&Self>) -> Sum {
        let mut sum = Sum::default();
        self.records_beyond(key, other, &mut |record| sum = sum.plus(Sum::of(&record)));
        sum
    }
}

/// An ordered map that knows the sum of its records. It is changed through its own methods only.
#[derive(Clone)]
pub(super) struct Summed<K, V> {
    map: OrdMap<K, V>,
    sum: Sum,
}

impl<K, V> Default for Summed<K, V> {
    fn default() -> Self {
        Self {
            map: OrdMap::default(),
            sum: Sum::default(),
        }
    }
}

impl<K: fmt::Debug + Ord, V: fmt::Debug> fmt::Debug for Summed<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.map.fmt(f)
    }
}

impl<K, V> Deref for Summed<K, V> {
    type Target = OrdMap<K, V>;

    fn deref(&self) -> &Self::Target {
        &self.map
    }
}

impl<K: Ord + Clone, V: Recorded<K>> Summed<K, V> {
    pub(super) fn sum(&self) -> Sum {
        self.sum
    }

    /// Puts a value, in place of the key's former one.
    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let former = self.map.insert(key.clone(), value.clone());
        self.sum = self.sum_after(&key, former.as_ref(), Some(&value));
        former
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let removed = self.map.remove(key)?;
        self.sum = self.sum_after(key, Some(&removed), None);
        Some(removed)
    }

    /// Changes the value of a key, if there is one.
    pub(super) fn alter<R>(&mut self, key: &K, change: impl FnOnce(&mut V) -> R) -> Option<R> {
        let value = self.map.get_mut(key)?;
        let before = value.clone();
        let outcome = change(value);
        let after = value.clone();
        self.sum = self.sum_after(key, Some(&before), Some(&after));
        Some(outcome)
    }

    fn sum_after(&self, key: &K, before: Option<&V>, after: Option<&V>) -> Sum {
        let mut sum = self.sum;
        if let Some(after) = after {
            sum = sum.plus(after.sum_beyond(key, before));
        }
        if let Some(before) = before {
            sum = sum.minus(before.sum_beyond(key, after));
        }
        sum
    }
}
