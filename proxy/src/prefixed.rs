//! A stream of which some bytes were read already.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::client_bound::OverTcp;
use crate::write_through::write_through;

/// A stream that gives back what was read of it before it gives more.
#[derive(Debug)]
pub(crate) struct Prefixed<S> {
    read: Vec<u8>,
    /// How much of `read` was given.
    given: usize,
    stream: S,
}

impl<S> Prefixed<S> {
    pub(crate) fn new(read: Vec<u8>, stream: S) -> Self {
        Self {
            read,
            given: 0,
            stream,
        }
    }

    /// The stream alone, and what of the bytes was not given.
    pub(crate) fn into_parts(self) -> (Vec<u8>, S) {
        let mut read = self.read;
        read.drain(..self.given);
        (read, self.stream)
    }
}

impl<S: OverTcp> OverTcp for Prefixed<S> {
    fn tcp(&self) -> Option<&TcpStream> {
        self.stream.tcp()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = &self.read[self.given..];
        if left.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let count = left.len().min(buffer.remaining());
        buffer.put_slice(&left[..count]);
        self.given += count;
        if self.given < self.read.len() {
            return Poll::Ready(Ok(()));
        }
        self.read = Vec::new();
        self.given = 0;
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        // What came meanwhile goes with it: a reader that got little of a head would first make its buffer larger for
        // the rest, and keep it so.
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(())),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    write_through!();

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn what_was_read_comes_first_and_once() {
        for piece in 1..8 {
            let mut stream = Prefixed::new(b"read ".to_vec(), &b"ahead"[..]);
            let (mut all, mut part) = (Vec::new(), vec![0; piece]);
            while let count @ 1.. = stream.read(&mut part).await.expect("no error") {
                all.extend_from_slice(&part[..count]);
            }
            assert_eq!(all, b"read ahead");
        }
    }

    #[tokio::test]
    async fn what_came_meanwhile_comes_in_the_same_read_and_is_not_waited_for() {
        let mut part = [0; 64];
        let mut both = Prefixed::new(b"read ".to_vec(), &b"ahead"[..]);
        let count = both.read(&mut part).await.expect("no error");
        assert_eq!(&part[..count], b"read ahead");
        let (_open, silent) = tokio::io::duplex(8);
        let mut first = Prefixed::new(b"read ".to_vec(), silent);
        let count = first.read(&mut part).await.expect("no error");
        assert_eq!(&part[..count], b"read ");
    }
}
