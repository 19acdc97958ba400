//! Reaches a peer: any of those named, the next one when one does not answer.

use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use http::uri::Authority;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use super::args::Target;
use super::contexts::{Context, Contexts, Token};
use super::discovery;
use super::failure::{Exit, Failure, misfit};
use super::kubectl::{Forward, Release};
use super::tls::{self, Connector, Tls};
use crate::admin::errors::Reason;
use crate::admin::v1;
use crate::admin::v1::cluster_client::ClusterClient;

/// The admin port where none is given.
pub(super) const DEFAULT_PORT: u16 = 7_000;

/// How long a peer may take to accept a connection. It is on the same network.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a peer may take to answer a call, if nobody says otherwise: over the two seconds within which it promises to,
/// and over a transfer of leadership.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// Where another one may be asked, a peer that is silent for so long during a call is asked whether it lives (a ping of
/// HTTP/2), ...
const PING_AFTER: Duration = Duration::from_secs(1);

/// ... and left if it has not said so within this: a process that hangs costs three seconds, and one that works on the
/// call none.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// How often each peer is asked before giving up: a second time only if some connection broke and
/// nobody said why, as when the one peer named is just starting again.
const ROUNDS: usize = 2;

/// How long to rest between rounds: about a peer's start.
const ROUND_PAUSE: Duration = Duration::from_millis(500);

/// A connection to a peer, with the credential that goes with it.
pub(super) type Link = InterceptedService<Channel, Credential>;

/// Puts a credential on each call.
#[derive(Clone)]
pub(super) struct Credential(Option<MetadataValue<Ascii>>);

impl Credential {
    fn new(token: Option<&str>) -> Result<Self, Failure> {
        let Some(token) = token else {
            return Ok(Self(None));
        };
        let value: Result<MetadataValue<Ascii>, _> = format!("Bearer {}", token.trim()).parse();
        let mut value =
            value.map_err(|_| Failure::usage("the token has characters that no token has"))?;
        value.set_sensitive(true);
        Ok(Self(Some(value)))
    }
}

impl Interceptor for Credential {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// What peers are reached for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Errand {
    /// Calls, with the credential that is there.
    Call,
    /// A login, which sends a credential that is new.
    Login,
}

/// Where a cluster is and how it is reached, put together from flags, environment and contexts.
#[derive(Debug)]
pub(super) struct Reached {
    pub(super) context: Context,
    /// The name of the context that it is from.
    pub(super) name: Option<String>,
    /// The port that is forwarded for it, if one is.
    pub(super) forward: Option<Forward>,
    /// What `kubectl` said, if it was asked for a release and could not look.
    pub(super) unfound: Option<String>,
}

/// Puts together what was given. What a context holds is used for its own servers or release only.
///
/// # Errors
/// If a context or a file is not there, or what is named belongs to different clusters.
pub(super) fn resolve(target: &Target, errand: Errand) -> Result<Reached, Failure> {
    let contexts = Contexts::load(&target.home)?;
    let given = given(target)?;
    let (kept, name) = match (&target.context, target.server.is_empty()) {
        (Some(name), _) => (Some(contexts.named(name)?), Some(name.clone())),
        (None, true) => (contexts.current(), contexts.current.clone()),
        (None, false) => {
            let found = contexts.of_servers(&target.server);
            (found.map(|(_, context)| context), None)
        }
    };
    if given.servers.is_empty() && kept.is_none_or(|kept| kept.servers.is_empty()) {
        return discovery::find(target, errand, &contexts, given);
    }
    if let (Errand::Call, Some(kept), Some(name)) = (errand, kept, &target.context) {
        must_go_together(kept, name, &given)?;
    }
    Ok(Reached {
        context: kept.cloned().unwrap_or_default().overridden(given),
        name,
        forward: None,
        unfound: None,
    })
}

/// What flags and the environment say.
fn given(target: &Target) -> Result<Context, Failure> {
    let authorities = target.ca_file.as_deref().map(tls::read_authorities);
    Ok(Context {
        servers: target.server.clone(),
        authorities: authorities.transpose()?,
        tls_server_name: target.tls_server_name.clone(),
        token: target.access_token.as_ref().map(|token| Token {
            token: token.clone(),
            name: String::new(),
            expires_unix_ms: None,
        }),
        release: None,
    })
}

