//! What a model of the R1 family is: hyper-parameters, tensor names and shapes.
//!
//! One description serves the converter, which writes it, and the forward pass, which runs it.
//! Whether a model comes from a checkpoint or from a GGUF file, its tensors are seen here under
//! GGUF's names and in GGUF's shapes.

mod agree;
mod arch;
mod card;
mod checkpoint;
mod config;
mod error;
mod export;
mod general;
mod gguf_keys;
mod hparams;
mod inventory;
mod keys;
mod left_out;
mod model_id;
mod settings;

pub use arch::Arch;
pub(crate) use arch::deepseek2::is_lite;
pub use checkpoint::CheckpointModel;
pub use config::{Config, RopeConfig};
pub use error::ModelError;
pub use export::Exported;
#[cfg(feature = "eval")]
pub use general::sampling_settings;
pub use general::{Given, ParamCounts, general_metadata};
pub use hparams::{
    Attention, Gating, Grouped, Hparams, Indexer, Latent, Mla, Moe, Pairs, Rope, Yarn, mscale,
};
pub use inventory::TensorSpec;
pub use left_out::LeftOut;

use crate::gguf::Metadata;
use crate::simd::Simd;
use crate::source::{GgufSource, Source};
use crate::tensor::{Kind, TensorName};
use crate::warning::Warning;
use std::path::Path;

/// What becomes of multi-token-prediction layers, which only those use who draft.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mtp {
    /// As the reference converter has it: keep DeepSeek-V3.2's, leave out others.
    #[default]
    Usual,
    /// Leave them out.
    Drop,
    /// Keep them as `blk.N.nextn.*`.
    Keep,
    /// Keep nothing else but what they share with the model: embedding, last norm and output.
    Only,
}

/// A model opened for reading, whatever it is stored as.
pub enum Model {
    /// A Hugging Face checkpoint folder.
    Checkpoint(Box<CheckpointModel>),
    /// A GGUF file.
    Gguf(Box<GgufModel>),
}

/// A model in a GGUF file.
pub struct GgufModel {
    hparams: Hparams,
    source: GgufSource,
    warnings: Vec<Warning>,
}

impl GgufModel {
    /// Opens a GGUF file of a supported architecture.
    ///
    /// # Errors
    /// When the file is damaged or its metadata does not describe such a model.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        Self::of(GgufSource::open(path)?)
    }

    /// Takes a file that was opened.
    ///
    /// # Errors
    /// As [`GgufModel::open`].
    pub fn of(mut source: GgufSource) -> Result<Self, ModelError> {
        source.apply_scales()?;
        let hparams = hparams_of(&source)?;
        let path = source.file().path();
        let warnings = gguf_keys::check(path, hparams.arch, source.metadata())?;
        split_mla(&mut source, &hparams)?;
        Ok(Self { hparams, source, warnings })
    }

    /// The file.
    pub fn gguf(&self) -> &GgufSource {
        &self.source
    }

    /// What is not as one would expect of its metadata.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The file's metadata.
    pub fn metadata(&self) -> &Metadata {
        self.source.metadata()
    }
}

/// The hyper-parameters of a GGUF file.
fn hparams_of(source: &GgufSource) -> Result<Hparams, ModelError> {
    let has = |name: &str| source.find(name).is_some();
    let path = source.file().path();
    Hparams::from_metadata(path, source.metadata(), &has).map_err(|error| match error {
        ModelError::Gguf(error) => ModelError::Gguf(error.in_file(path)),
        other => other,
    })
}

/// Shows the joint `attn_kv_b` of older files as today's `attn_k_b` and `attn_v_b`, and the metadata
/// that belongs to them. Does nothing to other files.
///
/// # Errors
/// Metadata that does not describe a model, and tensors of other shapes than it says.
pub fn split_legacy_mla(source: &mut GgufSource) -> Result<(), ModelError> {
    let hparams = hparams_of(source)?;
    split_mla(source, &hparams)
}

