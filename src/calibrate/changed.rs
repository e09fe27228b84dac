//! A model as it will be: what is written of its output already, and the original's other tensors.

use crate::convert::Begun;
use crate::gguf::TensorType;
use crate::quant::QuantType;
use crate::simd::Simd;
use crate::source::{Dtype, Origin, Source, SourceError, SourceFile, Storage, TensorMeta};
use std::collections::HashMap;
use std::ops::Range;

/// The tensors of a source, some of which are read from the output. Whoever reads them sees to it that they
/// are written.
pub(crate) struct Changed<'a> {
    base: &'a dyn Source,
    begun: &'a Begun<'a>,
    simd: Simd,
    metas: Vec<TensorMeta>,
    /// The tensor in the output and its type.
    planned: HashMap<usize, (usize, QuantType)>,
}

impl<'a> Changed<'a> {
    /// With these tensors of the plan from the output.
    pub fn new(
        base: &'a dyn Source,
        begun: &'a Begun<'a>,
        simd: Simd,
        tensors: impl Iterator<Item = usize>,
    ) -> Self {
        let mut metas = base.tensors().to_vec();
        let mut planned = HashMap::new();
        for tensor in tensors {
            let of_plan = &begun.plan().tensors()[tensor];
            if let TensorType::Known(ty) = of_plan.ty {
                metas[of_plan.source].dtype = Dtype::Gguf(ty);
                planned.insert(of_plan.source, (tensor, ty));
            }
        }
        Self { base, begun, simd, metas, planned }
    }
}

impl Source for Changed<'_> {
    fn tensors(&self) -> &[TensorMeta] {
        &self.metas
    }

    fn read_rows(&self, tensor: usize, first_row: u64, out: &mut [f32]) -> Result<(), SourceError> {
        let Some(&(_, ty)) = self.planned.get(&tensor) else {
            return self.base.read_rows(tensor, first_row, out);
        };
        let n = self.metas[tensor].n_per_row() as usize;
        let mut bytes = Vec::new();
        self.read_raw(tensor, first_row..first_row + (out.len() / n.max(1)) as u64, &mut bytes)?;
        ty.decode_rows_with(self.simd, &bytes, n, out).map_err(|error| {
            let Origin { path, tensor } = self.base.origin(tensor, first_row);
            SourceError::Decode { path, tensor, error }
        })
    }

    fn read_raw(
        &self,
        tensor: usize,
        rows: Range<u64>,
        out: &mut Vec<u8>,
    ) -> Result<bool, SourceError> {
        let Some(&(planned, _)) = self.planned.get(&tensor) else {
            return self.base.read_raw(tensor, rows, out);
        };
        match self.begun.read(planned, rows.clone(), out) {
            Ok(()) => Ok(true),
            Err(error) => {
                let Origin { path, tensor } = self.base.origin(tensor, rows.start);
                Err(SourceError::Io { path, tensor, error: std::io::Error::other(error) })
            }
        }
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.base.find(name)
    }
}

impl Storage for Changed<'_> {
    fn files(&self) -> Vec<SourceFile> {
        self.base.files()
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

    fn release(&self, tensor: usize, rows: Range<u64>) {
        self.base.release(tensor, rows);
    }
}
