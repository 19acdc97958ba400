use raftserve_model::LogTime;
use raftserve_model::{Incarnation, NodeId};
use raftserve_store::Command;
use raftserve_store::command::Action;
use raftserve_store::state::EVENTS_MAX;

use super::*;

/// A state with one event of the cluster at each index up to `last`.
fn state(last: u64) -> State {
    let mut state = State::default();
    for index in 1..=last {
        let action = Action::StartControl {
            node: NodeId(index),
            incarnation: Incarnation(index),
        };
        let command = Command::at(LogTime(index), action);
        state.apply(LogIndex(index), &command);
    }
    state
}

/// Everything after `after`, as a watch reads it.
fn read_all(state: &State, mut after: LogIndex) -> Vec<u64> {
    let mut indices = Vec::new();
    loop {
        let all = WatchedEvents { service: None };
        let page = all.read(state, after).unwrap();
        indices.extend(page.batches.iter().map(|(_, batch)| batch.log_index));
        match page.read_upto {
            Some(upto) => after = upto,
            None => return indices,
        }
    }
}

#[test]
fn a_long_trail_is_read_in_pages_without_gap_or_overlap() {
    let last = 3 * EVENTS_READ_MAX as u64 + 1;
    let state = state(last);
    assert_eq!(
        read_all(&state, LogIndex(0)),
        (1..=last).collect::<Vec<_>>()
    );
    assert_eq!(read_all(&state, LogIndex(last - 1)), [last]);
    assert!(read_all(&state, LogIndex(last)).is_empty());
}

#[test]
fn what_matches_nothing_is_passed_over() {
    let wanted: ServiceName = "web".parse().unwrap();
    let one = WatchedEvents {
        service: Some(wanted),
    };
    let page = one.read(&state(EVENTS_READ_MAX as u64 + 1), LogIndex(0));
    let page = page.unwrap();
    assert_eq!(page.batches, []);
    assert_eq!(page.read_upto, Some(LogIndex(EVENTS_READ_MAX as u64)));
}

#[test]
fn a_dropped_part_of_the_trail_is_refused_with_where_it_begins() {
    let dropped = 5;
    let state = state(EVENTS_MAX as u64 + dropped);
    let all = WatchedEvents { service: None };
    let refused = all.read(&state, LogIndex(dropped - 1)).err().unwrap();
    assert_eq!(refused.upto, LogIndex(dropped));
    assert_eq!(read_all(&state, refused.upto).len(), EVENTS_MAX);
}
