//! Codes for given scales, column after column, the last one first: each is nearest to what the errors of
//! the columns after it ask for. Those of a lattice are chosen eight columns at a time.
//!
//! Sixteen rows at a time, one in each lane, since the columns of a row wait for each other.
#![allow(clippy::needless_range_loop, reason = "loops over lanes are to become vectors")]

use super::factor::{BLOCK, Metric};
use crate::quant::{Grid, Points, Scale};
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
    if let Grid::Points(points) = part.grid {
        return each_eight(part, points, rows);
    }
    let (n, first) = (part.metric.n, part.first);
    for j in (0..part.len).rev() {
        let factors = &part.metric.unit[(first + j) * n + first..][..part.len];
        let wished = wished(rows, factors, j, j + 1, part.len);
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

/// Columns that share their signs' parity, and are one point or two.
const EIGHT: usize = 8;

#[inline(always)]
fn each_eight(part: Part<'_>, points: &Points, rows: &mut Rows) {
    let (n, first) = (part.metric.n, part.first);
    for start in (0..part.len).step_by(EIGHT).rev() {
        let mut eight = Eight { points, unit: [[0.0; EIGHT]; EIGHT], weights: [0.0; EIGHT] };
        let mut all = [[0.0; LANES]; EIGHT];
        for i in 0..EIGHT {
            let j = start + i;
            let factors = &part.metric.unit[(first + j) * n + first..][..part.len];
            eight.unit[i].copy_from_slice(&factors[start..start + EIGHT]);
            eight.weights[i] = part.metric.diagonal[first + j];
            all[i] = wished(rows, factors, j, start + EIGHT, part.len);
        }
        for lane in 0..LANES {
            let scale = rows.scales[start / part.group][lane];
            let mut wished = [0.0; EIGHT];
            for i in 0..EIGHT {
                wished[i] = all[i][lane];
            }
            let numbers = eight.nearest(&wished, scale);
            for i in 0..EIGHT {
                rows.codes[start + i][lane] = numbers[i] as u8;
                let value = scale * f32::from(numbers[i]);
                rows.errors[start + i][lane] = rows.targets[start + i][lane] - value;
            }
        }
    }
}

/// The metric of eight columns, and the numbers that they may have.
struct Eight<'a> {
    points: &'a Points,
    /// What the error of a column asks of those before it: in row `i` what those after it ask of `i`.
    unit: [[f32; EIGHT]; EIGHT],
    /// What the square of an error counts that nothing makes up for.
    weights: [f32; EIGHT],
}

impl Eight<'_> {
    /// Numbers for which little is left of the error: signs are those of what is wished when each column is
    /// rounded by itself, and points those around such magnitudes for which least is left.
    #[inline(always)]
    fn nearest(&self, wished: &[f32; EIGHT], scale: f32) -> [i8; EIGHT] {
        let (mut numbers, mut errors) = ([0; EIGHT], [0.0; EIGHT]);
        let mut asked = [0.0; EIGHT];
        for i in (0..EIGHT).rev() {
            asked[i] = self.asked(wished, &errors, i);
            let magnitude = self.points.magnitudes[self.code(asked[i].abs(), scale)];
            let value = scale * f32::from(magnitude);
            errors[i] = wished[i] - if asked[i] < 0.0 { -value } else { value };
        }
        let mut signs = [1.0; EIGHT];
        let mut negative = 0;
        for i in 0..EIGHT {
            if asked[i] < 0.0 {
                (signs[i], negative) = (-1.0, negative + 1);
            }
        }
        if self.points.even && negative % 2 == 1 {
            let (mut cheapest, mut least) = (0, f32::INFINITY);
            for i in 0..EIGHT {
                let cost = self.weights[i] * asked[i] * asked[i];
                if cost < least {
                    (cheapest, least) = (i, cost);
                }
            }
            signs[cheapest] = -signs[cheapest];
        }
        for first in (0..EIGHT).step_by(self.points.len).rev() {
            self.choose(first, wished, &signs, scale, &mut numbers, &mut errors);
        }
        numbers
    }

    /// What is wished of a column, with what the errors of those after it ask for.
    #[inline(always)]
    fn asked(&self, wished: &[f32; EIGHT], errors: &[f32; EIGHT], i: usize) -> f32 {
        let mut asked = wished[i];
        for k in i + 1..EIGHT {
            asked += self.unit[i][k] * errors[k];
        }
        asked
    }

    /// The code of the nearest magnitude.
    #[inline(always)]
    fn code(&self, x: f32, scale: f32) -> usize {
        let all = self.points.magnitudes;
        let mut code = 0;
        for next in 1..all.len() {
            // Beyond the middle of two.
            if 2.0 * x > scale * (f32::from(all[next - 1]) + f32::from(all[next])) {
                code = next;
            }
        }
        code
    }

    /// Chooses the point from a column on.
    #[inline(always)]
    fn choose(
        &self,
        first: usize,
        wished: &[f32; EIGHT],
        signs: &[f32; EIGHT],
        scale: f32,
        numbers: &mut [i8; EIGHT],
        errors: &mut [f32; EIGHT],
    ) {
        let Points { len, magnitudes, around, .. } = *self.points;
        let bits = self.points.bits();
        let mut packed = 0;
        for i in (first..first + len).rev() {
            let code = self.code(signs[i] * self.asked(wished, errors, i), scale);
            errors[i] = wished[i] - scale * signs[i] * f32::from(magnitudes[code]);
            packed = packed << bits | code as u16;
        }
        let candidates = around(packed);
        let (mut best, mut least) = (candidates[0], f32::INFINITY);
        for &point in candidates {
            let mut left = 0.0;
            for i in (first..first + len).rev() {
                let code = self.points.code(point, i - first);
                let value = scale * signs[i] * f32::from(magnitudes[code]);
                let rest = self.asked(wished, errors, i) - value;
                errors[i] = wished[i] - value;
                left += self.weights[i] * rest * rest;
            }
            if left < least {
                (best, least) = (point, left);
            }
        }
        for i in first..first + len {
            let code = self.points.code(best, i - first);
            numbers[i] = if signs[i] < 0.0 { -magnitudes[code] } else { magnitudes[code] };
            errors[i] = wished[i] - scale * f32::from(numbers[i]);
        }
    }
}

/// A column's targets with what the errors of those from `after` on ask for, in four sums that do not wait for each
/// other.
#[inline(always)]
fn wished(rows: &Rows, factors: &[f32], j: usize, after: usize, len: usize) -> Lane {
    let mut sums = [[0.0; LANES]; 4];
    let mut k = after;
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
        Grid::Points(_) => {}
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
