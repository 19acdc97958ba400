//! A stream whose first bytes were read already, to tell HTTP/1 from HTTP/2.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// What a client of HTTP/2 says first (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// A stream that gives back what was read of it to tell its protocol.
#[derive(Debug)]
pub(crate) struct Rewind<S> {
    seen: [u8; PREFACE.len()],
    /// What of `seen` is still to be given: never beyond what was read.
    left: std::ops::Range<usize>,
    stream: S,
}

impl<S: AsyncRead + Unpin> Rewind<S> {
    /// Reads until the protocol is certain: rarely more than once.
    ///
    /// # Errors
    /// As the stream's own; its end is no error, and leaves HTTP/1 to find it.
    pub(crate) async fn detect(mut stream: S) -> io::Result<(Protocol, Self)> {
        let mut seen = [0; PREFACE.len()];
        let mut filled = 0;
        let protocol = loop {
            let count = stream.read(&mut seen[filled..]).await?;
            filled += count;
            if count == 0 || seen[..filled] != PREFACE[..filled] {
                break Protocol::Http1;
            }
            if filled == PREFACE.len() {
                break Protocol::Http2;
            }
        };
        let left = 0..filled;
        Ok((protocol, Self { seen, left, stream }))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewind<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let count = self.left.len().min(buffer.remaining());
        let start = self.left.start;
        buffer.put_slice(&self.seen[start..start + count]);
        self.left.start += count;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewind<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn detect(pieces: &[&[u8]]) -> (Protocol, Vec<u8>) {
        let (mut client, server) = tokio::io::duplex(64);
        let send = async {
            for piece in pieces {
                client.write_all(piece).await.expect("the reader is there");
                tokio::task::yield_now().await;
            }
            drop(client);
        };
        let read = async {
            let (protocol, mut stream) = Rewind::detect(server).await.expect("no error");
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.expect("no error");
            (protocol, all)
        };
        tokio::join!(read, send).0
    }

    #[tokio::test]
    async fn protocol_is_told_and_no_byte_is_lost() {
        let whole = [&PREFACE[..], b"frames"].concat();
        let pieces: Vec<&[u8]> = whole.chunks(1).collect();
        assert_eq!(detect(&[&whole]).await, (Protocol::Http2, whole.clone()));
        assert_eq!(detect(&pieces).await, (Protocol::Http2, whole.clone()));
        for other in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"PRI * HTTP/1.1\r\n",
            b"P",
            b"",
        ] {
            assert_eq!(detect(&[other]).await, (Protocol::Http1, other.to_vec()));
        }
    }
}
