use raftserve_model::spec::ServiceSpec;
use raftserve_model::{Generation, Incarnation, LogTime, NodeId, ServiceId, ServiceVersion};
use raftserve_store::Command;
use raftserve_store::command::{self, Action};
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

/// As an entry of the controller that creates many replicas makes.
#[test]
fn events_of_one_entry_stay_together_where_a_page_would_end_among_them() {
    let mut state = state(EVENTS_READ_MAX as u64 - 7);
    let mut next = EVENTS_READ_MAX as u64 - 6;
    let mut apply = |action| {
        state.apply(LogIndex(next), &Command::at(LogTime(next), action));
        next += 1;
    };
    let yaml =
        "service:\n  readiness_probe: /\n  replicas: 1\nresources:\n  ports: 8080\nrun: serve\n";
    let spec = ServiceSpec::parse(yaml, Default::default()).unwrap();
    let service = ServiceId(EVENTS_READ_MAX as u64 - 6);
    apply(Action::Request(command::Request::put_service(
        "web".parse().unwrap(),
        Arc::new(spec.spec),
        command::Precondition::Any,
    )));
    let create = |port| command::Change::Create {
        service,
        version: ServiceVersion(1),
        port,
    };
    apply(Action::Control {
        generation: Generation(EVENTS_READ_MAX as u64 - 7),
        changes: (10_000..10_020).map(create).collect(),
    });
    let together = EVENTS_READ_MAX as u64 - 5;
    let all = WatchedEvents { service: None };
    let page = all.read(&state, LogIndex(0)).unwrap();
    let (index, batch) = page.batches.last().unwrap();
    assert_eq!((index.0, batch.events.len()), (together, 20));
    assert_eq!(page.read_upto, None);

    // What comes after is another page's.
    let action = Action::StartControl {
        node: NodeId(1),
        incarnation: Incarnation(1),
    };
    let last = LogIndex(together + 1);
    state.apply(last, &Command::at(LogTime(last.0), action));
    let page = all.read(&state, LogIndex(0)).unwrap();
    assert_eq!(page.batches.last().unwrap().1.events.len(), 20);
    assert_eq!(page.read_upto, Some(LogIndex(together)));
    assert_eq!(read_all(&state, LogIndex(0)).last(), Some(&last.0));
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
