//! The parsers of the short path against mutated input: whatever they take for plain must be so to
//! any reader. Other parsers are fuzzed beside them, by the same mutations.
//!
//! `just fuzz 10000000` runs so many inputs; `RAFTSERVE_FUZZ_SEED=n` begins at another seed. Each
//! input comes from a number of its own, which a failure names.

#![cfg_attr(
    fuzzing,
    expect(dead_code, reason = "whoever fuzzes makes inputs otherwise")
)]

pub(crate) mod chunks;

use std::fmt::Debug;
use std::mem::MaybeUninit;

use rand::RngExt;
#[cfg(not(fuzzing))]
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::answer;
use super::framing::{Chunks, Framing, Malformed};
use super::request::{FIELDS_MAX, Parsed, PlainRequest, Way};

/// How many inputs each parser gets in a usual test run: a second or two.
const INPUTS: u64 = 20_000;

const REQUESTS: [&str; 5] = [
    "POST /svc/a?b=c HTTP/1.1\r\nHost: h:80\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nabc",
    "GET / HTTP/1.1\r\nhost: h\r\nx-forwarded-for: 1.1.1.1\r\ntransfer-encoding: chunked\r\nx: y\r\n\r\n",
    "GET / HTTP/1.1\r\nhost: h\r\nx-forwarded_for: 1.1.1.1\r\nx_own: y\r\n\r\n",
    "PUT /x HTTP/1.1\r\nhost: h\r\nte: trailers\r\nexpect: 100-continue\r\nupgrade: a\r\n\r\n",
    "GET http://h/ HTTP/1.0\r\nhost: h\r\ncontent-length: 0\r\ncontent-type: application/grpc\r\n\r\n",
];

const ANSWERS: [&str; 3] = [
    "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close, x\r\nx: y\r\ndate: d\r\n\r\nabc",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nkeep-alive: a\r\n\r\n0\r\n\r\n",
    "HTTP/1.0 304 Not Modified\r\ncontent-length: 3\r\nupgrade: h2c\r\n\r\n",
];

const BODIES: [&str; 3] = [
    "3\r\nabc\r\n0\r\n\r\n",
    "a;x=y\r\n0123456789\r\n1\r\n\r\r\n0\r\nx: y\r\n\r\nGET",
    "00\r\nx: y\r\nz: 1\r\n\r\n",
];

/// What mutations put in: the bytes that parsers look for, and some that they should refuse.
const SPICE: [&str; 16] = [
    "\r\n",
    "\n",
    "\r",
    ":",
    " ",
    "\t",
    "0",
    "f",
    ",",
    "\0",
    ";",
    "\r\n\r\n",
    "content-length: 4\r\n",
    "transfer-encoding: chunked\r\n",
    "host: x\r\n",
    "connection: content-length\r\n",
];

#[expect(
    clippy::disallowed_methods,
    reason = "a test's size is no configuration"
)]
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[cfg(fuzzing)]
pub(crate) use crate::fuzzing::each;

/// Runs a property on inputs made from these.
#[cfg(not(fuzzing))]
pub(crate) fn each(seeds: &[&str], property: impl Fn(&[u8], &mut StdRng)) {
    let make = |random: &mut StdRng| {
        let seed = seeds[random.random_range(0..seeds.len())];
        let mut input = seed.as_bytes().to_vec();
        mutate_some(&mut input, random);
        Input(input)
    };
    each_made(make, |input, random| property(&input.0, random));
}

/// Bytes that a failure shows as text.
struct Input(Vec<u8>);

impl Debug for Input {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        String::from_utf8_lossy(&self.0).fmt(out)
    }
}

#[cfg(fuzzing)]
pub(crate) use crate::fuzzing::each_made;

/// Runs a property on inputs made so.
#[cfg(not(fuzzing))]
pub(crate) fn each_made<T: Debug>(
    make: impl Fn(&mut StdRng) -> T,
    property: impl Fn(&T, &mut StdRng),
) {
    let first = number("RAFTSERVE_FUZZ_SEED").unwrap_or(0);
    let inputs = number("RAFTSERVE_FUZZ_INPUTS").unwrap_or(INPUTS);
    for seed in first..first + inputs {
        let mut random = StdRng::seed_from_u64(seed);
        let input = make(&mut random);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            property(&input, &mut random);
        }));
        assert!(result.is_ok(), "seed {seed}: {input:?}");
    }
}

