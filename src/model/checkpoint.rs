//! A checkpoint seen under GGUF's tensor names and in GGUF's shapes.
//!
//! Experts appear stacked, `kv_b_proj` split into its key and value parts; values are computed
//! row by row from the checkpoint when they are read.

use super::Mtp;
use super::arch::Arch;
use super::config::Config;
use super::error::ModelError;
use super::hparams::{Attention, Hparams, Mla};
use super::inventory::{From, TensorSpec};
use super::left_out::{LeftOut, Rules, kind, mtp_layers};
use super::{agree, arch, settings};
use crate::gguf::Metadata;
use crate::names::runs;
use crate::quant::QuantType;
use crate::simd::Simd;
use crate::source::{
    Checkpoint, Dtype, Factors, Folder, Origin, Source, SourceError, SourceFile, Storage,
    TensorMeta, table_bytes,
};
use crate::tensor::{Kind, TensorName};
use crate::warning::{Topic, Warning};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::Path;

/// [`From`] with names resolved to the checkpoint's tensor indices.
enum Resolved {
    Whole(usize),
    Stack(Vec<usize>),
    HeadRows {
        from: usize,
        head_rows: u64,
        first: u64,
    },
    HeadsTransposed {
        from: usize,
        head_rows: u64,
    },
    Rotated {
        from: usize,
        head_rows: u64,
    },
    Computed(Vec<f32>),
    /// What the blocks of a tensor of this model lack: factors of its weights, or of activations.
    Factors {
        of: usize,
        activations: bool,
        values: Vec<f32>,
    },
}

impl Resolved {
    /// The checkpoint tensors that it is made of.
    fn parts(&self) -> &[usize] {
        match self {
            Self::Whole(i)
            | Self::HeadRows { from: i, .. }
            | Self::HeadsTransposed { from: i, .. }
            | Self::Rotated { from: i, .. } => std::slice::from_ref(i),
            Self::Stack(all) => all,
            Self::Computed(_) | Self::Factors { .. } => &[],
        }
    }

    /// Those that it is made of row by row, if it is.
    fn by_rows(&self) -> &[usize] {
        match self {
            Self::HeadRows { .. } | Self::HeadsTransposed { .. } => &[],
            _ => self.parts(),
        }
    }
}

/// A checkpoint of a supported architecture.
pub struct CheckpointModel {
    config: Config,
    hparams: Hparams,
    checkpoint: Checkpoint,
    metas: Vec<TensorMeta>,
    pieces: Vec<Resolved>,
    by_name: HashMap<String, usize>,
    left_out: BTreeMap<LeftOut, Vec<String>>,
    warnings: Vec<Warning>,
}

impl CheckpointModel {
    /// Opens a checkpoint folder and finds every tensor that its configuration calls for.
    ///
    /// # Errors
    /// A damaged checkpoint, an unsupported class, a tensor that is missing, of another shape
    /// than the configuration says, or without a place in the architecture.
    pub fn open(dir: &Path, mtp: Mtp) -> Result<Self, ModelError> {
        Self::open_in(Folder::local(dir), mtp)
    }

    /// [`CheckpointModel::open`] for a folder that may be elsewhere.
    ///
    /// # Errors
    /// As [`CheckpointModel::open`], and what the remote store says.
    pub fn open_in(folder: Folder, mtp: Mtp) -> Result<Self, ModelError> {
        Self::open_as(folder, mtp, Mla::default())
    }

    /// [`CheckpointModel::open_in`] with a choice of how latent attention is seen. The forward pass
    /// needs [`Mla::Split`].
    ///
    /// # Errors
    /// As [`CheckpointModel::open_in`].
    pub fn open_as(folder: Folder, mtp: Mtp, mla: Mla) -> Result<Self, ModelError> {
        let config = Config::open(folder.dir())?;
        let explain = |error| agree::explain(error, &config);
        Self::build(config.clone(), folder, mtp, mla).map_err(explain)
    }

