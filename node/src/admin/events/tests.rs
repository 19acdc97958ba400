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
        let page = read(state, after, None).unwrap();
        indices.extend(page.batches.iter().map(|batch| batch.log_index));
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
    let page = read(
        &state(EVENTS_READ_MAX as u64 + 1),
        LogIndex(0),
        Some(&wanted),
    );
    let page = page.unwrap();
    assert_eq!(page.batches, []);
    assert_eq!(page.read_upto, Some(LogIndex(EVENTS_READ_MAX as u64)));
}

#[test]
fn a_dropped_part_of_the_trail_is_refused_with_where_it_begins() {
    let dropped = 5;
    let state = state(EVENTS_MAX as u64 + dropped);
    let status = read(&state, LogIndex(dropped - 1), None).err().unwrap();
    assert_eq!(status.code(), tonic::Code::OutOfRange);
    assert_eq!(Reason::of(&status), Some(Reason::Compacted));
    let details = tonic_types::StatusExt::get_error_details(&status);
    let first = &details.error_info().unwrap().metadata["first_index"];
    assert_eq!(*first, (dropped + 1).to_string());
    assert_eq!(oldest(&state), LogIndex(dropped));
    assert_eq!(read_all(&state, oldest(&state)).len(), EVENTS_MAX);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_told_and_cut() {
    let (batches, mut unread) = mpsc::channel(BATCHES_WAITING_MAX);
    let outbox = Outbox(batches);
    let batch = |log_index| v1::WatchEventsResponse {
        log_index,
        events: Vec::new(),
    };
    for index in 0..BATCHES_WAITING_MAX as u64 {
        outbox.send(batch(index)).await.unwrap();
    }
    let begun = Instant::now();
    let status = outbox.send(batch(99)).await.unwrap_err().unwrap();
    assert_eq!(begun.elapsed(), UNREAD_MAX);
    assert_eq!(Reason::of(&status), Some(Reason::SlowConsumer));
    // One that reads again in time goes on; one that has gone ends the watch without a word.
    unread.recv().await.unwrap();
    outbox.send(batch(99)).await.unwrap();
    drop(unread);
    assert!(outbox.send(batch(100)).await.unwrap_err().is_none());
}
