use super::*;
use crate::command::{Action, Command, Request};
use crate::state::{Claim, Lineage};
use raftserve_model::{ClusterId, LogTime};

/// Puts a key, or deletes it.
fn change(state: &mut State, index: u64, key: &str, value: Option<&[u8]>) {
    let key = key.parse().unwrap();
    let condition = KvCondition::Any;
    let request = match value {
        Some(value) => Request::PutKey {
            key,
            value: value.into(),
            condition,
        },
        None => Request::DeleteKey { key, condition },
    };
    let command = Command::at(LogTime(index), Action::Request(request));
    state.apply(LogIndex(index), &command);
}

/// Where, and whether it was put.
fn changes_after(state: &State, index: u64) -> Result<Vec<(u64, bool)>, u64> {
    let changes = state.key_changes_after(LogIndex(index));
    let changes = changes.map_err(|compacted| compacted.upto.0)?;
    Ok(changes.map(|it| (it.index.0, it.entry.is_some())).collect())
}

#[test]
fn what_became_of_keys_is_told_in_the_order_of_the_log_and_what_changed_nothing_is_not() {
    let mut state = State::default();
    change(&mut state, 3, "a", Some(b"1"));
    change(&mut state, 5, "b", None);
    change(&mut state, 7, "a", Some(b"2"));
    change(&mut state, 9, "a", None);
    let all = [(3, true), (7, true), (9, false)];
    assert_eq!(changes_after(&state, 0).unwrap(), all);
    assert_eq!(changes_after(&state, 3).unwrap(), all[1..]);
    assert_eq!(changes_after(&state, 9).unwrap(), []);
    let refused = Request::PutKey {
        key: "a".parse().unwrap(),
        value: b"3".as_slice().into(),
        condition: KvCondition::ModifiedAt(LogIndex(3)),
    };
    let refused = Command::at(LogTime(10), Action::Request(refused));
    assert!(matches!(
        state.apply(LogIndex(10), &refused),
        Outcome::Refused(_)
    ));
    assert_eq!(changes_after(&state, 0).unwrap(), all);
    let first = state.key_changes_after(LogIndex(0)).unwrap().next();
    assert_eq!(*first.unwrap().entry.as_ref().unwrap().value, *b"1");
}

#[test]
fn old_changes_make_room_and_a_state_that_is_restored_knows_as_much() {
    let value = vec![7; KV_VALUE_BYTES_MAX];
    let by_bytes = KV_CHANGES_BYTES_MAX / (value.len() as u64 + 1);
    for (value, kept) in [(value.as_slice(), by_bytes), (&[], KV_CHANGES_MAX as u64)] {
        let mut state = State::default();
        // Each at an odd index.
        for number in 0..kept + 2 {
            change(&mut state, 2 * number + 1, "a", Some(value));
        }
        // Those at 1 and 3 are gone, and nothing else was before 5.
        assert_eq!(changes_after(&state, 2), Err(3));
        assert_eq!(changes_after(&state, 3).unwrap().len() as u64, kept);
        let restored = State::from_records(state.records()).unwrap();
        assert_eq!(restored.digest(), state.digest());
        assert_eq!(changes_after(&restored, 2), Err(3));
        assert_eq!(changes_after(&restored, 3), changes_after(&state, 3));
        let mut both = [state, restored];
        for state in &mut both {
            change(state, 2 * kept + 9, "a", None);
        }
        assert_eq!(both[0].digest(), both[1].digest());
        assert_eq!(changes_after(&both[1], 4), changes_after(&both[0], 4));
    }
}

#[test]
fn what_became_of_keys_in_a_parent_cannot_be_watched_in_its_child() {
    let mut state = State::default();
    change(&mut state, 3, "a", Some(b"1"));
    let lineage = Lineage {
        parent: ClusterId([1; 16]),
        parent_index: LogIndex(3),
        claim: Claim::Fork,
        began: LogIndex(1_000),
    };
    let renewed = state.records();
    let renewed = renewed.filter_map(|it| it.renewed(ClusterId([2; 16]), lineage));
    let mut child = State::from_records(renewed.collect::<Vec<_>>()).unwrap();
    assert!(child.key("a").is_some());
    assert_eq!(changes_after(&child, 999), Err(1_000));
    change(&mut child, 1_001, "a", None);
    let child = State::from_records(child.records()).unwrap();
    assert_eq!(changes_after(&child, 999), Err(1_000));
    assert_eq!(changes_after(&child, 1_000).unwrap(), [(1_001, false)]);
}
