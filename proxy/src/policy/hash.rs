//! The hash of keys and endpoints: the same on every peer, whatever its machine and its release.

/// Odd constants with as many ones as zeros, from the digits of pi.
const SECRETS: [u64; 3] = [
    0x243f_6a88_85a3_08d3,
    0x1319_8a2e_0370_7345,
    0xa409_3822_299f_31d1,
];

/// The hash of some bytes; another one for each `seed`.
///
/// Each eight bytes are folded in by a multiplication to 128 bits, whose halves are laid upon each other. It is no
/// defence against who chooses keys to meet: who chooses the key chooses the replica.
#[must_use]
pub fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let mut state = fold(seed ^ SECRETS[0], SECRETS[1]);
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
        state = fold(state ^ word, SECRETS[2]);
    }
    let mut last = [0; 8];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    state = fold(state ^ u64::from_le_bytes(last), SECRETS[1]);
    fold(state ^ bytes.len() as u64, SECRETS[0])
}

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    #[expect(clippy::cast_possible_truncation, reason = "the halves are wanted")]
    let halves = ((product >> 64) as u64, product as u64);
    // A zero on either side would wipe out all that came before.
    halves.0 ^ halves.1 ^ a.rotate_left(29)
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

    const KNOWN: [u64; 4] = [
        623_747_907_220_391_476,
        17_208_583_326_804_047_165,
        1_664_035_598_031_509_457,
        2_298_614_685_575_792_155,
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