/// A context and servers may both be named, as where the environment names servers, if they are the context's own: otherwise
/// it is not clear which cluster is meant, and the context's token is not for others. A login to a release has no servers.
fn must_go_together(kept: &Context, name: &str, given: &Context) -> Result<(), Failure> {
    // Who it is and with TLS or not, however that is written.
    let read = |text: &String| read_address(text, kept.authorities.is_some()).ok();
    let own: Vec<_> = kept.servers.iter().filter_map(read).collect();
    let is_other = |text: &&String| read(text).is_none_or(|it| !own.contains(&it));
    let Some(other) = given.servers.iter().find(is_other) else {
        return Ok(());
    };
    Err(Failure::usage(format!(
        "context {name} and {other} are both named, and that is no server of it"
    ))
    .remedy("leave out one of them: --context or RAFTSERVE_CONTEXT, --server or RAFTSERVE_SERVER"))
}

/// Checks what would be kept as a context.
///
/// # Errors
/// What cannot be used.
pub(super) fn check(context: &Context) -> Result<(), Failure> {
    Servers::of(context).map(drop)
}

/// One peer.
struct Peer {
    address: String,
    endpoint: Endpoint,
    /// With which TLS is spoken.
    connector: Option<Connector>,
}

/// The peers to ask.
pub(super) struct Servers {
    peers: Vec<Peer>,
    credential: Credential,
    /// How long a peer may take to answer a call.
    patience: Duration,
    /// The one that answered last.
    current: usize,
    link: Option<Link>,
    /// Held for as long as peers are asked.
    forward: Option<Forward>,
    /// What `kubectl` said, if it was asked for a release and could not look.
    unfound: Option<String>,
}

impl Servers {
    /// Reads the addresses; connects to none yet.
    pub(super) fn new(target: &Target) -> Result<Self, Failure> {
        let Reached {
            context,
            forward,
            unfound,
            ..
        } = resolve(target, Errand::Call)?;
        let mut servers = Self::of(&context)?;
        let patience = target.request_timeout.unwrap_or(CALL_TIMEOUT);
        for peer in &mut servers.peers {
            let endpoint = peer.endpoint.clone();
            peer.endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT.min(patience));
        }
        Ok(Self {
            forward,
            unfound,
            patience,
            ..servers
        })
    }

    /// The same, of a cluster as it was put together.
    ///
    /// # Errors
    /// If an address is none, or a credential would be sent in the clear.
    pub(super) fn of(context: &Context) -> Result<Self, Failure> {
        let peers: Result<Vec<_>, _> = context
            .servers
            .iter()
            .map(|text| peer(text, context))
            .collect();
        let token = context.token.as_ref().map(|token| token.token.as_str());
        let mut peers = peers?;
        if peers.len() > 1 {
            for peer in &mut peers {
                let endpoint = peer.endpoint.clone();
                peer.endpoint = endpoint
                    .http2_keep_alive_interval(PING_AFTER)
                    .keep_alive_timeout(PING_TIMEOUT);
            }
        }
        Ok(Self {
            peers,
            patience: CALL_TIMEOUT,
            credential: Credential::new(token)?,
            current: 0,
            link: None,
            forward: None,
            unfound: None,
        })
    }

    /// A call that says how long its answer is waited for, so that the peer tells in time how far it has come.
    pub(super) fn in_time<M>(&self, message: M) -> impl Fn() -> Request<M> + use<M>
    where
        M: Clone,
    {
        let patience = self.patience;
        move || {
            let mut request = Request::new(message.clone());
            request.set_timeout(patience);
            request
        }
    }

    /// The release that is asked, if `kubectl` found it.
    pub(super) fn release(&self) -> Option<&Release> {
        Some(&self.forward.as_ref()?.release)
    }

    /// Makes a call that may be repeated: a read, or a write with a request id. Each peer is asked in
    /// turn until one answers; what it answers counts, except that it cannot.
    ///
    /// # Errors
    /// The answer, if it is an error; or that of the last peer asked, if none answers.
    pub(super) async fn call<T, F>(&mut self, mut call: impl FnMut(Link) -> F) -> Result<T, Status>
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
            for _ in 0..self.peers.len() {
                let error = match self.link().await {
                    Ok(link) => match tokio::time::timeout(self.patience, call(link)).await {
                        Ok(Ok(answer)) => return Ok(answer.into_inner()),
                        Ok(Err(status)) => match misfit(&status) {
                            Some(misfit) => Status::unavailable(misfit),
                            None if !is_unanswered(&status) => return Err(status),
                            None if is_silence(&status) => Status::unavailable(SILENT),
                            None => {
                                seen.broken = true;
                                status
                            }
                        },
                        Err(_) => Status::unavailable("no answer in time"),
                    },
                    Err(status) => status,
                };
                seen.add(&self.peers[self.current].address, error);
                self.next();
            }
        }
        Err(seen.status(self.unfound.as_deref()))
    }

    /// As `call`, with the failure for the command line.
    pub(super) async fn ask<T, F>(&mut self, call: impl FnMut(Link) -> F) -> Result<T, Failure>
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

    async fn link(&mut self) -> Result<Link, Status> {
        if let Some(link) = &self.link {
            return Ok(link.clone());
        }
        let Peer {
            address,
            endpoint,
            connector,
        } = &self.peers[self.current];
        let connected = match connector {
            None => endpoint.connect().await,
            Some(connector) => endpoint.connect_with_connector(connector.clone()).await,
        };
        let channel = connected.map_err(|error| {
            let mut cause: &dyn std::error::Error = &error;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            Status::unavailable(format!(
                "cannot connect to {address}: {cause}{}",
                hint(cause)
            ))
        })?;
        let link = InterceptedService::new(channel, self.credential.clone());
        Ok(self.link.insert(link).clone())
    }

    /// Turns to the next peer.
    pub(super) fn next(&mut self) {
        self.link = None;
        self.current = (self.current + 1) % self.peers.len();
    }
}

