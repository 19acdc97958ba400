//! The guard against mutated streams of requests, however they are cut: of the heads that the library's parser accepts it
//! refuses those with two claims about their length, and no other.

use rand::RngExt;

use super::{Scan, decimal};
use crate::fast::fuzz::{chunked_len, each};

const STREAMS: [&str; 6] = [
    "POST / HTTP/1.1\r\nhost: h\r\nContent-Length: 3\r\n\r\nabcGET /x HTTP/1.1\r\nhost: h\r\n\r\n",
    "\r\nPUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\nx: y\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n\r\nPOST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\nx",
    "GET / HTTP/1.1\ncookie: c\ntrailer: t\n\nPOST / HTTP/1.1\ntransfer-encoding: chunked\n\n1;x=y\r\na\r\n0\r\n\r\n",
    "PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nx: y\r\n\r\nPUT / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
];

/// What a reader makes of a stream who takes one request after the other, by another parser.
struct Read {
    /// Where the first head begins and ends that makes two claims, or none that is a number.
    refused: Option<(usize, usize)>,
    /// How far whole requests go that make one.
    good: usize,
}

fn read(stream: &[u8]) -> Read {
    let mut good = 0;
    loop {
        let rest = &stream[good..];
        let mut room = [httparse::EMPTY_HEADER; 100];
        let mut request = httparse::Request::new(&mut room);
        let Ok(httparse::Status::Complete(head_len)) = request.parse(rest) else {
            return Read {
                refused: None,
                good,
            };
        };
        let values = |name: &str| -> Vec<&[u8]> {
            let fields = request.headers.iter();
            let named = fields.filter(|field| field.name.eq_ignore_ascii_case(name));
            named.map(|field| field.value.trim_ascii()).collect()
        };
        let (codings, lengths) = (values("transfer-encoding"), values("content-length"));
        let body = &rest[head_len..];
        let body_len = match (&codings[..], &lengths[..]) {
            ([], []) => Some(0),
            ([], [length]) if decimal(length).is_some() => decimal(length)
                .and_then(|length| usize::try_from(length).ok())
                .filter(|&length| length <= body.len()),
            ([_, ..], []) => chunked_len(body),
            _ => {
                return Read {
                    refused: Some((good, good + head_len)),
                    good,
                };
            }
        };
        // A body that is not whole, or none that this reader knows, is the last.
        let Some(body_len) = body_len else {
            return Read {
                refused: None,
                good,
            };
        };
        good += head_len + body_len;
    }
}

#[test]
fn what_makes_two_claims_is_refused_and_nothing_before_it() {
    each(&STREAMS, |stream, random| {
        let (mut scan, mut found, mut rest) = (Scan::default(), None, stream);
        while !rest.is_empty() && found.is_none() {
            let (piece, later) = rest.split_at(random.random_range(1..=rest.len()));
            let before = stream.len() - rest.len();
            found = scan.find(piece).map(|at| before + at);
            rest = later;
        }
        let expected = read(stream);
        match (found, expected.refused) {
            (found, Some((begin, end))) => {
                let at = found.expect("it makes two claims");
                assert!((begin..end).contains(&at), "{at} of {begin}..{end}");
            }
            // What the other reader does not understand, the library refuses.
            (Some(at), None) => assert!(at >= expected.good, "{at} of {}", expected.good),
            (None, None) => {}
        }
    });
}
