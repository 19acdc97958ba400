//! Calls between peers that know each other: many times a second, and on the way of every write.
//!
//! A connection carries frames of our own, both ways, with as many calls under way as there are; answers come in any
//! order. It begins with a preface, which tells it from gRPC on the same port, and with who calls whom, once. gRPC
//! stays for what is rare: greetings, joining, and the transfer of snapshots. On the way of
//! a write it was what cost most processor time (ADR 13).
//!
//! ```text
//! connection: preface (8 bytes), introduction (a head with its length), then calls →, ← answers
//! call:       length u32 | number u32 | method u8 | length of head u32 | head | body
//! answer:     length u32 | number u32 | status u8 | length of head u32 | head | body
//! ```
//! Numbers are little-endian; a length counts what follows it. Heads and bodies are those of [`super::wire`].

mod client;
mod format;
mod server;

pub(super) use self::client::{CallFailure, Connecting, connect};
pub(super) use self::format::{Method, PREFACE, Received, Refusal, RefusalKind};
pub(super) use self::server::serve;

#[cfg(test)]
mod tests;