/// Peers that did not answer, and why.
#[derive(Default)]
struct Unanswered {
    /// What came of each address at the last try.
    tries: Vec<(String, String)>,
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
        let outcome = status.message().to_owned();
        match self.tries.iter_mut().find(|(tried, _)| tried == address) {
            Some((_, last)) => *last = outcome,
            None => self.tries.push((address.to_owned(), outcome)),
        }
        // A peer that explains itself is worth more than one that cannot be reached.
        let explained = |status: &Status| Reason::of(status).is_some();
        if !self.last.as_ref().is_some_and(explained) || explained(&status) {
            self.last = Some(status);
        }
    }

    /// What came of each address.
    fn told(&self) -> String {
        match self.tries.as_slice() {
            [(address, outcome)] => format!(" at {address}: {outcome}"),
            tries => {
                let told = tries
                    .iter()
                    .map(|(address, outcome)| match outcome.contains(address) {
                        true => outcome.clone(),
                        false => format!("{address}: {outcome}"),
                    });
                format!(": {}", told.collect::<Vec<_>>().join("; "))
            }
        }
    }

    /// The outcome, with what `kubectl` said where it was asked before.
    fn status(self, unfound: Option<&str>) -> Status {
        match &self.last {
            Some(status) if Reason::of(status).is_some() => status.clone(),
            Some(_) => Nobody::status(format!(
                "no peer answers{}{}{}; name others with --server",
                self.told(),
                match self.broken {
                    true => " (connections broke: is that the port of --admin-addr?)",
                    false => "",
                },
                discovery::told(unfound),
            )),
            None => Status::unavailable("no peer is named"),
        }
    }
}

/// That no peer has answered: what is said then is said by nobody but this program.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Nobody(String);

impl Nobody {
    fn status(told: String) -> Status {
        let mut status = Status::unavailable(told.clone());
        status.set_source(std::sync::Arc::new(Self(told)));
        status
    }

    /// What is said, if nobody has answered.
    pub(super) fn of(status: &Status) -> Option<&Self> {
        std::error::Error::source(status)?.downcast_ref()
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

/// What is said of a peer that does not show that it lives.
const SILENT: &str = "it takes connections, and does not answer";

/// Whether a call ended because the peer did not answer a ping.
fn is_silence(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            return error.is_timeout();
        }
        cause = error.source();
    }
    false
}

/// What may help against an error that says little.
fn hint(cause: &dyn std::error::Error) -> &'static str {
    let text = cause.to_string();
    if text.contains("UnknownIssuer") || text.contains("BadSignature") {
        " (--ca-file names the authorities of the peers' certificates)"
    } else if text.contains("not valid for name") {
        " (--tls-server-name says which name the peers' certificates are for)"
    } else if text.contains("InvalidContentType") {
        " (it may serve no TLS: say http://)"
    } else {
        ""
    }
}

