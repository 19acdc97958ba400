//! What gRPC lays on HTTP/2: how a call is told from other requests, how long it may take, and how it ends.
//!
//! From "gRPC over HTTP2" and "HTTP to gRPC Status Code Mapping" of the gRPC project.

use std::fmt::Write;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Version};
use tokio::time::Instant;

use crate::body::ResponseBody;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// The largest number that fits into a timeout's eight digits.
const AMOUNT_MAX: u128 = 99_999_999;

/// How a call ends that the proxy ends itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    DeadlineExceeded = 4,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
}

/// Whether a message is gRPC's by its content type. gRPC-Web is not: it is made for HTTP/1, and ends otherwise.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = kind.and_then(|kind| {
        let (start, rest) = kind.split_at_checked(b"application/grpc".len())?;
        start
            .eq_ignore_ascii_case(b"application/grpc")
            .then_some(rest)
    });
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

/// When a call that came at `now` must have ended, if it says so.
pub(crate) fn deadline<B>(request: &Request<B>, now: Instant) -> Option<Instant> {
    now.checked_add(timeout(request.headers())?)
}

/// How long the call may take, if it says so.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(GRPC_TIMEOUT)?.as_bytes();
    let (&unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3_600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// Tells the next hop how long the call may still take.
pub(crate) fn set_timeout(headers: &mut HeaderMap, left: Duration) {
    let units = [
        (left.as_micros(), 'u'),
        (left.as_millis(), 'm'),
        (u128::from(left.as_secs()), 'S'),
        (u128::from(left.as_secs() / 3_600), 'H'),
    ];
    let fitting = units.into_iter().find(|(amount, _)| *amount <= AMOUNT_MAX);
    let (amount, unit) = fitting.unwrap_or((AMOUNT_MAX, 'H'));
    if let Ok(mut value) = HeaderValue::try_from(format!("{amount}{unit}")) {
        value.set_sensitive(true); // Nothing that comes again: not for HTTP/2's table of fields.
        headers.insert(GRPC_TIMEOUT, value);
    }
}

/// The answer to a call that reached no replica: its end alone.
pub(crate) fn trailers_only(code: Code, message: &str) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::whole(bytes::Bytes::new()));
    *response.version_mut() = Version::HTTP_2;
    *response.headers_mut() = end(code, message);
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// The end of a call.
pub(crate) fn end(code: Code, message: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert(GRPC_STATUS, HeaderValue::from(code as u16));
    if let Ok(message) = HeaderValue::try_from(percent_encoded(message)) {
        trailers.insert(GRPC_MESSAGE, message);
    }
    trailers
}

/// A message as gRPC has it in a field: whatever is not visible ASCII, and the percent sign, as `%XX`.
fn percent_encoded(message: &str) -> String {
    let mut encoded = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b' '..=b'$' | b'&'..=b'~' => encoded.push(char::from(byte)),
            _ => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn a_call_is_told_by_its_content_type() {
        for kind in [
            "application/grpc",
            "application/grpc+proto",
            "Application/gRPC;x=1",
        ] {
            assert!(is_grpc(&headers(CONTENT_TYPE, kind)), "{kind}");
        }
        for kind in [
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/json",
            "",
        ] {
            assert!(!is_grpc(&headers(CONTENT_TYPE, kind)), "{kind}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn a_timeout_is_read_in_every_unit_and_no_other() {
        for (text, nanos) in [
            ("1H", 3_600_000_000_000),
            ("2M", 120_000_000_000),
            ("3S", 3_000_000_000),
            ("4m", 4_000_000),
            ("5u", 5_000),
            ("99999999n", 99_999_999),
        ] {
            let read = timeout(&headers(GRPC_TIMEOUT, text));
            assert_eq!(read, Some(Duration::from_nanos(nanos)), "{text}");
        }
        for text in ["", "S", "1", "1s", "-1S", "123456789S", "1.5S", "+1S"] {
            assert_eq!(timeout(&headers(GRPC_TIMEOUT, text)), None, "{text}");
        }
    }

    #[test]
    fn what_remains_is_told_as_exactly_as_eight_digits_allow_and_never_more() {
        for seconds in [0, 1, 99, 100, 99_999, 100_000, 99_999_999, u64::MAX] {
            let left = Duration::from_secs(seconds) + Duration::from_nanos(999);
            let mut told = HeaderMap::new();
            set_timeout(&mut told, left);
            let told = timeout(&told).expect("it can be read");
            assert!(told <= left, "{seconds}");
            let slack = left / 1_000 + Duration::from_micros(1);
            assert!(
                seconds == u64::MAX || left - told <= slack,
                "{seconds}: {told:?}"
            );
        }
    }

    #[test]
    fn a_message_is_made_of_visible_characters() {
        let trailers = end(Code::Unavailable, "50% of ü\n");
        assert_eq!(trailers["grpc-status"], "14");
        assert_eq!(trailers["grpc-message"], "50%25 of %C3%BC%0A");
    }
}
