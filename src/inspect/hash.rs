//! SHA-256 of tensors and metadata, whatever files they are spread over.

use super::parts;
use crate::gguf::{Metadata, SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS};
use crate::source::{Dtype, Source, SourceError};
use sha2::{Digest, Sha256};

const ZEROS: [u8; 4096] = [0; 4096];

/// SHA-256 of a tensor's bytes as they are stored. Of a tensor of an unknown type, zeros at the end are
/// left out, as they may be the file's padding.
///
/// # Errors
/// Rows that cannot be read.
pub fn hash_tensor(source: &dyn Source, tensor: usize) -> Result<[u8; 32], SourceError> {
    let mut hash = Sha256::new();
    let mut bytes = Vec::new();
    let mut zeros = 0;
    parts(source, tensor, |rows| {
        if source.read_raw(tensor, rows, &mut bytes)? {
            let kept = match source.tensors()[tensor].dtype {
                Dtype::Opaque(_) => bytes.iter().rposition(|&byte| byte != 0).map_or(0, |i| i + 1),
                _ => bytes.len(),
            };
            while kept > 0 && zeros > 0 {
                let some = zeros.min(ZEROS.len());
                hash.update(&ZEROS[..some]);
                zeros -= some;
            }
            hash.update(&bytes[..kept]);
            zeros += bytes.len() - kept;
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
    Sha256::digest(metadata.to_file()).into()
}
