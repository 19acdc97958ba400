use super::*;

/// Follows a request's chunked body in pieces of this size: what of it was used, and whether that was all.
fn follow(bytes: &[u8], piece: usize) -> Result<(usize, bool), Malformed> {
    follow_as(Chunks::of_request(), bytes, piece)
}

fn follow_as(chunks: Chunks, bytes: &[u8], piece: usize) -> Result<(usize, bool), Malformed> {
    let mut framing = Framing::Chunked(chunks);
    let mut used = 0;
    for piece in bytes.chunks(piece) {
        let count = framing.advance(piece)?;
        used += count;
        if count < piece.len() {
            break;
        }
    }
    Ok((used, framing.is_done()))
}

#[test]
fn a_chunked_body_ends_at_its_last_line_however_it_is_cut() {
    for (body, rest) in [
        ("0\r\n\r\n", ""),
        ("3\r\nabc\r\n0\r\n\r\n", "GET / HTTP/1.1\r\n"),
        ("00A;x=\"y\"\r\n0\r\n\r\n01234\r\n0\r\n\r\n", "0\r\n\r\n"),
        ("1 \t;x\r\nb\r\n0;\r\n\r\n", "0"),
        ("1 \r\na\r\n0\r\nx-sum: 1\r\ny: 2\r\n\r\n", "\r\n"),
        ("0\r\nhosts:host: a\r\nX-Te:\r\n\r\n", "x"),
    ] {
        let whole = format!("{body}{rest}");
        for piece in 1..=whole.len() {
            let followed = follow(whole.as_bytes(), piece);
            assert_eq!(followed, Ok((body.len(), true)), "{whole:?} by {piece}");
        }
        for cut in 0..body.len() {
            assert_eq!(follow(&body.as_bytes()[..cut], 7), Ok((cut, false)));
        }
    }
}

#[test]
fn what_two_readers_might_tell_differently_is_malformed() {
    for body in [
        "\r\n",
        "x\r\n",
        "-1\r\n",
        "+1\r\na\r\n",
        " 1\r\na\r\n",
        "0x1\r\na\r\n",
        "1,\r\na\r\n",
        "1 0\r\na\r\n",
        "1\t,;x\r\na\r\n",
        "1\na\r\n",
        "1\r\na\n",
        "1\r\nab\r\n",
        "1;x\ny\r\na\r\n",
        "1;x\ry\r\na\r\n",
        "1\r\r\na",
        "0\r\nx: y\n\r\n",
        "0\r\n x: y\r\n\r\n",
        "0\r\n: y\r\n\r\n",
        "0\r\nx: \0\r\n\r\n",
        "0\r\nx\r\n\r\n",
        "0\r\nx : y\r\n\r\n",
        "0\r\nx y: z\r\n\r\n",
        "0\r\nx\u{e4}: z\r\n\r\n",
        "0\r\nx: y\r\nCONTENT-length: 5\r\n\r\n",
        "0\r\n\rx",
        "1000000000000000\r\n",
        "0000000000000001\r\na",
    ] {
        assert_eq!(follow(body.as_bytes(), 1), Err(Malformed), "{body:?}");
    }
    for name in BARRED_TRAILERS {
        for name in [name.to_owned(), name.to_uppercase().replace('-', "_")] {
            let body = format!("0\r\n{name}: y\r\n\r\n");
            assert_eq!(follow(body.as_bytes(), 1), Err(Malformed), "{body:?}");
        }
    }
    for part in ["x", " "] {
        let long = part.repeat(usize::from(EXTENSION_BYTES_MAX) + 1);
        for separator in [";", " "] {
            let line = format!("1{separator}{long}\r\n");
            assert_eq!(follow(line.as_bytes(), 999), Err(Malformed));
        }
    }
    let trailers = format!("0\r\n{}", "x: y\r\n".repeat(usize::from(TRAILER_BYTES_MAX)));
    assert_eq!(follow(trailers.as_bytes(), 999), Err(Malformed));
}

#[test]
fn an_answers_trailers_pass_whatever_they_name() {
    let follow = |body: &str, piece| follow_as(Chunks::of_answer(), body.as_bytes(), piece);
    let lines = BARRED_TRAILERS.map(|name| format!("{name}: y"));
    for line in lines.iter().map(String::as_str).chain(["x", "x y: z"]) {
        let body = format!("1\r\na\r\n0\r\nx-sum: 1\r\n{line}\r\n\r\n");
        for piece in 1..=body.len() {
            assert_eq!(follow(&body, piece), Ok((body.len(), true)), "{body:?}");
        }
    }
    for line in [" x: y", "\tx: y", ": y", "x: \0", "x: y\n", "\n"] {
        let body = format!("0\r\n{line}\r\n\r\n");
        assert_eq!(follow(&body, 1), Err(Malformed), "{body:?}");
    }
    let long = format!("0\r\n{}", "x: y\r\n".repeat(usize::from(TRAILER_BYTES_MAX)));
    assert_eq!(follow(&long, 999), Err(Malformed));
}

#[test]
fn a_known_length_takes_no_byte_more() {
    let mut framing = Framing::Length(5);
    assert_eq!(framing.advance(b"abc"), Ok(3));
    assert!(!framing.is_done());
    assert_eq!((framing.rest(), framing.advance(b"defg")), (2, Ok(2)));
    assert!(framing.is_done());
    assert_eq!(framing.advance(b"x"), Ok(0));
}
