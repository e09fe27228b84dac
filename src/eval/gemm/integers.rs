//! Products of weights that are stored as integers of at most eight bits with f32 inputs, by the
//! processor's products of bytes, of which it makes four times as many in a cycle as of f32.
//!
//! Inputs are taken 32 at a time, as fractions of 24 bits of a power of two above the largest, and
//! cut into three slices of eight bits. The products of each slice with the codes of a group of
//! weights are summed exactly (the Ozaki scheme: "Error-free transformations of matrix
//! multiplication", 2012, and on integers "DGEMM on integer matrix multiplication unit", 2024). What
//! is rounded is the input, by at most 2⁻²⁴ of that power, and the sum of a group, once, where f32
//! products round 32 sums.
//!
//! ```text
//! a group of inputs, in words of four bytes   scale | sum | upper 8 | middle 8 | lower 8
//!   input = scale · (2¹⁶ upper + 2⁸ middle + lower - 2²³), sum: of the group's inputs
//! a panel, for each group of columns          codes [8][32 rows][4] | start [32] | scale [32] | offset [32]
//!   start: -2⁷ · the sum of the codes, which undoes the 2²³; offset where the type has them
//! ```

use super::super::buffers::Rows;
use super::{Group, PANEL, TASK_ROWS, cut};
use crate::simd::Avx512Vnni;
use ndarray::parallel::prelude::*;
use ndarray::{ArrayView2, ArrayViewMut2, Axis};

/// Words of a group of inputs.
const INPUT: usize = 2 + 3 * SLICE;
/// Words of a slice of a group.
const SLICE: usize = Group::LEN / 4;
/// Words of the codes of a group of columns of a panel.
const CODES: usize = SLICE * PANEL;
/// Groups of columns that are summed on their own, so that fewer sums are rounded.
const SUMMED: usize = 12;
/// Rows of inputs of a tile, at most.
const TILE_ROWS: usize = 4;
/// Panels of a task, at least: fewer would take hardly longer than to slice the inputs.
const LEAST_PANELS: usize = 8;

/// Words of a group of columns of a panel.
fn block_words(offsets: bool) -> usize {
    CODES + if offsets { 3 } else { 2 } * PANEL
}

/// How many words a panel takes.
pub(super) fn panel_len(columns: usize, offsets: bool) -> usize {
    columns / Group::LEN * block_words(offsets)
}

/// Puts rows of weights into panels. What is in the place of rows that would fill the last panel
/// stays as it was.
pub(super) fn pack(groups: &[Group], columns: usize, offsets: bool, panels: &mut [f32]) {
    let per_row = columns / Group::LEN;
    let rows =
        groups.chunks(PANEL * per_row).zip(panels.chunks_exact_mut(panel_len(columns, offsets)));
    for (rows, panel) in rows {
        for (i, block) in panel.chunks_exact_mut(block_words(offsets)).enumerate() {
            let (codes, values) = block.split_at_mut(CODES);
            for (lane, row) in rows.chunks_exact(per_row).enumerate() {
                let group = &row[i];
                for (word, four) in group.codes.as_chunks::<4>().0.iter().enumerate() {
                    let four = u32::from_le_bytes(four.map(|code| code as u8));
                    codes[word * PANEL + lane] = f32::from_bits(four);
                }
                let sum: i32 = group.codes.iter().map(|&code| i32::from(code)).sum();
                values[lane] = f32::from_bits((-128 * sum) as u32);
                values[PANEL + lane] = group.scale;
                if offsets {
                    values[2 * PANEL + lane] = group.offset;
                }
            }
        }
    }
}

/// A product, on all threads or here.
pub(super) fn multiply(
    vnni: Avx512Vnni,
    x: ArrayView2<f32>,
    panels: &[f32],
    offsets: bool,
    mut out: ArrayViewMut2<f32>,
    parallel: bool,
) {
    if out.is_empty() || x.is_empty() {
        out.fill(0.0);
        return;
    }
    let panel_len = panel_len(x.ncols(), offsets);
    // Inputs are sliced once for each task, so outputs are cut only if threads would wait.
    let n_panels = out.ncols().div_ceil(PANEL);
    let rows = out.nrows().div_ceil(TASK_ROWS);
    let wanted = if parallel { 4 * rayon::current_num_threads() } else { 1 };
    let group = n_panels.div_ceil(wanted.div_ceil(rows)).max(LEAST_PANELS);
    let tasks = cut(x, panels, panel_len, group, out);
    let run = |(x, panels, out)| task(vnni, x, panels, offsets, out);
    match parallel {
        true => tasks.into_par_iter().for_each(run),
        false => tasks.into_iter().for_each(run),
    }
}

