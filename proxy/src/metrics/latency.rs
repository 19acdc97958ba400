//! How long requests take, in fixed buckets: a worker adds to its own, and a scrape sums them.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{add, count};

/// Upper ends of the buckets, in microseconds: from a cache hit to the last token of a long answer.
const BOUNDS: [u64; 16] = [
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

/// Writes the sum of the workers' histograms.
pub(super) fn render(
    text: &mut String,
    name: &str,
    labels: &str,
    workers: &[Arc<Latencies>],
    read: fn(&Latencies) -> &Histogram,
) {
    let mut below = 0;
    for (at, bound) in BOUNDS.iter().map(Some).chain([None]).enumerate() {
        let each = workers.iter();
        below += each
            .map(|worker| read(worker).buckets[at].load(Ordering::Relaxed))
            .sum::<u64>();
        let bound = bound.map_or_else(|| "+Inf".to_owned(), |&bound| decimal(bound));
        let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
    }
    let sum = workers.iter();
    let sum = sum.map(|worker| read(worker).sum_micros.load(Ordering::Relaxed));
    render_sum(text, name, labels, sum.sum(), below);
}

/// Writes how many there were, and how long they took together.
pub(super) fn render_sum(text: &mut String, name: &str, labels: &str, micros: u64, number: u64) {
    let _ = writeln!(text, "{name}_sum{{{labels}}} {}", decimal(micros));
    let _ = writeln!(text, "{name}_count{{{labels}}} {number}");
}

/// Microseconds as seconds, without zeros at the end.
pub(super) fn decimal(micros: u64) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_sums_the_workers_bucket_by_bucket() {
        let workers = [Arc::<Latencies>::default(), Arc::default()];
        workers[0].total.observe(Duration::from_millis(1));
        workers[1].total.observe(Duration::from_millis(2));
        workers[1].total.observe(Duration::from_secs(1_000));
        let mut text = String::new();
        render(&mut text, "x", "service=\"s\"", &workers, |each| {
            &each.total
        });
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
}
