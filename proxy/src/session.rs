//! Session affinity: what the proxy asks of those who know what was agreed.

use std::future::Future;
use std::pin::Pin;

use http::{HeaderMap, header};
use raftserve_model::spec::{SessionAffinity, SessionKeySource};
use raftserve_model::{ReplicaId, ServiceId, SessionEpoch, SessionKey};
use tokio::sync::watch;

/// A session's replica, and which of its bindings that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoundReplica {
    /// The only replica that may get the session's requests.
    pub replica: ReplicaId,
    /// The binding. A later one has the greater epoch.
    pub epoch: SessionEpoch,
}

/// What this peer knows of a session at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// It is bound, and this peer may act on that now.
    Bound(BoundReplica),
    /// This peer knows of no binding. There may be one: only [`Sessions::bind`] can tell.
    Unbound,
    /// It is moving behind the fence, or this peer's lease is lost for now: wait and look again.
    Wait,
    /// Its requests are refused: 503 with this reason.
    Refused {
        /// Why, for the client.
        reason: String,
    },
}

/// Why a session was not bound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// Nothing may be bound now, and soon may be: no quorum, no leader, no ready replica.
    #[error("{0}")]
    Unavailable(String),
    /// It is refused, and asking again does not help: the service's sessions are at their most.
    #[error("{0}")]
    Refused(String),
}

/// The future of [`Sessions::bind`].
pub type BindFuture<'a> =
    Pin<Box<dyn Future<Output = Result<BoundReplica, BindError>> + Send + 'a>>;

/// Strict bindings of sessions to replicas, agreed between all peers (policy S1).
///
/// The proxy never invents a binding. It sends a request to the replica that [`Self::lookup`] named
/// after the last wait before sending, so a process that paused in between cannot act on a binding
/// that has moved since.
pub trait Sessions: Send + Sync + 'static {
    /// What this peer knows. Local, and cheap: it is called once or twice for each request with a
    /// key. It must answer [`Lookup::Bound`] only while this peer's lease allows to act on it.
    fn lookup(&self, service: ServiceId, key: SessionKey) -> Lookup;

    /// Has the key bound, or learns of its binding, whoever leads. Resolved once
    /// [`Self::lookup`] here can see it, or soon will: the proxy looks again, and acts on that only.
    ///
    /// Cancel safe: the proxy drops the future when the request's patience ends.
    fn bind<'a>(&'a self, service: ServiceId, key: SessionKey) -> BindFuture<'a>;

    /// Changes with everything that may change an answer of [`Self::lookup`].
    fn changed(&self) -> watch::Receiver<u64>;
}

/// For a proxy without sessions: refuses every key.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSessions;

impl Sessions for NoSessions {
    fn lookup(&self, _: ServiceId, _: SessionKey) -> Lookup {
        Lookup::Refused {
            reason: "session affinity is not available here".to_owned(),
        }
    }

    fn bind<'a>(&'a self, _: ServiceId, _: SessionKey) -> BindFuture<'a> {
        let refused = "session affinity is not available here".to_owned();
        Box::pin(std::future::ready(Err(BindError::Refused(refused))))
    }

    fn changed(&self) -> watch::Receiver<u64> {
        watch::Sender::new(0).subscribe()
    }
}

/// The key of a request, if it carries one. An empty value is no key.
pub(crate) fn key_of(
    service: ServiceId,
    affinity: &SessionAffinity,
    headers: &HeaderMap,
) -> Option<SessionKey> {
    let value = match &affinity.key {
        SessionKeySource::Header(name) => headers.get(name.as_str())?.as_bytes(),
        SessionKeySource::Cookie(name) => cookie(headers, name.as_bytes())?,
    };
    (!value.is_empty()).then(|| SessionKey::of(service, value))
}

/// The value of the first cookie of that name (RFC 6265, 4.2.1).
pub(crate) fn cookie<'a>(headers: &'a HeaderMap, name: &[u8]) -> Option<&'a [u8]> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .flat_map(|line| line.as_bytes().split(|&byte| byte == b';'))
        .find_map(|pair| {
            let pair = pair.trim_ascii();
            let equals = pair.iter().position(|&byte| byte == b'=')?;
            (&pair[..equals] == name).then(|| &pair[equals + 1..])
        })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderValue;
    use raftserve_model::spec::WithoutQuorum;

    use super::*;

    fn affinity(key: SessionKeySource) -> SessionAffinity {
        SessionAffinity {
            key,
            ttl: Duration::from_secs(60),
            max_sessions: 10,
            without_quorum: WithoutQuorum::Refuse,
        }
    }

    #[test]
    fn a_key_comes_from_the_named_cookie_alone() {
        let affinity = affinity(SessionKeySource::Cookie("sid".to_owned()));
        let key = |lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(header::COOKIE, HeaderValue::from_static(line));
            }
            key_of(ServiceId(1), &affinity, &headers)
        };
        let expected = Some(SessionKey::of(ServiceId(1), b"a=b"));
        assert_eq!(key(&["xsid=1; sid=a=b; sid=2"]), expected);
        assert_eq!(key(&["other=1", "sid=a=b"]), expected);
        assert_eq!(key(&["SID=a; sidx=1"]), None);
        assert_eq!(key(&["sid="]), None);
        assert_eq!(key(&[]), None);
    }

    #[test]
    fn a_key_comes_from_the_named_header() {
        let affinity = affinity(SessionKeySource::Header("x-session".to_owned()));
        let mut headers = HeaderMap::new();
        assert_eq!(key_of(ServiceId(1), &affinity, &headers), None);
        headers.insert("x-session", HeaderValue::from_static("alice"));
        let expected = Some(SessionKey::of(ServiceId(1), b"alice"));
        assert_eq!(key_of(ServiceId(1), &affinity, &headers), expected);
    }
}
