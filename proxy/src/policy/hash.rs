//! The hash of keys and endpoints: the same on every peer, whatever its machine and its release.

use twox_hash::XxHash3_64;

/// The hash of some bytes, XXH3, whose values are fixed for ever; another one for each `seed`.
///
/// It is no defence against who chooses keys to meet: who chooses the key chooses the replica.
#[must_use]
pub fn hash(seed: u64, bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(seed, bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_hash_never_changes() {
        // Peers of different releases share their keys.
        let known = [
            hash(0, b""),
            hash(0, b"a"),
            hash(1, b"a"),
            hash(0, b"user-12345"),
        ];
        assert_eq!(known, KNOWN);
    }

    /// The first is also in XXH3's own test vectors.
    const KNOWN: [u64; 4] = [
        0x2d06_8005_38d3_94c2,
        16_629_034_431_890_738_719,
        15_201_566_949_650_179_872,
        11_874_073_586_122_099_140,
    ];

    #[test]
    fn near_keys_are_far_apart() {
        let hashes: HashSet<u64> = (0..200_000_u32)
            .map(|n| hash(0, format!("user-{n}").as_bytes()))
            .collect();
        assert_eq!(hashes.len(), 200_000);
        for bit in [0, 7, 31, 47, 63] {
            let ones = hashes.iter().filter(|hash| **hash >> bit & 1 == 1).count();
            assert!((98_500..101_500).contains(&ones), "bit {bit}: {ones}");
        }
        // Trailing zeros are not padding.
        assert_ne!(hash(0, b"a"), hash(0, b"a\0"));
        assert_ne!(hash(0, b""), hash(0, b"\0"));
    }
}
