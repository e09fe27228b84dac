//! The innermost loop of products, for each set of instructions.
//!
//! A kernel takes a tile: a few rows of inputs, copied side by side, and one panel of weights. Sums
//! stay in registers over the whole slice of columns. Each sum adds its terms in the order of the
//! columns with one rounding a term, so that all kernels but the portable one, which rounds products
//! as well, give the same bits.

use crate::simd::{Avx512Bf16, Lanes, Portable, Simd};

/// Rows of weights that lie side by side in a panel.
pub(super) const PANEL: usize = 32;
/// Columns of a slice, at most: a tile of inputs stays in the nearest cache.
pub(super) const SLICE: usize = 384;
/// From one row of a tile to the next: no multiple of a power of two, so that rows do not fall on
/// the same places of the cache.
pub(super) const STRIDE: usize = SLICE + 16;
/// Rows of a tile, at most, of all kernels.
pub(super) const MAX_ROWS: usize = 14;

/// Multiplies a tile: inputs in rows of [`STRIDE`], weights as `[columns][PANEL]`, the number of
/// columns, outputs and what lies from one row of them to the next, and whether to add to them.
///
/// The kernels of a set of instructions are a slice of these: for one row, two rows, and so on.
///
/// To call it, the inputs must hold the kernel's rows with that many columns, the weights that many
/// times [`PANEL`], the outputs [`PANEL`] values in each row, and the machine the instructions.
pub(super) type Tile = unsafe fn(*const f32, *const f32, usize, *mut f32, usize, bool);

/// The loop itself: `ROWS * VECTORS` sums.
///
/// # Safety
/// As for [`Tile`].
#[inline(always)]
unsafe fn tile<V: Lanes, const ROWS: usize, const VECTORS: usize>(
    add_product: impl Fn(V, V, V) -> V,
    x: *const f32,
    weights: *const f32,
    columns: usize,
    out: *mut f32,
    stride: usize,
    add: bool,
) {
    let width = V::WIDTH * VECTORS;
    for part in 0..PANEL / width {
        // SAFETY: rows, columns and places within a panel are below the bounds that the caller
        // grants.
        unsafe {
            let (weights, out) = (weights.add(part * width), out.add(part * width));
            let mut sums = [[V::splat(0.0); VECTORS]; ROWS];
            for column in 0..columns {
                let weights = weights.add(column * PANEL);
                let mut w = [V::splat(0.0); VECTORS];
                for v in 0..VECTORS {
                    w[v] = V::load_from(weights.add(v * V::WIDTH));
                }
                for row in 0..ROWS {
                    let x = V::splat(*x.add(row * STRIDE + column));
                    for v in 0..VECTORS {
                        sums[row][v] = add_product(sums[row][v], x, w[v]);
                    }
                }
            }
            for row in 0..ROWS {
                for v in 0..VECTORS {
                    let (out, mut sum) = (out.add(row * stride + v * V::WIDTH), sums[row][v]);
                    if add {
                        sum = V::load_from(out) + sum;
                    }
                    sum.store_to(out);
                }
            }
        }
    }
}

/// Defines the kernels of a register type for the given numbers of rows.
macro_rules! kernels {
    ($name:ident, $attribute:meta, $vector:ty, $add:ident, $vectors:literal, $($rows:literal)*) => {
        pub(super) static $name: &[Tile] = &[$({
            #[$attribute]
            unsafe fn kernel(
                x: *const f32,
                weights: *const f32,
                columns: usize,
                out: *mut f32,
                stride: usize,
                add: bool,
            ) {
                // SAFETY: as the caller grants.
                unsafe {
                    tile::<$vector, $rows, $vectors>(<$vector>::$add, x, weights, columns, out, stride, add)
                }
            }
            kernel
        }),*];
    };
}

