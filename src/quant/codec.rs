//! Rows to bytes and back: one entry for every type.

use super::error::QuantError;
use super::format::Importance;
use super::guide::Guide;
use super::kernels::Levels;
use super::search::ROWS;
use super::types::QuantType;
use crate::simd::Simd;

impl QuantType {
    /// Quantizes whole rows, byte for byte as the reference's `ggml_quantize_chunk`.
    ///
    /// `rows` holds any number of rows of `n_per_row` weights, `out` as many rows of
    /// [`row_bytes`](Self::row_bytes).
    ///
    /// Scales beyond the range of an f16 are written as infinities, as the reference does:
    /// [`validate_rows`](Self::validate_rows) finds them.
    ///
    /// ```
    /// use requant::quant::{Guide, QuantType};
    ///
    /// let row: Vec<f32> = (0..256).map(|i| (i as f32 - 128.0) / 64.0).collect();
    /// let mut bytes = vec![0; QuantType::Q4_K.row_bytes(256).unwrap()];
    /// QuantType::Q4_K.encode_rows(&row, 256, Guide::Plain, &mut bytes)?;
    /// let mut back = vec![0.0; 256];
    /// QuantType::Q4_K.decode_rows(&bytes, 256, &mut back)?;
    /// // 16 codes from 0 to 2 are 2/15 apart; half of that, and a little for the 6-bit scale.
    /// assert!(row.iter().zip(&back).all(|(a, b)| (a - b).abs() < 0.08));
    /// # Ok::<(), requant::quant::QuantError>(())
    /// ```
    ///
    /// # Errors
    /// Lengths that do not fit, values that are not finite, importances that are negative or
    /// not finite, a type that is no target.
    pub fn encode_rows(
        self,
        rows: &[f32],
        n_per_row: usize,
        guide: Guide,
        out: &mut [u8],
    ) -> Result<(), QuantError> {
        self.encode_rows_with(Simd::detect(), rows, n_per_row, guide, out)
    }

    /// [`encode_rows`](Self::encode_rows) with the instructions of a given level. The bytes are the
    /// same for all.
    ///
    /// # Errors
    /// As [`encode_rows`](Self::encode_rows).
    pub fn encode_rows_with(
        self,
        simd: Simd,
        rows: &[f32],
        n_per_row: usize,
        guide: Guide,
        out: &mut [u8],
    ) -> Result<(), QuantError> {
        self.encode_by(Levels::encode, simd, rows, n_per_row, guide, out)
    }

    /// Whether the type has a search for scales, so that [`search_rows_with`](Self::search_rows_with) gives other
    /// bytes than [`encode_rows_with`](Self::encode_rows_with).
    pub fn searches(self) -> bool {
        self.kernels().is_ok_and(Levels::searches)
    }

    /// [`encode_rows_with`](Self::encode_rows_with) by a wider search for scales than the reference's, where
    /// the type has a search: the errors that it makes smaller are the same, with importances of one where
    /// `guide` has none. Bytes are the same at all levels.
    ///
    /// # Errors
    /// As [`encode_rows`](Self::encode_rows).
    pub fn search_rows_with(
        self,
        simd: Simd,
        rows: &[f32],
        n_per_row: usize,
        guide: Guide,
        out: &mut [u8],
    ) -> Result<(), QuantError> {
        let even;
        let guide = match guide {
            Guide::Plain if self.kernels()?.searches() => {
                even = vec![1.0; n_per_row];
                Guide::Columns(&even)
            }
            guide => guide,
        };
        self.encode_by(Levels::search, simd, rows, n_per_row, guide, out)
    }

    /// [`search_rows_with`](Self::search_rows_with) where `search`, else [`encode_rows_with`](Self::encode_rows_with).
    ///
    /// # Errors
    /// As [`encode_rows`](Self::encode_rows).
    pub fn encode_or_search(
        self,
        search: bool,
        simd: Simd,
        rows: &[f32],
        n_per_row: usize,
        guide: Guide,
        out: &mut [u8],
    ) -> Result<(), QuantError> {
        match search {
            true => self.search_rows_with(simd, rows, n_per_row, guide, out),
            false => self.encode_rows_with(simd, rows, n_per_row, guide, out),
        }
    }

    /// Checks rows and encodes them.
    fn encode_by(
        self,
        encode: impl Fn(&Levels, Simd, &[f32], Guide, &mut [u8]),
        simd: Simd,
        rows: &[f32],
        n_per_row: usize,
        guide: Guide,
        out: &mut [u8],
    ) -> Result<(), QuantError> {
        let row_bytes = self.check(rows.len(), n_per_row, out.len(), ["input", "output"])?;
        guide.check(n_per_row, self.block_len())?;
        let weighed = guide.columns().is_some();
        if !weighed && self.format().importance == Importance::Required {
            return Err(QuantError::NeedsImportance(self));
        }
        let levels = self.kernels()?;
        // A few rows at a time, to find them in the cache after the check.
        let at_once = if weighed && !levels.by_row { 1 } else { ROWS };
        let chunks = rows.chunks(at_once * n_per_row).zip(out.chunks_mut(at_once * row_bytes));
        for (i, (x, out)) in chunks.enumerate() {
            if !super::float::all_finite(simd, x) {
                let at = x.iter().position(|v| !v.is_finite()).unwrap_or(0);
                let row = i * at_once + at / n_per_row;
                let column = at % n_per_row;
                return Err(QuantError::NotFinite { row, column, value: x[at] });
            }
            encode(levels, simd, x, guide, out);
        }
        Ok(())
    }

