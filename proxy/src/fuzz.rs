//! The parsers of fields, targets and first bytes against mutated input, each beside a second reader that is written
//! otherwise. Those of whole messages are fuzzed beside themselves. `just fuzz 10000000` runs all.

use std::net::Ipv6Addr;
use std::time::Duration;

use futures_util::FutureExt;
use http::header::{CONTENT_LENGTH, COOKIE, HOST, TE};
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use raftserve_model::spec::{HashKey, RouteRule};
use rand::RngExt;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use crate::answer::Dialect;
use crate::fast::fuzz::each;
use crate::headers::{
    BARRED_TRAILERS, Hop, Seen, begin_request_hop, clean_trailers, end_hop, is_asked_for,
    remove_aliases,
};
use crate::http2::calm;
use crate::protocol::{Protocol, detect};
use crate::routes::{Listener, table};
use crate::session::cookie;
use crate::trace::{self, Parent, TRACEPARENT, TRACESTATE};
use crate::upstream::Wire;
use crate::{deadline, grpc, hash_key, host, json_key, rules};

/// Fields by lines, as far as they are any.
fn map(lines: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines.split(|&byte| byte == b'\n') {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else {
            continue;
        };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}

/// All values of a field, lossy, in lower case.
fn texts(headers: &HeaderMap, name: &str) -> Vec<String> {
    let lines = headers.get_all(name).iter();
    lines
        .map(|line| String::from_utf8_lossy(line.as_bytes()).to_ascii_lowercase())
        .collect()
}

#[cfg_attr(test, test)]
pub(crate) fn what_ends_at_this_hop_is_gone_and_nothing_else_is() {
    const HEADS: [&str; 3] = [
        "connection: a, Close ,keep-alive\nte: gzip, Trailers;q=1\nhost: h\ncontent-length: 3\na: 1\nb: 2\na: 3",
        "Connection: upgrade\nconnection:host,content-length,b\nupgrade: websocket\nhost: h\nb: 2\nkeep-alive: 5",
        "te: trailers\ntransfer-encoding: chunked\nproxy-connection: a\nconnection: te, transfer-encoding\nx: y",
    ];
    const ENDS: [&str; 6] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "transfer-encoding",
        "upgrade",
    ];
    each(&HEADS, |input, _| {
        let before = map(input);
        let mut after = before.clone();
        let hop = end_hop(&mut after, Seen::of(&before));
        let connection = texts(&before, "connection").join(",");
        let named: Vec<&str> = connection.split(',').map(trim).collect();
        for name in before.keys() {
            let stays = !ENDS.contains(&name.as_str())
                && (name == HOST || name == CONTENT_LENGTH || !is_named(&named, name));
            let expected = if stays {
                before.get_all(name).iter().collect()
            } else {
                Vec::new()
            };
            let found: Vec<_> = after.get_all(name).iter().collect();
            assert_eq!(found, expected, "{name} of {before:?}");
        }
        assert!(after.len() <= before.len());
        let te = texts(&before, TE.as_str()).join(",");
        let trailers = te.split(',').map(|coding| coding.split(';').next());
        let trailers = trailers.flatten().any(|coding| trim(coding) == "trailers");
        assert_eq!(hop.te_trailers, trailers, "{before:?}");
        assert_eq!(hop.chunked, before.contains_key("transfer-encoding"));
        let upgrades = before.contains_key("upgrade") && named.contains(&"upgrade");
        assert_eq!(hop.upgrade.is_some(), upgrades, "{before:?}");
    });
}

/// Without what HTTP takes for space.
fn trim(text: &str) -> &str {
    text.trim_matches(|it: char| it.is_ascii_whitespace())
}

/// `close` and `keep-alive` are options, not names of fields.
fn is_named(named: &[&str], name: &HeaderName) -> bool {
    name != "close" && named.contains(&name.as_str())
}

