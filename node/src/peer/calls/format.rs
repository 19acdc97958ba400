//! The bytes of calls and answers.

use std::io;

use bincode::{Decode, Encode};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use raftserve_model::{ClusterId, NodeId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::peer::directory::Caller;
use crate::peer::rpc::Frame;
use crate::peer::wire::MESSAGE_BYTES_MAX;

/// Begins a connection: a name that no HTTP/2 connection begins with, and the format's version.
pub(crate) const PREFACE: [u8; 8] = *b"rsPeers\x01";

/// What stands between a frame's length and its head.
const FIXED: usize = 4 + 1 + 4;

/// The longest frame: the largest message, and what stands before it.
const FRAME_BYTES_MAX: usize = MESSAGE_BYTES_MAX + FIXED;

/// How much room a read has at least: many small frames, which are most.
const READ_BYTES_MIN: usize = 8 << 10;

/// Up to this size head and body are put together for one write; beyond it, copying would cost more than a second
/// write.
const JOIN_BYTES_MAX: usize = 64 << 10;

/// What is asked. The numbers are the format's: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Method {
    /// The sender's addresses and life; answered with the receiver's. The first call of a connection.
    Announce = 1,
    /// Raft: log replication and heartbeats.
    Append = 2,
    /// Raft: a vote in an election.
    Vote = 3,
    /// Raft: whether a vote would be given.
    PreVote = 4,
    /// Raft: the leader hands over.
    TransferLeader = 5,
    /// A proposal, forwarded to the leader.
    Propose = 6,
    /// The index from which a read is linearizable, asked of the leader.
    ReadIndex = 7,
    /// A request to hand over leadership, forwarded to the leader.
    MoveLeader = 8,
    /// What is asked of the leader about members.
    Manage = 9,
    /// Small news, many times a second.
    Exchange = 10,
    /// The leader has seen that the receiver's log lost entries.
    LogCut = 11,
    /// What the leader's controller sees of services and replicas.
    Remarks = 12,
}

impl Method {
    const ALL: [Self; 12] = [
        Self::Announce,
        Self::Append,
        Self::Vote,
        Self::PreVote,
        Self::TransferLeader,
        Self::Propose,
        Self::ReadIndex,
        Self::MoveLeader,
        Self::Manage,
        Self::Exchange,
        Self::LogCut,
        Self::Remarks,
    ];

    /// The method of a call, or none if this release does not know it.
    pub(crate) fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|it| *it as u8 == number)
    }
}

/// Why a call was refused by who received it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Of which kind.
    pub(crate) kind: RefusalKind,
    /// In words.
    pub(crate) reason: String,
}

/// The kinds of refusals. The numbers are the format's: append only; 0 is an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RefusalKind {
    /// The receiver is still starting, or stops.
    Unavailable = 1,
    /// The caller does not belong here.
    Stranger = 2,
    /// The call does not decode, or its method is not known.
    Damaged = 3,
    /// The caller speaks for a peer that another process speaks for.
    Copy = 4,
}

impl RefusalKind {
    /// The kind by its number. One that is not known is a failure like any other.
    pub(crate) fn of(number: u8) -> Self {
        match number {
            2 => Self::Stranger,
            3 => Self::Damaged,
            4 => Self::Copy,
            _ => Self::Unavailable,
        }
    }
}

/// Who calls whom, said once for each connection.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Introduction {
    cluster: ClusterId,
    target: NodeId,
    node: NodeId,
    nonce: u64,
}

impl From<Caller> for Introduction {
    fn from(caller: Caller) -> Self {
        let Caller {
            cluster,
            target,
            node,
            nonce,
            life: _,
        } = caller;
        Self {
            cluster,
            target,
            node,
            nonce,
        }
    }
}

impl From<Introduction> for Caller {
    fn from(said: Introduction) -> Self {
        let Introduction {
            cluster,
            target,
            node,
            nonce,
        } = said;
        Self {
            cluster,
            target,
            node,
            nonce,
            life: None,
        }
    }
}

/// A call or an answer as it was read.
#[derive(Debug)]
pub(crate) struct Received {
    /// Which call.
    pub(crate) number: u32,
    /// Its method, or its answer's status.
    pub(crate) tag: u8,
    /// Head and body.
    pub(crate) frame: Frame,
}

