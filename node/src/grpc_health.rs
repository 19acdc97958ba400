//! gRPC's own health checking, as one call without a client library: `grpc.health.v1.Health/Check`.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, TE, USER_AGENT};
use http::{HeaderMap, response};
use http_body_util::Full;
use prost::Message;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::grpc_frame::{PREFIX_BYTES, frame};

/// The method that is called.
pub(crate) const PATH: &str = "/grpc.health.v1.Health/Check";

/// The call that asks about `service`.
pub(crate) fn request(uri: &str, service: &str) -> Result<http::Request<Full<Bytes>>, String> {
    let message = HealthCheckRequest {
        service: service.to_owned(),
    };
    http::Request::post(uri)
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, "raftserve-probe")
        .body(Full::new(frame(&message)))
        .map_err(|error| format!("cannot ask for {PATH}: {error}"))
}

/// Whether the answer says `SERVING`; if not, what it says and what to do.
pub(crate) fn verdict(
    service: &str,
    head: &response::Parts,
    body: &[u8],
    trailers: &HeaderMap,
) -> Result<(), String> {
    let status = head.status.as_u16();
    // Without a message, gRPC's status is in the head.
    let said = trailers.get("grpc-status");
    let Some(said) = said.or_else(|| head.headers.get("grpc-status")) else {
        return Err(format!(
            "{PATH} answered {status} without a grpc-status: no gRPC"
        ));
    };
    let about = match service {
        "" => String::new(),
        service => format!(" of {service}"),
    };
    match Code::from_bytes(said.as_bytes()) {
        Code::Ok => match status_in(body) {
            Some(ServingStatus::Serving) => Ok(()),
            Some(other) => Err(format!("{PATH} answered {}{about}", other.as_str_name())),
            None => Err(format!(
                "{PATH} answered something that is no health status"
            )),
        },
        Code::Unimplemented => Err(format!(
            "the replica has no {PATH}; let it serve grpc.health.v1, or probe it by tcp: {{}}"
        )),
        Code::NotFound => Err(format!(
            "{PATH} knows no service {service:?}; name one that the server reports, or none for the whole server"
        )),
        code => Err(format!("{PATH} failed with {code:?}{about}")),
    }
}

fn status_in(body: &[u8]) -> Option<ServingStatus> {
    let (prefix, message) = body.split_at_checked(PREFIX_BYTES)?;
    if prefix[0] != 0 {
        return None;
    }
    let answer = HealthCheckResponse::decode(message).ok()?;
    ServingStatus::try_from(answer.status).ok()
}