/// Whether only this host reaches it.
fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address = host.parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// Why an address is none.
fn no_address(text: &str) -> Failure {
    Failure::new(
        Exit::Usage,
        format!("--server: {text:?} is not [https://]HOST[:PORT]"),
    )
    .remedy("name the admin port of a peer, such as 127.0.0.1:7000")
}

/// Reads an address, and whether TLS is spoken there: without a scheme, beyond this host and where `authorities` are known.
fn read_address(text: &str, authorities: bool) -> Result<(Authority, bool), Failure> {
    let refuse = || no_address(text);
    let (scheme, address) = match text.trim().split_once("://") {
        Some((scheme, address)) => (Some(scheme), address),
        None => (None, text.trim()),
    };
    let authority: Authority = address.parse().map_err(|_| refuse())?;
    let authority: Authority = match authority.port_u16() {
        Some(_) => authority,
        None => format!("{authority}:{DEFAULT_PORT}")
            .parse()
            .map_err(|_| refuse())?,
    };
    let has_tls = match scheme {
        Some("https") => true,
        Some("http") => false,
        Some(_) => return Err(refuse()),
        None => !is_loopback(authority.host()) || authorities,
    };
    Ok((authority, has_tls))
}

/// Reads an address of a cluster.
fn peer(text: &str, context: &Context) -> Result<Peer, Failure> {
    let refuse = || no_address(text);
    let (authority, has_tls) = read_address(text, context.authorities.is_some())?;
    let is_here = is_loopback(authority.host());
    if context.token.is_some() && !has_tls && !is_here {
        return Err(Failure::usage(format!(
            "a credential is not sent to {authority} without TLS: others could read it"
        ))
        .remedy(
            "say https://, and name the authorities of the peers' certificates with --ca-file",
        ));
    }
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))
        .map_err(|_| refuse())?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true);
    let (endpoint, connector) = match has_tls {
        false => (endpoint, None),
        true => {
            let name = context.tls_server_name.as_deref();
            let connector =
                Tls::new(context.authorities.as_deref(), name)?.connector(&authority)?;
            let origin = format!("https://{authority}")
                .parse()
                .map_err(|_| refuse())?;
            (endpoint.origin(origin), Some(connector))
        }
    };
    Ok(Peer {
        address: authority.to_string(),
        endpoint,
        connector,
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn of_peers_that_do_not_answer_each_ones_reason_is_told() {
        let tries = [
            ("a:1", Status::unavailable("cannot connect to a:1")),
            ("a:1", Status::deadline_exceeded("no answer in time")),
            ("b:2", Status::unavailable("cannot connect to b:2")),
        ];
        let told = |tries: &[(&str, Status)], unfound| {
            let mut unanswered = Unanswered::default();
            for (address, status) in tries {
                unanswered.add(address, status.clone());
            }
            unanswered.status(unfound).message().to_owned()
        };
        assert_eq!(
            told(&tries[..1], None),
            "no peer answers at a:1: cannot connect to a:1; name others with --server"
        );
        assert_eq!(
            told(&tries, None),
            "no peer answers: a:1: no answer in time; cannot connect to b:2; name others with --server"
        );
        assert_eq!(
            told(&tries[..1], Some("error: (Unauthorized)")),
            "no peer answers at a:1: cannot connect to a:1; and kubectl finds no release: error: (Unauthorized); name \
             others with --server"
        );
    }

    #[test]
    fn addresses_may_leave_out_the_port() {
        let read = |text| peer(text, &Context::default()).map(|peer| peer.address);
        assert_eq!(read("127.0.0.1").unwrap(), "127.0.0.1:7000");
        assert_eq!(read("[::1]").unwrap(), "[::1]:7000");
        assert_eq!(read("http://a:1").unwrap(), "a:1");
        for bad in ["", "a b", "ftp://a:1", "a:1/path"] {
            assert_eq!(read(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }

    #[test]
    fn a_credential_never_leaves_this_host_in_the_clear() {
        let context = Context {
            token: Some(Token {
                token: "t".to_owned(),
                name: String::new(),
                expires_unix_ms: None,
            }),
            ..Context::default()
        };
        for fine in ["127.0.0.1", "http://localhost:1", "[::1]:1"] {
            assert!(
                peer(fine, &context).is_ok_and(|peer| peer.connector.is_none()),
                "{fine}"
            );
        }
        let refused = peer("http://10.0.0.1", &context).err().unwrap();
        assert!(
            refused.message.contains("without TLS"),
            "{}",
            refused.message
        );
        assert!(peer("http://10.0.0.1", &Context::default()).is_ok());
    }

    #[test]
    fn a_named_context_is_used_with_none_but_its_own_servers() {
        let token = Token {
            token: "t".to_owned(),
            name: String::new(),
            expires_unix_ms: None,
        };
        let of = |servers: &[&str], authorities: Option<&str>, token: Option<&Token>| Context {
            servers: servers.iter().map(|&server| server.to_owned()).collect(),
            authorities: authorities.map(str::to_owned),
            token: token.cloned(),
            ..Context::default()
        };
        let own = of(&["https://a:1", "https://b:1"], Some("ca"), Some(&token));
        let fits = |kept: &Context, given: &Context| must_go_together(kept, "prod", given).is_ok();
        assert!(fits(&own, &of(&["https://b:1"], None, None)));
        assert!(fits(&own, &of(&["b:1"], None, None)), "as it is written");
        assert!(!fits(&own, &of(&["http://b:1"], None, None)));
        let other = of(&["https://b:1", "https://c:1"], None, None);
        assert!(!fits(&own, &other));
        assert!(fits(&own, &of(&[], None, None)));
        // The environment of another cluster, with its token.
        let all = of(&["https://c:1"], Some("ca"), Some(&token));
        assert!(!fits(&own, &all));
        assert!(!fits(&of(&["https://a:1"], None, None), &all));
        // A login to a release has no servers; on this host a token may go in the clear.
        let release = of(&[], Some("ca"), Some(&token));
        assert!(!fits(&release, &all));
        assert!(!fits(&release, &of(&["http://127.0.0.1:7000"], None, None)));
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

    /// Somebody who answers whatever comes first with `answer`, and says no more. It reads on to the
    /// end: who closes with bytes unread resets the connection, which may overtake the answer.
    fn stranger(answer: &'static [u8]) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 64]).unwrap();
                stream.write_all(answer).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            }
        });
        address
    }

    #[tokio::test]
    async fn who_speaks_something_else_is_told_so() {
        // The alert of a server of TLS: protocol_version.
        let tls = stranger(b"\x15\x03\x03\x00\x02\x02\x46");
        let mute = stranger(b"");
        for (address, named) in [(tls, "say https://"), (mute, "--admin-addr")] {
            let target = Target {
                server: vec![address.to_string()],
                ..Target::default()
            };
            let mut servers = Servers::new(&target).unwrap();
            let failure = servers.request_id().await.unwrap_err();
            assert_eq!(failure.exit, Exit::Unavailable);
            assert!(failure.message.contains(named), "{}", failure.message);
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
            ..Target::default()
        };
        let mut servers = Servers::new(&target).unwrap();
        let failure = servers.request_id().await.unwrap_err();
        assert_eq!(failure.exit, Exit::Unavailable);
        assert!(failure.message.contains(&address), "{}", failure.message);
    }

    /// Somebody who takes connections, reads what comes, and says nothing.
    fn silent() -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
            }
        });
        address
    }

    async fn asked(target: Target) -> (Failure, Duration) {
        let begun = std::time::Instant::now();
        let mut servers = Servers::new(&target).unwrap();
        let failure = servers.request_id().await.unwrap_err();
        assert_eq!((failure.exit, failure.reason), (Exit::Unavailable, None));
        (failure, begun.elapsed())
    }

    #[tokio::test]
    async fn a_peer_that_hangs_costs_little_where_others_are_named() {
        let (failure, took) = asked(Target {
            server: vec![silent().to_string(), silent().to_string()],
            ..Target::default()
        })
        .await;
        assert!(took < CALL_TIMEOUT, "{took:?}");
        assert_eq!(failure.message.matches(SILENT).count(), 2, "{failure:?}");
    }

    #[tokio::test]
    async fn how_long_a_peer_may_take_is_for_the_user_to_say() {
        let (failure, took) = asked(Target {
            server: vec![silent().to_string()],
            request_timeout: Some(Duration::from_millis(100)),
            ..Target::default()
        })
        .await;
        assert!(took < CALL_TIMEOUT, "{took:?}");
        assert!(failure.message.contains("no answer in time"), "{failure:?}");
    }
}
