//! Products of weights that are stored as integers of at most eight bits, by the processor's products of
//! bytes, of which it makes four times as many in a cycle as of f32.
//!
//! Inputs are taken in groups, as weights have them. As f32, in groups of 32, they become fractions of 24 bits of a
//! power of two above the largest, cut into three slices of eight bits. The products of each slice with the
//! codes of a group of weights are summed exactly (the Ozaki scheme: "Error-free transformations of matrix
//! multiplication", 2012, and on integers "DGEMM on integer matrix multiplication unit", 2024). What
//! is rounded is the input, by at most 2⁻²⁴ of that power, and the sum of a group, once, where f32
//! products round 32 sums. Inputs that llama.cpp would round to eight bits are one slice.
//!
//! AVX2 has products of two bytes, whose sums have sixteen bits: as many of them as fit with the largest code of a type
//! are added before they are widened. Where not even one fits, codes and inputs have sixteen bits each, and products of
//! these are summed in twice as many. Both serve inputs of one slice, as do ARM's products of bytes.
//!
//! Inputs that are rounded in blocks of 256 have one scale for each. Their weights' scales and offsets are whole multiples
//! of a block's, its units, and stay whole: the sum of a block is one integer for scales and one for offsets, whatever the
//! order in which they are added. AVX2 has an arrangement of its own for these ([`avx2_blocks`]).
//!
//! ```text
//! a group of inputs, in words of four bytes   scale | sum | upper 8 | middle 8 | lower 8
//!   input = scale · (2¹⁶ upper + 2⁸ middle + lower - 2²³), sum: of the group's inputs
//!                                             scale | sum | 8, or 4 for groups of 16
//!   input = scale · (byte - 2⁷); of blocks of 256, sum is that of integers
//! a panel, for each group of columns          codes [8 or 4][32 rows][4] | start [32] | scale [32] | offset [32]
//!   start: -2⁷ · the sum of the codes, which undoes the 2²³ or 2⁷; offset where the type has them
//!   of blocks of 256, scale and offset are how often they have their units, the first as an integer unless f32 hold all
//!   sums, and behind a block's groups are      unit [32] | unit of offsets [32]
//! of sixteen bits   scale | sum | 16 words of two: input = scale · integer
//!                                             codes [16][32 rows][2] | start, which is zero | ...
//! ```

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
mod avx2_blocks;
#[cfg(target_arch = "aarch64")]
mod neon;
mod rounded;
#[cfg(target_arch = "x86_64")]
mod vnni;

use super::super::buffers::Rows;
use super::{PANEL, TASK_ROWS, cut};
use crate::quant::{Activation, Group, Groups, QuantType, Read};
use crate::simd::{Avx2, Avx512Vnni, Neon, NeonDot, Simd};
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};

/// Columns that are summed on their own, so that fewer sums are rounded.
const SUMMED: usize = 384;
/// The same of inputs in blocks, of which all have one scale.
const BLOCK: usize = 256;
/// Rows of inputs of a tile, at most.
const MAX_TILE_ROWS: usize = 6;
/// Panels of a task, at least: fewer would take hardly longer than to slice the inputs.
const LEAST_PANELS: usize = 8;
/// Inputs of a group that are sliced.
const FRACTIONS: usize = 32;

/// How inputs meet weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Products {
    ty: QuantType,
    /// Weights of a group: 16 or 32.
    len: usize,
    /// Whether groups have offsets.
    offsets: bool,
    /// What inputs are rounded to; nothing where they are sliced.
    rounded: Option<Activation>,
    /// The largest magnitude of a code.
    largest: i16,
    kernel: Kernel,
}

/// Whose instructions multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    Vnni(Avx512Vnni),
    /// With so many products of four columns that are added in sixteen bits; none where codes and inputs have as many.
    Avx2(Avx2, usize),
    Neon(Neon, NeonDot),
}

