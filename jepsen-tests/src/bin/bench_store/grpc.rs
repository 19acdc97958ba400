//! gRPC with as little around it as there can be: unary calls straight over HTTP/2. The load generator shares the
//! processors with what it measures, so whatever it spends brings all systems' figures closer together.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::header::{CONTENT_TYPE, TE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Request, Uri, Version};
use prost::Message;
use tokio::net::TcpStream;

/// What is before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// A connection on which many calls are under way at once.
#[derive(Clone)]
pub(crate) struct GrpcConnection {
    requests: SendRequest<Bytes>,
    authority: Authority,
}

impl GrpcConnection {
    pub(crate) async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (requests, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(connection);
        Ok(Self {
            requests,
            authority: address.to_string().parse()?,
        })
    }

    /// Makes one call and waits for its answer.
    pub(crate) async fn call<Q: Message, A: Message + Default>(
        &self,
        path: &'static str,
        question: &Q,
    ) -> anyhow::Result<A> {
        let mut requests = self.requests.clone().ready().await?;
        let (answer, mut sending) = requests.send_request(self.request(path)?, false)?;
        send(&mut sending, question)?;
        let answer = answer.await?;
        if answer.headers().contains_key("grpc-status") {
            check(answer.headers())?;
        }
        let mut body = answer.into_body();
        let message = receive(&mut body).await?;
        let trailers = body.trailers().await?.context("an answer without an end")?;
        check(&trailers)?;
        let message = message
            .get(PREFIX..)
            .context("an answer without a message")?;
        Ok(A::decode(message)?)
    }

    fn request(&self, path: &'static str) -> anyhow::Result<Request<()>> {
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(self.authority.clone());
        uri.path_and_query = Some(PathAndQuery::from_static(path));
        let request = Request::post(Uri::from_parts(uri)?)
            .version(Version::HTTP_2)
            .header(TE, HeaderValue::from_static("trailers"))
            .header(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        Ok(request.body(())?)
    }
}

fn send<Q: Message>(sending: &mut SendStream<Bytes>, question: &Q) -> anyhow::Result<()> {
    let length = question.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX + length);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).context("a message is short")?);
    question.encode(&mut framed)?;
    // What the server's window has no room for waits in the connection.
    Ok(sending.send_data(framed.freeze(), true)?)
}

async fn receive(body: &mut RecvStream) -> anyhow::Result<Bytes> {
    let mut whole = Bytes::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        whole = match whole.is_empty() {
            true => piece,
            false => [whole, piece].concat().into(),
        };
    }
    Ok(whole)
}

fn check(headers: &HeaderMap) -> anyhow::Result<()> {
    let status = headers
        .get("grpc-status")
        .context("an answer without a status")?;
    if status != "0" {
        bail!("refused: {status:?} {:?}", headers.get("grpc-message"));
    }
    Ok(())
}
