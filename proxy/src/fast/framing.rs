//! Where a message ends in the bytes of its connection (RFC 9112, 6 and 7.1). Bodies are passed on
//! byte for byte; this only follows them to their end.

#[cfg(test)]
mod tests;

use crate::headers::{BARRED_TRAILERS, alike};

/// The most bytes of one chunk's extensions: nobody uses them, and none are worth more.
const EXTENSION_BYTES_MAX: u16 = 1 << 10;

/// The most bytes of a trailer section.
const TRAILER_BYTES_MAX: u16 = 16 << 10;

/// The most digits of a chunk's size: far beyond any chunk, and far from overflow.
const SIZE_DIGITS_MAX: u8 = 15;

/// The hashes of [`BARRED_TRAILERS`], by which names are compared without being kept. Another name with one of them is
/// barred as well.
const BARRED_HASHES: [u64; BARRED_TRAILERS.len()] = {
    let mut hashes = [HASH_START; BARRED_TRAILERS.len()];
    let mut at = 0;
    while at < hashes.len() {
        let mut name = BARRED_TRAILERS[at].as_bytes();
        while let [first, rest @ ..] = name {
            hashes[at] = hash_on(hashes[at], *first);
            name = rest;
        }
        at += 1;
    }
    hashes
};

/// FNV-1a, of names that are [`alike`].
const HASH_START: u64 = 0xcbf2_9ce4_8422_2325;

const fn hash_on(hash: u64, byte: u8) -> u64 {
    (hash ^ alike(byte) as u64).wrapping_mul(0x0100_0000_01b3)
}

/// The bytes are not a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// What is still to come of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes.
    Length(u64),
    Chunked(Chunks),
    /// All up to the end of the connection.
    UntilClose,
}

impl Framing {
    /// Follows the body through the next bytes: how many of them belong to it.
    ///
    /// # Errors
    /// They cannot belong to it.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        match self {
            Self::Length(left) => {
                let count =
                    usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= count as u64;
                Ok(count)
            }
            Self::Chunked(chunks) => chunks.advance(bytes),
            Self::UntilClose => Ok(bytes.len()),
        }
    }

    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.state == State::Done,
            Self::UntilClose => false,
        }
    }

    /// Whether it is sure that no more than so many bytes are to come.
    pub(super) fn is_within(&self, bytes_max: u64) -> bool {
        match self {
            Self::Length(left) => *left <= bytes_max,
            Self::Chunked(_) => self.is_done(),
            Self::UntilClose => false,
        }
    }

    /// How much is certainly still to come.
    pub(super) fn rest(&self) -> u64 {
        match self {
            Self::Length(left) => *left,
            Self::Chunked(chunks) => match chunks.state {
                State::Data => chunks.left,
                _ => 0,
            },
            Self::UntilClose => 0,
        }
    }
}

/// How far a chunked body has been followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunks {
    state: State,
    /// What is left of the chunk's data; its size, while that is being read; the hash of a trailer's name.
    left: u64,
    /// How many bytes were read of the present size, extension or trailer section.
    seen: u16,
    /// Whether trailers are read as a request's: by name.
    of_request: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size,
    /// Behind the size, where only blanks, an extension or the line's end may be.
    Blank,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the start of a line after the last chunk.
    Trailer,
    TrailerName,
    /// In a trailer's value, or anywhere in a line of an answer's.
    TrailerValue,
    TrailerLf,
    EndLf,
    Done,
}

impl Chunks {
    /// Those of a request. Its trailers are fields, and none of [`BARRED_TRAILERS`].
    pub(super) fn of_request() -> Self {
        Self {
            of_request: true,
            ..Self::of_answer()
        }
    }

    /// Those of an answer, whose trailers are the client's to read.
    pub(super) fn of_answer() -> Self {
        Self {
            state: State::Size,
            left: 0,
            seen: 0,
            of_request: false,
        }
    }

    fn advance(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < bytes.len() && self.state != State::Done {
            if self.state == State::Data {
                let here = bytes.len() - at;
                let count = usize::try_from(self.left).map_or(here, |left| left.min(here));
                self.left -= count as u64;
                at += count;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            self.state = self.next(bytes[at])?;
            at += 1;
        }
        Ok(at)
    }

    /// The state after one byte that is no data. Lines end by CR LF and nothing else: who takes a
    /// bare LF for an end, or skips a bare CR, reads another body than we do.
    fn next(&mut self, byte: u8) -> Result<State, Malformed> {
        match (self.state, byte) {
            (State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => self.digit(byte),
            (State::Size, b'\r') if self.seen > 0 => Ok(State::SizeLf),
            (State::Size, b';') if self.seen > 0 => {
                self.seen = 0;
                Ok(State::Extension)
            }
            (State::Size, b' ' | b'\t') if self.seen > 0 => {
                self.seen = 0;
                Ok(State::Blank)
            }
            (State::Blank, b' ' | b'\t') => {
                self.count(EXTENSION_BYTES_MAX)?;
                Ok(State::Blank)
            }
            (State::Blank, b';') => Ok(State::Extension),
            (State::Blank | State::Extension, b'\r') => Ok(State::SizeLf),
            (State::Extension, byte) if is_text(byte) => {
                self.count(EXTENSION_BYTES_MAX)?;
                Ok(State::Extension)
            }
            (State::SizeLf, b'\n') => {
                self.seen = 0;
                Ok(if self.left == 0 {
                    State::Trailer
                } else {
                    State::Data
                })
            }
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(State::Size),
            (State::Trailer, b'\r') => Ok(State::EndLf),
            // A line that starts with a space would go on the one before it (obs-fold).
            (State::Trailer, byte)
                if !self.of_request && is_text(byte) && !b" \t:".contains(&byte) =>
            {
                self.count(TRAILER_BYTES_MAX)?;
                Ok(State::TrailerValue)
            }
            (State::Trailer | State::TrailerName, byte) if is_token(byte) => {
                if self.state == State::Trailer {
                    self.left = HASH_START;
                }
                self.left = hash_on(self.left, byte);
                self.count(TRAILER_BYTES_MAX)?;
                Ok(State::TrailerName)
            }
            (State::TrailerName, b':') if !BARRED_HASHES.contains(&self.left) => {
                self.count(TRAILER_BYTES_MAX)?;
                Ok(State::TrailerValue)
            }
            (State::TrailerValue, byte) if is_text(byte) => {
                self.count(TRAILER_BYTES_MAX)?;
                Ok(State::TrailerValue)
            }
            (State::TrailerValue, b'\r') => Ok(State::TrailerLf),
            (State::TrailerLf, b'\n') => Ok(State::Trailer),
            (State::EndLf, b'\n') => Ok(State::Done),
            _ => Err(Malformed),
        }
    }

    fn digit(&mut self, byte: u8) -> Result<State, Malformed> {
        if self.seen == 0 {
            self.left = 0;
        }
        self.count(u16::from(SIZE_DIGITS_MAX))?;
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            _ => (byte | 0x20) - b'a' + 10,
        };
        self.left = self.left << 4 | u64::from(digit);
        Ok(State::Size)
    }

    fn count(&mut self, most: u16) -> Result<(), Malformed> {
        if self.seen >= most {
            return Err(Malformed);
        }
        self.seen += 1;
        Ok(())
    }
}

/// What a field's name is made of (RFC 9110, 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What may stand in a field's value (RFC 9110, 5.5).
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}
