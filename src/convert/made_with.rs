//! What a file says it was made with, beside its weights: what it takes to make it again.

use super::error::ConvertError;
use crate::gguf::{Metadata, Value};
use serde::Serialize;

/// The key that says how weights were rounded, where that is not as the reference does.
pub(crate) const ROUNDING: &str = "requant.rounding";
/// Its value where scales were searched for more widely.
pub(crate) const SEARCH: &str = "search";

/// What a file says it was made with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MadeWith {
    /// The importance matrix that weighed its columns.
    pub imatrix: Option<OfImatrix>,
    /// The text that its rounding was calibrated with.
    pub calibration: Option<OfCalibration>,
    /// Whether scales were searched for more widely than the reference does.
    pub search: bool,
}

/// What a file says about an importance matrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OfImatrix {
    /// Its file.
    pub file: String,
    /// The text that it was made from.
    pub dataset: Option<String>,
    /// Its entries.
    pub entries: Option<u32>,
    /// Chunks of that text.
    pub chunks: Option<u32>,
}

/// What a file says about a text that its rounding was calibrated with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OfCalibration {
    /// Its file.
    pub file: String,
    /// SHA-256 of it.
    pub sha256: Option<String>,
}

impl MadeWith {
    /// Reads a file's metadata.
    ///
    /// # Errors
    /// Keys of other types than they should have.
    pub fn read(metadata: &Metadata) -> Result<Self, ConvertError> {
        let text = |key: &str| Ok::<_, ConvertError>(metadata.str(key)?.map(str::to_owned));
        let imatrix = match text("quantize.imatrix.file")? {
            Some(file) => Some(OfImatrix {
                file,
                dataset: text("quantize.imatrix.dataset")?,
                // llama-quantize has written both signed and unsigned numbers here.
                entries: number(metadata, "quantize.imatrix.entries_count"),
                chunks: number(metadata, "quantize.imatrix.chunks_count"),
            }),
            None => None,
        };
        let calibration = match text("requant.calibration.file")? {
            Some(file) => Some(OfCalibration { file, sha256: text("requant.calibration.sha256")? }),
            None => None,
        };
        let search = metadata.str(ROUNDING)? == Some(SEARCH);
        Ok(Self { imatrix, calibration, search })
    }
}

fn number(metadata: &Metadata, key: &str) -> Option<u32> {
    match metadata.get(key)? {
        Value::U32(n) => Some(*n),
        Value::I32(n) => u32::try_from(*n).ok(),
        _ => None,
    }
}
