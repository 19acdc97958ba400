//! Amounts of `resources` as Kubernetes writes them.

use std::collections::BTreeMap;

/// SkyPilot's `cpus` and `memory` as a request: `4+` is 4, `16` is `16G`, and `4x` is 4 GB for each CPU.
pub(super) fn requests(resources: &BTreeMap<String, String>) -> BTreeMap<&'static str, String> {
    let mut requests = BTreeMap::new();
    let cpus = resources.get("cpus").map(|text| text.trim_end_matches('+'));
    if let Some(cpus) = cpus {
        requests.insert("cpu", cpus.to_owned());
    }
    if let Some(memory) = resources.get("memory") {
        requests.insert("memory", memory_of(memory, cpus));
    }
    requests
}

fn memory_of(text: &str, cpus: Option<&str>) -> String {
    let text = text.trim_end_matches('+');
    if let Some(factor) = text.strip_suffix('x') {
        let factor: f64 = factor.parse().unwrap_or(1.0);
        let cpus: f64 = cpus.and_then(|cpus| cpus.parse().ok()).unwrap_or(1.0);
        return format!("{}G", factor * cpus);
    }
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (amount, unit) = text.split_at(digits);
    let unit = match unit.chars().next().map(|c| c.to_ascii_lowercase()) {
        Some('k') => "k",
        Some('m') => "M",
        Some('t') => "T",
        Some('p') => "P",
        _ => "G",
    };
    format!("{amount}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_as_skypilot_means_them() {
        for (cpus, memory, cpu, bytes) in [
            ("4+", "16", "4", "16G"),
            ("0.5", "2+", "0.5", "2G"),
            ("2", "4x", "2", "8G"),
            ("1", "512MB", "1", "512M"),
            ("1", "1.5tib", "1", "1.5T"),
        ] {
            let asked = [("cpus", cpus), ("memory", memory)];
            let asked = asked.map(|(name, amount)| (name.to_owned(), amount.to_owned()));
            let requests = requests(&BTreeMap::from(asked));
            assert_eq!(requests["cpu"], cpu);
            assert_eq!(requests["memory"], bytes);
        }
    }
}
