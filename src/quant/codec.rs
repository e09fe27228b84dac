//! Rows to bytes and back: one entry for every type.

use super::error::QuantError;
use super::float::{bf16_to_f32, f32_to_bf16};
use super::types::QuantType;
use super::{k, simple};

impl QuantType {
    /// Quantizes whole rows, byte for byte as the reference's `ggml_quantize_chunk`.
    ///
    /// `imatrix` weighs the columns of every row alike; with it some types use another algorithm.
    ///
    /// # Errors
    /// Lengths that do not fit, values that are not finite, a type that is no target.
    pub fn encode_rows(
        self,
        rows: &[f32],
        n_per_row: usize,
        imatrix: Option<&[f32]>,
        out: &mut [u8],
    ) -> Result<(), QuantError> {
        let n_rows = self.check(rows.len(), n_per_row, out.len(), ["input", "output"])?;
        if let Some(imatrix) = imatrix
            && imatrix.len() != n_per_row
        {
            let what = "importance matrix";
            return Err(QuantError::BufferLength {
                what,
                expected: n_per_row,
                found: imatrix.len(),
            });
        }
        if let Some(at) = rows.iter().position(|v| !v.is_finite()) {
            let (row, column) = (at / n_per_row, at % n_per_row);
            return Err(QuantError::NotFinite { row, column, value: rows[at] });
        }
        debug_assert_eq!(n_rows * n_per_row, rows.len());
        match self {
            Self::F32 => write(rows, out, f32::to_le_bytes),
            Self::F16 => write(rows, out, |v| half::f16::from_f32(v).to_le_bytes()),
            Self::BF16 => write(rows, out, |v| f32_to_bf16(v).to_le_bytes()),
            Self::Q4_0 => simple::encode_q4_0(rows, out),
            Self::Q5_0 => simple::encode_q5_0(rows, out),
            Self::Q8_0 => simple::encode_q8_0(rows, out),
            Self::Q4_K => k::encode_q4_k(rows, out),
            Self::Q6_K => k::encode_q6_k(rows, out),
            _ => return Err(QuantError::NotForWeights(self)),
        }
        Ok(())
    }

    /// Widens whole rows to f32.
    ///
    /// # Errors
    /// Lengths that do not fit, or a type that holds no weights.
    pub fn decode_rows(
        self,
        bytes: &[u8],
        n_per_row: usize,
        out: &mut [f32],
    ) -> Result<(), QuantError> {
        self.check(out.len(), n_per_row, bytes.len(), ["output", "input"])?;
        match self {
            Self::F32 => read(bytes, out, f32::from_le_bytes),
            Self::F16 => read(bytes, out, |b| half::f16::from_le_bytes(b).to_f32()),
            Self::BF16 => read(bytes, out, |b| bf16_to_f32(u16::from_le_bytes(b))),
            Self::Q4_0 => simple::decode_q4_0(bytes, out),
            Self::Q5_0 => simple::decode_q5_0(bytes, out),
            Self::Q8_0 => simple::decode_q8_0(bytes, out),
            Self::Q4_K => k::decode_q4_k(bytes, out),
            Self::Q6_K => k::decode_q6_k(bytes, out),
            _ => return Err(QuantError::NotForWeights(self)),
        }
        Ok(())
    }

    /// The number of rows that both buffers hold.
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
        if n_rows * row_bytes != n_bytes {
            let expected = n_rows * row_bytes;
            return Err(QuantError::BufferLength { what: bytes, expected, found: n_bytes });
        }
        Ok(n_rows)
    }
}

fn write<const N: usize>(values: &[f32], out: &mut [u8], convert: impl Fn(f32) -> [u8; N]) {
    for (bytes, &v) in out.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *bytes = convert(v);
    }
}

fn read<const N: usize>(bytes: &[u8], out: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
    for (v, &bytes) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *v = convert(bytes);
    }
}