kernels!(PORTABLE, inline(never), Portable, add_product, 1, 1 2 3 4);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use crate::simd::{F32x8, F32x16};

    kernels!(AVX2, target_feature(enable = "avx2,fma"), F32x8, add_product, 2, 1 2 3 4 5 6);
    kernels!(
        AVX512, target_feature(enable = "avx512f"), F32x16, add_product, 2,
        1 2 3 4 5 6 7 8 9 10 11 12 13 14
    );
    kernels!(
        BF16, target_feature(enable = "avx512f,avx512bf16"), F32x16, add_pairs, 2,
        1 2 3 4 5 6 7 8 9 10 11 12 13 14
    );
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::*;
    use crate::simd::F32x4;

    kernels!(NEON, target_feature(enable = "neon"), F32x4, add_product, 4, 1 2 3 4 5 6);
}

/// The kernels of a level.
pub(super) fn of(simd: Simd) -> &'static [Tile] {
    match simd {
        Simd::Portable => PORTABLE,
        #[cfg(target_arch = "aarch64")]
        Simd::Neon(_) => arm::NEON,
        #[cfg(target_arch = "x86_64")]
        Simd::Avx2(_) => x86::AVX2,
        #[cfg(target_arch = "x86_64")]
        Simd::Avx512(_) | Simd::Avx512Vnni(_) => x86::AVX512,
    }
}

/// The kernels for pairs of BF16, in inputs as in weights, in the place of each value.
#[cfg(target_arch = "x86_64")]
pub(super) fn of_pairs(_: Avx512Bf16) -> &'static [Tile] {
    x86::BF16
}

/// What stands in where there are no tokens.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn of_pairs(token: Avx512Bf16) -> &'static [Tile] {
    match token {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::float::f32_to_bf16;

    /// Small whole numbers, whose sums of products are exact in any order.
    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 31 + seed) % 17) as f32 - 8.0).collect()
    }

    /// Two of them as BF16, side by side.
    fn pair([a, b]: [f32; 2]) -> f32 {
        f32::from_bits(u32::from(f32_to_bf16(a)) | u32::from(f32_to_bf16(b)) << 16)
    }

    #[test]
    fn every_kernel_multiplies_its_rows_and_touches_nothing_else() {
        for simd in Simd::supported() {
            check(of(simd), |x| [x, 0.0], |x| x);
        }
    }

    #[test]
    fn pairs_of_bf16_are_multiplied_in_every_place() {
        let Some(token) = Avx512Bf16::new() else { return };
        check(of_pairs(token), |x| [x, 1.0 - x], |x| pair([x, 1.0 - x]));
    }

    /// Checks kernels with what stands for a number, and that as it is stored.
    fn check(kernels: &[Tile], meant: impl Fn(f32) -> [f32; 2], stored: impl Fn(f32) -> f32) {
        const OUT: usize = PANEL + 3;
        let x = numbers(MAX_ROWS * STRIDE, 5);
        let inputs: Vec<f32> = x.iter().map(|&x| stored(x)).collect();
        assert!(kernels.len() <= MAX_ROWS);
        for (rows, tile) in kernels.iter().enumerate().map(|(i, tile)| (i + 1, tile)) {
            for (columns, add) in [(1, false), (7, true), (SLICE, false), (SLICE, true)] {
                let weights = numbers(columns * PANEL, 3);
                let panel: Vec<f32> = weights.iter().map(|&w| stored(w)).collect();
                let before = numbers(rows * OUT, 1);
                let mut out = before.clone();
                // SAFETY: all buffers are as large as a tile, and the level is supported.
                unsafe {
                    let to = out.as_mut_ptr();
                    tile(inputs.as_ptr(), panel.as_ptr(), columns, to, OUT, add);
                }
                for (i, (found, before)) in out.iter().zip(before).enumerate() {
                    let (row, lane) = (i / OUT, i % OUT);
                    let term = |c: usize| {
                        let [x, w] = [x[row * STRIDE + c], weights[c * PANEL + lane]].map(&meant);
                        x[0] * w[0] + x[1] * w[1]
                    };
                    let product = || (0..columns).map(term).sum::<f32>();
                    let expected = match (lane < PANEL, add) {
                        (false, _) => before,
                        (true, false) => product(),
                        (true, true) => before + product(),
                    };
                    assert_eq!(*found, expected, "{rows} rows, {columns} columns");
                }
            }
        }
    }
}
