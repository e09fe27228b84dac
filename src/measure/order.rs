//! The order in which chunks are taken where not all may be needed: spread over the text, whenever it ends.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// All of `n` chunks, in an order in which the first few lie all over the text, however many they are: one in
/// each half, then one more in the other half of each, and so on (van der Corput's sequence, of which halves
/// come first the seed decides, as Owen scrambled it). Where `n` is no power of two, that holds nearly.
pub(super) fn spread(n: usize, seed: u64) -> Vec<usize> {
    let bits = n.next_power_of_two().trailing_zeros();
    let mut taken = vec![false; n];
    let places = (0..1usize << bits).map(|i| (scrambled(i, bits, seed) * n) >> bits);
    places.filter(|&place| !std::mem::replace(&mut taken[place], true)).collect()
}

/// The bits of a number from the last to the first, each turned or not as those before it have it.
fn scrambled(i: usize, bits: u32, seed: u64) -> usize {
    (0..bits).fold(0, |place, bit| {
        let node = (1u64 << bit) + place as u64;
        let turned = xxh3_64_with_seed(&node.to_le_bytes(), seed) as usize & 1;
        (place << 1) | (((i >> bit) & 1) ^ turned)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_comes_once_and_the_first_lie_all_over_the_text() {
        for (n, seed) in [(1, 0), (2, 1), (7, 2), (64, 3), (100, 4), (655, 5)] {
            let order = spread(n, seed);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..n));
            for first in [2, 4, 8, 16, 32].into_iter().filter(|first| 2 * first <= n) {
                let mut chunks = order[..first].to_vec();
                chunks.extend([0, n]);
                chunks.sort_unstable();
                let widest = chunks.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
                assert!(widest <= 3 * n / first, "{first} of {n}: {chunks:?}");
            }
        }
        assert_ne!(spread(64, 1), spread(64, 2));
        assert_eq!(spread(64, 1), spread(64, 1));
    }
}
