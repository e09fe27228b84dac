//! What a conversion will do, known from headers alone.

use super::cut;
use super::error::ConvertError;
use super::importance::{Importances, Weighing};
use super::job::{Job, type_in};
use super::lossless;
use super::made_with::{MadeWith, ROUNDING, SEARCH};
use super::metadata::{self, OfCheckpoint};
use super::prune::Pruned;
use super::settings::{Intermediate, Mode, Settings};
use crate::gguf::{Layout, Metadata, TensorType, split_path};
use crate::imatrix::Imatrix;
use crate::io::memory;
use crate::model::CheckpointModel;
use crate::names::in_short;
use crate::quant::{Guide, QuantType};
use crate::recipe::{Facts, FileType, Reason, Recipe, Shape};
use crate::simd::Simd;
use crate::source::{Dtype, GgufSource, Origin, Source};
use crate::warning::{Topic, Warning};
use std::ops::Range;
use std::path::{Path, PathBuf};
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
    pub stored: TensorType,
    /// The type it gets.
    pub ty: TensorType,
    /// Why.
    pub reason: Reason,
    /// What weighs its columns, if anything does.
    pub weighing: Option<Weighing>,
    /// Whether it is as expected, or as wished, that nothing does.
    pub(super) unweighable: bool,
}

impl PlannedTensor {
    /// Elements.
    pub fn n_elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Elements in a row. A tensor of an unknown type is copied as rows of one byte.
    pub fn n_per_row(&self) -> u64 {
        match self.ty {
            TensorType::Known(_) => self.dims.first().copied().unwrap_or(1),
            TensorType::Unknown(_) => 1,
        }
    }

    /// Whether it is encoded in a type whose scales can be searched for more widely.
    fn is_searched_for(&self) -> bool {
        matches!(self.ty, TensorType::Known(ty) if self.ty != self.stored && ty.searches())
    }

    /// Rows, over all matrices; none where rows have no elements.
    pub fn n_rows(&self) -> u64 {
        match self.ty {
            TensorType::Unknown(opaque) => opaque.n_bytes,
            TensorType::Known(_) if self.n_per_row() == 0 => 0,
            TensorType::Known(_) => self.dims.iter().skip(1).product(),
        }
    }

    /// Rows of one matrix.
    pub(super) fn rows_per_matrix(&self) -> u64 {
        match self.ty {
            TensorType::Known(_) => self.dims.get(1).copied().unwrap_or(1).max(1),
            TensorType::Unknown(_) => 1,
        }
    }

    /// Elements in so many rows.
    pub(super) fn weights(&self, rows: &Range<u64>) -> u64 {
        let all = u128::from(self.n_elements()) * u128::from(rows.end - rows.start);
        (all / u128::from(self.n_rows().max(1))) as u64
    }
}

/// A file of the output.
pub struct PlannedFile {
    /// Its tensors, by their index in the plan.
    pub tensors: Range<usize>,
    /// Its header, and where in it each of its tensors goes.
    pub layout: Layout,
}

/// Everything about the output but its weights.
pub struct Plan {
    pub(super) tensors: Vec<PlannedTensor>,
    pub(super) metadata: Metadata,
    pub(super) files: Vec<PlannedFile>,
    /// Whether the files are named as parts, even if there is only one.
    pub(super) split: bool,
    pub(super) threads: usize,
    pub(super) imatrix: Option<Arc<Imatrix>>,
    recipe: Arc<Recipe>,
    /// Entries of the importance matrix that no tensor takes.
    unused: Vec<String>,
    pub(super) simd: Simd,
    /// [`Settings::search`].
    pub(super) search: bool,
    pub(super) check: bool,
    /// Bytes that descriptions of the source's tensors take.
    tables: u64,
    /// Bytes of memory that a run may take.
    pub(super) budget: u64,
    warnings: Vec<Warning>,
    further_ends: Vec<(u32, String)>,
}

/// Elements that a worker reads, quantizes and writes at a time, unless a single row is longer.
pub(super) const UNIT_ELEMENTS: u64 = 1 << 20;