/// All panels for some rows of inputs.
fn task(
    vnni: Avx512Vnni,
    x: ArrayView2<f32>,
    panels: &[f32],
    offsets: bool,
    mut out: ArrayViewMut2<f32>,
) {
    let words = x.ncols() / Group::LEN * INPUT;
    let mut inputs = Rows::new(x.nrows(), words);
    for (row, words) in x.rows().into_iter().zip(inputs.values_mut().chunks_exact_mut(words)) {
        match row.as_slice() {
            Some(row) => slice_row(vnni, row, words),
            None => slice_row(vnni, &row.to_vec(), words),
        }
    }
    let panels = panels.chunks_exact(panel_len(x.ncols(), offsets));
    for (mut out, panel) in out.axis_chunks_iter_mut(Axis(1), PANEL).zip(panels) {
        let inputs = inputs.values().chunks(TILE_ROWS * words);
        for (mut out, inputs) in out.axis_chunks_iter_mut(Axis(0), TILE_ROWS).zip(inputs) {
            let mut sums = [[0.0; PANEL]; TILE_ROWS];
            tile(vnni, inputs, panel, offsets, &mut sums[..out.nrows()]);
            for (mut out, sums) in out.rows_mut().into_iter().zip(&sums) {
                match out.as_slice_mut().and_then(|out| out.first_chunk_mut()) {
                    Some(out) => *out = *sums,
                    None => out.iter_mut().zip(sums).for_each(|(out, sum)| *out = *sum),
                }
            }
        }
    }
}

/// Cuts a row of inputs, whole groups, into slices. A group that is not finite gets a scale that is
/// not.
fn slice_row(_: Avx512Vnni, row: &[f32], words: &mut [f32]) {
    for (x, words) in row.as_chunks().0.iter().zip(words.as_chunks_mut().0) {
        // SAFETY: the token says that the machine has the instructions.
        unsafe { vnni::slice(x, words) }
    }
}

/// The power of two by which steps of a group with this largest magnitude are counted, less than
/// 2^23 of them, and its inverse.
#[inline(always)]
fn steps(most: f32) -> (f32, f32) {
    // Exponents with f32's bias; below 23 scales would be no normal numbers.
    let exponent = (most.to_bits() >> 23).clamp(23, 254);
    (f32::from_bits((exponent - 22) << 23), f32::from_bits((276 - exponent) << 23))
}

/// The products of up to [`TILE_ROWS`] rows of inputs, one for each of `out`, with a panel.
fn tile(_: Avx512Vnni, inputs: &[f32], panel: &[f32], offsets: bool, out: &mut [[f32; PANEL]]) {
    let stride = inputs.len() / out.len();
    let all = stride / INPUT;
    assert!(inputs.len() == out.len() * all * INPUT, "whole rows of whole groups");
    assert!(panel.len() == all * block_words(offsets), "a panel of as many groups");
    out.fill([0.0; PANEL]);
    for first in (0..all).step_by(SUMMED) {
        let n = SUMMED.min(all - first);
        let x = inputs[first * INPUT..].as_ptr();
        let w = panel[first * block_words(offsets)..].as_ptr();
        // SAFETY: the token says that the machine has the instructions; each of `out.len()` rows of inputs, `stride`
        // apart, has `n` groups from the first on, and so has the panel, with offsets if the kernel
        // reads them.
        unsafe {
            match (&mut *out, offsets) {
                ([a], false) => vnni::tile::<1, false>(x, stride, w, n, [a]),
                ([a, b], false) => vnni::tile::<2, false>(x, stride, w, n, [a, b]),
                ([a, b, c], false) => vnni::tile::<3, false>(x, stride, w, n, [a, b, c]),
                ([a, b, c, d], false) => vnni::tile::<4, false>(x, stride, w, n, [a, b, c, d]),
                ([a], true) => vnni::tile::<1, true>(x, stride, w, n, [a]),
                ([a, b], true) => vnni::tile::<2, true>(x, stride, w, n, [a, b]),
                ([a, b, c], true) => vnni::tile::<3, true>(x, stride, w, n, [a, b, c]),
                ([a, b, c, d], true) => vnni::tile::<4, true>(x, stride, w, n, [a, b, c, d]),
                _ => unreachable!("a tile has one to four rows"),
            }
        }
    }
}

