//! Reading into pooled buffers and writing pieces whole.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::tcp::ReadHalf;

use super::buffers::{Buffer, Buffers, Size};
use crate::bulk::Place;

/// Reads once, as soon as there is something and it has a `place`: into what `slot` holds, or a buffer taken only then.
/// 0 bytes are the end. The buffer must have room.
pub(super) fn poll_read(
    stream: &mut ReadHalf<'_>,
    cx: &mut Context<'_>,
    slot: &mut Option<Buffer>,
    buffers: &Rc<Buffers>,
    size: Size,
    mut place: Option<&mut Place>,
) -> Poll<io::Result<usize>> {
    ready!(stream.as_ref().poll_read_ready(cx))?;
    if let Some(place) = &mut place {
        ready!(place.poll(cx));
    }
    let mut buffer = slot.take().unwrap_or_else(|| buffers.take(size));
    debug_assert!(!buffer.is_full(), "what is read would pass for the end");
    let mut room = ReadBuf::new(buffer.room());
    let result = Pin::new(stream).poll_read(cx, &mut room);
    let count = room.filled().len();
    buffer.fill(count);
    if let Some(place) = place {
        place.passed(count);
        if !buffer.is_full() {
            place.drained();
        }
    }
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
    poll_fn(|cx| poll_read(stream, cx, &mut slot, buffers, size, None)).await?;
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
            // One piece alone goes by the simpler call.
            while let [.., last] = rest
                && last.is_empty()
            {
                let left = rest.len() - 1;
                rest = &mut std::mem::take(&mut rest)[..left];
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

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    /// Takes at most so many bytes at once, and notes of how many pieces each write was.
    struct Writes {
        most: usize,
        taken: Vec<u8>,
        pieces: Vec<usize>,
    }

    impl AsyncWrite for Writes {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let count = bytes.len().min(self.most);
            self.taken.extend_from_slice(&bytes[..count]);
            self.pieces.push(1);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = slices
                .iter()
                .flat_map(|slice| slice.iter().copied())
                .collect();
            let count = all.len().min(self.most);
            self.taken.extend_from_slice(&all[..count]);
            self.pieces.push(slices.len());
            Poll::Ready(Ok(count))
        }
    }

    #[tokio::test]
    async fn no_write_has_an_empty_piece_at_its_ends() {
        for (pieces, writes) in [
            (["", "", ""], &[][..]),
            (["ab", "", ""], &[1]),
            (["", "ab", ""], &[1]),
            (["", "", "ab"], &[1]),
            (["ab", "cd", ""], &[2]),
            (["ab", "", "cd"], &[3]),
            (["ab", "cd", "ef"], &[3]),
        ] {
            let mut to = Writes {
                most: usize::MAX,
                taken: Vec::new(),
                pieces: Vec::new(),
            };
            let written = write_all(&mut to, pieces.map(str::as_bytes)).await;
            assert_eq!(written, Ok(()));
            assert_eq!(to.taken, pieces.concat().as_bytes());
            assert_eq!(to.pieces, writes, "{pieces:?}");
        }
    }

    #[tokio::test]
    async fn all_is_written_however_little_is_taken_at_once() {
        for most in 1..8 {
            let mut to = Writes {
                most,
                taken: Vec::new(),
                pieces: Vec::new(),
            };
            let written = write_all(&mut to, [b"ab", b"", b"cdefg"]).await;
            assert_eq!(written, Ok(()));
            assert_eq!(to.taken, b"abcdefg");
        }
        let (mut near, far) = duplex(4);
        drop(far);
        assert_eq!(write_all(&mut near, [b"ab", b"", b""]).await, Err(0));
    }
}