/// What the program takes beside its buffers: code, allocator, thread stacks, mapped headers.
const BASE_MEMORY: u64 = 48 << 20;

/// The memory that a run of one plan, or of several at once, takes.
pub(super) struct Memory {
    /// Whatever the threads.
    base: u64,
    /// For each thread.
    each: u64,
}

impl Memory {
    pub fn of<'a>(plans: impl IntoIterator<Item = &'a Plan>) -> Self {
        let (mut n, mut tables, mut headers, mut unit) = (0, 0, 0, 0);
        for plan in plans {
            n += 1;
            tables = plan.tables.max(tables);
            headers += plan.files.iter().map(header_memory).sum::<u64>();
            unit = plan.tensors.iter().map(unit_elements).max().unwrap_or(0).max(unit);
        }
        // A unit is held as stored (at most 4 bytes a weight), as f32, once more as f32 where it is
        // transposed, and encoded (at most 4 bytes a weight).
        Self { base: BASE_MEMORY + tables + headers, each: (12 + 4 * n) * unit }
    }

    /// As many of the threads as stay within a budget.
    pub fn threads(&self, wanted: usize, budget: u64) -> Result<usize, ConvertError> {
        let each = self.each.max(1);
        let needed = self.base + each;
        match budget.checked_sub(needed) {
            None => Err(ConvertError::Memory { needed, budget }),
            Some(rest) => Ok(wanted.min(1 + usize::try_from(rest / each).unwrap_or(usize::MAX))),
        }
    }

    /// The most that so many threads take.
    pub fn peak(&self, threads: usize) -> u64 {
        self.base + threads as u64 * self.each
    }
}

impl Plan {
    /// Plans the conversion of a checkpoint.
    ///
    /// # Errors
    /// A vocabulary that cannot be converted, or types that fit no tensor.
    pub fn of_checkpoint(
        model: &CheckpointModel,
        settings: &Settings,
    ) -> Result<Self, ConvertError> {
        let exact = match settings.mode {
            Mode::Lossless => Some(lossless::types(model, settings.threads)?),
            _ => None,
        };
        let OfCheckpoint { metadata, warnings, further_ends } =
            metadata::of_checkpoint(model, settings, exact.as_deref())?;
        let hparams = model.hparams();
        let facts = Facts {
            n_layer: hparams.n_layer + hparams.n_nextn,
            n_head: hparams.attention.n_head(),
            n_head_kv: hparams.attention.n_head_kv(),
            n_expert: hparams.moe.as_ref().map_or(0, |moe| moe.n_expert),
            tied: model.find("output.weight").is_none(),
        };
        let (intermediate, order) = match settings.mode {
            Mode::Convert => (Intermediate::F32, model.converter_order()),
            Mode::Quantize | Mode::Copy | Mode::Regroup | Mode::Lossless => {
                (settings.intermediate, all(model))
            }
        };
        let stored = |i: usize| {
            let meta = &model.tensors()[i];
            let computed = || stored_type(&meta.name, &meta.dims, intermediate);
            let exact = exact.as_ref().map(|types| types[i]);
            exact.or_else(|| model.kept(i)).unwrap_or_else(computed).into()
        };
        let job = Job::of(settings.mode, || Ok(facts))?;
        let mut plan = Self::new(&job, model, order, &stored, metadata, settings)?;
        plan.warnings.splice(0..0, model.warnings().iter().cloned().chain(warnings));
        plan.further_ends = further_ends;
        Ok(plan)
    }

