//! Chunked bodies by the grammar of a chunk's line (RFC 9112, 7.1), each part of which is now and then what a lenient reader
//! would take and ours must not. Who makes them knows which they are, and needs no second reader for it.

use std::fmt::Debug;

use rand::RngExt;
use rand::rngs::StdRng;

/// One line in so many has a part that no reader may take.
const BAD_IN: u32 = 8;

/// What makes a size none if it stands before it.
const BEFORE: [&str; 16] = [
    "+", "-", " ", "\t", "0x", "0X", "x", "#", "_", "\"", ",", ";", "\r\n", "\0", "\u{b2}", "/",
];

/// What may stand between a size and its line's end.
const BEHIND: [&str; 12] = [
    "",
    " ",
    "\t",
    " \t ",
    ";",
    ";x",
    " ;x=y",
    "\t;x",
    "; x = \"a, b\"",
    ";a;b=c",
    ";+5",
    ";\u{e9}",
];

/// What may not.
const WRONG_BEHIND: [&str; 22] = [
    ",", ", 5", " 5", "\t0", "+5", "-", "_0", ".0", "h", "x", "L", ":", "=", " x", " ,;x", "\0",
    "\x0b", "\x0c", "\x7f", "\u{a0}", "/", "\"",
];

/// What is no line's end. What follows begins with no line feed.
const WRONG_ENDS: [&str; 5] = ["\n", "\r", "\r\r\n", "\n\r\n", "\n\n"];

/// What chunks hold: what would be read as something else by who lost his place. None begins with a line feed.
const DATA: [&str; 5] = [
    "abc",
    "\r\n0\r\n\r\n",
    "0",
    "5\r\n",
    "GET / HTTP/1.1\r\nhost: h\r\n\r\n",
];

const TRAILERS: [&str; 4] = ["", "x: y\r\n", "x: 1\r\ny:\r\n", "x-host:a:b\r\n"];

/// What no trailer section holds. None ends one.
const WRONG_TRAILERS: [&str; 9] = [
    "x\r\n",
    "x y: z\r\n",
    "x : y\r\n",
    ": y\r\n",
    " x: y\r\n",
    "x: y\r\n\tz\r\n",
    "Content-Length: 5\r\n",
    "x: y\r\ntransfer-encoding:chunked\r\n",
    "HOST:\r\n",
];

/// A body with its end.
pub(crate) struct Body {
    pub(crate) bytes: Vec<u8>,
    /// Whether all lines of its chunks are as the grammar has them.
    pub(crate) is_good: bool,
    /// Whether its trailers are, and may be any.
    pub(crate) has_good_trailers: bool,
}

impl Debug for Body {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        String::from_utf8_lossy(&self.bytes).fmt(out)
    }
}

fn one<'a>(of: &[&'a str], random: &mut StdRng) -> &'a str {
    of[random.random_range(0..of.len())]
}

impl Body {
    pub(crate) fn make(random: &mut StdRng) -> Self {
        let mut body = Self {
            bytes: Vec::new(),
            is_good: true,
            has_good_trailers: !random.random_ratio(1, BAD_IN),
        };
        for _ in 0..random.random_range(0..4) {
            let data = one(&DATA, random);
            body.line(data.len(), random);
            body.bytes.extend_from_slice(data.as_bytes());
            body.bytes.extend_from_slice(b"\r\n");
        }
        body.line(0, random);
        let trailers = match body.has_good_trailers {
            true => one(&TRAILERS, random),
            false => one(&WRONG_TRAILERS, random),
        };
        body.bytes.extend_from_slice(trailers.as_bytes());
        body.bytes.extend_from_slice(b"\r\n");
        body
    }

    /// Adds the line of a chunk of so many bytes.
    fn line(&mut self, size: usize, random: &mut StdRng) {
        let zeros = random.random_range(1..4);
        let digits = match random.random() {
            true => format!("{size:0zeros$x}"),
            false => format!("{size:0zeros$X}"),
        };
        let (mut before, mut behind, mut end) = ("", one(&BEHIND, random), "\r\n");
        if random.random_ratio(1, BAD_IN) {
            self.is_good = false;
            match random.random_range(0..3) {
                0 => before = one(&BEFORE, random),
                1 => behind = one(&WRONG_BEHIND, random),
                _ => end = one(&WRONG_ENDS, random),
            }
        }
        for part in [before, &digits, behind, end] {
            self.bytes.extend_from_slice(part.as_bytes());
        }
    }
}
