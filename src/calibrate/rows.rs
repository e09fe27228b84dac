//! Rows of weights to blocks of a type, with the least error in products that is found.

use super::columns::{self, LANES, Part};
use super::factor::{Factored, Metric};
use crate::quant::{Guide, Importance, QuantError, QuantType, Rounding, Scale};
use crate::simd::Simd;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};
use std::ops::Range;

/// Rows that are rounded together: products with them run at full speed, and they fit a core's own cache
/// where rows are short.
pub(crate) const ROWS: usize = 112;

/// A way to round a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// As the reference does without importances.
    Plain,
    /// As the reference does with the importance of each column.
    Weighed,
    /// Blocks make up for the errors of those after them.
    Blocks,
    /// And columns, for those after them in their block.
    Columns,
    /// And then blocks were rounded again while all others stayed.
    Again,
}

/// How rows of a type are rounded.
pub(crate) struct Rounder<'a> {
    pub ty: QuantType,
    /// Factors of the second moments of the inputs.
    pub moments: &'a Factored,
    /// The importances of columns: the diagonal of the moments.
    pub importances: &'a [f32],
    /// How often blocks are rounded again.
    pub sweeps: usize,
    pub simd: Simd,
}

/// Rounded rows.
pub(crate) struct Rounded {
    pub bytes: Vec<u8>,
    pub ways: Vec<Way>,
    /// tr(Δ·H·Δᵀ) of all rows, as the better of the reference's ways has it, where that was asked for, and as it is.
    pub errors: Option<[f64; 2]>,
}

/// Rows, rounded in one way or another.
struct Candidate {
    ways: Vec<Way>,
    bytes: Vec<u8>,
    /// The weights less what the blocks stand for.
    delta: Array2<f32>,
    /// tr(Δ·H·Δᵀ) of each.
    errors: Vec<f64>,
}

impl Candidate {
    /// Takes over the rows whose errors are smaller.
    fn improve(&mut self, other: Self) {
        let row_bytes = self.bytes.len() / self.ways.len().max(1);
        for row in 0..self.ways.len() {
            if other.errors[row] < self.errors[row] || self.errors[row].is_nan() {
                let bytes = row * row_bytes..(row + 1) * row_bytes;
                self.bytes[bytes.clone()].copy_from_slice(&other.bytes[bytes]);
                self.delta.row_mut(row).assign(&other.delta.row(row));
                (self.ways[row], self.errors[row]) = (other.ways[row], other.errors[row]);
            }
        }
    }
}