    /// Plans the conversion of a checkpoint that would give an existing file, whose types and
    /// pre-tokenizer it takes; tensors that the file does not have are left out. Where the metadata
    /// cannot be made, the plan has the file's, and a warning. Of a file that keeps its checkpoint's values
    /// ([`is_lossless`](super::is_lossless)), the model has to have kept its blocks as well.
    ///
    /// # Errors
    /// Types that this program does not know, or that need importances.
    pub fn like_file(
        model: &CheckpointModel,
        settings: &Settings,
        file: &GgufSource,
    ) -> Result<Self, ConvertError> {
        let is_lossless = lossless::is_lossless(file.metadata())?;
        let stored = |i: usize| {
            let meta = &model.tensors()[i];
            match file.find(&meta.name).filter(|_| is_lossless) {
                Some(found) => type_in(file, found),
                None => stored_type(&meta.name, &meta.dims, settings.intermediate).into(),
            }
        };
        let pre = file.metadata().str("tokenizer.ggml.pre")?.map(str::to_owned);
        let search = MadeWith::read(file.metadata())?.search;
        let settings = &Settings { tokenizer_pre: pre, search, ..settings.clone() };
        let (metadata, warning) = match metadata::of_checkpoint(model, settings, None) {
            Ok(described) => (described.metadata, None),
            Err(error) => {
                let text = format!("metadata are not compared: {error}");
                (file.metadata().clone(), Some(Warning::new(Topic::Config, text)))
            }
        };
        let mut plan = Self::new(&Job::Like(file), model, all(model), &stored, metadata, settings)?;
        plan.warnings.extend(warning);
        Ok(plan)
    }

    /// Plans the quantization of a GGUF file.
    ///
    /// # Errors
    /// Types that fit no tensor, or tensors that are quantized already.
    pub fn of_gguf(source: &GgufSource, settings: &Settings) -> Result<Self, ConvertError> {
        let metadata = metadata::of_gguf(source.metadata(), settings, guessed_file_type(source))?;
        let tied = source.find("output.weight").is_none();
        let facts = || metadata::facts(source.metadata(), &settings.override_kv, tied);
        let job = Job::of(settings.mode, facts)?;
        let stored = |tensor| type_in(source, tensor);
        Self::new(&job, source, all(source), &stored, metadata, settings)
    }

    fn new(
        job: &Job,
        source: &dyn Source,
        order: Vec<usize>,
        stored: &dyn Fn(usize) -> TensorType,
        mut metadata: Metadata,
        settings: &Settings,
    ) -> Result<Self, ConvertError> {
        let imatrix = settings.importance.as_ref().map(|i| i.imatrix.clone());
        let importances = Importances::new(imatrix.as_deref(), source.tensors());
        let tensors = job.tensors(source, order, stored, &importances, settings)?;
        let search = settings.search && tensors.iter().any(PlannedTensor::is_searched_for);
        if search {
            metadata.set_last(ROUNDING, SEARCH);
        }
        let files = cut::files(source, &tensors, &metadata, settings.split)?;
        let mut plan = Self {
            unused: importances.unused().map(str::to_owned).collect(),
            tables: source.table_bytes(),
            budget: settings.memory.unwrap_or_else(default_memory),
            warnings: Pruned::new(&settings.prune_layers).warnings(&metadata),
            further_ends: Vec::new(),
            tensors,
            metadata,
            files,
            split: settings.split.is_some(),
            threads: settings.threads.max(1),
            imatrix,
            recipe: settings.recipe.clone(),
            simd: settings.simd,
            search,
            check: settings.check,
        };
        plan.warnings.extend(plan.own_warnings());
        if settings.search && !search {
            let text = "no tensor gets a type whose scales can be searched for".to_owned();
            plan.warnings.push(Warning::new(Topic::Recipe, text));
        }
        plan.threads = Memory::of([&plan]).threads(plan.threads, plan.budget)?;
        Ok(plan)
    }

    /// The tensors in the order of the file.
    pub fn tensors(&self) -> &[PlannedTensor] {
        &self.tensors
    }

    /// What gave the tensors their types, unless options did.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Tokens that end a text beside those that the metadata names, with their texts.
    pub fn further_ends(&self) -> &[(u32, String)] {
        &self.further_ends
    }

    /// Names of the recipe's rules that fit no tensor.
    pub fn unmatched_rules(&self) -> Vec<&str> {
        let shape = |t| {
            let PlannedTensor { name, dims, stored, .. }: &PlannedTensor = t;
            stored.known().map(|source| Shape { name, dims, source, unmeasured: false })
        };
        self.recipe.unmatched(&self.tensors.iter().filter_map(shape).collect::<Vec<_>>())
    }

