//! The side that answers.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use raftserve_model::Incarnation;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::format::{Introduction, Method, Reader, Received, Refusal, RefusalKind, fits, write};
use crate::peer::directory::Caller;
use crate::peer::rpc::Frame;
use crate::peer::wire::{self, Announcement};

/// Calls that one connection may have under way: as many proposals as Raft queues. More wait in the connection.
const CALLS_MAX: usize = 4096;

/// How long a connection may take from its start to its first call.
const BEGIN_WITHIN: Duration = Duration::from_secs(5);

/// Serves a connection to its end: `answer` answers a call of a caller. Calls run side by side; those that are under
/// way when the connection ends are given up.
///
/// # Errors
/// What ended it, unless it was closed between two calls.
pub(crate) async fn serve<R, W, A, F>(from: R, mut to: W, answer: A) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    A: Fn(Caller, Method, Frame) -> F,
    F: Future<Output = Result<Frame, Refusal>>,
{
    let mut from = Reader::new(from);
    let begun = timeout(BEGIN_WITHIN, begin(&mut from)).await;
    let (mut caller, first) = begun.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let answer = Arc::new(answer);
    let mut under_way = FuturesUnordered::new();
    let mut first = Some(first);
    loop {
        tokio::select! {
            biased;
            Some((number, announced, answered)) = under_way.next() => {
                if let (Some(life), Ok(_)) = (announced, &answered) {
                    caller.life = Some(life);
                }
                if respond(&mut to, number, answered).await? {
                    return Ok(());
                }
            }
            received = next(&mut first, &mut from), if under_way.len() < CALLS_MAX => {
                let Received { number, tag, frame } = match received {
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                    received => received?,
                };
                let answer = Arc::clone(&answer);
                under_way.push(async move {
                    let announced = life_in(tag, &frame);
                    let answered = match Method::of(tag) {
                        Some(method) => answer(caller, method, frame).await,
                        None => Err(Refusal {
                            kind: RefusalKind::Damaged,
                            reason: format!("this release knows no call {tag}"),
                        }),
                    };
                    (number, announced, answered)
                });
            }
        }
    }
}

/// The life that a call announces, if it does.
fn life_in(tag: u8, frame: &Frame) -> Option<Incarnation> {
    (Method::of(tag) == Some(Method::Announce)).then_some(())?;
    let said: Announcement = wire::decode(&frame.head).ok()?;
    Some(said.incarnation)
}

/// Who calls, and its first call, which follows at once: who never calls holds no connection.
async fn begin<R: AsyncRead + Unpin>(from: &mut Reader<R>) -> io::Result<(Caller, Received)> {
    from.preface().await?;
    let said = from.introduction().await?;
    let said: Introduction = wire::decode(&said)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    Ok((Caller::from(said), from.next().await?))
}

async fn next<R: AsyncRead + Unpin>(
    first: &mut Option<Received>,
    from: &mut Reader<R>,
) -> io::Result<Received> {
    match first.take() {
        Some(first) => Ok(first),
        None => from.next().await,
    }
}

/// Sends an answer. Returns whether the connection is to end: a stranger has been told why, and has no more to say.
async fn respond<W: AsyncWrite + Unpin>(
    to: &mut W,
    number: u32,
    answered: Result<Frame, Refusal>,
) -> io::Result<bool> {
    let refused = |Refusal { kind, reason }| {
        let frame = Frame {
            head: reason.into(),
            body: Default::default(),
        };
        (kind as u8, frame)
    };
    let (tag, frame) = match answered {
        Ok(frame) if fits(&frame) => (0, frame),
        Ok(_) => refused(Refusal {
            kind: RefusalKind::Unavailable,
            reason: "the answer is larger than peers take".to_owned(),
        }),
        Err(refusal) => refused(refusal),
    };
    write(to, number, tag, &frame, &mut false).await?;
    Ok([RefusalKind::Stranger as u8, RefusalKind::Copy as u8].contains(&tag))
}
