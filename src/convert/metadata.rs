//! The metadata of the output: what the reference converter writes for a checkpoint, as
//! llama-quantize hands it on.

use super::error::ConvertError;
use super::lossless;
use super::prune::Pruned;
use super::settings::{Importance, Mode, Settings};
use crate::gguf::{Array, Metadata, SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS, Value};
use crate::model::{Arch, CheckpointModel, ParamCounts, general_metadata};
use crate::quant::QuantType;
use crate::recipe::{Facts, FileType};
use crate::source::Source;
use crate::tokenizer::Vocab;
use crate::warning::Warning;

/// The version of the block formats (`GGML_QNT_VERSION`).
const QUANTIZATION_VERSION: u32 = 2;

/// `general.file_type` of files that llama-quantize cannot make (`LLAMA_FTYPE_MOSTLY_NVFP4`).
pub(super) const MOSTLY_NVFP4: u32 = 39;

/// The key that holds the text of a recipe.
pub const RECIPE: &str = "requant.recipe";

/// The metadata of a checkpoint's file, and what does not go into it.
pub(super) struct OfCheckpoint {
    pub metadata: Metadata,
    /// What could not be read.
    pub warnings: Vec<Warning>,
    /// Tokens that end a text, without a key of their own.
    pub further_ends: Vec<(u32, String)>,
}

/// `exact` has the tensors' types where those are what keeps values.
pub(super) fn of_checkpoint(
    model: &CheckpointModel,
    settings: &Settings,
    exact: Option<&[QuantType]>,
) -> Result<OfCheckpoint, ConvertError> {
    let config = model.config();
    let mut metadata = Metadata::new();
    let architecture = model.hparams().arch.name();
    let counts = param_counts(model);
    let json = config.json();
    let given = &settings.given;
    let mut warnings =
        general_metadata(model.dir(), architecture, &json, &counts, given, &mut metadata);
    let keeps = |ty| (0..model.tensors().len()).any(|tensor| model.kept(tensor) == Some(ty));
    let of_converter = settings.recipe.file_type();
    let is_float = !of_converter.default_type().is_quantized();
    let file_type = match (settings.mode, exact) {
        (_, Some(types)) => lossless::file_type(model, types),
        (Mode::Convert, _) if is_float && keeps(QuantType::NVFP4) => MOSTLY_NVFP4,
        (Mode::Convert, _) if is_float && keeps(QuantType::MXFP4) => FileType::MXFP4_MOE.id(),
        (Mode::Convert, _) => of_converter.id(),
        _ => FileType::BF16.id(),
    };
    model.hparams().write_keys(config, file_type, &mut metadata)?;
    metadata.set("general.quantization_version", QUANTIZATION_VERSION);
    let wide = (0..model.tensors().len()).filter(|&i| model.is_for_16_bits(i));
    let mut wide: Vec<String> = wide.map(|i| model.tensors()[i].name.clone()).collect();
    if !wide.is_empty() {
        wide.sort_unstable();
        let none = vec![false; wide.len()];
        metadata.set("general.tensor_extra.name", wide.into_iter().collect::<Value>());
        metadata.set("general.tensor_extra.prec_a4", none);
    }
    let pre = settings.tokenizer_pre.as_deref();
    let mut vocab = Vocab::from_checkpoint(model.dir(), &json, pre)?;
    if model.hparams().arch != Arch::Llama {
        // The reference converter looks for it there alone.
        vocab.space_prefix = None;
    }
    vocab.write(&mut metadata);
    finish(&mut metadata, settings, FileType::BF16.id())?;
    if exact.is_some() {
        lossless::write_key(&mut metadata);
    }
    warnings.append(&mut vocab.warnings);
    let ends = vocab.further_ends.iter();
    let further_ends = ends.map(|&id| (id, vocab.tokens[id as usize].clone())).collect();
    Ok(OfCheckpoint { metadata, warnings, further_ends })
}

