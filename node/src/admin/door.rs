//! Lets those in who may make a call: each shows who it is, and the table of roles says what that is enough for. What
//! changes something is told in the log with who did it.

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Either};
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, Response};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;
use tonic::{Code, Status};

use super::errors::Reason;
use super::recheck::Rechecked;
use super::told::{Teller, told};
use crate::access::{
    Credentials, LoginSecret, Need, Realm, Role, Subject, Unknown, is_stream, needed,
};
use crate::clock;
use crate::consensus::Consensus;

/// Keys that are raftserve's own: the API neither shows nor changes them.
pub(super) const RESERVED: &str = ".raftserve/";

/// The key of the secret by which tokens are signed.
pub(super) const SECRET_KEY: &str = ".raftserve/login-secret";

/// See the module. One for all services of the port.
pub(super) struct Door {
    pub(super) credentials: Arc<Credentials>,
    consensus: Consensus,
    counters: Arc<Denials>,
}

/// How often somebody was not let in.
#[derive(Debug, Default)]
pub struct Denials {
    unknown: AtomicU64,
    role: AtomicU64,
}

impl Denials {
    /// The counters in Prometheus's text format.
    #[must_use]
    pub fn render(&self) -> String {
        let name = "raftserve_admin_denied_total";
        let mut text = format!(
            "# HELP {name} Calls of the admin API that were refused to who made them.\n# TYPE {name} counter\n"
        );
        for (reason, counter) in [("credential", &self.unknown), ("role", &self.role)] {
            let value = counter.load(Ordering::Relaxed);
            let _ = writeln!(text, "{name}{{reason=\"{reason}\"}} {value}");
        }
        text
    }
}

/// Who was let in: nobody in particular where no credentials are asked for, or for a call that anybody may make.
pub(super) type Admitted = Option<(Subject, Role)>;

impl Door {
    pub(super) fn new(
        credentials: Arc<Credentials>,
        consensus: Consensus,
        counters: Arc<Denials>,
    ) -> Self {
        Self {
            credentials,
            consensus,
            counters,
        }
    }

    /// Where this peer's tokens are good, once the cluster has a secret and it has arrived here.
    pub(super) fn realm(&self) -> Option<Realm> {
        let state = self.consensus.state();
        let secret = LoginSecret::read(&state.key(SECRET_KEY)?.value)?;
        Some(Realm {
            cluster: self.consensus.cluster_id(),
            secret,
        })
    }

    /// Counts a login that was refused.
    pub(super) fn count_refused_login(&self) {
        self.counters.unknown.fetch_add(1, Ordering::Relaxed);
    }

    /// Lets a call in, or says why not.
    pub(super) fn admit(&self, path: &str, headers: &HeaderMap) -> Result<Admitted, Status> {
        let role = match needed(path) {
            None => return Err(Status::unimplemented("there is no such call")),
            Some(Need::Anybody) => return Ok(None),
            Some(Need::Role(role)) => role,
        };
        let shown = headers.get(AUTHORIZATION).map(|value| value.to_str());
        let identified = match shown {
            Some(Err(_)) => Err(Unknown::Bad),
            None => self.identify(None),
            Some(Ok(text)) => self.identify(Some(text)),
        };
        let subject = identified.map_err(|why| {
            self.counters.unknown.fetch_add(1, Ordering::Relaxed);
            unknown(why)
        })?;
        if subject.role >= role {
            return Ok(Some((subject, role)));
        }
        self.counters.role.fetch_add(1, Ordering::Relaxed);
        let Subject { name, role: has } = &subject;
        tracing::info!(target: "raftserve::audit", subject = name, role = %has, call = path, "refused");
        Err(Reason::RoleTooLow.status_with(
            format!("{name} has the role {has}, and this call needs the role {role}"),
            [("has", has.to_string()), ("needs", role.to_string())],
        ))
    }

