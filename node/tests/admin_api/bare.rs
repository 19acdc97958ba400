//! Calls without a client's library, for what no library sends.

use std::convert::Infallible;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
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

/// Makes a call with a body in these pieces, and returns the answer's body and what the call ended with.
pub(crate) async fn call(
    lab: &Lab,
    path: &str,
    header: Header,
    pieces: Vec<Bytes>,
) -> (Bytes, Status) {
    let stream = TcpStream::connect(lab.address).await.unwrap();
    let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut requests, connection) = shaken.await.unwrap();
    tokio::spawn(connection);
    let pieces = pieces
        .into_iter()
        .map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
    let mut request = http::Request::post(format!("http://{}{path}", lab.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some((name, value)) = header {
        request = request.header(name, value);
    }
    let request = request.body(StreamBody::new(stream::iter(pieces))).unwrap();
    let answer = requests.send_request(request).await.unwrap();
    let status = Status::from_header_map(answer.headers());
    let body = answer.into_body().collect().await.unwrap();
    let trailers = body.trailers().and_then(Status::from_header_map);
    let status = status
        .or(trailers)
        .expect("every answer ends with a status");
    (body.to_bytes(), status)
}