/// Reads frames. What was read of one is kept when a read is given up.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    from: R,
    buffer: BytesMut,
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// A reader of `from`.
    pub(crate) fn new(from: R) -> Self {
        Self {
            from,
            buffer: BytesMut::new(),
        }
    }

    /// The next `count` bytes. Cancel safe.
    async fn exact(&mut self, count: usize) -> io::Result<Bytes> {
        while self.buffer.len() < count {
            let lacking = count - self.buffer.len();
            self.buffer.reserve(lacking.max(READ_BYTES_MIN));
            if self.from.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.buffer.split_to(count).freeze())
    }

    /// The preface, if that is how the connection begins.
    pub(crate) async fn preface(&mut self) -> io::Result<()> {
        if *self.exact(PREFACE.len()).await? == PREFACE {
            return Ok(());
        }
        Err(damaged("the connection begins as that of another release"))
    }

    /// Bytes with their length before them: the introduction.
    pub(crate) async fn introduction(&mut self) -> io::Result<Bytes> {
        let length = self.exact(4).await?.get_u32_le() as usize;
        if length > READ_BYTES_MIN {
            return Err(damaged("an introduction that is too long"));
        }
        self.exact(length).await
    }

    /// The next call or answer. Cancel safe.
    pub(crate) async fn next(&mut self) -> io::Result<Received> {
        loop {
            if let Some(received) = self.parse()? {
                return Ok(received);
            }
            let lacking = self.lacking();
            self.buffer.reserve(lacking.max(READ_BYTES_MIN));
            if self.from.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn length(&self) -> Option<usize> {
        let mut head = self.buffer.get(..4)?;
        Some(head.get_u32_le() as usize)
    }

    fn lacking(&self) -> usize {
        let whole = self.length().map_or(4, |length| 4 + length);
        whole.saturating_sub(self.buffer.len())
    }

    fn parse(&mut self) -> io::Result<Option<Received>> {
        let Some(length) = self.length() else {
            return Ok(None);
        };
        if !(FIXED..=FRAME_BYTES_MAX).contains(&length) {
            return Err(damaged("a frame of an impossible length"));
        }
        if self.buffer.len() < 4 + length {
            return Ok(None);
        }
        self.buffer.advance(4);
        let mut frame = self.buffer.split_to(length).freeze();
        let (number, tag) = (frame.get_u32_le(), frame.get_u8());
        let head = frame.get_u32_le() as usize;
        if head > frame.len() {
            return Err(damaged("a head that is longer than its frame"));
        }
        let head = frame.split_to(head);
        let frame = Frame { head, body: frame };
        Ok(Some(Received { number, tag, frame }))
    }
}

/// Puts what begins a connection into bytes.
pub(crate) fn begin(introduction: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(PREFACE.len() + 4 + introduction.len());
    bytes.put_slice(&PREFACE);
    bytes.put_u32_le(u32::try_from(introduction.len()).expect("some bytes"));
    bytes.put_slice(introduction);
    bytes.freeze()
}

/// Whether a message is within what peers take.
pub(crate) fn fits(frame: &Frame) -> bool {
    FIXED + frame.head.len() + frame.body.len() <= FRAME_BYTES_MAX
}

/// Writes a call or an answer that [`fits`]. While some of it is written and some is not, `is_partial` is true: if it
/// is given up then, the connection can carry nothing more.
///
/// # Errors
/// What the system says.
pub(crate) async fn write<W: AsyncWrite + Unpin>(
    to: &mut W,
    number: u32,
    tag: u8,
    frame: &Frame,
    is_partial: &mut bool,
) -> io::Result<()> {
    let length = FIXED + frame.head.len() + frame.body.len();
    let is_joined = length <= JOIN_BYTES_MAX;
    let first = if is_joined {
        length
    } else {
        FIXED + frame.head.len()
    };
    let mut bytes = BytesMut::with_capacity(4 + first);
    bytes.put_u32_le(u32::try_from(length).expect("it fits"));
    bytes.put_u32_le(number);
    bytes.put_u8(tag);
    bytes.put_u32_le(u32::try_from(frame.head.len()).expect("less than the whole"));
    bytes.put_slice(&frame.head);
    if is_joined {
        bytes.put_slice(&frame.body);
    }
    while !bytes.is_empty() {
        let count = to.write(&bytes).await?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        *is_partial = true;
        bytes.advance(count);
    }
    if !is_joined {
        to.write_all(&frame.body).await?;
    }
    // TLS keeps what the socket did not take at once.
    to.flush().await?;
    *is_partial = false;
    Ok(())
}