#[cfg_attr(test, test)]
pub(crate) fn a_trace_goes_on_if_it_is_valid_and_begins_otherwise() {
    const LINES: [&str; 3] = [
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\ntracestate: a=b",
        "traceparent: cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more",
        "traceparent: 00-00000000000000000000000000000000-0000000000000000-01\ntracestate: a=b",
    ];
    let hex = |text: &str, length: usize| {
        let digits = text
            .bytes()
            .all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
        text.len() == length && digits
    };
    let valid = |value: &[u8]| {
        let text = String::from_utf8_lossy(value);
        let parts: Vec<&str> = text.splitn(5, '-').collect();
        let [version, trace, span, flags, rest @ ..] = &parts[..] else {
            return false;
        };
        let zero = |id: &str| id.bytes().all(|byte| byte == b'0');
        hex(version, 2)
            && *version != "ff"
            && (hex(trace, 32) && !zero(trace))
            && (hex(span, 16) && !zero(span))
            && hex(flags, 2)
            && (rest.is_empty() || *version != "00")
    };
    each(&LINES, |input, _| {
        let before = map(input);
        let mut after = before.clone();
        trace::ensure(&mut after, Seen::of(&before), || [7; 24]);
        let lines: Vec<_> = before.get_all(TRACEPARENT).iter().collect();
        let kept = matches!(&lines[..], [one] if valid(one.as_bytes()));
        let now: Vec<_> = after.get_all(TRACEPARENT).iter().collect();
        assert_eq!(now.len(), 1, "{after:?}");
        assert!(valid(now[0].as_bytes()), "{now:?}");
        assert_eq!(kept, now == lines, "{before:?}");
        assert_eq!(
            after.contains_key(TRACESTATE),
            kept && before.contains_key(TRACESTATE)
        );
        for line in lines {
            let read = Parent::read(line.as_bytes());
            assert_eq!(read.is_some(), valid(line.as_bytes()), "{line:?}");
            if let Some(read) = read {
                let again = trace::line(read.trace_id, read.span_id, read.sampled);
                assert_eq!(again[3..53], line.as_bytes()[3..53]);
            }
        }
    });
}

#[cfg_attr(test, test)]
pub(crate) fn the_time_of_a_call_is_read_as_it_is_written_and_never_grows() {
    const VALUES: [&str; 4] = ["1S", "99999999H", "250m", "00000007n"];
    let now = Instant::now();
    each(&VALUES, |input, random| {
        let Ok(value) = HeaderValue::from_bytes(input) else {
            return;
        };
        let mut request = Request::new(());
        request.headers_mut().insert("grpc-timeout", value);
        let read = grpc::deadline(&request, now);
        let text = String::from_utf8_lossy(input);
        let unit = text.chars().last().and_then(|unit| {
            let nanos: u64 = match unit {
                'H' => 3_600_000_000_000,
                'M' => 60_000_000_000,
                'S' => 1_000_000_000,
                'm' => 1_000_000,
                'u' => 1_000,
                'n' => 1,
                _ => return None,
            };
            Some((unit, nanos))
        });
        let expected = unit.and_then(|(unit, nanos)| {
            let digits = text.strip_suffix(unit)?;
            let all = digits.chars().all(|digit| digit.is_ascii_digit());
            let number: u32 = (all && digits.len() <= 8).then(|| digits.parse().ok())??;
            now.checked_add(Duration::from_nanos(nanos) * number)
        });
        assert_eq!(read, expected, "{text}");
        let Some(end) = read else {
            return;
        };
        // What the next hop is told is such a value again, and no longer.
        let later = now + Duration::from_nanos(random.random_range(0..u64::from(u32::MAX)));
        deadline::set(&mut request, Dialect::Grpc, end, now);
        deadline::tell(&mut request, later);
        let told = grpc::deadline(&request, later);
        assert!(told.expect("it is told") <= end.max(later), "{text}");
    });
}

#[cfg_attr(test, test)]
pub(crate) fn a_cookie_is_the_first_of_its_name() {
    const LINES: [&str; 3] = [
        "cookie: sid=a=b; x=y\ncookie: sid=2",
        "cookie: xsid=1;sid = 3; sid=;sid=4",
        "cookie: a=sid=1; \"sid=2\"; SID=3",
    ];
    each(&LINES, |input, _| {
        let headers = map(input);
        let lines = headers.get_all(COOKIE).iter();
        let joined: Vec<&[u8]> = lines.map(HeaderValue::as_bytes).collect();
        let joined = joined.join(&b';');
        let joined: String = joined.iter().map(|&byte| char::from(byte)).collect();
        let mut pairs = joined.split(';').map(trim);
        let expected = pairs.find_map(|pair| pair.strip_prefix("sid="));
        let found = cookie(&headers, b"sid");
        let found: Option<String> =
            found.map(|value| value.iter().map(|&byte| char::from(byte)).collect());
        assert_eq!(found.as_deref(), expected, "{joined}");
    });
}