/// Shows today's `attn_k_b` and `attn_v_b` as the joint `attn_kv_b` of files from before April 2025, and
/// the metadata that belongs to it. Does nothing to other files.
///
/// # Errors
/// Metadata that does not describe a model, and tensors of other shapes than it says.
pub fn join_legacy_mla(source: &mut GgufSource) -> Result<(), ModelError> {
    let hparams = hparams_of(source)?;
    let Attention::Latent(latent) = hparams.attention else { return Ok(()) };
    let [heads, nope, v] = [latent.n_head, latent.qk_nope, latent.v_head].map(u64::from);
    let rank = u64::from(latent.kv_lora_rank);
    let keys = (0..source.tensors().len())
        .filter(|&i| source.tensors()[i].name.ends_with(".attn_k_b.weight"));
    let pair = |keys: usize| {
        let values = source.tensors()[keys].name.replace("attn_k_b", "attn_v_b");
        let missing = || ModelError::MissingTensor {
            path: source.file().path().to_owned(),
            tensor: values.clone(),
        };
        let values = source.find(&values).ok_or_else(missing)?;
        for (tensor, expected) in [(keys, [nope, rank, heads]), (values, [rank, v, heads])] {
            check_dims(source, tensor, &expected)?;
        }
        Ok([keys, values])
    };
    let pairs: Vec<[usize; 2]> = keys.map(pair).collect::<Result<_, ModelError>>()?;
    if !pairs.is_empty() {
        source.join_heads(&pairs);
        let latent = Latent { mla: Mla::Legacy, ..latent };
        arch::deepseek2::write_mla_keys(hparams.arch, &latent, source.metadata_mut());
    }
    Ok(())
}

/// Refuses a tensor of other extents.
fn check_dims(source: &GgufSource, tensor: usize, expected: &[u64]) -> Result<(), ModelError> {
    let meta = &source.tensors()[tensor];
    let wide = |dims: &[u64], i: usize| dims.get(i).copied().unwrap_or(1);
    if (0..meta.dims.len().max(expected.len())).all(|i| wide(&meta.dims, i) == wide(expected, i)) {
        return Ok(());
    }
    Err(ModelError::Shape {
        path: source.file().path().to_owned(),
        tensor: meta.name.clone(),
        found: meta.dims.iter().rev().copied().collect(),
        expected: expected.iter().rev().copied().collect(),
    })
}

fn split_mla(source: &mut GgufSource, hparams: &Hparams) -> Result<(), ModelError> {
    let Attention::Latent(latent) = &hparams.attention else { return Ok(()) };
    let [head, nope, v] = [latent.n_head, latent.qk_nope, latent.v_head].map(u64::from);
    let joint: Vec<usize> = (0..source.tensors().len())
        .filter(|&i| source.tensors()[i].name.ends_with(".attn_kv_b.weight"))
        .collect();
    if joint.is_empty() {
        return Ok(());
    }
    for &tensor in &joint {
        check_dims(source, tensor, &[u64::from(latent.kv_lora_rank), head * (nope + v)])?;
    }
    source.split_heads(&joint, nope, v);
    arch::deepseek2::write_mla_keys(hparams.arch, latent, source.metadata_mut());
    Ok(())
}

impl Model {
    /// Opens a checkpoint folder or a GGUF file.
    ///
    /// # Errors
    /// Whatever is wrong with it, as far as headers tell.
    pub fn open(path: &Path, mtp: Mtp) -> Result<Self, ModelError> {
        if path.is_dir() {
            Ok(Self::Checkpoint(Box::new(CheckpointModel::open(path, mtp)?)))
        } else {
            Ok(Self::Gguf(Box::new(GgufModel::open(path)?)))
        }
    }

    /// Its hyper-parameters.
    pub fn hparams(&self) -> &Hparams {
        match self {
            Self::Checkpoint(model) => model.hparams(),
            Self::Gguf(model) => &model.hparams,
        }
    }

    /// Whether it has a layer for multi-token prediction, and not only says so.
    pub fn drafts(&self) -> bool {
        let name = TensorName::weight(Some(self.hparams().n_layer), Kind::NextnEhProj);
        self.hparams().n_nextn > 0 && self.source().find(&name.to_string()).is_some()
    }

    /// Sets the instructions to decode its tensors with, instead of the fastest of this machine.
    pub fn set_simd(&mut self, simd: Simd) {
        match self {
            Self::Checkpoint(model) => model.set_simd(simd),
            Self::Gguf(model) => model.source.set_simd(simd),
        }
    }

    /// Its tensors.
    pub fn source(&self) -> &dyn Source {
        match self {
            Self::Checkpoint(model) => model.as_ref(),
            Self::Gguf(model) => &model.source,
        }
    }

    /// What is not as one would expect of its description and tensors.
    pub fn warnings(&self) -> &[Warning] {
        match self {
            Self::Checkpoint(model) => model.warnings(),
            Self::Gguf(model) => model.warnings(),
        }
    }

    /// Bytes of its weights as stored.
    pub fn n_bytes(&self) -> u64 {
        match self {
            Self::Checkpoint(model) => model.n_bytes(),
            Self::Gguf(model) => {
                let files = model.source.files().iter();
                files.flat_map(|f| f.tensors()).map(|t| t.n_bytes()).sum()
            }
        }
    }
}