impl Rounder<'_> {
    /// Rounds rows in every way and takes the best of each. The reference's errors, once they are larger than those
    /// of compensation, need not be known any further, unless they are asked for: two fifths of the products.
    ///
    /// # Errors
    /// Weights that cannot be encoded.
    pub fn round(
        &self,
        weights: ArrayView2<f32>,
        with_errors: bool,
    ) -> Result<Rounded, QuantError> {
        // Targets beyond all bounds cannot be rounded; the reference's way is left then.
        let own = self.compensated(weights).ok();
        let enough = own.as_ref().filter(|_| !with_errors).map(|own| &own.errors[..]);
        let mut best = self.reference(weights, enough)?;
        let reference = best.errors.iter().sum();
        if let Some(own) = own {
            best.improve(own);
        }
        let errors = with_errors.then(|| [reference, best.errors.iter().sum()]);
        Ok(Rounded { bytes: best.bytes, ways: best.ways, errors })
    }

    fn reference(
        &self,
        weights: ArrayView2<f32>,
        enough: Option<&[f64]>,
    ) -> Result<Candidate, QuantError> {
        let weighed =
            || self.encoded(weights, Guide::Columns(self.importances), Way::Weighed, enough);
        let plain = || self.encoded(weights, Guide::Plain, Way::Plain, enough);
        match self.ty.format().importance {
            Importance::Required => weighed(),
            Importance::Ignored => plain(),
            _ => {
                let mut best = plain()?;
                best.improve(weighed()?);
                Ok(best)
            }
        }
    }

    /// Rows as an encoder has them, with errors as far as [`Factored::errors`] needs them.
    fn encoded(
        &self,
        weights: ArrayView2<f32>,
        guide: Guide,
        way: Way,
        enough: Option<&[f64]>,
    ) -> Result<Candidate, QuantError> {
        let n = weights.ncols();
        let bytes = encoded(self.ty, weights, guide, self.simd)?;
        let mut delta = Array2::zeros(weights.raw_dim());
        let values = delta.as_slice_mut().unwrap_or_default();
        self.ty.decode_rows_with(self.simd, &bytes, n, values)?;
        delta.zip_mut_with(&weights, |value, &weight| *value = weight - *value);
        let errors = self.moments.errors(delta.view(), enough);
        Ok(Candidate { ways: vec![way; weights.nrows()], bytes, delta, errors })
    }

    /// Rows whose blocks, and columns where the type allows it, make up for each other's errors.
    fn compensated(&self, weights: ArrayView2<f32>) -> Result<Candidate, QuantError> {
        let mut own = self.in_blocks(weights, self.way())?;
        for _ in 0..self.sweeps {
            self.again(weights, &mut own)?;
        }
        Ok(own)
    }

    /// How blocks are rounded to targets.
    fn way(&self) -> Way {
        match self.ty.format().rounding {
            Some(_) => Way::Columns,
            None => Way::Blocks,
        }
    }

    /// Rounds blocks to the targets that the errors of later ones give them.
    fn in_blocks(&self, weights: ArrayView2<f32>, way: Way) -> Result<Candidate, QuantError> {
        let (n_rows, n) = weights.dim();
        let squares = mean_squares(weights);
        let row_bytes = self.ty.row_bytes(n).unwrap_or(0);
        let mut own = Candidate {
            ways: vec![way; n_rows],
            bytes: vec![0; row_bytes * n_rows],
            delta: Array2::zeros(weights.raw_dim()),
            errors: vec![0.0; n_rows],
        };
        for block in self.moments.blocks().iter().rev() {
            let columns = block.columns.clone();
            let of_block = s![.., columns.clone()];
            let mut targets = block.feedback(own.delta.view(), self.simd);
            with_each(targets.view_mut(), weights.slice(of_block), |x, w| *x += w);
            let (bytes, values) =
                self.block(&targets, &squares, columns.clone(), &block.metric, way)?;
            with_each(targets.view_mut(), values.view(), |x, value| *x -= value);
            block.metric.add_errors(targets.view(), self.simd, &mut own.errors);
            let mut delta = own.delta.slice_mut(of_block);
            with_each(delta.view_mut(), weights.slice(of_block), |x, w| *x = w);
            with_each(delta, values.view(), |x, value| *x -= value);
            for row in 0..n_rows {
                let to = &mut own.bytes[row * row_bytes..][..row_bytes];
                self.put(&bytes, row, columns.clone(), to);
            }
        }
        Ok(own)
    }

    /// Rounds each block again, to the target that the errors of all others give it, and keeps the rows
    /// that gain by it.
    fn again(&self, weights: ArrayView2<f32>, own: &mut Candidate) -> Result<(), QuantError> {
        let (n_rows, n) = weights.dim();
        let squares = mean_squares(weights);
        let row_bytes = self.ty.row_bytes(n).unwrap_or(0);
        for block in self.moments.moments().iter().rev() {
            let columns = block.columns.clone();
            let of_block = s![.., columns.clone()];
            // Half of how the error grows with these columns' own.
            let slope = block.feedback(own.delta.view(), self.simd);
            let mut change = weights.slice(of_block).as_standard_layout().into_owned();
            with_each(change.view_mut(), own.delta.slice(of_block), |x, delta| *x -= delta);
            let mut targets = block.metric.times_inverse(slope.view(), self.simd);
            with_each(targets.view_mut(), change.view(), |x, before| *x += before);
            let (bytes, values) =
                self.block(&targets, &squares, columns.clone(), &block.metric, self.way())?;
            with_each(change.view_mut(), values.view(), |before, value| *before -= value);
            let mut gains = vec![0.0; n_rows];
            block.metric.add_errors(change.view(), self.simd, &mut gains);
            for (row, gain) in gains.into_iter().enumerate() {
                let pairs = change.row(row).into_iter().zip(slope.row(row));
                let linear = pairs.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
                let gain = gain + 2.0 * linear;
                if gain < 0.0 {
                    let to = &mut own.bytes[row * row_bytes..][..row_bytes];
                    self.put(&bytes, row, columns.clone(), to);
                    own.errors[row] += gain;
                    own.ways[row] = Way::Again;
                    let mut delta = own.delta.slice_mut(s![row, columns.clone()]);
                    delta += &change.row(row);
                }
            }
        }
        Ok(())
    }

    /// Bytes of so many columns of a row.
    fn bytes_of(&self, columns: usize) -> usize {
        columns / self.ty.block_len() * self.ty.block_bytes()
    }

    /// Copies a row's bytes of some columns into those of the whole row.
    fn put(&self, bytes: &[u8], row: usize, columns: Range<usize>, to: &mut [u8]) {
        let to = &mut to[self.bytes_of(columns.start)..self.bytes_of(columns.end)];
        to.copy_from_slice(&bytes[row * to.len()..][..to.len()]);
    }

    /// Rounds a block of columns to its targets: bytes, row after row, and what they stand for.
    fn block(
        &self,
        targets: &Array2<f32>,
        squares: &[f32],
        columns: Range<usize>,
        metric: &Metric,
        way: Way,
    ) -> Result<(Vec<u8>, Array2<f32>), QuantError> {
        let (n_rows, n) = targets.dim();
        // Blocks of the type, where several follow each other in this one.
        let step = if self.ty.block_len() == 32 { 32 } else { n };
        let (each, all) = (self.bytes_of(step), self.bytes_of(n));
        let mut bytes = vec![0; n_rows * all];
        let mut values = Array2::zeros(targets.raw_dim());
        let mut errors = Array2::<f32>::zeros(targets.raw_dim());
        for first in (0..n).step_by(step).rev() {
            let own = first..first + step;
            let of_block = s![.., own.clone()];
            let mut wished = Array2::zeros((n_rows, step));
            with_each(wished.view_mut(), targets.slice(of_block), |x, target| *x = target);
            if own.end < n {
                let later = ArrayView2::from_shape((n, n), &metric.by_32).expect("n × n");
                let later = later.slice(s![own.clone(), own.end..]);
                wished += &errors.slice(s![.., own.end..]).dot(&later.t());
            }
            let importances = &self.importances[columns.start + own.start..][..step];
            let mut encoded = self.encode(&wished, squares, importances)?;
            if let (Way::Columns, Some(rounding)) = (way, &self.ty.format().rounding) {
                let part = |grid, group| Part { metric, first, len: step, group, grid };
                self.by_columns(
                    rounding,
                    part(rounding.grid, rounding.group),
                    &wished,
                    &mut encoded,
                );
            }
            let mut found = Array2::zeros(wished.raw_dim());
            let out = found.as_slice_mut().unwrap_or_default();
            self.ty.decode_rows_with(self.simd, &encoded, n_rows * step, out)?;
            let mut errors = errors.slice_mut(of_block);
            with_each(errors.view_mut(), targets.slice(of_block), |x, target| *x = target);
            with_each(errors, found.view(), |x, value| *x -= value);
            with_each(values.slice_mut(of_block), found.view(), |x, value| *x = value);
            for (row, from) in encoded.chunks_exact(each).enumerate() {
                bytes[row * all + self.bytes_of(first)..][..each].copy_from_slice(from);
            }
        }
        Ok((bytes, values))
    }

    /// Encodes the same columns of all rows, with scales that are searched for widely, as if they were nothing but
    /// their targets.
    fn encode(
        &self,
        wished: &Array2<f32>,
        squares: &[f32],
        importances: &[f32],
    ) -> Result<Vec<u8>, QuantError> {
        let n = wished.len();
        let importances = importances.repeat(wished.nrows());
        let blocks = wished.ncols() / self.ty.block_len();
        let squares: Vec<f32> =
            squares.iter().flat_map(|&x| std::iter::repeat_n(x, blocks)).collect();
        let guide = match self.ty.format().importance {
            Importance::Ignored => Guide::Plain,
            _ => Guide::Blocks { importances: &importances, mean_squares: &squares },
        };
        let mut bytes = vec![0; self.ty.row_bytes(n).unwrap_or(0)];
        let x = wished.as_slice().unwrap_or_default();
        self.ty.search_rows_with(self.simd, x, n, guide, &mut bytes)?;
        Ok(bytes)
    }

    /// Makes codes column by column, for the scales that the encoder has found.
    fn by_columns(&self, rounding: &Rounding, part: Part, wished: &Array2<f32>, bytes: &mut [u8]) {
        let len = part.len;
        let each = bytes.len() / wished.nrows().max(1);
        let mut rows = columns::Rows::new();
        let mut scales = vec![Scale::default(); len / part.group];
        let mut codes = vec![0; len];
        for (wished, bytes) in
            wished.axis_chunks_iter(ndarray::Axis(0), LANES).zip(bytes.chunks_mut(LANES * each))
        {
            for (lane, (wished, bytes)) in
                wished.rows().into_iter().zip(bytes.chunks(each)).enumerate()
            {
                for (j, &x) in wished.iter().enumerate() {
                    rows.targets[j][lane] = x;
                }
                (rounding.scales)(bytes, &mut scales);
                for (group, &scale) in scales.iter().enumerate() {
                    rows.set_scale(group, lane, scale);
                }
            }
            columns::round(self.simd, part, &mut rows);
            for (lane, bytes) in bytes.chunks_mut(each).enumerate() {
                for (j, code) in codes.iter_mut().enumerate() {
                    *code = rows.codes[j][lane];
                }
                (rounding.pack)(&codes, bytes);
            }
        }
    }
}