#[cfg_attr(test, test)]
pub(crate) fn a_service_is_found_by_a_whole_label_or_a_whole_segment() {
    const TARGETS: [&str; 5] = [
        "svc.example:80 /chat/a",
        "CHAT /svc",
        "[::1]:80 /svc/",
        "h /svcx",
        "svc. //chat",
    ];
    let table = table(&["svc", "chat"]);
    each(&TARGETS, |input, _| {
        let text = String::from_utf8_lossy(input);
        let (host, path) = text.split_once(' ').unwrap_or((&text, "/"));
        let known = |name: &str| ["svc", "chat"].iter().position(|known| *known == name);
        let label = host.split(['.', ':']).next().unwrap_or("");
        let by_host = known(&label.to_ascii_lowercase()).map(|index| (index, 0));
        let segment = path
            .strip_prefix('/')
            .and_then(|rest| rest.split('/').next());
        let by_path = segment.and_then(|name| Some((known(name)?, 1 + name.len())));
        let found = table.resolve(host, path, Listener::Shared);
        let found = found.map(|found| (found.index, found.prefix_len));
        assert_eq!(found, by_host.or(by_path), "{text}");
        if let Some((_, prefix_len)) = found {
            let rest = path.get(prefix_len..).expect("it cuts no character");
            assert!(prefix_len == 0 || rest.is_empty() || rest.starts_with('/'));
        }
    });
}

#[cfg_attr(test, test)]
pub(crate) fn a_rewritten_target_keeps_all_but_the_prefix() {
    const TARGETS: [&str; 4] = ["/v1/a?b=/v1", "/v1", "/v1?x", "/v1x/%2f//y#?z"];
    each(&TARGETS, |input, random| {
        let target = String::from_utf8_lossy(input);
        let pick = |from: [&str; 4], at: usize| Some(from[at].to_owned());
        let rule = RouteRule {
            path_prefix: pick(["/v1", "/v1/", "/", "/v"], random.random_range(0..4)),
            rewrite_prefix: pick(["/", "/new", "/new/", "/v1/v1"], random.random_range(0..4)),
            ..RouteRule::default()
        };
        let rewritten = rules::rewrite(&rule, &target);
        let prefix = rule
            .path_prefix
            .as_deref()
            .unwrap_or("")
            .trim_end_matches('/');
        let new = rule
            .rewrite_prefix
            .as_deref()
            .unwrap_or("")
            .trim_end_matches('/');
        let rest = target.strip_prefix(prefix);
        let whole = rest.filter(|rest| rest.is_empty() || rest.starts_with(['/', '?']));
        match whole {
            None => assert_eq!(rewritten, target),
            Some(rest) => {
                let slash = match new.is_empty() && !rest.starts_with('/') {
                    true => "/",
                    false => "",
                };
                assert_eq!(rewritten, format!("{new}{slash}{rest}"), "{rule:?}");
            }
        }
    });
}

#[cfg_attr(test, test)]
pub(crate) fn the_protocol_is_told_by_the_whole_preface_and_no_byte_is_lost() {
    const BEGINNINGS: [&str; 3] = [
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0",
        "PRI * HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
    ];
    each(&BEGINNINGS, |input, random| {
        let (first, second) = input.split_at(random.random_range(0..=input.len()));
        // A reader in two pieces; one without bytes is its end.
        let pieces = match first.is_empty() {
            true => second.chain(&b""[..]),
            false => first.chain(second),
        };
        let detected = async {
            let (protocol, mut stream) = detect(pieces).await.expect("no error");
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.expect("no error");
            (protocol, all)
        };
        let (protocol, all) = detected.now_or_never().expect("nothing is waited for");
        assert_eq!(all, input);
        let expected = match input.starts_with(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") {
            true => Protocol::Http2,
            false => Protocol::Http1,
        };
        assert_eq!(protocol, expected);
    });
}

#[cfg_attr(test, test)]
pub(crate) fn a_key_in_a_body_is_the_same_however_much_of_the_body_is_there() {
    const BODIES: [&str; 5] = [
        r#"{"a":[1,{"user":"no"}],"user":"alice","b":0}"#,
        r#" { "user" : {"x":null,"y":[true,"\u00e9\n"]} , "user":"bob"}"#,
        r#"{"user":null,"user":"second"}"#,
        r#"{"users":"a","us\u0065r":"b"}"#,
        r#"{"users":"a"}"#,
    ];
    each(&BODIES, |input, random| {
        let whole = json_key::find(input, "/user");
        if let Ok(value) = serde_json::from_slice::<serde_json::Value>(input)
            && String::from_utf8_lossy(input).matches("\"us").count() == 1
        {
            let expected = match value.get("user") {
                None | Some(serde_json::Value::Null) => None,
                Some(serde_json::Value::String(text)) => Some(text.clone().into_bytes()),
                Some(other) => Some(other.to_string().into_bytes()),
            };
            assert_eq!(whole, expected);
        }
        let begun = json_key::find(&input[..random.random_range(0..=input.len())], "/user");
        // Nobody can tell whether a number that all there is ends with goes on.
        let is_number = |key: &Vec<u8>| key.iter().any(u8::is_ascii_digit);
        if let Some(begun) = begun.filter(|begun| !is_number(begun)) {
            assert_eq!(Some(begun), whole);
        }
    });
}

