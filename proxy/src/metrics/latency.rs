//! How long requests take, in fixed buckets: a worker adds to its own, and a scrape sums them.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{add, count};

/// Upper ends of the buckets, in microseconds: from a cache hit to the last token of a long answer.
pub(super) const BOUNDS: [u64; 16] = [
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
];

/// Those that are told of each replica, of which there may be hundreds.
pub(super) const BOUNDS_OF_REPLICAS: [u64; 6] =
    [10_000, 100_000, 500_000, 1_000_000, 5_000_000, 30_000_000];

/// Counts of durations by bucket; the last has no upper end.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_micros: AtomicU64,
}

impl Histogram {
    pub(crate) fn observe(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        count(&self.buckets[BOUNDS.partition_point(|&bound| bound < micros)]);
        add(&self.sum_micros, micros);
    }
}

/// One worker's latencies of one version of a service.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Latencies {
    /// From a request's head to that of its answer.
    pub(crate) first_byte: Histogram,
    /// From a request's head to the end of its answer.
    pub(crate) total: Histogram,
}

/// Writes the sum of the workers' histograms, with these of the buckets' ends.
pub(super) fn render<'h>(
    text: &mut String,
    name: &str,
    labels: &str,
    ends: &[u64],
    workers: impl Iterator<Item = &'h Histogram> + Clone,
) {
    let mut below = 0;
    for (at, bound) in BOUNDS.iter().map(Some).chain([None]).enumerate() {
        let each = workers.clone();
        below += each
            .map(|worker| worker.buckets[at].load(Ordering::Relaxed))
            .sum::<u64>();
        if bound.is_some_and(|bound| !ends.contains(bound)) {
            continue;
        }
        let bound = bound.map_or_else(|| "+Inf".to_owned(), |&bound| decimal(bound));
        let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
    }
    let micros = workers.map(|worker| worker.sum_micros.load(Ordering::Relaxed));
    let micros = decimal(micros.sum());
    let _ = writeln!(text, "{name}_sum{{{labels}}} {micros}");
    let _ = writeln!(text, "{name}_count{{{labels}}} {below}");
}

/// Microseconds as seconds, without zeros at the end.
pub(super) fn decimal(micros: u64) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_scrape_sums_the_workers_bucket_by_bucket() {
        let workers = [Arc::<Latencies>::default(), Arc::default()];
        workers[0].total.observe(Duration::from_millis(1));
        workers[1].total.observe(Duration::from_millis(2));
        workers[1].total.observe(Duration::from_secs(1_000));
        let mut text = String::new();
        let total = workers.iter().map(|each| &each.total);
        render(&mut text, "x", "service=\"s\"", &BOUNDS, total);
        for line in [
            "x_bucket{service=\"s\",le=\"0.001\"} 1",
            "x_bucket{service=\"s\",le=\"0.0025\"} 2",
            "x_bucket{service=\"s\",le=\"300\"} 2",
            "x_bucket{service=\"s\",le=\"+Inf\"} 3",
            "x_sum{service=\"s\"} 1000.003",
            "x_count{service=\"s\"} 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn fewer_ends_leave_out_no_duration() {
        let histogram = Histogram::default();
        for millis in [1, 11, 90, 400, 2_000, 100_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let mut text = String::new();
        let ends = &BOUNDS_OF_REPLICAS;
        render(&mut text, "x", "r=\"1\"", ends, [&histogram].into_iter());
        let expected = [
            ("0.01", 1),
            ("0.1", 3),
            ("0.5", 4),
            ("1", 4),
            ("5", 5),
            ("30", 5),
            ("+Inf", 6),
        ];
        let expected =
            expected.map(|(end, below)| format!("x_bucket{{r=\"1\",le=\"{end}\"}} {below}\n"));
        let rest = "x_sum{r=\"1\"} 102.502\nx_count{r=\"1\"} 6\n";
        assert_eq!(text, expected.concat() + rest);
        let known = |end: &u64| BOUNDS.contains(end);
        assert!(ends.iter().all(known), "else it would never be told");
    }
}
