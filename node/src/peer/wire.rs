//! What peers put into the frames they send each other: structs of our own, so that neither
//! openraft's types nor gRPC decide the format. A frame's head is one version byte and a bincode
//! body. Readers refuse versions they do not know; enums only ever gain variants at their end.

use std::collections::BTreeMap;

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::enc::write::SizeWriter;
use bincode::{Decode, Encode};
use bytes::Bytes;
use raftserve_model::{
    ClusterId, ClusterVersion, Incarnation, NodeId, ReplicaId, ServiceId, VersionRange,
};
use raftserve_store::command::Action;
use raftserve_store::formats::PEER_MESSAGE;
use raftserve_store::raft::acked::Cut;
use raftserve_store::raft::{PeerRecord, StateCheck, log_id_to, vote_to};
use raftserve_store::state::Promotion;
use raftserve_store::{Command, Outcome};

use super::foreign::Foreigner;
use super::room::Room;
use super::steward::plan::Vote;

#[cfg(test)]
pub(crate) mod kept;
pub(crate) mod raft;

/// Frames are written in this version.
const VERSION: u8 = PEER_MESSAGE;

/// The most that any frame decodes to: twice the largest message that is ever sent, so that no
/// hostile length prefix can claim more.
const DECODED_BYTES_MAX: usize = 16 << 20;

/// The most bytes of log entries in one append: large enough to fill a link, small enough that a
/// heartbeat's deadline does not pass while one is being read.
pub(crate) const APPEND_BYTES_MAX: usize = 4 << 20;

/// The most bytes of one proposed command, so that an append always has room for at least one.
pub(crate) const COMMAND_BYTES_MAX: usize = 2 << 20;

/// The bytes of a snapshot in one frame: a transfer's progress is seen often, and its frames do
/// not hold up a connection.
pub(crate) const SNAPSHOT_FRAME_BYTES: usize = 256 << 10;

/// What gRPC accepts as one message: an append of [`APPEND_BYTES_MAX`] and its head, with room.
pub(crate) const MESSAGE_BYTES_MAX: usize = 8 << 20;

const CONFIG: Configuration<LittleEndian, Varint, Limit<DECODED_BYTES_MAX>> =
    bincode::config::standard().with_limit::<DECODED_BYTES_MAX>();

/// A frame that is not what it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// It has no version byte.
    #[error("an empty frame")]
    Empty,
    /// It was written by a release that this one does not understand.
    #[error(
        "a message has version {0}, and this release reads {VERSION}: run releases next to each other"
    )]
    Version(u8),
    /// Its body is damaged.
    #[error("a frame that does not decode")]
    Body(#[source] bincode::error::DecodeError),
    /// It goes on after its end.
    #[error("a frame with {0} bytes after its end")]
    Trailing(usize),
}

/// A message as the head of a frame.
pub(crate) fn encode<T: Encode>(message: &T) -> Bytes {
    let mut bytes = vec![VERSION];
    append(message, &mut bytes);
    bytes.into()
}

/// Adds a message's bytes, without a version, to `bytes`.
fn append<T: Encode>(message: &T, bytes: &mut Vec<u8>) {
    bincode::encode_into_std_write(message, bytes, CONFIG)
        .expect("writing into a Vec does not fail, and our types encode");
}

/// How many bytes a message takes.
pub(crate) fn size_of<T: Encode>(message: &T) -> usize {
    let mut counter = SizeWriter::default();
    bincode::encode_into_writer(message, &mut counter, CONFIG).expect("our types encode");
    counter.bytes_written
}

/// The message in the head of a frame.
///
/// # Errors
/// [`WireError`] if it is of another version or damaged.
pub(crate) fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, WireError> {
    let (&version, body) = bytes.split_first().ok_or(WireError::Empty)?;
    if version != VERSION {
        return Err(WireError::Version(version));
    }
    let (message, read) = decode_prefix(body)?;
    match body.len() - read {
        0 => Ok(message),
        rest => Err(WireError::Trailing(rest)),
    }
}

fn decode_prefix<T: Decode<()>>(bytes: &[u8]) -> Result<(T, usize), WireError> {
    bincode::decode_from_slice(bytes, CONFIG).map_err(WireError::Body)
}

/// Where a peer is to be found in its present life, as it says itself.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Announcement {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its Raft id.
    pub node: NodeId,
    /// The nonce of its data directory.
    pub nonce: u64,
    /// Its present life.
    pub incarnation: Incarnation,
    /// `host:port` of its peer port.
    pub peer_address: String,
    /// `host:port` of its admin port.
    pub admin_address: String,
    /// `host:port` of its proxy port.
    pub proxy_address: String,
    /// Equal for peers that share a host.
    pub host: String,
    /// Its release.
    pub version: String,
    /// The cluster versions that its release can work in.
    pub supports: VersionRange,
}

