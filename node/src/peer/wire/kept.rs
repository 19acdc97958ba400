//! What keeps the bytes of messages: a file has a line for each, its name and its bytes, and is written by hand alone.
//!
//! Peers of neighbouring releases talk to each other. A change of these bytes needs a new version of the frame; lines that
//! were released stay as they are, and go on being read.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use bincode::error::{AllowedEnumVariants, DecodeError};
use bincode::{Decode, Encode};

use super::{VERSION, WireError, decode, encode};

/// A variant's number that no enum comes near, and that is one byte all the same.
const NO_VARIANT: u8 = 250;

/// A file of such lines, and what is found not to be in it as it is.
pub(crate) struct Kept {
    lines: BTreeMap<&'static str, &'static str>,
    met: RefCell<BTreeSet<String>>,
    wrong: RefCell<Vec<String>>,
}

impl Kept {
    pub(crate) fn of(file: &'static str) -> Self {
        let lines = file
            .lines()
            .map(|line| line.rsplit_once(' ').expect("a name and bytes"));
        Self {
            lines: lines.collect(),
            met: RefCell::default(),
            wrong: RefCell::default(),
        }
    }

    /// That `written` are the bytes of `name`, and `read` makes of them what was written.
    pub(crate) fn bytes(&self, name: &str, written: &[u8], read: impl FnOnce(&[u8]) -> bool) {
        self.met.borrow_mut().insert(name.to_owned());
        let written: String = written.iter().map(|byte| format!("{byte:02x}")).collect();
        let kept = self.lines.get(name).copied();
        if kept != Some(written.as_str()) {
            self.wrong.borrow_mut().push(format!("{name} {written}"));
        }
        if let Some(kept) = kept {
            assert!(read(&unhex(kept)), "{name} is read as something else");
        }
    }

    /// The same of a message.
    pub(crate) fn message<T>(&self, name: &str, message: &T)
    where
        T: Encode + Decode<()> + PartialEq + Debug,
    {
        self.bytes(name, &encode(message), |kept| {
            decode::<T>(kept).is_ok_and(|read| read == *message)
        });
    }

    /// The same of a message of every variant.
    pub(crate) fn variants<T>(&self, name: &str, messages: &[T])
    where
        T: Encode + Decode<()> + PartialEq + Debug,
    {
        for (place, message) in messages.iter().enumerate() {
            self.message(&format!("{name} {place}"), message);
        }
        complete(messages);
    }

    /// That each line was met, and each message has its line.
    pub(crate) fn finish(self) {
        let wrong = self.wrong.into_inner();
        assert!(wrong.is_empty(), "not kept:\n{}", wrong.join("\n"));
        let met = self.met.into_inner();
        let unmet: Vec<_> = self
            .lines
            .keys()
            .filter(|line| !met.contains(**line))
            .collect();
        assert!(unmet.is_empty(), "lines of no message: {unmet:?}");
    }
}

/// That there is a message of every variant that the decoder knows.
pub(crate) fn complete<T: Encode + Decode<()>>(messages: &[T]) {
    let Err(WireError::Body(DecodeError::UnexpectedVariant {
        allowed: AllowedEnumVariants::Range { max, .. },
        ..
    })) = decode::<T>(&[VERSION, NO_VARIANT]).map(drop)
    else {
        panic!("{} is no enum", std::any::type_name::<T>());
    };
    let there: BTreeSet<u32> = messages.iter().map(|it| u32::from(encode(it)[1])).collect();
    let all: BTreeSet<u32> = (0..=*max).collect();
    assert_eq!(there, all, "variants of {}", std::any::type_name::<T>());
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
