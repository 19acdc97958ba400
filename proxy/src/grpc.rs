//! What gRPC lays on HTTP/2: how a call is told from other requests, and how it ends.
//!
//! From "gRPC over HTTP2" and "HTTP to gRPC Status Code Mapping" of the gRPC project.

use std::fmt::Write;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response, Version};

use crate::body::ResponseBody;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

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
    fn a_message_is_made_of_visible_characters() {
        let trailers = end(Code::Unavailable, "50% of ü\n");
        assert_eq!(trailers["grpc-status"], "14");
        assert_eq!(trailers["grpc-message"], "50%25 of %C3%BC%0A");
    }
}
