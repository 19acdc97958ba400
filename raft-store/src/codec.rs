//! The one place that knows how our structures become bytes: bincode 2 behind a version byte and a
//! size limit.
//!
//! Every frame is `version u8 | body`. The body is bincode's standard configuration: little-endian,
//! variable-length integers, variants by number. A frame does not know its own length and carries no
//! checksum: whoever stores or sends it does that (log records, snapshot blocks, transports). So
//! bincode never defines where a record ends on disk, and could be replaced here alone.
//!
//! Readers refuse a version that they do not know, bytes left over, and anything that would need more
//! than [`FRAME_MAX`] bytes, whatever its length prefixes claim.

use std::io::Write;

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::error::EncodeError;
use bincode::{Decode, Encode};

use crate::formats::FRAME;

/// The most bytes one frame may hold: far above the largest command (a service specification of at most
/// 1 MiB, or 256 session keys), and small enough that a hostile length cannot exhaust memory.
pub const FRAME_MAX: usize = 16 << 20;

const CONFIG: Configuration<LittleEndian, Varint, Limit<FRAME_MAX>> =
    bincode::config::standard().with_limit::<FRAME_MAX>();

/// Why bytes could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The value is too large, or holds something that has no encoding.
    #[error("cannot encode")]
    Encode(#[source] EncodeError),
    /// The body is damaged, or was written by something else.
    #[error("cannot decode")]
    Decode(#[source] bincode::error::DecodeError),
    /// Written by a release that this one cannot follow.
    #[error(
        "a frame has version {found}, and this release reads {read}: run a release that reads version {found}"
    )]
    Version {
        /// The version byte.
        found: u8,
        /// The one that is read.
        read: u8,
    },
    /// There is not even a version byte.
    #[error("empty frame")]
    Empty,
    /// The body ended before the bytes did.
    #[error("{0} bytes left over after the frame")]
    Trailing(usize),
    /// The frame is above [`FRAME_MAX`].
    #[error("frame of {0} bytes is over the limit of {FRAME_MAX}")]
    TooLarge(usize),
}

/// Encodes `value` as a frame.
///
/// # Errors
/// [`CodecError::Encode`] or [`CodecError::TooLarge`].
pub fn encode<T: Encode>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut frame = Vec::with_capacity(128);
    encode_into(value, &mut frame)?;
    Ok(frame)
}

/// Appends `value` as a frame to `buffer`. On error the buffer is as it was.
///
/// # Errors
/// [`CodecError::Encode`] or [`CodecError::TooLarge`].
pub fn encode_into<T: Encode>(value: &T, buffer: &mut Vec<u8>) -> Result<(), CodecError> {
    append_as(FRAME, value, buffer)
}

/// Encodes `value` as a frame of `version`.
pub(crate) fn encode_as<T: Encode>(version: u8, value: &T) -> Result<Vec<u8>, CodecError> {
    let mut frame = Vec::new();
    append_as(version, value, &mut frame)?;
    Ok(frame)
}

fn append_as<T: Encode>(version: u8, value: &T, buffer: &mut Vec<u8>) -> Result<(), CodecError> {
    let start = buffer.len();
    let outcome = write_as(version, value, buffer);
    if outcome.is_err() {
        buffer.truncate(start);
    }
    outcome
}

/// Hands `value` to `out` as a frame, piece by piece. On error some of it was handed over.
///
/// # Errors
/// [`CodecError::Encode`] or [`CodecError::TooLarge`].
pub(crate) fn write<T: Encode>(value: &T, out: &mut impl Write) -> Result<(), CodecError> {
    write_as(FRAME, value, out)
}

fn write_as<T: Encode>(version: u8, value: &T, out: &mut impl Write) -> Result<(), CodecError> {
    let failed = |inner| CodecError::Encode(EncodeError::Io { inner, index: 0 });
    out.write_all(&[version]).map_err(failed)?;
    match bincode::encode_into_std_write(value, out, CONFIG) {
        Err(error) => Err(CodecError::Encode(error)),
        // What cannot be read back must not be written.
        Ok(size) if size >= FRAME_MAX => Err(CodecError::TooLarge(size)),
        Ok(_) => Ok(()),
    }
}

/// Decodes a whole frame.
///
/// # Errors
/// See [`CodecError`]; nothing is guessed from a damaged frame.
pub fn decode<T: Decode<()>>(frame: &[u8]) -> Result<T, CodecError> {
    decode_as(FRAME, frame)
}

/// Decodes a whole frame of `version`.
pub(crate) fn decode_as<T: Decode<()>>(version: u8, frame: &[u8]) -> Result<T, CodecError> {
    let (&found, body) = frame.split_first().ok_or(CodecError::Empty)?;
    if found != version {
        return Err(CodecError::Version {
            found,
            read: version,
        });
    }
    if body.len() > FRAME_MAX {
        return Err(CodecError::TooLarge(body.len()));
    }
    let (value, read) = bincode::decode_from_slice(body, CONFIG).map_err(CodecError::Decode)?;
    match body.len() - read {
        0 => Ok(value),
        left => Err(CodecError::Trailing(left)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_the_bytes_it_always_had() {
        let frame = encode(&(7_u64, 300_u32, Some("ab".to_owned()))).unwrap();
        assert_eq!(frame, [1, 7, 251, 44, 1, 1, 2, b'a', b'b']);
        let back: (u64, u32, Option<String>) = decode(&frame).unwrap();
        assert_eq!(back, (7, 300, Some("ab".to_owned())));
    }

    #[test]
    fn what_is_not_a_frame_is_refused() {
        assert!(matches!(decode::<u8>(&[]), Err(CodecError::Empty)));
        assert!(matches!(
            decode::<u8>(&[2, 0]),
            Err(CodecError::Version { found: 2, read: 1 })
        ));
        assert!(matches!(
            decode::<u8>(&[1, 0, 0]),
            Err(CodecError::Trailing(1))
        ));
        // A string that claims 2^62 bytes.
        let hostile = [&[1, 253][..], &(1_u64 << 62).to_le_bytes()].concat();
        assert!(matches!(
            decode::<String>(&hostile),
            Err(CodecError::Decode(_))
        ));
    }

    #[test]
    fn what_could_not_be_read_back_is_not_written() {
        let mut buffer = vec![9];
        assert!(matches!(
            encode_into(&vec![0_u8; FRAME_MAX], &mut buffer),
            Err(CodecError::TooLarge(_))
        ));
        assert_eq!(buffer, [9]);
    }
}
