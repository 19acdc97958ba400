//! From a client's request to the one that a replica gets.

use std::borrow::Cow;

use http::header::{CONTENT_LENGTH, COOKIE, HOST, TRANSFER_ENCODING};
use http::uri::{self, Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Request, Uri, Version};
use http_body::Body;
use hyper::upgrade::OnUpgrade;
use raftserve_model::SessionKey;
use raftserve_model::spec::{RouteRule, UpstreamProtocol};

use crate::answer::Dialect;
use crate::body::{Bodies, Received, UploadBody};
use crate::connection::Client;
use crate::deadline;
use crate::headers::{
    Field, Forwarded, Seen, begin_request_hop, end_hop, is_plainly_framed, remove_aliases,
    set_certificate,
};
use crate::host;
use crate::routes::ServiceRoute;
use crate::rules;
use crate::session::key_of;
use crate::trace;
use crate::upstream::Wire;

/// A request ready to be sent to any replica of its service.
pub(super) struct Prepared {
    /// Boxed, since it passes through many hands.
    pub(super) request: Box<Request<UploadBody>>,
    /// Boxed, as is all that only some requests have.
    pub(super) switch: Option<Box<Switch>>,
    pub(super) key: Option<SessionKey>,
}

/// A switch of protocols that a client asked for.
pub(super) struct Switch {
    /// The client's side of it.
    pub(super) client: OnUpgrade,
    /// To which protocols.
    pub(super) asked: HeaderValue,
}

/// The host that the request is for: of its target if that has one, else of its `Host` field (RFC
/// 9112, 3.2; RFC 9113, 8.3.1). Empty for HTTP/1.0 without.
///
/// # Errors
/// It has none, or what two readers might tell differently: several, or one that is no host.
pub(super) fn host(request: &Request<Received>, seen: Seen) -> Result<&str, &'static str> {
    const NO_HOST: &str = "the Host field is no host, with or without a port";
    let mut line = None;
    if seen.has(Field::Host) {
        let mut lines = request.headers().get_all(HOST).iter();
        line = lines.next();
        if lines.next().is_some() {
            return Err("the request has several Host fields");
        }
        if !line.is_none_or(|line| host::is_legal(line.as_bytes())) {
            return Err(NO_HOST);
        }
    }
    if let Some(authority) = request.uri().authority() {
        let authority = authority.as_str();
        if !host::is_legal(authority.as_bytes()) {
            return Err("the request's target names more than a host and a port");
        }
        return Ok(authority);
    }
    match line {
        Some(line) => line.to_str().map_err(|_| NO_HOST),
        None if request.version() == Version::HTTP_11 => Err("the request has no Host field"),
        None => Ok(""),
    }
}

/// Makes the request that a replica of `route` gets. Its fields were `seen`.
///
/// # Errors
/// The rest of the path is no path.
pub(super) fn outgoing(
    (mut request, seen): (Request<Received>, Seen),
    client: &Client,
    route: &ServiceRoute,
    wire: Wire,
    prefix_len: usize,
    (rule, bodies): (Option<&RouteRule>, &Bodies),
) -> Result<Prepared, &'static str> {
    if seen.has(Field::TransferEncoding) && !is_plainly_framed(request.headers()) {
        return Err("the body's transfer coding is not chunked alone");
    }
    let mut hop = end_hop(request.headers_mut(), seen);
    if request.version() < Version::HTTP_11 {
        hop.upgrade = None; // Nothing older can switch (RFC 9110, 7.8).
    }
    let asked = begin_request_hop(request.headers_mut(), seen, &hop, wire);
    let switch = asked.map(|asked| {
        let client = hyper::upgrade::on(&mut request);
        Box::new(Switch { client, asked })
    });
    let (mut parts, body) = request.into_parts();
    if wire == Wire::Http1 && parts.version == Version::HTTP_2 {
        join_cookies(&mut parts.headers);
    }
    let host = match parts.uri.authority() {
        None if !seen.has(Field::Host) => None,
        None => parts.headers.get(HOST).cloned(),
        Some(authority) => {
            let host = HeaderValue::from_str(authority.as_str());
            let host = host.map_err(|_| "the request's target has no legal host")?;
            if wire == Wire::Http1 {
                parts.headers.insert(HOST, host.clone());
            }
            Some(host)
        }
    };
    let forwarded = Forwarded {
        client: &client.address,
        proto: client.proto,
        prefix: parts.uri.path().get(..prefix_len).unwrap_or(""),
    };
    remove_aliases(&mut parts.headers, seen);
    forwarded.add_to(&mut parts.headers, host);
    set_certificate(&mut parts.headers, seen, client.certificate.as_ref());
    trace::ensure(&mut parts.headers, seen, trace::random);
    if hop.chunked {
        parts.headers.remove(CONTENT_LENGTH); // Chunks decide (RFC 9112, 6.3); two claims could disagree.
    }
    match wire {
        Wire::Http1 => {
            chunk(&mut parts.headers, &body);
            if !is_target(&parts.uri, prefix_len, rule) {
                parts.uri = Uri::from(target(&parts.uri, prefix_len, rule)?);
            }
            parts.version = Version::HTTP_11;
        }
        Wire::Http2 => {
            let target = target(&parts.uri, prefix_len, rule)?;
            let authority = parts.uri.authority().cloned();
            parts.uri = absolute(&mut parts.headers, seen, authority, target, route)?;
            parts.version = Version::HTTP_2;
        }
    }
    deadline::keep(&mut parts.extensions);
    let affinity = route.affinity.as_ref();
    let key = affinity.and_then(|affinity| key_of(route.id, affinity, &parts.headers));
    let body = UploadBody::new(body, route.body_bytes_max(rule), bodies);
    Ok(Prepared {
        request: Box::new(Request::from_parts(parts, body)),
        switch,
        key,
    })
}

