//! A worker's read buffers and head texts. A connection holds one only while bytes are in it, so an
//! idle connection costs none.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

/// A buffer for heads and small bodies: a usual head many times over.
pub(super) const SMALL_BYTES: usize = 16 << 10;

/// A buffer for a body known to be large: few system calls for each megabyte, and still in the
/// processor's second cache.
pub(super) const LARGE_BYTES: usize = 256 << 10;

/// From how many bytes on a body is large.
pub(super) const LARGE_FROM: u64 = 64 << 10;

/// How many unused ones are kept of each size; a burst's surplus is freed. 1 MiB and 2 MiB.
const SMALL_KEPT: usize = 64;
const LARGE_KEPT: usize = 8;

/// The capacity above which the text of a head is not kept.
const TEXT_KEPT_BYTES: usize = 16 << 10;

/// How large a buffer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    Small,
    Large,
}

impl Size {
    /// What suits a body of which this much is to come.
    pub(super) fn of_rest(bytes: u64) -> Self {
        if bytes > LARGE_FROM {
            Self::Large
        } else {
            Self::Small
        }
    }
}

/// The unused buffers of one worker.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    small: RefCell<Vec<Box<[u8]>>>,
    large: RefCell<Vec<Box<[u8]>>>,
    texts: RefCell<Vec<Vec<u8>>>,
}

impl Buffers {
    /// An empty buffer.
    pub(super) fn take(self: &Rc<Self>, size: Size) -> Buffer {
        let (kept, bytes) = match size {
            Size::Small => (&self.small, SMALL_BYTES),
            Size::Large => (&self.large, LARGE_BYTES),
        };
        let unused = kept.borrow_mut().pop();
        Buffer {
            bytes: unused.unwrap_or_else(|| vec![0; bytes].into_boxed_slice()),
            start: 0,
            end: 0,
            home: Rc::clone(self),
        }
    }

    /// An empty text.
    pub(super) fn text(self: &Rc<Self>) -> Text {
        Text {
            bytes: self.texts.borrow_mut().pop().unwrap_or_default(),
            home: Rc::clone(self),
        }
    }
}

/// Bytes that were read and not used yet: `start..end`. Dropped, it goes back to its worker.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    home: Rc<Buffers>,
}

impl Buffer {
    pub(super) fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether nothing more can be read into it.
    pub(super) fn is_full(&self) -> bool {
        self.end == self.bytes.len()
    }

    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.end..]
    }

    /// Counts in what was read into its room.
    pub(super) fn fill(&mut self, count: usize) {
        self.end += count;
        assert!(self.end <= self.bytes.len(), "no more than there is room");
    }

    /// Forgets the first bytes.
    pub(super) fn consume(&mut self, count: usize) {
        self.start += count;
        assert!(self.start <= self.end, "no more than there is");
    }

    /// Moves what it holds to the front, so that all other space is room.
    pub(super) fn compact(&mut self) {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
    }

    /// The same bytes in a large buffer. `None` if this is one already.
    pub(super) fn grown(&self) -> Option<Self> {
        if self.bytes.len() == LARGE_BYTES {
            return None;
        }
        let mut grown = self.home.take(Size::Large);
        let filled = self.filled();
        grown.room()[..filled.len()].copy_from_slice(filled);
        grown.fill(filled.len());
        Some(grown)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let (kept, most) = match bytes.len() {
            SMALL_BYTES => (&self.home.small, SMALL_KEPT),
            _ => (&self.home.large, LARGE_KEPT),
        };
        let mut kept = kept.borrow_mut();
        if kept.len() < most {
            kept.push(bytes);
        }
    }
}

/// The text of a head that is being made. Dropped, its space goes back to its worker.
#[derive(Debug)]
pub(super) struct Text {
    bytes: Vec<u8>,
    home: Rc<Buffers>,
}

impl Deref for Text {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Text {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        let mut kept = self.home.texts.borrow_mut();
        if bytes.capacity() <= TEXT_KEPT_BYTES && kept.len() < SMALL_KEPT {
            bytes.clear();
            kept.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_empty_and_only_so_many_are_kept() {
        let buffers = Rc::new(Buffers::default());
        let mut held: Vec<_> = (0..SMALL_KEPT + 3)
            .map(|_| buffers.take(Size::Small))
            .collect();
        held[0].room()[..3].copy_from_slice(b"abc");
        held[0].fill(3);
        held[0].consume(1);
        assert_eq!(held[0].filled(), b"bc");
        held.clear();
        assert_eq!(buffers.small.borrow().len(), SMALL_KEPT);
        assert!(buffers.take(Size::Small).is_empty());
        drop(buffers.take(Size::Large));
        assert_eq!(buffers.large.borrow().len(), 1);
    }

    #[test]
    fn growing_and_compacting_keep_the_bytes() {
        let buffers = Rc::new(Buffers::default());
        let mut small = buffers.take(Size::Small);
        small.room().fill(b'x');
        small.fill(SMALL_BYTES);
        small.consume(SMALL_BYTES - 2);
        assert!(small.is_full());
        small.compact();
        assert_eq!((small.filled(), small.is_full()), (&b"xx"[..], false));
        let large = small.grown().expect("a small one grows");
        assert_eq!(large.filled(), b"xx");
        assert!(large.grown().is_none());
    }
}