    /// Whether the call would be let in, whenever that is asked.
    fn again(
        self: &Arc<Self>,
        path: &str,
        headers: &HeaderMap,
    ) -> impl Fn() -> Result<(), Status> + Send + Unpin + use<> {
        let (door, path) = (Arc::clone(self), path.to_owned());
        let mut shown = HeaderMap::new();
        if let Some(credential) = headers.get(AUTHORIZATION) {
            shown.insert(AUTHORIZATION, credential.clone());
        }
        move || door.admit(&path, &shown).map(drop)
    }

    fn identify(&self, shown: Option<&str>) -> Result<Subject, Unknown> {
        let now = clock::unix_seconds();
        self.credentials.identify(shown, || self.realm(), now)
    }
}

/// Why somebody is not let in, in words that say what to do.
pub(super) fn unknown(why: Unknown) -> Status {
    match why {
        Unknown::NoCredential => Reason::NoCredential
            .status("this peer asks for a credential: send the header `authorization: Bearer TOKEN`"),
        Unknown::NoBearer => Reason::NoCredential.status(
            "this peer takes bearer tokens only: send the header `authorization: Bearer TOKEN`; a password is exchanged \
             for a token by Access.Login",
        ),
        Unknown::Bad => Reason::BadCredential.status(
            "the credential is nobody's, or not any more: its user, password or token may have been changed",
        ),
        Unknown::Expired => {
            Reason::CredentialExpired.status("the token is no longer good: log in again")
        }
        Unknown::Busy => Reason::TooManyRequests
            .status("too many are logging in at this moment; try again, or ask another peer"),
        Unknown::NotCaughtUp => Reason::NoQuorum
            .status("this peer does not know the cluster's tokens yet; try again, or ask another peer"),
    }
}

/// A service behind the door, or in the open.
#[derive(Clone)]
pub(super) struct Guarded<S> {
    inner: S,
    door: Option<Arc<Door>>,
}

impl<S> Guarded<S> {
    pub(super) fn new(inner: S, door: Option<Arc<Door>>) -> Self {
        Self { inner, door }
    }
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

type Answer = Result<Response<Body>, Infallible>;

impl<S, B> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, BoxFuture<'static, Answer>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let Some(door) = &self.door else {
            return Either::Left(self.inner.call(request));
        };
        match door.admit(request.uri().path(), request.headers()) {
            Err(status) => Either::Right(std::future::ready(Ok(status.into_http())).boxed()),
            Ok(None) => Either::Left(self.inner.call(request)),
            Ok(Some((subject, needed))) => {
                let path = request.uri().path().to_owned();
                request.extensions_mut().insert(subject.clone());
                let again = is_stream(&path).then(|| door.again(&path, request.headers()));
                let answering = self.inner.call(request);
                let is_told = is_told(needed);
                if again.is_none() && !is_told {
                    return Either::Left(answering);
                }
                if is_told && again.is_some() {
                    tell_begun(&subject, &path);
                }
                let teller =
                    is_told.then(|| Teller::new(move |outcome| tell(&subject, &path, outcome)));
                let finished = move |answer: Answer| {
                    let mut answer = answer?;
                    if let Some(again) = again {
                        answer = answer.map(|body| Body::new(Rechecked::new(body, again)));
                    }
                    Ok(match teller {
                        Some(teller) => told(answer, teller),
                        None => answer,
                    })
                };
                Either::Right(answering.map(finished).boxed())
            }
        }
    }
}

/// Whether it is told who made a call that needs such a role: not if it changes nothing.
pub(super) fn is_told(needed: Role) -> bool {
    needed != Role::Viewer
}

/// Tells who began what may last.
fn tell_begun(subject: &Subject, call: &str) {
    let Subject { name, role } = subject;
    tracing::info!(target: "raftserve::audit", subject = name, %role, call, "begun");
}

/// Tells who did what, and what came of it. Changes of keys may be many a second, and are told to those who ask for it.
pub(super) fn tell(subject: &Subject, call: &str, outcome: Code) {
    let Subject { name, role } = subject;
    if call.contains(".KeyValue/") || call.ends_with("/OpenClient") {
        tracing::debug!(target: "raftserve::audit", subject = name, %role, call, ?outcome, "called");
    } else {
        tracing::info!(target: "raftserve::audit", subject = name, %role, call, ?outcome, "called");
    }
}
