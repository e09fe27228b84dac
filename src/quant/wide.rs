//! A wider search for scales than the reference's, with errors that count the same.
//!
//! [`Wide`] stands in the place of the reference's [`Search`] in every encoder. It tries more candidates for the
//! scale of a group, refits those that are best, and then, where scales are stored as codes of their own, looks
//! for the super-block's scale and the codes with which the weights as they will be read are nearest, which the
//! reference decides for each group by itself. What it writes is the same at every level of instructions: sums
//! are over one candidate each.

use super::float::{f16, put_f16};
use super::search::{CODEBOOK, EPS, MIDDLES, ROWS, Search, Steps, signed_max};
use std::marker::PhantomData;

/// The wide search; what it leaves as it is, is searched by `S`.
pub(super) struct Wide<S>(PhantomData<S>);

/// Candidates that are tried together.
const TRIES: usize = 16;

/// A number of each candidate.
type Tries = [f32; TRIES];

/// The numbers that codes stand for, in units of a scale.
#[derive(Clone, Copy)]
pub(super) enum Numbers {
    /// Whole ones from the first to the second.
    Whole(f32, f32),
    /// [`CODEBOOK`].
    Codebook,
}

impl Numbers {
    /// The nearest of each.
    #[inline(always)]
    fn nearest(self, x: &Tries) -> Tries {
        let mut numbers = [0.0; TRIES];
        match self {
            Self::Whole(least, most) => {
                for c in 0..TRIES {
                    let x = if x[c] > least { x[c] } else { least };
                    let x = if x < most { x } else { most };
                    // To the nearest whole number, as `nearest_int`.
                    numbers[c] = (x + 12_582_912.0) - 12_582_912.0;
                }
            }
            Self::Codebook => {
                numbers = [f32::from(CODEBOOK[0]); TRIES];
                for k in 0..MIDDLES.len() {
                    for c in 0..TRIES {
                        let above = f32::from(CODEBOOK[k + 1]);
                        numbers[c] = if x[c] < MIDDLES[k] { numbers[c] } else { above };
                    }
                }
            }
        }
        numbers
    }

    /// Sums of w·x·number and w·number² for the numbers nearest to `x` times each inverse scale.
    #[inline(always)]
    fn sums(self, x: &[f32], w: &[f32], inverses: &Tries) -> (Tries, Tries) {
        let (mut by_x, mut squares) = ([0.0; TRIES], [0.0; TRIES]);
        for i in 0..x.len() {
            let mut scaled = [0.0; TRIES];
            for c in 0..TRIES {
                scaled[c] = inverses[c] * x[i];
            }
            let numbers = self.nearest(&scaled);
            for c in 0..TRIES {
                by_x[c] += w[i] * x[i] * numbers[c];
                squares[c] += w[i] * numbers[c] * numbers[c];
            }
        }
        (by_x, squares)
    }

    /// The errors of weights that are rounded to the nearest of scale · number - min.
    #[inline(always)]
    fn errors(self, x: &[f32], w: &[f32], scales: &Tries, mins: &Tries) -> Tries {
        let (mut errors, mut inverses) = ([0.0; TRIES], [0.0; TRIES]);
        for c in 0..TRIES {
            inverses[c] = if scales[c] != 0.0 { 1.0 / scales[c] } else { 0.0 };
        }
        for i in 0..x.len() {
            let mut scaled = [0.0; TRIES];
            for c in 0..TRIES {
                scaled[c] = inverses[c] * (x[i] + mins[c]);
            }
            let numbers = self.nearest(&scaled);
            for c in 0..TRIES {
                let left = scales[c] * numbers[c] - mins[c] - x[i];
                errors[c] += w[i] * left * left;
            }
        }
        errors
    }

