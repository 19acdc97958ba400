//! Known histories, good and bad; and random ones, against every order there is.

use std::time::{Duration, Instant};

use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};

use super::*;

/// Times in units of a millisecond; none ends never.
fn call(effect: Effect, started: u64, ended: Option<u64>) -> Call {
    let start = *START;
    let at = |time| start + Duration::from_millis(time);
    Call {
        effect,
        started: at(started),
        ended: ended.map(at),
    }
}

static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);

fn read(value: u64, started: u64, ended: u64) -> Call {
    call(Effect::Read(Some(value)), started, Some(ended))
}

fn write(value: u64, started: u64, ended: u64) -> Call {
    call(Effect::Write(value), started, Some(ended))
}

fn explained(calls: &[Call]) -> bool {
    match search(calls) {
        Verdict::Explained => true,
        Verdict::Unexplained { .. } => false,
        Verdict::Undecided => panic!("undecided: {calls:?}"),
    }
}

#[test]
fn calls_one_after_the_other_are_explained() {
    let empty = call(Effect::Read(None), 0, Some(1));
    assert!(explained(&[
        empty,
        write(1, 2, 3),
        read(1, 4, 5),
        write(2, 6, 7),
        read(2, 8, 9)
    ]));
}

#[test]
fn a_stale_read_is_found() {
    let calls = [write(1, 0, 1), write(2, 2, 3), read(1, 4, 5)];
    assert_eq!(search(&calls), Verdict::Unexplained { call: 2 });
}

#[test]
fn a_lost_write_is_found() {
    let gone = call(Effect::Read(None), 2, Some(3));
    assert!(!explained(&[write(1, 0, 1), gone]));
}

#[test]
fn a_value_that_nobody_wrote_is_found() {
    assert!(!explained(&[write(1, 0, 1), read(7, 2, 3)]));
}

#[test]
fn concurrent_writes_may_come_in_any_order_but_in_one() {
    let writes = [write(1, 0, 10), write(2, 0, 10)];
    let with = |reads: &[Call]| [&writes[..], reads].concat();
    assert!(explained(&with(&[read(1, 11, 12), read(1, 13, 14)])));
    assert!(explained(&with(&[read(2, 11, 12), read(2, 13, 14)])));
    assert!(explained(&with(&[read(1, 1, 2), read(2, 13, 14)])));
    assert!(!explained(&with(&[read(1, 11, 12), read(2, 13, 14)])));
}

#[test]
fn two_readers_must_not_see_a_write_come_and_go() {
    // Both reads fall into the write, so each value is allowed by itself; not the newer one first.
    let calls = |first, second| {
        [
            write(1, 0, 1),
            write(2, 2, 20),
            read(first, 3, 4),
            read(second, 5, 6),
        ]
    };
    assert!(explained(&calls(1, 2)));
    assert!(!explained(&calls(2, 1)));
}

#[test]
fn a_write_of_unknown_outcome_may_show_late_or_never_but_not_go_again() {
    let unknown = call(Effect::Write(2), 2, None);
    let calls = |reads: &[Call]| [&[write(1, 0, 1), unknown][..], reads].concat();
    assert!(explained(&calls(&[read(1, 3, 4), read(1, 5, 6)])));
    assert!(explained(&calls(&[read(1, 3, 4), read(2, 5, 6)])));
    assert!(!explained(&calls(&[read(2, 3, 4), read(1, 5, 6)])));
    // Nor before it was asked for.
    let early = call(Effect::Write(2), 9, None);
    assert!(!explained(&[read(2, 3, 4), early]));
}

#[test]
fn a_swap_needs_what_it_expects_and_a_conflict_needs_something_else() {
    let swap = |from, value, started| call(Effect::Swap(from, value), started, Some(started + 1));
    let differs = |from, started| call(Effect::Differs(from), started, Some(started + 1));
    assert!(explained(&[
        swap(None, 1, 0),
        swap(Some(1), 2, 2),
        differs(Some(1), 4)
    ]));
    // Two that expect the same cannot both succeed.
    assert!(!explained(&[
        swap(None, 1, 0),
        swap(Some(1), 2, 2),
        swap(Some(1), 3, 2)
    ]));
    assert!(!explained(&[swap(None, 1, 0), differs(Some(1), 2)]));
    // A swap that was carried out twice, the second time in vain: its own effect is what it met.
    let unknown = call(Effect::Swap(Some(1), 2), 2, None);
    assert!(explained(&[swap(None, 1, 0), unknown, differs(Some(1), 4)]));
}

