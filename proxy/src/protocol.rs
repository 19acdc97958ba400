//! Which protocol a connection speaks, by its first bytes.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::prefixed::Prefixed;

/// What a client of HTTP/2 says first (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// Reads until the protocol is certain: rarely more than once. The stream gives back what was read of it.
///
/// # Errors
/// As the stream's own; its end is no error, and leaves HTTP/1 to find it.
pub(crate) async fn detect<S: AsyncRead + Unpin>(
    mut stream: S,
) -> io::Result<(Protocol, Prefixed<S>)> {
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
    Ok((protocol, Prefixed::new(seen[..filled].to_vec(), stream)))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn detected(pieces: &[&[u8]]) -> (Protocol, Vec<u8>) {
        let (mut client, server) = tokio::io::duplex(64);
        let send = async {
            for piece in pieces {
                client.write_all(piece).await.expect("the reader is there");
                tokio::task::yield_now().await;
            }
            drop(client);
        };
        let read = async {
            let (protocol, mut stream) = detect(server).await.expect("no error");
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
        assert_eq!(detected(&[&whole]).await, (Protocol::Http2, whole.clone()));
        assert_eq!(detected(&pieces).await, (Protocol::Http2, whole.clone()));
        for other in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"PRI * HTTP/1.1\r\n",
            b"P",
            b"",
        ] {
            assert_eq!(detected(&[other]).await, (Protocol::Http1, other.to_vec()));
        }
    }
}
