//! Reaches a peer: any of those named, the next one when one does not answer.

use std::future::Future;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use super::args::Target;
use super::failure::{Exit, Failure};
use crate::admin::errors::Reason;
use crate::admin::v1;
use crate::admin::v1::cluster_client::ClusterClient;

/// The admin port where none is given.
const DEFAULT_PORT: u16 = 7_000;

/// How long a peer may take to accept a connection. It is on the same network.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a peer may take to answer a call: over the two seconds within which it promises to, and
/// over a transfer of leadership.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// How often each peer is asked before giving up: a second time only if some connection broke and
/// nobody said why, as when the one peer named is just starting again.
const ROUNDS: usize = 2;

/// How long to rest between rounds: about a peer's start.
const ROUND_PAUSE: Duration = Duration::from_millis(500);

/// The peers named on the command line.
pub(super) struct Servers {
    endpoints: Vec<(String, Endpoint)>,
    /// The one that answered last.
    current: usize,
    channel: Option<Channel>,
}

impl Servers {
    /// Reads the addresses; connects to none yet.
    pub(super) fn new(target: &Target) -> Result<Self, Failure> {
        let endpoints: Result<Vec<_>, _> =
            target.server.iter().map(|text| endpoint(text)).collect();
        Ok(Self {
            endpoints: endpoints?,
            current: 0,
            channel: None,
        })
    }

    /// Makes a call that may be repeated: a read, or a write with a request id. Each peer is asked in
    /// turn until one answers; what it answers counts, except that it cannot.
    ///
    /// # Errors
    /// The answer, if it is an error; or that of the last peer asked, if none answers.
    pub(super) async fn call<T, F>(
        &mut self,
        mut call: impl FnMut(Channel) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut seen = Unanswered::default();
        for round in 0..ROUNDS {
            if round > 0 {
                if !seen.is_worth_another_round() {
                    break;
                }
                tokio::time::sleep(ROUND_PAUSE).await;
            }
            for _ in 0..self.endpoints.len() {
                let error = match self.channel().await {
                    Ok(channel) => match tokio::time::timeout(CALL_TIMEOUT, call(channel)).await {
                        Ok(Ok(answer)) => return Ok(answer.into_inner()),
                        Ok(Err(status)) if !is_unanswered(&status) => return Err(status),
                        Ok(Err(status)) => {
                            seen.broken = true;
                            status
                        }
                        Err(_) => Status::unavailable("no answer in time"),
                    },
                    Err(status) => status,
                };
                seen.add(&self.endpoints[self.current].0, error);
                self.next();
            }
        }
        Err(seen.status())
    }

    /// As `call`, with the failure for the command line.
    pub(super) async fn ask<T, F>(&mut self, call: impl FnMut(Channel) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.call(call).await.map_err(|status| Failure::of(&status))
    }

    /// Opens a client session, within which `call` may write once however often it is repeated.
    ///
    /// # Errors
    /// As `call`.
    pub(super) async fn request_id(&mut self) -> Result<v1::RequestId, Failure> {
        let opened = self
            .ask(|channel| async move {
                ClusterClient::new(channel)
                    .open_client(v1::OpenClientRequest {})
                    .await
            })
            .await?;
        Ok(v1::RequestId {
            client_id: opened.client_id,
            sequence: 1,
            acknowledged: 0,
        })
    }

    async fn channel(&mut self) -> Result<Channel, Status> {
        if let Some(channel) = &self.channel {
            return Ok(channel.clone());
        }
        let (address, endpoint) = &self.endpoints[self.current];
        let channel = endpoint.connect().await.map_err(|error| {
            let mut cause: &dyn std::error::Error = &error;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            Status::unavailable(format!("cannot connect to {address}: {cause}"))
        })?;
        Ok(self.channel.insert(channel).clone())
    }

    /// Turns to the next peer.
    pub(super) fn next(&mut self) {
        self.channel = None;
        self.current = (self.current + 1) % self.endpoints.len();
    }
}