    /// The metadata of the file.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The files in order.
    pub fn files(&self) -> &[PlannedFile] {
        &self.files
    }

    /// The file that a tensor goes into.
    pub fn file_of(&self, tensor: usize) -> usize {
        self.files.partition_point(|file| file.tensors.end <= tensor)
    }

    /// The name of a file.
    pub fn path(&self, file: usize, output: &Path) -> PathBuf {
        match self.split {
            true => split_path(output, file, self.files.len()),
            false => output.to_owned(),
        }
    }

    /// Threads that will work.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Bytes of all files together.
    pub fn file_size(&self) -> u64 {
        self.files.iter().map(|file| file.layout.file_size()).sum()
    }

    /// Bytes of a tensor.
    pub fn n_bytes(&self, tensor: usize) -> u64 {
        let file = &self.files[self.file_of(tensor)];
        file.layout.n_bytes(tensor - file.tensors.start)
    }

    /// What guides the encoder in a matrix of a tensor.
    pub(super) fn guide<'a>(&'a self, tensor: &'a PlannedTensor, matrix: usize) -> Guide<'a> {
        match tensor.weighing.as_ref().zip(self.imatrix.as_deref()) {
            Some((weighing, imatrix)) => {
                Guide::Columns(weighing.columns(imatrix, matrix, tensor.n_per_row() as usize))
            }
            None => Guide::Plain,
        }
    }

    /// The importances of a matrix's columns, where an importance matrix has them.
    #[cfg(feature = "eval")]
    pub(crate) fn importances<'a>(
        &'a self,
        tensor: &'a PlannedTensor,
        matrix: usize,
    ) -> Option<&'a [f32]> {
        match self.guide(tensor, matrix) {
            Guide::Columns(importances) => Some(importances),
            _ => None,
        }
    }

    /// Whether a tensor is quantized without the importance matrix, which has no entry for it.
    pub fn is_unweighed(&self, tensor: usize) -> bool {
        let t = &self.tensors[tensor];
        self.imatrix.is_some() && t.weighing.is_none() && t.ty != t.stored && t.ty.is_quantized()
    }

    /// Tensors that are quantized without the importance matrix, although it should have an entry.
    pub fn unweighed(&self) -> impl Iterator<Item = &str> {
        let indices = (0..self.tensors.len()).filter(|&i| self.is_unweighed(i));
        let unexpected = indices.map(|i| &self.tensors[i]).filter(|tensor| !tensor.unweighable);
        unexpected.map(|tensor| tensor.name.as_str())
    }

    /// Entries of the importance matrix that no tensor takes.
    pub fn unused_importance(&self) -> impl Iterator<Item = &str> {
        self.unused.iter().map(String::as_str)
    }

    /// What is not as one would expect of this plan.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// What the recipe and the importance matrix leave open.
    fn own_warnings(&self) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let mut warn = |topic, what: &str, names: Vec<&str>| {
            if !names.is_empty() {
                warnings.push(Warning::new(topic, format!("{what}: {}", in_short(&names))));
            }
        };
        if self.recipe.text() != Recipe::of(self.recipe.file_type()).text() {
            warn(Topic::Recipe, "rules that fit no tensor", self.unmatched_rules());
        }
        warn(Topic::Imatrix, "no entry, quantized without", self.unweighed().collect());
        warn(Topic::Imatrix, "entries without a tensor", self.unused_importance().collect());
        warnings
    }

    /// Weights in all tensors together.
    pub fn n_weights(&self) -> u64 {
        self.tensors.iter().map(PlannedTensor::n_elements).sum()
    }

    /// The tensors of some files.
    pub(super) fn tensors_in(&self, files: Range<usize>) -> Range<usize> {
        match self.files[files]
            .iter()
            .map(|file| file.tensors.clone())
            .reduce(|a, b| a.start..b.end)
        {
            Some(tensors) => tensors,
            None => 0..0,
        }
    }

    /// Bits per weight, over all tensors.
    pub fn bits_per_weight(&self) -> f64 {
        let bytes: u64 = (0..self.tensors.len()).map(|i| self.n_bytes(i)).sum();
        bytes as f64 * 8.0 / self.n_weights().max(1) as f64
    }

    /// The stored tensors that a tensor of the output is made of, and where they lie.
    pub fn pieces(&self, tensor: usize, source: &dyn Source) -> Vec<Origin> {
        let planned = &self.tensors[tensor];
        let per_matrix = match planned.ty {
            TensorType::Known(_) => planned.rows_per_matrix(),
            TensorType::Unknown(_) => planned.n_rows().max(1),
        };
        let rows = (0..planned.n_rows()).step_by(per_matrix as usize);
        let mut pieces: Vec<Origin> = rows.map(|row| source.origin(planned.source, row)).collect();
        pieces.dedup();
        pieces
    }

    /// An upper bound on the resident memory of the run, in bytes, page cache not counted.
    pub fn peak_memory(&self) -> u64 {
        Memory::of([self]).peak(self.threads)
    }

    /// Whether another plan for the same source has the same bytes for a tensor.
    pub(super) fn makes_as(&self, other: &Self, tensor: usize) -> bool {
        let [this, that] = [self, other].map(|plan| {
            let weighed = plan.tensors[tensor].weighing.is_some();
            let imatrix = plan.imatrix.as_ref().filter(|_| weighed).map(Arc::as_ptr);
            (plan.tensors[tensor].ty, plan.search, imatrix)
        });
        this == that
    }
}

