//! What the program answers to command lines for which no cluster is needed: exit codes and last words.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::TcpListener;
use std::process::{Command, Output};

fn raftserve(words: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_raftserve"))
        .args(words)
        .env_clear()
        .env("HOME", home.path())
        .current_dir(home.path())
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn flags_of_node_that_do_not_fit_one_another_are_wrong_usage() {
    for (flags, named) in [
        (
            &["--peers", "127.0.0.1:7001,127.0.0.1:7101"][..],
            "a cluster has 1, 3 or 5",
        ),
        (&["--admin-addr", "10.0.0.1:7000"], "--cert-dir"),
        (&["--node-index", "2"], "--node-index 2"),
        (&["--join", "a:1", "--peers", "b:1"], "cannot be used with"),
    ] {
        let ended = raftserve(&[&["node", "--data-dir", "d"], flags].concat());
        assert_eq!(ended.status.code(), Some(2), "{flags:?}");
        assert!(said(&ended).contains(named), "{}", said(&ended));
    }
}

#[test]
fn addresses_are_wrong_usage_with_what_is_needed() {
    for (words, named) in [
        (
            &["cluster", "add", "--peer-addr", "localhost:27401"][..],
            "an IP address and a port",
        ),
        (
            &["node", "--data-dir", "d", "--join", "nonsense"],
            "write HOST:PORT",
        ),
        (
            &[
                "cluster",
                "snapshot",
                "restore",
                "f",
                "--data-dir",
                "d",
                "--fork",
                "--peer-addr",
                "nonsense",
            ],
            "write HOST:PORT",
        ),
    ] {
        let ended = raftserve(words);
        assert_eq!(ended.status.code(), Some(2), "{words:?}");
        assert!(said(&ended).contains(named), "{}", said(&ended));
    }
}

#[test]
fn who_lacks_the_id_of_a_lost_cluster_is_told_where_it_is_shown() {
    for output in ["table", "json"] {
        let words = ["cluster", "recover", "--data-dir", "d", "--output", output];
        let ended = raftserve(&words);
        assert_eq!(ended.status.code(), Some(2));
        let said = said(&ended);
        assert!(said.contains("--dry-run shows the id"), "{said}");
    }
}

#[test]
fn a_key_is_not_deleted_only_if_it_is_absent() {
    let ended = raftserve(&["kv", "delete", "k", "--if-absent"]);
    assert_eq!(ended.status.code(), Some(2), "{}", said(&ended));
}

#[test]
fn a_value_that_is_too_long_is_told_before_anybody_is_asked() {
    let long = tempfile::tempdir().unwrap();
    let path = long.path().join("long");
    std::fs::write(&path, vec![b'x'; 70_000]).unwrap();
    let ended = Command::new(env!("CARGO_BIN_EXE_raftserve"))
        .args(["kv", "put", "k", "-", "--server", "127.0.0.1:1"])
        .stdin(std::fs::File::open(&path).unwrap())
        .output()
        .unwrap();
    assert_eq!(ended.status.code(), Some(2));
    assert!(
        said(&ended).contains("more than 65536 bytes"),
        "{}",
        said(&ended)
    );
}

#[test]
fn nobody_gives_a_reason_where_nobody_listens() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let ended = raftserve(&["status", "--server", &address, "--output", "json"]);
    assert_eq!(ended.status.code(), Some(4));
    let said = said(&ended);
    let error: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let error = &error["error"];
    assert!(error["reason"].is_null(), "{error}");
    let message = error["message"].as_str().unwrap();
    assert!(message.starts_with("no peer answers"), "{message}");
}

#[test]
fn a_snapshot_is_not_saved_to_standard_output() {
    let ended = raftserve(&["cluster", "snapshot", "save", "-"]);
    assert_eq!(ended.status.code(), Some(2));
    assert!(said(&ended).contains("name a file"), "{}", said(&ended));
}
