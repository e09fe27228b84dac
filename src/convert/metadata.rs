//! The metadata of the output: what the reference converter writes for a checkpoint, as
//! llama-quantize hands it on.

use super::error::ConvertError;
use super::plan::Settings;
use crate::gguf::Metadata;
use crate::model::{CheckpointModel, ParamCounts, general_metadata};
use crate::recipe::FileType;
use crate::source::Source;
use crate::tokenizer::Vocab;

/// The version of the block formats (`GGML_QNT_VERSION`).
const QUANTIZATION_VERSION: u32 = 2;

pub(super) fn of_checkpoint(
    model: &CheckpointModel,
    settings: &Settings,
) -> Result<Metadata, ConvertError> {
    let config = model.config();
    let mut metadata = Metadata::new();
    let architecture = model.hparams().arch.name();
    let counts = param_counts(model);
    general_metadata(model.dir(), architecture, &config.json(), &counts, &mut metadata)?;
    model.hparams().write_keys(config, FileType::BF16.id(), &mut metadata)?;
    metadata.set("general.quantization_version", QUANTIZATION_VERSION);
    let pre = settings.tokenizer_pre.as_deref();
    Vocab::from_checkpoint(model.dir(), &config.json(), pre)?.write(&mut metadata);
    finish(&mut metadata, settings.file_type);
    Ok(metadata)
}

/// llama-quantize sets these two again, which moves them to the end.
fn finish(metadata: &mut Metadata, file_type: FileType) {
    metadata.set_last("general.quantization_version", QUANTIZATION_VERSION);
    metadata.set_last("general.file_type", file_type.id());
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
