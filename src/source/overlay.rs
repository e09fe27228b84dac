//! A source some of whose tensors appear in other types than they are stored in, so that what a file
//! would be like can be measured without one.

use super::{Dtype, Origin, Source, SourceError, SourceFile, Storage, TensorMeta};
use crate::quant::{Guide, QuantError, QuantType};
use crate::simd::Simd;
use crate::warning::Warning;
use std::collections::HashMap;
use std::ops::Range;

/// A source with some tensors in other types: their rows are encoded when they are read, and decoded
/// where values are asked for.
///
/// ```no_run
/// # use requant::{quant::QuantType, simd::Simd, source::{GgufSource, Overlay, Source}};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let original = GgufSource::open("model-BF16.gguf".as_ref())?;
/// let mut candidate = Overlay::new(&original, Simd::detect());
/// let tensor = original.find("blk.0.ffn_down.weight").ok_or("no such tensor")?;
/// candidate.set(tensor, QuantType::Q4_K, None)?;
/// # Ok(())
/// # }
/// ```
pub struct Overlay<'a> {
    base: &'a dyn Source,
    simd: Simd,
    search: bool,
    metas: Vec<TensorMeta>,
    others: HashMap<usize, Other<'a>>,
}

/// A type that a tensor appears in.
struct Other<'a> {
    ty: QuantType,
    rows: Rows<'a>,
}

/// Where the bytes of its rows come from.
#[cfg_attr(not(feature = "eval"), allow(dead_code, reason = "calibration has rows that are read"))]
enum Rows<'a> {
    /// They are encoded, with the importances of the columns of each matrix.
    Encoded(Option<Vec<f32>>),
    /// They are read.
    Read(Box<Read<'a>>),
}

/// Reads the bytes of rows.
type Read<'a> = dyn Fn(Range<u64>, &mut Vec<u8>) -> std::io::Result<()> + Send + Sync + 'a;

impl<'a> Overlay<'a> {
    /// A source that is like another.
    pub fn new(base: &'a dyn Source, simd: Simd) -> Self {
        let metas = base.tensors().to_vec();
        Self { base, simd, search: false, metas, others: HashMap::new() }
    }

    /// Whether rows are encoded by the wider search for scales ([`QuantType::search_rows_with`]).
    pub fn search(self, search: bool) -> Self {
        Self { search, ..self }
    }

    /// Has a tensor appear in a type, as it would be made with these importances: one for each column
    /// of each of its matrices.
    ///
    /// # Errors
    /// Rows that are no whole number of the type's blocks, and another number of importances.
    pub fn set(
        &mut self,
        tensor: usize,
        ty: QuantType,
        importance: Option<Vec<f32>>,
    ) -> Result<(), QuantError> {
        let meta = &self.metas[tensor];
        let n_per_row = meta.n_per_row() as usize;
        if ty.row_bytes(n_per_row).is_none() {
            return Err(QuantError::RowLength { ty, n_per_row });
        }
        let expected = n_per_row * meta.dims.iter().skip(2).product::<u64>() as usize;
        if let Some(found) = importance.as_ref().map(Vec::len).filter(|&n| n != expected) {
            return Err(QuantError::BufferLength { what: "importance", expected, found });
        }
        self.insert(tensor, ty, Rows::Encoded(importance));
        Ok(())
    }

    /// Has a tensor appear as the blocks of a type that somebody else has, whose rows are read when they are
    /// asked for.
    #[cfg(feature = "eval")]
    pub(crate) fn set_written(
        &mut self,
        tensor: usize,
        ty: QuantType,
        read: impl Fn(Range<u64>, &mut Vec<u8>) -> std::io::Result<()> + Send + Sync + 'a,
    ) {
        self.insert(tensor, ty, Rows::Read(Box::new(read)));
    }

    fn insert(&mut self, tensor: usize, ty: QuantType, rows: Rows<'a>) {
        self.metas[tensor].dtype = Dtype::Gguf(ty);
        self.others.insert(tensor, Other { ty, rows });
    }

    /// The bytes of whole rows.
    fn bytes(
        &self,
        tensor: usize,
        other: &Other,
        rows: Range<u64>,
    ) -> Result<Vec<u8>, SourceError> {
        let mut bytes = Vec::new();
        match &other.rows {
            Rows::Encoded(importance) => self.encode(tensor, other.ty, importance.as_deref(), rows),
            Rows::Read(read) => match read(rows.clone(), &mut bytes) {
                Ok(()) => Ok(bytes),
                Err(error) => {
                    let Origin { path, tensor } = self.base.origin(tensor, rows.start);
                    Err(SourceError::Io { path, tensor, error })
                }
            },
        }
    }

    fn encode(
        &self,
        tensor: usize,
        ty: QuantType,
        importance: Option<&[f32]>,
        rows: Range<u64>,
    ) -> Result<Vec<u8>, SourceError> {
        let meta = &self.metas[tensor];
        let n = meta.n_per_row() as usize;
        let per_matrix = meta.dims.get(1).copied().unwrap_or(1);
        let mut weights = vec![0.0; (rows.end - rows.start) as usize * n];
        self.base.read_rows(tensor, rows.start, &mut weights)?;
        let row_bytes = ty.row_bytes(n).unwrap_or(0);
        let mut bytes = vec![0; weights.len() / n.max(1) * row_bytes];
        let mut row = rows.start;
        while row < rows.end {
            let matrix = row / per_matrix;
            let end = rows.end.min((matrix + 1) * per_matrix);
            let [from, to] = [row, end].map(|row| (row - rows.start) as usize);
            let columns = matrix as usize * n..(matrix as usize + 1) * n;
            let guide = Guide::from(importance.map(|all| &all[columns]));
            let (weights, bytes) =
                (&weights[from * n..to * n], &mut bytes[from * row_bytes..to * row_bytes]);
            ty.encode_or_search(self.search, self.simd, weights, n, guide, bytes)
                .map_err(|error| self.error(tensor, row, error))?;
            row = end;
        }
        Ok(bytes)
    }

