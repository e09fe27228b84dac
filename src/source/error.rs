//! What can be wrong with a checkpoint or a GGUF file as a source of weights.

use crate::quant::QuantError;
use safetensors::SafeTensorError;
use std::path::PathBuf;

/// Rows that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The system cannot read the bytes.
    #[error("{}: tensor `{tensor}`: {}", path.display(), reading(error))]
    Io {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// A row could not be decoded.
    #[error("{}: tensor `{tensor}`: {error}", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with its rows.
        error: QuantError,
    },
    /// An FP8 byte that means NaN.
    #[error(
        "{}: tensor `{tensor}` holds an FP8 NaN at row {row}, column {column}; \
         the checkpoint is damaged, fetch this file again",
        path.display()
    )]
    Fp8Nan {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Row in the stored tensor.
        row: u64,
        /// Column in the stored tensor.
        column: u64,
    },
    /// A block scale that is no finite number.
    #[error(
        "{}: scale `{tensor}` is {value} at row {row}, column {column}; \
         the checkpoint is damaged, fetch this file again",
        path.display()
    )]
    Scale {
        /// The file.
        path: PathBuf,
        /// The scale tensor.
        tensor: String,
        /// Row of the scale.
        row: u64,
        /// Column of the scale.
        column: u64,
        /// The value found.
        value: f32,
    },
}

fn reading(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            "the file has become shorter since it was opened; restore it and begin anew".to_owned()
        }
        _ => error.to_string(),
    }
}

/// A checkpoint folder that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The operating system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A JSON file that is not JSON.
    #[error("{}: not valid JSON: {error}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        error: serde_json::Error,
    },
    /// An index that does not describe a checkpoint.
    #[error("{}: {what}", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The folder holds PyTorch pickles only.
    #[error(
        "{}: PyTorch pickle files are not read, they can run code; save the checkpoint as \
         safetensors first (transformers: `save_pretrained(..., safe_serialization=True)`)",
        path.display()
    )]
    PytorchOnly {
        /// One of the pickles.
        path: PathBuf,
    },
    /// The folder holds no weights.
    #[error("{}: no `model*.safetensors` here, is this a checkpoint folder?", dir.display())]
    NoShards {
        /// The folder.
        dir: PathBuf,
    },
    /// A shard that the index names does not exist.
    #[error(
        "{}: this shard is named in the index but does not exist; complete the download",
        path.display()
    )]
    MissingShard {
        /// The missing file.
        path: PathBuf,
    },
    /// A shard whose length is not what its header says.
    #[error(
        "{}: its {length} bytes are not what its header describes; the file is cut short or \
         damaged, fetch it again",
        path.display()
    )]
    Truncated {
        /// The shard.
        path: PathBuf,
        /// Its length in bytes.
        length: u64,
    },
    /// A header that safetensors refuses.
    #[error("{}: not a valid safetensors file: {error}", path.display())]
    Header {
        /// The shard.
        path: PathBuf,
        /// What the parser said.
        error: SafeTensorError,
    },
    /// The index places a tensor in a shard that does not hold it.
    #[error("{}: tensor `{tensor}` should be here by the index, but is not", path.display())]
    NotInShard {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A shard holds a tensor that the index does not list.
    #[error("{}: tensor `{tensor}` is not in the index; files of two checkpoints mixed?", path.display())]
    NotInIndex {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor lies in another shard than the index says.
    #[error("tensor `{tensor}` lies in {} but the index places it in {}", found.display(), indexed.display())]
    WrongShard {
        /// The tensor.
        tensor: String,
        /// Where the index says that it is.
        indexed: PathBuf,
        /// Where it is.
        found: PathBuf,
    },
    /// Two shards hold a tensor of the same name.
    #[error("tensor `{tensor}` is in both {} and {}", first.display(), second.display())]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// The one shard.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A dtype that has no reader.
    #[error(
        "{}: tensor `{tensor}` has dtype {dtype}; readable are F32, F16, BF16, F8_E4M3 with its \
         `weight_scale_inv`, and what ModelOpt quantized to NVFP4 or FP8",
        path.display()
    )]
    Dtype {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dtype as spelled in the header.
        dtype: String,
    },
    /// A quantized tensor without a scale.
    #[error("{}: tensor `{tensor}` is quantized, but `{scale}` is missing", path.display())]
    MissingScale {
        /// The shard of the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The scale.
        scale: String,
    },
    /// An NVFP4 tensor whose rows are no whole number of blocks.
    #[error(
        "{}: NVFP4 tensor `{tensor}` has shape {shape:?} in bytes, expected a matrix with rows of a \
         multiple of 32 bytes (64 weights)",
        path.display()
    )]
    NvFp4Shape {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape as stored, outermost first.
        shape: Vec<usize>,
    },
    /// A scale without a quantized tensor.
    #[error("{}: scale `{tensor}` has no quantized tensor to scale", path.display())]
    StrayScale {
        /// The shard of the scale.
        path: PathBuf,
        /// The scale.
        tensor: String,
    },
    /// FP8 tensors, but no block size to apply their scales with.
    #[error(
        "{}: tensor `{tensor}` is F8_E4M3, but `quantization_config.weight_block_size` is missing",
        path.display()
    )]
    NoBlockSize {
        /// The config file.
        path: PathBuf,
        /// The first FP8 tensor.
        tensor: String,
    },
    /// A quantization that is not block-scaled FP8.
    #[error("{}: `quantization_config.{key}` is {found}, expected {expected}", path.display())]
    Quantization {
        /// The config file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What it says.
        found: String,
        /// What can be read.
        expected: &'static str,
    },
    /// An FP8 tensor that is no matrix.
    #[error("{}: F8_E4M3 tensor `{tensor}` has shape {shape:?}, expected a matrix", path.display())]
    Fp8Shape {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape, outermost first.
        shape: Vec<usize>,
    },
    /// A scale whose shape does not follow from its tensor's.
    #[error("{}: scale `{tensor}` has shape {found:?}, expected {expected:?}", path.display())]
    ScaleShape {
        /// The shard of the scale.
        path: PathBuf,
        /// The scale.
        tensor: String,
        /// Its shape, outermost first.
        found: Vec<usize>,
        /// The shape that fits the tensor.
        expected: Vec<usize>,
    },
}
