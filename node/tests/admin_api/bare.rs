//! Calls without a client's library, for what no library sends.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::TcpStream;
use tonic::Status;

use crate::lab::Lab;

/// A header beside those that every call has, if any.
pub(crate) type Header = Option<(&'static str, &'static str)>;

/// A message as gRPC frames it.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(message.encoded_len().try_into().unwrap());
    message.encode(&mut framed).unwrap();
    framed.freeze()
}

/// A connection of its own.
pub(crate) struct Connection {
    requests: http2::SendRequest<BoxBody<Bytes, Infallible>>,
    address: SocketAddr,
}

impl Connection {
    pub(crate) async fn open(lab: &Lab) -> Self {
        let stream = TcpStream::connect(lab.address).await.unwrap();
        let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (requests, connection) = shaken.await.unwrap();
        tokio::spawn(connection);
        Self {
            requests,
            address: lab.address,
        }
    }

    /// Makes a call with a body in these pieces, and returns the answer's body and what the call ended with.
    pub(crate) async fn call(
        &self,
        path: &str,
        header: Header,
        pieces: impl Stream<Item = Bytes> + Send + Sync + 'static,
    ) -> (Bytes, Status) {
        let pieces = pieces.map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
        let mut request = http::Request::post(format!("http://{}{path}", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let request = request.body(BoxBody::new(StreamBody::new(pieces))).unwrap();
        let answer = self.requests.clone().send_request(request).await.unwrap();
        let status = Status::from_header_map(answer.headers());
        let body = answer.into_body().collect().await.unwrap();
        let trailers = body.trailers().and_then(Status::from_header_map);
        let status = status
            .or(trailers)
            .expect("every answer ends with a status");
        (body.to_bytes(), status)
    }
}

/// Makes a call on a connection of its own.
pub(crate) async fn call(
    lab: &Lab,
    path: &str,
    header: Header,
    pieces: Vec<Bytes>,
) -> (Bytes, Status) {
    let connection = Connection::open(lab).await;
    connection.call(path, header, stream::iter(pieces)).await
}
