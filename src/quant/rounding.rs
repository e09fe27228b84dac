//! What remains of an encoder once scales are found.
//!
//! [`Blocks::encode`](super::kernels::Blocks::encode) searches scales under a guide, leaves them in the
//! block as they are stored, and makes codes as the reference does. Whoever makes codes in another way,
//! column after column with the errors so far in mind for example, takes the scales from the block and
//! packs other codes into it. Here is what that needs, for formats whose weights are numbers of a grid,
//! each by itself, or some together a point of a lattice.
#![cfg_attr(not(feature = "eval"), allow(dead_code, reason = "those who use it need calibration"))]

use super::groups::Grouped;
#[cfg(test)]
use super::search::nearest_int;

/// The numbers that codes stand for, in units of a scale.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Grid {
    /// Whole numbers from the first to the second, in order of their codes.
    Whole(i8, i8),
    /// These, in order of their codes.
    These(&'static [i8]),
    /// Some at a time. A number is its own code.
    Points(&'static Points),
}

/// A lattice of magnitudes, and the signs that they may have.
#[derive(Debug)]
pub(crate) struct Points {
    /// Numbers of a point: eight or four.
    pub len: usize,
    /// The magnitudes of codes.
    pub magnitudes: &'static [i8],
    /// Whether an even number of each eight are negative.
    pub even: bool,
    /// The points around some codes, or the one that they are; of both, codes are packed in [`Points::bits`] bits
    /// from the first on.
    pub around: fn(u16) -> &'static [u16],
}

impl Points {
    /// Bits of a packed code.
    #[inline(always)]
    pub const fn bits(&self) -> usize {
        if self.len == 8 { 2 } else { 3 }
    }

    /// The code of a weight of a point.
    #[inline(always)]
    pub const fn code(&self, point: u16, weight: usize) -> usize {
        point as usize >> (self.bits() * weight) & ((1 << self.bits()) - 1)
    }
}

/// What a group multiplies the numbers of its codes with, and adds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Scale {
    pub scale: f32,
    pub offset: f32,
}

impl Grid {
    /// The number of a code.
    #[cfg(test)]
    pub fn number(self, code: u8) -> i8 {
        match self {
            Self::Whole(least, _) => least.wrapping_add_unsigned(code),
            Self::These(numbers) => numbers[usize::from(code)],
            Self::Points(_) => code as i8,
        }
    }

    /// The first code of a number.
    #[cfg(test)]
    fn code(self, number: i8) -> u8 {
        match self {
            Self::Whole(least, _) => number.wrapping_sub(least) as u8,
            Self::These(numbers) => {
                numbers.iter().position(|&n| n == number).map_or(0, |code| code as u8)
            }
            Self::Points(_) => number as u8,
        }
    }

    /// The code of the weight that is nearest among those of a group; that of the number nearest to
    /// zero where all are the same.
    #[cfg(test)]
    pub fn nearest(self, x: f32, Scale { scale, offset }: Scale) -> u8 {
        match self {
            Self::Whole(least, most) => {
                let number = if scale == 0.0 { 0.0 } else { (x - offset) / scale };
                let number = number.clamp(f32::from(least), f32::from(most));
                self.code(nearest_int(number) as i8)
            }
            Self::These(numbers) => {
                let distance = |n: i8| (scale * f32::from(n) + offset - x).abs();
                let mut best = 0;
                for code in 1..numbers.len() {
                    if distance(numbers[code]) < distance(numbers[best]) {
                        best = code;
                    }
                }
                best as u8
            }
            Self::Points(_) => unreachable!("numbers are not by themselves"),
        }
    }
}

/// A format of `LEN` weights a block whose codes are numbers of a grid.
pub(super) trait Scalar<const LEN: usize, const G: usize, const BYTES: usize>:
    Grouped<G, BYTES>
{
    const GRID: Grid;

    /// Writes codes, and nothing else of the block. To be inlined.
    fn pack(codes: &[u8; LEN], out: &mut [u8; BYTES]);
}

/// [`Scalar`] for whole blocks of a type.
#[derive(Debug)]
pub(crate) struct Rounding {
    /// Weights with a scale in common.
    pub group: usize,
    pub grid: Grid,
    /// The scales of groups as they are stored.
    pub scales: fn(&[u8], &mut [Scale]),
    /// The codes of weights.
    #[cfg(test)]
    pub codes: fn(&[u8], &mut [u8]),
    /// Writes other codes over those.
    pub pack: fn(&[u8], &mut [u8]),
}

/// The functions of a format.
pub(super) const fn rounding<B, const LEN: usize, const G: usize, const BYTES: usize>() -> Rounding
where
    B: Scalar<LEN, G, BYTES>,
{
    Rounding {
        group: G,
        grid: B::GRID,
        scales: scales::<B, LEN, G, BYTES>,
        #[cfg(test)]
        codes: codes::<B, LEN, G, BYTES>,
        pack: pack::<B, LEN, G, BYTES>,
    }
}

