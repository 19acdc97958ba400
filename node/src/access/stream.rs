//! A connection with TLS or without. Without, it costs what a bare socket does.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::TlsStream;

/// See the module.
#[derive(Debug)]
pub(crate) enum Stream {
    /// As it was accepted or dialled.
    Plain(TcpStream),
    /// After its handshake.
    Tls(Box<TlsStream<TcpStream>>),
}

/// The side of a [`Stream`] that reads.
#[derive(Debug)]
pub(crate) enum ReadSide {
    Plain(OwnedReadHalf),
    Tls(ReadHalf<TlsStream<TcpStream>>),
}

/// The side of a [`Stream`] that writes. What was written is on its way only once it is flushed.
#[derive(Debug)]
pub(crate) enum WriteSide {
    Plain(OwnedWriteHalf),
    Tls(WriteHalf<TlsStream<TcpStream>>),
}

impl Stream {
    /// The socket under it.
    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    /// Both sides, to be used by different tasks.
    pub(crate) fn into_split(self) -> (ReadSide, WriteSide) {
        match self {
            Self::Plain(stream) => {
                let (from, to) = stream.into_split();
                (ReadSide::Plain(from), WriteSide::Plain(to))
            }
            Self::Tls(stream) => {
                let (from, to) = tokio::io::split(*stream);
                (ReadSide::Tls(from), WriteSide::Tls(to))
            }
        }
    }
}

macro_rules! read_through {
    ($type:ident) => {
        impl AsyncRead for $type {
            fn poll_read(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                into: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::Plain(from) => Pin::new(from).poll_read(context, into),
                    Self::Tls(from) => Pin::new(from).poll_read(context, into),
                }
            }
        }
    };
}

macro_rules! write_through {
    ($type:ident) => {
        impl AsyncWrite for $type {
            fn poll_write(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    Self::Plain(to) => Pin::new(to).poll_write(context, bytes),
                    Self::Tls(to) => Pin::new(to).poll_write(context, bytes),
                }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                pieces: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    Self::Plain(to) => Pin::new(to).poll_write_vectored(context, pieces),
                    Self::Tls(to) => Pin::new(to).poll_write_vectored(context, pieces),
                }
            }

            fn is_write_vectored(&self) -> bool {
                match self {
                    Self::Plain(to) => to.is_write_vectored(),
                    Self::Tls(to) => to.is_write_vectored(),
                }
            }

            fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::Plain(to) => Pin::new(to).poll_flush(context),
                    Self::Tls(to) => Pin::new(to).poll_flush(context),
                }
            }

            fn poll_shutdown(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::Plain(to) => Pin::new(to).poll_shutdown(context),
                    Self::Tls(to) => Pin::new(to).poll_shutdown(context),
                }
            }
        }
    };
}

read_through!(Stream);
read_through!(ReadSide);
write_through!(Stream);
write_through!(WriteSide);
