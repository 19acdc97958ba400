//! Header fields: what ends at this hop (RFC 9110, 7.6.1), and what the proxy adds.

mod seen;
#[cfg(test)]
mod tests;

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, Entry, HOST, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::upstream::Wire;

pub(crate) use seen::{Field, Seen};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// What no trailer section of a request may hold: who joins it with the head would read another request, for someone else or
/// from someone else (RFC 9110, 6.5.1). Nor may it with `_` for some `-`.
pub(crate) const BARRED_TRAILERS: [&str; 23] = [
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "max-forwards",
    "proxy-connection",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-prefix",
    "x-forwarded-proto",
];

/// What the proxy says itself, or adds to.
const SAID: [&str; 5] = [
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-prefix",
    "x-forwarded-proto",
];

/// Whether a name is, with `_` for some `-`, one of those that the proxy says itself. Replicas that know fields as variables
/// (RFC 3875, 4.1.18) cannot tell the two apart, and would take the client's word for the proxy's.
pub(crate) fn is_alias(name: &str) -> bool {
    // Few names begin so, and a look at the first letter costs nothing.
    matches!(name.as_bytes().first(), Some(b'x' | b'X'))
        && name.contains('_')
        && SAID.iter().any(|said| is_alike(name, said))
}

/// Whether a field of this name may stand in no trailer section of a request.
pub(crate) fn is_barred_trailer(name: &str) -> bool {
    BARRED_TRAILERS.iter().any(|barred| is_alike(name, barred))
}

/// Whether a name is a known one in lower case, for who takes no account of case or `_`.
fn is_alike(name: &str, known: &str) -> bool {
    name.len() == known.len() && name.bytes().map(alike).eq(known.bytes())
}

/// A byte of a name, as who takes no account of case or `_` has it.
pub(crate) const fn alike(byte: u8) -> u8 {
    match byte {
        b'_' => b'-',
        byte => byte.to_ascii_lowercase(),
    }
}

/// What the fields that ended here asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Hop {
    /// The protocols to switch to, on one line, if the message asked for or agreed to any.
    pub(crate) upgrade: Option<HeaderValue>,
    /// Whether the sender takes trailers.
    pub(crate) te_trailers: bool,
    /// Whether the body came in chunks.
    pub(crate) chunked: bool,
}

/// Whether a body has no transfer coding but `chunked`, once: what else was applied to it would be lost here.
pub(crate) fn is_plainly_framed(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(TRANSFER_ENCODING).iter();
    let line = lines.next();
    let chunked = |line: &HeaderValue| {
        line.as_bytes()
            .trim_ascii()
            .eq_ignore_ascii_case(b"chunked")
    };
    line.is_none_or(chunked) && lines.next().is_none()
}

/// Leaves out of a request's trailers what none may hold.
pub(crate) fn clean_trailers(trailers: &mut HeaderMap) {
    remove_all(trailers, is_barred_trailer);
}

/// Leaves out what might be taken for what the proxy says itself.
pub(crate) fn remove_aliases(headers: &mut HeaderMap, seen: Seen) {
    if seen.has(Field::Alias) {
        remove_all(headers, is_alias);
    }
}

fn remove_all(headers: &mut HeaderMap, goes: impl Fn(&str) -> bool) {
    let names = headers.keys().filter(|name| goes(name.as_str()));
    for name in names.cloned().collect::<Vec<_>>() {
        headers.remove(name);
    }
}

/// Tells a replica what certificate the client has shown to us. What the client says of that is not believed.
pub(crate) fn set_certificate(
    headers: &mut HeaderMap,
    seen: Seen,
    certificate: Option<&HeaderValue>,
) {
    if seen.has(Field::ForwardedClientCert) {
        headers.remove(X_FORWARDED_CLIENT_CERT);
    }
    if let Some(certificate) = certificate {
        headers.insert(X_FORWARDED_CLIENT_CERT, certificate.clone());
    }
}

/// Removes the fields that end at this hop: the listed ones, and those that `Connection` names. All that were there must
/// have been `seen`.
///
/// `Host` and `Content-Length` stay even if named there: a message must not be able to take away what
/// decides its own target and framing.
pub(crate) fn end_hop(headers: &mut HeaderMap, seen: Seen) -> Hop {
    let mut hop = Hop::default();
    let mut upgrade_named = false;
    if seen.has(Field::Connection) {
        for name in take_connection(headers) {
            if name == UPGRADE {
                upgrade_named = true;
            } else if ![TE, HOST, CONTENT_LENGTH, TRANSFER_ENCODING].contains(&name) {
                headers.remove(name);
            }
        }
    }
    if seen.has(Field::Upgrade) {
        hop.upgrade = take_upgrade(headers).filter(|_| upgrade_named);
    }
    if seen.has(Field::Te) {
        hop.te_trailers = tokens(headers, &TE).any(|token| {
            let coding = token.split(|&byte| byte == b';').next().unwrap_or(token);
            coding.trim_ascii().eq_ignore_ascii_case(b"trailers")
        });
        headers.remove(TE);
    }
    if seen.has(Field::TransferEncoding) {
        hop.chunked = headers.remove(TRANSFER_ENCODING).is_some();
    }
    if seen.has(Field::KeepAlive) {
        headers.remove(KEEP_ALIVE);
    }
    if seen.has(Field::ProxyConnection) {
        headers.remove(PROXY_CONNECTION);
    }
    hop
}

/// Removes `Upgrade` and returns it on one line.
fn take_upgrade(headers: &mut HeaderMap) -> Option<HeaderValue> {
    let mut lines = headers.get_all(UPGRADE).iter();
    lines.next();
    if lines.next().is_none() {
        return headers.remove(UPGRADE);
    }
    let line = on_one_line(tokens(headers, &UPGRADE));
    headers.remove(UPGRADE);
    line
}