fn scales<B, const LEN: usize, const G: usize, const BYTES: usize>(bytes: &[u8], out: &mut [Scale])
where
    B: Scalar<LEN, G, BYTES>,
{
    for (b, scales) in bytes.as_chunks::<BYTES>().0.iter().zip(out.chunks_exact_mut(LEN / G)) {
        for (j, out) in scales.iter_mut().enumerate() {
            let group = B::group(b, j);
            *out = Scale { scale: group.scale, offset: group.offset };
        }
    }
}

#[cfg(test)]
fn codes<B, const LEN: usize, const G: usize, const BYTES: usize>(bytes: &[u8], out: &mut [u8])
where
    B: Scalar<LEN, G, BYTES>,
{
    for (b, codes) in bytes.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<LEN>().0) {
        for (j, codes) in codes.as_chunks_mut::<G>().0.iter_mut().enumerate() {
            *codes = B::group(b, j).codes.map(|number| B::GRID.code(number));
        }
    }
}

fn pack<B, const LEN: usize, const G: usize, const BYTES: usize>(codes: &[u8], bytes: &mut [u8])
where
    B: Scalar<LEN, G, BYTES>,
{
    for (codes, b) in codes.as_chunks::<LEN>().0.iter().zip(bytes.as_chunks_mut::<BYTES>().0) {
        B::pack(codes, b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Guide, Importance, QuantType};

    const N: usize = 1024;

    fn weights() -> Vec<f32> {
        (0..N).map(|i| ((i * i * 7 + 3 * i) % 1013) as f32 / 500.0 - 0.9).collect()
    }

    /// Blocks with the scales that an encoder finds and stores, all codes the same.
    fn scales_alone(rounding: &Rounding, bytes: &[u8]) -> Vec<u8> {
        let mut blocks = bytes.to_vec();
        let code = match rounding.grid {
            Grid::Points(points) => points.magnitudes[0] as u8,
            _ => 0,
        };
        (rounding.pack)(&[code; N], &mut blocks);
        blocks
    }

    /// The scale of each weight.
    fn scales(rounding: &Rounding, blocks: &[u8]) -> Vec<Scale> {
        let mut scales = vec![Scale::default(); N / rounding.group];
        (rounding.scales)(blocks, &mut scales);
        (0..N).map(|i| scales[i / rounding.group]).collect()
    }

    /// What codes stand for.
    fn meant(rounding: &Rounding, codes: &[u8], blocks: &[u8]) -> Vec<f32> {
        let weight =
            |(&code, s): (&u8, Scale)| s.scale * f32::from(rounding.grid.number(code)) + s.offset;
        codes.iter().zip(scales(rounding, blocks)).map(weight).collect()
    }

    /// Each weight rounded by itself to what its group's scale as stored allows.
    fn rounded(rounding: &Rounding, x: &[f32], blocks: &[u8]) -> Vec<u8> {
        let scales = scales(rounding, blocks);
        x.iter().zip(scales).map(|(&x, scale)| rounding.grid.nearest(x, scale)).collect()
    }

    fn decoded(ty: QuantType, bytes: &[u8]) -> Vec<f32> {
        let mut values = vec![0.0; N];
        ty.decode_rows(bytes, N, &mut values).unwrap();
        values
    }

    #[test]
    fn search_rounding_and_packing_are_the_encoder() {
        use QuantType as Q;
        /// Their codes are the nearest for scales as stored; others' for scales before they are stored.
        const NEAREST: [QuantType; 7] =
            [Q::Q2_K, Q::Q3_K, Q::Q4_K, Q::Q5_K, Q::Q6_K, Q::MXFP4, Q::NVFP4];
        let (x, mut seen) = (weights(), 0);
        let importances: Vec<f32> = (0..N).map(|i| (i * 31 % 97) as f32).collect();
        for ty in QuantType::all() {
            let Some(rounding) = &ty.format().rounding else { continue };
            seen += 1;
            let needs = ty.format().importance == Importance::Required;
            for guide in [Guide::Plain, Guide::Columns(&importances)].into_iter().skip(needs.into())
            {
                let mut bytes = vec![0; ty.row_bytes(N).unwrap()];
                ty.encode_rows(&x, N, guide, &mut bytes).unwrap();
                // The codes of the encoder, taken out and put back.
                let mut blocks = scales_alone(rounding, &bytes);
                let mut codes = vec![0; N];
                (rounding.codes)(&bytes, &mut codes);
                assert_eq!(meant(rounding, &codes, &blocks), decoded(ty, &bytes), "{ty}");
                (rounding.pack)(&codes, &mut blocks);
                assert_eq!(blocks, bytes, "{ty}");
                if matches!(rounding.grid, Grid::Points(_)) {
                    continue;
                }
                // Other codes for the same scales.
                let mut blocks = scales_alone(rounding, &bytes);
                let codes = rounded(rounding, &x, &blocks);
                (rounding.pack)(&codes, &mut blocks);
                assert!(!NEAREST.contains(&ty) || blocks == bytes, "{ty}");
                let both = decoded(ty, &bytes).into_iter().zip(decoded(ty, &blocks));
                for (i, (own, other)) in both.enumerate() {
                    let (own, other) = ((own - x[i]).abs(), (other - x[i]).abs());
                    assert!(other <= own + 1e-6, "{ty}, weight {i}: {other} for {own}");
                }
            }
        }
        assert_eq!(seen, 23);
    }
}
