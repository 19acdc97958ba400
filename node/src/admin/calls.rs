//! One call: its deadline, and who answers it.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::Either;
use http::{Extensions, HeaderMap, Request, Response};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout};
use tonic::Status;
use tonic::codegen::Service;
use tonic::service::Routes;
use tonic::transport::server::TcpConnectInfo;

use super::quick::{Body, Quick};

/// How long a request may take to its first answer: over every budget of our own, so that it only
/// ends requests whose client does not finish sending them.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// How long before its caller gives up a call says how far it has come.
const ANSWER_MARGIN: Duration = Duration::from_millis(500);

/// Digits of a timeout, as gRPC bounds them.
const TIMEOUT_DIGITS_MAX: usize = 8;

/// Who answers calls. Cheap to clone.
#[derive(Clone)]
pub(super) struct Calls {
    routes: Routes,
    quick: Arc<Quick>,
}

impl Calls {
    pub(super) fn new(routes: Routes, quick: Quick) -> Self {
        Self {
            routes: routes.prepare(),
            quick: Arc::new(quick),
        }
    }

    /// Answers a call of `caller`.
    pub(super) fn answer(
        &self,
        caller: &TcpConnectInfo,
        mut request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Body>, Infallible>> + Send + 'static {
        if let Some(call) = Quick::call(&request) {
            let quick = Arc::clone(&self.quick);
            return Either::Left(async move { Ok(quick.answer(call, request).await) });
        }
        let asked = asked_timeout(request.headers()).unwrap_or(REQUEST_TIMEOUT);
        let patience = asked.min(REQUEST_TIMEOUT);
        request.extensions_mut().insert(caller.clone());
        request
            .extensions_mut()
            .insert(AnswerBy(Instant::now() + patience));
        // It is always ready.
        let answering = self.routes.clone().call(request);
        Either::Right(async move {
            let answered = timeout(patience, answering).await;
            let answer = answered.unwrap_or_else(|_| Ok(expired().into_http()));
            answer.map(|answer| answer.map(Body::Routed))
        })
    }
}

/// Until when a call is waited for.
#[derive(Clone, Copy, Debug)]
struct AnswerBy(Instant);

/// For how long what a call asks for may be waited for, so that the caller still hears how far it has come.
pub(super) fn patience(call: &Extensions) -> Duration {
    let left = call.get::<AnswerBy>().map_or(REQUEST_TIMEOUT, |by| {
        by.0.saturating_duration_since(Instant::now())
    });
    left.saturating_sub(ANSWER_MARGIN.min(left / 4))
}

/// What a caller is told whose time is up.
pub(super) fn expired() -> Status {
    Status::cancelled("Timeout expired")
}

/// How long the caller waits, if it says so in a way that can be read.
pub(super) fn asked_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > TIMEOUT_DIGITS_MAX {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3_600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_ends_in_time_to_say_how_far_it_has_come() {
        let of = |seconds| {
            let mut call = Extensions::new();
            call.insert(AnswerBy(Instant::now() + Duration::from_secs(seconds)));
            patience(&call)
        };
        let usual = patience(&Extensions::new());
        assert_eq!(usual, REQUEST_TIMEOUT - ANSWER_MARGIN);
        let ten = of(10);
        assert!(ten <= Duration::from_secs(10) - ANSWER_MARGIN, "{ten:?}");
        assert!(ten > Duration::from_secs(5), "{ten:?}");
        assert!(of(1) <= Duration::from_millis(750));
        assert_eq!(of(0), Duration::ZERO);
    }

    #[test]
    fn a_timeout_is_read_in_every_unit_and_not_guessed() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            asked_timeout(&headers)
        };
        assert_eq!(read("2H"), Some(Duration::from_secs(7_200)));
        assert_eq!(read("3M"), Some(Duration::from_secs(180)));
        assert_eq!(read("4S"), Some(Duration::from_secs(4)));
        assert_eq!(read("50m"), Some(Duration::from_millis(50)));
        assert_eq!(read("6u"), Some(Duration::from_micros(6)));
        assert_eq!(read("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for wrong in ["", "5", "S", "5s", "-5S", "123456789n", "1.5S"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