fn mutate_some(input: &mut Vec<u8>, random: &mut StdRng) {
    for _ in 0..random.random_range(0..5) {
        mutate(input, random);
    }
}

fn mutate(input: &mut Vec<u8>, random: &mut StdRng) {
    let at = random.random_range(0..=input.len());
    let end = random.random_range(at..=input.len().min(at + 12));
    match random.random_range(0..5) {
        0 => input.insert(at, random.random()),
        1 => drop(input.drain(at..end)),
        2 => {
            let copy = input[at..end].to_vec();
            let to = random.random_range(0..=input.len());
            input.splice(to..to, copy);
        }
        3 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
        _ => {
            let spice = SPICE[random.random_range(0..SPICE.len())];
            input.splice(at..at, spice.bytes());
        }
    }
}

/// The fields of a head, by a reader that knows nothing but CR LF and the first colon.
fn fields(head: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(head);
    let lines = text.strip_suffix("\r\n\r\n").expect("a head has an end");
    assert!(!lines.contains("\r\n\r\n"), "and one alone");
    let field = |line: &str| {
        assert!(!line.contains(['\r', '\n', '\0']), "{line:?}");
        let (name, value) = line.split_once(':').expect("a field has a colon");
        (name.to_lowercase(), value.trim().to_owned())
    };
    lines.split("\r\n").skip(1).map(field).collect()
}

fn count(fields: &[(String, String)], name: &str) -> usize {
    fields.iter().filter(|field| field.0 == name).count()
}

#[cfg_attr(test, test)]
pub(crate) fn what_is_forwarded_says_one_thing_to_every_reader() {
    each(&REQUESTS, |input, _| {
        let mut room = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let Parsed::Plain(plain) = PlainRequest::read(input, &mut room) else {
            return;
        };
        let way = Way {
            client: b"1.2.3.4",
            proto: "http",
            prefix_len: 0,
        };
        let mut head = Vec::new();
        plain.write(&mut head, &way, None, || [7; 24]);
        let fields = fields(&head);
        for name in ["connection", "te", "expect", "upgrade", "keep-alive"] {
            assert_eq!(count(&fields, name), 0, "{name}");
        }
        let alike = |it: &&(String, String)| it.0.replace('_', "-") == "x-forwarded-for";
        assert_eq!(fields.iter().filter(alike).count(), 1);
        for name in ["host", "x-forwarded-for", "x-forwarded-host", "traceparent"] {
            assert_eq!(count(&fields, name), 1, "{name}");
        }
        let value = |name: &str| {
            fields
                .iter()
                .find(|field| field.0 == name)
                .map(|field| &field.1)
        };
        let length = value("content-length").map(|length| length.parse().expect("a number"));
        match &plain.framing {
            Framing::Chunked(_) => {
                assert_eq!(count(&fields, "transfer-encoding"), 1);
                assert_eq!(length, None::<u64>);
            }
            Framing::Length(expected) => {
                assert_eq!(count(&fields, "transfer-encoding"), 0);
                assert!(count(&fields, "content-length") <= 1);
                assert_eq!(length.unwrap_or(0), *expected);
            }
            Framing::UntilClose => panic!("a request has an end"),
        }
        // The end of the head is where it is whatever follows, and nowhere before.
        let head_len = plain.head_len;
        for cut in [head_len - 1, head_len / 2] {
            let mut room = [const { MaybeUninit::uninit() }; FIELDS_MAX];
            let parsed = PlainRequest::read(&input[..cut], &mut room);
            assert!(!matches!(parsed, Parsed::Plain(_)));
        }
    });
}

