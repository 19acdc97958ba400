//! Medians over rounds, and ratios to etcd within each round.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use crate::load::{Figures, Step};

/// What all rounds have measured.
#[derive(Default)]
pub(crate) struct Report {
    rounds: BTreeMap<(Step, &'static str), Vec<Figures>>,
}

const BASE: &str = "etcd";

impl Report {
    pub(crate) fn add(&mut self, system: &'static str, step: Step, figures: Figures) {
        self.rounds.entry((step, system)).or_default().push(figures);
    }

    /// A table for each step in Markdown.
    pub(crate) fn render(&self) -> String {
        let mut text = String::from(
            "| | system | per s | ratio | p50 ms | p99 ms | p99 ratio | cpu ms per 1,000 | disk bytes each, \
             3 nodes | MiB a node |\n| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |\n",
        );
        for ((step, system), rounds) in &self.rounds {
            let base = self.rounds.get(&(*step, BASE));
            let ratio = |of: fn(&Figures) -> f64| match base {
                Some(base) if *system != BASE => {
                    let each = rounds
                        .iter()
                        .zip(base)
                        .map(|(own, base)| of(own) / of(base));
                    format!("{:.2}", median(each))
                }
                _ => "1".to_owned(),
            };
            let of = |of: fn(&Figures) -> f64| median(rounds.iter().map(of));
            let _ = writeln!(
                text,
                "| {step} | {system} | {:.0} | {} | {:.2} | {:.2} | {} | {:.0} | {:.0} | {:.0} |",
                of(|it| it.per_second),
                ratio(|it| it.per_second),
                of(|it| millis(it.p50)),
                of(|it| millis(it.p99)),
                ratio(|it| millis(it.p99)),
                of(|it| millis(it.cpu_per_thousand)),
                of(|it| it.disk_bytes_each),
                of(|it| it.memory_bytes as f64 / f64::from(1 << 20)),
            );
        }
        text
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The middle one, or the mean of the middle two.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Operation;

    #[test]
    fn ratios_are_of_one_round_and_then_the_median() {
        let figures = |per_second| Figures {
            per_second,
            p50: Duration::from_millis(1),
            p99: Duration::from_millis(2),
            cpu_per_thousand: Duration::from_millis(3),
            disk_bytes_each: 4.0,
            memory_bytes: 5 << 20,
        };
        let step = Step::new(Operation::Put, 16);
        let mut report = Report::default();
        for (etcd, own) in [(100.0, 200.0), (10.0, 50.0), (1.0, 3.0)] {
            report.add("etcd", step, figures(etcd));
            report.add("grpc", step, figures(own));
        }
        let text = report.render();
        assert!(
            text.contains("| grpc | 50 | 3.00 | 1.00 | 2.00 | 1.00 |"),
            "{text}"
        );
        assert_eq!(median([4.0, 1.0].into_iter()), 2.5);
    }
}