/// All tensors, in the order of the source.
fn all(source: &dyn Source) -> Vec<usize> {
    (0..source.tensors().len()).collect()
}

/// What llama.cpp takes for the type of a file that does not say: that of most tensors, marked as
/// a guess (`llama_model_loader`).
fn guessed_file_type(source: &GgufSource) -> u32 {
    const GUESSED: u32 = 1024;
    let mut counts: Vec<(QuantType, usize)> = Vec::new();
    for meta in source.tensors() {
        let Dtype::Gguf(ty) = meta.dtype else { continue };
        match counts.iter_mut().find(|(known, _)| *known == ty) {
            Some((_, n)) => *n += 1,
            None => counts.push((ty, 1)),
        }
    }
    // Of two types as frequent, the first that was seen.
    let most = counts.iter().rev().max_by_key(|(_, n)| *n).map(|(ty, _)| *ty);
    let file_type = most.and_then(FileType::of_type);
    file_type.unwrap_or(FileType::F32).id() | GUESSED
}

/// A sixteenth of the memory that may be used, at least 1 GiB where that leaves a quarter.
fn default_memory() -> u64 {
    memory().usable().map_or(1 << 30, |all| (all / 16).max((1 << 30).min(all / 4 * 3)))
}

/// A header is held in the metadata, in the layout, and in the planned tensors.
fn header_memory(file: &PlannedFile) -> u64 {
    8 * file.layout.header().len() as u64
}

/// Elements of the largest unit of a tensor.
pub(super) fn unit_elements(tensor: &PlannedTensor) -> u64 {
    UNIT_ELEMENTS.max(tensor.n_per_row()).min(tensor.n_per_row() * tensor.n_rows())
}

/// The type of a tensor in the reference converter's output (`ModelBase.prepare_tensors`).
fn stored_type(name: &str, dims: &[u64], intermediate: Intermediate) -> QuantType {
    match intermediate {
        Intermediate::Bf16 if !is_precise(name, dims) => QuantType::BF16,
        _ => QuantType::F32,
    }
}

/// Whether a tensor is F32 in every file.
pub(super) fn is_precise(name: &str, dims: &[u64]) -> bool {
    dims.len() <= 1
        || name.ends_with("_norm.weight")
        || name.ends_with("ffn_gate_inp.weight")
        || name.ends_with("indexer.proj.weight")
        || !name.ends_with(".weight")
}
