//! Trace context: passed through if it is valid, begun if it is not there (W3C Trace Context, level 1).

use std::cell::RefCell;

use http::{HeaderMap, HeaderName, HeaderValue};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::headers::{Field, Seen};

pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(crate) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// A caller's context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parent {
    pub(crate) trace_id: [u8; 16],
    pub(crate) span_id: [u8; 8],
    /// Whether the caller may have told of it.
    pub(crate) sampled: bool,
}

impl Parent {
    /// The context in the text of a `traceparent`, if that is valid. What later versions add is not read (4.2 there).
    pub(crate) fn read(value: &[u8]) -> Option<Self> {
        if !is_valid(value) {
            return None;
        }
        let byte = |at: usize| digit(value[at]) << 4 | digit(value[at + 1]);
        Some(Self {
            trace_id: std::array::from_fn(|index| byte(3 + 2 * index)),
            span_id: std::array::from_fn(|index| byte(36 + 2 * index)),
            sampled: byte(53) & 1 == 1,
        })
    }
}

/// The value of a digit of lower-case hexadecimal.
fn digit(text: u8) -> u8 {
    match text {
        b'0'..=b'9' => text - b'0',
        _ => text - b'a' + 10,
    }
}

/// Leaves a valid `traceparent` as it is. Otherwise begins a trace, and drops a `tracestate` that
/// belongs to none (3.3.1.1 there).
///
/// A trace begun here is marked sampled: replicas whose tracing follows their caller's choice then
/// trace as they would if called without a proxy.
///
/// No two requests share a context, so it is marked as one that HTTP/2 must not put into its table of fields: it would
/// push out those that come again.
pub(crate) fn ensure(headers: &mut HeaderMap, seen: Seen, random: impl FnOnce() -> [u8; 24]) {
    if !seen.has(Field::Traceparent) && !seen.has(Field::Tracestate) {
        headers.insert(TRACEPARENT, value(&begin(random())));
        return;
    }
    let mut lines = headers.get_all(TRACEPARENT).iter();
    let valid =
        lines.next().is_some_and(|value| is_valid(value.as_bytes())) && lines.next().is_none();
    if !valid {
        replace(headers, &begin(random()));
    }
    if let Some(context) = headers.get_mut(TRACEPARENT) {
        context.set_sensitive(true);
    }
}

/// Puts a request into a trace that begins with this context.
pub(crate) fn replace(headers: &mut HeaderMap, begun: &[u8; 55]) {
    headers.remove(TRACESTATE);
    headers.insert(TRACEPARENT, value(begun));
}

/// The text of a context as a field's value, which no other request has.
pub(crate) fn value(line: &[u8; 55]) -> HeaderValue {
    let value = HeaderValue::from_bytes(line);
    let mut value = value.expect("hexadecimal digits and dashes are legal in a header");
    value.set_sensitive(true);
    value
}

/// The context that a request goes on with.
pub(crate) fn of(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(TRACEPARENT).cloned()
}

thread_local! {
    static IDS: RefCell<SmallRng> = RefCell::new(SmallRng::from_seed(rand::random()));
}

/// What the ids of a trace are made of. They have to differ, and nothing depends on nobody guessing them: so they come
/// from a quick generator.
pub(crate) fn random() -> [u8; 24] {
    let mut random = [0; 24];
    IDS.with_borrow_mut(|ids| ids.fill_bytes(&mut random));
    random
}

/// The text of a trace context that begins here.
pub(crate) fn begin(random: [u8; 24]) -> [u8; 55] {
    let (trace_id, span_id) = ids(random);
    line(trace_id, span_id, true)
}

/// A valid trace id and a valid span id.
pub(crate) fn ids(mut random: [u8; 24]) -> ([u8; 16], [u8; 8]) {
    // All-zero ids are invalid; both are then made valid at no cost in randomness that matters.
    for id in [0..16, 16..24] {
        if random[id.clone()].iter().all(|&byte| byte == 0) {
            random[id.start] = 1;
        }
    }
    let trace_id = std::array::from_fn(|index| random[index]);
    (trace_id, std::array::from_fn(|index| random[16 + index]))
}

