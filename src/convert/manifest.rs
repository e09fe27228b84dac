//! What went in and what came out, by SHA-256: a JSON file beside the output, and one for `sha256sum -c`.

use super::error::ConvertError;
use super::ladder::Rung;
use crate::gguf::whole_name;
use crate::io::{Blob, Disk, IoError, LocalFile, beside};
use crate::monitor::Monitor;
use crate::names::{base, hex};
use crate::source::{GgufSource, Source};
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
    pub options: Vec<String>,
    /// The mix or recipe that the output was made by.
    #[serde(default)]
    pub recipe: OfRecipe,
    /// Bits per weight of the output.
    #[serde(default)]
    pub bits_per_weight: f64,
    /// Files that were read.
    pub inputs: Vec<Input>,
    /// Files that were written.
    pub outputs: Vec<HashedFile>,
    /// Tensors that were written.
    pub tensors: Vec<HashedTensor>,
}

/// A mix or recipe, which a program that knows the mix, or the file itself, has in full.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfRecipe {
    /// Its name.
    pub name: String,
    /// SHA-256 of its text, in hexadecimal digits.
    pub sha256: String,
}

/// A file that the output was made of, or with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// What it was to the output.
    #[serde(default)]
    pub what: Role,
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// SHA-256 of all of them, in hexadecimal digits; not known of weights behind a URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// What a store behind a URL calls this version of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// What a file was to the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Role {
    /// The weights.
    #[default]
    Weights,
    /// What describes a checkpoint: configuration, vocabulary, model card.
    Description,
    /// An importance matrix.
    Imatrix,
    /// A list of types for tensors.
    TensorTypes,
    /// Metadata to be written.
    Metadata,
    /// A text that rounding was calibrated with.
    Calibration,
}

/// A file that an output was made with, beside its weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingredient {
    /// What it was.
    pub what: Role,
    /// A file of this machine.
    pub path: PathBuf,
}

impl Input {
    /// Hashes a file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(
        ingredient: &Ingredient,
        naming: Naming,
        monitor: &dyn Monitor,
    ) -> Result<Self, ConvertError> {
        let Ingredient { what, path } = ingredient;
        let HashedFile { bytes, sha256, .. } = HashedFile::of(path, monitor)?;
        let (name, sha256) = (naming.of(path), Some(sha256));
        Ok(Self { what: *what, name, bytes, sha256, version: None })
    }
}

/// How files are named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Naming {
    /// By their names without folders, so that nothing is said of the machine.
    #[default]
    Base,
    /// As they were given.
    Full,
}

impl Naming {
    fn of(self, path: &Path) -> String {
        let base = path.file_name().filter(|_| self == Self::Base);
        base.map_or(path.to_string_lossy(), |name| name.to_string_lossy()).into_owned()
    }
}

/// A file and its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashedFile {
    /// Its name.
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

impl HashedFile {
    /// Hashes a file. The monitor counts bytes.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(path: &Path, monitor: &dyn Monitor) -> Result<Self, ConvertError> {
        let file = LocalFile::open(path).map_err(|error| IoError::new(path, error))?;
        Ok(hash(path, &file, &[], monitor)?.0)
    }
}

impl Manifest {
    /// The name of the manifest of an output.
    pub fn path(output: &Path) -> PathBuf {
        beside(output, ".manifest.json")
    }

    /// The names that the manifest beside a model may have: the model's own, or the one that was given when it was
    /// written, which for split models lacks the number.
    pub fn names(model: &Path) -> Vec<String> {
        let name = base(model);
        let stem = name.strip_suffix(".gguf").unwrap_or(&name);
        let whole = whole_name(stem);
        let mut of = vec![name.clone()];
        if whole != stem {
            of.extend([format!("{whole}.gguf"), whole.to_owned()]);
        }
        of.iter().map(|name| base(Self::path(Path::new(name)))).collect()
    }

