//! Raft's own messages on the wire, and what they are to openraft.

use std::collections::{BTreeMap, BTreeSet};

use bincode::{Decode, Encode};
use bytes::Bytes;
use openraft::errors::MembershipError;
use openraft::impls::leader_id_adv::LeaderId;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest};
use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, Membership as RaftMembership, StoredMembership};
use raftserve_model::NodeId;
use raftserve_store::Command;
use raftserve_store::raft::{PeerRecord, TypeConfig, log_id_from};
use raftserve_store::snapshot::SnapshotId;

use super::{APPEND_BYTES_MAX, WireError, append, decode_prefix};

// openraft's types by their own names: by their aliases, the compiler could not tell that they are not
// ours.
type RaftVote = openraft::Vote<LeaderId<u64, NodeId>>;
type RaftLogId = openraft::LogId<LeaderId<u64, NodeId>>;
type RaftEntry = openraft::Entry<LeaderId<u64, NodeId>, EntryPayload<Command, NodeId, PeerRecord>>;
type Stored = StoredMembership<LeaderId<u64, NodeId>, NodeId, PeerRecord>;

/// Room for each entry of an append from the start: what most take, so that a message is not copied as it grows.
const ENTRY_BYTES_USUAL: usize = 512;

/// Room is made for so many entries; a message of more grows.
const ENTRIES_EXPECTED_MAX: usize = 256;

/// Who was voted for in which term, and whether a quorum did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub(crate) struct Vote {
    term: u64,
    node: NodeId,
    committed: bool,
}

impl From<RaftVote> for Vote {
    fn from(vote: RaftVote) -> Self {
        Self {
            term: vote.leader_id.term,
            node: vote.leader_id.node_id,
            committed: vote.committed,
        }
    }
}

impl From<Vote> for RaftVote {
    fn from(vote: Vote) -> Self {
        Self {
            leader_id: LeaderId::new(vote.term, vote.node),
            committed: vote.committed,
        }
    }
}

/// An entry's place in the log, and who wrote it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct LogId {
    term: u64,
    node: NodeId,
    index: u64,
}

impl From<RaftLogId> for LogId {
    fn from(id: RaftLogId) -> Self {
        Self {
            term: id.leader_id.term,
            node: id.leader_id.node_id,
            index: id.index,
        }
    }
}

impl From<LogId> for RaftLogId {
    fn from(id: LogId) -> Self {
        Self {
            leader_id: LeaderId::new(id.term, id.node).to_committed(),
            index: id.index,
        }
    }
}

/// Who votes, and who belongs.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Membership {
    /// One configuration, or two while membership changes.
    configs: Vec<BTreeSet<NodeId>>,
    /// Voters and learners.
    nodes: BTreeMap<NodeId, PeerRecord>,
}

impl From<&RaftMembership<NodeId, PeerRecord>> for Membership {
    fn from(membership: &RaftMembership<NodeId, PeerRecord>) -> Self {
        Self {
            configs: membership.get_joint_config().clone(),
            nodes: membership
                .nodes()
                .map(|(id, record)| (*id, record.clone()))
                .collect(),
        }
    }
}

impl TryFrom<Membership> for RaftMembership<NodeId, PeerRecord> {
    type Error = MembershipError<NodeId>;

