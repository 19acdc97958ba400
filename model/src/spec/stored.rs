//! A specification as the log, snapshots and checkpoints hold it.
//!
//! It is a JSON document in a byte string. Where there are files, a NUL byte follows it, which no JSON document holds, and
//! then the files in bincode: as bytes, where JSON would take a third more for them. A build from before file mounts refuses
//! such a document, as it has to: with the document alone it would make another state of it.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::de::{BorrowDecoder, Decoder};
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{BorrowDecode, Decode, Encode};

use super::{FileMount, ServiceSpec};

/// The largest stored document of a specification, in bytes, with the files that follow it: with the name and the precondition
/// of its command it is at most 2 MiB, which is what a peer hands to the leader.
pub const SPEC_DOCUMENT_BYTES_MAX: usize = (2 << 20) - (4 << 10);

/// What stands between the document and the files; files in another layout would follow another byte.
const FILES_FOLLOW: u8 = 0;

/// Bounded, so that no length in it claims more than there can be.
const FILES: Configuration<LittleEndian, Varint, Limit<SPEC_DOCUMENT_BYTES_MAX>> =
    bincode::config::standard().with_limit::<SPEC_DOCUMENT_BYTES_MAX>();

/// The stored bytes of a specification.
pub(super) fn document(spec: &ServiceSpec) -> Result<Vec<u8>, EncodeError> {
    let mut document =
        serde_json::to_vec(spec).map_err(|error| EncodeError::OtherString(error.to_string()))?;
    if !spec.file_mounts.is_empty() {
        document.push(FILES_FOLLOW);
        bincode::encode_into_std_write(&spec.file_mounts, &mut document, FILES)?;
    }
    Ok(document)
}

fn read(stored: &[u8]) -> Result<ServiceSpec, DecodeError> {
    let end = stored.iter().position(|byte| *byte == FILES_FOLLOW);
    let (document, files) = stored.split_at(end.unwrap_or(stored.len()));
    let mut spec: ServiceSpec = serde_json::from_slice(document)
        .map_err(|error| DecodeError::OtherString(error.to_string()))?;
    if let Some(files) = files.get(1..) {
        let (mounts, read): (Vec<FileMount>, usize) = bincode::decode_from_slice(files, FILES)?;
        if read != files.len() {
            let left = files.len() - read;
            let said = format!("{left} bytes left over after the files of a specification");
            return Err(DecodeError::OtherString(said));
        }
        spec.file_mounts = mounts;
    }
    Ok(spec)
}

impl Encode for ServiceSpec {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        document(self)?.encode(encoder)
    }
}

impl<Context> Decode<Context> for ServiceSpec {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        read(&Vec::<u8>::decode(decoder)?)
    }
}

impl<'de, Context> BorrowDecode<'de, Context> for ServiceSpec {
    fn borrow_decode<D: BorrowDecoder<'de, Context = Context>>(
        decoder: &mut D,
    ) -> Result<Self, DecodeError> {
        Self::decode(decoder)
    }
}
