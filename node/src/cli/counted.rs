//! Numbers of things, as people say them.

use std::fmt::Display;

/// `1 entry`, `2 entries`.
pub(super) fn counted(count: impl Into<u64> + Display + Copy, one: &str, many: &str) -> String {
    match count.into() {
        1 => format!("1 {one}"),
        _ => format!("{count} {many}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_not_many() {
        assert_eq!(counted(0_u64, "entry", "entries"), "0 entries");
        assert_eq!(counted(1_u64, "entry", "entries"), "1 entry");
        assert_eq!(counted(2_u32, "entry", "entries"), "2 entries");
    }
}