impl Kernel {
    /// That of a level, for codes up to a magnitude and inputs that are rounded or not.
    fn of(simd: Simd, largest: i16, rounded: Option<Activation>, offsets: bool) -> Option<Self> {
        // Inputs are at most 255, or 127 where codes have no signs; two products are added.
        let most = if rounded == Some(Activation::Q8_K) && offsets { 127 } else { 255 };
        let at_once = i16::MAX / largest.max(1) / (2 * most);
        match simd {
            Simd::Avx512Vnni(token) => Some(Self::Vnni(token)),
            Simd::Avx2(token) if rounded.is_some() => Some(Self::Avx2(token, at_once as usize)),
            Simd::Neon(token) if rounded.is_some() => {
                NeonDot::new().map(|dot| Self::Neon(token, dot))
            }
            _ => None,
        }
    }

    fn simd(self) -> Simd {
        match self {
            Self::Vnni(token) => Simd::Avx512Vnni(token),
            Self::Avx2(token, _) => Simd::Avx2(token),
            Self::Neon(token, _) => Simd::Neon(token),
        }
    }
}

impl Products {
    /// Those of a type with inputs as they are, or rounded.
    pub fn of(ty: QuantType, rounded: Option<Activation>, simd: Simd) -> Option<Self> {
        let Groups { offsets, largest, read, .. } = ty.format().groups?;
        let kernel = Kernel::of(simd, largest, rounded, offsets)?;
        let len = match read {
            Read::Of16(_) => 16,
            Read::Of32(_) => 32,
        };
        // Three slices of so few would gain nothing on f32.
        (len == FRACTIONS || rounded.is_some()).then_some(Self {
            ty,
            len,
            offsets,
            rounded,
            largest,
            kernel,
        })
    }

    /// Whether inputs have one scale for [`BLOCK`] columns.
    fn in_blocks(self) -> bool {
        self.rounded == Some(Activation::Q8_K)
    }

    /// Whether sums of a block are multiplied and added as f32, which hold them exactly. VNNI has no products of 32 bits
    /// that are as fast. The sums of offsets, of up to eight bits, always are.
    fn in_floats(self) -> bool {
        const FIT: i32 = (1 << f32::MANTISSA_DIGITS) / (BLOCK as i32 * 127 * 128);
        matches!(self.kernel, Kernel::Vnni(_)) && i32::from(self.largest) <= FIT
    }

    /// Those of blocks by AVX2, with so many products that are added at once.
    fn by_avx2_in_blocks(self) -> Option<usize> {
        match self.kernel {
            Kernel::Avx2(_, at_once) if self.in_blocks() => Some(at_once),
            _ => None,
        }
    }

    /// Columns that are summed on their own.
    fn summed(self) -> usize {
        if self.in_blocks() { BLOCK } else { SUMMED }
    }

    fn slices(self) -> usize {
        if self.rounded.is_some() { 1 } else { 3 }
    }

    /// Words of a group of codes, for each row, and of a slice of inputs.
    fn words(self) -> usize {
        self.len / if matches!(self.kernel, Kernel::Avx2(_, 0)) { 2 } else { 4 }
    }

    /// Words of a group of columns of a panel.
    fn group_words(self) -> usize {
        group_words(self.words(), self.offsets)
    }

    /// How many words a row of inputs takes, in whole groups, or whole blocks.
    fn input_len(self, columns: usize) -> usize {
        match self.by_avx2_in_blocks() {
            Some(at_once) => columns / BLOCK * avx2_blocks::input_words(at_once),
            None => columns / self.len * (2 + self.slices() * self.words()),
        }
    }

    /// How many words a panel takes.
    pub fn panel_len(self, columns: usize) -> usize {
        let blocks = if self.in_blocks() { columns / BLOCK } else { 0 };
        match self.by_avx2_in_blocks() {
            Some(at_once) => blocks * avx2_blocks::block_words(at_once, self.offsets),
            None => columns / self.len * self.group_words() + blocks * 2 * PANEL,
        }
    }

    /// Puts rows of weights into panels. What is in the place of rows that would fill the last panel
    /// stays as it was.
    pub fn pack(self, bytes: &[u8], columns: usize, panels: &mut [f32]) {
        match self.ty.format().groups.map(|groups| groups.read) {
            Some(Read::Of16(read)) => self.pack_groups(read, bytes, columns, panels),
            Some(Read::Of32(read)) => self.pack_groups(read, bytes, columns, panels),
            None => unreachable!("weights are groups"),
        }
    }