#[cfg_attr(test, test)]
pub(crate) fn frames_are_counted_the_same_however_they_are_cut() {
    const PREFACE: &str = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const FRAMES: [&str; 4] = [
        "\0\0\0\x04\0\0\0\0\0\0\0\x08\x06\0\0\0\0\0\0\0\0\x06\0\0\0\0\0",
        "\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08\0\0\x01\x01\x05\0\0\0\x03a",
        "\0\0\x08\x06\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0",
        "\0\x01\0\0\0\0\0\0\x01\0\0\x08\x06\0\0\0\0\0",
    ];
    each(&FRAMES, |input, random| {
        let stream = [PREFACE.as_bytes(), input].concat();
        let (mut pieces, mut left) = (Vec::new(), &stream[..]);
        while !left.is_empty() {
            let (piece, later) = left.split_at(random.random_range(1..=left.len()));
            pieces.push(piece);
            left = later;
        }
        let (mut expected, mut bytes, mut rest) = (0, 0, input);
        while let [a, b, c, kind, flags, _, _, _, _, payload @ ..] = rest {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            match (kind, flags & 1) {
                (0, _) => bytes += length as u64,
                (6, 0) => expected += 1,
                (4, 0) => expected += 100,
                _ => {}
            }
            rest = payload.get(length..).unwrap_or_default();
        }
        let (cost, data) = calm::counted(pieces.into_iter());
        assert_eq!(data, bytes, "{input:?}");
        // More may be told only of so much at once.
        if expected < 10_000 {
            assert_eq!(cost, expected, "{input:?}");
        }
    });
}

#[cfg_attr(test, test)]
pub(crate) fn a_key_in_a_query_is_the_first_of_its_name() {
    const QUERIES: [&str; 4] = [
        "user=a&user=b",
        "xuser=1&user&user=&user=2",
        "a=user=1&user=b=c",
        "%75ser=a&USER=b",
    ];
    let (source, headers) = (HashKey::Query("user".to_owned()), HeaderMap::new());
    each(&QUERIES, |input, _| {
        let query = String::from_utf8_lossy(input);
        let found = hash_key::find(&source, &headers, Some(&query));
        let begins = |&(at, _): &(usize, &str)| at == 0 || query[..at].ends_with('&');
        let first = query.match_indices("user=").find(begins);
        let expected = first.map(|(at, name)| {
            let value = &query[at + name.len()..];
            value.find('&').map_or(value, |end| &value[..end])
        });
        assert_eq!(found, expected.map(str::as_bytes), "{query}");
    });
}

#[cfg_attr(test, test)]
pub(crate) fn a_host_is_legal_if_every_reader_takes_it_for_the_same() {
    const HOSTS: [&str; 6] = [
        "svc.example:80",
        "[::1]:8080",
        "[::ffff:1.2.3.4]",
        "a_b-c~!$&'()*+;=:00080",
        "user@h",
        "h,h2",
    ];
    let is_port = |text: &str| text.len() <= 5 && text.bytes().all(|it| it.is_ascii_digit());
    let is_name = |it: char| it.is_ascii_alphanumeric() || "-._~!$&'()*+;=".contains(it);
    each(&HOSTS, |input, _| {
        let expected = std::str::from_utf8(input).is_ok_and(|text| {
            if let Some(literal) = text.strip_prefix('[') {
                let Some((address, port)) = literal.split_once(']') else {
                    return false;
                };
                let port = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
                return port && address.parse::<Ipv6Addr>().is_ok();
            }
            match text.split_once(':') {
                None => text.chars().all(is_name),
                Some((name, port)) => {
                    !name.is_empty() && name.chars().all(is_name) && is_port(port)
                }
            }
        });
        assert_eq!(host::is_legal(input), expected, "{input:?}");
    });
}

