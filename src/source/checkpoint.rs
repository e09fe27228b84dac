//! Hugging Face checkpoints: safetensors files, sharded or single, plain, FP8 with scales of any
//! shape, or NVFP4 as ModelOpt stores it.
//!
//! It knows how such a folder is stored, not what model it holds. Tensors are made readable one by
//! one, as they are asked for: everything that headers can tell of them is checked then, and what
//! nobody asks for may be missing or stored in any way. Only values remain for reading.

use super::coding::scale;
use super::coding::unread;
use super::coding::{self, CODINGS, Coded, Factors, Part, Tensors};
use super::declared::Declared;
use super::error::{CheckpointError, SourceError};
use super::folder::Folder;
use super::shards::{Shards, Stored};
use super::{Dtype, Origin, Source, SourceFile, Storage, TensorMeta, table_bytes};
use crate::names::few;
use crate::quant::QuantType;
use crate::simd::Simd;
use crate::warning::{Topic, Warning};
use safetensors::tensor::Dtype as StDtype;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

/// Methods under which weights are known to be stored values times scales.
const MULTIPLYING: [&str; 5] = ["fp8", "fbgemm_fp8", "compressed-tensors", "modelopt", "quark"];

/// An opened checkpoint folder. Shapes are innermost first, and scales are folded into the tensors that
/// they scale.
pub struct Checkpoint {
    folder: Folder,
    shards: Shards,
    declared: Declared,
    metas: Vec<TensorMeta>,
    coded: Vec<Box<dyn Coded>>,
    by_name: HashMap<String, usize>,
    /// Names of tensors that have been made readable, and of their scales.
    taken: HashSet<String>,
}

impl Checkpoint {
    /// Opens the folder, reads every shard's header and compares headers and index.
    ///
    /// # Errors
    /// A folder without weights, a damaged index, damaged shards where no index says what else there is.
    pub fn open(folder: Folder) -> Result<Self, CheckpointError> {
        let declared = Declared::of(folder.dir())?;
        let shards = Shards::open(&folder)?;
        Ok(Self {
            folder,
            shards,
            declared,
            metas: Vec::new(),
            coded: Vec::new(),
            by_name: HashMap::new(),
            taken: HashSet::new(),
        })
    }

    /// Makes a tensor readable and returns its index; `None` where no file that is here holds it.
    ///
    /// # Errors
    /// Dtypes that are not read, scales that are missing or of the wrong shape, two different
    /// tensors of this name.
    pub fn take(&mut self, name: &str) -> Result<Option<usize>, CheckpointError> {
        if let Some(&known) = self.by_name.get(name) {
            return Ok(Some(known));
        }
        let claimed = match self.claim(name) {
            Ok(None) => return Ok(None),
            Ok(Some(claimed)) => claimed,
            Err(CheckpointError::MissingScale { path, tensor, scale }) => {
                // It may be in a file that is not here.
                let names = scale::names(name).into_iter();
                let absent = names.into_iter().find_map(|n| self.shards.why_missing(&n));
                let missing = CheckpointError::MissingScale { path, tensor, scale };
                return Err(absent.unwrap_or(missing));
            }
            Err(error) => return Err(error),
        };
        let coding::Claimed { dtype, dims, coded } = claimed;
        self.taken.insert(name.to_owned());
        self.taken.insert(coded.values().name.clone());
        self.taken.extend(coded.beside().into_iter().map(|part| part.name.clone()));
        self.taken.extend(coded.without_use());
        self.by_name.insert(name.to_owned(), self.metas.len());
        self.metas.push(TensorMeta { name: name.to_owned(), dims, dtype });
        self.coded.push(coded);
        Ok(Some(self.metas.len() - 1))
    }

