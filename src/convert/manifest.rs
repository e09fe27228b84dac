//! What went in and what came out, by SHA-256: a JSON file beside the output.

use super::error::ConvertError;
use crate::gguf::GgufFile;
use crate::io::{Blob, Disk, IoError, LocalFile};
use crate::monitor::Monitor;
use crate::names::hex;
use crate::source::Source;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Bytes read at a time.
const PIECE: usize = 4 << 20;

/// A manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format: 1.
    #[serde(rename = "requant_manifest")]
    pub format: u32,
    /// Version of the program that wrote it.
    pub program: String,
    /// How it was run.
    pub options: serde_json::Value,
    /// Files that were read.
    pub inputs: Vec<HashedFile>,
    /// Files that were written.
    pub outputs: Vec<HashedFile>,
    /// Tensors that were written.
    pub tensors: Vec<HashedTensor>,
}

/// A file and its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashedFile {
    /// Its name, without folders.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// SHA-256 of all of them, in hexadecimal digits.
    pub sha256: String,
}

/// A tensor and its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashedTensor {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub ty: String,
    /// The file it is in.
    pub file: String,
    /// SHA-256 of its data, padding left out.
    pub sha256: String,
}

impl Manifest {
    /// The name of the manifest of an output.
    pub fn path(output: &Path) -> PathBuf {
        let mut name = output.as_os_str().to_owned();
        name.push(".manifest.json");
        name.into()
    }

    /// Writes it beside an output.
    ///
    /// # Errors
    /// The system refuses.
    pub fn write(&self, disk: &dyn Disk, output: &Path) -> Result<(), IoError> {
        let json = serde_json::to_value(self).expect("names and numbers are always JSON");
        crate::io::write(disk, &Self::path(output), format!("{json:#}\n").as_bytes())
    }

    /// Reads every file of a source once and hashes it. The monitor counts bytes.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn hash_inputs(
        source: &dyn Source,
        monitor: &dyn Monitor,
    ) -> Result<Vec<HashedFile>, ConvertError> {
        source.files().iter().map(|file| Ok(hash(&file.path, &[], monitor)?.0)).collect()
    }

    /// Reads every output file once and hashes it, for a manifest with what was read. The monitor counts
    /// bytes.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn make(
        inputs: Vec<HashedFile>,
        outputs: &[PathBuf],
        options: serde_json::Value,
        monitor: &dyn Monitor,
    ) -> Result<Self, ConvertError> {
        let (outputs, tensors) = Self::hash_outputs(outputs, monitor)?;
        let program = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Self { format: 1, program, options, inputs, outputs, tensors })
    }

    /// Hashes of GGUF files and of their tensors. The monitor counts bytes.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn hash_outputs(
        paths: &[PathBuf],
        monitor: &dyn Monitor,
    ) -> Result<(Vec<HashedFile>, Vec<HashedTensor>), ConvertError> {
        let (mut files, mut tensors) = (Vec::new(), Vec::new());
        for path in paths {
            let gguf = GgufFile::open(path)?;
            let ranges: Vec<std::ops::Range<u64>> = (0..gguf.tensors().len())
                .map(|i| gguf.tensor_range(i))
                .map(|range| range.start as u64..range.end as u64)
                .collect();
            let (file, hashes) = hash(path, &ranges, monitor)?;
            for (info, sha256) in gguf.tensors().iter().zip(hashes) {
                let (name, ty) = (info.name.clone(), info.ty.to_string());
                tensors.push(HashedTensor { name, ty, file: file.name.clone(), sha256 });
            }
            files.push(file);
        }
        Ok((files, tensors))
    }

    /// What differs between this manifest and files as they are now, in words. Files may have got
    /// other names.
    pub fn differences(&self, files: &[HashedFile], tensors: &[HashedTensor]) -> Vec<String> {
        let mut differences = Vec::new();
        for expected in &self.tensors {
            let same = |t: &&HashedTensor| t.name == expected.name;
            match tensors.iter().find(same) {
                None => differences.push(format!("tensor `{}` is missing", expected.name)),
                Some(found) if (&found.ty, &found.sha256) != (&expected.ty, &expected.sha256) => {
                    differences.push(format!("tensor `{}` is not the manifest's", expected.name));
                }
                Some(_) => {}
            }
        }
        let lost = |of: &[HashedFile], among: &[HashedFile], what: &str| -> Vec<String> {
            let lost = of.iter().filter(|f| among.iter().all(|other| other.sha256 != f.sha256));
            lost.map(|f| format!("file {} {what}", f.name)).collect()
        };
        differences.extend(lost(&self.outputs, files, "of the manifest is not here"));
        differences.extend(lost(files, &self.outputs, "is not in the manifest"));
        differences
    }
}

/// Hashes a file in one pass, and ranges of it, which are in order.
fn hash(
    path: &Path,
    ranges: &[std::ops::Range<u64>],
    monitor: &dyn Monitor,
) -> Result<(HashedFile, Vec<String>), ConvertError> {
    let io = |error| IoError::new(path, error);
    let file = LocalFile::open(path).map_err(io)?;
    let (mut whole, mut part) = (Sha256::new(), Sha256::new());
    let mut parts = Vec::with_capacity(ranges.len());
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while at < file.size() {
        if monitor.cancelled() {
            return Err(ConvertError::Cancelled);
        }
        let length = (file.size() - at).min(PIECE as u64);
        let piece = &mut buffer[..length as usize];
        file.read_at(at, piece).map_err(io)?;
        whole.update(&*piece);
        while let Some(range) = ranges.get(parts.len()) {
            let start = range.start.clamp(at, at + length);
            let end = range.end.clamp(start, at + length);
            part.update(&piece[(start - at) as usize..(end - at) as usize]);
            if range.end > at + length {
                break;
            }
            parts.push(hex(&part.finalize_reset()));
        }
        at += length;
        monitor.advance(length);
    }
    parts.resize(ranges.len(), hex(&Sha256::digest([])));
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok((HashedFile { name, bytes: file.size(), sha256: hex(&whole.finalize()) }, parts))
}