#[test]
fn registers_are_checked_apart_and_named() {
    let operation = |key: &str, started: u64, action, answer| Operation {
        key: key.to_owned(),
        client: 0,
        peer: 0,
        started: *START + Duration::from_millis(started),
        ended: *START + Duration::from_millis(started + 1),
        action,
        answer,
    };
    let found = |value| Answer::Found { value, revision: 0 };
    let written = Answer::Written { revision: 1 };
    let good = operation("good", 0, Action::Write { value: 1 }, written.clone());
    let bad = [
        operation("bad", 0, Action::Write { value: 1 }, written),
        operation("bad", 2, Action::Read, found(None)),
    ];
    let refused = operation(
        "good",
        2,
        Action::Write { value: 2 },
        Answer::Refused("no".to_owned()),
    );
    let shown = operation("good", 4, Action::Read, found(Some(2)));
    let fine = [
        good.clone(),
        operation("good", 2, Action::Read, found(Some(1))),
    ];
    assert!(registers_are_linearizable(&fine).is_empty());
    let wrong = registers_are_linearizable(&[&fine[..], &bad].concat());
    assert!(
        wrong.len() == 1 && wrong[0].contains("register bad"),
        "{wrong:?}"
    );
    assert_eq!(registers_are_linearizable(&[good, refused, shown]).len(), 1);
}

/// Whether any order at all explains the calls, by trying all.
fn by_trying_all(calls: &[Call], held: &mut Vec<usize>, value: Value) -> bool {
    let free: Vec<usize> = (0..calls.len())
        .filter(|call| !held.contains(call))
        .collect();
    if free.iter().all(|call| calls[*call].ended.is_none()) {
        return true;
    }
    for call in &free {
        let comes_too_early = free.iter().any(|other| {
            calls[*other]
                .ended
                .is_some_and(|end| end < calls[*call].started)
        });
        if comes_too_early {
            continue;
        }
        if let Some(next) = calls[*call].effect.on(value) {
            held.push(*call);
            let found = by_trying_all(calls, held, next);
            held.pop();
            if found {
                return true;
            }
        }
    }
    false
}

fn effects() -> impl Strategy<Value = Effect> {
    let value = || prop::option::of(1..4_u64);
    prop::strategy::Union::new([
        value().prop_map(Effect::Read).boxed(),
        (1..4_u64).prop_map(Effect::Write).boxed(),
        (value(), 1..4_u64)
            .prop_map(|(from, to)| Effect::Swap(from, to))
            .boxed(),
        value().prop_map(Effect::Differs).boxed(),
    ])
}

fn any_calls() -> impl Strategy<Value = Vec<Call>> {
    let one = (effects(), 0..12_u64, prop::option::weighted(0.8, 0..6_u64));
    let one = one.prop_map(|(effect, started, length)| {
        call(effect, started, length.map(|length| started + length))
    });
    prop::collection::vec(one, 0..7)
}

/// What clients of a real register could see: each call takes effect at once at some time within it.
fn true_calls() -> impl Strategy<Value = Vec<Call>> {
    let one = (0..4_u8, 0..8_u64, 0..8_u64, any::<bool>());
    prop::collection::vec(one, 1..200).prop_map(|made| {
        let mut held: Value = None;
        let mut calls = Vec::new();
        for (at, (kind, before, behind, answered)) in made.into_iter().enumerate() {
            let (now, new) = (10 + 2 * at as u64, at as u64);
            let effect = match kind {
                0 => Effect::Read(held),
                1 => Effect::Write(new),
                2 => Effect::Swap(held, new),
                _ => Effect::Differs(Some(u64::MAX)),
            };
            held = effect.on(held).unwrap();
            // What reads and refuses has no effect, so that an answer that did not come tells nothing.
            let answered = answered || matches!(kind, 0 | 3);
            calls.push(call(effect, now - before, answered.then_some(now + behind)));
        }
        calls
    })
}

proptest! {
    #[test]
    fn the_search_finds_an_order_exactly_if_there_is_one(calls in any_calls()) {
        prop_assert_eq!(explained(&calls), by_trying_all(&calls, &mut Vec::new(), None));
    }

    #[test]
    fn what_a_real_register_shows_is_explained(calls in true_calls()) {
        prop_assert!(explained(&calls));
    }
}