/// What stands in where there are no tokens.
#[cfg(not(target_arch = "x86_64"))]
mod vnni {
    use super::*;

    pub unsafe fn slice(x: &[f32; Group::LEN], _: &mut [f32; INPUT]) {
        unreachable!("no processor for {:?}", steps(x[0]))
    }

    pub unsafe fn tile<const ROWS: usize, const OFFSETS: bool>(
        _: *const f32,
        _: usize,
        _: *const f32,
        groups: usize,
        _: [&mut [f32; PANEL]; ROWS],
    ) {
        unreachable!("no processor for {groups} groups, {SUMMED} at a time")
    }
}

#[cfg(target_arch = "x86_64")]
mod vnni {
    use super::*;
    use std::arch::x86_64::*;

    /// Registers of a row of a panel.
    const VECTORS: usize = PANEL / LANES;
    /// Values of a register.
    const LANES: usize = 16;

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn floats(from: *const f32) -> [__m512; VECTORS] {
        // SAFETY: the caller grants a line of a panel.
        unsafe { [_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(LANES))] }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn integers(from: *const f32) -> [__m512i; VECTORS] {
        // SAFETY: as above.
        let [a, b] = unsafe { floats(from) };
        [_mm512_castps_si512(a), _mm512_castps_si512(b)]
    }

