//! A client for HTTP/1.1 with rules of its own made plain: one connection at a time, kept alive; what
//! was surely not sent is told apart from what may have been.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::source_ports::SourcePorts;

/// How long one request may take: far beyond any promise about failover, so that a hang is seen as
/// such and not as a slow answer.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);

/// The largest answer that is read: the tests' programs answer with a line or a listing.
const BODY_BYTES_MAX: usize = 1 << 20;

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Reply {
    /// A header as text, if it is there.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<String> {
        Some(self.headers.get(name)?.to_str().ok()?.to_owned())
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There was no connection: nothing was sent.
    Refused(String),
    /// It was sent, perhaps, and no whole answer came.
    Unknown(String),
}

/// A connection to one address, made when it is needed.
#[derive(Debug)]
pub struct Connection {
    address: SocketAddr,
    ports: Option<Arc<SourcePorts>>,
    sender: Option<SendRequest<Empty<Bytes>>>,
}

impl Connection {
    /// Will connect to `address`.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            ports: None,
            sender: None,
        }
    }

    /// Will connect to `address`, each time from a port that was not used before.
    #[must_use]
    pub fn from_ports(address: SocketAddr, ports: Arc<SourcePorts>) -> Self {
        Self {
            ports: Some(ports),
            ..Self::new(address)
        }
    }

    /// Sends a GET and reads the answer to its end.
    ///
    /// A server may close a kept connection just when a request is on its way (RFC 9112, 9.5). A request
    /// that fails before any answer, on a connection that was used before, is therefore sent once more on
    /// a new connection to the same address, as RFC 9110, 9.2.2 allows for GET. Nothing else is repeated.
    ///
    /// # Errors
    /// [`Failure`] if there is no whole answer within [`REQUEST_TIME_MAX`].
    pub async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Result<Reply, Failure> {
        match timeout(REQUEST_TIME_MAX, self.get_patiently(path, headers)).await {
            Ok(result) => result,
            Err(_) => {
                self.sender = None;
                Err(Failure::Unknown(format!(
                    "no answer in {REQUEST_TIME_MAX:?}"
                )))
            }
        }
    }

    async fn get_patiently(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Reply, Failure> {
        let mut kept = self.sender.take();
        if let Some(sender) = &mut kept
            && sender.ready().await.is_err()
        {
            kept = None;
        }
        let response = match kept {
            Some(mut sender) => match self.send(&mut sender, path, headers).await {
                Ok(response) => Ok((sender, response)),
                Err(_) => self.send_anew(path, headers).await,
            },
            None => self.send_anew(path, headers).await,
        };
        let (sender, response) = response?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, BODY_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| Failure::Unknown(format!("the answer broke off: {error}")))?;
        self.sender = Some(sender);
        Ok(Reply {
            status: head.status.as_u16(),
            headers: head.headers,
            body: body.to_bytes(),
        })
    }

    async fn send_anew(
        &self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<
        (
            SendRequest<Empty<Bytes>>,
            http::Response<hyper::body::Incoming>,
        ),
        Failure,
    > {
        let mut sender = self.connect().await?;
        let response = self.send(&mut sender, path, headers).await?;
        Ok((sender, response))
    }

    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>, Failure> {
        let refused = |error: &dyn std::fmt::Display| Failure::Refused(error.to_string());
        let stream = match &self.ports {
            Some(ports) => ports.connect(self.address).await,
            None => TcpStream::connect(self.address).await,
        };
        let stream = stream.map_err(|error| refused(&error))?;
        stream.set_nodelay(true).map_err(|error| refused(&error))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| refused(&error))?;
        // Ends with the connection; its errors reach whoever waits for an answer.
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn send(
        &self,
        sender: &mut SendRequest<Empty<Bytes>>,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<http::Response<hyper::body::Incoming>, Failure> {
        let mut request = Request::get(path).header(header::HOST, self.address.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Empty::new())
            .map_err(|error| Failure::Refused(error.to_string()))?;
        sender
            .send_request(request)
            .await
            .map_err(|error| Failure::Unknown(chain(&error)))
    }
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

/// One GET on a connection of its own.
///
/// # Errors
/// As [`Connection::get`].
pub async fn get(address: SocketAddr, path: &str) -> Result<Reply, Failure> {
    Connection::new(address).get(path, &[]).await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    use super::*;

    const ANSWER: &str = "HTTP/1.1 200 OK\r\nx-replica: 1\r\ncontent-length: 2\r\n\r\nok";

    /// Answers each connection with the texts given for it, one per request, then closes it. Returns how
    /// many requests came.
    async fn server(script: Vec<Vec<&'static str>>) -> (SocketAddr, JoinHandle<usize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut requests = 0;
            for answers in script {
                let (mut stream, _) = listener.accept().await.unwrap();
                for answer in answers {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await.unwrap());
                    }
                    requests += 1;
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
            requests
        });
        (address, task)
    }

    #[tokio::test]
    async fn connection_is_kept_and_made_anew_when_closed() {
        let (address, task) = server(vec![vec![ANSWER, ANSWER], vec![ANSWER]]).await;
        let mut connection = Connection::new(address);
        for _ in 0..3 {
            let reply = connection.get("/", &[("x-session-id", "a")]).await.unwrap();
            assert_eq!((reply.status, &reply.body[..]), (200, &b"ok"[..]));
            assert_eq!(reply.header("x-replica").as_deref(), Some("1"));
        }
        assert_eq!(task.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn first_use_of_a_connection_is_never_repeated() {
        let (address, task) = server(vec![vec![""], vec![ANSWER]]).await;
        let failed = Connection::new(address).get("/", &[]).await;
        assert!(matches!(failed, Err(Failure::Unknown(_))), "{failed:?}");
        task.abort();
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_unknown() {
        let half = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok";
        let (address, _task) = server(vec![vec![half]]).await;
        let failed = Connection::new(address).get("/", &[]).await;
        assert!(matches!(failed, Err(Failure::Unknown(_))), "{failed:?}");
    }

    #[tokio::test]
    async fn nobody_there_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let failed = get(address, "/").await;
        assert!(matches!(failed, Err(Failure::Refused(_))), "{failed:?}");
    }
}