    fn build(config: Config, folder: Folder, mtp: Mtp, mla: Mla) -> Result<Self, ModelError> {
        let mut hparams = Hparams::from_config(&config)?;
        if let Attention::Latent(latent) = &mut hparams.attention {
            latent.mla = mla;
        }
        let mut warnings = settings::warnings(&config)?;
        let checkpoint = Checkpoint::open(folder)?;
        let names = checkpoint.left();
        let tied = config.bool_opt("tie_word_embeddings")?;
        let own = hparams.arch.row().names;
        let headless = !names.iter().any(|name| name == own.output);
        if tied.is_none() && headless {
            let text = format!(
                "{}: `tie_word_embeddings` is missing, and so is `{}`: the embedding serves as output \
                 matrix",
                config.path().display(),
                own.output
            );
            warnings.push(Warning::new(Topic::Config, text));
        }
        let mut rules = Rules {
            names: own,
            mtp: mtp_layers(own, names.iter().map(String::as_str), hparams.n_layer),
            // transformers' default is untied for every class served here, but that leaves a model
            // without an output.
            tied: tied.unwrap_or(headless),
            trunk: 0,
        };
        hparams.n_nextn = match mtp {
            Mtp::Drop => 0,
            Mtp::Usual if hparams.arch != Arch::DeepSeek32 => 0,
            // Checkpoints that were stored anew may not say that they have one.
            _ => hparams.n_nextn.max(rules.mtp.len() as u32),
        };
        if mtp == Mtp::Only {
            if hparams.n_nextn == 0 {
                let expected = "at least 1, where that layer alone is wanted";
                return Err(config.bad("num_nextn_predict_layers", expected));
            }
            rules.trunk = hparams.n_layer;
        }
        rules.mtp.retain(|&layer| layer >= hparams.n_layer + hparams.n_nextn);
        let mut model = Self {
            config,
            hparams,
            checkpoint,
            metas: Vec::new(),
            pieces: Vec::new(),
            by_name: HashMap::new(),
            left_out: BTreeMap::new(),
            warnings,
        };
        for spec in model.outer_tensors(rules.tied)? {
            model.add(spec)?;
        }
        for layer in rules.trunk..model.hparams.n_layer + model.hparams.n_nextn {
            for spec in model.hparams.layer_tensors(layer) {
                model.add(spec)?;
            }
        }
        rules.tied &= model.checkpoint.find(own.output).is_none();
        if tied == Some(true) && agree::head_differs(&model.checkpoint, own)? {
            let text = format!(
                "{}: `tie_word_embeddings` is true, but `{}` is another matrix than the embedding; it is \
                 kept, as the reference converter does, where transformers would take the embedding",
                model.config.path().display(),
                own.output
            );
            model.warnings.push(Warning::new(Topic::Config, text));
        }
        model.leave_out(&rules)?;
        model.warnings.extend(model.checkpoint.warnings());
        Ok(model)
    }

    /// Sorts what no tensor of the model is made of into what is left out and what must not be.
    fn leave_out(&mut self, rules: &Rules) -> Result<(), ModelError> {
        let mut beyond = BTreeSet::new();
        let kept = self.hparams.n_layer + self.hparams.n_nextn;
        for name in self.checkpoint.left() {
            match kind(&name, rules) {
                Some(kind) => self.left_out.entry(kind).or_default().push(name),
                None => match rules.names.layer_of(&name).filter(|&layer| layer >= kept) {
                    Some(layer) => drop(beyond.insert(layer)),
                    None => return Err(self.unknown(name)),
                },
            }
        }
        match beyond.is_empty() {
            true => Ok(()),
            false => Err(ModelError::MoreLayers {
                path: self.config.path().to_owned(),
                n_layer: self.hparams.n_layer,
                found: runs(beyond),
            }),
        }
    }

    /// A tensor that has no place.
    fn unknown(&mut self, tensor: String) -> ModelError {
        if let Some(error) = self.checkpoint.objection(&tensor) {
            return error.into();
        }
        let path = self.checkpoint.file_with(&tensor).unwrap_or(self.checkpoint.dir()).to_owned();
        ModelError::UnknownTensor { path, tensor }
    }

    /// The tensors outside of the layers.
    fn outer_tensors(&self, tied: bool) -> Result<Vec<TensorSpec>, ModelError> {
        let mut specs = self.hparams.outer_tensors();
        // The reference keeps an output matrix that is there, although it is tied, except for
        // this family.
        specs.retain(|spec| {
            let is_latent = matches!(self.hparams.attention, Attention::Latent(_));
            spec.name.kind != Kind::Output || !tied || !is_latent
        });
        let output = specs.iter_mut().filter(|spec| spec.name.kind == Kind::Output);
        output.for_each(|spec| spec.optional = tied);
        if let Some(factors) = arch::decoder::rope_factors(&self.config, &self.hparams)? {
            let name = TensorName::weight(None, Kind::RopeFreqs);
            let dims = [factors.len() as u64];
            specs.push(TensorSpec::new(name, &dims, From::Computed(factors)));
        }
        Ok(specs)
    }

