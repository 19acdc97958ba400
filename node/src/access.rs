//! Who may speak to a peer: the certificates by which peers know each other and clients know a peer.
//!
//! What is read from files is read again when they change, without a restart. A handshake uses one set of
//! files that was read and checked whole; what cannot be used changes nothing, is told and counted.

pub mod certificates;

mod stream;

pub use certificates::{AccessError, Certificates};
pub(crate) use stream::{ReadSide, Stream, WriteSide};