    /// The scale alone with which the error is least, among those around the largest weight divided by the
    /// largest number; and what its inverse was when numbers were chosen.
    #[inline(always)]
    fn scale(self, x: &[f32], w: &[f32]) -> (f32, f32) {
        let max = signed_max(x).abs();
        if max < EPS {
            return (0.0, 0.0);
        }
        let (largest, step) = match self {
            Self::Whole(least, _) => (-least, 0.1),
            Self::Codebook => (127.0, 1.5),
        };
        let (mut gain, mut scale, mut chosen) = (0.0, 0.0, 0.0);
        // With either sign, and then around the scale that fits the best of those numbers.
        for batch in 0..6 {
            if batch >= 4 && scale == 0.0 {
                break;
            }
            let mut inverses = [0.0; TRIES];
            for c in 0..TRIES {
                let number = largest + step * ((batch / 2 * TRIES + c) as f32 - 16.0);
                inverses[c] = match batch {
                    0 | 2 => -number / max,
                    1 | 3 => number / max,
                    4 => (1.0 + 0.01 * (c as f32 - 7.5)) / scale,
                    _ => (1.0 + 0.002 * (c as f32 - 7.5)) / scale,
                };
            }
            let (by_x, squares) = self.sums(x, w, &inverses);
            for c in 0..TRIES {
                if squares[c] > 0.0 && by_x[c] * by_x[c] > gain * squares[c] {
                    (scale, chosen) = (by_x[c] / squares[c], inverses[c]);
                    gain = scale * by_x[c];
                }
            }
        }
        (scale, chosen)
    }
}

/// The place of the smallest, the first of equals.
#[inline(always)]
fn least(errors: &Tries) -> usize {
    let mut best = 0;
    for c in 1..TRIES {
        best = if errors[c] < errors[best] { c } else { best };
    }
    best
}