    fn add(&mut self, spec: TensorSpec) -> Result<(), ModelError> {
        let TensorSpec { name, dims, from, optional } = spec;
        let name = name.to_string();
        let mut find = |from: &str, expected: &[u64]| -> Result<Option<usize>, ModelError> {
            let Some(i) = self.checkpoint.take(from)? else {
                if optional {
                    return Ok(None);
                }
                return Err(match self.checkpoint.objection(from) {
                    Some(error) => error.into(),
                    None => ModelError::MissingTensor {
                        path: self.checkpoint.dir().to_owned(),
                        tensor: from.to_owned(),
                    },
                });
            };
            let found = &self.checkpoint.tensors()[i].dims;
            if found != expected {
                return Err(ModelError::Shape {
                    path: self.checkpoint.path_of(i).to_owned(),
                    tensor: from.to_owned(),
                    found: found.iter().rev().copied().collect(),
                    expected: expected.iter().rev().copied().collect(),
                });
            }
            Ok(Some(i))
        };
        let resolved = match from {
            From::Whole(from) => match find(&from, &dims)? {
                Some(i) => Resolved::Whole(i),
                None => return Ok(()),
            },
            From::Stack { prefix, suffix } => {
                let mut indices = Vec::new();
                for expert in 0..dims[2] {
                    indices.extend(find(&format!("{prefix}{expert}{suffix}"), &dims[..2])?);
                }
                Resolved::Stack(indices)
            }
            From::Rotated { from, head_rows } => match find(&from, &dims)? {
                Some(from) => Resolved::Rotated { from, head_rows },
                None => return Ok(()),
            },
            From::Computed(values) => Resolved::Computed(values),
            From::HeadRows { from, head_rows, first } => {
                match find(&from, &[dims[0], head_rows.saturating_mul(dims[2])])? {
                    Some(from) => Resolved::HeadRows { from, head_rows, first },
                    None => return Ok(()),
                }
            }
            From::HeadsTransposed { from, head_rows } => {
                match find(&from, &[dims[1], head_rows.saturating_mul(dims[2])])? {
                    Some(from) => Resolved::HeadsTransposed { from, head_rows },
                    None => return Ok(()),
                }
            }
        };
        let dtype = match (&resolved, resolved.parts().first()) {
            (Resolved::Computed(_), _) => Dtype::Gguf(QuantType::F32),
            (_, Some(&part)) => self.checkpoint.tensors()[part].dtype,
            (_, None) => return Ok(()),
        };
        self.push(TensorMeta { name, dims, dtype }, resolved);
        Ok(())
    }

    fn push(&mut self, meta: TensorMeta, piece: Resolved) {
        self.by_name.insert(meta.name.clone(), self.metas.len());
        self.metas.push(meta);
        self.pieces.push(piece);
    }

    /// Shows coded weights that GGUF has the same blocks for as these, which takes reading the scales of
    /// integers: [`CheckpointModel::keep_blocks`] where more than headers decides.
    ///
    /// # Errors
    /// Scales that cannot be read, or are no numbers.
    pub fn keep_exact(&mut self) -> Result<(), SourceError> {
        (0..self.checkpoint.tensors().len()).try_for_each(|i| self.checkpoint.settle(i))?;
        self.keep_blocks()
    }

    /// Whether a tensor's blocks are said to be for activations of 16 bits: ModelOpt's W4A16, which
    /// convert_hf_to_gguf.py hands on.
    pub fn is_for_16_bits(&self, tensor: usize) -> bool {
        let first = self.pieces[tensor].by_rows().first();
        let Some(&first) = first.filter(|_| self.kept(tensor) == Some(QuantType::NVFP4)) else {
            return false;
        };
        let name = &self.checkpoint.tensors()[first].name;
        // Experts are asked for together.
        let module = match self.pieces[tensor] {
            Resolved::Stack(_) => name.replace(".experts.0.", ".experts."),
            _ => name.clone(),
        };
        let module = module.strip_suffix(".weight").unwrap_or(&module);
        self.checkpoint.algorithm(module) == Some("W4A16_NVFP4")
    }

