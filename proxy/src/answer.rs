//! The answers that the proxy makes itself: JSON that says what is wrong and what to do.

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::json;

use crate::body::ResponseBody;
use crate::grpc::{self, Code};
use crate::headers::{Field, Seen};
use crate::routes::{RouteTable, ServiceRoute};

/// How many services a 404 names at most: enough to see a typing error, little enough to send.
const NAMES_MAX: usize = 100;

/// How a request's sender expects to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// By a status and JSON.
    Http,
    /// By the status of a call, under status 200.
    Grpc,
}

impl Dialect {
    /// That of a request with these fields, which were `seen`.
    pub(crate) fn of(headers: &HeaderMap, seen: Seen) -> Self {
        match seen.has(Field::ContentType) && grpc::is_grpc(headers) {
            true => Self::Grpc,
            false => Self::Http,
        }
    }
}

/// Why the proxy answers in a replica's stead.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The request cannot be forwarded as it is.
    BadRequest(&'static str),
    /// Its body is larger than its service, or its rule, allows.
    TooLarge { bytes_max: Option<u64> },
    /// Its head is larger than its service allows.
    HeadTooLarge,
    /// CONNECT asks for a tunnel to anywhere.
    Connect,
    /// This proxy has not been told yet what services there are.
    Starting,
    /// No replica may get new requests, and none became ready in time.
    NoneReady,
    /// No replica may get new requests, and as many wait for one as may.
    QueueFull,
    /// Every replica tried refused the connection; nothing was sent.
    Unreachable,
    /// A replica accepted the connection, and HTTP/2 did not begin on it; nothing was sent.
    NoHttp2,
    /// A replica accepts connections, and all places on them were taken; nothing was sent.
    Full,
    /// A replica refused the request, and did not act on it.
    Refused,
    /// A replica did not accept the connection in time; nothing was sent.
    ConnectTimeout,
    /// This peer could open no connection to any; nothing was sent.
    Exhausted,
    /// The replica broke off before its answer began. The request may have been acted on.
    Broke,
    /// The replica stayed silent for too long.
    Silent,
    /// The client stopped sending its request before that was whole.
    ClientSilent,
    /// The request's whole time ran out before its answer began.
    Overdue,
    /// The session's replica, or its binding, was not to be had in time, and no other may serve it.
    Session(String),
    /// The session is refused, and why.
    SessionRefused(String),
}