    fn error(&self, tensor: usize, row: u64, error: QuantError) -> SourceError {
        let Origin { path, tensor } = self.base.origin(tensor, row);
        SourceError::Decode { path, tensor, error }
    }
}

impl Source for Overlay<'_> {
    fn tensors(&self) -> &[TensorMeta] {
        &self.metas
    }

    fn read_rows(&self, tensor: usize, first_row: u64, out: &mut [f32]) -> Result<(), SourceError> {
        let n = self.metas[tensor].n_per_row() as usize;
        let Some(other) = self.others.get(&tensor).filter(|_| n > 0) else {
            return self.base.read_rows(tensor, first_row, out);
        };
        let bytes = self.bytes(tensor, other, first_row..first_row + (out.len() / n) as u64)?;
        other
            .ty
            .decode_rows_with(self.simd, &bytes, n, out)
            .map_err(|error| self.error(tensor, first_row, error))
    }

    fn read_raw(
        &self,
        tensor: usize,
        rows: Range<u64>,
        out: &mut Vec<u8>,
    ) -> Result<bool, SourceError> {
        let Some(other) = self.others.get(&tensor) else {
            return self.base.read_raw(tensor, rows, out);
        };
        *out = self.bytes(tensor, other, rows)?;
        Ok(true)
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.base.find(name)
    }
}

impl Storage for Overlay<'_> {
    /// Those of the base, of another version: what is made of their weights is something else.
    fn files(&self) -> Vec<SourceFile> {
        let mut files = self.base.files();
        let mut others: Vec<_> = self.others.iter().map(|(i, other)| (*i, other.ty)).collect();
        others.sort_unstable_by_key(|&(tensor, _)| tensor);
        if let Some(file) = files.first_mut() {
            file.version += if self.search { " searched" } else { "" };
            others.iter().for_each(|(tensor, ty)| file.version += &format!(" {tensor}:{ty}"));
        }
        files
    }

    fn file_of(&self, tensor: usize) -> usize {
        self.base.file_of(tensor)
    }

    fn origin(&self, tensor: usize, row: u64) -> Origin {
        self.base.origin(tensor, row)
    }

    fn granule(&self, tensor: usize) -> u64 {
        self.base.granule(tensor)
    }

    fn prefetch(&self, tensor: usize, rows: Range<u64>) {
        self.base.prefetch(tensor, rows);
    }

    fn release(&self, tensor: usize, rows: Range<u64>) {
        self.base.release(tensor, rows);
    }

    fn table_bytes(&self) -> u64 {
        self.base.table_bytes() + super::table_bytes(&self.metas)
    }

    fn met(&self) -> Vec<Warning> {
        self.base.met()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two matrices of 8 rows of 256.
    struct InMemory([TensorMeta; 1], Vec<f32>);

    impl Source for InMemory {
        fn tensors(&self) -> &[TensorMeta] {
            &self.0
        }

        fn read_rows(&self, _: usize, first: u64, out: &mut [f32]) -> Result<(), SourceError> {
            out.copy_from_slice(&self.1[first as usize * 256..][..out.len()]);
            Ok(())
        }
    }

    impl Storage for InMemory {}

    #[test]
    fn rows_are_those_that_the_type_would_give() {
        let dtype = Dtype::Gguf(QuantType::F32);
        let meta = TensorMeta { name: "w".to_owned(), dims: vec![256, 8, 2], dtype };
        let weights: Vec<f32> = (0..16 * 256).map(|i| (i as f32 * 0.37).sin()).collect();
        let base = InMemory([meta], weights);
        let importance: Vec<f32> = (0..512).map(|i| 1.0 + (i % 5) as f32).collect();
        let mut overlay = Overlay::new(&base, Simd::detect());
        for (ty, importance) in [(QuantType::Q4_K, Some(importance)), (QuantType::Q8_0, None)] {
            overlay.set(0, ty, importance.clone()).unwrap();
            let row_bytes = ty.row_bytes(256).unwrap();
            let mut bytes = vec![0; 16 * row_bytes];
            for (matrix, bytes) in bytes.chunks_mut(8 * row_bytes).enumerate() {
                let guide = Guide::from(importance.as_ref().map(|all| &all[256 * matrix..][..256]));
                let weights = &base.1[2048 * matrix..][..2048];
                ty.encode_rows(weights, 256, guide, bytes).unwrap();
            }
            let mut values = vec![0.0; 16 * 256];
            ty.decode_rows(&bytes, 256, &mut values).unwrap();
            for rows in [0..16, 6..10, 15..16] {
                let [from, to] = [rows.start, rows.end].map(|row| row as usize);
                let mut raw = Vec::new();
                assert!(overlay.read_raw(0, rows, &mut raw).unwrap());
                assert_eq!(raw, bytes[from * row_bytes..to * row_bytes]);
                let mut read = vec![0.0; (to - from) * 256];
                overlay.read_rows(0, from as u64, &mut read).unwrap();
                assert_eq!(read, values[from * 256..to * 256]);
            }
            assert_eq!(overlay.tensors()[0].dtype, Dtype::Gguf(ty));
        }
        assert!(overlay.set(0, QuantType::Q4_K, Some(vec![1.0; 256])).is_err());
    }
}