    /// Whether a tensor is stored in a coding, shown as blocks or not.
    pub fn is_coded(&self, tensor: usize) -> bool {
        let first = self.pieces[tensor].parts().first();
        first.is_some_and(|&i| matches!(self.checkpoint.tensors()[i].dtype, Dtype::Coded(_)))
    }

    /// Shows coded weights that GGUF has blocks for (NVFP4, MXFP4) as these, with the factors of whole tensors
    /// as tensors of their own (`.scale`, `.input_scale`), as convert_hf_to_gguf.py stores them.
    /// Without this, the factors are multiplied in and the weights seen as f32.
    ///
    /// # Errors
    /// Factors that cannot be read.
    pub fn keep_blocks(&mut self) -> Result<(), SourceError> {
        for tensor in 0..self.metas.len() {
            let from = self.pieces[tensor].by_rows();
            let blocks = |&i: &usize| match self.checkpoint.tensors()[i].dtype {
                Dtype::Coded(_) => self.checkpoint.blocks(i),
                Dtype::Gguf(_) | Dtype::Opaque(_) => None,
            };
            let Some(ty) = from.first().and_then(blocks) else { continue };
            if !from.iter().all(|i| blocks(i) == Some(ty)) {
                continue;
            }
            let factors: Vec<Factors> =
                from.iter().map(|&i| self.checkpoint.factors(i)).collect::<Result<_, _>>()?;
            let stacked = matches!(self.pieces[tensor], Resolved::Stack(_));
            // The factors of activations are kept with them.
            let kept: Vec<&str> =
                from.iter().filter_map(|&i| self.checkpoint.input_scale(i)).collect();
            if let Some(scales) = self.left_out.get_mut(&LeftOut::ActivationScales) {
                scales.retain(|name| !kept.contains(&name.as_str()));
            }
            self.metas[tensor].dtype = Dtype::Gguf(ty);
            let name = self.metas[tensor].name.clone();
            let stem = name.strip_suffix(".weight").unwrap_or(&name);
            for (which, suffix) in ["scale", "input_scale"].into_iter().enumerate() {
                let values = factors.iter().map(|all| [all.weights, all.activations][which]);
                let values: Vec<f32> = values.collect();
                // As the reference has it, for one and for many.
                let near = if stacked { 1.1e-5 } else { 1e-6 };
                if values.iter().all(|&x| (f64::from(x) - 1.0).abs() < near) {
                    continue;
                }
                let (name, dims) = (format!("{stem}.{suffix}"), vec![values.len() as u64]);
                let meta = TensorMeta { name, dims, dtype: Dtype::Gguf(QuantType::F32) };
                self.push(meta, Resolved::Factors { of: tensor, activations: which == 1, values });
            }
        }
        Ok(())
    }

    /// The type of blocks as which a tensor's coded weights are shown, after
    /// [`CheckpointModel::keep_blocks`].
    pub fn kept(&self, tensor: usize) -> Option<QuantType> {
        let Dtype::Gguf(ty) = self.metas[tensor].dtype else { return None };
        let &from = self.pieces[tensor].by_rows().first()?;
        matches!(self.checkpoint.tensors()[from].dtype, Dtype::Coded(_)).then_some(ty)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        self.checkpoint.dir()
    }

    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its hyper-parameters.
    pub fn hparams(&self) -> &Hparams {
        &self.hparams
    }

    /// Checkpoint tensors that are left out, by why, those of files that are not here included.
    pub fn left_out(&self) -> &BTreeMap<LeftOut, Vec<String>> {
        &self.left_out
    }

    /// Its hyper-parameters as the metadata of a GGUF file has them.
    ///
    /// # Errors
    /// A setting that GGUF has no place for.
    pub fn described(&self) -> Result<Metadata, ModelError> {
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", self.hparams.arch.name());
        self.hparams.write_keys(&self.config, 0, &mut metadata)?;
        metadata.remove("general.file_type");
        Ok(metadata)
    }

    /// What is not as one would expect of its configuration and tensors.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Sets the instructions to decode with, instead of the fastest of this machine.
    pub fn set_simd(&mut self, simd: Simd) {
        self.checkpoint.set_simd(simd);
    }

    /// The checkpoint as it is stored.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Bytes of the weights as stored, scales included and dropped tensors left out.
    pub fn n_bytes(&self) -> u64 {
        (0..self.checkpoint.tensors().len()).map(|i| self.checkpoint.stored_bytes(i)).sum()
    }

