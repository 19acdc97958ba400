//! What was acknowledged stays.

/// A counter that only writes raise: each `(acknowledged, read)` pair holds the highest value that any
/// write acknowledged before the read, and what the read found. The read is never below it, nor below an
/// earlier read; and never above `proposed`, the highest value that any write, acknowledged or not, asked
/// for.
#[must_use]
pub fn never_goes_back(reads: &[(u64, u64)], proposed: u64) -> Vec<String> {
    let mut found = Vec::new();
    let mut floor = 0;
    for (at, (acknowledged, read)) in reads.iter().enumerate() {
        if read < acknowledged {
            found.push(format!(
                "read {at}: {read}, though {acknowledged} was acknowledged"
            ));
        }
        if *read < floor {
            found.push(format!("read {at}: {read}, though {floor} was read before"));
        }
        if *read > proposed {
            found.push(format!(
                "read {at}: {read}, though at most {proposed} was written"
            ));
        }
        floor = floor.max(*read);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unacknowledged_writes_may_show_or_not() {
        assert!(never_goes_back(&[(1, 1), (1, 2), (2, 2), (3, 4)], 4).is_empty());
    }

    #[test]
    fn a_lost_write_is_found() {
        assert_eq!(never_goes_back(&[(3, 2)], 3).len(), 1);
    }

    #[test]
    fn a_read_that_goes_back_is_found_without_any_acknowledgement() {
        assert_eq!(never_goes_back(&[(0, 3), (0, 2)], 3).len(), 1);
    }

    #[test]
    fn a_value_from_nowhere_is_found() {
        assert_eq!(never_goes_back(&[(1, 9)], 3).len(), 1);
    }
}