    /// Asks every coding.
    fn claim(&self, name: &str) -> Result<Option<coding::Claimed>, CheckpointError> {
        let tensors = Tensors { shards: &self.shards, declared: &self.declared };
        let stored = self.shards.find(name)?;
        for claim in CODINGS {
            if let Some(claimed) = claim(&tensors, name, stored)? {
                return Ok(Some(claimed));
            }
        }
        stored.map_or(Ok(None), |stored| Err(self.unreadable(name, stored)))
    }

    /// Why a tensor that is here is not read.
    fn unreadable(&self, name: &str, stored: &Stored) -> CheckpointError {
        let dtype = stored.info.dtype;
        let (path, tensor) = (self.shards.path_of(stored).to_owned(), name.to_owned());
        let integers = matches!(dtype, StDtype::U8 | StDtype::I8 | StDtype::I32 | StDtype::U32);
        let format = self.packed_beside(name).map(|(_, format)| format);
        match format.or_else(|| self.declared.method.clone().filter(|_| integers)) {
            Some(format) => CheckpointError::Packed { path, tensor, format },
            None => CheckpointError::Dtype { path, tensor, dtype: format!("{dtype:?}") },
        }
    }

    /// A tensor of a format that packs weights, which is this one or belongs to it by its name.
    fn packed_beside(&self, name: &str) -> Option<(&str, String)> {
        let format = |name| Some((name, unread::format(name, &self.declared)?));
        let stem = name.strip_suffix("weight").unwrap_or(name);
        let names = self.shards.stored.keys().filter(|stored| stored.starts_with(stem));
        names.filter_map(|stored| format(stored.as_str())).min()
    }

    /// Why a tensor is not here, or why one that is has no use, as far as it is a matter of how
    /// checkpoints are stored.
    pub fn objection(&mut self, name: &str) -> Option<CheckpointError> {
        if let Some((packed, format)) = self.packed_beside(name) {
            let (tensor, path) = (packed.to_owned(), self.shards.stored[packed].first());
            let path = path.map_or(self.dir(), |stored| self.shards.path_of(stored)).to_owned();
            return Some(CheckpointError::Packed { path, tensor, format });
        }
        let Some(stored) = self.shards.stored.get(name).and_then(|copies| copies.first()) else {
            return self.shards.why_missing(name);
        };
        let path = self.shards.path_of(stored).to_owned();
        let weight = scale::scaled(name).filter(|weight| self.shards.stored.contains_key(weight));
        weight.map(|_| CheckpointError::StrayScale { path, tensor: name.to_owned() })
    }

    /// Names of tensors that have not been made readable, in order: those of files that are here, and
    /// those of files that should be by the index.
    pub fn left(&self) -> Vec<String> {
        let names = self.shards.stored.keys().chain(self.shards.absent.keys());
        let mut names: Vec<String> =
            names.filter(|name| !self.taken.contains(*name)).cloned().collect();
        names.sort_unstable();
        names
    }

    /// The file that holds a tensor of any dtype, readable or not.
    pub fn file_with(&self, name: &str) -> Option<&Path> {
        let copies = self.shards.stored.get(name)?;
        copies.first().map(|stored| self.shards.path_of(stored))
    }

    /// Files that by the index hold tensors and do not exist.
    pub fn missing_files(&self) -> impl Iterator<Item = &Path> {
        let missing = self.shards.unopened.iter().filter(|file| file.missing);
        missing.map(|file| file.path.as_path())
    }

