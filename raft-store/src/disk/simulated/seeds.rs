//! What a run over many seeds is told by whoever starts it.

use std::hash::{BuildHasher, RandomState};

/// A value that whoever runs the tests has set.
#[expect(
    clippy::disallowed_methods,
    reason = "what to run is given to tests by the environment"
)]
pub(crate) fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

/// A number that whoever runs the tests has set.
pub(crate) fn number_from(name: &str) -> Option<u64> {
    setting(name).map(|text| parse(name, &text))
}

fn parse(name: &str, text: &str) -> u64 {
    let number = text.parse();
    number.unwrap_or_else(|_| panic!("{name} must be a number, and is {text:?}"))
}

/// The seed that a run begins with, which is said: 0, so that it is the same in each run, unless `name` is set to another
/// one or to `random`. A random one has 32 bits: it is short to type, and what is mixed into the upper half of a seed
/// keeps seeds apart.
pub(crate) fn first_seed(name: &str) -> u64 {
    let first = match setting(name).as_deref() {
        None => 0,
        Some("random") => RandomState::new().hash_one(name) >> 32,
        Some(text) => parse(name, text),
    };
    println!("from seed {first} ({name}={first} repeats it)");
    first
}

/// Runs seeds, from `RAFTSERVE_CRASH_FIRST` on, until so many crash points were tried, or as many as
/// `RAFTSERVE_CRASH_POINTS` says; `crash_everywhere` says how many a seed has. With `RAFTSERVE_CRASH_SEED=N` that seed alone.
pub(crate) fn crash_points(wanted: u64, mut crash_everywhere: impl FnMut(u64) -> u64) {
    if let Some(seed) = number_from("RAFTSERVE_CRASH_SEED") {
        println!("seed {seed}: {} crash points", crash_everywhere(seed));
        return;
    }
    let wanted = number_from("RAFTSERVE_CRASH_POINTS").unwrap_or(wanted);
    let first = first_seed("RAFTSERVE_CRASH_FIRST");
    let (mut points, mut seed) = (0, first);
    while points < wanted {
        points += crash_everywhere(seed);
        seed += 1;
    }
    println!("{points} crash points, seeds {first} to {}", seed - 1);
}
