use super::*;

const WAY: Way<'_> = Way {
    client: b"10.0.0.9",
    proto: "http",
    prefix_len: 0,
};

fn room<'b>() -> Fields<'b> {
    [const { MaybeUninit::uninit() }; FIELDS_MAX]
}

/// What becomes of a head: the head for the replica in lower case, or which other way it went.
fn forwarded(head: &str, prefix_len: usize) -> String {
    let mut room = room();
    match PlainRequest::read(head.as_bytes(), &mut room) {
        Parsed::Partial => "partial".to_owned(),
        Parsed::Other => "other".to_owned(),
        Parsed::Plain(plain) => {
            assert_eq!(plain.head_len, head.len());
            let way = Way { prefix_len, ..WAY };
            if !plain.fits(&way) {
                return "other".to_owned();
            }
            let mut out = Vec::new();
            plain.write(&mut out, &way, None, || [0x11; 24]);
            String::from_utf8(out).expect("text").to_lowercase()
        }
    }
}

#[test]
fn a_plain_head_is_forwarded_with_its_way() {
    let written = forwarded(
        "POST /svc/a?b=/c HTTP/1.1\r\nHost: H:1\r\nX-Own:  v \r\nContent-Length: 3\r\nConnection: Keep-Alive\r\n\r\n",
        4,
    );
    let expected = "post /a?b=/c http/1.1\r\nhost: h:1\r\nx-own: v\r\ncontent-length: 3\r\n\
        x-forwarded-for: 10.0.0.9\r\nx-forwarded-host: h:1\r\nx-forwarded-proto: http\r\nx-forwarded-prefix: /svc\r\n\
        traceparent: 00-11111111111111111111111111111111-1111111111111111-01\r\n\r\n";
    assert_eq!(written, expected);
}

#[test]
fn what_proxies_before_this_one_said_stays() {
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let head = format!(
        "GET / HTTP/1.1\r\nhost: h\r\nx-forwarded-for: 1.1.1.1\r\nx-forwarded-host: first\r\n\
         x-forwarded-proto: https\r\nx-forwarded-for: 2.2.2.2, 3.3.3.3\r\nx-forwarded-prefix: /p\r\ntraceparent: {trace}\r\ntracestate: a=b\r\n\r\n"
    );
    let expected = format!(
        "get / http/1.1\r\nhost: h\r\nx-forwarded-host: first\r\nx-forwarded-proto: https\r\nx-forwarded-prefix: /p\r\n\
         traceparent: {trace}\r\ntracestate: a=b\r\nx-forwarded-for: 1.1.1.1, 2.2.2.2, 3.3.3.3, 10.0.0.9\r\n\r\n"
    );
    assert_eq!(forwarded(&head, 0), expected);
    let broken = head.replace(trace, "00-junk");
    let written = forwarded(&broken, 0);
    assert!(!written.contains("junk") && !written.contains("tracestate"));
    assert_eq!(written.matches("traceparent: 00-1111").count(), 1);
    let several = head.replace("tracestate: a=b", &format!("traceparent: {trace}"));
    assert_eq!(forwarded(&several, 0).matches("traceparent").count(), 1);
}

#[test]
fn what_is_not_plain_is_left_to_the_general_path() {
    let with = |field: &str| format!("POST / HTTP/1.1\r\nhost: h\r\n{field}\r\n\r\n");
    for field in [
        "te: trailers",
        "Content-Type: Application/GRPC+proto",
        "Expect: 100-continue",
        "upgrade: websocket",
        "HTTP2-Settings: x",
        "keep-alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "X_Forwarded_Client_Cert: a",
        "x-forwarded_for: 1.1.1.1",
        "X_FORWARDED-HOST: a",
        "x_forwarded_proto: https",
        "x_forwarded_prefix: /p",
        "connection: upgrade",
        "connection: close, x-own",
        "connection: close\r\nconnection: close",
        "host: h",
        "content-length: +1",
        "content-length: 1\r\ncontent-length: 1",
        "content-length: 1, 1",
        "content-length:",
        "content-length: 99999999999999999999",
        "content-length: 1\r\ntransfer-encoding: chunked",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: xchunked",
        "x-folded: a\r\n b",
        "bad name: x",
        "x-control: \x01",
    ] {
        assert_eq!(forwarded(&with(field), 0), "other", "{field}");
    }
    for head in [
        "CONNECT h:1 HTTP/1.1\r\nhost: h\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nhost: h\r\n\r\n",
        "GET http://h/ HTTP/1.1\r\nhost: h\r\n\r\n",
        "GET /a#b HTTP/1.1\r\nhost: h\r\n\r\n",
        "GET /\u{e4} HTTP/1.1\r\nhost: h\r\n\r\n",
        "GET / HTTP/1.0\r\nhost: h\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: \u{e4}\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00",
    ] {
        assert_eq!(forwarded(head, 0), "other", "{head}");
    }
    let fields = "a: b\r\n".repeat(FIELDS_MAX);
    assert_eq!(forwarded(&with(fields.trim_end()), 0), "other");
    let prefix = "GET /svc/ HTTP/1.1\r\nhost: h\r\nx-forwarded-prefix: /outer\r\n\r\n";
    assert_eq!(forwarded(prefix, 4), "other");
    for nothing_left in [
        "GET /svc HTTP/1.1\r\nhost: h\r\n\r\n",
        "GET /svc?q HTTP/1.1\r\nhost: h\r\n\r\n",
    ] {
        assert_eq!(forwarded(nothing_left, 4), "other");
    }
    assert_eq!(forwarded("GET / HTTP/1.1\r\nhost", 0), "partial");
    assert_eq!(forwarded("", 0), "partial");
}

#[test]
fn every_known_name_is_found_whatever_its_case() {
    for (name, field) in [
        ("Te", Field::Special),
        ("Host", Field::Host),
        ("Expect", Field::Special),
        ("Upgrade", Field::Special),
        ("Connection", Field::Connection),
        ("Keep-Alive", Field::Special),
        ("Tracestate", Field::Tracestate),
        ("Traceparent", Field::Traceparent),
        ("Content-Length", Field::ContentLength),
        ("Content-Type", Field::ContentType),
        ("HTTP2-Settings", Field::Special),
        ("X-Forwarded-For", Field::ForwardedFor),
        ("X-Forwarded-Host", Field::ForwardedHost),
        ("X-Forwarded-Proto", Field::ForwardedProto),
        ("X-Forwarded-Prefix", Field::ForwardedPrefix),
        ("Proxy-Connection", Field::Special),
        ("Transfer-Encoding", Field::TransferEncoding),
        ("X_Forwarded-Client-Cert", Field::Special),
        ("Upgrade-Insecure-Requests", Field::Opaque),
        ("X_Forwarded_Port", Field::Opaque),
        ("X_Forwarded", Field::Opaque),
        ("", Field::Opaque),
    ] {
        assert_eq!(Field::of(name), field, "{name}");
    }
}