    /// What is not as one would expect, once everything that is needed has been made readable.
    pub fn warnings(&self) -> Vec<Warning> {
        let shards = &self.shards;
        let mut warnings = shards.warnings.clone();
        let damaged = shards.unopened.iter().filter(|file| !file.missing);
        for error in damaged.filter_map(|file| file.error.as_ref()).chain(&shards.incomplete) {
            let text = format!("{error}; nothing that is needed is in there");
            warnings.push(Warning::new(Topic::Tensors, text));
        }
        let scaled: Vec<&str> = self
            .metas
            .iter()
            .filter(|meta| matches!(meta.dtype, Dtype::Coded(_)))
            .map(|meta| meta.name.as_str())
            .collect();
        let config = self.dir().join("config.json");
        let config = config.display();
        let text = match &self.declared.method {
            Some(method) if scaled.is_empty() => {
                format!("{config}: declares weights quantized by {method}, and none is")
            }
            Some(method) if !MULTIPLYING.contains(&method.as_str()) => format!(
                "{config}: {method} is no format that is known; weights are taken as their stored \
                 values times their scales: {}",
                few(&scaled)
            ),
            None if !scaled.is_empty() => format!(
                "{config}: declares no quantization, and these are quantized; their scales are \
                 applied: {}",
                few(&scaled)
            ),
            _ => return warnings,
        };
        warnings.push(Warning::new(Topic::Config, text));
        warnings
    }

    /// The local folder that holds the small files.
    pub fn dir(&self) -> &Path {
        self.folder.dir()
    }

    /// The file that a tensor lies in.
    pub fn path_of(&self, tensor: usize) -> &Path {
        &self.shards.files[self.file_of(tensor)].path
    }

    /// Sets the instructions to decode with, instead of the fastest of this machine.
    pub fn set_simd(&mut self, simd: Simd) {
        self.shards.simd = simd;
    }

    /// The instructions to decode with.
    pub fn simd(&self) -> Simd {
        self.shards.simd
    }

    /// The type of the first matrix that has 16 bits, in the order of the files; what the reference
    /// converter takes for `--outtype auto`.
    pub fn half_type(&self) -> Option<QuantType> {
        let tensors =
            self.shards.stored.iter().flat_map(|(name, copies)| copies.iter().zip([name]));
        let halves = tensors.filter_map(|(stored, name)| match stored.info.dtype {
            StDtype::BF16 => Some((stored, name, QuantType::BF16)),
            StDtype::F16 => Some((stored, name, QuantType::F16)),
            _ => None,
        });
        let matrices = halves.filter(|(stored, ..)| stored.info.shape.len() >= 2);
        let first = matrices.min_by_key(|(stored, name, _)| (stored.shard, *name));
        first.map(|(.., ty)| ty)
    }

    /// A tensor's place in the order of the reference converter: whether it gets another name there, the
    /// number of its shard, and its name.
    pub fn position(&self, tensor: usize) -> (bool, usize, &str) {
        let coded = &self.coded[tensor];
        (coded.is_moved(), coded.values().shard, &coded.values().name)
    }

    /// Bytes of all shards together.
    pub fn n_bytes(&self) -> u64 {
        self.shards.n_bytes()
    }

    /// Bytes of a tensor as stored, its scales included.
    pub fn stored_bytes(&self, tensor: usize) -> u64 {
        let coded = &self.coded[tensor];
        coded.values().n_bytes() + coded.beside().into_iter().map(Part::n_bytes).sum::<u64>()
    }

    /// The GGUF type as which a tensor's rows can be had byte for byte, but for its
    /// [factors](Checkpoint::factors).
    pub fn blocks(&self, tensor: usize) -> Option<QuantType> {
        Some(self.coded[tensor].blocks()?.ty())
    }

    /// Reads whole rows as blocks of the type that [`Checkpoint::blocks`] names; `false` where there is
    /// none.
    ///
    /// # Errors
    /// When they cannot be read, and scales that are NaN.
    pub fn read_blocks(
        &self,
        tensor: usize,
        rows: Range<u64>,
        out: &mut [u8],
    ) -> Result<bool, SourceError> {
        let Some(blocks) = self.coded[tensor].blocks() else { return Ok(false) };
        blocks.read(&self.shards, rows, out).map(|()| true)
    }

