//! What the clients of one connection of HTTP/2 have sent of their requests' bodies, and nobody has taken.
//!
//! Only the library knows, of each stream by itself. What was taken counts as well until the client is told of it: that is put
//! off for a while (see [`OWED_MAX`]), unless the connection is short of room.

use std::cell::RefCell;
use std::rc::Rc;

use h2::FlowControl;

use super::received::OWED_MAX;

/// The bodies of a connection's requests.
#[derive(Debug, Default)]
pub(crate) struct Untaken(RefCell<Bodies>);

#[derive(Debug, Default)]
struct Bodies {
    places: Vec<Option<Body>>,
    free: Vec<usize>,
    /// Whether the connection is short of room.
    is_short: bool,
}

#[derive(Debug)]
struct Body {
    flow: FlowControl,
    /// What was taken, and is not told of yet.
    owed: u32,
}

impl Body {
    fn settle(&mut self) {
        let owed = std::mem::take(&mut self.owed);
        // It fails only for more than was received.
        let _ = self.flow.release_capacity(owed as usize);
    }
}

impl Untaken {
    /// How many bytes are held of all. It costs a lock for each.
    pub(crate) fn bytes(&self) -> u64 {
        let bodies = self.0.borrow();
        let open = bodies.places.iter().flatten();
        open.map(|body| body.flow.used_capacity() as u64).sum()
    }

    /// Has nothing owed to the client from now on, if the connection is short of room.
    pub(crate) fn set_short(&self, is_short: bool) {
        let Bodies {
            places,
            is_short: was_short,
            ..
        } = &mut *self.0.borrow_mut();
        if is_short && !*was_short {
            places.iter_mut().flatten().for_each(Body::settle);
        }
        *was_short = is_short;
    }

    /// Counts a body from now on.
    pub(super) fn count(self: &Rc<Self>, flow: FlowControl) -> Counted {
        let Bodies { places, free, .. } = &mut *self.0.borrow_mut();
        let body = Some(Body { flow, owed: 0 });
        let place = free.pop().unwrap_or(places.len());
        match places.get_mut(place) {
            Some(empty) => *empty = body,
            None => places.push(body),
        }
        Counted {
            among: Rc::clone(self),
            place,
        }
    }
}

/// A body that is counted. To be dropped before it: as long as it is counted, the library lets go of nothing of it.
#[derive(Debug)]
pub(super) struct Counted {
    among: Rc<Untaken>,
    place: usize,
}

impl Counted {
    /// So many bytes of it were taken.
    pub(super) fn took(&self, bytes: u32) {
        let Bodies {
            places, is_short, ..
        } = &mut *self.among.0.borrow_mut();
        let Some(body) = &mut places[self.place] else {
            return;
        };
        body.owed = body.owed.saturating_add(bytes);
        if body.owed >= OWED_MAX || *is_short {
            body.settle();
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let Bodies { places, free, .. } = &mut *self.among.0.borrow_mut();
        // The library tells of what is owed by itself only once the whole stream is over, with an answer that may wait for long.
        if let Some(mut body) = places[self.place].take() {
            body.settle();
        }
        free.push(self.place);
    }
}
