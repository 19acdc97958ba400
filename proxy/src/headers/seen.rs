//! Which of the fields that a proxy looks at a message has.

use http::HeaderMap;

use super::is_alias;

/// A field that a proxy looks at, and that many messages do not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    /// What might be taken for what the proxy says itself.
    Alias,
    Connection,
    ContentType,
    Expect,
    Host,
    ForwardedClientCert,
    Http2Settings,
    KeepAlive,
    ProxyConnection,
    Te,
    Traceparent,
    Tracestate,
    TransferEncoding,
    Upgrade,
}

/// Which of these a message had when it was looked at. One look at each of its names costs less than a search for each of
/// these, as there are few.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen(u16);

impl Seen {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let fields = headers.keys().filter_map(|name| Field::of(name.as_str()));
        Self(fields.fold(0, |seen, field| seen | 1 << field as u16))
    }

    /// With a field that was put in since.
    pub(crate) fn with(self, field: Field) -> Self {
        Self(self.0 | 1 << field as u16)
    }

    pub(crate) fn has(self, field: Field) -> bool {
        self.0 & 1 << field as u16 != 0
    }
}

impl Field {
    /// The field of a name in lower case.
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "connection" => Self::Connection,
            "content-type" => Self::ContentType,
            "expect" => Self::Expect,
            "host" => Self::Host,
            "x-forwarded-client-cert" => Self::ForwardedClientCert,
            "http2-settings" => Self::Http2Settings,
            "keep-alive" => Self::KeepAlive,
            "proxy-connection" => Self::ProxyConnection,
            "te" => Self::Te,
            "traceparent" => Self::Traceparent,
            "tracestate" => Self::Tracestate,
            "transfer-encoding" => Self::TransferEncoding,
            "upgrade" => Self::Upgrade,
            name if is_alias(name) => Self::Alias,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn every_field_is_seen_whatever_else_is_there() {
        let names = [
            ("x_forwarded-for", Field::Alias),
            ("connection", Field::Connection),
            ("content-type", Field::ContentType),
            ("expect", Field::Expect),
            ("host", Field::Host),
            ("x-forwarded-client-cert", Field::ForwardedClientCert),
            ("http2-settings", Field::Http2Settings),
            ("keep-alive", Field::KeepAlive),
            ("proxy-connection", Field::ProxyConnection),
            ("te", Field::Te),
            ("traceparent", Field::Traceparent),
            ("tracestate", Field::Tracestate),
            ("transfer-encoding", Field::TransferEncoding),
            ("upgrade", Field::Upgrade),
        ];
        for (name, field) in names {
            let mut headers = HeaderMap::new();
            headers.insert("accept", HeaderValue::from_static("a"));
            assert_eq!(Seen::of(&headers), Seen::default());
            let written: HeaderName = name.to_uppercase().parse().expect("a legal name");
            headers.append(&written, HeaderValue::from_static("1"));
            headers.append(&written, HeaderValue::from_static("2"));
            let seen = Seen::of(&headers);
            for (_, each) in names {
                assert_eq!(seen.has(each), each == field, "{name}");
            }
        }
    }
}
