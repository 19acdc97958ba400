//! Calls that may be tens of thousands a second: those of single keys. They are read and answered here, and what tonic
//! puts around a call is left out, which under load costs more than the call. Who is let in, what is checked and what is
//! answered are the same; a call that is compressed is left to tonic, which says that it cannot be.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use prost::Message;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::calls::{REQUEST_TIMEOUT, asked_timeout, expired};
use super::door::{Door, is_told, tell};
use super::gate::Gate;
use super::keys::KeyValueApi;
use super::server::VALUE_MESSAGE_BYTES_MAX;
use super::v1::key_value_server::KeyValue;
use crate::grpc_frame::{PREFIX_BYTES, frame};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// See the module.
pub(super) struct Quick {
    pub(super) keys: KeyValueApi,
    /// Shared with those calls of keys that tonic answers.
    pub(super) gate: Gate,
    pub(super) door: Option<Arc<Door>>,
}

/// A call that is answered here.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call {
    Put,
    Get,
    Delete,
}

impl Quick {
    /// Which call `request` is, if it is answered here.
    pub(super) fn call(request: &Request<Incoming>) -> Option<Call> {
        let call = match request.uri().path() {
            "/raftserve.v1.KeyValue/Put" => Call::Put,
            "/raftserve.v1.KeyValue/Get" => Call::Get,
            "/raftserve.v1.KeyValue/Delete" => Call::Delete,
            _ => return None,
        };
        let is_plain = match request.headers().get("grpc-encoding") {
            None => true,
            Some(encoding) => encoding == "identity",
        };
        is_plain.then_some(call)
    }

    /// Answers it.
    pub(super) async fn answer(&self, call: Call, request: Request<Incoming>) -> Response<Body> {
        let answered = match asked_timeout(request.headers()) {
            None => self.admit(call, request).await,
            Some(asked) => timeout(asked.min(REQUEST_TIMEOUT), self.admit(call, request))
                .await
                .unwrap_or_else(|_| Err(expired())),
        };
        match answered {
            Ok(message) => {
                let message = Some(message);
                let mut answer = Response::new(Body::Quick { message });
                let grpc = HeaderValue::from_static("application/grpc");
                answer.headers_mut().insert(CONTENT_TYPE, grpc);
                answer
            }
            Err(status) => status.into_http().map(Body::Routed),
        }
    }

    async fn admit(&self, call: Call, request: Request<Incoming>) -> Result<Bytes, Status> {
        let _permit = self.gate.admit()?;
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        let admitted = match &self.door {
            None => None,
            Some(door) => door.admit(path, &head.headers)?,
        };
        let answered = self.work(call, body).await;
        if let Some((subject, needed)) = admitted
            && is_told(needed)
        {
            let outcome = answered.as_ref().map_or_else(Status::code, |_| Code::Ok);
            tell(&subject, path, outcome);
        }
        answered
    }

    async fn work(&self, call: Call, body: Incoming) -> Result<Bytes, Status> {
        let body = timeout(REQUEST_TIMEOUT, receive(body));
        let message = body.await.map_err(|_| expired())??;
        let keys = &self.keys;
        Ok(match call {
            Call::Put => frame(keys.put(read(message)?).await?.get_ref()),
            Call::Get => frame(keys.get(read(message)?).await?.get_ref()),
            Call::Delete => frame(keys.delete(read(message)?).await?.get_ref()),
        })
    }
}

/// The whole body of a request.
async fn receive(mut body: Incoming) -> Result<Bytes, Status> {
    let mut whole = Bytes::new();
    while let Some(piece) = body.frame().await {
        let piece = piece.map_err(|error| Status::from_error(error.into()))?;
        // What a client may send after its message is of no use.
        let Ok(piece) = piece.into_data() else {
            continue;
        };
        whole = match whole.is_empty() {
            true => piece,
            false => [whole, piece].concat().into(),
        };
        if let Some(mut length) = whole.get(1..PREFIX_BYTES) {
            check_length(length.get_u32() as usize)?;
        }
        check_length(whole.len().saturating_sub(PREFIX_BYTES))?;
    }
    Ok(whole)
}

fn check_length(found: usize) -> Result<(), Status> {
    let limit = VALUE_MESSAGE_BYTES_MAX;
    if found <= limit {
        return Ok(());
    }
    Err(Status::out_of_range(format!(
        "decoded message length too large: found {found} bytes, the limit is: {limit} bytes"
    )))
}

/// The message of a body, which is to have exactly one.
fn read<M: Message + Default>(mut body: Bytes) -> Result<tonic::Request<M>, Status> {
    if body.len() < PREFIX_BYTES {
        return Err(Status::internal("the request has no message"));
    }
    if body.get_u8() != 0 {
        return Err(Status::internal(
            "the message is said to be compressed, and not how",
        ));
    }
    if body.get_u32() as usize != body.len() {
        return Err(Status::internal("the request is not one whole message"));
    }
    let message = M::decode(body);
    let message = message.map_err(|error| Status::internal(error.to_string()))?;
    Ok(tonic::Request::new(message))
}

/// The body of an answer.
pub(super) enum Body {
    /// One message, or none any more, and then the word that all went well.
    Quick { message: Option<Bytes> },
    /// As tonic makes it.
    Routed(tonic::body::Body),
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let body = self.get_mut();
        match body {
            Self::Quick { message } => {
                if let Some(message) = message.take() {
                    return Poll::Ready(Some(Ok(Frame::data(message))));
                }
                *body = Self::Routed(tonic::body::Body::empty());
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Self::Routed(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Quick { .. } => false,
            Self::Routed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Quick { .. } => http_body::SizeHint::default(),
            Self::Routed(body) => body.size_hint(),
        }
    }
}