    /// What blocks lack.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn factors(&self, tensor: usize) -> Result<Factors, SourceError> {
        let blocks = self.coded[tensor].blocks();
        blocks.map_or(Ok(Factors::default()), |blocks| blocks.factors(&self.shards))
    }

    /// The name of the factor of the activations that a tensor is multiplied with, where blocks have it
    /// beside them.
    pub fn input_scale(&self, tensor: usize) -> Option<&str> {
        self.coded[tensor].blocks()?.of_activations()
    }

    /// How ModelOpt quantized a module, as far as it is said.
    pub fn algorithm(&self, module: &str) -> Option<&str> {
        self.declared.algorithm(module)
    }

    /// Finds out whether a tensor's values are those of blocks, where its headers do not tell: what
    /// [`Checkpoint::blocks`] says then.
    ///
    /// # Errors
    /// When scales cannot be read, or are no numbers.
    pub fn settle(&self, tensor: usize) -> Result<(), SourceError> {
        self.coded[tensor].settle(&self.shards)
    }

    /// How many shards there are.
    pub fn n_shards(&self) -> usize {
        self.shards.files.len()
    }

    /// Where rows lie in their shard.
    fn bytes_of(&self, tensor: usize, rows: Range<u64>) -> Range<u64> {
        self.coded[tensor].values().rows(rows, self.metas[tensor].n_rows())
    }
}

impl Source for Checkpoint {
    fn tensors(&self) -> &[TensorMeta] {
        &self.metas
    }

    fn read_rows(&self, tensor: usize, first_row: u64, out: &mut [f32]) -> Result<(), SourceError> {
        let n = self.metas[tensor].n_per_row() as usize;
        if out.is_empty() || n == 0 {
            return Ok(());
        }
        let rows = first_row..first_row + (out.len() / n) as u64;
        self.coded[tensor].read(&self.shards, rows, out)
    }

    fn read_raw(
        &self,
        tensor: usize,
        rows: Range<u64>,
        out: &mut Vec<u8>,
    ) -> Result<bool, SourceError> {
        let Dtype::Gguf(_) = self.metas[tensor].dtype else { return Ok(false) };
        let bytes = self.bytes_of(tensor, rows.clone());
        out.resize((bytes.end - bytes.start) as usize, 0);
        self.read_blocks(tensor, rows, out)
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }
}

impl Storage for Checkpoint {
    fn prefetch(&self, tensor: usize, rows: Range<u64>) {
        self.shards.files[self.file_of(tensor)].blob.prefetch(self.bytes_of(tensor, rows));
    }

    fn release(&self, tensor: usize, rows: Range<u64>) {
        self.shards.files[self.file_of(tensor)].blob.release(self.bytes_of(tensor, rows));
    }

    fn origin(&self, tensor: usize, _row: u64) -> Origin {
        let tensor_name = self.metas[tensor].name.clone();
        Origin { path: self.path_of(tensor).to_owned(), tensor: tensor_name }
    }

    fn files(&self) -> Vec<SourceFile> {
        let shards = self.shards.files.iter();
        shards
            .map(|shard| SourceFile {
                path: shard.path.clone(),
                size: shard.blob.size(),
                version: shard.blob.version(),
            })
            .collect()
    }

    fn file_of(&self, tensor: usize) -> usize {
        self.coded[tensor].values().shard
    }

    fn table_bytes(&self) -> u64 {
        table_bytes(&self.metas) + self.folder.cache_bytes(self.shards.files.len())
    }

    fn met(&self) -> Vec<Warning> {
        let mut by_file: BTreeMap<&Path, Vec<String>> = BTreeMap::new();
        for (scale, [row, column]) in self.coded.iter().filter_map(|coded| coded.wiped_by()) {
            let path = self.shards.files[scale.shard].path.as_path();
            by_file.entry(path).or_default().push(format!("{}[{row}, {column}]", scale.name));
        }
        let texts = by_file.into_iter().map(|(path, scales)| {
            let (path, scales) = (path.display(), few(&scales));
            format!("{path}: scales of 0 make 0 of weights that are stored as others: {scales}")
        });
        texts.map(|text| Warning::new(Topic::Values, text)).collect()
    }
}