    fn try_from(membership: Membership) -> Result<Self, Self::Error> {
        // A peer that has not been initialised has a membership of nobody, which `new` refuses.
        if membership.configs.is_empty() && membership.nodes.is_empty() {
            return Ok(Self::default());
        }
        Self::new(membership.configs, membership.nodes)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
enum Payload {
    Blank,
    Command(Command),
    Membership(Membership),
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Entry {
    id: LogId,
    payload: Payload,
}

impl From<RaftEntry> for Entry {
    fn from(entry: RaftEntry) -> Self {
        Self {
            id: entry.log_id.into(),
            payload: match entry.payload {
                EntryPayload::Blank => Payload::Blank,
                EntryPayload::Normal(command) => Payload::Command(command),
                EntryPayload::Membership(membership) => Payload::Membership((&membership).into()),
            },
        }
    }
}

impl TryFrom<Entry> for RaftEntry {
    type Error = MembershipError<NodeId>;

    fn try_from(entry: Entry) -> Result<Self, Self::Error> {
        Ok(Self {
            log_id: entry.id.into(),
            payload: match entry.payload {
                Payload::Blank => EntryPayload::Blank,
                Payload::Command(command) => EntryPayload::Normal(command),
                Payload::Membership(membership) => EntryPayload::Membership(membership.try_into()?),
            },
        })
    }
}

/// An append: this heads it, and its entries follow in the body.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct AppendHead {
    vote: Vote,
    previous: Option<LogId>,
    commit: Option<LogId>,
    count: u32,
}

impl AppendHead {
    /// How many entries follow.
    pub(crate) fn count(&self) -> u64 {
        u64::from(self.count)
    }
}

/// An append that is ready to be sent.
pub(crate) struct PackedAppend {
    /// What goes first.
    pub(crate) head: AppendHead,
    /// Its entries.
    pub(crate) entries: Bytes,
    /// The last entry in it, if those that came after did not fit.
    pub(crate) cut_after: Option<RaftLogId>,
}

impl PackedAppend {
    /// Packs as many of the entries as fit into one message, and at least one.
    pub(crate) fn new(request: AppendEntriesRequest<TypeConfig>) -> Self {
        let total = request.entries.len();
        let mut entries = Vec::with_capacity(ENTRY_BYTES_USUAL * total.min(ENTRIES_EXPECTED_MAX));
        let mut count = 0;
        let mut last = None;
        for entry in request.entries {
            let (before, id) = (entries.len(), entry.log_id);
            append(&Entry::from(entry), &mut entries);
            if entries.len() > APPEND_BYTES_MAX && count > 0 {
                entries.truncate(before);
                break;
            }
            count += 1;
            last = Some(id);
        }
        Self {
            head: AppendHead {
                vote: request.vote.into(),
                previous: request.prev_log_id.map(Into::into),
                commit: request.leader_commit.map(Into::into),
                count,
            },
            entries: entries.into(),
            cut_after: last.filter(|_| (count as usize) < total),
        }
    }
}

/// Damage in an append's entries.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EntryError {
    /// One does not decode.
    #[error("entry {place} of an append")]
    Wire {
        /// Which, from 0.
        place: u32,
        #[source]
        source: WireError,
    },
    /// One holds a membership that cannot be.
    #[error("entry {place} of an append holds an impossible membership")]
    Membership {
        /// Which, from 0.
        place: u32,
        #[source]
        source: MembershipError<NodeId>,
    },
    /// Bytes are left over.
    #[error("{0} bytes after the entries of an append")]
    Trailing(usize),
}

impl EntryError {
    /// Whether an entry holds what this release has no name for, so that only a later one can follow the log.
    pub(crate) fn is_of_a_later_release(&self) -> bool {
        use bincode::error::DecodeError::UnexpectedVariant;
        let Self::Wire { source, .. } = self else {
            return false;
        };
        matches!(source, WireError::Body(UnexpectedVariant { .. }))
    }
}

impl AppendHead {
    /// The request as openraft takes it.
    ///
    /// # Errors
    /// [`EntryError`] if the entries are damaged.
    pub(crate) fn unpack(
        self,
        mut body: &[u8],
    ) -> Result<AppendEntriesRequest<TypeConfig>, EntryError> {
        // At least one byte for each entry, so that the count cannot claim more memory than came.
        let mut entries = Vec::with_capacity(body.len().min(self.count as usize));
        for place in 0..self.count {
            let (entry, read): (Entry, usize) =
                decode_prefix(body).map_err(|source| EntryError::Wire { place, source })?;
            body = &body[read..];
            let entry = entry
                .try_into()
                .map_err(|source| EntryError::Membership { place, source })?;
            entries.push(entry);
        }
        if !body.is_empty() {
            return Err(EntryError::Trailing(body.len()));
        }
        Ok(AppendEntriesRequest {
            vote: self.vote.into(),
            prev_log_id: self.previous.map(Into::into),
            entries,
            leader_commit: self.commit.map(Into::into),
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum AppendReply {
    Success,
    Partial(Option<LogId>),
    Conflict,
    HigherVote(Vote),
}

impl From<AppendEntriesResponse<TypeConfig>> for AppendReply {
    fn from(response: AppendEntriesResponse<TypeConfig>) -> Self {
        match response {
            AppendEntriesResponse::Success => Self::Success,
            AppendEntriesResponse::PartialSuccess(upto) => Self::Partial(upto.map(Into::into)),
            AppendEntriesResponse::Conflict => Self::Conflict,
            AppendEntriesResponse::HigherVote(vote) => Self::HigherVote(vote.into()),
        }
    }
}

impl From<AppendReply> for AppendEntriesResponse<TypeConfig> {
    fn from(reply: AppendReply) -> Self {
        match reply {
            AppendReply::Success => Self::Success,
            AppendReply::Partial(upto) => Self::PartialSuccess(upto.map(Into::into)),
            AppendReply::Conflict => Self::Conflict,
            AppendReply::HigherVote(vote) => Self::HigherVote(vote.into()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct VoteRequest {
    vote: Vote,
    last: Option<LogId>,
    transfer: bool,
}

impl From<openraft::raft::VoteRequest<TypeConfig>> for VoteRequest {
    fn from(request: openraft::raft::VoteRequest<TypeConfig>) -> Self {
        Self {
            vote: request.vote.into(),
            last: request.last_log_id.map(Into::into),
            transfer: request.leadership_transfer,
        }
    }
}

impl From<VoteRequest> for openraft::raft::VoteRequest<TypeConfig> {
    fn from(request: VoteRequest) -> Self {
        let mut made = Self::new(request.vote.into(), request.last.map(Into::into));
        made.leadership_transfer = request.transfer;
        made
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct VoteReply {
    vote: Vote,
    granted: bool,
    last: Option<LogId>,
}

impl From<openraft::raft::VoteResponse<TypeConfig>> for VoteReply {
    fn from(response: openraft::raft::VoteResponse<TypeConfig>) -> Self {
        Self {
            vote: response.vote.into(),
            granted: response.vote_granted,
            last: response.last_log_id.map(Into::into),
        }
    }
}

impl From<VoteReply> for openraft::raft::VoteResponse<TypeConfig> {
    fn from(reply: VoteReply) -> Self {
        Self {
            vote: reply.vote.into(),
            vote_granted: reply.granted,
            last_log_id: reply.last.map(Into::into),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct TransferRequest {
    from: Vote,
    to: NodeId,
    last: Option<LogId>,
}

impl From<TransferLeaderRequest<TypeConfig>> for TransferRequest {
    fn from(request: TransferLeaderRequest<TypeConfig>) -> Self {
        Self {
            from: (*request.from_leader()).into(),
            to: *request.to_node_id(),
            last: request.last_log_id().copied().map(Into::into),
        }
    }
}

impl From<TransferRequest> for TransferLeaderRequest<TypeConfig> {
    fn from(request: TransferRequest) -> Self {
        Self::new(
            request.from.into(),
            request.to,
            request.last.map(Into::into),
        )
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum TransferReply {
    Accepted,
    VoteChanged {
        expected: Vote,
        actual: Vote,
    },
    LogNotFlushed {
        expected: Option<LogId>,
        actual: Option<LogId>,
    },
}

impl From<openraft::raft::TransferLeaderResponse<TypeConfig>> for TransferReply {
    fn from(response: openraft::raft::TransferLeaderResponse<TypeConfig>) -> Self {
        use openraft::raft::TransferLeaderError as Refusal;
        match response {
            Ok(()) => Self::Accepted,
            Err(Refusal::VoteChanged { expected, actual }) => Self::VoteChanged {
                expected: expected.into(),
                actual: actual.into(),
            },
            Err(Refusal::LogNotFlushed { expected, actual }) => Self::LogNotFlushed {
                expected: expected.map(Into::into),
                actual: actual.map(Into::into),
            },
        }
    }
}

impl From<TransferReply> for openraft::raft::TransferLeaderResponse<TypeConfig> {
    fn from(reply: TransferReply) -> Self {
        use openraft::raft::TransferLeaderError as Refusal;
        match reply {
            TransferReply::Accepted => Ok(()),
            TransferReply::VoteChanged { expected, actual } => Err(Refusal::VoteChanged {
                expected: expected.into(),
                actual: actual.into(),
            }),
            TransferReply::LogNotFlushed { expected, actual } => Err(Refusal::LogNotFlushed {
                expected: expected.map(Into::into),
                actual: actual.map(Into::into),
            }),
        }
    }
}

/// What a snapshot holds, sent before its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct SnapshotHead {
    /// The sending leader's.
    pub(crate) vote: Vote,
    /// The last entry in it.
    pub(crate) last: Option<LogId>,
    /// Where the membership in it was decided.
    pub(crate) membership_at: Option<LogId>,
    /// The membership in it.
    pub(crate) membership: Membership,
    /// How long the file is.
    pub(crate) bytes: u64,
    /// The sum of its bytes: with the above it tells whether two files are the same.
    pub(crate) checksum: u32,
}

impl SnapshotHead {
    /// Describes a snapshot of `bytes` bytes that add up to `checksum`.
    pub(crate) fn new(
        vote: RaftVote,
        meta: &openraft::alias::SnapshotMetaOf<TypeConfig>,
        bytes: u64,
        checksum: u32,
    ) -> Self {
        Self {
            vote: vote.into(),
            last: meta.last_log_id.map(Into::into),
            membership_at: meta.last_membership.log_id().map(Into::into),
            membership: meta.last_membership.membership().into(),
            bytes,
            checksum,
        }
    }

    /// What tells it from any other.
    pub(crate) fn id(&self) -> SnapshotId {
        SnapshotId {
            last: self.last.map(|last| log_id_from(&last.into())),
            size: self.bytes,
            checksum: self.checksum,
        }
    }

    /// What openraft wants to know about it.
    ///
    /// # Errors
    /// If the membership cannot be.
    pub(crate) fn meta(
        self,
    ) -> Result<openraft::alias::SnapshotMetaOf<TypeConfig>, MembershipError<NodeId>> {
        Ok(openraft::alias::SnapshotMetaOf::<TypeConfig> {
            last_log_id: self.last.map(Into::into),
            last_membership: Stored::new(
                self.membership_at.map(Into::into),
                self.membership.try_into()?,
            ),
        })
    }
}

/// What the receiver of a snapshot says, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum SnapshotAnswer {
    /// Send it from this byte on: what is before was received earlier.
    From(u64),
    /// So many bytes are there now.
    Has(u64),
    /// All is there, and is being verified and installed.
    Installing,
    /// It is installed, or was not needed; the vote that is held.
    Done(Vote),
}

#[cfg(test)]
mod tests;
