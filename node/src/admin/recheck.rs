//! Streams end with the credential that they were begun by: who was let in is asked about again while one lasts.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::body::Body;
use tonic::{Code, Status};

/// How often it is asked again. What is asked costs microseconds, and a minute of somebody else's logs is long.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// The body of a stream that goes on for as long as `check` says so.
pub(super) struct Rechecked<C> {
    inner: Body,
    check: C,
    due: Pin<Box<Sleep>>,
    over: bool,
}

impl<C: Fn() -> Result<(), Status> + Unpin> Rechecked<C> {
    pub(super) fn new(inner: Body, check: C) -> Self {
        Self {
            inner,
            check,
            due: Box::pin(sleep_until(Instant::now() + AGAIN_AFTER)),
            over: false,
        }
    }

    /// Why the stream ends, once it is asked and no longer good.
    fn ended(&mut self, context: &mut Context<'_>) -> Option<HeaderMap> {
        while self.due.as_mut().poll(context).is_ready() {
            self.due.as_mut().reset(Instant::now() + AGAIN_AFTER);
            match (self.check)() {
                Err(why) if is_refusal(why.code()) => {
                    let mut trailers = HeaderMap::new();
                    // What cannot be said in a header leaves the code, which is enough.
                    let _ = why.add_header(&mut trailers);
                    return Some(trailers);
                }
                // That it cannot be told now takes nothing from anybody.
                Ok(()) | Err(_) => {}
            }
        }
        None
    }
}

fn is_refusal(code: Code) -> bool {
    matches!(code, Code::Unauthenticated | Code::PermissionDenied)
}

impl<C: Fn() -> Result<(), Status> + Unpin> http_body::Body for Rechecked<C> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        if let Some(trailers) = this.ended(context) {
            this.over = true;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Pin::new(&mut this.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures_util::StreamExt;
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_goes_on_while_its_credential_is_good_and_ends_with_it() {
        let good = Arc::new(AtomicBool::new(true));
        let begun = Instant::now();
        // A line a second, for ever.
        let lines = futures_util::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((Bytes::from_static(b"line"), ()))
        });
        let lines = lines.map(|line| Ok::<_, Infallible>(Frame::data(line)));
        let asked = Arc::clone(&good);
        let mut body = Rechecked::new(Body::new(StreamBody::new(lines)), move || {
            match asked.load(Ordering::Relaxed) {
                true => Ok(()),
                false => Err(Status::unauthenticated("nobody's, any more")),
            }
        });
        for _ in 0..35 {
            let frame = body.frame().await.unwrap().unwrap();
            assert!(frame.is_data());
        }
        good.store(false, Ordering::Relaxed);
        let trailers = loop {
            let frame = body.frame().await.unwrap().unwrap();
            match frame.into_trailers() {
                Ok(trailers) => break trailers,
                Err(_) => assert!(begun.elapsed() <= Duration::from_secs(40)),
            }
        };
        let status = Status::from_header_map(&trailers).unwrap();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(body.frame().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_stream_ends_too_and_not_because_nobody_can_tell() {
        let silent = futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>();
        let asked = std::sync::atomic::AtomicU32::new(0);
        let check = || match asked.fetch_add(1, Ordering::Relaxed) {
            0 => Err(Status::unavailable("not caught up")),
            _ => Err(Status::permission_denied("its role was taken away")),
        };
        let mut body = Rechecked::new(Body::new(StreamBody::new(silent)), check);
        let frame = body.frame().await.unwrap().unwrap();
        let status = Status::from_header_map(frame.trailers_ref().unwrap()).unwrap();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }
}
