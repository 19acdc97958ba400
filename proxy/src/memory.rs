//! How much of what passes through a peer it may hold.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::Request;

/// Bytes that all workers of a peer share.
#[derive(Debug)]
pub(crate) struct MemoryBudget {
    bytes: u64,
    left: AtomicU64,
}

impl MemoryBudget {
    pub(crate) fn new(bytes: u64) -> Self {
        Self {
            bytes,
            left: AtomicU64::new(bytes),
        }
    }

    /// How much there is in all.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    /// Takes so much, if there is as much. Who takes it gives it back.
    #[must_use = "nothing may have been taken"]
    pub(crate) fn take(&self, bytes: u64) -> bool {
        let less = |left: u64| left.checked_sub(bytes);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        self.left.fetch_update(set, fetch, less).is_ok()
    }

    pub(crate) fn give(&self, bytes: u64) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What one worker takes out of a budget: shared within its thread, so that holding it costs no atomic.
#[derive(Clone, Debug)]
pub(crate) struct Allotment(Rc<Source>);

#[derive(Debug)]
struct Source {
    budget: Arc<MemoryBudget>,
}

impl Allotment {
    pub(crate) fn new(budget: Arc<MemoryBudget>) -> Self {
        Self(Rc::new(Source { budget }))
    }

    /// Takes so much until it is dropped, if there is as much.
    pub(crate) fn take(&self, bytes: u64) -> Option<Taken> {
        self.0.budget.take(bytes).then(|| Taken {
            budget: self.clone(),
            bytes,
        })
    }
}

/// Bytes taken out of a budget.
#[derive(Debug)]
pub(crate) struct Taken {
    budget: Allotment,
    bytes: u64,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.budget.0.budget.give(self.bytes);
    }
}

/// About how much a request's head holds.
pub(crate) fn head_memory<B>(request: &Request<B>) -> u64 {
    /// What a field costs beside its text.
    const FIELD: usize = 64;
    let fields = request.headers().iter();
    let fields = fields.map(|(name, value)| FIELD + name.as_str().len() + value.len());
    let target = request
        .uri()
        .path_and_query()
        .map_or(0, |target| target.as_str().len());
    (fields.sum::<usize>() + target) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_is_there_again_once_it_is_dropped() {
        let budget = Arc::new(MemoryBudget::new(10));
        let allotment = Allotment::new(Arc::clone(&budget));
        let taken = allotment.take(7).expect("there is enough");
        assert!(allotment.take(4).is_none());
        assert_eq!(budget.left(), 3);
        let rest = allotment.take(3);
        assert_eq!(budget.left(), 0);
        drop((taken, rest));
        assert_eq!(budget.left(), 10);
    }
}
