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

/// What comes is twice what one replica's groups shorten the line by.
#[test]
fn a_line_that_moves_ends_whatever_the_load_and_no_group_is_all_of_it() {
    const WAIT: usize = 1000;
    const COME: usize = 2 * GROUP;
    let (queue, waiting) = queue();
    let mut line: VecDeque<_> = (0..WAIT)
        .map(|_| queue.enter(1, 1000).expect("room"))
        .collect();
    assert!(queue.begins_to_move());
    let mut steps = 0;
    let mut came = 0;
    while queue.call_group(1) {
        steps += 1;
        assert!(
            GROUP_EVERY * steps < Duration::from_secs(1),
            "{}",
            line.len()
        );
        let called = line.iter_mut().map_while(|it| is_called(it).then_some(()));
        let called = called.count();
        assert!(called <= GROUP + came, "{called}");
        line.drain(..called);
        assert!(!line.iter_mut().any(is_called), "in order");
        came = 0;
        for _ in 0..COME {
            // As full as it may be, it turns some away at first.
            if let Ok(place) = queue.enter(1, 1000) {
                line.push_back(place);
                came += 1;
            }
        }
    }
    queue.stands();
    assert!(queue.is_empty());
    let turned_away = waiting.turned_away.load(Ordering::Relaxed);
    assert!(turned_away <= 2 * GROUP as u64, "{turned_away}");
    // What came before it moves again is no part of a group's surplus.
    let _places: Vec<_> = (0..WAIT)
        .map(|_| queue.enter(1, 3000).expect("room"))
        .collect();
    assert!(queue.begins_to_move());
    assert!(queue.call_group(2));
    assert_eq!(queue.line.borrow().len(), WAIT - 2 * GROUP);
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