/// The bytes of rows as the encoder has them.
pub(super) fn encoded(
    ty: QuantType,
    weights: ArrayView2<f32>,
    guide: Guide,
    simd: Simd,
) -> Result<Vec<u8>, QuantError> {
    let n = weights.ncols();
    let rows = weights.as_standard_layout();
    let mut bytes = vec![0; ty.row_bytes(n).unwrap_or(0) * weights.nrows()];
    ty.encode_rows_with(simd, rows.as_slice().unwrap_or_default(), n, guide, &mut bytes)?;
    Ok(bytes)
}

/// Has `change` see each value of an array and its counterpart in another of the same shape. Rows of both are
/// contiguous, though not with each other, which `ndarray` takes thirty times as long for.
fn with_each(
    mut changed: ArrayViewMut2<f32>,
    with: ArrayView2<f32>,
    change: impl Fn(&mut f32, f32),
) {
    for (mut changed, with) in changed.rows_mut().into_iter().zip(with.rows()) {
        let changed = changed.as_slice_mut().expect("rows are contiguous");
        let with = with.to_slice().expect("rows are contiguous");
        for (changed, &with) in changed.iter_mut().zip(with) {
            change(changed, with);
        }
    }
}

/// The mean square of each row, added up in order, as encoders do.
fn mean_squares(weights: ArrayView2<f32>) -> Vec<f32> {
    let n = weights.ncols().max(1) as f32;
    let square = |row: ndarray::ArrayView1<f32>| row.iter().fold(0.0, |sum, x| sum + x * x) / n;
    weights.rows().into_iter().map(square).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::factor::tests::moments;

    /// Columns: two blocks and a part of one for types of 32.
    fn columns(ty: QuantType) -> usize {
        if ty.block_len() <= 64 { 576 } else { 768 }
    }

    fn weights(rows: usize, n: usize) -> Array2<f32> {
        let weight = |(i, j): (usize, usize)| {
            let x = ((i * 7919 + j * 104_729 + i * j * 31) % 10_007) as f32 / 10_007.0 - 0.5;
            x * x * x + x * 0.1
        };
        Array2::from_shape_fn((rows, n), weight)
    }

    fn rounder<'a>(ty: QuantType, moments: &'a Factored, importances: &'a [f32]) -> Rounder<'a> {
        Rounder { ty, moments, importances, sweeps: 1, simd: Simd::detect() }
    }

    fn targets() -> impl Iterator<Item = QuantType> {
        QuantType::all().filter(|ty| ty.is_quantized() && ty.format().is_target())
    }

    #[test]
    fn without_moments_between_columns_blocks_are_those_of_the_encoder() {
        for ty in targets() {
            let n = columns(ty);
            let importances: Vec<f32> = (0..n).map(|i| 0.5 + (i * 31 % 97) as f32).collect();
            let diagonal = Array2::from_diag(&ndarray::Array1::from(importances.clone()));
            let moments = Factored::new(diagonal, 0.0, Simd::detect()).unwrap();
            let weights = weights(19, n);
            let rounder = rounder(ty, &moments, &importances);
            let found = rounder.in_blocks(weights.view(), Way::Blocks).unwrap();
            let guide = match ty.format().importance {
                Importance::Ignored => Guide::Plain,
                _ => Guide::Columns(&importances),
            };
            let mut expected = vec![0; found.bytes.len()];
            let simd = Simd::detect();
            ty.search_rows_with(simd, weights.as_slice().unwrap(), n, guide, &mut expected)
                .unwrap();
            assert!(found.bytes == expected, "{ty}");
        }
    }

    #[test]
    fn errors_are_those_of_the_bytes_and_never_greater_than_the_references() {
        for ty in targets() {
            let n = columns(ty);
            let h = moments(n);
            let importances = h.diag().to_vec();
            let factored = Factored::new(h, 0.01, Simd::detect()).unwrap();
            let weights = weights(19, n);
            let rounder = rounder(ty, &factored, &importances);
            let found = rounder.round(weights.view(), true).unwrap();
            let same = rounder.round(weights.view(), false).unwrap();
            assert!(same.bytes == found.bytes && same.ways == found.ways, "{ty}");
            let [reference, own] = found.errors.unwrap();
            let mut values = vec![0.0; weights.len()];
            ty.decode_rows(&found.bytes, n, &mut values).unwrap();
            let delta = &weights - &Array2::from_shape_vec(weights.raw_dim(), values).unwrap();
            let errors: f64 = factored.errors(delta.view(), None).iter().sum();
            assert!((errors / own - 1.0).abs() < 1e-3, "{ty}: {errors} {own}");
            assert!(own <= reference, "{ty}");
        }
    }
}
