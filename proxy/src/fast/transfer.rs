//! Reading into pooled buffers and writing pieces whole.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::tcp::ReadHalf;

use super::buffers::{Buffer, Buffers, Size};

/// Reads once, as soon as there is something: into what `slot` holds, or a buffer taken only then.
/// 0 bytes are the end. The buffer must have room.
pub(super) fn poll_read(
    stream: &mut ReadHalf<'_>,
    cx: &mut Context<'_>,
    slot: &mut Option<Buffer>,
    buffers: &Rc<Buffers>,
    size: Size,
) -> Poll<io::Result<usize>> {
    ready!(stream.as_ref().poll_read_ready(cx))?;
    let mut buffer = slot.take().unwrap_or_else(|| buffers.take(size));
    debug_assert!(!buffer.is_full(), "what is read would pass for the end");
    let mut room = ReadBuf::new(buffer.room());
    let result = Pin::new(stream).poll_read(cx, &mut room);
    let count = room.filled().len();
    buffer.fill(count);
    if !buffer.is_empty() {
        *slot = Some(buffer);
    }
    result.map(|result| result.map(|()| count))
}

/// Reads once into a buffer of its own; `None` at the end.
pub(super) async fn read(
    stream: &mut ReadHalf<'_>,
    buffers: &Rc<Buffers>,
    size: Size,
) -> io::Result<Option<Buffer>> {
    let mut slot = None;
    poll_fn(|cx| poll_read(stream, cx, &mut slot, buffers, size)).await?;
    Ok(slot)
}

/// Writes all pieces, of which there are at most three, in as few system calls as it takes.
///
/// # Errors
/// How many bytes were written before the stream failed.
pub(super) async fn write_all<S: AsyncWrite + Unpin>(
    stream: &mut S,
    pieces: [&[u8]; 3],
) -> Result<(), usize> {
    let mut written = 0;
    poll_fn(|cx| {
        loop {
            let mut rest = pieces.map(IoSlice::new);
            let mut rest = &mut rest[..];
            IoSlice::advance_slices(&mut rest, written);
            while let [first, ..] = rest
                && first.is_empty()
            {
                rest = &mut std::mem::take(&mut rest)[1..];
            }
            let poll = match rest {
                [] => return Poll::Ready(Ok(())),
                [only] => Pin::new(&mut *stream).poll_write(cx, only),
                several => Pin::new(&mut *stream).poll_write_vectored(cx, several),
            };
            match ready!(poll) {
                Ok(count @ 1..) => written += count,
                Ok(0) | Err(_) => return Poll::Ready(Err(written)),
            }
        }
    })
    .await
}
