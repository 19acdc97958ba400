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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use h2::{client, server};
    use http::{HeaderMap, Request};
    use http_body_util::BodyExt;
    use tokio::io::duplex;

    use super::super::{Received, Stream};
    use super::*;

    const PART: usize = 640;
    const _: () = assert!(PART < OWED_MAX as usize);

    #[tokio::test]
    async fn nothing_is_owed_of_a_body_that_has_ended_while_its_answer_waits() {
        let (near, far) = duplex(64 << 10);
        let call = async {
            let (mut sender, connection) = client::handshake(far).await.expect("a server is there");
            let request = Request::post("http://svc/").body(());
            let sent = sender.send_request(request.expect("a good request"), false);
            let (_answer, mut out) = sent.expect("it is open");
            out.send_data(Bytes::from_static(&[b'x'; PART]), true)
                .expect("it is open");
            connection.await
        };
        let serve = async {
            let mut connection = server::handshake(near).await.expect("a client is there");
            let accepted = connection.accept().await.expect("a request comes");
            let (request, _respond) = accepted.expect("it is a good one");
            let mut frames = request.into_body();
            let flow = frames.flow_control().clone();
            let (body, _) = Stream::request(&HeaderMap::new(), frames, &Rc::default());
            let mut body = Received::Http2(body);
            let part = tokio::select! {
                part = body.frame() => part.expect("one").expect("it is open"),
                _ = connection.accept() => unreachable!("there is no other"),
            };
            assert_eq!(part.data_ref().map(Bytes::len), Some(PART));
            assert_eq!(flow.used_capacity(), PART, "more may come");
            drop(body);
            assert_eq!(flow.used_capacity(), 0);
        };
        tokio::select! {
            () = serve => {}
            ended = call => unreachable!("the server is there: {ended:?}"),
        }
    }
}