/// The size of a request's head as text of HTTP/1.1, whatever it came as: a line of method and target, and one of each field.
pub(super) fn head_bytes<B>(request: &Request<B>) -> usize {
    const VERSION: usize = " HTTP/1.1\r\n".len();
    const AROUND: usize = ": \r\n".len();
    let uri = request.uri();
    let target = uri.path_and_query().map_or(0, |it| it.as_str().len());
    let authority = uri.authority().map_or(0, |it| it.as_str().len());
    let line = request.method().as_str().len() + 1 + authority + target + VERSION;
    let fields = request.headers().iter();
    let fields = fields.map(|(name, value)| name.as_str().len() + value.len() + AROUND);
    line + fields.sum::<usize>() + "\r\n".len()
}

/// Whether [`target`] would be the same: it is path and query alone, and nothing is taken from it.
fn is_target(uri: &Uri, prefix_len: usize, rule: Option<&RouteRule>) -> bool {
    let kept = prefix_len == 0 && rule.is_none_or(|rule| rule.rewrite_prefix.is_none());
    kept && uri.authority().is_none() && uri.scheme().is_none()
}

/// Path and query alone, byte for byte, without the first `prefix_len` bytes, and as the rule rewrites them. Of `/NAME`
/// alone, `/` is left.
fn target(
    uri: &Uri,
    prefix_len: usize,
    rule: Option<&RouteRule>,
) -> Result<PathAndQuery, &'static str> {
    let rewrites = rule.filter(|rule| rule.rewrite_prefix.is_some());
    Ok(match (uri.path_and_query(), rewrites) {
        (None, None) => PathAndQuery::from_static("/"),
        (Some(whole), None) if prefix_len == 0 => whole.clone(),
        (whole, rewrites) => {
            let whole = whole.map_or("/", PathAndQuery::as_str);
            let kept = match &whole[prefix_len..] {
                rest if prefix_len > 0 && !rest.starts_with('/') => Cow::Owned(format!("/{rest}")),
                rest => Cow::Borrowed(rest),
            };
            let target = match rewrites {
                Some(rule) => rules::rewrite(rule, &kept),
                None => Cow::Borrowed(&*kept),
            };
            target
                .parse()
                .map_err(|_| "what follows the service's name is no path")?
        }
    })
}

/// What a service's replicas are spoken to in.
pub(super) fn wire(route: &ServiceRoute, dialect: Dialect) -> Wire {
    match route.traffic.upstream.protocol {
        UpstreamProtocol::Auto if dialect == Dialect::Grpc => Wire::Http2,
        UpstreamProtocol::Auto | UpstreamProtocol::Http1 => Wire::Http1,
        UpstreamProtocol::Http2 => Wire::Http2,
    }
}

/// The target with its host, which HTTP/2 has no field for (RFC 9113, 8.3.1).
fn absolute(
    headers: &mut HeaderMap,
    seen: Seen,
    authority: Option<Authority>,
    target: PathAndQuery,
    route: &ServiceRoute,
) -> Result<Uri, &'static str> {
    const NONE: &str = "the request names no legal host";
    let authority = match authority {
        Some(authority) => {
            if seen.has(Field::Host) {
                headers.remove(HOST);
            }
            authority
        }
        None => {
            let host = headers.remove(HOST).filter(|host| !host.is_empty());
            let host = host.unwrap_or(HeaderValue::from_static("localhost")); // HTTP/1.0 may name none.
            Authority::try_from(host.as_bytes()).map_err(|_| NONE)?
        }
    };
    let mut parts = uri::Parts::default();
    parts.scheme = Some(match route.traffic.upstream.tls {
        Some(_) => Scheme::HTTPS,
        None => Scheme::HTTP,
    });
    parts.authority = Some(authority);
    parts.path_and_query = Some(target);
    Uri::from_parts(parts).map_err(|_| NONE)
}

/// A body of unknown length goes in chunks, whatever the method; else its length says it all.
fn chunk(headers: &mut HeaderMap, body: &Received) {
    if !body.is_end_stream() && !headers.contains_key(CONTENT_LENGTH) {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// HTTP/2 may send cookies on several lines; HTTP/1 takes one (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut lines = headers.get_all(COOKIE).iter();
    if lines.next().is_some() && lines.next().is_some() {
        let lines: Vec<&[u8]> = headers
            .get_all(COOKIE)
            .iter()
            .map(HeaderValue::as_bytes)
            .collect();
        if let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..])) {
            headers.insert(COOKIE, joined);
        }
    }
}