/// Where a peer stands between an empty directory and a running cluster.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Standing {
    /// Its directory is empty but for its nonce.
    Pristine {
        /// Of its directory.
        nonce: u64,
    },
    /// It has an identity on disk.
    Member {
        /// Its cluster.
        cluster: ClusterId,
        /// Its Raft id.
        node: NodeId,
        /// Of its directory.
        nonce: u64,
        /// Whether it has ever voted or held a log entry: then the cluster is under way.
        initialised: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct HelloRequest {
    pub(crate) from: Option<Announcement>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct HelloReply {
    pub(crate) standing: Standing,
    pub(crate) announcement: Option<Announcement>,
    /// The version of its cluster, if it runs: who cannot work in it must not join.
    pub(crate) cluster_version: Option<ClusterVersion>,
    /// Whether who asks was removed from the cluster of both.
    pub(crate) removed: bool,
    /// Where it knows the other members to be, if who asks is one of them: places to ask, no more. Of a peer that belongs to
    /// no cluster, where those are who look there for one of theirs.
    pub(crate) places: Vec<String>,
}

/// "Let me in": asked by a peer whose directory is empty.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct JoinRequest {
    /// Of its data directory.
    pub(crate) nonce: u64,
    /// `host:port` of its peer port.
    pub(crate) address: String,
    /// When it becomes a voter.
    pub(crate) promotion: Promotion,
    /// The cluster versions that its release can work in.
    pub(crate) supports: VersionRange,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum JoinReply {
    /// It is peer `node` of `cluster`, now and whenever it asks again.
    Admitted { cluster: ClusterId, node: NodeId },
    /// Ask again.
    NotYet(String),
    /// To ask again would not help.
    Refused(String),
}

/// What is asked of the leader about members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum ManageTask {
    /// How they are.
    Health,
    /// That one goes.
    Remove(NodeId),
    /// That a learner becomes a voter.
    Promote(NodeId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ManageRequest {
    pub(crate) task: ManageTask,
    pub(crate) within_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum ManageReply {
    /// It is in the log; the leader sees to it.
    Agreed,
    Health(Vec<MemberHealth>),
    NotLeader {
        leader: Option<NodeId>,
    },
    NoSuchPeer,
    Refused(String),
    /// It may be asked again.
    Failed(String),
    /// It is certain not to have entered the log, and may be asked again.
    NotProposed(String),
}

/// How a member looks to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct MemberHealth {
    /// The member.
    pub node: NodeId,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it answers.
    pub answers: bool,
    /// The last entry that it is known to hold.
    pub matched: Option<u64>,
    /// How many entries it is behind; none if that is not known, or if it has to be sent a snapshot first.
    pub lag: Option<u64>,
    /// For how long it has answered and been caught up without a break, as far as this leader has seen.
    pub healthy_for_ms: Option<u64>,
    /// How long ago it answered last; none if never.
    pub silent_ms: Option<u64>,
    /// For how long the disk of its log had not answered when it last told, if that was long.
    pub stalled_ms: Option<u64>,
    /// How much room it said last is left where its log is.
    pub room: Option<Room>,
    /// A peer of another cluster that it has met lately.
    pub foreigner: Option<Foreigner>,
    /// Whether it votes, or how it may come to.
    pub vote: Vote,
}

/// The members of a cluster that is being bootstrapped, in the order of their ids from 1.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Plan {
    pub(crate) cluster: ClusterId,
    pub(crate) members: Vec<PeerRecord>,
}

/// "You are `node` of this cluster."
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct AdoptRequest {
    pub(crate) plan: Plan,
    pub(crate) node: NodeId,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum AdoptReply {
    /// The identity is on disk, now or since an earlier request.
    Adopted,
    /// It is not taken, and why.
    Refused(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ProposeRequest {
    pub(crate) action: Action,
    pub(crate) within_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum ProposeReply {
    Done { index: u64, outcome: Outcome },
    NotLeader { leader: Option<NodeId> },
    NotProposed(String),
    Unknown(String),
    NotFinalized(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ReadIndexRequest {
    pub(crate) within_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum ReadIndexReply {
    Index(u64),
    NotLeader { leader: Option<NodeId> },
    Failed(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct MoveLeaderRequest {
    pub(crate) target: Option<NodeId>,
    pub(crate) within_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum MoveLeaderReply {
    Moved(NodeId),
    NotLeader { leader: Option<NodeId> },
    Failed(String),
}

/// "You have lost `missing`: under my vote you had acknowledged all entries before `acked`."
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct LogCut {
    pub(crate) vote: raft::Vote,
    pub(crate) missing: raft::LogId,
    pub(crate) acked: u64,
}

impl From<Cut> for LogCut {
    fn from(cut: Cut) -> Self {
        Self {
            vote: vote_to(cut.vote).into(),
            missing: log_id_to(cut.missing).into(),
            acked: cut.acked,
        }
    }
}

/// Of what the leader's remarks are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct RemarksRequest {
    pub(crate) services: Vec<ServiceId>,
    pub(crate) replicas: Vec<ReplicaId>,
}

/// What the leader's controller sees of services and replicas at the moment: why one is empty, or not ready yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Remarks {
    /// Of services.
    pub services: BTreeMap<ServiceId, String>,
    /// Of replicas.
    pub replicas: BTreeMap<ReplicaId, String>,
}

/// Heads an exchange; the body is the handlers' own.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ExchangeHead {
    /// The life of who sends this.
    pub(crate) incarnation: Incarnation,
    /// The life of who receives it, if it has announced itself.
    pub(crate) known: Option<Incarnation>,
    /// The sender's newest digests of its state.
    pub(crate) checks: Vec<StateCheck>,
    /// For how long the disk of the sender's log has not answered, if that is long.
    pub(crate) stalled_ms: Option<u64>,
    /// How much room is left where the sender's log is, if it knows.
    pub(crate) room: Option<Room>,
    /// A peer of another cluster that the sender has met lately.
    pub(crate) foreigner: Option<Foreigner>,
}

/// The bytes that a command adds to an append.
pub(crate) fn command_size(command: &Command) -> usize {
    size_of(command)
}

#[cfg(test)]
mod tests {
    use raftserve_store::state::Digest;

    use super::kept::Kept;
    use super::*;

    #[test]
    fn frames_of_other_versions_and_damaged_frames_are_refused() {
        let head = ExchangeHead {
            incarnation: Incarnation(7),
            known: None,
            checks: Vec::new(),
            stalled_ms: None,
            room: None,
            foreigner: None,
        };
        let frame = encode(&head);
        assert_eq!(decode::<ExchangeHead>(&frame).unwrap(), head);

        let mut newer = frame.to_vec();
        newer[0] = VERSION + 1;
        assert!(matches!(
            decode::<ExchangeHead>(&newer),
            Err(WireError::Version(_))
        ));
        assert!(matches!(
            decode::<ExchangeHead>(&frame[..frame.len() - 1]),
            Err(WireError::Body(_))
        ));
        let mut longer = frame.to_vec();
        longer.push(0);
        assert!(matches!(
            decode::<ExchangeHead>(&longer),
            Err(WireError::Trailing(1))
        ));
        assert!(matches!(decode::<ExchangeHead>(&[]), Err(WireError::Empty)));
    }

    fn announcement() -> Announcement {
        Announcement {
            cluster: ClusterId([7; 16]),
            node: NodeId(3),
            nonce: 1 << 40,
            incarnation: Incarnation(300),
            peer_address: "a:1".to_owned(),
            admin_address: "a:2".to_owned(),
            proxy_address: "a:3".to_owned(),
            host: "h".to_owned(),
            version: "0".to_owned(),
            supports: VersionRange::new(1, 2),
        }
    }

    fn room() -> Room {
        Room {
            free: 21,
            total: 22,
            is_short: true,
        }
    }

    fn foreigner() -> Foreigner {
        Foreigner {
            cluster: ClusterId([23; 16]),
            node: NodeId(24),
        }
    }

    fn health(vote: Vote) -> MemberHealth {
        MemberHealth {
            node: NodeId(4),
            voter: true,
            answers: false,
            matched: Some(5),
            lag: Some(6),
            healthy_for_ms: Some(7),
            silent_ms: Some(8),
            stalled_ms: Some(9),
            vote,
            room: Some(room()),
            foreigner: Some(foreigner()),
        }
    }

    #[test]
    fn messages_keep_their_bytes() {
        let kept = Kept::of(include_str!("wire/v1/peers.txt"));
        let text = || "why".to_owned();
        let (cluster, node) = (ClusterId([7; 16]), NodeId(3));
        kept.message("announcement", &announcement());
        let standings = [
            Standing::Pristine { nonce: 9 },
            Standing::Member {
                cluster,
                node,
                nonce: 10,
                initialised: true,
            },
        ];
        kept.variants("standing", &standings);
        kept.message("hello request", &HelloRequest { from: None });
        let from = Some(announcement());
        kept.message("hello request of a member", &HelloRequest { from });
        let [pristine, member] = standings;
        let pristine = HelloReply {
            standing: pristine,
            announcement: None,
            cluster_version: None,
            removed: false,
            places: vec!["p".to_owned()],
        };
        kept.message("hello reply", &pristine);
        let member = HelloReply {
            standing: member,
            announcement: Some(announcement()),
            cluster_version: Some(ClusterVersion(2)),
            removed: true,
            places: vec!["p".to_owned(), "q".to_owned()],
        };
        kept.message("hello reply of a member", &member);
        let promotions = [Promotion::Automatic, Promotion::Manual, Promotion::Ordered];
        kept.variants("promotion", &promotions);
        let join = JoinRequest {
            nonce: 11,
            address: "a:1".to_owned(),
            promotion: Promotion::Manual,
            supports: VersionRange::new(1, 2),
        };
        kept.message("join request", &join);
        kept.variants(
            "join reply",
            &[
                JoinReply::Admitted { cluster, node },
                JoinReply::NotYet(text()),
                JoinReply::Refused(text()),
            ],
        );
        let tasks = [
            ManageTask::Health,
            ManageTask::Remove(node),
            ManageTask::Promote(NodeId(4)),
        ];
        kept.variants("task", &tasks);
        let manage = ManageRequest {
            task: ManageTask::Remove(node),
            within_ms: 12,
        };
        kept.message("manage request", &manage);
        let votes = [
            Vote::Has,
            Vote::Due,
            Vote::NeedsAnother,
            Vote::ByHand,
            Vote::Leaving,
            Vote::LogCut,
        ];
        kept.variants("vote of a member", &votes);
        kept.variants(
            "manage reply",
            &[
                ManageReply::Agreed,
                ManageReply::Health(votes.map(health).to_vec()),
                ManageReply::NotLeader { leader: Some(node) },
                ManageReply::NoSuchPeer,
                ManageReply::Refused(text()),
                ManageReply::Failed(text()),
                ManageReply::NotProposed(text()),
            ],
        );
        let record = |nonce: u64| PeerRecord {
            nonce,
            address: format!("a:{nonce}"),
        };
        let adopt = AdoptRequest {
            plan: Plan {
                cluster,
                members: vec![record(1), record(2)],
            },
            node,
        };
        kept.message("adopt request", &adopt);
        kept.variants(
            "adopt reply",
            &[AdoptReply::Adopted, AdoptReply::Refused(text())],
        );
        let propose = ProposeRequest {
            action: Action::OpenClient,
            within_ms: 250,
        };
        kept.message("propose request", &propose);
        kept.variants(
            "propose reply",
            &[
                ProposeReply::Done {
                    index: 77,
                    outcome: Outcome::Index(raftserve_model::LogIndex(78)),
                },
                ProposeReply::NotLeader { leader: Some(node) },
                ProposeReply::NotProposed(text()),
                ProposeReply::Unknown(text()),
                ProposeReply::NotFinalized(text()),
            ],
        );
        kept.message("read request", &ReadIndexRequest { within_ms: 13 });
        kept.variants(
            "read reply",
            &[
                ReadIndexReply::Index(14),
                ReadIndexReply::NotLeader { leader: Some(node) },
                ReadIndexReply::Failed(text()),
            ],
        );
        let request = MoveLeaderRequest {
            target: Some(node),
            within_ms: 15,
        };
        kept.message("move leader request", &request);
        kept.variants(
            "move leader reply",
            &[
                MoveLeaderReply::Moved(node),
                MoveLeaderReply::NotLeader { leader: None },
                MoveLeaderReply::Failed(text()),
            ],
        );
        let remarks = RemarksRequest {
            services: vec![ServiceId::default()],
            replicas: vec![ReplicaId::default()],
        };
        kept.message("remarks request", &remarks);
        let remarks = Remarks {
            services: BTreeMap::from([(ServiceId::default(), "s".to_owned())]),
            replicas: BTreeMap::from([(ReplicaId::default(), "r".to_owned())]),
        };
        kept.message("remarks", &remarks);
        let head = ExchangeHead {
            incarnation: Incarnation(16),
            known: Some(Incarnation(17)),
            checks: vec![StateCheck {
                index: raftserve_model::LogIndex(18),
                digest: Digest([19; 32]),
            }],
            stalled_ms: Some(20),
            room: Some(room()),
            foreigner: Some(foreigner()),
        };
        kept.message("exchange head", &head);
        kept.finish();
    }

    #[test]
    fn a_hostile_length_prefix_is_an_error() {
        // A sequence that claims 2^60 bytes.
        let bytes = [&[VERSION, 1, 253][..], &(1u64 << 60).to_le_bytes()].concat();
        assert!(decode::<Option<Vec<u8>>>(&bytes).is_err());
    }
}
