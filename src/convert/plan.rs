//! What a conversion will do, known from headers alone.

use super::error::ConvertError;
use super::metadata;
use super::settings::{Intermediate, Settings};
use crate::gguf::{Layout, Metadata, Writer};
use crate::imatrix::Imatrix;
use crate::model::CheckpointModel;
use crate::quant::{QuantType, Simd};
use crate::recipe::{self, Assignment, Facts, Reason, Shape};
use crate::source::{Dtype, GgufSource, Source};
use std::path::Path;
use std::sync::Arc;

/// A tensor of the output.
#[derive(Clone, Debug)]
pub struct PlannedTensor {
    /// Its index in the source.
    pub source: usize,
    /// Name.
    pub name: String,
    /// Extents, innermost first.
    pub dims: Vec<u64>,
    /// The type it has on the way, and keeps where it is not quantized.
    pub stored: QuantType,
    /// The type it gets.
    pub ty: QuantType,
    /// Why.
    pub reason: Reason,
    /// Whether its columns are weighed by an importance matrix.
    pub weighed: bool,
}

impl PlannedTensor {
    /// Elements.
    pub fn n_elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Rows, over all matrices.
    pub fn n_rows(&self) -> u64 {
        self.dims.iter().skip(1).product()
    }
}

/// Everything about the output but its weights.
pub struct Plan {
    pub(super) tensors: Vec<PlannedTensor>,
    pub(super) metadata: Metadata,
    pub(super) layout: Layout,
    pub(super) threads: usize,
    pub(super) imatrix: Option<Arc<Imatrix>>,
    pub(super) simd: Simd,
    pub(super) check: bool,
}

/// Elements that a worker reads, quantizes and writes at a time, unless a single row is longer.
pub(super) const UNIT_ELEMENTS: u64 = 1 << 20;

/// What the program takes beside its buffers: code, allocator, thread stacks, mapped headers.
const BASE_MEMORY: u64 = 48 << 20;

impl Plan {
    /// Plans the conversion of a checkpoint.
    ///
    /// # Errors
    /// A vocabulary that cannot be converted, or types that fit no tensor.
    pub fn of_checkpoint(
        model: &CheckpointModel,
        settings: &Settings,
    ) -> Result<Self, ConvertError> {
        let metadata = metadata::of_checkpoint(model, settings)?;
        let hparams = model.hparams();
        let facts = Facts {
            n_layer: hparams.n_layer + hparams.n_nextn,
            n_head: hparams.attention.n_head,
            n_head_kv: 1,
            n_expert: hparams.moe.as_ref().map_or(0, |moe| moe.n_expert),
            tied: model.find("output.weight").is_none(),
        };
        let stored = |i: usize| {
            let meta = &model.tensors()[i];
            stored_type(&meta.name, &meta.dims, settings.intermediate)
        };
        Self::new(model, stored, metadata, &facts, settings)
    }

    /// Plans the quantization of a GGUF file.
    ///
    /// # Errors
    /// Types that fit no tensor, or tensors that are quantized already.
    pub fn of_gguf(source: &GgufSource, settings: &Settings) -> Result<Self, ConvertError> {
        let file = source.file();
        let metadata = metadata::of_gguf(file.metadata(), settings);
        let facts = metadata::facts(file.metadata(), source.find("output.weight").is_none())?;
        Self::new(source, |i| file.tensors()[i].ty, metadata, &facts, settings)
    }

    fn new(
        source: &dyn Source,
        stored: impl Fn(usize) -> QuantType,
        metadata: Metadata,
        facts: &Facts,
        settings: &Settings,
    ) -> Result<Self, ConvertError> {
        let metas = source.tensors();
        let mut order: Vec<usize> = (0..metas.len()).collect();
        order.sort_by(|&a, &b| recipe::output_order(&metas[a].name, &metas[b].name));
        let shapes: Vec<Shape> = order
            .iter()
            .map(|&i| {
                let meta = &metas[i];
                Shape { name: &meta.name, dims: &meta.dims, source: stored(i) }
            })
            .collect();
        let assigned = recipe::assign(&shapes, settings.file_type, facts, &settings.recipe)?;
        let mut tensors = Vec::with_capacity(order.len());
        for (&source_index, (shape, Assignment { ty, reason })) in
            order.iter().zip(shapes.iter().zip(assigned))
        {
            let changes = ty != shape.source;
            if changes
                && !settings.allow_requantize
                && metas[source_index].dtype == Dtype::Gguf(shape.source)
                && shape.source.is_quantized()
            {
                let tensor = shape.name.to_owned();
                return Err(ConvertError::Requantize { tensor, from: shape.source, to: ty });
            }
            tensors.push(PlannedTensor {
                source: source_index,
                name: shape.name.to_owned(),
                dims: shape.dims.to_vec(),
                stored: shape.source,
                ty,
                reason,
                weighed: changes && is_weighed(shape, ty, settings)?,
            });
        }
        let infos = tensors.iter().map(|t| (t.name.clone(), t.dims.clone(), t.ty));
        let layout = Layout::new(&metadata, infos)?;
        let imatrix = settings.importance.as_ref().map(|i| i.imatrix.clone());
        let (threads, simd, check) = (settings.threads.max(1), settings.simd, settings.check);
        Ok(Self { tensors, metadata, layout, threads, imatrix, simd, check })
    }