    fn pack_groups<const G: usize>(
        self,
        read: fn(Simd, &[u8], &mut [Group<G>]),
        bytes: &[u8],
        columns: usize,
        panels: &mut [f32],
    ) {
        let row_bytes = self.ty.row_bytes(columns).unwrap_or(0).max(1);
        // No more, so that they stay in the nearest cache.
        let mut groups = vec![Group::ZERO; columns / G];
        let panels = panels.chunks_exact_mut(self.panel_len(columns));
        for (rows, panel) in bytes.chunks(PANEL * row_bytes).zip(panels) {
            for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
                read(self.kernel.simd(), row, &mut groups);
                if !self.in_blocks() {
                    self.put(&groups, lane, panel);
                    continue;
                }
                let blocks =
                    row.chunks_exact(self.ty.block_bytes()).zip(groups.chunks_exact(BLOCK / G));
                let panels = panel.chunks_exact_mut(self.panel_len(BLOCK));
                for ((block, groups), panel) in blocks.zip(panels) {
                    self.put_block(groups, self.units(block), lane, panel);
                }
            }
        }
    }

    /// What the scales and the offsets of a block are whole multiples of.
    fn units(self, block: &[u8]) -> [f32; 2] {
        self.ty.format().groups.map_or([0.0; 2], |groups| (groups.units)(block))
    }

    /// Puts a block of a row of weights into its lane of a panel.
    fn put_block<const G: usize>(
        self,
        groups: &[Group<G>],
        units: [f32; 2],
        lane: usize,
        panel: &mut [f32],
    ) {
        if let Some(at_once) = self.by_avx2_in_blocks() {
            return avx2_blocks::put(groups, units, at_once, self.offsets, lane, panel);
        }
        let (of_groups, of_block) = panel.split_at_mut(groups.len() * self.group_words());
        for (group, words) in groups.iter().zip(of_groups.chunks_exact_mut(self.group_words())) {
            let (scale, offset) =
                (multiple(group.scale, units[0]), multiple(group.offset, units[1]));
            let scale = if self.in_floats() { scale.into() } else { word_of_one(scale.into()) };
            let offset = offset.into();
            self.put(&[Group { scale, offset, ..*group }], lane, words);
        }
        for (unit, of_rows) in units.iter().zip(of_block.chunks_exact_mut(PANEL)) {
            of_rows[lane] = *unit;
        }
    }

    /// Puts a row of weights, or a piece of one, into its lane of a panel.
    fn put<const G: usize>(self, groups: &[Group<G>], lane: usize, panel: &mut [f32]) {
        let wide = matches!(self.kernel, Kernel::Avx2(_, 0));
        for (group, block) in groups.iter().zip(panel.chunks_exact_mut(self.group_words())) {
            let (words, values) = block.split_at_mut(self.words() * PANEL);
            let mut start = 0;
            if wide {
                let two = group.codes.as_chunks::<2>().0;
                for word in 0..G / 2 {
                    let [a, b] = two[word];
                    words[word * PANEL + lane] = word_of_two([a.into(), b.into()]);
                }
            } else {
                let mut codes = [0u8; G];
                for i in 0..G {
                    codes[i] = group.codes[i] as u8;
                    start -= 128 * i32::from(group.codes[i]);
                }
                let four = codes.as_chunks::<4>().0;
                for word in 0..G / 4 {
                    words[word * PANEL + lane] = word_of(four[word]);
                }
            }
            values[lane] = word_of_one(start);
            values[PANEL + lane] = group.scale;
            if self.offsets {
                values[2 * PANEL + lane] = group.offset;
            }
        }
    }

    /// A product, on all threads or here.
    pub fn multiply(
        self,
        x: ArrayView2<f32>,
        panels: &[f32],
        mut out: ArrayViewMut2<f32>,
        parallel: bool,
    ) {
        if out.is_empty() || x.is_empty() {
            out.fill(0.0);
            return;
        }
        let panel_len = self.panel_len(x.ncols());
        // Inputs are sliced once for each task, so outputs are cut only if threads would wait, and rows so that
        // all threads have as many.
        let n_panels = out.ncols().div_ceil(PANEL);
        let threads = if parallel { rayon::current_num_threads() } else { 1 };
        let parts = out.nrows().div_ceil(TASK_ROWS).next_multiple_of(threads);
        let rows = out.nrows().div_ceil(parts).next_multiple_of(self.tiles().len());
        let wanted = if parallel { 4 * threads } else { 1 };
        let group = n_panels.div_ceil(wanted.div_ceil(parts)).max(LEAST_PANELS);
        let tasks = cut(x, panels, panel_len, [rows, group], out);
        let run = |(x, panels, out)| self.task(x, panels, out);
        match parallel {
            true => tasks.into_par_iter().for_each(run),
            false => tasks.into_iter().for_each(run),
        }
    }

    /// All panels for some rows of inputs.
    fn task(self, x: ArrayView2<f32>, panels: &[f32], mut out: ArrayViewMut2<f32>) {
        let words = self.input_len(x.ncols());
        let mut inputs = Rows::new(x.nrows(), words);
        for (row, words) in x.rows().into_iter().zip(inputs.values_mut().chunks_exact_mut(words)) {
            match row.as_slice() {
                Some(row) => self.cut_row(row, words),
                None => self.cut_row(&row.to_vec(), words),
            }
        }
        if out.strides()[1] == 1 && out.strides()[0] > 0 {
            return self.all_panels(x.ncols(), inputs.values(), panels, out);
        }
        let mut own = Array2::zeros(out.dim());
        self.all_panels(x.ncols(), inputs.values(), panels, own.view_mut());
        out.assign(&own);
    }

    /// Rows of outputs, each contiguous, from rows of inputs in words.
    fn all_panels(
        self,
        columns: usize,
        inputs: &[f32],
        panels: &[f32],
        mut out: ArrayViewMut2<f32>,
    ) {
        let (n_rows, n_out) = out.dim();
        let words = self.input_len(columns);
        let panels = panels.chunks_exact(self.panel_len(columns));
        let tile_rows = self.tiles().len();
        let mut edge = [0.0; MAX_TILE_ROWS * PANEL];
        for (first, panel) in (0..n_out).step_by(PANEL).zip(panels) {
            let lanes = PANEL.min(n_out - first);
            for row in (0..n_rows).step_by(tile_rows) {
                let rows = tile_rows.min(n_rows - row);
                let inputs = &inputs[row * words..][..rows * words];
                let mut out = out.slice_mut(s![row..row + rows, first..first + lanes]);
                if lanes == PANEL {
                    let stride = out.strides()[0] as usize;
                    // SAFETY: each of the rows, `stride` apart, has `PANEL` values in the view.
                    unsafe { self.tile(columns, inputs, rows, panel, (out.as_mut_ptr(), stride)) };
                    continue;
                }
                // SAFETY: there are as many rows of `PANEL` values.
                unsafe { self.tile(columns, inputs, rows, panel, (edge.as_mut_ptr(), PANEL)) };
                for (mut out, sums) in out.rows_mut().into_iter().zip(edge.chunks_exact(PANEL)) {
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out = *sum);
                }
            }
        }
    }

    /// Brings a row of inputs, whole groups, into words. A group that is not finite gets a scale that is
    /// not.
    fn cut_row(self, row: &[f32], words: &mut [f32]) {
        match (self.rounded, self.len, self.kernel) {
            (Some(Activation::Q8_K), _, Kernel::Avx2(token, at_once)) => {
                let brought = match (at_once, self.offsets) {
                    (0, _) => rounded::in_wide_blocks,
                    (_, true) => rounded::in_signed_blocks,
                    (_, false) => rounded::in_blocks,
                };
                brought(Simd::Avx2(token), row, words);
            }
            (Some(to), _, Kernel::Avx2(token, 0)) => {
                rounded::in_wide_groups_of_32(Simd::Avx2(token), row, to, words);
            }
            (Some(to), 16, kernel) => rounded::in_groups_of_16(kernel.simd(), row, to, words),
            (Some(to), _, kernel) => rounded::in_groups_of_32(kernel.simd(), row, to, words),
            #[cfg(target_arch = "x86_64")]
            (None, _, Kernel::Vnni(_)) => {
                for (x, words) in row.as_chunks().0.iter().zip(words.as_chunks_mut().0) {
                    // SAFETY: the token says that the machine has the instructions.
                    unsafe { vnni::slice(x, words) }
                }
            }
            (None, ..) => unreachable!("other kernels take rounded inputs"),
        }
    }

    /// The kernels for one row of inputs, two rows, and so on.
    fn tiles(self) -> &'static [Tile] {
        match self.kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Vnni(_) => vnni::tiles(self),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2(_, at_once) if self.in_blocks() => {
                avx2_blocks::tiles(at_once, self.offsets)
            }
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2(_, at_once) => avx2::tiles(self, at_once),
            #[cfg(target_arch = "aarch64")]
            Kernel::Neon(..) => neon::tiles(self),
            #[cfg(not(target_arch = "aarch64"))]
            Kernel::Neon(token, _) => match token {},
            #[cfg(not(target_arch = "x86_64"))]
            Kernel::Vnni(token) => match token {},
            #[cfg(not(target_arch = "x86_64"))]
            Kernel::Avx2(token, _) => match token {},
        }
    }

    /// The products of the rows of inputs of a tile with a panel.
    ///
    /// # Safety
    /// `out` is the first of as many rows of [`PANEL`] values, and how far they are apart.
    unsafe fn tile(
        self,
        columns: usize,
        inputs: &[f32],
        rows: usize,
        panel: &[f32],
        out: (*mut f32, usize),
    ) {
        let words = self.input_len(columns);
        assert!(inputs.len() == rows * words, "whole rows of whole groups");
        assert!(panel.len() == self.panel_len(columns), "a panel of as many groups");
        let (tile, summed) = (self.tiles()[rows - 1], self.summed());
        let (input_len, panel_len) = (self.input_len(summed), self.panel_len(summed));
        for (i, first) in (0..columns).step_by(summed).enumerate() {
            let groups = summed.min(columns - first) / self.len;
            let x = inputs[i * input_len..].as_ptr();
            let w = panel[i * panel_len..].as_ptr();
            // SAFETY: the token says that the machine has the instructions; each of the rows of inputs, `words`
            // apart, has so many groups from the first on, or a block of them, and so has the panel, of the length
            // and with the offsets that the kernel reads; the caller grants the outputs.
            unsafe { tile(self, (x, words), w, groups, out, first > 0) };
        }
    }
}