/// The metadata of a quantized GGUF file: the source's, less what says that it was split.
/// `guessed` is the file type where the source does not say.
pub(super) fn of_gguf(
    source: &Metadata,
    settings: &Settings,
    guessed: u32,
) -> Result<Metadata, ConvertError> {
    let mut metadata = source.clone();
    if settings.mode == Mode::Regroup {
        if settings.split.is_none() && metadata.get(SPLIT_COUNT).is_some() {
            // So that llama-gguf-split does not take the whole for a part.
            metadata.set_last(SPLIT_COUNT, 0u16);
        }
        return Ok(metadata);
    }
    for key in [SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS] {
        metadata.remove(key);
    }
    let kept = match source.u32("general.file_type") {
        Ok(Some(file_type)) => file_type,
        _ => guessed,
    };
    finish(&mut metadata, settings, kept)?;
    Ok(metadata)
}

/// What the rules of the mixes ask about the model in a GGUF file, of whatever architecture.
pub(super) fn facts(
    metadata: &Metadata,
    overrides: &[(String, Value)],
    tied: bool,
) -> Result<Facts, ConvertError> {
    let arch = metadata.str("general.architecture")?.unwrap_or_default().to_owned();
    let first = |key: &str| -> Result<Option<u32>, ConvertError> {
        let key = format!("{arch}.{key}");
        if let Some((_, Value::U32(n))) = overrides.iter().find(|(name, _)| *name == key) {
            return Ok(Some(*n));
        }
        // Some architectures have a number for each layer.
        match metadata.get(&key) {
            Some(Value::Array(Array::U32(list))) => Ok(list.first().copied()),
            Some(Value::Array(Array::I32(list))) => Ok(list.first().map(|&n| n.max(0) as u32)),
            _ => Ok(metadata.u32(&key)?),
        }
    };
    let n_head = first("attention.head_count")?.unwrap_or(0);
    Ok(Facts {
        n_layer: first("block_count")?.unwrap_or(0),
        n_head,
        n_head_kv: first("attention.head_count_kv")?.unwrap_or(n_head),
        n_expert: first("expert_count")?.unwrap_or(0),
        tied,
    })
}

/// What llama-quantize sets. Setting again what is there moves it to the end.
fn finish(metadata: &mut Metadata, settings: &Settings, kept: u32) -> Result<(), ConvertError> {
    let layers = Pruned::new(&settings.prune_layers).apply(metadata)?;
    let file_type = match settings.mode {
        Mode::Convert | Mode::Lossless => None,
        Mode::Copy => Some(kept),
        Mode::Quantize | Mode::Regroup => Some(settings.recipe.file_type().id()),
    };
    if let Some(file_type) = file_type {
        metadata.set_last("general.quantization_version", QUANTIZATION_VERSION);
        metadata.set_last("general.file_type", file_type);
    }
    for (key, value) in &settings.override_kv {
        metadata.set_last(key, value.clone());
    }
    if settings.write_recipe {
        metadata.set_last(RECIPE, settings.recipe.text());
        metadata.set_last("requant.recipe.sha256", settings.recipe.sha256());
    }
    for (key, value) in &settings.notes {
        metadata.set_last(key, value.clone());
    }
    if let Some(importance) = &settings.importance {
        set_origin(importance, metadata);
    }
    if let Some((key, layers)) = layers {
        metadata.set_last(&key, layers);
    }
    Ok(())
}

/// Where the importances are from.
fn set_origin(Importance { imatrix, file }: &Importance, metadata: &mut Metadata) {
    if imatrix.entries.is_empty() {
        return;
    }
    metadata.set_last("quantize.imatrix.file", cut(file));
    if let Some(dataset) = imatrix.datasets.first() {
        metadata.set_last("quantize.imatrix.dataset", cut(dataset));
    }
    metadata.set_last("quantize.imatrix.entries_count", imatrix.entries.len() as u32);
    if imatrix.chunk_count > 0 {
        metadata.set_last("quantize.imatrix.chunks_count", imatrix.chunk_count);
    }
}

/// The reference keeps these strings in 128 bytes, the last of them 0.
fn cut(text: &str) -> Value {
    Value::String(text.as_bytes()[..text.len().min(127)].into())
}

/// Counts parameters as the converter does for its size label
/// (`GGUFWriter.get_total_parameter_count`).
fn param_counts(model: &CheckpointModel) -> ParamCounts {
    let mut counts = ParamCounts::default();
    for meta in model.tensors() {
        counts.add(&meta.name, &meta.dims);
    }
    counts
}