    /// The tensors in the order of the reference converter's output: that of the checkpoint, a
    /// stack of experts at the last of its layer's, what is computed first.
    pub fn converter_order(&self) -> Vec<usize> {
        let places = |tensor: usize| {
            self.pieces[tensor].parts().iter().map(|&i| self.checkpoint.position(i))
        };
        let place = |tensor: usize| places(tensor).max();
        let layer_stacks = |tensor: usize| {
            let (layer, _) = self.metas[tensor].name.split_once(".ffn_")?;
            let of_layer = (0..self.metas.len()).filter(|&i| {
                self.metas[i].name.strip_prefix(layer).is_some_and(|rest| rest.starts_with(".ffn_"))
                    && matches!(self.pieces[i], Resolved::Stack(_))
            });
            of_layer.filter_map(place).max()
        };
        let key = |&tensor: &usize| {
            let (of, part) = match &self.pieces[tensor] {
                Resolved::Factors { of, activations, .. } => (*of, 1 + u8::from(*activations)),
                _ => (tensor, 0),
            };
            // Blocks go ahead of the rest: single tensors, then stacks by their first expert.
            if self.kept(of).is_some() {
                let stack = u8::from(matches!(self.pieces[of], Resolved::Stack(_)));
                return (stack, places(of).min(), String::new(), part);
            }
            let name = &self.metas[tensor].name;
            let place = match &self.pieces[tensor] {
                Resolved::Stack(_) => layer_stacks(tensor),
                _ => place(tensor),
            };
            // Made of the same: keys before values; down, gate, up, as the alphabet has it.
            (2, place, name.clone(), 0)
        };
        let mut order: Vec<usize> = (0..self.metas.len()).collect();
        order.sort_by_cached_key(key);
        order
    }

    /// Calls `each` with the checkpoint tensor, its rows and the output elements for every
    /// contiguous run of the rows asked for.
    fn runs(
        &self,
        tensor: usize,
        rows: Range<u64>,
        mut each: impl FnMut(usize, Range<u64>, Range<usize>) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        let meta = &self.metas[tensor];
        let n = meta.n_per_row() as usize;
        let per_matrix = meta.dims.get(1).copied().unwrap_or(1);
        let mut row = rows.start;
        while row < rows.end {
            let (matrix, in_matrix) = (row / per_matrix, row % per_matrix);
            let (from, first, available) = match &self.pieces[tensor] {
                Resolved::Whole(i) => (*i, row, rows.end - row),
                Resolved::Stack(all) => (all[matrix as usize], in_matrix, per_matrix - in_matrix),
                Resolved::HeadRows { from, head_rows, first } => {
                    (*from, matrix * head_rows + first + in_matrix, per_matrix - in_matrix)
                }
                // A transposed row is a column of its head: each needs all of the head's rows.
                Resolved::HeadsTransposed { from, head_rows } => {
                    (*from, matrix * head_rows, per_matrix - in_matrix)
                }
                // The elements of a bias are one row.
                Resolved::Rotated { from, .. } if meta.dims.len() == 1 => (*from, row, 1),
                Resolved::Rotated { from, head_rows } => (*from, rotated(row, *head_rows), 1),
                Resolved::Computed(_) | Resolved::Factors { .. } => return Ok(()),
            };
            let count = available.min(rows.end - row);
            let at = (row - rows.start) as usize * n;
            let stored = match &self.pieces[tensor] {
                Resolved::HeadsTransposed { .. } => first..first + meta.dims[0],
                _ => first..first + count,
            };
            each(from, stored, at..at + count as usize * n)?;
            row += count;
        }
        Ok(())
    }
}

/// The stored row that becomes row `row` where halves of heads become neighbours.
fn rotated(row: u64, head_rows: u64) -> u64 {
    let in_head = row % head_rows;
    row - in_head + in_head / 2 + in_head % 2 * (head_rows / 2)
}

impl Source for CheckpointModel {
    fn tensors(&self) -> &[TensorMeta] {
        &self.metas
    }

