//! The medians, and how they compare.

use std::collections::BTreeSet;

use crate::peers::Peer;
use crate::scenario::{Measured, Scenario};

/// All that was measured.
#[derive(Default)]
pub(crate) struct Report {
    measured: Vec<(Scenario, Peer, Measured)>,
    missing: BTreeSet<&'static str>,
}

impl Report {
    /// Notes that a program is not installed, and says so once.
    pub(crate) fn left_out(&mut self, peer: Peer) {
        if self.missing.insert(peer.name()) {
            println!("{} is not installed, and left out", peer.name());
        }
    }

    pub(crate) fn add(&mut self, scenario: Scenario, peer: Peer, measured: Measured) {
        self.measured.push((scenario, peer, measured));
    }

    /// Prints the medians of one scenario.
    pub(crate) fn print(&self, scenario: Scenario) {
        println!("\n{} ({})", scenario.name(), scenario.unit());
        for peer in Peer::ALL {
            let Some((median, least, most)) = self.median(scenario, peer) else {
                continue;
            };
            let yardstick = self.median(scenario, scenario.yardstick(peer));
            let ratio = yardstick.map_or(f64::NAN, |(yardstick, ..)| median / yardstick);
            let of_it = |each: &&(Scenario, Peer, Measured)| (each.0, each.1) == (scenario, peer);
            let last = self.measured.iter().rev().find(of_it);
            let note = last.map_or("", |each| each.2.note.as_str());
            println!(
                "  {:<22} {median:>7.2} ({least:.2}-{most:.2})  x {ratio:.2}  {note}",
                peer.name()
            );
        }
    }

    /// Median, least and most of one peer's figures.
    fn median(&self, scenario: Scenario, peer: Peer) -> Option<(f64, f64, f64)> {
        let mut figures: Vec<f64> = self
            .measured
            .iter()
            .filter(|each| (each.0, each.1) == (scenario, peer))
            .map(|each| each.2.figure)
            .collect();
        figures.sort_by(f64::total_cmp);
        let median = *figures.get(figures.len() / 2)?;
        Some((median, *figures.first()?, *figures.last()?))
    }
}
