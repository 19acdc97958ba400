//! The head of a replica's answer: read into slices of the buffer, and written for the client from
//! them.

#[cfg(test)]
mod tests;

use std::mem::MaybeUninit;

use http::{Response, StatusCode};

use super::framing::{Chunks, Framing};
use super::request::{length_of, put};

/// The most fields of an answer's head, as in the general path.
const FIELDS_MAX: usize = 100;

/// What some bytes begin with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// A part of a head, as far as it can be told.
    Partial,
    /// No answer that could be passed on without misunderstanding.
    Malformed,
    /// The head of an interim answer, of so many bytes; the answer comes after it.
    Interim(usize),
    /// A head, now written for the client but for what ends it: see [`finish`].
    Answer(Answer),
}

/// What the head of an answer says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// How many bytes of the buffer it takes.
    pub(super) head_len: usize,
    pub(super) status: StatusCode,
    pub(super) framing: Framing,
    /// Whether the replica keeps the connection once the answer has ended.
    pub(super) keeps: bool,
    has_date: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Connection,
    /// It ends at this hop.
    Hop,
    ContentLength,
    TransferEncoding,
    Date,
    Opaque,
}

/// Reads the head that `bytes` begin with, and writes the client's into `out`.
pub(super) fn read(bytes: &[u8], to_head: bool, out: &mut Vec<u8>) -> Parsed {
    let mut room = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut []);
    let parser = httparse::ParserConfig::default();
    let parsed = parser.parse_response_with_uninit_headers(&mut response, bytes, &mut room);
    let head_len = match parsed {
        Ok(httparse::Status::Complete(head_len)) => head_len,
        Ok(httparse::Status::Partial) => return Parsed::Partial,
        Err(_) => return Parsed::Malformed,
    };
    let status = response
        .code
        .and_then(|code| StatusCode::from_u16(code).ok());
    match status {
        // Nobody asked it to switch.
        None | Some(StatusCode::SWITCHING_PROTOCOLS) => Parsed::Malformed,
        Some(status) if status.is_informational() => Parsed::Interim(head_len),
        Some(status) => answer(&response, head_len, status, to_head, out)
            .map_or(Parsed::Malformed, Parsed::Answer),
    }
}

fn answer(
    response: &httparse::Response<'_, '_>,
    head_len: usize,
    status: StatusCode,
    to_head: bool,
    out: &mut Vec<u8>,
) -> Option<Answer> {
    let fields: &[httparse::Header<'_>] = response.headers;
    let http11 = response.version == Some(1);
    let (mut length, mut chunked, mut keeps) = (None, false, http11);
    let (mut has_date, mut names_fields) = (false, false);
    for field in fields {
        match Field::of(field.name) {
            Field::Connection => {
                for option in options(field.value) {
                    if option.eq_ignore_ascii_case(b"close") {
                        keeps = false;
                    } else if !option.eq_ignore_ascii_case(b"keep-alive") {
                        names_fields = true;
                    }
                }
            }
            Field::ContentLength => {
                let value = length_of(field.value)?;
                if length.replace(value).is_some_and(|other| other != value) {
                    return None;
                }
            }
            Field::TransferEncoding => {
                let known = http11 && field.value.eq_ignore_ascii_case(b"chunked");
                if !known || std::mem::replace(&mut chunked, true) {
                    return None;
                }
            }
            Field::Date => has_date = true,
            Field::Hop | Field::Opaque => {}
        }
    }
    let bodiless = to_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let framing = match (chunked, length) {
        _ if bodiless => Framing::Length(0),
        (true, length) => {
            keeps &= length.is_none(); // Two claims: chunks decide, and it is not trusted again.
            Framing::Chunked(Chunks::of_answer())
        }
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::UntilClose,
    };
    keeps &= framing != Framing::UntilClose;
    let reason = response.reason.filter(|reason| !reason.is_empty());
    let reason = reason.or(status.canonical_reason()).unwrap_or("");
    put(
        out,
        &[
            b"HTTP/1.1 ",
            status.as_str().as_bytes(),
            b" ",
            reason.as_bytes(),
            b"\r\n",
        ],
    );
    for field in fields {
        let kept = match Field::of(field.name) {
            Field::Connection | Field::Hop | Field::ContentLength | Field::TransferEncoding => {
                false
            }
            Field::Date => true,
            Field::Opaque => !(names_fields && is_named(fields, field.name)),
        };
        if kept {
            put(out, &[field.name.as_bytes(), b": ", field.value, b"\r\n"]);
        }
    }
    match (&framing, length) {
        _ if status == StatusCode::NO_CONTENT => {}
        (Framing::Length(_), Some(length)) if !chunked => put_length(out, length),
        (Framing::Length(_), _) => {}
        (Framing::Chunked(_) | Framing::UntilClose, _) => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
    }
    Some(Answer {
        head_len,
        status,
        framing,
        keeps,
        has_date,
    })
}

/// Ends the head that [`read`] began.
pub(super) fn finish(answer: &Answer, closes: bool, date: &[u8], out: &mut Vec<u8>) {
    end(out, closes, (!answer.has_date).then_some(date));
}

/// Writes the head of an answer of the proxy's own, with a body of this length.
pub(super) fn write_own<B>(
    response: &Response<B>,
    length: usize,
    closes: bool,
    date: &[u8],
    out: &mut Vec<u8>,
) {
    let status = response.status();
    let reason = status.canonical_reason().unwrap_or("");
    put(
        out,
        &[
            b"HTTP/1.1 ",
            status.as_str().as_bytes(),
            b" ",
            reason.as_bytes(),
            b"\r\n",
        ],
    );
    for (name, value) in response.headers() {
        put(
            out,
            &[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"],
        );
    }
    put_length(out, length as u64);
    end(out, closes, Some(date));
}

fn end(out: &mut Vec<u8>, closes: bool, date: Option<&[u8]>) {
    if closes {
        out.extend_from_slice(b"connection: close\r\n");
    }
    if let Some(date) = date {
        put(out, &[b"date: ", date, b"\r\n"]);
    }
    out.extend_from_slice(b"\r\n");
}

fn put_length(out: &mut Vec<u8>, length: u64) {
    use std::io::Write;
    let _ = write!(out, "content-length: {length}\r\n"); // A vector takes all.
}

fn options(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|&byte| byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|option| !option.is_empty())
}

/// Whether a `Connection` field names this one, which then ends at this hop.
fn is_named(fields: &[httparse::Header<'_>], name: &str) -> bool {
    fields
        .iter()
        .filter(|field| Field::of(field.name) == Field::Connection)
        .flat_map(|field| options(field.value))
        .any(|option| option.eq_ignore_ascii_case(name.as_bytes()))
}

impl Field {
    fn of(name: &str) -> Self {
        let candidates: &[(&str, Self)] = match name.len() {
            2 => &[("te", Self::Hop)],
            4 => &[("date", Self::Date)],
            7 => &[("upgrade", Self::Hop)],
            10 => &[("connection", Self::Connection), ("keep-alive", Self::Hop)],
            14 => &[("content-length", Self::ContentLength)],
            16 => &[("proxy-connection", Self::Hop)],
            17 => &[("transfer-encoding", Self::TransferEncoding)],
            _ => &[],
        };
        let found = candidates
            .iter()
            .find(|(known, _)| name.eq_ignore_ascii_case(known));
        found.map_or(Self::Opaque, |(_, field)| *field)
    }
}