/// Scale and minimum with which the error of codes up to `nmax` is least, improved on those given.
#[inline(always)]
fn with_minimum(nmax: i32, x: &[f32], w: &[f32], scale: &mut f32, min: &mut f32) {
    let numbers = Numbers::Whole(0.0, nmax as f32);
    let (mut low, mut high, mut sum_w, mut sum_x) = (0f32, x[0], 0f32, 0f32);
    for i in 0..x.len() {
        low = if x[i] < low { x[i] } else { low };
        high = if x[i] > high { x[i] } else { high };
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    if high <= low {
        return;
    }
    let mut best = numbers.errors(x, w, &[*scale; TRIES], &[*min; TRIES])[0];
    // Where codes begin and end: first between the extremes, then around what was best.
    for batch in 0..4 {
        let (mut inverses, mut bases) = ([0.0; TRIES], [0.0; TRIES]);
        let (from, to, width) = match batch {
            0..2 => (low, high, 0.05 * (high - low)),
            _ => (-*min, *scale * nmax as f32 - *min, 0.01 * (high - low)),
        };
        for c in 0..TRIES {
            let (k, l) = match batch {
                0..2 => (2 * (batch as usize) + c / 8 + 2, c % 8),
                _ => (2 * (c / 4), 2 * (c % 4)),
            };
            bases[c] = from + width * (k as f32 - 3.0);
            inverses[c] = nmax as f32 / (to - width * (l as f32 - 3.0) - bases[c]);
        }
        let (mut of_number, mut of_square, mut of_x) = ([0.0; TRIES], [0.0; TRIES], [0.0; TRIES]);
        for i in 0..x.len() {
            let mut scaled = [0.0; TRIES];
            for c in 0..TRIES {
                scaled[c] = inverses[c] * (x[i] - bases[c]);
            }
            let numbers = numbers.nearest(&scaled);
            for c in 0..TRIES {
                let weighed = w[i] * numbers[c];
                of_number[c] += weighed;
                of_square[c] += weighed * numbers[c];
                of_x[c] += weighed * x[i];
            }
        }
        let (mut scales, mut mins) = ([0.0; TRIES], [0.0; TRIES]);
        for c in 0..TRIES {
            let d = sum_w * of_square[c] - of_number[c] * of_number[c];
            if d > 0.0 {
                scales[c] = (sum_w * of_x[c] - sum_x * of_number[c]) / d;
                mins[c] = (of_number[c] * of_x[c] - of_square[c] * sum_x) / d;
                if mins[c] < 0.0 {
                    (scales[c], mins[c]) = (of_x[c] / of_square[c], 0.0);
                }
            }
        }
        let errors = numbers.errors(x, w, &scales, &mins);
        let c = least(&errors);
        if errors[c] < best {
            (best, *scale, *min) = (errors[c], scales[c], mins[c]);
        }
    }
}

/// What of a super-block is stored for its groups.
#[derive(Clone, Copy)]
pub(super) struct Stored {
    pub d: f32,
    pub dmin: f32,
    pub scales: [i8; 16],
    pub mins: [i8; 16],
}

/// What a format can store.
#[derive(Clone, Copy)]
pub(super) struct Room {
    pub numbers: Numbers,
    /// The least and the largest code of a scale.
    pub scales: (i8, i8),
    /// The largest code of a minimum; 0 where there are none.
    pub mins: i8,
}

/// Steps around the scale of a super-block that are tried, in parts of it.
const AROUND: f32 = 0.008;

#[inline(always)]
fn as_f16(x: f32) -> f32 {
    let mut bytes = [0; 2];
    put_f16(&mut bytes, x);
    f16(&bytes)
}

/// The code of a wished multiple of a stored number.
#[inline(always)]
fn code(wished: f32, d: f32, (least, most): (i8, i8)) -> i8 {
    let x = if d != 0.0 { wished / d } else { 0.0 };
    let x = x.clamp(least.into(), most.into());
    ((x + 12_582_912.0) - 12_582_912.0) as i8
}

impl Room {
    /// Codes for the wished scales and minima of the groups of `G` of a super-block, and the numbers that they
    /// multiply, around those given, with which the error of the weights as they will be read is least.
    #[inline(always)]
    pub fn settle<const G: usize>(
        self,
        x: &[f32],
        w: &[f32],
        scales: &[f32],
        mins: &[f32],
        (d, dmin): (f32, f32),
    ) -> Stored {
        let mut stored =
            Stored { d: as_f16(d), dmin: as_f16(dmin), scales: [0; 16], mins: [0; 16] };
        // One after the other, since they hardly depend on each other.
        let passes = if self.mins > 0 && stored.dmin != 0.0 { 2 } else { 1 };
        for pass in 0..passes {
            let (mut d, mut dmin) = ([stored.d; TRIES], [stored.dmin; TRIES]);
            for c in 0..TRIES {
                let changed = if pass == 0 { &mut d[c] } else { &mut dmin[c] };
                *changed = as_f16(*changed * (1.0 + AROUND * (c as f32 - 8.0)));
            }
            let mut sums = [0.0; TRIES];
            for g in 0..256 / G {
                let (mut s, mut m) = ([0.0; TRIES], [0.0; TRIES]);
                for c in 0..TRIES {
                    s[c] = d[c] * f32::from(code(scales[g], d[c], self.scales));
                    if self.mins > 0 {
                        m[c] = dmin[c] * f32::from(code(mins[g], dmin[c], (0, self.mins)));
                    }
                }
                let errors = self.numbers.errors(&x[G * g..][..G], &w[G * g..][..G], &s, &m);
                for c in 0..TRIES {
                    sums[c] += errors[c];
                }
            }
            let c = least(&sums);
            (stored.d, stored.dmin) = (d[c], dmin[c]);
        }
        for g in 0..256 / G {
            let at = i32::from(code(scales[g], stored.d, self.scales));
            let mut min_at = 0;
            if self.mins > 0 {
                min_at = i32::from(code(mins[g], stored.dmin, (0, self.mins)));
            }
            let (mut s, mut m) = ([0; TRIES], [0; TRIES]);
            let (mut scales, mut mins) = ([0.0; TRIES], [0.0; TRIES]);
            for c in 0..TRIES {
                let (mut more, mut min_more) = (c as i32 - 8, 0);
                if self.mins > 0 {
                    (more, min_more) = (c as i32 / 5 - 1, c as i32 % 5 - 2);
                }
                let (least, most) = self.scales;
                s[c] = (at + more).clamp(least.into(), most.into()) as i8;
                m[c] = (min_at + min_more).clamp(0, self.mins.into()) as i8;
                (scales[c], mins[c]) = (stored.d * f32::from(s[c]), stored.dmin * f32::from(m[c]));
            }
            let (x, w) = (&x[G * g..][..G], &w[G * g..][..G]);
            let c = least(&self.numbers.errors(x, w, &scales, &mins));
            (stored.scales[g], stored.mins[g]) = (s[c], m[c]);
        }
        stored
    }
}

impl<S: Search> Search for Wide<S> {
    const WIDE: bool = true;

    #[inline(always)]
    fn symmetric<const G: usize>(
        nmax: i32,
        x: &[f32],
        w: &[f32],
        scales: &mut [f32],
        codes: &mut [u8],
    ) {
        let numbers = Numbers::Whole(-nmax as f32, (nmax - 1) as f32);
        for g in 0..scales.len() {
            let (x, w, codes) = (&x[G * g..][..G], &w[G * g..][..G], &mut codes[G * g..][..G]);
            let (scale, inverse) = numbers.scale(x, w);
            scales[g] = scale;
            for i in 0..G {
                let number = numbers.nearest(&[inverse * x[i]; TRIES])[0];
                codes[i] = (number as i32 + nmax) as u8;
            }
        }
    }

    #[inline(always)]
    fn refined<const G: usize>(nmax: i32, x: &[f32], scales: &mut [f32], codes: &mut [u8]) {
        S::refined::<G>(nmax, x, scales, codes);
    }

    #[inline(always)]
    fn asymmetric<const G: usize>(
        steps: Steps,
        x: &[f32],
        w: &[f32],
        scales: &mut [f32],
        mins: &mut [f32],
        codes: &mut [u8],
    ) {
        S::asymmetric::<G>(steps, x, w, scales, mins, codes);
        let numbers = Numbers::Whole(0.0, steps.nmax as f32);
        for g in 0..scales.len() {
            let (x, w, codes) = (&x[G * g..][..G], &w[G * g..][..G], &mut codes[G * g..][..G]);
            with_minimum(steps.nmax, x, w, &mut scales[g], &mut mins[g]);
            let inverse = if scales[g] != 0.0 { 1.0 / scales[g] } else { 0.0 };
            for i in 0..G {
                codes[i] = numbers.nearest(&[inverse * (x[i] + mins[g]); TRIES])[0] as u8;
            }
        }
    }

    #[inline(always)]
    fn codebook<const G: usize>(x: &[f32], w: &[f32], scales: &mut [f32]) {
        for g in 0..scales.len() {
            scales[g] = Numbers::Codebook.scale(&x[G * g..][..G], &w[G * g..][..G]).0;
        }
    }

    #[inline(always)]
    fn positive<const N: usize>(nmax: i32, x: &[f32], w: &[f32], codes: &mut [u8]) -> f32 {
        S::positive::<N>(nmax, x, w, codes)
    }

    #[inline(always)]
    fn row_squares(rows: &[f32], n_per_row: usize) -> [f32; ROWS] {
        S::row_squares(rows, n_per_row)
    }
}

#[cfg(test)]
mod tests {
    use crate::quant::{Guide, QuantType};
    use crate::simd::Simd;

    const N: usize = 1024;

    /// Something like the normal distribution, with a few large ones.
    fn weights(seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut uniform = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
        };
        (0..N)
            .map(|i| {
                let sum: f32 = (0..6).map(|_| uniform()).sum();
                sum * if i % 61 == 0 { 0.1 } else { 0.02 }
            })
            .collect()
    }

    /// What errors count, of large weights more, as most types have it.
    fn error(ty: QuantType, x: &[f32], qw: &[f32], bytes: &[u8]) -> f64 {
        let mut values = vec![0.0; N];
        ty.decode_rows(bytes, N, &mut values).unwrap();
        let mean = x.iter().map(|x| x * x).sum::<f32>() / N as f32;
        let of = |i: usize| {
            let importance = qw[i] * (mean + x[i] * x[i]).sqrt();
            f64::from(importance) * f64::from(x[i] - values[i]).powi(2)
        };
        (0..N).map(of).sum()
    }

    #[test]
    fn errors_become_smaller_in_every_type_with_a_search() {
        use QuantType as Q;
        const SEARCHED: [QuantType; 11] = [
            Q::Q4_0,
            Q::Q4_1,
            Q::Q5_0,
            Q::Q5_1,
            Q::Q2_K,
            Q::Q3_K,
            Q::Q4_K,
            Q::Q5_K,
            Q::Q6_K,
            Q::IQ4_NL,
            Q::IQ4_XS,
        ];
        let qw: Vec<f32> = (0..N).map(|i| 0.1 + (i * 31 % 97) as f32).collect();
        for ty in SEARCHED {
            for qw in [vec![1.0; N], qw.clone()] {
                let mut sums = [0.0; 2];
                for seed in 0..16 {
                    let x = weights(seed);
                    let mut bytes = vec![0; ty.row_bytes(N).unwrap()];
                    let guide = Guide::Columns(&qw);
                    ty.encode_rows(&x, N, guide, &mut bytes).unwrap();
                    sums[0] += error(ty, &x, &qw, &bytes);
                    ty.search_rows_with(Simd::detect(), &x, N, guide, &mut bytes).unwrap();
                    sums[1] += error(ty, &x, &qw, &bytes);
                }
                assert!(sums[1] < sums[0], "{ty}: {sums:?}");
            }
        }
        // All others stay as they are.
        let x = weights(1);
        for ty in QuantType::all().filter(|ty| ty.format().is_target() && !SEARCHED.contains(ty)) {
            for guide in [Guide::Plain, Guide::Columns(&qw)] {
                let mut bytes = [(); 2].map(|()| vec![0; ty.row_bytes(N).unwrap()]);
                let reference = ty.encode_rows(&x, N, guide, &mut bytes[0]);
                let searched = ty.search_rows_with(Simd::detect(), &x, N, guide, &mut bytes[1]);
                assert_eq!(searched, reference, "{ty}");
                assert!(bytes[0] == bytes[1], "{ty}");
            }
        }
    }

    #[test]
    fn blocks_of_zeros_and_of_one_value_are_what_they_are() {
        for ty in QuantType::all().filter(|ty| ty.is_quantized() && ty.format().is_target()) {
            for value in [0.0, 0.75, -0.75] {
                let (x, mut bytes) = ([value; 256], vec![0; ty.row_bytes(256).unwrap()]);
                for qw in [[1.0; 256], [0.0; 256]] {
                    let guide = Guide::Columns(&qw);
                    ty.search_rows_with(Simd::detect(), &x, 256, guide, &mut bytes).unwrap();
                    ty.validate_rows(&bytes, 256).unwrap();
                }
                let guide = Guide::Columns(&[1.0; 256]);
                ty.search_rows_with(Simd::detect(), &x, 256, guide, &mut bytes).unwrap();
                let (mut searched, mut reference) = ([0.0; 256], [0.0; 256]);
                ty.decode_rows(&bytes, 256, &mut searched).unwrap();
                ty.encode_rows(&x, 256, guide, &mut bytes).unwrap();
                ty.decode_rows(&bytes, 256, &mut reference).unwrap();
                let far = |values: &[f32; 256]| {
                    values.iter().map(|v| (v - value).abs()).fold(0.0, f32::max)
                };
                assert!(far(&searched) <= far(&reference) + 1e-3, "{ty}, {value}");
            }
        }
    }
}
