//! The side that answers.

use std::future::Future;
use std::io;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite};

use super::format::{Introduction, Method, Reader, Received, Refusal, RefusalKind, write};
use crate::peer::directory::Caller;
use crate::peer::rpc::Frame;
use crate::peer::wire;

/// Calls that one connection may have under way: as many proposals as Raft queues. More wait in the connection.
const CALLS_MAX: usize = 4096;

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
    from.preface().await?;
    let said = from.introduction().await?;
    let said: Introduction = wire::decode(&said)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    let caller = Caller::from(said);
    let answer = Arc::new(answer);
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some((number, answered)) = under_way.next() => {
                respond(&mut to, number, answered).await?;
            }
            received = from.next(), if under_way.len() < CALLS_MAX => {
                let Received { number, tag, frame } = match received {
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                    received => received?,
                };
                let answer = Arc::clone(&answer);
                under_way.push(async move {
                    let answered = match Method::of(tag) {
                        Some(method) => answer(caller, method, frame).await,
                        None => Err(Refusal {
                            kind: RefusalKind::Damaged,
                            reason: format!("this release knows no call {tag}"),
                        }),
                    };
                    (number, answered)
                });
            }
        }
    }
}

async fn respond<W: AsyncWrite + Unpin>(
    to: &mut W,
    number: u32,
    answered: Result<Frame, Refusal>,
) -> io::Result<()> {
    match answered {
        Ok(frame) => write(to, number, 0, &frame).await,
        Err(Refusal { kind, reason }) => {
            let frame = Frame {
                head: reason.into(),
                body: Default::default(),
            };
            write(to, number, kind as u8, &frame).await
        }
    }
}
