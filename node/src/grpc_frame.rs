//! What is around one message of gRPC, for calls that are made or answered without tonic.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

/// What is before each message: whether it is compressed, and its length.
pub(crate) const PREFIX_BYTES: usize = 5;

/// `message`, not compressed, as it is on the wire. It has to be shorter than 4 GiB.
pub(crate) fn frame<M: Message>(message: &M) -> Bytes {
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + length);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).expect("messages are KiB long"));
    message
        .encode(&mut framed)
        .expect("there is room for all of it");
    framed.freeze()
}