    /// Cuts a group of inputs into slices.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn slice(x: &[f32; Group::LEN], words: &mut [f32; INPUT]) {
        // SAFETY: a line is read.
        let x = unsafe { floats(x.as_ptr()) };
        // NaN are passed over here.
        let magnitudes = _mm512_max_ps(_mm512_abs_ps(x[0]), _mm512_abs_ps(x[1]));
        let (scale, inverse) = super::steps(_mm512_reduce_max_ps(magnitudes));
        let (most, half) = (_mm512_set1_epi32((1 << 23) - 1), _mm512_set1_epi32(1 << 23));
        let mut sum = _mm512_setzero_si512();
        let mut finite = true;
        let (values, slices) = words.split_at_mut(2);
        for (i, &x) in x.iter().enumerate() {
            let nothing = _mm512_sub_ps(x, x);
            finite &= _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(nothing, nothing) == u16::MAX;
            let nearest = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(inverse)));
            let steps = _mm512_min_epi32(nearest, most);
            sum = _mm512_add_epi32(sum, steps);
            let steps = _mm512_add_epi32(steps, half);
            let bytes = [_mm512_srli_epi32(steps, 16), _mm512_srli_epi32(steps, 8), steps];
            for (slice, bytes) in slices.as_chunks_mut::<SLICE>().0.iter_mut().zip(&bytes) {
                let words = &mut slice[i * LANES / 4..][..LANES / 4];
                // SAFETY: sixteen bytes are written over.
                unsafe {
                    _mm_storeu_si128(words.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(*bytes))
                };
            }
        }
        values[0] = if finite { scale } else { f32::NAN };
        values[1] = values[0] * _mm512_reduce_add_epi32(sum) as f32;
    }

    /// Adds products to `out`.
    ///
    /// # Safety
    /// `x` holds `ROWS` rows of `groups` groups of inputs, `stride` words apart, `panel` as many groups
    /// of columns, with offsets if `OFFSETS`, and the machine has AVX-512 F and VNNI.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub unsafe fn tile<const ROWS: usize, const OFFSETS: bool>(
        x: *const f32,
        stride: usize,
        panel: *const f32,
        groups: usize,
        out: [&mut [f32; PANEL]; ROWS],
    ) {
        let upper = _mm512_set1_ps(65536.0);
        let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        for group in 0..groups {
            // SAFETY: all that is read lies in the groups that the caller grants.
            unsafe {
                let x = x.add(group * INPUT);
                let block = panel.add(group * block_words(OFFSETS));
                let zero = [_mm512_setzero_si512(); VECTORS];
                let mut parts = [[integers(block.add(CODES)), zero, zero]; ROWS];
                for word in 0..SLICE {
                    let codes = integers(block.add(word * PANEL));
                    for row in 0..ROWS {
                        for slice in 0..3 {
                            let x = x.add(row * stride + 2 + slice * SLICE + word);
                            let x = _mm512_set1_epi32(x.cast::<i32>().read());
                            for v in 0..VECTORS {
                                let part = parts[row][slice][v];
                                parts[row][slice][v] = _mm512_dpbusd_epi32(part, x, codes[v]);
                            }
                        }
                    }
                }
                let scales = floats(block.add(CODES + PANEL));
                let offsets = if OFFSETS { floats(block.add(CODES + 2 * PANEL)) } else { scales };
                for row in 0..ROWS {
                    let x = x.add(row * stride);
                    let (scale, sum) = (_mm512_set1_ps(*x), _mm512_set1_ps(*x.add(1)));
                    for v in 0..VECTORS {
                        let middle = _mm512_slli_epi32(parts[row][1][v], 8);
                        let lower = _mm512_cvtepi32_ps(_mm512_add_epi32(middle, parts[row][2][v]));
                        let high = _mm512_cvtepi32_ps(parts[row][0][v]);
                        let whole = _mm512_fmadd_ps(high, upper, lower);
                        let scale = _mm512_mul_ps(scales[v], scale);
                        sums[row][v] = _mm512_fmadd_ps(whole, scale, sums[row][v]);
                        if OFFSETS {
                            sums[row][v] = _mm512_fmadd_ps(offsets[v], sum, sums[row][v]);
                        }
                    }
                }
            }
        }
        for row in 0..ROWS {
            for v in 0..VECTORS {
                let out = out[row][v * LANES..][..LANES].as_mut_ptr();
                // SAFETY: so many values are read and written over.
                unsafe { _mm512_storeu_ps(out, _mm512_add_ps(_mm512_loadu_ps(out), sums[row][v])) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Form, Panels, pack as pack_floats, packed_len};
    use super::*;
    use crate::quant::{Guide, QuantType};
    use crate::simd::Simd;
    use ndarray::Array2;

    /// The specification: one row of inputs and one of weights.
    fn plain(x: &[f32], weights: &[Group], offsets: bool) -> f32 {
        let mut total = 0f32;
        for (x, weights) in x.chunks(SUMMED * Group::LEN).zip(weights.chunks(SUMMED)) {
            let mut out = 0f32;
            for (x, group) in x.chunks_exact(Group::LEN).zip(weights) {
                let most = x.iter().fold(0f32, |most, x| most.max(x.abs()));
                let (mut scale, inverse) = steps(most);
                if x.iter().any(|x| !x.is_finite()) {
                    scale = f32::NAN;
                }
                let (mut upper, mut lower, mut sum) = (0, 0, 0);
                for (x, code) in x.iter().zip(group.codes.map(i32::from)) {
                    let step = ((x * inverse).round_ties_even() as i32).min((1 << 23) - 1);
                    upper += code * (step >> 16);
                    lower += code * (step & 0xffff);
                    sum += step;
                }
                let whole = (upper as f32).mul_add(65536.0, lower as f32);
                out = whole.mul_add(group.scale * scale, out);
                if offsets {
                    out = group.offset.mul_add(scale * sum as f32, out);
                }
            }
            total += out;
        }
        total
    }

    /// Inputs as activations are: normal, some groups of other sizes, some far out.
    fn inputs(rows: usize, columns: usize) -> Array2<f32> {
        let mut state = 7u32;
        let mut uniform = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        Array2::from_shape_fn((rows, columns), |(_, column)| {
            let x: f32 = (0..6).map(|_| uniform()).sum();
            match column / Group::LEN % 4 {
                0 if column % 37 == 5 => 300.0 * x,
                1 => 1e-6 * x,
                2 if column % 3 == 0 => 0.0,
                _ => x,
            }
        })
    }

    /// Weights of a type: as stored, as groups, and as f32.
    fn weights(ty: QuantType, rows: usize, columns: usize) -> (Vec<u8>, Vec<Group>, Array2<f32>) {
        let source = inputs(rows, columns);
        let mut bytes = vec![0; rows * ty.row_bytes(columns).unwrap()];
        ty.encode_rows(source.as_slice().unwrap(), columns, Guide::Plain, &mut bytes).unwrap();
        let mut decoded = Array2::zeros((rows, columns));
        ty.decode_rows(&bytes, columns, decoded.as_slice_mut().unwrap()).unwrap();
        let mut groups = vec![Group::ZERO; rows * columns / Group::LEN];
        (ty.format().groups.unwrap().read)(Simd::detect(), &bytes, &mut groups);
        (bytes, groups, decoded)
    }

    fn product(
        ty: QuantType,
        x: ArrayView2<f32>,
        rows: usize,
        bytes: &[u8],
    ) -> Option<Array2<f32>> {
        let simd = Simd::Avx512Vnni(Avx512Vnni::new()?);
        let form = Form::of(ty, simd);
        let mut panels = vec![f32::NAN; form.panels_len(rows, x.ncols())];
        form.pack_groups(ty, bytes, x.ncols(), &mut panels);
        let mut out = Array2::from_elem((x.nrows(), rows), f32::NAN);
        form.multiply(x, &panels, out.view_mut(), true);
        // Not contiguous, here, and with other tasks.
        let mut turned = Array2::from_elem((rows, x.nrows()), 1.0);
        let columns_first = x.t().as_standard_layout().into_owned();
        form.multiply(columns_first.t(), &panels, turned.view_mut().reversed_axes(), false);
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        assert!(out.iter().zip(&turned.t()).all(same), "{ty}");
        Some(out)
    }

    #[test]
    fn every_product_is_the_plain_reference_s() {
        for (ty, tokens, columns, rows) in [
            (QuantType::Q8_0, 1, 32, 1),
            (QuantType::Q8_0, 119, 576, 45),
            (QuantType::Q4_1, 6, 96, 64),
            (QuantType::Q5_0, 3, 160, 70),
            (QuantType::Q4_K, 230, 512, 300),
            (QuantType::IQ4_XS, 2, 256, 33),
        ] {
            let mut x = inputs(tokens, columns);
            x[(0, columns - 1)] = f32::MAX;
            x[(tokens - 1, 3)] = f32::from_bits(7);
            let (bytes, groups, _) = weights(ty, rows, columns);
            let Some(found) = product(ty, x.view(), rows, &bytes) else { return };
            let offsets = ty.format().groups.unwrap().offsets;
            for ((token, row), found) in found.indexed_iter() {
                let per_row = columns / Group::LEN;
                let row = &groups[row * per_row..][..per_row];
                let expected = plain(x.row(token).as_slice().unwrap(), row, offsets);
                assert_eq!(found.to_bits(), expected.to_bits(), "{ty}: {found} and {expected}");
            }
        }
    }

    #[test]
    fn products_are_nearer_to_the_exact_ones_than_those_of_f32() {
        for ty in [QuantType::Q8_0, QuantType::Q4_K] {
            for columns in [256, 1536, 7168] {
                let (tokens, rows) = (9, 40);
                let x = inputs(tokens, columns);
                let (bytes, _, decoded) = weights(ty, rows, columns);
                let Some(found) = product(ty, x.view(), rows, &bytes) else { return };
                let mut panels = vec![0.0; packed_len(rows, columns)];
                pack_floats(decoded.view(), &mut panels);
                let mut floats = Array2::zeros(found.dim());
                let simd = Simd::detect();
                Panels { values: &panels, columns, simd }.multiply(x.view(), floats.view_mut());
                let exact = x.mapv(f64::from).dot(&decoded.mapv(f64::from).t());
                let error = |of: &Array2<f32>| {
                    let squares = of.iter().zip(&exact).map(|(a, b)| (f64::from(*a) - b).powi(2));
                    (squares.sum::<f64>() / exact.mapv(|v| v * v).sum()).sqrt()
                };
                let [own, of_floats] = [&found, &floats].map(error);
                assert!(own < of_floats, "{ty}, {columns} columns: {own:.1e} and {of_floats:.1e}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_in_its_row() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = inputs(6, 64);
            x[(4, 40)] = bad;
            let (bytes, ..) = weights(QuantType::Q8_0, 33, 64);
            let Some(found) = product(QuantType::Q8_0, x.view(), 33, &bytes) else { return };
            for (token, row) in found.rows().into_iter().enumerate() {
                assert!(row.iter().all(|v| v.is_finite() == (token != 4)), "{bad}");
            }
        }
    }
}