    /// The tensors in the order of the file.
    pub fn tensors(&self) -> &[PlannedTensor] {
        &self.tensors
    }

    /// The metadata of the file.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Bytes of the output file.
    pub fn file_size(&self) -> u64 {
        self.layout.file_size()
    }

    /// Tensors that are quantized without the importance matrix, which has no entry for them.
    pub fn unweighed(&self) -> impl Iterator<Item = &str> {
        let given = self.imatrix.is_some();
        let tensors = self.tensors.iter();
        tensors
            .filter(move |t| given && !t.weighed && t.ty != t.stored && t.ty.is_quantized())
            .map(|t| t.name.as_str())
    }

    /// Entries of the importance matrix that no tensor takes.
    pub fn unused_importance(&self) -> impl Iterator<Item = &str> {
        let entries = self.imatrix.iter().flat_map(|imatrix| imatrix.entries.keys());
        entries.map(String::as_str).filter(|&name| !self.tensors.iter().any(|t| t.name == name))
    }

    /// Weights in all tensors together.
    pub fn n_weights(&self) -> u64 {
        self.tensors.iter().map(PlannedTensor::n_elements).sum()
    }

    /// Bits per weight, over all tensors.
    pub fn bits_per_weight(&self) -> f64 {
        let bytes: u64 = (0..self.tensors.len()).map(|i| self.layout.n_bytes(i)).sum();
        bytes as f64 * 8.0 / self.n_weights().max(1) as f64
    }

    /// Refuses an output that cannot succeed, before any weight is read: one that exists (without
    /// `force`), a folder that does not, too little room.
    ///
    /// # Errors
    /// As said, naming what to do.
    pub fn check_output(&self, output: &Path, force: bool) -> Result<(), ConvertError> {
        Writer::check(output, force)?;
        match self.free_disk(output) {
            Some(free) if free < self.file_size() => Err(ConvertError::DiskSpace {
                path: output.to_owned(),
                needed: self.file_size(),
                free,
            }),
            _ => Ok(()),
        }
    }

    /// Bytes free where the output goes; `None` where the system does not say.
    pub fn free_disk(&self, output: &Path) -> Option<u64> {
        let folder =
            output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let stat = rustix::fs::statvfs(folder).ok()?;
        Some(stat.f_bavail * stat.f_frsize)
    }

    /// An upper bound on the resident memory of the run, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let unit = self.tensors.iter().map(unit_elements).max().unwrap_or(0);
        // A unit is held as stored (at most 4 bytes a weight), as f32, once more as f32 where it
        // is transposed, and encoded (at most 4 bytes a weight).
        let workers = self.threads as u64 * unit * 16;
        // The header is held in the metadata, in the layout, and in the source's own tables.
        BASE_MEMORY + workers + 8 * self.layout.header().len() as u64
    }
}

/// Whether the importance matrix has an entry for a tensor.
fn is_weighed(tensor: &Shape, ty: QuantType, settings: &Settings) -> Result<bool, ConvertError> {
    let Some(importance) = &settings.importance else { return Ok(false) };
    let expected = tensor.dims[0] * tensor.dims.get(2).copied().unwrap_or(1);
    match importance.imatrix.entries.get(tensor.name) {
        Some(values) if values.len() as u64 == expected => Ok(true),
        // As the reference: embeddings are rows, not products, so their entry fits no column.
        Some(_) if tensor.name == "token_embd.weight" => Ok(false),
        Some(values) => Err(ConvertError::ImportanceLength {
            tensor: tensor.name.to_owned(),
            expected,
            found: values.len(),
        }),
        None if recipe::needs_imatrix(tensor.name, ty, settings.file_type) => {
            Err(ConvertError::NoImportance { tensor: tensor.name.to_owned(), ty })
        }
        None => Ok(false),
    }
}

/// Elements of the largest unit of a tensor.
pub(super) fn unit_elements(tensor: &PlannedTensor) -> u64 {
    UNIT_ELEMENTS.max(tensor.dims[0]).min(tensor.n_elements())
}

/// The type of a tensor in the reference converter's output (`ModelBase.prepare_tensors`).
fn stored_type(name: &str, dims: &[u64], intermediate: Intermediate) -> QuantType {
    let precise = dims.len() <= 1
        || name.ends_with("_norm.weight")
        || name.ends_with("ffn_gate_inp.weight")
        || !name.ends_with(".weight");
    match intermediate {
        Intermediate::Bf16 if !precise => QuantType::BF16,
        _ => QuantType::F32,
    }
}
