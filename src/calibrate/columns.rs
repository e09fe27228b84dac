//! Codes for given scales, column after column, the last one first: each is nearest to what the errors of
//! the columns after it ask for.
//!
//! Sixteen rows at a time, one in each lane, since the columns of a row wait for each other.
#![allow(clippy::needless_range_loop, reason = "loops over lanes are to become vectors")]

use super::factor::{BLOCK, Metric};
use crate::quant::{Grid, Scale};
use crate::simd::compiled;

/// Rows of a call.
pub(super) const LANES: usize = 16;

/// One column of all rows.
type Lane = [f32; LANES];

/// Some rows of a block: targets in, codes and what these stand for out.
pub(super) struct Rows {
    pub targets: [Lane; BLOCK],
    pub scales: [Lane; BLOCK / 8],
    pub offsets: [Lane; BLOCK / 8],
    pub codes: [[u8; LANES]; BLOCK],
    errors: [Lane; BLOCK],
}

impl Rows {
    pub fn new() -> Box<Self> {
        Box::new(Self {
            targets: [[0.0; LANES]; BLOCK],
            scales: [[0.0; LANES]; BLOCK / 8],
            offsets: [[0.0; LANES]; BLOCK / 8],
            codes: [[0; LANES]; BLOCK],
            errors: [[0.0; LANES]; BLOCK],
        })
    }

    /// Sets the scale of a row's group.
    pub fn set_scale(&mut self, group: usize, row: usize, Scale { scale, offset }: Scale) {
        (self.scales[group][row], self.offsets[group][row]) = (scale, offset);
    }
}

/// Which columns of a metric, and how their weights are stored.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub metric: &'a Metric,
    /// The first column within the metric, and how many there are.
    pub first: usize,
    pub len: usize,
    /// Columns that share a scale.
    pub group: usize,
    pub grid: Grid,
}

compiled!(
    /// Gives all columns of a part their codes.
    pub(super) round(part: Part<'_>, rows: &mut Rows) -> () = each_column
);

#[inline(always)]
fn each_column(part: Part<'_>, rows: &mut Rows) {
    let (n, first) = (part.metric.n, part.first);
    for j in (0..part.len).rev() {
        let factors = &part.metric.unit[(first + j) * n + first..][..part.len];
        let wished = wished(rows, factors, j, part.len);
        let group = j / part.group;
        let codes = nearest(part.grid, &wished, &rows.scales[group], &rows.offsets[group]);
        for lane in 0..LANES {
            let (code, number) = (codes.0[lane], codes.1[lane]);
            rows.codes[j][lane] = code;
            let value = rows.scales[group][lane] * number + rows.offsets[group][lane];
            rows.errors[j][lane] = rows.targets[j][lane] - value;
        }
    }
}

/// A column's targets with what the errors after it ask for, in four sums that do not wait for each other.
#[inline(always)]
fn wished(rows: &Rows, factors: &[f32], j: usize, len: usize) -> Lane {
    let mut sums = [[0.0; LANES]; 4];
    let mut k = j + 1;
    while k + 4 <= len {
        for i in 0..4 {
            let factor = factors[k + i];
            for lane in 0..LANES {
                sums[i][lane] += factor * rows.errors[k + i][lane];
            }
        }
        k += 4;
    }
    while k < len {
        for lane in 0..LANES {
            sums[0][lane] += factors[k] * rows.errors[k][lane];
        }
        k += 1;
    }
    let mut wished = rows.targets[j];
    for lane in 0..LANES {
        wished[lane] += (sums[0][lane] + sums[1][lane]) + (sums[2][lane] + sums[3][lane]);
    }
    wished
}

/// Codes of the nearest values, and the numbers that they stand for.
#[inline(always)]
fn nearest(grid: Grid, x: &Lane, scales: &Lane, offsets: &Lane) -> ([u8; LANES], Lane) {
    let (mut codes, mut numbers) = ([0; LANES], [0.0; LANES]);
    match grid {
        Grid::Whole(least, most) => {
            let (least, most) = (f32::from(least), f32::from(most));
            for lane in 0..LANES {
                let scale = scales[lane];
                let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
                let number = ((x[lane] - offsets[lane]) * inverse).clamp(least, most);
                // To the nearest whole number, as `nearest_int`.
                let number = (number + 12_582_912.0) - 12_582_912.0;
                numbers[lane] = number;
                codes[lane] = (number - least) as u8;
            }
        }
        Grid::These(all) => {
            let mut best = [f32::INFINITY; LANES];
            for (code, &number) in all.iter().enumerate() {
                let number = f32::from(number);
                for lane in 0..LANES {
                    let distance = (scales[lane] * number + offsets[lane] - x[lane]).abs();
                    if distance < best[lane] {
                        best[lane] = distance;
                        codes[lane] = code as u8;
                        numbers[lane] = number;
                    }
                }
            }
        }
    }
    (codes, numbers)
}