/// The text of a trace context.
pub(crate) fn line(trace_id: [u8; 16], span_id: [u8; 8], sampled: bool) -> [u8; 55] {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    let (trace_id, span_id) = (trace_id.as_chunks().0, span_id.as_chunks().0);
    for (text, id) in text[3..35].as_chunks_mut().0.iter_mut().zip(trace_id) {
        *text = hexadecimal(*id);
    }
    for (text, id) in text[36..52].as_chunks_mut().0.iter_mut().zip(span_id) {
        *text = hexadecimal(*id);
    }
    text[54] = b'0' + u8::from(sampled);
    text
}

/// The digits of four bytes, all at once: each request has six of these.
fn hexadecimal(bytes: [u8; 4]) -> [u8; 8] {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // A digit's value into each byte, then its letter.
    let mut digits = u64::from(u32::from_be_bytes(bytes));
    digits = (digits | digits << 16) & 0x0000_ffff_0000_ffff;
    digits = (digits | digits << 8) & 0x00ff_00ff_00ff_00ff;
    digits = (digits | digits << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    let letters = (digits + 6 * ONES) >> 4 & ONES;
    let text = digits + u64::from(b'0') * ONES + u64::from(b'a' - b'9' - 1) * letters;
    text.to_be_bytes()
}

/// Whether a `traceparent` is one. Version 00 is exactly 55 bytes; a later one may go on after a
/// further dash.
pub(crate) fn is_valid(value: &[u8]) -> bool {
    let hex = |at: std::ops::Range<usize>| {
        value.get(at).is_some_and(|part| {
            part.iter()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        })
    };
    let set = |at: std::ops::Range<usize>| value[at].iter().any(|&byte| byte != b'0');
    hex(0..2)
        && hex(3..35)
        && hex(36..52)
        && hex(53..55)
        && [2, 35, 52].iter().all(|&at| value[at] == b'-')
        && set(3..35)
        && set(36..52)
        && match &value[..2] {
            b"ff" => false,
            b"00" => value.len() == 55,
            _ => value.len() == 55 || value[55] == b'-',
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_is_written_is_read() {
        for sampled in [false, true] {
            let (trace_id, span_id) = ids(std::array::from_fn(|index| index as u8 * 11));
            let parent = Parent::read(&line(trace_id, span_id, sampled));
            let expected = Parent {
                trace_id,
                span_id,
                sampled,
            };
            assert_eq!(parent, Some(expected));
        }
        let later = format!("cc{}-more", &GOOD[2..].replace("-01", "-0b"));
        assert!(Parent::read(later.as_bytes()).is_some_and(|parent| parent.sampled));
        assert_eq!(Parent::read(&GOOD.as_bytes()[1..]), None);
    }

    #[test]
    fn every_byte_has_its_two_digits() {
        for byte in 0..=u8::MAX {
            let digits = hexadecimal([byte, !byte, 0, 255]);
            let expected = format!("{byte:02x}{:02x}00ff", !byte);
            assert_eq!(digits, expected.as_bytes());
        }
    }

    fn ensured(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(TRACEPARENT, line.parse().expect("a legal value"));
        }
        headers.insert(TRACESTATE, HeaderValue::from_static("a=b"));
        let seen = Seen::of(&headers);
        ensure(&mut headers, seen, || [0; 24]);
        headers
    }

    #[test]
    fn valid_context_is_passed_through() {
        for good in [GOOD, &format!("cc{}-more", &GOOD[2..])] {
            let headers = ensured(&[good]);
            assert_eq!(headers[TRACEPARENT], good);
            assert_eq!(headers[TRACESTATE], "a=b");
        }
    }

    #[test]
    fn missing_or_invalid_context_begins_a_valid_one() {
        let cases: [&[&str]; 9] = [
            &[],
            &[GOOD, GOOD],
            &[""],
            &["00-00000000000000000000000000000000-b7ad6b7169203331-01"],
            &["00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01"],
            &["ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],
            &["00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01"],
            &["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x"],
            &["00-0af7651916cd43dd8448eb211c80319cxb7ad6b7169203331-01"],
        ];
        for lines in cases {
            let headers = ensured(lines);
            assert_eq!(headers.get_all(TRACEPARENT).iter().count(), 1);
            assert!(is_valid(headers[TRACEPARENT].as_bytes()), "{headers:?}");
            assert!(!headers.contains_key(TRACESTATE));
        }
    }
}
