use proptest::prelude::*;

use super::*;

fn map(lines: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        let name: HeaderName = name.parse().expect("a legal name");
        headers.append(name, value.parse().expect("a legal value"));
    }
    headers
}

fn end(headers: &mut HeaderMap) -> Hop {
    let seen = Seen::of(headers);
    end_hop(headers, seen)
}

fn begin(headers: &mut HeaderMap, hop: &Hop) -> Option<HeaderValue> {
    let seen = Seen::of(headers);
    begin_request_hop(headers, seen, hop, Wire::Http1)
}

#[test]
fn fields_of_this_hop_end_here() {
    let mut headers = map(&[
        ("connection", "close, X-One"),
        ("connection", "x-two,,"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("te", "deflate"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("x-one", "1"),
        ("x-two", "2"),
        ("x-two", "3"),
        ("x-three", "4"),
        ("trailer", "x-sum"),
    ]);
    let hop = end(&mut headers);
    assert_eq!(headers, map(&[("x-three", "4"), ("trailer", "x-sum")]));
    let expected = Hop {
        upgrade: None,
        te_trailers: false,
        chunked: true,
    };
    assert_eq!(
        hop, expected,
        "an upgrade counts only if Connection names it"
    );
}

#[test]
fn a_message_cannot_take_away_its_own_host_and_length() {
    let lines = [("host", "a"), ("content-length", "3")];
    let mut headers = map(&lines);
    headers.insert(CONNECTION, HeaderValue::from_static("host, content-length"));
    end(&mut headers);
    assert_eq!(headers, map(&lines));
}

#[test]
fn upgrade_and_trailers_are_asked_for_anew() {
    let mut headers = map(&[
        ("connection", "Upgrade, TE"),
        ("upgrade", "websocket"),
        ("te", "gzip;q=0.5, trailers"),
    ]);
    let hop = end(&mut headers);
    assert!(headers.is_empty());
    let websocket = HeaderValue::from_static("websocket");
    assert_eq!(begin(&mut headers, &hop), Some(websocket));
    let expected = map(&[
        ("upgrade", "websocket"),
        ("connection", "upgrade, te"),
        ("te", "trailers"),
    ]);
    assert_eq!(headers, expected);
}

#[test]
fn an_upgrade_to_h2c_stays_on_this_hop() {
    let mut headers = map(&[
        ("connection", "Upgrade, HTTP2-Settings"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA"),
    ]);
    let hop = end(&mut headers);
    assert_eq!(begin(&mut headers, &hop), None);
    assert!(headers.is_empty());
}

#[test]
fn an_upgrade_to_h2c_stays_on_this_hop_wherever_it_is_named() {
    for (lines, asked) in [
        (&["h2c, x"][..], Some("x")),
        (&["x,H2C , websocket"], Some("x, websocket")),
        (&["H2c", "h2C,"], None),
        (&["websocket", "h2c"], Some("websocket")),
        (&["h2c", "websocket", "foo/2"], Some("websocket, foo/2")),
        (&["h2c/1", "h2cx"], Some("h2cx")),
        (&[" , "], None),
        (&[""], None),
    ] {
        let mut headers = map(&[("connection", "upgrade")]);
        for line in lines {
            headers.append(UPGRADE, HeaderValue::from_static(line));
        }
        let hop = end(&mut headers);
        assert!(headers.is_empty());
        let expected = asked.map(HeaderValue::from_static);
        assert_eq!(begin(&mut headers, &hop), expected, "{lines:?}");
        assert_eq!(headers.get(UPGRADE), expected.as_ref());
        assert_eq!(headers.contains_key(CONNECTION), asked.is_some());
    }
}

#[test]
fn a_switch_is_to_what_was_asked_for_alone() {
    for (agreed, asked, good) in [
        ("websocket", "websocket", true),
        ("WebSocket", "websocket", true),
        ("b", "a, B", true),
        ("b, a", "a,b", true),
        ("b, c", "a, b", false),
        ("websocket/1", "websocket", false),
        ("h2c", "websocket", false),
        ("web", "websocket", false),
        (",", "websocket", false),
        ("", "", false),
    ] {
        let [agreed, asked] = [agreed, asked].map(HeaderValue::from_static);
        assert_eq!(is_asked_for(&agreed, &asked), good, "{agreed:?} {asked:?}");
    }
}

#[test]
fn forwarded_fields_add_to_what_came() {
    let client = HeaderValue::from_static("10.0.0.9");
    let forwarded = Forwarded {
        client: &client,
        proto: "http",
        prefix: "/chat",
    };
    let mut headers = map(&[("host", "Example.com:80")]);
    let host = headers.get(HOST).cloned();
    forwarded.add_to(&mut headers, host);
    let expected = map(&[
        ("host", "Example.com:80"),
        ("x-forwarded-for", "10.0.0.9"),
        ("x-forwarded-host", "Example.com:80"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-prefix", "/chat"),
    ]);
    assert_eq!(headers, expected);

    let mut headers = map(&[
        ("host", "inner"),
        ("x-forwarded-for", "1.1.1.1"),
        ("x-forwarded-for", "2.2.2.2, 3.3.3.3"),
        ("x-forwarded-host", "outer"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-prefix", "/edge/"),
    ]);
    let host = headers.get(HOST).cloned();
    forwarded.add_to(&mut headers, host);
    let expected = map(&[
        ("host", "inner"),
        ("x-forwarded-for", "1.1.1.1, 2.2.2.2, 3.3.3.3, 10.0.0.9"),
        ("x-forwarded-host", "outer"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-prefix", "/edge/chat"),
    ]);
    assert_eq!(headers, expected);
}

const NAMES: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
    "x-a",
    "x-b",
    "cookie",
    "set-cookie",
];

proptest! {
    #[test]
    fn what_is_of_this_hop_goes_and_all_else_stays_in_order(
        lines in proptest::collection::vec((0..NAMES.len(), "[a-z0-9]{1,5}"), 0..20),
        named in proptest::collection::vec(prop_oneof![Just("x-a"), Just("X-B"), Just("close"), Just("nothing"), Just("")], 0..4),
    ) {
        let mut headers = HeaderMap::new();
        for (name, value) in &lines {
            headers.append(NAMES[*name], value.parse().expect("a legal value"));
        }
        headers.append(CONNECTION, named.join(" ,\t").parse().expect("a legal value"));
        let before = headers.clone();
        end(&mut headers);
        for name in &NAMES[..6] {
            prop_assert!(!headers.contains_key(*name));
        }
        let listed = |name: &str| before.get_all(CONNECTION).iter().any(|line| {
            line.to_str().expect("text").split(',').any(|token| token.trim().eq_ignore_ascii_case(name))
        });
        for name in &NAMES[6..] {
            let kept: Vec<_> = headers.get_all(*name).iter().collect();
            let sent: Vec<_> = before.get_all(*name).iter().collect();
            prop_assert_eq!(kept, if listed(name) { Vec::new() } else { sent });
        }
    }
}
