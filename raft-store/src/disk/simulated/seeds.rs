//! Which seeds a crash run goes through.

#[expect(
    clippy::disallowed_methods,
    reason = "what to run is given to tests by the environment"
)]
fn number_from(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Runs seeds until so many crash points were tried, of which `crash_everywhere` says how many a seed has. With
/// `RAFTSERVE_CRASH_SEED=N` that seed alone, and with `RAFTSERVE_CRASH_POINTS=N` other seeds, until so many were tried.
pub(crate) fn crash_points(wanted: u64, mut crash_everywhere: impl FnMut(u64) -> u64) {
    if let Some(seed) = number_from("RAFTSERVE_CRASH_SEED") {
        println!("seed {seed}: {} crash points", crash_everywhere(seed));
        return;
    }
    let (first, wanted) = match number_from("RAFTSERVE_CRASH_POINTS") {
        Some(wanted) => (1_000, wanted),
        None => (0, wanted),
    };
    let (mut points, mut seed) = (0, first);
    while points < wanted {
        points += crash_everywhere(seed);
        seed += 1;
    }
    println!("{points} crash points, seeds {first} to {}", seed - 1);
}
