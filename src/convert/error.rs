//! What can go wrong between a model and its GGUF file.

use crate::gguf::GgufError;
use crate::io::IoError;
use crate::json::JsonError;
use crate::model::ModelError;
use crate::quant::{QuantError, QuantType};
use crate::recipe::RecipeError;
use crate::source::{Origin, SourceError};
use crate::tokenizer::TokenizerError;
use crate::warning::Warning;
use std::path::PathBuf;

/// A conversion that cannot be planned or carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// A checkpoint asked for in a type that is no floating-point type.
    #[error("{ty} is no floating-point type, as the weights of a checkpoint have")]
    NotFloat {
        /// The type.
        ty: QuantType,
    },
    /// A layer that is to be left out does not exist.
    #[error("layer {layer} cannot be left out, the model has {count} layers, counted from 0")]
    NoLayer {
        /// The layer.
        layer: u32,
        /// Layers that there are.
        count: usize,
    },
    /// No layer that computes anything would be left.
    #[error("all layers would be left out; leave some of them in")]
    NoLayerLeft,
    /// Layers of a model that does not say how many it has.
    #[error("`{key}` is missing, without which no layers can be left out")]
    NoLayerCount {
        /// The key.
        key: String,
    },
    /// The model's description.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model's vocabulary.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The types asked for.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The forward pass that rounding is calibrated with.
    #[error("calibration: {0}")]
    Calibration(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Reading weights.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The system refused.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The output file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A manifest that cannot be read.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A manifest of a format that is not known.
    #[error("{}: manifest of version {format}, known is 1", path.display())]
    ManifestVersion {
        /// The manifest.
        path: PathBuf,
        /// Its version.
        format: u32,
    },
    /// A row that cannot be encoded.
    #[error("{origin} cannot become {ty} in `{tensor}`: {error}")]
    Encode {
        /// Where the row was read.
        origin: Origin,
        /// The tensor of the output; rows are counted from its first.
        tensor: String,
        /// The type it was to have.
        ty: QuantType,
        /// What is wrong with the row.
        #[source]
        error: QuantError,
    },
    /// A finite weight that is too large for its type.
    #[error(
        "{origin} holds {value} at row {row}, column {column}, beyond what {ty} can hold, and would be \
         infinite in `{tensor}`; give this tensor another type, such as F32"
    )]
    Overflow {
        /// Where it was read.
        origin: Origin,
        /// The tensor of the output.
        tensor: String,
        /// The type it was to have.
        ty: QuantType,
        /// Row, counted from the tensor's first.
        row: u64,
        /// Column.
        column: usize,
        /// The weight.
        value: f32,
    },
    /// A stored block that decodes to something not finite.
    #[error("{origin} is damaged: {error}")]
    Damaged {
        /// Where it is.
        origin: Origin,
        /// What is wrong with it.
        #[source]
        error: QuantError,
    },
    /// A tensor that is quantized already.
    #[error(
        "tensor `{tensor}` is {from} already and would lose twice as {to}; start from a file of \
         full precision"
    )]
    Requantize {
        /// The tensor.
        tensor: String,
        /// Its type.
        from: QuantType,
        /// The type it was to get.
        to: QuantType,
    },
    /// A tensor whose values nobody here can read.
    #[error(
        "tensor `{tensor}` is of type {id}, which this program does not know, so its values cannot be \
         read; COPY keeps it as it is"
    )]
    UnknownType {
        /// The tensor.
        tensor: String,
        /// The id of its type.
        id: u32,
    },
    /// An entry of the importance matrix that does not fit its tensor.
    #[error(
        "the importance matrix has {found} values for `{tensor}`{}, which needs {expected}; is it \
         this model's?",
        if entry == tensor { String::new() } else { format!(" (as `{entry}`)") }
    )]
    ImportanceLength {
        /// The tensor.
        tensor: String,
        /// The entry.
        entry: String,
        /// Columns, over all matrices.
        expected: u64,
        /// Values in the entry.
        found: usize,
    },
    /// A tensor that cannot do without an importance matrix, and has no entry.
    #[error(
        "the importance matrix has no entry for `{tensor}`, which cannot become {ty} without; collect \
         one that has it, or give the tensor another type"
    )]
    NoImportance {
        /// The tensor.
        tensor: String,
        /// The type it was to get.
        ty: QuantType,
    },
    /// Less room than the output needs.
    #[error(
        "{}: the output needs {needed} bytes and {free} are free; free some room or choose \
         another folder", path.display()
    )]
    DiskSpace {
        /// The output's folder.
        path: PathBuf,
        /// Bytes of the output.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// Outputs that cannot be made in one pass.
    #[error(
        "{}: has `{tensor}` otherwise than the other outputs, so that they cannot be written together; \
         write it by itself", path.display()
    )]
    Apart {
        /// The output.
        path: PathBuf,
        /// The first tensor that is not the same in all.
        tensor: String,
    },
    /// No output at all.
    #[error("no output is asked for; name a type at least")]
    NoOutput,
    /// Two outputs of one name.
    #[error("{}: would be written twice; ask for each type once", path.display())]
    Twice {
        /// The name.
        path: PathBuf,
    },
    /// Less memory than one thread needs.
    #[error("{budget} bytes of memory are too few, at least {needed} are needed")]
    Memory {
        /// Bytes needed.
        needed: u64,
        /// Bytes allowed.
        budget: u64,
    },
    /// More files than can be numbered.
    #[error("the output would have {count} files, at most 65535 can be numbered; raise the limit")]
    TooManyFiles {
        /// Files.
        count: usize,
    },
    /// The journal beside the output belongs to another run.
    #[error(
        "{}: an unfinished run is kept here, of {what}; repeat its command to go on with it",
        path.display()
    )]
    Journal {
        /// The journal.
        path: PathBuf,
        /// What is different about that run.
        what: &'static str,
    },
    /// The folder that was to be written exists.
    #[error("{}: exists already; give another name", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// Another process writes the same output.
    #[error("{}: another process is writing this output", path.display())]
    InUse {
        /// The journal.
        path: PathBuf,
    },
    /// The run ended early, and what it did was kept.
    #[error("{error}; the same command goes on from here ({} keeps what is done)", journal.display())]
    Stopped {
        /// The journal.
        journal: PathBuf,
        /// Why it ended.
        #[source]
        error: Box<ConvertError>,
    },
    /// A warning that whoever watches the work takes for an error ([`crate::monitor::Monitor::warn`]).
    #[error("{0}")]
    Unwanted(Warning),
    /// The work was cancelled from outside.
    #[error("interrupted")]
    Cancelled,
}
