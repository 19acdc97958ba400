//! The head of a plain request: read into slices of the buffer, and written for the replica from them.
//!
//! Plain is what needs no thought. All else is told apart here, before any of it is used, and left to
//! the general path, which knows how to do it or how to refuse it.

#[cfg(test)]
mod tests;

use std::mem::MaybeUninit;

use http::HeaderValue;

use super::framing::{Chunks, Framing};
use crate::headers::is_alias;
use crate::host;
use crate::trace;

/// The most fields of a plain request's head.
pub(super) const FIELDS_MAX: usize = 64;

/// Room for the fields of one head.
pub(super) type Fields<'b> = [MaybeUninit<httparse::Header<'b>>; FIELDS_MAX];

/// What some bytes begin with.
#[derive(Debug)]
pub(super) enum Parsed<'h, 'b> {
    /// A part of a head, as far as it can be told.
    Partial,
    /// Something for the general path.
    Other,
    Plain(PlainRequest<'h, 'b>),
}

/// A plain request's head.
#[derive(Debug)]
pub(super) struct PlainRequest<'h, 'b> {
    pub(super) method: &'b str,
    /// In origin form: path and query.
    target: &'b str,
    pub(super) host: &'b str,
    fields: &'h [httparse::Header<'b>],
    /// How many bytes of the buffer it takes.
    pub(super) head_len: usize,
    pub(super) framing: Framing,
    /// Whether the client wants the connection closed after the answer.
    pub(super) close: bool,
    seen: Seen,
}

/// What the head holds already of what the proxy adds.
#[derive(Debug, Default)]
struct Seen {
    forwarded_for: bool,
    forwarded_host: bool,
    forwarded_proto: bool,
    forwarded_prefix: bool,
    traces: u8,
    valid_trace: bool,
}

/// What a request's way is told to the replica with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way<'a> {
    /// The client's address.
    pub(super) client: &'a [u8],
    /// `http` or `https`.
    pub(super) proto: &'a str,
    /// How many bytes of the path name the service and are not sent on.
    pub(super) prefix_len: usize,
}

/// The fields that matter to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Host,
    Connection,
    ContentLength,
    ContentType,
    TransferEncoding,
    ForwardedFor,
    ForwardedHost,
    ForwardedProto,
    ForwardedPrefix,
    Traceparent,
    Tracestate,
    /// It asks for something that only the general path does.
    Special,
    /// It is the replica's affair.
    Opaque,
}

impl<'h, 'b> PlainRequest<'h, 'b> {
    /// Reads the head that `bytes` begin with.
    pub(super) fn read(bytes: &'b [u8], room: &'h mut Fields<'b>) -> Parsed<'h, 'b> {
        let mut request = httparse::Request::new(&mut []);
        let head_len = match request.parse_with_uninit_headers(bytes, room) {
            Ok(httparse::Status::Complete(head_len)) => head_len,
            Ok(httparse::Status::Partial) => return Parsed::Partial,
            Err(_) => return Parsed::Other,
        };
        match Self::plain(request, head_len) {
            Some(plain) => Parsed::Plain(plain),
            None => Parsed::Other,
        }
    }

    /// Whether to do it twice is to do it once (RFC 9110, 9.2.2).
    pub(super) fn is_idempotent(&self) -> bool {
        matches!(
            self.method,
            "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE"
        )
    }