impl Refusal {
    /// The client sends what is no body.
    pub(crate) const BAD_BODY: Self =
        Self::BadRequest("the request's body broke off, or breaks the protocol");

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::ClientSilent => StatusCode::REQUEST_TIMEOUT,
            Self::Starting
            | Self::NoneReady
            | Self::Exhausted
            | Self::Full
            | Self::Refused
            | Self::Session(_)
            | Self::SessionRefused(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::QueueFull => StatusCode::TOO_MANY_REQUESTS,
            Self::Unreachable | Self::NoHttp2 | Self::Broke => StatusCode::BAD_GATEWAY,
            Self::ConnectTimeout | Self::Silent | Self::Overdue => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// What gRPC's own clients say of a call whose connection breaks is said of it here: that the service is
    /// unavailable. Of one that a silent replica may still be at work on, that its time is over.
    fn grpc_code(&self) -> Code {
        match self {
            Self::BadRequest(_) | Self::Connect => Code::Internal,
            Self::Starting
            | Self::NoneReady
            | Self::QueueFull
            | Self::Unreachable
            | Self::NoHttp2
            | Self::Full
            | Self::Refused
            | Self::ConnectTimeout
            | Self::Exhausted
            | Self::Broke
            | Self::Session(_) => Code::Unavailable,
            Self::Silent | Self::ClientSilent | Self::Overdue => Code::DeadlineExceeded,
            Self::TooLarge { .. } | Self::HeadTooLarge | Self::SessionRefused(_) => {
                Code::ResourceExhausted
            }
        }
    }

    /// The refusal's name, in answers and in the access log.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad_request",
            Self::TooLarge { .. } => "request_too_large",
            Self::HeadTooLarge => "request_head_too_large",
            Self::Connect => "connect_not_supported",
            Self::Starting => "starting",
            Self::NoneReady => "no_ready_replica",
            Self::QueueFull => "queue_full",
            Self::Unreachable | Self::NoHttp2 => "replica_unreachable",
            Self::Full => "replica_full",
            Self::Refused => "replica_refused",
            Self::ConnectTimeout => "replica_connect_timeout",
            Self::Exhausted => "peer_exhausted",
            Self::Broke => "replica_broke_off",
            Self::Silent => "replica_timeout",
            Self::ClientSilent => "request_body_timeout",
            Self::Overdue => "request_timeout",
            Self::Session(_) => "session_unavailable",
            Self::SessionRefused(_) => "session_refused",
        }
    }

    fn message(&self, service: Option<&ServiceRoute>) -> String {
        let name = service.map_or("", |service| service.name.as_str());
        match self {
            Self::BadRequest(why) => (*why).to_owned(),
            Self::TooLarge { bytes_max } => {
                let bytes = bytes_max.unwrap_or_default();
                format!(
                    "the request's body is larger than the {bytes} bytes that service {name} allows"
                )
            }
            Self::HeadTooLarge => {
                let bytes = service.and_then(|service| service.traffic.request_head_bytes_max);
                let bytes = bytes.unwrap_or_default();
                format!(
                    "the request's target and header fields are larger than the {bytes} bytes that service {name} allows; send fewer or smaller cookies and fields"
                )
            }
            Self::Connect => "this is no forward proxy: CONNECT is not supported".to_owned(),
            Self::Starting => {
                "this peer is still learning what services there are; try another, or again shortly"
                    .to_owned()
            }
            Self::NoneReady => format!("service {name} has no ready replica; try again shortly"),
            Self::QueueFull => format!(
                "service {name} has no ready replica, and as many requests wait for one as may; try again shortly"
            ),
            Self::Unreachable => {
                format!("no replica of service {name} accepted a connection; nothing was sent")
            }
            Self::NoHttp2 => format!(
                "a replica of service {name} accepted a connection, and speaks no HTTP/2 or broke off as it began; nothing was sent; _metadata.raftserve.traffic.upstream.protocol says what replicas speak"
            ),
            Self::Full => format!(
                "a replica of service {name} has as many requests at once as its HTTP/2 connections allow (SETTINGS_MAX_CONCURRENT_STREAMS), and new connections were full in time; nothing was sent; try again shortly"
            ),
            Self::Refused => format!(
                "a replica of service {name} refused the request (REFUSED_STREAM or GOAWAY) and did not act on it; try again shortly"
            ),
            Self::ConnectTimeout => {
                format!(
                    "no replica of service {name} accepted a connection in time; nothing was sent"
                )
            }
            Self::Exhausted => {
                "this peer has no more files or ports for connections to replicas; nothing was sent; try another peer, or again shortly"
                    .to_owned()
            }
            Self::Broke => {
                format!("a replica of service {name} closed the connection before it answered")
            }
            Self::Silent => format!("a replica of service {name} did not answer in time"),
            Self::ClientSilent => {
                "no answer began, and the rest of the request did not come in time".to_owned()
            }
            Self::Overdue => format!("the time that service {name} allows a request ran out"),
            Self::Session(why) => {
                format!("this session of service {name} cannot be served now: {why}")
            }
            Self::SessionRefused(why) => {
                format!("this session of service {name} is refused: {why}")
            }
        }
    }

    /// The answer, for a request of `service` if it named one.
    pub(crate) fn answer(
        &self,
        service: Option<&ServiceRoute>,
        dialect: Dialect,
    ) -> Response<ResponseBody> {
        if dialect == Dialect::Grpc {
            return grpc::trailers_only(self.grpc_code(), &self.message(service));
        }
        let body = json!({ "error": self.code(), "message": self.message(service) });
        let mut response = json_response(self.status(), &body);
        let headers = response.headers_mut();
        if matches!(
            self,
            Self::BadRequest(_) | Self::TooLarge { .. } | Self::ClientSilent
        ) {
            // What follows it may not be a request, or is not worth reading. HTTP/2 knows where each ends, and
            // drops the field.
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        match self {
            Self::Starting
            | Self::NoneReady
            | Self::QueueFull
            | Self::Session(_)
            | Self::SessionRefused(_)
            | Self::Exhausted
            | Self::Full
            | Self::Refused
            | Self::NoHttp2
            | Self::Unreachable => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Self::Connect => {
                let allowed = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE";
                headers.insert(ALLOW, HeaderValue::from_static(allowed));
            }
            Self::BadRequest(_)
            | Self::TooLarge { .. }
            | Self::HeadTooLarge
            | Self::ConnectTimeout
            | Self::Broke
            | Self::Silent
            | Self::ClientSilent
            | Self::Overdue => {}
        }
        response
    }
}

/// 404 for a request that names no service, with the names that there are. gRPC says of a call that it is not
/// implemented.
pub(crate) fn no_such_service(table: &RouteTable, dialect: Dialect) -> Response<ResponseBody> {
    let services = table.services();
    let names: Vec<&str> = services
        .iter()
        .take(NAMES_MAX)
        .map(|service| service.name.as_str())
        .collect();
    let message = if names.is_empty() {
        "there is no service here yet"
    } else {
        "name a service by the first label of the host or by the path prefix /NAME/"
    };
    if dialect == Dialect::Grpc {
        return grpc::trailers_only(Code::Unimplemented, &format!("no such service: {message}"));
    }
    let body = json!({
        "error": "no_such_service",
        "message": message,
        "services": names,
        "services_total": services.len(),
    });
    json_response(StatusCode::NOT_FOUND, &body)
}

fn json_response(status: StatusCode, body: &serde_json::Value) -> Response<ResponseBody> {
    let mut text = body.to_string();
    text.push('\n');
    let mut response = Response::new(ResponseBody::whole(Bytes::from(text)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
