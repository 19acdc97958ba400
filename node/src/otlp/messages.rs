//! Spans in OTLP's messages, with the names of OpenTelemetry's semantic conventions for HTTP (1.27 and later).

use std::time::{SystemTime, UNIX_EPOCH};

use http::{StatusCode, Version};
use raftserve_proxy::{RequestSpans, TrySpan};

use super::rpc::any_value::Value;
use super::rpc::span::SpanKind;
use super::rpc::{
    AnyValue, InstrumentationScope, KeyValue, Resource, ResourceSpans, ScopeSpans, Span, Status,
    status,
};

/// The conventions that the names are taken from.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.27.0";

/// Flags of a span whose trace is sampled.
const SAMPLED: u32 = 1;

/// The methods that may name a span (those of RFC 9110, and PATCH); all others are of one kind.
const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
];

/// Who tells spans.
#[derive(Debug)]
pub(super) struct Origin(Resource);

impl Origin {
    pub(super) fn new(peer: &str) -> Self {
        Self(Resource {
            attributes: vec![
                text("service.name", "raftserve"),
                text("service.version", env!("CARGO_PKG_VERSION")),
                text("service.instance.id", peer),
            ],
        })
    }

    /// The message of these requests.
    pub(super) fn spans(&self, batch: &[RequestSpans]) -> ResourceSpans {
        let spans = batch.iter().flat_map(of_request);
        ResourceSpans {
            resource: Some(self.0.clone()),
            scope_spans: vec![ScopeSpans {
                scope: Some(InstrumentationScope {
                    name: "raftserve.proxy".to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                }),
                spans: spans.collect(),
                schema_url: SCHEMA.to_owned(),
            }],
            schema_url: SCHEMA.to_owned(),
        }
    }
}

/// A request's span, and those of its tries.
fn of_request(request: &RequestSpans) -> Vec<Span> {
    let asked = &request.asked;
    let is_known = METHODS.contains(&asked.method.as_str());
    let mut attributes = vec![
        text("url.scheme", asked.scheme),
        text("url.path", &asked.path),
        text("network.protocol.version", protocol(asked.version)),
        text("client.address", asked.client.to_str().unwrap_or_default()),
        text("raftserve.service", asked.service.as_str()),
    ];
    attributes.extend(method(&asked.method));
    let (host, port) = split_host(&asked.host);
    attributes.extend((!host.is_empty()).then(|| text("server.address", host)));
    attributes.extend(port.map(|port| number("server.port", port.into())));
    attributes.extend(answer(request.status));
    // Of what the client did wrong, a server's span is no error.
    let failed = request.status.is_none_or(|status| status.is_server_error());
    let error = error_type(failed, request.status, request.error);
    attributes.extend(error.as_deref().map(|error| text("error.type", error)));
    let name = if is_known { &asked.method } else { "HTTP" };
    let span = Span {
        trace_id: request.trace_id.to_vec(),
        span_id: request.span_id.to_vec(),
        trace_state: request.state.clone(),
        parent_span_id: request.parent_id.map_or(Vec::new(), |id| id.to_vec()),
        name: name.to_owned(),
        kind: SpanKind::Server.into(),
        start_time_unix_nano: nanos(request.start),
        end_time_unix_nano: nanos(request.end),
        attributes,
        status: error.map(|_| failure()),
        flags: SAMPLED,
    };
    let tries = request.tries.iter().enumerate();
    let tries = tries.map(|(at, tried)| of_try(request, at, tried));
    std::iter::once(span).chain(tries).collect()
}

fn of_try(request: &RequestSpans, at: usize, tried: &TrySpan) -> Span {
    let asked = &request.asked;
    let mut attributes = vec![
        text("url.path", &asked.path),
        text("server.address", &tried.address.ip().to_string()),
        number("server.port", tried.address.port().into()),
        text("raftserve.service", asked.service.as_str()),
        number("raftserve.version", tried.version.0.into()),
        number("raftserve.replica", tried.replica.number.into()),
    ];
    attributes.extend(method(&asked.method));
    let again = i64::try_from(at).ok().filter(|&at| at > 0);
    attributes.extend(again.map(|again| number("http.request.resend_count", again)));
    attributes.extend(answer(tried.status));
    let failed = tried.status.is_some_and(|status| status.as_u16() >= 400);
    let error = error_type(failed, tried.status, tried.error);
    attributes.extend(error.as_deref().map(|error| text("error.type", error)));
    let is_known = METHODS.contains(&asked.method.as_str());
    Span {
        trace_id: request.trace_id.to_vec(),
        span_id: tried.span_id.to_vec(),
        trace_state: request.state.clone(),
        parent_span_id: request.span_id.to_vec(),
        name: if is_known { &asked.method } else { "HTTP" }.to_owned(),
        kind: SpanKind::Client.into(),
        start_time_unix_nano: nanos(tried.start),
        end_time_unix_nano: nanos(tried.end),
        attributes,
        status: error.map(|_| failure()),
        flags: SAMPLED,
    }
}

/// The method; one that is not known goes beside, so that what clients invent makes no more kinds.
fn method(method: &str) -> Vec<KeyValue> {
    const KEY: &str = "http.request.method";
    if METHODS.contains(&method) {
        return vec![text(KEY, method)];
    }
    vec![
        text(KEY, "_OTHER"),
        text("http.request.method_original", method),
    ]
}

fn answer(status: Option<StatusCode>) -> Option<KeyValue> {
    status.map(|status| number("http.response.status_code", status.as_u16().into()))
}

/// What failed: what the proxy knows of it, else the status.
fn error_type(
    failed: bool,
    status: Option<StatusCode>,
    error: Option<&'static str>,
) -> Option<String> {
    let by_status = || status.map(|status| status.as_str().to_owned());
    match error {
        // The answer broke off after a good status, or there is none.
        Some(error) if failed || status.is_none_or(|status| status.is_success()) => {
            Some(error.to_owned())
        }
        _ if failed => by_status(),
        _ => None,
    }
}

fn failure() -> Status {
    Status {
        message: String::new(),
        code: status::StatusCode::Error.into(),
    }
}

/// A host's name or address, and its port. Brackets are a part of the text of a host, not of an address.
fn split_host(host: &str) -> (&str, Option<u16>) {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port.parse().ok()),
        _ => (host, None),
    };
    let address = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'));
    (address.unwrap_or(name), port)
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn text(key: &str, value: &str) -> KeyValue {
    with(key, Value::StringValue(value.to_owned()))
}

fn number(key: &str, value: i64) -> KeyValue {
    with(key, Value::IntValue(value))
}

fn with(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
    }
}