    /// Widens whole rows to f32, to the bit as the reference's `dequantize_row_*`.
    ///
    /// # Errors
    /// Lengths that do not fit, or a type that holds no weights.
    pub fn decode_rows(
        self,
        bytes: &[u8],
        n_per_row: usize,
        out: &mut [f32],
    ) -> Result<(), QuantError> {
        self.decode_rows_with(Simd::detect(), bytes, n_per_row, out)
    }

    /// [`decode_rows`](Self::decode_rows) with the instructions of a given level.
    ///
    /// # Errors
    /// As [`decode_rows`](Self::decode_rows).
    pub fn decode_rows_with(
        self,
        simd: Simd,
        bytes: &[u8],
        n_per_row: usize,
        out: &mut [f32],
    ) -> Result<(), QuantError> {
        self.check(out.len(), n_per_row, bytes.len(), ["output", "input"])?;
        self.kernels()?.decode(simd, bytes, out);
        Ok(())
    }

    /// Checks that no number stored in whole rows is infinite or NaN: values of the float types,
    /// scales and minima of the block types (`ggml_validate_row_data`).
    ///
    /// # Errors
    /// The first block that holds one, or lengths that do not fit.
    pub fn validate_rows(self, bytes: &[u8], n_per_row: usize) -> Result<(), QuantError> {
        let row_bytes = self.row_bytes(n_per_row).filter(|&n| n > 0);
        let row_bytes = row_bytes.ok_or(QuantError::RowLength { ty: self, n_per_row })?;
        let rows = bytes.len() / row_bytes;
        if rows * row_bytes != bytes.len() {
            let (expected, found) = (rows * row_bytes, bytes.len());
            return Err(QuantError::BufferLength { what: "input", expected, found });
        }
        let (numbers, bytes_each) = (self.format().numbers, self.block_bytes());
        if numbers.are_finite(bytes, bytes_each) {
            return Ok(());
        }
        let mut blocks = bytes.chunks_exact(bytes_each);
        match blocks.position(|block| !numbers.are_finite(block, bytes_each)) {
            Some(block) => Err(QuantError::InvalidBlock { ty: self, block }),
            None => Ok(()),
        }
    }

    fn kernels(self) -> Result<&'static Levels, QuantError> {
        self.format().kernels.as_ref().ok_or(QuantError::NotForWeights(self))
    }

    /// Bytes per row, once both buffers are known to hold the same number of whole rows.
    fn check(
        self,
        n_weights: usize,
        n_per_row: usize,
        n_bytes: usize,
        [weights, bytes]: [&'static str; 2],
    ) -> Result<usize, QuantError> {
        let row_bytes = self
            .row_bytes(n_per_row)
            .filter(|&bytes| bytes > 0)
            .ok_or(QuantError::RowLength { ty: self, n_per_row })?;
        let n_rows = n_weights / n_per_row;
        if n_rows * n_per_row != n_weights {
            let expected = n_rows * n_per_row;
            return Err(QuantError::BufferLength { what: weights, expected, found: n_weights });
        }
        match n_rows.checked_mul(row_bytes) {
            Some(expected) if expected == n_bytes => Ok(row_bytes),
            expected => {
                let expected = expected.unwrap_or(usize::MAX);
                Err(QuantError::BufferLength { what: bytes, expected, found: n_bytes })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn importances_are_finite_and_not_negative() {
        for ty in QuantType::all() {
            let mut out = vec![0; ty.row_bytes(256).unwrap()];
            for bad in [-1.0, -1e-30, f32::INFINITY, f32::NAN] {
                let mut qw = [1.0; 256];
                qw[7] = bad;
                let refused = ty.encode_rows(&[0.5; 256], 256, Guide::Columns(&qw), &mut out);
                assert!(
                    matches!(refused, Err(QuantError::Importance { column: 7, value }) if value.to_bits() == bad.to_bits()),
                    "{ty}: {refused:?}"
                );
            }
        }
    }

    /// Whatever two bytes of a block are overwritten with f16's infinity: validation refuses the
    /// block exactly if it decodes to a value that is not finite.
    #[test]
    fn blocks_that_do_not_decode_to_numbers_are_invalid() {
        const N: usize = 512;
        let x: [f32; N] = std::array::from_fn(|i| ((i * 37 % 101) as f32 - 50.0) * 0.01);
        for ty in QuantType::all() {
            let mut good = vec![0; ty.row_bytes(N).unwrap_or(0)];
            if ty.encode_rows(&x, N, Guide::Columns(&[1.0; N]), &mut good).is_err() {
                continue;
            }
            assert_eq!(ty.validate_rows(&good, N), Ok(()), "{ty}");
            let block = 1;
            let start = block * ty.block_bytes();
            for at in (start..start + ty.block_bytes() - 1).step_by(2) {
                let mut bytes = good.clone();
                bytes[at..at + 2].copy_from_slice(&[0x00, 0x7c]);
                let mut values = [0.0; N];
                ty.decode_rows(&bytes, N, &mut values).unwrap();
                let expected = if values.iter().all(|v| v.is_finite()) {
                    Ok(())
                } else {
                    Err(QuantError::InvalidBlock { ty, block })
                };
                assert_eq!(ty.validate_rows(&bytes, N), expected, "{ty}, byte {}", at - start);
            }
        }
    }
}