    fn plain(request: httparse::Request<'h, 'b>, head_len: usize) -> Option<Self> {
        let (method, target) = (request.method?, request.path?);
        let fields: &'h [httparse::Header<'b>] = request.headers;
        if request.version != Some(1) || method == "CONNECT" || !is_origin_form(target) {
            return None;
        }
        let mut seen = Seen::default();
        let (mut host, mut length, mut chunked, mut connection) = (None, None, false, None);
        for field in fields {
            let value = field.value;
            let again = match Field::of(field.name) {
                Field::Opaque | Field::Tracestate => false,
                Field::ContentType if is_grpc(value) => return None,
                Field::ContentType => false,
                Field::Special => return None,
                Field::Host => host.replace(host_of(value)?).is_some(),
                Field::Connection => connection.replace(close_of(value)?).is_some(),
                Field::ContentLength => length.replace(length_of(value)?).is_some(),
                Field::TransferEncoding if value.eq_ignore_ascii_case(b"chunked") => {
                    std::mem::replace(&mut chunked, true)
                }
                Field::TransferEncoding => return None,
                Field::ForwardedFor => {
                    seen.forwarded_for = true;
                    false
                }
                Field::ForwardedHost => std::mem::replace(&mut seen.forwarded_host, true),
                Field::ForwardedProto => std::mem::replace(&mut seen.forwarded_proto, true),
                Field::ForwardedPrefix => std::mem::replace(&mut seen.forwarded_prefix, true),
                Field::Traceparent => {
                    seen.traces = seen.traces.saturating_add(1);
                    seen.valid_trace = trace::is_valid(value);
                    false
                }
            };
            if again {
                return None;
            }
        }
        let framing = match (length, chunked) {
            (Some(_), true) => return None, // The way in of request smuggling (RFC 9112, 11.2).
            (None, true) => Framing::Chunked(Chunks::of_request()),
            (length, false) => Framing::Length(length.unwrap_or(0)),
        };
        Some(Self {
            method,
            target,
            host: host?,
            fields,
            head_len,
            framing,
            close: connection.unwrap_or(false),
            seen,
        })
    }

    /// The path alone.
    pub(super) fn path(&self) -> &'b str {
        match self.target.find('?') {
            Some(end) => &self.target[..end],
            None => self.target,
        }
    }

    /// Whether its answer has a head alone.
    pub(super) fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// Whether [`Self::write`] can say it all.
    pub(super) fn fits(&self, way: &Way<'_>) -> bool {
        let rest = || self.target.as_bytes().get(way.prefix_len);
        way.prefix_len == 0 || (!self.seen.forwarded_prefix && rest() == Some(&b'/'))
    }

    /// The caller's trace context, and what other tracing systems add to it, if each is there once.
    pub(super) fn context(&self) -> (Option<&'b [u8]>, Option<&'b [u8]>) {
        if !self.has_trace() {
            return (None, None);
        }
        let single = |kind| {
            let mut those = self.fields.iter();
            let mut those = those.by_ref().filter(|field| Field::of(field.name) == kind);
            let field = those.next().map(|field| field.value);
            field.filter(|_| those.next().is_none())
        };
        (single(Field::Traceparent), single(Field::Tracestate))
    }

    /// Whether its trace goes on here.
    fn has_trace(&self) -> bool {
        self.seen.traces == 1 && self.seen.valid_trace
    }

    /// Writes the head that the replica gets, with this trace context instead of the client's if one is given.
    pub(super) fn write(
        &self,
        out: &mut Vec<u8>,
        way: &Way<'_>,
        context: Option<&[u8; 55]>,
        random: impl FnOnce() -> [u8; 24],
    ) {
        let (prefix, target) = self.target.split_at(way.prefix_len);
        put(
            out,
            &[
                self.method.as_bytes(),
                b" ",
                target.as_bytes(),
                b" HTTP/1.1\r\n",
            ],
        );
        let has_trace = self.has_trace();
        for field in self.fields {
            let keeps = match Field::of(field.name) {
                Field::Connection | Field::ForwardedFor | Field::Special => false,
                Field::Traceparent => has_trace && context.is_none(),
                Field::Tracestate => has_trace,
                Field::Host
                | Field::ContentLength
                | Field::ContentType
                | Field::TransferEncoding
                | Field::ForwardedHost
                | Field::ForwardedProto
                | Field::ForwardedPrefix
                | Field::Opaque => true,
            };
            if keeps {
                put(out, &[field.name.as_bytes(), b": ", field.value, b"\r\n"]);
            }
        }
        self.write_way(out, way, prefix);
        if let Some(context) = context {
            put(out, &[b"traceparent: ", context, b"\r\n"]);
        } else if !has_trace {
            put(out, &[b"traceparent: ", &trace::begin(random()), b"\r\n"]);
        }
        out.extend_from_slice(b"\r\n");
    }

    fn write_way(&self, out: &mut Vec<u8>, way: &Way<'_>, prefix: &str) {
        out.extend_from_slice(b"x-forwarded-for: ");
        if self.seen.forwarded_for {
            for field in self.fields {
                if Field::of(field.name) == Field::ForwardedFor {
                    put(out, &[field.value, b", "]);
                }
            }
        }
        put(out, &[way.client, b"\r\n"]);
        if !self.seen.forwarded_host {
            put(out, &[b"x-forwarded-host: ", self.host.as_bytes(), b"\r\n"]);
        }
        if !self.seen.forwarded_proto {
            put(
                out,
                &[b"x-forwarded-proto: ", way.proto.as_bytes(), b"\r\n"],
            );
        }
        if !prefix.is_empty() {
            put(out, &[b"x-forwarded-prefix: ", prefix.as_bytes(), b"\r\n"]);
        }
    }
}

