//! An answer whose outcome is told once it is known: that of a stream, and of most calls, comes in its trailers.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

/// Tells the outcome of a call, once: [`Code::Cancelled`] if its caller goes away before there is one.
pub(super) struct Teller<F: FnOnce(Code)> {
    /// None once it was called.
    tell: Option<F>,
}

impl<F: FnOnce(Code)> Teller<F> {
    /// To be made before the call is, so that one that is given up is told too.
    pub(super) fn new(tell: F) -> Self {
        Self { tell: Some(tell) }
    }

    fn tell(&mut self, outcome: Code) {
        if let Some(tell) = self.tell.take() {
            tell(outcome);
        }
    }
}

impl<F: FnOnce(Code)> Drop for Teller<F> {
    fn drop(&mut self) {
        self.tell(Code::Cancelled);
    }
}

/// Has the outcome of an answer told.
pub(super) fn told<F>(answer: Response<Body>, mut teller: Teller<F>) -> Response<Body>
where
    F: FnOnce(Code) + Send + Unpin + 'static,
{
    if let Some(status) = Status::from_header_map(answer.headers()) {
        teller.tell(status.code());
        return answer;
    }
    answer.map(|inner| Body::new(Told { inner, teller }))
}

struct Told<F: FnOnce(Code)> {
    inner: Body,
    teller: Teller<F>,
}

/// An answer without a word of its outcome is none of gRPC's.
fn outcome(trailers: &HeaderMap) -> Code {
    Status::from_header_map(trailers).map_or(Code::Unknown, |status| status.code())
}

impl<F: FnOnce(Code) + Unpin> http_body::Body for Told<F> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let frame = std::task::ready!(Pin::new(&mut this.inner).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    this.teller.tell(outcome(trailers));
                }
            }
            Some(Err(status)) => this.teller.tell(status.code()),
            None => this.teller.tell(Code::Unknown),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    /// A stream of one message that ends so.
    fn stream(end: Result<(), Status>) -> Response<Body> {
        let mut trailers = HeaderMap::new();
        let status = end.err().unwrap_or_else(|| Status::ok(""));
        status.add_header(&mut trailers).unwrap();
        let frames = [
            Frame::data(Bytes::from_static(b"x")),
            Frame::trailers(trailers),
        ];
        let frames = futures_util::stream::iter(frames.map(Ok::<_, Infallible>));
        Response::new(Body::new(StreamBody::new(frames)))
    }

    async fn outcomes(answer: Response<Body>, frames: usize) -> Vec<Code> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        let teller = Teller::new(move |code| noted.lock().unwrap().push(code));
        let mut answer = told(answer, teller);
        for _ in 0..frames {
            answer.body_mut().frame().await.unwrap().unwrap();
        }
        drop(answer);
        let seen = seen.lock().unwrap();
        seen.clone()
    }

    #[tokio::test]
    async fn what_comes_of_a_call_is_told_once_when_it_is_known() {
        let refused = Status::permission_denied("x").into_http();
        assert_eq!(outcomes(refused, 0).await, [Code::PermissionDenied]);
        assert_eq!(outcomes(stream(Ok(())), 2).await, [Code::Ok]);
        let failed = stream(Err(Status::unavailable("no quorum")));
        assert_eq!(outcomes(failed, 2).await, [Code::Unavailable]);
        assert_eq!(outcomes(stream(Ok(())), 1).await, [Code::Cancelled]);
        let mut given_up = Vec::new();
        drop(Teller::new(|code| given_up.push(code)));
        assert_eq!(given_up, [Code::Cancelled]);
    }
}
