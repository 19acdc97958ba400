//! Durations as people write and read them.

use std::time::Duration;

/// Reads `500ms`, `90s`, `10m` or `1h`.
///
/// # Errors
/// A sentence that says what is allowed.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let refuse = || "must be a number with a unit, such as 500ms, 10s, 5m or 1h".to_owned();
    let digits = text
        .find(|digit: char| !digit.is_ascii_digit())
        .ok_or_else(refuse)?;
    let number: u64 = text[..digits].parse().map_err(|_| refuse())?;
    let unit_ms = match &text[digits..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(refuse()),
    };
    match number.checked_mul(unit_ms) {
        Some(ms) if ms > 0 => Ok(Duration::from_millis(ms)),
        _ => Err("must be longer than nothing, and not absurdly long".to_owned()),
    }
}

/// The two greatest units, such as `2h 3m` or `14s`.
pub(super) fn brief(duration: Duration) -> String {
    let secs = duration.as_secs();
    match secs {
        0..60 => format!("{secs}s"),
        60..3_600 => format!("{}m {}s", secs / 60, secs % 60),
        3_600..86_400 => format!("{}h {}m", secs / 3_600, secs / 60 % 60),
        _ => format!("{}d {}h", secs / 86_400, secs / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse("2h"), Ok(Duration::from_secs(7_200)));
        for bad in [
            "",
            "10",
            "s",
            "1.5s",
            "-1s",
            "0s",
            "10d",
            "99999999999999999999s",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn two_units_are_enough() {
        let brief = |secs| brief(Duration::from_secs(secs));
        assert_eq!(brief(0), "0s");
        assert_eq!(brief(61), "1m 1s");
        assert_eq!(brief(7_384), "2h 3m");
        assert_eq!(brief(90_000), "1d 1h");
    }
}