#[inline(always)]
const fn group_words(words: usize, offsets: bool) -> usize {
    words * PANEL + if offsets { 3 } else { 2 } * PANEL
}

/// How many times a scale or offset has its unit. Units are stored as F16, or a power of two of that, and multiples have
/// up to eight bits, so that the quotient is exact; of zeros and what is not finite it is nothing.
#[inline(always)]
fn multiple(value: f32, unit: f32) -> i16 {
    (value / unit) as i16
}

#[inline(always)]
fn word_of_one(value: i32) -> f32 {
    f32::from_bits(value as u32)
}

#[inline(always)]
fn word_of(bytes: [u8; 4]) -> f32 {
    f32::from_bits(u32::from_le_bytes(bytes))
}

#[inline(always)]
fn word_of_two([low, high]: [i16; 2]) -> f32 {
    f32::from_bits(u32::from(low as u16) | u32::from(high as u16) << 16)
}

/// The power of two by which steps of a group with this largest magnitude are counted, less than
/// 2^23 of them, and its inverse.
#[cfg(any(test, target_arch = "x86_64"))]
#[inline(always)]
fn steps(most: f32) -> (f32, f32) {
    // Exponents with f32's bias; below 23 scales would be no normal numbers.
    let exponent = (most.to_bits() >> 23).clamp(23, 254);
    (f32::from_bits((exponent - 22) << 23), f32::from_bits((276 - exponent) << 23))
}

