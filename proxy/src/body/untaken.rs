//! What the clients of one connection of HTTP/2 have sent of their requests' bodies, and nobody has taken.
//!
//! Only the library knows, of each stream by itself.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use h2::FlowControl;

/// The bodies of a connection's requests.
#[derive(Debug, Default)]
pub(crate) struct Untaken {
    next: Cell<u64>,
    bodies: RefCell<BTreeMap<u64, FlowControl>>,
}

impl Untaken {
    /// How many bytes are held of all, with what was taken and is not told of yet. It costs a lock for each.
    pub(crate) fn bytes(&self) -> u64 {
        let bodies = self.bodies.borrow();
        bodies.values().map(|it| it.used_capacity() as u64).sum()
    }

    /// Counts a body from now on.
    pub(super) fn count(self: &Rc<Self>, body: FlowControl) -> Counted {
        let number = self.next.get();
        self.next.set(number + 1);
        self.bodies.borrow_mut().insert(number, body);
        Counted {
            among: Rc::clone(self),
            number,
        }
    }
}

/// A body that is counted. To be dropped before it: as long as it is counted, the library lets go of nothing of it.
#[derive(Debug)]
pub(super) struct Counted {
    among: Rc<Untaken>,
    number: u64,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let body = self.among.bodies.borrow_mut().remove(&self.number);
        drop(body);
    }
}