#[cfg_attr(test, test)]
pub(crate) fn an_answer_is_passed_on_with_one_framing() {
    each(&ANSWERS, |input, random| {
        let (mut head, to_head) = (Vec::new(), random.random());
        let answer::Parsed::Answer(answer) = answer::read(input, to_head, &mut head) else {
            return;
        };
        answer::finish(&answer, false, b"now", &mut head);
        let fields = fields(&head);
        for name in ["connection", "keep-alive", "upgrade"] {
            assert_eq!(count(&fields, name), 0, "{name}");
        }
        let chunked = count(&fields, "transfer-encoding");
        let lengths = count(&fields, "content-length");
        match answer.framing {
            Framing::Length(0) => assert!(chunked == 0 && lengths <= 1),
            Framing::Length(_) => assert_eq!((chunked, lengths), (0, 1)),
            Framing::Chunked(_) | Framing::UntilClose => assert_eq!((chunked, lengths), (1, 0)),
        }
    });
}

/// A whole chunked body's length, read line by line. `None` if it is none or not whole.
pub(crate) fn chunked_len(body: &[u8]) -> Option<usize> {
    fn line(rest: &[u8]) -> Option<(&[u8], &[u8])> {
        let end = rest.windows(2).position(|bytes| bytes == b"\r\n")?;
        let (line, rest) = (&rest[..end], &rest[end + 2..]);
        let is_text = line
            .iter()
            .all(|&byte| byte == b'\t' || (byte >= b' ' && byte != 127));
        is_text.then_some((line, rest))
    }
    let mut rest = body;
    loop {
        let (size, after) = line(rest)?;
        let digits = size
            .iter()
            .take_while(|byte| byte.is_ascii_hexdigit())
            .count();
        // Between size and extension there may be blanks, and nothing else.
        let blank = |&byte: &u8| byte == b' ' || byte == b'\t';
        let after_digits = size[digits..].iter().copied().find(|byte| !blank(byte));
        if digits == 0 || digits > 15 || after_digits.is_some_and(|byte| byte != b';') {
            return None;
        }
        let size = usize::from_str_radix(std::str::from_utf8(&size[..digits]).ok()?, 16).ok()?;
        rest = after;
        if size == 0 {
            break;
        }
        let data_end = size.checked_add(2)?;
        (rest.get(size..data_end)? == b"\r\n").then_some(())?;
        rest = &rest[data_end..];
    }
    loop {
        let (trailer, after) = line(rest)?;
        rest = after;
        if trailer.is_empty() {
            return Some(body.len() - rest.len());
        }
        let colon = trailer.iter().position(|&byte| byte == b':')?;
        let name = http::HeaderName::from_bytes(&trailer[..colon]).ok()?;
        if crate::headers::is_barred_trailer(name.as_str()) {
            return None;
        }
    }
}

/// How far a request's chunked body goes that is read in pieces: `None` if it is none or not whole.
fn followed(body: &[u8], random: &mut StdRng) -> Option<usize> {
    let mut framing = Framing::Chunked(Chunks::of_request());
    let (mut used, mut rest) = (0, body);
    while !rest.is_empty() && !framing.is_done() {
        let (piece, later) = rest.split_at(random.random_range(1..=rest.len()));
        match framing.advance(piece) {
            Ok(count) => used += count,
            Err(Malformed) => return None,
        }
        rest = later;
    }
    framing.is_done().then_some(used)
}

#[cfg_attr(test, test)]
pub(crate) fn a_chunked_body_ends_where_a_second_reader_says_however_it_is_cut() {
    each(&BODIES, |input, random| {
        assert_eq!(followed(input, random), chunked_len(input));
    });
    let mutated = |random: &mut StdRng| {
        let mut input = chunks::Body::make(random).bytes;
        mutate_some(&mut input, random);
        Input(input)
    };
    each_made(mutated, |input, random| {
        assert_eq!(followed(&input.0, random), chunked_len(&input.0));
    });
}

#[cfg_attr(test, test)]
pub(crate) fn a_chunks_line_is_taken_only_as_its_grammar_has_it() {
    each_made(chunks::Body::make, |body, random| {
        let is_good = body.is_good && body.has_good_trailers;
        let whole = is_good.then_some(body.bytes.len());
        assert_eq!(chunked_len(&body.bytes), whole, "the second reader");
        assert_eq!(followed(&body.bytes, random), whole);
    });
}
