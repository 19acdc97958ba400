use std::future::poll_fn;

use super::*;

fn queue() -> (Rc<Queue>, Arc<Waiting>) {
    let waiting = Arc::<Waiting>::default();
    (Rc::new(Queue::new(Arc::clone(&waiting))), waiting)
}

fn is_called(place: &mut Place) -> bool {
    place.called.try_recv().is_ok()
}

#[test]
fn they_are_called_in_order_and_those_who_left_take_no_turn() {
    let (queue, waiting) = queue();
    let mut places: Vec<_> = (0..5).map(|_| queue.enter(1, 10).expect("room")).collect();
    drop(places.remove(1));
    assert_eq!(waiting.requests(), 4);
    assert!(queue.call(2));
    let called: Vec<_> = places.iter_mut().map(is_called).collect();
    assert_eq!(called, [true, true, false, false]);
    assert!(!queue.call(9));
    assert!(queue.is_empty());
    drop(places);
    assert_eq!(waiting.requests(), 0);
    assert_eq!(waiting.bytes.load(Ordering::Relaxed), 0);
}

#[test]
fn who_was_called_in_vain_keeps_its_place() {
    let (queue, waiting) = queue();
    let mut places: Vec<_> = (0..4).map(|_| queue.enter(1, 4).expect("room")).collect();
    assert!(queue.call(2));
    places.push(queue.enter(1, 9).expect("room"));
    // The second comes back before the first.
    for called in [1, 0] {
        assert!(is_called(&mut places[called]));
        places[called].returns();
    }
    assert_eq!(waiting.requests(), 5);
    for n in 0..5 {
        assert_eq!(queue.call(1), n < 4);
        let called: Vec<_> = places.iter_mut().map(is_called).collect();
        let alone: Vec<_> = (0..5).map(|each| each == n).collect();
        assert_eq!(called, alone, "one after the other");
    }
    assert_eq!(waiting.turned_away.load(Ordering::Relaxed), 0);
}

/// How many groups it takes until a full line is empty which so many join between two of them, and how many of those find
/// no room.
fn empties(joining: usize) -> (usize, usize) {
    const MOST: u32 = 1_000;
    let (queue, waiting) = queue();
    let mut places: Vec<_> = (0..MOST)
        .map(|_| queue.enter(1, MOST).expect("room"))
        .collect();
    let mut pace = Pace::default();
    let mut groups = 1;
    while queue.call(pace.group(1)) {
        places.retain_mut(|place| !is_called(place));
        places.extend((0..joining).filter_map(|_| queue.enter(1, MOST).ok()));
        groups += 1;
        assert!(groups < 1_000, "{} wait", waiting.requests());
    }
    let refused = waiting.turned_away.load(Ordering::Relaxed);
    (groups, usize::try_from(refused).expect("few"))
}

#[test]
fn a_line_empties_however_many_join_it() {
    assert_eq!(empties(0), (29, 0));
    // As many as at 3,000 and at 30,000 requests a second.
    let (groups, refused) = empties(30);
    assert!(
        groups < 40 && refused < 200,
        "{groups} groups, {refused} refused"
    );
    let (groups, refused) = empties(300);
    assert!(
        groups < 70 && refused < 15_000,
        "{groups} groups, {refused} refused"
    );
}

#[test]
fn who_comes_to_hold_too_much_must_leave() {
    let (queue, waiting) = queue();
    let mut grows = queue.enter(1, 9).expect("room");
    let _other = queue.enter(BYTES_MAX / 2, 9).expect("room");
    grows.holds(BYTES_MAX / 2).expect("room");
    assert_eq!(grows.holds(BYTES_MAX), Err(Full));
    drop(grows);
    assert_eq!(waiting.bytes.load(Ordering::Relaxed), BYTES_MAX / 2);
    assert_eq!(waiting.turned_away.load(Ordering::Relaxed), 1);
}

#[test]
fn the_bounds_hold_over_the_lines_of_all_workers() {
    let (one, waiting) = queue();
    let other = Rc::new(Queue::new(Arc::clone(&waiting)));
    let held = [one.enter(1, 2), other.enter(1, 2)].map(|place| place.expect("room"));
    assert_eq!(held.each_ref().map(Place::is_first), [true, false]);
    assert_eq!(one.enter(1, 2).expect_err("two wait"), Full);
    assert_eq!(waiting.requests(), 2);
    drop(held);
    let large = one.enter(BYTES_MAX, 2).expect("room");
    assert_eq!(other.enter(1, 2).expect_err("so many bytes wait"), Full);
    drop(large);
    other.enter(1, 2).expect("room again");
    assert_eq!(waiting.turned_away.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_dismissed_line_ends_every_wait() {
    let (queue, _) = queue();
    let mut place = queue.enter(1, 2).expect("room");
    queue.dismiss();
    assert!(!poll_fn(|cx| place.poll_called(cx)).await);
}