/// A kernel: what it is of, inputs and words from one of their rows to the next, a panel, the number of groups,
/// outputs, a row for each of inputs, and values from one of these to the next, and whether to add to them.
type Tile = unsafe fn(Products, (*const f32, usize), *const f32, usize, (*mut f32, usize), bool);

#[cfg(test)]
mod tests {
    use super::super::super::activations::{Activations, of_32, of_256, to_f16};
    use super::super::{Form, Panels, pack as pack_floats, packed_len};
    use super::*;
    use crate::quant::Guide;

    /// The specification: a group of inputs as scale, sum, and whole numbers in units of 2¹⁶ and of 1.
    type Cut = (f32, f32, Vec<[i32; 2]>);

    /// Groups of inputs as they are.
    fn sliced(x: &[f32]) -> Vec<Cut> {
        let group = |x: &[f32]| {
            let most = x.iter().fold(0f32, |most, x| most.max(x.abs()));
            let (mut scale, inverse) = steps(most);
            if x.iter().any(|x| !x.is_finite()) {
                scale = f32::NAN;
            }
            let step = |x: &f32| ((x * inverse).round_ties_even() as i32).min((1 << 23) - 1);
            let steps: Vec<i32> = x.iter().map(step).collect();
            let sum = scale * steps.iter().sum::<i32>() as f32;
            (scale, sum, steps.iter().map(|step| [step >> 16, step & 0xffff]).collect())
        };
        x.chunks_exact(32).map(group).collect()
    }

