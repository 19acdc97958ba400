use std::time::Duration;

use bytes::Bytes;
use raftserve_model::{ClusterId, NodeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::client::{CallFailure, Connection};
use super::format::{Reader, begin, write};
use super::*;
use crate::peer::dial::Dialer;
use crate::peer::directory::Caller;
use crate::peer::rpc::Frame;
use crate::peer::wire;

fn caller() -> Caller {
    Caller {
        cluster: ClusterId([3; 16]),
        target: NodeId(2),
        node: NodeId(1),
        nonce: 9,
        life: None,
    }
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn message(head: &'static [u8], body: impl Into<Bytes>) -> Frame {
    Frame {
        head: Bytes::from_static(head),
        body: body.into(),
    }
}

/// A server that answers with what it got, in which a call of `Propose` waits for a permit of `gate`.
async fn echo(gate: std::sync::Arc<Semaphore>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (from, to) = stream.into_split();
            let gate = std::sync::Arc::clone(&gate);
            tokio::spawn(serve(from, to, move |who, method, frame: Frame| {
                let gate = std::sync::Arc::clone(&gate);
                async move {
                    assert_eq!(who, caller());
                    match method {
                        Method::Propose => gate.acquire().await.unwrap().forget(),
                        Method::Manage => {
                            return Err(Refusal {
                                kind: RefusalKind::Stranger,
                                reason: "who are you?".to_owned(),
                            });
                        }
                        _ => {}
                    }
                    Ok(frame)
                }
            }));
        }
    });
    address
}

async fn connected(address: String) -> std::sync::Arc<Connection> {
    connect(
        &Handle::current(),
        Dialer::default(),
        address,
        caller(),
        None,
    )
    .await
    .unwrap()
}

#[tokio::test]
async fn calls_run_side_by_side_and_answers_come_in_any_order() {
    let gate = std::sync::Arc::new(Semaphore::new(0));
    let connection = connected(echo(std::sync::Arc::clone(&gate)).await).await;
    let slow = tokio::spawn({
        let connection = std::sync::Arc::clone(&connection);
        async move {
            connection
                .call(Method::Propose, &message(b"slow", ""), later())
                .await
        }
    });
    // Too large to be joined with its head, and for a socket's buffer.
    let body = Bytes::from(vec![7; 3 << 20]);
    let large = message(b"large", body.clone());
    for _ in 0..3 {
        let answer = connection
            .call(Method::Append, &large, later())
            .await
            .unwrap();
        assert_eq!((answer.tag, answer.frame.body), (0, body.clone()));
    }
    assert!(!slow.is_finished());
    gate.add_permits(1);
    let answer = slow.await.unwrap().unwrap();
    assert_eq!(answer.frame.head, Bytes::from_static(b"slow"));
    let refused = connection
        .call(Method::Manage, &message(b"", ""), later())
        .await;
    let refused = refused.unwrap();
    assert_eq!(RefusalKind::of(refused.tag), RefusalKind::Stranger);
    assert_eq!(refused.frame.head, Bytes::from_static(b"who are you?"));
}

#[tokio::test]
async fn a_call_that_is_given_up_harms_no_other() {
    let gate = std::sync::Arc::new(Semaphore::new(0));
    let connection = connected(echo(std::sync::Arc::clone(&gate)).await).await;
    let soon = Instant::now() + Duration::from_millis(20);
    let given_up = connection
        .call(Method::Propose, &message(b"slow", ""), soon)
        .await;
    assert!(
        matches!(given_up, Err(CallFailure::Deadline)),
        "{given_up:?}"
    );
    gate.add_permits(1);
    let answer = connection
        .call(Method::Vote, &message(b"vote", ""), later())
        .await;
    assert_eq!(answer.unwrap().frame.head, Bytes::from_static(b"vote"));
}

#[tokio::test]
async fn a_frame_that_is_given_up_half_way_ends_the_connection() {
    // Takes the connection, and nothing from it. The system holds some megabytes on its way: less than is sent.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(1 << 16).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let connection = connected(address).await;
    let large = message(b"", vec![0; wire::MESSAGE_BYTES_MAX]);
    let soon = Instant::now() + Duration::from_millis(50);
    let given_up = connection.call(Method::Append, &large, soon).await;
    assert!(
        matches!(given_up, Err(CallFailure::Deadline)),
        "nobody reads it: {given_up:?}"
    );
    let next = connection
        .call(Method::Vote, &message(b"vote", ""), later())
        .await;
    assert!(matches!(next, Err(CallFailure::NotSent(_))), "{next:?}");
    assert!(connection.is_ended());
}

