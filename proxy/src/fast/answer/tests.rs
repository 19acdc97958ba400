use super::*;

/// The head for the client, in lower case, and what was understood.
fn passed(head: &str, to_head: bool) -> (String, Answer) {
    let mut out = Vec::new();
    match read(head.as_bytes(), to_head, &mut out) {
        Parsed::Answer(answer) => {
            assert_eq!(answer.head_len, head.len());
            finish(&answer, false, b"now", &mut out);
            (String::from_utf8(out).expect("text").to_lowercase(), answer)
        }
        other => panic!("{head}: {other:?}"),
    }
}

#[test]
fn what_ends_at_this_hop_is_not_passed_on() {
    let (head, answer) = passed(
        "HTTP/1.1 200 Fine\r\nConnection: x-own, Keep-Alive\r\nX-Own: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\n\
         Proxy-Connection: a\r\nSet-Cookie: a\r\nDate: then\r\nSet-Cookie: b\r\nContent-Length: 7\r\n\r\n",
        false,
    );
    let expected = "http/1.1 200 fine\r\nset-cookie: a\r\ndate: then\r\nset-cookie: b\r\ncontent-length: 7\r\n\r\n";
    assert_eq!(head, expected);
    assert_eq!((answer.framing, answer.keeps), (Framing::Length(7), true));
}

#[test]
fn the_framing_is_the_one_that_the_standard_gives() {
    let chunked = || Framing::Chunked(Chunks::of_answer());
    for (head, framing, keeps, field) in [
        (
            "1.1 200 OK\r\ncontent-length: 7\r\ncontent-length: 7",
            Framing::Length(7),
            true,
            "content-length: 7",
        ),
        (
            "1.1 200 OK\r\nconnection: close\r\ncontent-length: 7",
            Framing::Length(7),
            false,
            "content-length: 7",
        ),
        (
            "1.1 200 OK\r\nTransfer-Encoding: Chunked",
            chunked(),
            true,
            "transfer-encoding: chunked",
        ),
        (
            "1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 7",
            chunked(),
            false,
            "transfer-encoding: chunked",
        ),
        (
            "1.1 200 OK",
            Framing::UntilClose,
            false,
            "transfer-encoding: chunked",
        ),
        (
            "1.0 200 OK\r\ncontent-length: 7",
            Framing::Length(7),
            false,
            "content-length: 7",
        ),
        (
            "1.0 200 OK",
            Framing::UntilClose,
            false,
            "transfer-encoding: chunked",
        ),
        (
            "1.1 304 Not Modified\r\ncontent-length: 7",
            Framing::Length(0),
            true,
            "content-length: 7",
        ),
        (
            "1.1 204 No Content\r\ncontent-length: 7",
            Framing::Length(0),
            true,
            "date: now",
        ),
    ] {
        let (written, answer) = passed(&format!("HTTP/{head}\r\n\r\n"), false);
        assert_eq!((answer.framing, answer.keeps), (framing, keeps), "{head}");
        let framed =
            |line: &&str| line.starts_with("content-length") || line.starts_with("transfer");
        let lines: Vec<&str> = written.lines().filter(framed).collect();
        let expected: &[&str] = if field == "date: now" { &[] } else { &[field] };
        assert_eq!(lines, expected, "{head}");
        assert!(written.ends_with("date: now\r\n\r\n"), "{head}");
    }
    let (written, answer) = passed("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n", true);
    assert!(written.contains("content-length: 7"));
    assert_eq!((answer.framing, answer.keeps), (Framing::Length(0), true));
}

#[test]
fn what_could_be_misunderstood_is_malformed() {
    for head in [
        "SMTP ready\r\n\r\n",
        "HTTP/2 200 OK\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1, 1\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nbad name: x\r\n\r\n",
    ] {
        assert_eq!(
            read(head.as_bytes(), false, &mut Vec::new()),
            Parsed::Malformed,
            "{head}"
        );
    }
    let early = "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n";
    let interim = read(early.as_bytes(), false, &mut Vec::new());
    assert_eq!(interim, Parsed::Interim(early.len()));
    let partial = read(b"HTTP/1.1 200 OK\r\nx", false, &mut Vec::new());
    assert_eq!(partial, Parsed::Partial);
}
