//! What can be wrong with a checkpoint or a GGUF file as a source of weights.

use crate::io::IoError;
use crate::json::JsonError;
use crate::quant::QuantError;
use crate::sniff::Seems;
use safetensors::SafeTensorError;
use std::path::PathBuf;

/// Rows that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The system cannot read the bytes.
    #[error("{}: tensor `{tensor}`: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What the system said.
        #[source]
        error: std::io::Error,
    },
    /// The bytes are no longer there.
    #[error(
        "{}: tensor `{tensor}`: the file has become shorter since it was opened; restore it and begin anew",
        path.display()
    )]
    Shortened {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A row could not be decoded.
    #[error("{}: tensor `{tensor}`: {error}", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with its rows.
        #[source]
        error: QuantError,
    },
    /// A tensor whose type nobody here can decode.
    #[error(
        "{}: tensor `{tensor}` is of type {id}, which this program does not know, so its values cannot \
         be read",
        path.display()
    )]
    UnknownType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The id of its type.
        id: u32,
    },
    /// An FP8 byte that means NaN, or in E5M2 an infinity.
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
    /// A scale that is no finite number, or negative.
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

impl SourceError {
    /// What the system says when it is asked for bytes of a tensor.
    pub(super) fn reading(path: PathBuf, tensor: &str, error: std::io::Error) -> Self {
        let tensor = tensor.to_owned();
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Self::Shortened { path, tensor },
            _ => Self::Io { path, tensor, error },
        }
    }
}

/// The end of a message on a file that does not exist.
fn but(beside: &Option<(String, Seems)>) -> String {
    match beside {
        Some((name, seems)) => format!(" (`{name}` is there, {seems})"),
        None => String::new(),
    }
}

/// A checkpoint folder that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The system refused.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A JSON file that cannot be read.
    #[error(transparent)]
    Json(#[from] JsonError),
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
    #[error(
        "{}: no `model*.safetensors` here, is this a checkpoint folder?{}",
        dir.display(),
        but(beside)
    )]
    NoShards {
        /// The folder.
        dir: PathBuf,
        /// A file that may become one, and what it seems to be.
        beside: Option<(String, Seems)>,
    },
    /// A shard that the index names does not exist.
    #[error(
        "{}: this shard is named in the index but does not exist; complete the download{}",
        path.display(),
        but(beside)
    )]
    MissingShard {
        /// The missing file.
        path: PathBuf,
        /// A file that may become it, and what it seems to be.
        beside: Option<(String, Seems)>,
    },
    /// A file in place of a shard.
    #[error("{}: not a safetensors file but {seems}", path.display())]
    NotSafetensors {
        /// The file.
        path: PathBuf,
        /// What it seems to be.
        seems: Seems,
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
        #[source]
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
    /// Two shards hold different tensors of the same name.
    #[error(
        "tensor `{tensor}` is in both {} and {}, and not the same; remove the file that does not belong \
         to this checkpoint",
        first.display(),
        second.display()
    )]
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
        "{}: tensor `{tensor}` has dtype {dtype}; readable are F32, F16, BF16, F8_E4M3 and F8_E5M2 with \
         their scales, and the integers and 4-bit floats of compressed-tensors and ModelOpt",
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
    /// A tensor whose weights are packed into integers.
    #[error(
        "{}: tensor `{tensor}` is packed by {format}, which is not read; convert the original \
         checkpoint, or dequantize this one first (transformers: `model.dequantize()`, then \
         `save_pretrained`)",
        path.display()
    )]
    Packed {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The format, as it is declared, or as names tell.
        format: String,
    },
    /// A quantized tensor with scales under two names.
    #[error(
        "{}: tensor `{tensor}` has two scales, `{}` and `{}`; remove the one that does not belong to it",
        path.display(),
        scales[0],
        scales[1]
    )]
    TwoScales {
        /// The shard of the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The scales.
        scales: [String; 2],
    },
    /// A quantized tensor whose values are counted from another than 0.
    #[error(
        "{}: `{tensor}` is not 0 throughout, and FP8 weights are read without zero points",
        path.display()
    )]
    ZeroPoint {
        /// The shard of the zero points.
        path: PathBuf,
        /// The zero points.
        tensor: String,
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
    /// A tensor that does not fit what it belongs to.
    #[error("{}: `{tensor}` is {found}, expected {expected}", path.display())]
    Unfit {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What it is.
        found: String,
        /// What would fit.
        expected: String,
    },
    /// A scale without a quantized tensor.
    #[error(
        "{}: scale `{tensor}` has no quantized tensor to scale; if its weights have been dequantized, \
         remove it",
        path.display()
    )]
    StrayScale {
        /// The shard of the scale.
        path: PathBuf,
        /// The scale.
        tensor: String,
    },
    /// A declaration of how weights are quantized that makes no sense.
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
