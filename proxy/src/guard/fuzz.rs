//! The guard against mutated streams of requests, however they are cut: of the heads that the library's parser accepts it
//! refuses those with two claims about their length, and no other. Behind a body that is none it finds nothing.

#![cfg_attr(
    fuzzing,
    expect(dead_code, reason = "whoever fuzzes makes inputs otherwise")
)]

use rand::RngExt;
use rand::rngs::StdRng;

use super::{At, Scan};
use crate::fast::fuzz::chunks::Body;
use crate::fast::fuzz::{chunked_len, each, each_made};

const STREAMS: [&str; 7] = [
    "POST / HTTP/1.1\r\nhost: h\r\nContent-Length: 3\r\n\r\nabcGET /x HTTP/1.1\r\nhost: h\r\n\r\n",
    "\r\nPUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\nx: y\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n\r\nPOST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\nx",
    "GET / HTTP/1.1\ncookie: c\ntrailer: t\n\nPOST / HTTP/1.1\ntransfer-encoding: chunked\n\n1;x=y\r\na\r\n0\r\n\r\n",
    "PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nx: y\r\n\r\nPUT / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
    "GET / HTTP/1.1\r\nhost: h\r\n\r\nPOST / HTTP/1.1\r\ncontent-length: +3\r\n\r\nabc",
];

/// What a reader makes of a stream who takes one request after the other, by another parser.
struct Read {
    /// Where the first head begins and ends that makes two claims, or none that is a number.
    refused: Option<(usize, usize)>,
    /// How far the stream is known to make one claim for each message: no refusal may come before.
    good: usize,
}

/// The one claim that a head makes about the length of its body.
enum Claim {
    Length(u64),
    Chunked,
}

/// None where there are two, or one that is no number.
fn claim(request: &httparse::Request<'_, '_>) -> Option<Claim> {
    let values = |name: &str| -> Vec<&[u8]> {
        let fields = request.headers.iter();
        let named = fields.filter(|field| field.name.eq_ignore_ascii_case(name));
        named.map(|field| field.value.trim_ascii()).collect()
    };
    let (codings, lengths) = (values("transfer-encoding"), values("content-length"));
    match (&codings[..], &lengths[..]) {
        ([], []) => Some(Claim::Length(0)),
        ([], [length]) => number(length).map(Claim::Length),
        ([_, ..], []) => Some(Claim::Chunked),
        _ => None,
    }
}

/// A number of digits alone, read otherwise than the guard does.
fn number(text: &[u8]) -> Option<u64> {
    let digits = text
        .iter()
        .map(|&byte| char::from(byte).to_digit(10).map(u64::from));
    digits
        .reduce(|number, digit| number?.checked_mul(10)?.checked_add(digit?))
        .flatten()
}

/// Whether the lines that are whole of a head without an end are known to make one claim at most.
fn makes_one_claim(begun: &[u8]) -> bool {
    let lines = begun.iter().rposition(|&byte| byte == b'\n');
    let lines = lines.map_or(&[][..], |end| &begun[..=end]);
    let ended = [lines, b"\r\n"].concat();
    let mut room = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut room);
    match request.parse(&ended) {
        Ok(httparse::Status::Complete(_)) => claim(&request).is_some(),
        Ok(httparse::Status::Partial) => true,
        Err(_) => false,
    }
}

fn read(stream: &[u8]) -> Read {
    let mut good = 0;
    loop {
        let rest = &stream[good..];
        let mut room = [httparse::EMPTY_HEADER; 100];
        let mut request = httparse::Request::new(&mut room);
        let one_claim = |good| Read {
            refused: None,
            good,
        };
        let head_len = match request.parse(rest) {
            Ok(httparse::Status::Complete(head_len)) => head_len,
            Ok(httparse::Status::Partial) if makes_one_claim(rest) => {
                return one_claim(stream.len());
            }
            // Two claims may be refused at once, and the library refuses what this reader does not understand.
            Ok(httparse::Status::Partial) | Err(_) => return one_claim(good),
        };
        let body = &rest[head_len..];
        let body_len = match claim(&request) {
            Some(Claim::Length(length)) => {
                let length = usize::try_from(length).ok();
                match length.filter(|&length| length <= body.len()) {
                    Some(length) => length,
                    // All that follows is body.
                    None => return one_claim(stream.len()),
                }
            }
            Some(Claim::Chunked) => match chunked_len(body) {
                Some(length) => length,
                // The body is not whole, or none that this reader knows; its head is good either way.
                None => return one_claim(good + head_len),
            },
            None => {
                return Read {
                    refused: Some((good, good + head_len)),
                    good,
                };
            }
        };
        good += head_len + body_len;
    }
}

/// Where a head is refused in a stream that is read in pieces.
fn found(scan: &mut Scan, stream: &[u8], random: &mut StdRng) -> Option<usize> {
    let (mut found, mut rest) = (None, stream);
    while !rest.is_empty() && found.is_none() {
        let (piece, later) = rest.split_at(random.random_range(1..=rest.len()));
        let before = stream.len() - rest.len();
        found = scan.find(piece).map(|at| before + at);
        rest = later;
    }
    found
}

#[cfg_attr(test, test)]
pub(crate) fn what_makes_two_claims_is_refused_and_no_other() {
    each(&STREAMS, |stream, random| {
        let found = found(&mut Scan::default(), stream, random);
        let expected = read(stream);
        match (found, expected.refused) {
            (found, Some((begin, end))) => {
                let at = found.expect("it makes two claims");
                assert!((begin..end).contains(&at), "{at} of {begin}..{end}");
            }
            (Some(at), None) => assert!(at >= expected.good, "{at} of {}", expected.good),
            (None, None) => {}
        }
    });
}

#[cfg_attr(test, test)]
pub(crate) fn it_follows_chunks_as_far_as_they_are_some() {
    const BEFORE: &[u8] = b"PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";
    const TWO_CLAIMS: &[u8] =
        b"PUT / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n";
    each_made(Body::make, |body, random| {
        let stream = [BEFORE, &body.bytes, TWO_CLAIMS].concat();
        let mut scan = Scan::default();
        let found = found(&mut scan, &stream, random);
        let (at, last) = (scan.at, stream.len() - 1);
        match body.is_good {
            true => assert_eq!((found, at), (Some(last), At::Refused)),
            false => assert_eq!((found, at), (None, At::Lost)),
        }
    });
}