    fn read_rows(&self, tensor: usize, first_row: u64, out: &mut [f32]) -> Result<(), SourceError> {
        let meta = &self.metas[tensor];
        let n = meta.n_per_row() as usize;
        let rows = first_row..first_row + (out.len() / n) as u64;
        if let Some(ty) = self.kept(tensor) {
            let mut blocks = Vec::new();
            self.read_raw(tensor, rows.clone(), &mut blocks)?;
            let decoded = ty.decode_rows_with(self.checkpoint.simd(), &blocks, n, out);
            return decoded.map_err(|error| {
                let Origin { path, tensor } = self.origin(tensor, first_row);
                SourceError::Decode { path, tensor, error }
            });
        }
        let transposed = matches!(self.pieces[tensor], Resolved::HeadsTransposed { .. });
        match &self.pieces[tensor] {
            Resolved::Computed(values) | Resolved::Factors { values, .. } => {
                out.copy_from_slice(values);
                return Ok(());
            }
            Resolved::Rotated { from, head_rows } if meta.dims.len() == 1 => {
                let mut stored = vec![0.0; n];
                self.checkpoint.read_rows(*from, 0, &mut stored)?;
                for (i, value) in (0..).zip(out) {
                    *value = stored[rotated(i, *head_rows) as usize];
                }
                return Ok(());
            }
            _ => {}
        }
        let mut head = Vec::new();
        let mut row = first_row;
        self.runs(tensor, rows, |from, stored, range| {
            let out = &mut out[range];
            if !transposed {
                return self.checkpoint.read_rows(from, stored.start, out);
            }
            let width = meta.dims[1] as usize;
            head.resize(n * width, 0.0);
            self.checkpoint.read_rows(from, stored.start, &mut head)?;
            let first_column = (row % meta.dims[1]) as usize;
            for (i, out) in out.chunks_exact_mut(n).enumerate() {
                for (j, value) in out.iter_mut().enumerate() {
                    *value = head[j * width + first_column + i];
                }
            }
            row += (out.len() / n) as u64;
            Ok(())
        })
    }

    fn read_raw(
        &self,
        tensor: usize,
        rows: Range<u64>,
        out: &mut Vec<u8>,
    ) -> Result<bool, SourceError> {
        let Some(ty) = self.kept(tensor) else { return Ok(false) };
        let bytes = |elements: usize| elements / ty.block_len() * ty.block_bytes();
        let n_rows = (rows.end - rows.start) as usize;
        out.resize(bytes(n_rows * self.metas[tensor].dims[0] as usize), 0);
        self.runs(tensor, rows, |from, stored, range| {
            let out = &mut out[bytes(range.start)..bytes(range.end)];
            self.checkpoint.read_blocks(from, stored, out).map(|_| ())
        })?;
        Ok(true)
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }
}

impl Storage for CheckpointModel {
    fn granule(&self, tensor: usize) -> u64 {
        match self.pieces[tensor] {
            Resolved::HeadsTransposed { .. } => self.metas[tensor].dims[1],
            _ => 1,
        }
    }

    fn prefetch(&self, tensor: usize, rows: Range<u64>) {
        let told = self.runs(tensor, rows, |from, stored, _| {
            self.checkpoint.prefetch(from, stored);
            Ok(())
        });
        debug_assert!(told.is_ok(), "a hint reads nothing");
    }

    fn release(&self, tensor: usize, rows: Range<u64>) {
        let released = self.runs(tensor, rows, |from, stored, _| {
            self.checkpoint.release(from, stored);
            Ok(())
        });
        debug_assert!(released.is_ok(), "releasing pages reads nothing");
    }

    fn origin(&self, tensor: usize, row: u64) -> Origin {
        let mut origin = None;
        let found = self.runs(tensor, row..row + 1, |from, stored, _| {
            origin = Some(self.checkpoint.origin(from, stored.start));
            Ok(())
        });
        debug_assert!(found.is_ok(), "finding a row reads nothing");
        origin.unwrap_or_else(|| Origin {
            path: self.config.path().to_owned(),
            tensor: self.metas[tensor].name.clone(),
        })
    }

    fn files(&self) -> Vec<SourceFile> {
        self.checkpoint.files()
    }

    fn file_of(&self, tensor: usize) -> usize {
        let mut file = 0;
        let found = self.runs(tensor, 0..1, |from, _, _| {
            file = self.checkpoint.file_of(from);
            Ok(())
        });
        debug_assert!(found.is_ok(), "finding a row reads nothing");
        file
    }

    fn table_bytes(&self) -> u64 {
        self.checkpoint.table_bytes() + table_bytes(&self.metas)
    }

    fn met(&self) -> Vec<Warning> {
        self.checkpoint.met()
    }
}