    /// Groups of inputs as llama.cpp rounds them.
    fn cut_by_hand(x: &[f32], to: Activation, len: usize) -> Vec<Cut> {
        let per_block = if to == Activation::Q8_K { 256 } else { 32 };
        let block = |block: &[f32]| {
            let [step, inverse] = match to {
                Activation::Q8_K => of_256(block.first_chunk().unwrap()),
                _ => of_32(block.first_chunk().unwrap()),
            };
            let scale = if to == Activation::Q8_K { step } else { to_f16(step) };
            let group = |x: &[f32]| {
                let whole: Vec<i32> =
                    x.iter().map(|x| (x * inverse).round_ties_even() as i8 as i32).collect();
                let sum = whole.iter().sum::<i32>() as f32;
                let sum = match to {
                    Activation::Q8_K => sum,
                    Activation::Q8_1 => to_f16(step * sum),
                    _ => scale * sum,
                };
                (scale, sum, whole.into_iter().map(|whole| [0, whole]).collect())
            };
            block.chunks_exact(len).map(group).collect::<Vec<_>>()
        };
        x.chunks_exact(per_block).flat_map(block).collect()
    }

    /// The specification: one row of inputs and one of weights.
    fn plain<const G: usize>(x: &[Cut], weights: &[Group<G>], offsets: bool) -> f32 {
        let mut total = 0f32;
        for (x, weights) in x.chunks(SUMMED / G).zip(weights.chunks(SUMMED / G)) {
            let mut out = 0f32;
            for ((scale, sum, whole), group) in x.iter().zip(weights) {
                let (mut upper, mut lower) = (0, 0);
                for ([high, low], code) in whole.iter().zip(group.codes.map(i32::from)) {
                    upper += code * high;
                    lower += code * low;
                }
                let whole = (upper as f32).mul_add(65536.0, lower as f32);
                out = whole.mul_add(group.scale * scale, out);
                if offsets {
                    out = group.offset.mul_add(*sum, out);
                }
            }
            total += out;
        }
        total
    }

    /// The same in blocks, with their units.
    fn plain_in_blocks<const G: usize>(
        x: &[Cut],
        weights: &[Group<G>],
        units: &[[f32; 2]],
        offsets: bool,
    ) -> f32 {
        let mut total = 0f32;
        let blocks = x.chunks(BLOCK / G).zip(weights.chunks(BLOCK / G));
        for ((x, weights), [unit, of_offsets]) in blocks.zip(units) {
            let (mut scaled, mut offset) = (0i32, 0i32);
            for ((_, sum, whole), group) in x.iter().zip(weights) {
                let [scale, least] = [(group.scale, unit), (group.offset, of_offsets)]
                    .map(|(value, unit)| i32::from(multiple(value, *unit)));
                let codes = group.codes.map(i32::from);
                let products = whole.iter().zip(codes).map(|([_, x], code)| x * code);
                scaled += scale * products.sum::<i32>();
                offset += least * *sum as i32;
            }
            let mut out = scaled as f32 * unit;
            if offsets {
                out = (offset as f32).mul_add(*of_offsets, out);
            }
            total = out.mul_add(x[0].0, total);
        }
        total
    }