/// Peers that did not answer, and why.
#[derive(Default)]
struct Unanswered {
    addresses: Vec<String>,
    last: Option<Status>,
    /// Whether a peer could be connected to, and the connection then broke.
    broken: bool,
}

impl Unanswered {
    /// Peers that explain themselves have tried for as long as it made sense; those that cannot be
    /// connected to are not there.
    fn is_worth_another_round(&self) -> bool {
        let explained = self.last.as_ref().and_then(Reason::of).is_some();
        self.broken && !explained
    }

    fn add(&mut self, address: &str, status: Status) {
        if !self.addresses.iter().any(|seen| seen == address) {
            self.addresses.push(address.to_owned());
        }
        // A peer that explains itself is worth more than one that cannot be reached.
        let explained = |status: &Status| Reason::of(status).is_some();
        if !self.last.as_ref().is_some_and(explained) || explained(&status) {
            self.last = Some(status);
        }
    }

    fn status(self) -> Status {
        match self.last {
            Some(status) if Reason::of(&status).is_some() => status,
            Some(status) => Reason::Stopping.status(format!(
                "no peer answers at {}: {}; name others with --server",
                self.addresses.join(", "),
                status.message()
            )),
            None => Status::unavailable("no peer is named"),
        }
    }
}

/// Whether a peer did not do its part, so that another one may be asked the same.
fn is_unanswered(status: &Status) -> bool {
    match Reason::of(status) {
        Some(Reason::TooManyRequests | Reason::TooManyStreams) => true,
        Some(_) => status.code() == Code::Unavailable,
        None => matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded
        ),
    }
}

fn endpoint(text: &str) -> Result<(String, Endpoint), Failure> {
    let refuse = || {
        Failure::new(
            Exit::Usage,
            format!("--server: {text:?} is not HOST or HOST:PORT"),
        )
        .remedy("name the admin port of a peer, such as 127.0.0.1:7000")
    };
    let address = text.trim();
    if address.starts_with("https://") {
        return Err(Failure::usage(
            "--server: the admin port has no TLS yet; leave out https://",
        ));
    }
    let address = address.strip_prefix("http://").unwrap_or(address);
    let authority: http::uri::Authority = address.parse().map_err(|_| refuse())?;
    let authority = match authority.port_u16() {
        Some(_) => authority.to_string(),
        None => format!("{authority}:{DEFAULT_PORT}"),
    };
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))
        .map_err(|_| refuse())?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true);
    Ok((authority, endpoint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_may_leave_out_the_port() {
        let read = |text| endpoint(text).map(|(authority, _)| authority);
        assert_eq!(read("10.0.0.1").unwrap(), "10.0.0.1:7000");
        assert_eq!(read("[::1]").unwrap(), "[::1]:7000");
        assert_eq!(read("http://a:1").unwrap(), "a:1");
        for bad in ["", "a b", "https://a:1", "a:1/path"] {
            assert_eq!(read(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }

    #[test]
    fn another_peer_is_asked_only_where_the_first_did_not_do_its_part() {
        for reason in [
            Reason::NotProposed,
            Reason::OutcomeUnknown,
            Reason::TooManyRequests,
        ] {
            assert!(is_unanswered(&reason.status("x")));
        }
        assert!(is_unanswered(&Status::unavailable("x")));
        for reason in [Reason::NoSuchService, Reason::Limit, Reason::Internal] {
            assert!(!is_unanswered(&reason.status("x")));
        }
    }

    #[tokio::test]
    async fn the_next_peer_is_tried_when_one_does_not_answer() {
        // A port that was free a moment ago refuses connections; two of them refuse both rounds.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let target = Target {
            server: vec![address.clone(), address.clone()],
        };
        let mut servers = Servers::new(&target).unwrap();
        let failure = servers.request_id().await.unwrap_err();
        assert_eq!(failure.exit, Exit::Unavailable);
        assert!(failure.message.contains(&address), "{}", failure.message);
    }
}
