//! Until when a request must have been answered, and how whoever it is sent to is told: as calls of gRPC tell it, and
//! else as Envoy does, for which HTTP has no field of its own.

use std::time::Duration;

use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Request};
use tokio::time::Instant;

use crate::answer::Dialect;
use crate::grpc;

/// Milliseconds that the sender will go on waiting.
const EXPECTED: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// When a request must have been answered.
#[derive(Clone, Copy, Debug)]
struct Deadline {
    end: Instant,
    dialect: Dialect,
}

/// Has whoever sends the request on, which came at `now`, tell what is left until `end`. If its client says that it waits
/// for less, that is told.
pub(crate) fn set<B>(request: &mut Request<B>, dialect: Dialect, end: Instant, now: Instant) {
    let end = match dialect {
        Dialect::Grpc => end,
        Dialect::Http => {
            let own = expected(request.headers()).and_then(|own| now.checked_add(own));
            own.map_or(end, |own| own.min(end))
        }
    };
    request.extensions_mut().insert(Deadline { end, dialect });
}

/// Leaves of what is attached to a request only its deadline.
pub(crate) fn keep(extensions: &mut Extensions) {
    let deadline = extensions.remove::<Deadline>();
    extensions.clear();
    if let Some(deadline) = deadline {
        extensions.insert(deadline);
    }
}

/// Tells the next hop how long a request with a deadline may still take.
pub(crate) fn tell<B>(request: &mut Request<B>, now: Instant) {
    let Some(&Deadline { end, dialect }) = request.extensions().get() else {
        return;
    };
    let left = end.saturating_duration_since(now);
    match dialect {
        Dialect::Grpc => grpc::set_timeout(request.headers_mut(), left),
        Dialect::Http => {
            // 0 would mean that there is no end.
            let millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
            let mut value = HeaderValue::from(millis);
            value.set_sensitive(true); // Nothing that comes again: not for HTTP/2's table of fields.
            request.headers_mut().insert(EXPECTED, value);
        }
    }
}

/// How long the client waits, if it says so. 0 says that it waits without end.
fn expected(headers: &HeaderMap) -> Option<Duration> {
    let digits = headers.get(EXPECTED)?.as_bytes();
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let millis: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (millis > 0).then(|| Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_and_never_more_than_the_client_waits_for() {
        let now = Instant::now();
        let end = now + Duration::from_secs(10);
        for (own, told) in [
            (None, "8999"),
            (Some("5000"), "3999"),
            (Some("500"), "1"),
            (Some("1001"), "1"),
            (Some("0"), "8999"),
            (Some("000"), "8999"),
            (Some("60000"), "8999"),
            (Some("18446744073709551615"), "8999"),
            (Some("18446744073709551616"), "8999"),
            (Some("+5000"), "8999"),
            (Some("5s"), "8999"),
            (Some(""), "8999"),
        ] {
            let mut request = Request::new(());
            if let Some(own) = own {
                let headers = request.headers_mut();
                headers.append(EXPECTED, HeaderValue::from_static(own));
                headers.append(EXPECTED, HeaderValue::from_static("99999999"));
            }
            set(&mut request, Dialect::Http, end, now);
            tell(&mut request, now + Duration::from_micros(1_000_001));
            let lines: Vec<_> = request.headers().get_all(EXPECTED).iter().collect();
            assert_eq!(lines, [told], "{own:?}");
        }
    }
}