    /// The same for stored rows of a type.
    fn specified(ty: QuantType, rounds: bool, x: &[f32], bytes: &[u8]) -> f32 {
        fn of<const G: usize>(
            ty: QuantType,
            read: fn(Simd, &[u8], &mut [Group<G>]),
            rounds: bool,
            x: &[f32],
            bytes: &[u8],
        ) -> f32 {
            let Groups { offsets, units, .. } = ty.format().groups.unwrap();
            let to = ty.format().activations;
            let mut groups = vec![Group::ZERO; x.len() / G];
            read(Simd::detect(), bytes, &mut groups);
            let cut = if rounds { cut_by_hand(x, to, G) } else { sliced(x) };
            if !rounds || to != Activation::Q8_K {
                return plain(&cut, &groups, offsets);
            }
            let units: Vec<_> = bytes.chunks_exact(ty.block_bytes()).map(units).collect();
            plain_in_blocks(&cut, &groups, &units, offsets)
        }
        match ty.format().groups.unwrap().read {
            Read::Of16(read) => of(ty, read, rounds, x, bytes),
            Read::Of32(read) => of(ty, read, rounds, x, bytes),
        }
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
            match column / 32 % 4 {
                0 if column % 37 == 5 => 300.0 * x,
                1 => 1e-6 * x,
                2 if column % 3 == 0 => 0.0,
                _ => x,
            }
        })
    }

    /// Weights of a type, as stored and as f32.
    fn weights(ty: QuantType, rows: usize, columns: usize) -> (Vec<u8>, Array2<f32>) {
        let source = inputs(rows, columns);
        let importances = vec![1.0; columns];
        let mut bytes = vec![0; rows * ty.row_bytes(columns).unwrap()];
        let guide = Guide::Columns(&importances);
        ty.encode_rows(source.as_slice().unwrap(), columns, guide, &mut bytes).unwrap();
        let mut decoded = Array2::zeros((rows, columns));
        ty.decode_rows(&bytes, columns, decoded.as_slice_mut().unwrap()).unwrap();
        (bytes, decoded)
    }

    /// A product, where the machine has these.
    fn product(
        simd: Simd,
        ty: QuantType,
        rounds: bool,
        x: ArrayView2<f32>,
        rows: usize,
        bytes: &[u8],
    ) -> Option<Array2<f32>> {
        let form @ Form::Integers(products) = Form::of(ty, rounds, simd) else { return None };
        let mut panels = vec![f32::NAN; form.panels_len(rows, x.ncols())];
        products.pack(bytes, x.ncols(), &mut panels);
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
        let sizes = [(1, 256, 1), (119, 768, 45), (6, 512, 64), (230, 256, 70)];
        let types = QuantType::all().filter(|ty| ty.format().groups.is_some());
        let all = types.flat_map(|ty| [(ty, false), (ty, true)]);
        for ((ty, rounds), (tokens, columns, rows)) in all.zip(sizes.into_iter().cycle()) {
            let mut x = inputs(tokens, columns);
            x[(0, columns - 1)] = 1e30;
            x[(tokens - 1, 3)] = f32::from_bits(7);
            x.slice_mut(ndarray::s![tokens / 2, 32..64]).fill(0.0);
            let (bytes, _) = weights(ty, rows, columns);
            let row_bytes = ty.row_bytes(columns).unwrap();
            for simd in Simd::supported() {
                let product = product(simd, ty, rounds, x.view(), rows, &bytes);
                let Some(found) = product else { continue };
                for ((token, row), found) in found.indexed_iter() {
                    let bytes = &bytes[row * row_bytes..][..row_bytes];
                    let expected = specified(ty, rounds, x.row(token).as_slice().unwrap(), bytes);
                    let same = found.to_bits() == expected.to_bits()
                        || found.is_nan() && expected.is_nan();
                    assert!(same, "{ty} at {simd}: {found} and {expected}");
                }
            }
        }
    }

    #[test]
    fn rounded_inputs_are_those_that_floats_would_meet() {
        for ty in QuantType::all().filter(|ty| ty.format().groups.is_some()) {
            if ty.format().activations == Activation::Q8_1 {
                // Sums of blocks are rounded as well: `block_sums`.
                continue;
            }
            let (tokens, rows, columns) = (5, 40, 768);
            let x = inputs(tokens, columns);
            let (bytes, decoded) = weights(ty, rows, columns);
            let product = product(Simd::detect(), ty, true, x.view(), rows, &bytes);
            let Some(found) = product else { continue };
            let dtype = crate::source::Dtype::Gguf(ty);
            let met = Activations::Q8.round(Simd::detect(), dtype, x.view()).unwrap();
            let exact = met.mapv(f64::from).dot(&decoded.mapv(f64::from).t());
            let squares = found.iter().zip(&exact).map(|(&a, b)| (f64::from(a) - b).powi(2));
            let error = (squares.sum::<f64>() / exact.mapv(|v| v * v).sum()).sqrt();
            assert!(error < 3e-7, "{ty}: {error:.1e}");
        }
    }

    #[test]
    fn products_are_nearer_to_the_exact_ones_than_those_of_f32() {
        for ty in [QuantType::Q8_0, QuantType::Q4_K, QuantType::IQ3_S, QuantType::IQ1_S] {
            for columns in [256, 1536, 7168] {
                let (tokens, rows) = (9, 40);
                let x = inputs(tokens, columns);
                let (bytes, decoded) = weights(ty, rows, columns);
                let simd = Simd::detect();
                let product = product(simd, ty, false, x.view(), rows, &bytes);
                let Some(found) = product else { continue };
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
            let (bytes, _) = weights(QuantType::Q4_0, 33, 64);
            for rounds in [false, true] {
                let simd = Simd::detect();
                let product = product(simd, QuantType::Q4_0, rounds, x.view(), 33, &bytes);
                let Some(found) = product else { continue };
                for (token, row) in found.rows().into_iter().enumerate() {
                    assert!(row.iter().all(|v| v.is_finite() == (token != 4)), "{bad}");
                }
            }
        }
    }

    /// Codes, scales and inputs as large as they may be, of one sign: no sum wraps.
    #[test]
    fn the_largest_sums_fit() {
        fn check<const G: usize>(products: Products, code: i8) {
            let columns = 512;
            let (scale, offset) = (if products.in_blocks() { 128.0 } else { 1.0 }, 63.0);
            let groups = vec![Group { codes: [code; G], scale, offset }; columns / G];
            let mut panel = vec![0.0; products.panel_len(columns)];
            if products.in_blocks() {
                let panels = panel.chunks_exact_mut(products.panel_len(BLOCK));
                for (groups, panel) in groups.chunks_exact(BLOCK / G).zip(panels) {
                    products.put_block(groups, [1.0; 2], 0, panel);
                }
            } else {
                products.put(&groups, 0, &mut panel);
            }
            for sign in [1.0, -1.0] {
                let x = Array2::from_elem((3, columns), sign);
                let mut out = Array2::zeros((3, 1));
                products.multiply(x.view(), &panel, out.view_mut(), false);
                let Some(to) = products.rounded else { continue };
                let cut = cut_by_hand(x.row(0).as_slice().unwrap(), to, G);
                let expected = if products.in_blocks() {
                    plain_in_blocks(&cut, &groups, &[[1.0; 2]; 2], products.offsets)
                } else {
                    plain(&cut, &groups, products.offsets)
                };
                assert!(out.iter().all(|&found| found == expected), "{products:?}, {out}");
            }
        }
        for (ty, simd) in QuantType::all().flat_map(|ty| Simd::supported().map(move |s| (ty, s))) {
            let Form::Integers(products) = Form::of(ty, true, simd) else { continue };
            let largest = ty.format().groups.unwrap().largest.min(127) as i8;
            // In blocks, codes have no sign where there are offsets.
            let signed = !(products.in_blocks() && products.offsets);
            for code in [largest, -largest].into_iter().take(if signed { 2 } else { 1 }) {
                match products.len {
                    16 => check::<16>(products, code),
                    _ => check::<32>(products, code),
                }
            }
        }
    }
}