#[tokio::test]
async fn who_waits_hears_of_the_end_of_a_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let connection = connected(address).await;
    let (mut stream, _) = listener.accept().await.unwrap();
    let call = message(b"vote", "");
    let (failed, ()) = tokio::join!(connection.call(Method::Vote, &call, later()), async {
        let mut first = [0; 64];
        assert!(stream.read(&mut first).await.unwrap() > 0);
        drop(stream);
    });
    assert!(matches!(failed, Err(CallFailure::Broken(_))), "{failed:?}");
    let next = connection.call(Method::Vote, &call, later()).await;
    assert!(matches!(next, Err(CallFailure::NotSent(_))), "{next:?}");
}

#[tokio::test]
async fn damaged_bytes_end_a_connection_and_an_unknown_call_does_not() {
    let address = echo(std::sync::Arc::new(Semaphore::new(0))).await;
    let introduction = wire::encode(&super::format::Introduction::from(caller()));
    let frames: [&[u8]; 4] = [
        &u32::MAX.to_le_bytes(),
        &8u32.to_le_bytes(),
        // A head of 100 bytes in a frame of 10.
        b"\x0a\0\0\0\x01\0\0\0\x02\x64\0\0\0x",
        b"PRI * HTTP/2.0",
    ];
    for frame in frames {
        let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        stream.write_all(&begin(&introduction)).await.unwrap();
        stream.write_all(frame).await.unwrap();
        let mut rest = Vec::new();
        // A reset says the same as an end.
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty());
    }
    let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
    stream.write_all(&begin(&introduction)).await.unwrap();
    write(&mut stream, 5, 99, &message(b"", ""), &mut false)
        .await
        .unwrap();
    let mut answers = Reader::new(&mut stream);
    let answer = answers.next().await.unwrap();
    assert_eq!((answer.number, answer.tag), (5, RefusalKind::Damaged as u8));
}

/// Peers of neighbouring releases talk to each other: a change here needs a new version in the preface.
#[tokio::test]
async fn version_1_keeps_its_bytes() {
    let mut bytes = begin(b"xy").to_vec();
    write(
        &mut bytes,
        258,
        Method::Append as u8,
        &message(b"h", "bo"),
        &mut false,
    )
    .await
    .unwrap();
    let expected = b"rsPeers\x01\x02\0\0\0xy\x0c\0\0\0\x02\x01\0\0\x02\x01\0\0\0hbo";
    assert_eq!(bytes, expected);
    let kept = wire::kept::Kept::of(include_str!("../wire/v1/calls.txt"));
    let introduction = super::format::Introduction::from(Caller {
        cluster: ClusterId([7; 16]),
        target: NodeId(1),
        node: NodeId(2),
        nonce: 3,
        life: None,
    });
    kept.message("introduction", &introduction);
    kept.finish();
}

#[tokio::test]
async fn a_message_that_is_too_large_is_certainly_not_sent_and_harms_no_other() {
    let connection = connected(echo(std::sync::Arc::new(Semaphore::new(0))).await).await;
    let large = message(b"x", vec![0; wire::MESSAGE_BYTES_MAX]);
    let refused = connection.call(Method::Append, &large, later()).await;
    assert!(
        matches!(refused, Err(CallFailure::NotSent(_))),
        "{refused:?}"
    );
    let call = message(b"vote", "");
    assert!(connection.call(Method::Vote, &call, later()).await.is_ok());
}

#[tokio::test]
async fn a_stranger_is_told_so_and_keeps_no_connection() {
    let connection = connected(echo(std::sync::Arc::new(Semaphore::new(0))).await).await;
    let call = message(b"", "");
    let refused = connection
        .call(Method::Manage, &call, later())
        .await
        .unwrap();
    assert_eq!(RefusalKind::of(refused.tag), RefusalKind::Stranger);
    let next = connection.call(Method::Vote, &call, later()).await;
    assert!(next.is_err(), "{next:?}");
}

#[tokio::test(start_paused = true)]
async fn who_never_calls_holds_no_connection() {
    let (mut silent, served) = tokio::io::duplex(1 << 10);
    let (from, to) = tokio::io::split(served);
    let introduction = wire::encode(&super::format::Introduction::from(caller()));
    silent.write_all(&begin(&introduction)).await.unwrap();
    let ended = serve(from, to, |_, _, frame| async move { Ok(frame) }).await;
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
}