/// Removes `Connection` and returns the names in it, without those of its own options.
fn take_connection(headers: &mut HeaderMap) -> Vec<HeaderName> {
    let named = tokens(headers, &CONNECTION)
        .filter(|token| {
            !token.eq_ignore_ascii_case(b"keep-alive") && !token.eq_ignore_ascii_case(b"close")
        })
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .collect();
    headers.remove(CONNECTION);
    named
}

/// The elements of a comma-separated field, over all its lines.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(name).iter().flat_map(elements)
}

/// The elements of one line of such a field.
fn elements(line: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    let elements = line.as_bytes().split(|&byte| byte == b',');
    elements
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

/// A comma-separated field of these elements.
fn on_one_line<'a>(elements: impl Iterator<Item = &'a [u8]>) -> Option<HeaderValue> {
    let elements: Vec<&[u8]> = elements.collect();
    HeaderValue::from_bytes(&elements.join(&b", "[..])).ok()
}

/// What of these protocols a request may ask the next hop for: all but cleartext HTTP/2.
fn beyond_this_hop(protocols: &HeaderValue) -> Option<HeaderValue> {
    let is_h2c = |protocol: &[u8]| {
        let name = protocol.split(|&byte| byte == b'/').next();
        name.is_some_and(|name| name.trim_ascii().eq_ignore_ascii_case(b"h2c"))
    };
    let line = on_one_line(elements(protocols).filter(|it| !is_h2c(it)));
    line.filter(|line| !line.is_empty())
}

/// Whether a switch to these protocols, one or more, is to those alone that were `asked` for (RFC 9110, 7.8).
pub(crate) fn is_asked_for(protocols: &HeaderValue, asked: &HeaderValue) -> bool {
    let is_asked = |protocol: &[u8]| elements(asked).any(|it| it.eq_ignore_ascii_case(protocol));
    elements(protocols).next().is_some() && elements(protocols).all(is_asked)
}

/// Asks the next hop for what was asked of this one: a switch of protocols, trailers. Which protocols it asks for, if any.
///
/// An upgrade to cleartext HTTP/2 is between the client and this hop alone, and is left unanswered,
/// as RFC 9113, 3.1 has it. HTTP/2 knows no switch of protocols, and no `Connection` (8.2.2).
pub(crate) fn begin_request_hop(
    headers: &mut HeaderMap,
    seen: Seen,
    hop: &Hop,
    wire: Wire,
) -> Option<HeaderValue> {
    if seen.has(Field::Expect) {
        headers.remove(EXPECT); // Met here: "100 Continue" is sent once the replica takes the body.
    }
    if seen.has(Field::Http2Settings) {
        headers.remove(HTTP2_SETTINGS);
    }
    if wire == Wire::Http2 {
        if hop.te_trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
        return None;
    }
    let upgrade = hop.upgrade.as_ref().and_then(beyond_this_hop);
    match (&upgrade, hop.te_trailers) {
        (Some(protocols), trailers) => {
            headers.insert(UPGRADE, protocols.clone());
            let options = if trailers { "upgrade, te" } else { "upgrade" };
            headers.insert(CONNECTION, HeaderValue::from_static(options));
        }
        (None, true) => {
            headers.insert(CONNECTION, HeaderValue::from_static("te"));
        }
        (None, false) => {}
    }
    if hop.te_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    upgrade
}

/// What the proxy tells a replica about the request's way to it.
pub(crate) struct Forwarded<'a> {
    /// The client's address.
    pub(crate) client: &'a HeaderValue,
    /// `http` or `https`.
    pub(crate) proto: &'static str,
    /// The path prefix that was stripped, without a final slash; empty if none was.
    pub(crate) prefix: &'a str,
}

impl Forwarded<'_> {
    /// Adds itself to what proxies before this one said. The host and protocol that the first proxy
    /// saw stay: they are what the client used.
    pub(crate) fn add_to(&self, headers: &mut HeaderMap, host: Option<HeaderValue>) {
        add_to_list(headers, X_FORWARDED_FOR, self.client);
        if let Some(host) = host {
            headers.entry(X_FORWARDED_HOST).or_insert(host);
        }
        let proto = || HeaderValue::from_static(self.proto);
        headers.entry(X_FORWARDED_PROTO).or_insert_with(proto);
        if !self.prefix.is_empty() {
            self.add_prefix(headers);
        }
    }

    fn add_prefix(&self, headers: &mut HeaderMap) {
        let outer = headers.get(X_FORWARDED_PREFIX);
        let outer = outer.and_then(|outer| outer.to_str().ok()).unwrap_or("");
        let whole = format!("{}{}", outer.trim_end_matches('/'), self.prefix);
        if let Ok(value) = HeaderValue::try_from(whole) {
            headers.insert(X_FORWARDED_PREFIX, value);
        }
    }
}

/// Appends to a comma-separated field, leaving it on one line: many readers look at the first only.
fn add_to_list(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue) {
    match headers.entry(name) {
        Entry::Vacant(entry) => {
            entry.insert(value.clone());
        }
        Entry::Occupied(mut entry) => {
            let mut list = Vec::new();
            for line in entry.iter() {
                list.extend_from_slice(line.as_bytes());
                list.extend_from_slice(b", ");
            }
            list.extend_from_slice(value.as_bytes());
            if let Ok(list) = HeaderValue::from_bytes(&list) {
                entry.insert(list);
            }
        }
    }
}