pub(super) fn put(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
}

impl Field {
    fn of(name: &str) -> Self {
        // Most names are told apart from all of these by their length.
        let candidates: &[(&str, Self)] = match name.len() {
            2 => &[("te", Self::Special)],
            4 => &[("host", Self::Host)],
            6 => &[("expect", Self::Special)],
            7 => &[("upgrade", Self::Special)],
            10 => &[
                ("connection", Self::Connection),
                ("keep-alive", Self::Special),
                ("tracestate", Self::Tracestate),
            ],
            11 => &[("traceparent", Self::Traceparent)],
            12 => &[("content-type", Self::ContentType)],
            14 => &[
                ("content-length", Self::ContentLength),
                ("http2-settings", Self::Special),
            ],
            15 => &[("x-forwarded-for", Self::ForwardedFor)],
            16 => &[
                ("x-forwarded-host", Self::ForwardedHost),
                ("proxy-connection", Self::Special),
            ],
            17 => &[
                ("x-forwarded-proto", Self::ForwardedProto),
                ("transfer-encoding", Self::TransferEncoding),
            ],
            18 => &[("x-forwarded-prefix", Self::ForwardedPrefix)],
            23 => &[("x-forwarded-client-cert", Self::Special)],
            _ => &[],
        };
        let found = candidates
            .iter()
            .find(|(known, _)| name.eq_ignore_ascii_case(known));
        match found {
            Some((_, field)) => *field,
            None if is_alias(name) => Self::Special,
            None => Self::Opaque,
        }
    }
}

/// The trace context in a head that was written.
pub(super) fn trace_of(text: &[u8]) -> Option<HeaderValue> {
    const NAME: &[u8] = b"traceparent:";
    let mut lines = text.split(|&byte| byte == b'\n');
    let line = lines.find(|line| {
        let name = line.get(..NAME.len());
        name.is_some_and(|name| name.eq_ignore_ascii_case(NAME))
    })?;
    HeaderValue::from_bytes(line[NAME.len()..].trim_ascii()).ok()
}

/// Whether a target is a path with or without a query, of characters that may stand there (RFC 3986,
/// 3.3 and 3.4; brackets are tolerated, as the general path does).
fn is_origin_form(target: &str) -> bool {
    target.starts_with('/')
        && target.bytes().all(|byte| {
            byte.is_ascii_graphic()
                && !matches!(
                    byte,
                    b'"' | b'#' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}'
                )
        })
}

/// Whether a `Content-Type` is one of gRPC: a call goes over HTTP/2, and has its own words for what fails.
fn is_grpc(value: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    value
        .get(..GRPC.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(GRPC))
}

/// A host that is one to every reader.
fn host_of(value: &[u8]) -> Option<&str> {
    host::is_legal(value)
        .then(|| std::str::from_utf8(value).ok())
        .flatten()
}

/// Whether a `Connection` field closes; `None` if it says anything else.
fn close_of(value: &[u8]) -> Option<bool> {
    if value.eq_ignore_ascii_case(b"close") {
        Some(true)
    } else {
        value.eq_ignore_ascii_case(b"keep-alive").then_some(false)
    }
}

/// A length of digits alone, of as many as surely fit.
pub(super) fn length_of(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 {
        return None;
    }
    value.iter().try_fold(0, |length: u64, digit| {
        digit
            .is_ascii_digit()
            .then(|| length * 10 + u64::from(digit - b'0'))
    })
}
