//! One request over HTTP/2, until its answer begins.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use h2::Reason;
use h2::client::{ResponseFuture, SendRequest};
use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response};
use http_body::Body;

use crate::body::{Part, Pipe, Received, Stream, UploadBody};
use crate::upstream::INTERIMS_MAX;

/// A request that was sent. Dropped before its answer, it is taken back.
#[derive(Debug)]
pub(in crate::upstream) struct Call {
    answer: ResponseFuture,
    /// How many interim answers came before it.
    interims: u32,
    /// What is still to be sent.
    upload: Option<Pipe<UploadBody>>,
}

impl Call {
    /// Hands a request's head over. If the replica allows no more streams now, it waits for its turn.
    ///
    /// # Errors
    /// The connection takes none. Nothing was sent.
    pub(super) fn begin(
        mut sender: SendRequest<Part>,
        mut head: Request<()>,
        body: UploadBody,
    ) -> Result<Self, UploadBody> {
        let ends = body.is_end_stream();
        if let Some(length) = body.size_hint().exact()
            && (length > 0 || expects_content(head.method()))
        {
            let fields = head.headers_mut().entry(CONTENT_LENGTH);
            fields.or_insert_with(|| length.into());
        }
        let Ok((answer, out)) = sender.send_request(head, ends) else {
            return Err(body);
        };
        let upload = (!ends).then(|| Pipe::new(body, out, None));
        Ok(Self {
            answer,
            interims: 0,
            upload,
        })
    }

    /// The answer's head. What of the request has not been sent then goes on by itself.
    pub(in crate::upstream) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<Received>, h2::Error>> {
        if let Some(upload) = &mut self.upload
            && upload.poll_until_cut(cx).is_ready()
        {
            self.upload = None;
        }
        self.poll_interims(cx)?;
        let answer = ready!(Pin::new(&mut self.answer).poll(cx))?;
        if let Some(mut upload) = self.upload.take() {
            tokio::task::spawn_local(poll_fn(move |cx| upload.poll_until_cut(cx)));
        }
        let (head, frames) = answer.into_parts();
        let body = Received::Http2(Stream::new(&head.headers, frames));
        Poll::Ready(Ok(Response::from_parts(head, body)))
    }

    /// Takes the interim answers that came. The library would skip them, however many.
    fn poll_interims(&mut self, cx: &mut Context<'_>) -> Result<(), h2::Error> {
        while let Poll::Ready(Some(interim)) = self.answer.poll_informational(cx) {
            interim?;
            self.interims += 1;
            if self.interims > INTERIMS_MAX {
                return Err(Reason::ENHANCE_YOUR_CALM.into());
            }
        }
        Ok(())
    }
}

/// Whether a request of this method without content says so (RFC 9110, 8.6).
fn expects_content(method: &Method) -> bool {
    !matches!(
        *method,
        Method::GET | Method::HEAD | Method::DELETE | Method::CONNECT
    )
}