    /// The manifest that lies beside a model, if there is one.
    pub fn beside(model: &Path) -> Option<PathBuf> {
        let mut paths = Self::names(model).into_iter().map(|name| model.with_file_name(name));
        paths.find(|path| path.is_file())
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// A file that is none, or of a format that is not known.
    pub fn read(path: &Path) -> Result<Self, ConvertError> {
        crate::json::read::<Self>(path)?.known(path)
    }

    /// Reads a manifest that was fetched from a path or URL.
    ///
    /// # Errors
    /// As [`Manifest::read`].
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ConvertError> {
        crate::json::parse::<Self>(path, bytes)?.known(path)
    }

    fn known(self, path: &Path) -> Result<Self, ConvertError> {
        match self.format {
            1 => Ok(self),
            format => Err(ConvertError::ManifestVersion { path: path.to_owned(), format }),
        }
    }

    /// The name of the list of checksums of an output.
    pub fn checksums_path(output: &Path) -> PathBuf {
        beside(output, ".sha256")
    }

    /// Writes it beside an output, and the list of checksums of its files, which `sha256sum -c` reads.
    ///
    /// # Errors
    /// The system refuses.
    pub fn write(&self, disk: &dyn Disk, output: &Path) -> Result<(), IoError> {
        let json = serde_json::to_value(self).expect("names and numbers are always JSON");
        let line = |file: &HashedFile| {
            format!("{}  {}\n", file.sha256, Naming::Base.of(Path::new(&file.name)))
        };
        let checksums: String = self.outputs.iter().map(line).collect();
        crate::io::write(disk, &Self::checksums_path(output), checksums.as_bytes())?;
        crate::io::write(disk, &Self::path(output), format!("{json:#}\n").as_bytes())
    }

    /// Reads every file of a source, and what it is made into something with, once and hashes it; not weights
    /// behind a URL, of which the store says what tells them from others. The monitor counts bytes.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn hash_inputs(
        source: &dyn Source,
        ingredients: &[Ingredient],
        naming: Naming,
        monitor: &dyn Monitor,
    ) -> Result<Vec<Input>, ConvertError> {
        let mut inputs = Vec::new();
        for file in source.files() {
            let sha256 = match file.is_local() {
                true => Some(HashedFile::of(&file.path, monitor)?.sha256),
                false => None,
            };
            let version = Some(file.version).filter(|_| sha256.is_none());
            let (name, bytes) = (naming.of(&file.path), file.size);
            inputs.push(Input { what: Role::Weights, name, bytes, sha256, version });
        }
        for ingredient in ingredients {
            inputs.push(Input::of(ingredient, naming, monitor)?);
        }
        Ok(inputs)
    }

    /// Reads every file of an output once and hashes it, for a manifest with what was read. The monitor counts
    /// bytes.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn make(
        inputs: Vec<Input>,
        made: Rung,
        options: Vec<String>,
        naming: Naming,
        monitor: &dyn Monitor,
    ) -> Result<Self, ConvertError> {
        let paths: Vec<PathBuf> = made.paths(None).collect();
        let (mut outputs, tensors) = Self::hash_files(&GgufSource::open(&paths[0])?, monitor)?;
        outputs.iter_mut().zip(&paths).for_each(|(file, path)| file.name = naming.of(path));
        let recipe = made.plan.recipe();
        Ok(Self {
            format: 1,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            options,
            recipe: OfRecipe { name: recipe.name().to_owned(), sha256: recipe.sha256() },
            bits_per_weight: made.plan.bits_per_weight(),
            inputs,
            outputs,
            tensors,
        })
    }

    /// Hashes of a model's files and of their tensors. The monitor counts bytes.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn hash_files(
        model: &GgufSource,
        monitor: &dyn Monitor,
    ) -> Result<(Vec<HashedFile>, Vec<HashedTensor>), ConvertError> {
        let (mut files, mut tensors) = (Vec::new(), Vec::new());
        for (gguf, blob) in model.blobs() {
            let ranges: Vec<std::ops::Range<u64>> = (0..gguf.tensors().len())
                .map(|i| gguf.tensor_range(i))
                .map(|range| range.start as u64..range.end as u64)
                .collect();
            let (file, hashes) = hash(gguf.path(), blob, &ranges, monitor)?;
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
    file: &dyn Blob,
    ranges: &[std::ops::Range<u64>],
    monitor: &dyn Monitor,
) -> Result<(HashedFile, Vec<String>), ConvertError> {
    let io = |error| IoError::new(path, error);
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
    let name = base(path);
    Ok((HashedFile { name, bytes: file.size(), sha256: hex(&whole.finalize()) }, parts))
}
