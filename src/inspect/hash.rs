//! SHA-256 of tensors and metadata, whatever files they are spread over.

use super::parts;
use crate::gguf::{Layout, Metadata, SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS};
use crate::source::{Source, SourceError};
use sha2::{Digest, Sha256};

/// SHA-256 of a tensor's bytes as they are stored.
///
/// # Errors
/// Rows that cannot be read.
pub fn hash_tensor(source: &dyn Source, tensor: usize) -> Result<[u8; 32], SourceError> {
    let mut hash = Sha256::new();
    let mut bytes = Vec::new();
    parts(source, tensor, |rows| {
        if source.read_raw(tensor, rows, &mut bytes)? {
            hash.update(&bytes);
        }
        Ok(())
    })?;
    Ok(hash.finalize().into())
}

/// SHA-256 of the metadata as a file without tensors holds it, the keys of splits left out.
pub fn hash_metadata(metadata: &Metadata) -> [u8; 32] {
    let mut metadata = metadata.clone();
    for key in [SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS] {
        metadata.remove(key);
    }
    let layout = Layout::new(&metadata, []).expect("no tensor breaks a rule");
    Sha256::digest(layout.header()).into()
}
