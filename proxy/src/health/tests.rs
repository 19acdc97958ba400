use super::*;

fn settings() -> Ejection {
    Ejection {
        consecutive_errors: 3,
        base: Duration::from_secs(1),
        max: Duration::from_secs(5),
        panic_percent: 50,
    }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn start() -> (Health, Instant) {
    let now = Instant::now();
    (Health::new(now), now)
}

#[test]
fn errors_in_a_row_eject_and_a_success_between_them_does_not() {
    let (mut health, now) = start();
    for _ in 0..3 {
        assert!(!health.failed(now, &settings()));
        assert!(!health.failed(now, &settings()));
        health.succeeded();
    }
    assert_eq!(health.fitness(now), Fitness::Fit);
    let ejected = [(); 3].map(|()| health.failed(now, &settings()));
    assert_eq!(ejected, [false, false, true]);
    assert_eq!(health.fitness(now), Fitness::Ejected);
    assert_eq!(health.fitness(now + secs(1)), Fitness::Fit);
}

#[test]
fn a_refused_connection_ejects_at_once_and_an_accepted_one_readmits() {
    let (mut health, now) = start();
    assert!(health.refused(now, &settings()));
    assert_eq!(health.fitness(now), Fitness::Unreachable);
    assert!(!health.refused(now, &settings()), "it is out already");
    health.connected();
    assert_eq!(health.fitness(now), Fitness::Fit);
}

#[test]
fn after_an_ejection_one_request_at_a_time_tries_it() {
    let (mut health, now) = start();
    health.refused(now, &settings());
    let back = now + secs(1);
    assert_eq!(health.fitness(back), Fitness::Fit);
    health.picked(back, &settings());
    assert_eq!(
        health.fitness(back),
        Fitness::Unreachable,
        "it is being tried"
    );
    // A trial whose end is never told does not keep it out for ever.
    assert_eq!(health.fitness(back + secs(1)), Fitness::Fit);
    health.picked(back + secs(1), &settings());
    health.succeeded();
    assert_eq!(health.fitness(back + secs(1)), Fitness::Fit);
}

#[test]
fn ejections_in_a_row_double_up_to_the_longest_and_a_success_begins_anew() {
    let (mut health, mut now) = start();
    let mut lengths = Vec::new();
    for _ in 0..5 {
        health.picked(now, &settings());
        while !health.failed(now, &settings()) {}
        let out = (0..).find(|&after| health.fitness(now + secs(after)) == Fitness::Fit);
        let out = out.expect("it ends");
        lengths.push(out);
        now += secs(out);
    }
    assert_eq!(lengths, [1, 2, 4, 5, 5]);
    health.picked(now, &settings());
    health.succeeded();
    let ejected = [(); 3].map(|()| health.failed(now, &settings()));
    assert_eq!(ejected, [false, false, true], "it is trusted as before");
    assert_eq!(health.fitness(now + secs(1)), Fitness::Fit);
}

#[test]
fn what_ends_while_it_is_out_changes_nothing() {
    let (mut health, now) = start();
    while !health.failed(now, &settings()) {}
    health.succeeded();
    assert_eq!(health.fitness(now), Fitness::Ejected);
    assert!(!health.failed(now, &settings()));
    assert_eq!(
        health.fitness(now + secs(1)),
        Fitness::Fit,
        "no longer than it was"
    );
}

#[test]
fn errors_are_not_counted_if_the_settings_say_never() {
    let (mut health, now) = start();
    let mut never = settings();
    never.consecutive_errors = 0;
    assert!((0..1000).all(|_| !health.failed(now, &never)));
    assert_eq!(health.fitness(now), Fitness::Fit);
}

#[test]
fn a_new_replica_comes_up_evenly_and_is_plain_at_the_end() {
    let (mut health, now) = start();
    let shares = [0, 1, 5, 9, 10, 11].map(|after| health.share(now + secs(after), secs(10)));
    assert_eq!(shares, [100, 100, 500, 900, 1000, 1000]);
    assert!(health.is_plain());
    let mut at_once = Health::new(now);
    assert_eq!(at_once.share(now, Duration::ZERO), SHARE_FULL);
}

#[test]
fn panic_begins_beyond_the_percentage() {
    let panics = |out, ready| is_panic(out, ready, &settings());
    assert!(!panics(0, 0) && !panics(0, 3) && !panics(1, 2) && !panics(2, 4));
    assert!(panics(1, 1) && panics(2, 3) && panics(3, 4));
}