#[cfg_attr(test, test)]
pub(crate) fn a_switch_of_protocols_is_to_what_was_asked_for_and_never_to_cleartext_http_2() {
    const LINES: [&str; 5] = [
        "websocket",
        "h2c, WebSocket/13",
        "h2c/1 ,,H2C",
        "a, b,\tc",
        "h2cx, \"h2c\"",
    ];
    let names = |value: &HeaderValue| {
        let text: String = value.as_bytes().iter().map(|&it| char::from(it)).collect();
        let names = text.split(',').map(|it| trim(it).to_ascii_lowercase());
        names.filter(|it| !it.is_empty()).collect::<Vec<_>>()
    };
    each(&LINES, |input, random| {
        let Ok(asked) = HeaderValue::from_bytes(input) else {
            return;
        };
        let hop = Hop {
            upgrade: Some(asked.clone()),
            ..Hop::default()
        };
        let mut headers = HeaderMap::new();
        let seen = Seen::of(&headers);
        let sent = begin_request_hop(&mut headers, seen, &hop, Wire::Http1);
        assert_eq!(headers.get("upgrade"), sent.as_ref());
        assert_eq!(headers.contains_key("connection"), sent.is_some());
        let is_h2c = |name: &String| trim(name.split('/').next().unwrap_or("")) == "h2c";
        let mut expected = names(&asked);
        expected.retain(|name| !is_h2c(name));
        let sent_names = sent.as_ref().map(names).unwrap_or_default();
        assert_eq!(sent_names, expected, "{asked:?}");

        let (from, to) = (random.random_range(0..3), random.random_range(0..9));
        let answer = [names(&asked).get(from..to).unwrap_or_default(), &expected].concat();
        let answer = HeaderValue::try_from(answer.join(","));
        let (Some(sent), Ok(answer)) = (sent, answer) else {
            return;
        };
        let answered = names(&answer);
        let all = answered.iter().all(|name| sent_names.contains(name));
        let is_good = all && !answered.is_empty();
        assert_eq!(
            is_asked_for(&answer, &sent),
            is_good,
            "{answer:?}, {sent:?}"
        );
    });
}

#[cfg_attr(test, test)]
pub(crate) fn what_a_client_waits_for_is_told_on_and_never_grows() {
    const VALUES: [&str; 4] = [
        "5000",
        "0",
        "00000000000000000000001",
        "18446744073709551615",
    ];
    const NAME: &str = "x-envoy-expected-rq-timeout-ms";
    const OURS: u64 = 10_000;
    let now = Instant::now();
    each(&VALUES, |input, random| {
        let Ok(value) = HeaderValue::from_bytes(input) else {
            return;
        };
        let mut request = Request::new(());
        request.headers_mut().insert(NAME, value);
        let end = now + Duration::from_millis(OURS);
        deadline::set(&mut request, Dialect::Http, end, now);
        let passed = random.random_range(0..2 * OURS);
        deadline::tell(&mut request, now + Duration::from_millis(passed));
        let digits = std::str::from_utf8(input)
            .ok()
            .filter(|text| !text.is_empty() && text.chars().all(|digit| digit.is_ascii_digit()));
        let digits = digits.map(|text| text.trim_start_matches('0'));
        // What has more digits is longer than ours.
        let own = digits.filter(|text| (1..=9).contains(&text.len()));
        let own = own.and_then(|text| text.parse::<u64>().ok());
        let waits = own.map_or(OURS, |own| own.min(OURS));
        let expected = waits.saturating_sub(passed).max(1).to_string();
        let told: Vec<_> = request.headers().get_all(NAME).iter().collect();
        assert_eq!(told, [expected.as_str()], "{input:?}");
    });
}

#[cfg_attr(test, test)]
pub(crate) fn nothing_is_left_that_reads_like_what_the_proxy_says() {
    const HEADS: [&str; 3] = [
        "x-forwarded_for: 1\nx-forwarded-for: 2\nX_Forwarded_Proto: a\nx-own: 1",
        "x_forwarded-client_cert: a\nx-forwarded-prefix: /a\nx_own: 2\nhost: h",
        "content_length: 3\nauthorization: a\nx_forwarded_host: h\ntrailer_x: b",
    ];
    const SAID: [&str; 5] = [
        "x-forwarded-client-cert",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-prefix",
        "x-forwarded-proto",
    ];
    let as_variable = |name: &str| name.to_ascii_uppercase().replace('-', "_");
    each(&HEADS, |input, _| {
        let before = map(input);
        let (mut head, mut trailers) = (before.clone(), before.clone());
        remove_aliases(&mut head, Seen::of(&before));
        clean_trailers(&mut trailers);
        for name in before.keys() {
            let name = name.as_str();
            let reads_like = |known: &&str| as_variable(known) == as_variable(name);
            let is_alias = !SAID.contains(&name) && SAID.iter().any(reads_like);
            assert_eq!(head.contains_key(name), !is_alias, "{name} of {before:?}");
            let is_barred = BARRED_TRAILERS.iter().any(reads_like);
            assert_eq!(
                trailers.contains_key(name),
                !is_barred,
                "{name} of {before:?}"
            );
        }
    });
}
