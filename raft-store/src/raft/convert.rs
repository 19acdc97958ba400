//! Between openraft's structures and those that are stored and sent.

use openraft::alias::{EntryOf, LogIdOf, StoredMembershipOf, VoteOf};
use openraft::entry::RaftEntry;
use openraft::impls::leader_id_adv::LeaderId;
use openraft::{EntryPayload, Membership as RaftMembership};
use raftserve_model::{LogIndex, NodeId};

use super::TypeConfig;
use crate::codec::{self, CodecError};
use crate::entry::{AppliedMembership, LogId, Membership, Payload, PayloadRef, PeerRecord, Vote};
use crate::wal::EncodedEntry;

/// A log id as openraft has it.
#[must_use]
pub fn log_id_to(id: LogId) -> LogIdOf<TypeConfig> {
    let leader_id = LeaderId {
        term: id.term,
        node_id: id.node,
    };
    LogIdOf::<TypeConfig> {
        leader_id,
        index: id.index.0,
    }
}

/// A log id as it is stored.
#[must_use]
pub fn log_id_from(id: &LogIdOf<TypeConfig>) -> LogId {
    LogId {
        term: id.leader_id.term,
        node: id.leader_id.node_id,
        index: LogIndex(id.index),
    }
}

/// A vote as openraft has it.
#[must_use]
pub fn vote_to(vote: Vote) -> VoteOf<TypeConfig> {
    let leader_id = LeaderId {
        term: vote.term,
        node_id: vote.node,
    };
    VoteOf::<TypeConfig> {
        leader_id,
        committed: vote.committed,
    }
}

/// A vote as it is stored.
#[must_use]
pub fn vote_from(vote: &VoteOf<TypeConfig>) -> Vote {
    Vote {
        term: vote.leader_id.term,
        node: vote.leader_id.node_id,
        committed: vote.committed,
    }
}

/// A configuration as openraft has it.
///
/// # Errors
/// One that openraft holds for invalid: an empty set of voters, or a voter that is not a member.
pub fn membership_to(
    membership: Membership,
) -> Result<RaftMembership<NodeId, PeerRecord>, InvalidMembership> {
    RaftMembership::new(membership.configs, membership.nodes)
        .map_err(|error| InvalidMembership(error.to_string()))
}

/// A stored configuration that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid membership: {0}")]
pub struct InvalidMembership(String);

/// A configuration as it is stored.
#[must_use]
pub fn membership_from(membership: &RaftMembership<NodeId, PeerRecord>) -> Membership {
    Membership {
        configs: membership.get_joint_config().clone(),
        nodes: membership
            .nodes()
            .map(|(id, node)| (*id, node.clone()))
            .collect(),
    }
}

pub(super) fn applied_membership_to(
    applied: &AppliedMembership,
) -> Result<StoredMembershipOf<TypeConfig>, InvalidMembership> {
    let membership = membership_to(applied.membership.clone())?;
    Ok(StoredMembershipOf::<TypeConfig>::new(
        applied.log_id.map(log_id_to),
        membership,
    ))
}

/// The payload of an entry as it is stored.
fn encode_payload(entry: &EntryOf<TypeConfig>, buffer: &mut Vec<u8>) -> Result<(), CodecError> {
    let payload = match &entry.payload {
        EntryPayload::Blank => PayloadRef::Blank,
        EntryPayload::Normal(command) => PayloadRef::Command(command),
        EntryPayload::Membership(membership) => PayloadRef::Membership(membership_from(membership)),
    };
    codec::encode_into(&payload, buffer)
}

fn entry_of(id: LogId, payload: Payload) -> Result<EntryOf<TypeConfig>, EntryError> {
    let payload = match payload {
        Payload::Blank => EntryPayload::Blank,
        Payload::Command(command) => EntryPayload::Normal(command),
        Payload::Membership(membership) => {
            EntryPayload::Membership(membership_to(membership).map_err(EntryError::Membership)?)
        }
    };
    Ok(EntryOf::<TypeConfig>::new(log_id_to(id), payload))
}

/// Bytes that are no entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// Damaged, or of a later release.
    #[error("cannot decode an entry")]
    Codec(#[source] CodecError),
    /// It sets an invalid configuration.
    #[error("entry with an invalid membership")]
    Membership(#[source] InvalidMembership),
}

pub(super) fn to_stored(entry: &EntryOf<TypeConfig>) -> Result<EncodedEntry, CodecError> {
    EncodedEntry::new(log_id_from(&entry.log_id), |buffer| {
        encode_payload(entry, buffer)
    })
}

pub(super) fn from_stored(entry: &EncodedEntry) -> Result<EntryOf<TypeConfig>, EntryError> {
    let payload = codec::decode(entry.payload()).map_err(EntryError::Codec)?;
    entry_of(entry.id, payload)
}

/// An entry as it is sent to another peer: a frame of its id and payload.
///
/// # Errors
/// [`CodecError`] if it is too large.
pub fn encode_entry(entry: &EntryOf<TypeConfig>) -> Result<Vec<u8>, CodecError> {
    let mut frame = codec::encode(&log_id_from(&entry.log_id))?;
    let id_length = u8::try_from(frame.len()).expect("three numbers take at most 28 bytes");
    frame.insert(0, id_length);
    encode_payload(entry, &mut frame)?;
    Ok(frame)
}

/// An entry that another peer sent.
///
/// # Errors
/// [`EntryError`].
pub fn decode_entry(frame: &[u8]) -> Result<EntryOf<TypeConfig>, EntryError> {
    let empty = || EntryError::Codec(CodecError::Empty);
    let (&id_length, rest) = frame.split_first().ok_or_else(empty)?;
    let (id, payload) = rest.split_at_checked(id_length.into()).ok_or_else(empty)?;
    let id = codec::decode(id).map_err(EntryError::Codec)?;
    let payload = codec::decode(payload).map_err(EntryError::Codec)?;
    entry_of(id, payload)
}
