//! Whether reading a saved state spares a start anything.
//!
//! Its many small values are read one by one, a snapshot's records in blocks: so what is read of it costs several times as
//! much, and only the entries after the snapshot speak for it. The figures are those of `docs/benchmarks.md` ("State", and
//! "The log"), on one machine; elsewhere their ratios are much the same, and that is what counts.

/// Bytes of a snapshot for each value that a saved state is read in: a session takes 39. Larger records are fewer, so that
/// the saved state costs less than is reckoned here.
const BYTES_PER_VALUE: u64 = 40;

/// What a value of a saved state takes to read: a million in 4.0 s.
const VALUE_NS: u64 = 4_000;

/// What as much of a snapshot takes: a million in 0.7 s.
const IN_SNAPSHOT_NS: u64 = 700;

/// What an entry takes to apply: 3 to 4 us, and several times that where it binds sessions.
const ENTRY_NS: u64 = 4_000;

/// Whether a start is likely to be sooner with the saved state than with a snapshot of `snapshot_bytes` and the `entries`
/// between the two. Both states are taken to be about as large.
pub(crate) fn pays(entries: u64, snapshot_bytes: u64) -> bool {
    let values = snapshot_bytes / BYTES_PER_VALUE;
    let saved = values.saturating_mul(VALUE_NS);
    let rebuilt = values.saturating_mul(IN_SNAPSHOT_NS);
    saved < rebuilt.saturating_add(entries.saturating_mul(ENTRY_NS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_state_pays_where_more_is_left_to_apply_than_there_is_to_read() {
        // A million sessions: it would take all entries after some eight snapshots.
        let million = 39_000_000;
        for (entries, worth) in [
            (1, false),
            (100_000, false),
            (750_000, false),
            (900_000, true),
        ] {
            assert_eq!(pays(entries, million), worth, "{entries}");
        }
        // A busy cluster of ten services: a few thousand records.
        let few = 100_000;
        for (entries, worth) in [(1, false), (1_000, false), (3_000, true), (100_000, true)] {
            assert_eq!(pays(entries, few), worth, "{entries}");
        }
        // Nothing is left to apply.
        assert!(!pays(0, million) && !pays(0, 0));
        assert!(pays(u64::MAX, million) && !pays(1, u64::MAX));
    }
}
