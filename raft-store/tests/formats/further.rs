//! What the history in `main.rs` does not have: keys, members, and what of requests it leaves out. It goes on where that
//! history ends, and is apart because the fixtures of its records are as they are.

use std::sync::Arc;

use raftserve_model::spec::{MountedFile, ParseOptions, SentFile, ServiceSpec};
use raftserve_model::{LogIndex, NodeId};
use raftserve_store::State;
use raftserve_store::command::{Action, Command, Precondition, Request};
use raftserve_store::state::{KvCondition, Predecessor, Promotion, Record};

use crate::fixture::same_as;
use crate::{FIRST_ENTRIES, YAML, client, frame, stamped};

fn admit(nonce: u64, address: &str, promotion: Promotion, replaces: Option<Predecessor>) -> Action {
    Action::AdmitPeer {
        nonce,
        address: address.to_owned(),
        promotion,
        replaces,
    }
}

fn put(key: &str, value: &[u8], condition: KvCondition) -> Request {
    Request::PutKey {
        key: key.parse().unwrap(),
        value: value.into(),
        condition,
    }
}

fn with_files() -> ServiceSpec {
    let file = SentFile {
        mount: "conf".to_owned(),
        path: String::new(),
        file: MountedFile {
            mode: 0o640,
            bytes: (*b"#!").into(),
        },
    };
    let options = ParseOptions {
        files: Some(vec![file]),
        ..ParseOptions::default()
    };
    let yaml = format!("{YAML}file_mounts: {{conf: conf}}\n");
    ServiceSpec::parse(&yaml, options).unwrap().spec
}

fn actions() -> Vec<(&'static str, Action)> {
    let lost = Predecessor {
        node: NodeId(1),
        nonce: 11,
    };
    let (second, newcomer) = (NodeId(2), NodeId(FIRST_ENTRIES + 1));
    vec![
        (
            "admit-peer",
            admit(44, "peer-4:7001", Promotion::Automatic, None),
        ),
        (
            "admit-peer-in-place",
            admit(55, "peer-1:7001", Promotion::Ordered, Some(lost)),
        ),
        (
            "admit-peer-by-hand",
            admit(66, "peer-5:7001", Promotion::Manual, None),
        ),
        ("promote-peer", Action::PromotePeer { node: newcomer }),
        (
            "dismiss-peer",
            Action::DismissPeer {
                node: second,
                nonce: 22,
                address: "peer-2:7001".to_owned(),
            },
        ),
        ("retire-peer", Action::RetirePeer { node: second }),
        ("put-key", client(3, put("a/b", b"1", KvCondition::Any))),
        (
            "put-absent-key",
            Action::Request(put("c", &[0, 255], KvCondition::Absent)),
        ),
        (
            "put-modified-key",
            Action::Request(put(
                "a/b",
                b"",
                KvCondition::ModifiedAt(LogIndex(FIRST_ENTRIES + 7)),
            )),
        ),
        (
            "delete-key",
            Action::Client {
                client: LogIndex(2),
                sequence: 4,
                acknowledged: 2,
                request: Request::DeleteKey {
                    key: "c".parse().unwrap(),
                    condition: KvCondition::Any,
                },
            },
        ),
        (
            "update-service",
            Action::Client {
                client: LogIndex(2),
                sequence: 5,
                acknowledged: 2,
                request: Request::PutService {
                    name: "none".parse().unwrap(),
                    spec: Arc::new(
                        ServiceSpec::parse(YAML, ParseOptions::default())
                            .unwrap()
                            .spec,
                    ),
                    precondition: Precondition::Present,
                },
            },
        ),
        (
            "put-service-with-files",
            Action::Request(Request::put_service(
                "files".parse().unwrap(),
                Arc::new(with_files()),
                Precondition::Any,
            )),
        ),
    ]
}

pub(crate) fn commands() -> Vec<(&'static str, Command)> {
    (FIRST_ENTRIES + 1..).zip(actions()).map(stamped).collect()
}

/// The state after both histories.
pub(crate) fn state() -> State {
    let mut state = crate::state();
    for (index, (_, command)) in (FIRST_ENTRIES + 1..).zip(commands()) {
        state.apply(LogIndex(index), &command);
    }
    state
}

#[test]
fn records_of_keys_members_and_sessions_have_the_bytes_they_always_had() {
    let records: Vec<Record> = state().records().collect();
    for (at, record) in records.iter().enumerate() {
        frame(&format!("further-record/{at:02}"), record);
    }
    let back = State::from_records(records).unwrap();
    assert_eq!(back.digest(), state().digest());
    same_as("further-digest", state().digest().to_string().as_bytes());
}
