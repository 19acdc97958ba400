//! Keys and their values, and calls of a single key, which have a path of their own.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, FuturesUnordered, StreamExt};
use prost::Message;
use raftserve_node::admin::errors::{Reason, violations};
use raftserve_node::admin::v1;
use tonic::Code;

use crate::lab::Lab;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_changed_only_under_its_condition_and_read_back_everywhere() {
    let labs = Lab::start_many(3).await;
    let put = |key: &str, value: &'static str, if_modified_index| v1::PutKeyRequest {
        key: key.to_owned(),
        value: value.into(),
        if_modified_index,
        request_id: None,
    };
    let get = v1::GetKeyRequest {
        key: "a/1".to_owned(),
        stale: false,
    };
    let missing = labs[0].keys().get(get.clone()).await.unwrap_err();
    assert_eq!(Reason::of(&missing), Some(Reason::NoSuchKey));

    let first = labs[0].keys().put(put("a/1", "x", Some(0))).await.unwrap();
    let first = first.into_inner();
    assert_eq!(
        (first.version, first.created_index),
        (1, first.modified_index)
    );
    for (lab, stale_index) in labs.iter().zip([0, first.modified_index + 1, 1]) {
        let status = lab.keys().put(put("a/1", "y", Some(stale_index))).await;
        let status = status.unwrap_err();
        assert_eq!(Reason::of(&status), Some(Reason::KeyConflict));
        let got = lab.keys().get(get.clone()).await.unwrap().into_inner();
        assert_eq!(got.entry.unwrap().value, "x");
    }
    let second = put("a/1", "y", Some(first.modified_index));
    let second = labs[1].keys().put(second).await.unwrap().into_inner();
    assert_eq!(
        (second.version, second.created_index),
        (2, first.created_index)
    );

    for key in ["a/2", "b"] {
        labs[2].keys().put(put(key, "z", None)).await.unwrap();
    }
    let list = |page_token: String| v1::ListKeysRequest {
        prefix: "a/".to_owned(),
        page_size: 1,
        page_token,
        ..v1::ListKeysRequest::default()
    };
    let (mut listed, mut token) = (Vec::new(), String::new());
    loop {
        let page = labs[0].keys().list(list(token)).await.unwrap().into_inner();
        assert_eq!(page.total, 3);
        listed.extend(page.entries.into_iter().map(|entry| entry.key));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, ["a/1", "a/2"]);

    let delete = v1::DeleteKeyRequest {
        key: "a/1".to_owned(),
        if_modified_index: Some(second.modified_index),
        request_id: None,
    };
    let deleted = labs[0].keys().delete(delete.clone()).await.unwrap();
    assert!(deleted.into_inner().existed);
    let again = labs[1].keys().delete(delete).await.unwrap_err();
    assert_eq!(Reason::of(&again), Some(Reason::KeyConflict));
    for lab in labs {
        lab.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_values_are_bounded_and_the_field_is_named() {
    let lab = Lab::start().await;
    for (key, value, field) in [
        (String::new(), 1, "key"),
        ("k".repeat(257), 1, "key"),
        ("a\nb".to_owned(), 1, "key"),
        ("k".to_owned(), (64 << 10) + 1, "value"),
    ] {
        let put = v1::PutKeyRequest {
            key,
            value: vec![7; value].into(),
            ..v1::PutKeyRequest::default()
        };
        let status = lab.keys().put(put).await.unwrap_err();
        assert_eq!(violations(&status)[0].field, field);
    }
    let largest = v1::PutKeyRequest {
        key: "k".repeat(256),
        value: vec![7; 64 << 10].into(),
        ..v1::PutKeyRequest::default()
    };
    lab.keys().put(largest).await.unwrap();
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_of_a_single_key_that_is_broken_ends_as_any_broken_call_does() {
    let lab = Lab::start().await;
    let asked = v1::GetKeyRequest {
        key: "k".to_owned(),
        stale: false,
    };
    let whole = crate::bare::framed(&asked);
    let too_long = [&[0, 0, 2, 0, 0][..], &[0; 100_000]].concat();
    let compressed = [&[1], &whole[1..]].concat();
    // As much as it says never comes.
    let mut cut_short = whole.to_vec();
    cut_short[4] += 1;
    let garbage = [0, 0, 0, 0, 2, 0xff, 0xff];
    let broken: [(&str, crate::bare::Header, Bytes, Code); 7] = [
        ("nothing", None, Bytes::new(), Code::Internal),
        (
            "a half",
            None,
            whole.slice(..whole.len() - 1),
            Code::Internal,
        ),
        (
            "no message",
            None,
            Bytes::copy_from_slice(&garbage),
            Code::Internal,
        ),
        (
            "compressed, and not how",
            None,
            compressed.into(),
            Code::Internal,
        ),
        ("cut short", None, cut_short.into(), Code::Internal),
        ("too long", None, too_long.into(), Code::OutOfRange),
        (
            "compressed",
            Some(("grpc-encoding", "gzip")),
            whole.clone(),
            Code::Unimplemented,
        ),
    ];
    for (what, header, body, expected) in broken {
        // The last one is answered by tonic.
        for method in ["Put", "Get", "Delete", "List"] {
            let path = format!("/raftserve.v1.KeyValue/{method}");
            let (_, status) = crate::bare::call(&lab, &path, header, vec![body.clone()]).await;
            assert_eq!(status.code(), expected, "{what} to {method}: {status:?}");
        }
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_of_a_single_key_may_come_in_pieces_and_answers_with_one_message() {
    let lab = Lab::start().await;
    let put = v1::PutKeyRequest {
        key: "k".to_owned(),
        value: vec![7; 40_000].into(),
        ..v1::PutKeyRequest::default()
    };
    let whole = crate::bare::framed(&put);
    let mut pieces: Vec<Bytes> = (0..9).map(|at| whole.slice(at..at + 1)).collect();
    pieces.extend([whole.slice(9..20_000), whole.slice(20_000..)]);
    let (_, status) = crate::bare::call(&lab, "/raftserve.v1.KeyValue/Put", None, pieces).await;
    assert_eq!(status.code(), Code::Ok, "{status:?}");
    let get = crate::bare::framed(&v1::GetKeyRequest {
        key: "k".to_owned(),
        stale: false,
    });
    let (answer, status) =
        crate::bare::call(&lab, "/raftserve.v1.KeyValue/Get", None, vec![get]).await;
    assert_eq!(status.code(), Code::Ok, "{status:?}");
    let answer = v1::GetKeyResponse::decode(answer.slice(5..)).unwrap();
    assert_eq!(answer.entry.unwrap().value, put.value);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_of_keys_that_is_not_sent_whole_ends_when_its_caller_said() {
    let lab = Lab::start().await;
    let connection = crate::bare::Connection::open(&lab).await;
    // The last one is answered by tonic.
    for method in ["Put", "Get", "Delete", "List"] {
        let path = format!("/raftserve.v1.KeyValue/{method}");
        let call = connection.call(&path, Some(("grpc-timeout", "50m")), stream::pending());
        // Without a word of its caller it may take 15 s.
        let ended = tokio::time::timeout(Duration::from_secs(10), call).await;
        let (_, status) = ended.expect("in time");
        assert_eq!(status.code(), Code::Cancelled, "{method}: {status:?}");
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_calls_of_keys_there_are_so_many_at_once_and_no_more() {
    let lab = Lab::start().await;
    const AT_ONCE: usize = 1_024;
    const EACH: usize = 64;
    let connections = (0..=AT_ONCE / EACH).map(|_| crate::bare::Connection::open(&lab));
    let connections = futures_util::future::join_all(connections).await;
    let mut unfinished: FuturesUnordered<_> = connections
        .iter()
        .flat_map(|connection| std::iter::repeat_n(connection, EACH))
        .map(|connection| connection.call("/raftserve.v1.KeyValue/Put", None, stream::pending()))
        .collect();
    for _ in 0..EACH {
        let (_, status) = unfinished.next().await.unwrap();
        let reason = Reason::of(&status);
        assert_eq!(reason, Some(Reason::TooManyRequests), "{status:?}");
    }
    // The last one is answered by tonic.
    for method in ["Get", "List"] {
        let path = format!("/raftserve.v1.KeyValue/{method}");
        let (_, status) = crate::bare::call(&lab, &path, None, vec![Bytes::new()]).await;
        let reason = Reason::of(&status);
        assert_eq!(
            reason,
            Some(Reason::TooManyRequests),
            "{method}: {status:?}"
        );
    }
    drop(unfinished);
    drop(connections);
    lab.stop().await;
}
