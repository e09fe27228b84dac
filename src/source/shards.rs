//! Which file of a checkpoint holds which tensor: what the index says, what the headers say, and what
//! follows where the two differ.
//!
//! Headers are believed: a tensor is where a header has it. The index tells which files belong to the
//! checkpoint, and what files that are not here would hold. Nothing is demanded before somebody asks
//! for the tensor.

use super::coding::Part;
use super::error::{CheckpointError, SourceError};
use super::folder::{Folder, INDEX};
use crate::io::{Blob, IoError, memory};
use crate::json;
use crate::names::few;
use crate::quant::QuantError;
use crate::simd::Simd;
use crate::sniff::{self, Seems};
use crate::warning::{Topic, Warning};
use safetensors::tensor::{Dtype, Metadata, SafeTensorError, TensorInfo};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

const INDEX_END: &str = ".safetensors.index.json";
const SHARD_END: &str = ".safetensors";

/// A file that weights are read from.
pub(super) struct Shard {
    pub path: PathBuf,
    pub blob: Box<dyn Blob>,
}

/// A tensor as a shard's header describes it.
pub(super) struct Stored {
    pub shard: usize,
    pub info: TensorInfo,
    pub bytes: Range<u64>,
}

/// A file that cannot be opened, and why.
pub(super) struct Unopened {
    pub path: PathBuf,
    /// `None` once it has been reported.
    pub error: Option<CheckpointError>,
    /// Whether it does not exist.
    pub missing: bool,
}

/// The files of a checkpoint and the tensors in them.
pub(super) struct Shards {
    /// In the order of their names.
    pub files: Vec<Shard>,
    /// By name; the copy that the index means comes first where there are several.
    pub stored: HashMap<String, Vec<Stored>>,
    /// Files that the index names.
    pub unopened: Vec<Unopened>,
    /// Said of a set of numbered files without an index that lacks some.
    pub incomplete: Option<CheckpointError>,
    /// Tensors that by the index are in files which cannot be opened, with the number of the file.
    pub absent: BTreeMap<String, usize>,
    /// Tensors that by the index are in a file which does not hold them.
    phantoms: BTreeMap<String, PathBuf>,
    pub warnings: Vec<Warning>,
    /// The instructions to decode with.
    pub simd: Simd,
}

impl Shards {
    /// Opens the files that belong together, and reads their headers.
    pub fn open(folder: &Folder) -> Result<Self, CheckpointError> {
        let beside = beside(folder.dir())?;
        let mut warnings = Vec::new();
        let mut index = Index::read(folder.dir())?;
        let mut incomplete = None;
        let names = match index.as_ref().filter(|index| !index.is_stale(folder, &beside)) {
            Some(index) => index.files(),
            None => {
                let (names, lacking) = Sets::of(&beside).choose();
                if names.is_empty() {
                    return Err(nothing(folder.dir()));
                }
                if let Some(Index { path, .. }) = index.take() {
                    let text = format!(
                        "{}: none of the files that it names is here; read are {}",
                        path.display(),
                        few(&names)
                    );
                    warnings.push(Warning::new(Topic::Tensors, text));
                }
                incomplete = lacking.map(|of| CheckpointError::Index {
                    path: folder.dir().join(INDEX),
                    what: format!("is missing, and `{of}` promises other shards than are here"),
                });
                names
            }
        };
        warnings.extend(ignored(folder.dir(), &beside, &names));
        folder.expect(&names);
        let mut shards = Self {
            files: Vec::with_capacity(names.len()),
            stored: HashMap::new(),
            unopened: Vec::new(),
            incomplete,
            absent: BTreeMap::new(),
            phantoms: BTreeMap::new(),
            warnings,
            simd: Simd::detect(),
        };
        // By their names: the number of an open file, or of one that is not.
        let mut opened: HashMap<&str, Result<usize, usize>> = HashMap::new();
        for name in &names {
            let place = match Self::open_one(folder, name) {
                Ok((shard, data, header)) => Ok(shards.add(shard, data, &header)),
                Err(error) if index.is_some() => {
                    let missing = matches!(error, CheckpointError::MissingShard { .. });
                    let path = folder.path_of(name);
                    shards.unopened.push(Unopened { path, error: Some(error), missing });
                    Err(shards.unopened.len() - 1)
                }
                Err(error) => return Err(error),
            };
            opened.insert(name, place);
        }
        if let Some(index) = &index {
            shards.compare(index, &opened);
        }
        if folder.is_local() {
            shards.find_zero_tails()?;
        }
        // What fits into memory is left there for the next run.
        let large = memory().usable().is_some_and(|memory| shards.n_bytes() > memory / 2);
        shards.files.iter_mut().for_each(|shard| shard.blob.drop_pages(large));
        Ok(shards)
    }

    fn open_one(folder: &Folder, name: &str) -> Result<(Shard, u64, Metadata), CheckpointError> {
        let path = folder.path_of(name);
        let blob = match folder.open(name) {
            Ok(blob) => blob,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let beside = unfinished(folder.dir(), name);
                return Err(CheckpointError::MissingShard { path, beside });
            }
            Err(error) => return Err(IoError::new(&path, error).into()),
        };
        let (data, header) = read_header(&path, &*blob).map_err(|error| match error {
            CheckpointError::Header { .. } | CheckpointError::Truncated { .. } => {
                match seems(&path, &*blob) {
                    Some(seems) => CheckpointError::NotSafetensors { path: path.clone(), seems },
                    None => error,
                }
            }
            error => error,
        })?;
        Ok((Shard { path, blob }, data, header))
    }

    /// Adds a file with the tensors of its header, whose data begins at `data`.
    fn add(&mut self, shard: Shard, data: u64, header: &Metadata) -> usize {
        let number = self.files.len();
        self.files.push(shard);
        for (name, info) in header.tensors() {
            let (start, end) = info.data_offsets;
            let bytes = data + start as u64..data + end as u64;
            let stored = Stored { shard: number, info: info.clone(), bytes };
            self.stored.entry(of_text(&name)).or_default().push(stored);
        }
        number
    }

    /// Finds what the index says and the headers do not, and the reverse.
    fn compare(&mut self, index: &Index, opened: &HashMap<&str, Result<usize, usize>>) {
        let mut elsewhere = Vec::new();
        for (tensor, file) in &index.files_of {
            let indexed = opened[file.as_str()];
            match (self.stored.get_mut(tensor), indexed) {
                (Some(copies), Ok(shard)) if copies.iter().any(|copy| copy.shard == shard) => {
                    copies.sort_by_key(|copy| copy.shard != shard);
                }
                (Some(_), _) => elsewhere.push(tensor.as_str()),
                (None, Ok(shard)) => {
                    self.phantoms.insert(tensor.clone(), self.files[shard].path.clone());
                }
                (None, Err(unopened)) => {
                    self.absent.insert(tensor.clone(), unopened);
                }
            }
        }
        let mut unlisted: Vec<&str> = self.stored.keys().map(String::as_str).collect();
        unlisted.retain(|tensor| !index.files_of.contains_key(*tensor));
        unlisted.sort_unstable();
        let phantoms: Vec<&str> = self.phantoms.keys().map(String::as_str).collect();
        let parts = [
            (unlisted, "does not list"),
            (elsewhere, "has in another file"),
            (phantoms, "has where no file does"),
        ];
        let parts = parts.iter().filter(|(names, _)| !names.is_empty());
        let parts: Vec<String> =
            parts.map(|(names, what)| format!("{what} {}", few(names))).collect();
        if !parts.is_empty() {
            let (path, parts) = (index.path.display(), parts.join("; it "));
            let text = format!("{path}: it is not of the same time as the shards: it {parts}");
            self.warnings.push(Warning::new(Topic::Tensors, text));
        }
    }

    /// Bytes of all files together.
    pub fn n_bytes(&self) -> u64 {
        self.files.iter().map(|shard| shard.blob.size()).sum()
    }

    /// A tensor; `None` where no file that is here holds it.
    ///
    /// # Errors
    /// Two files hold it, and not the same.
    pub fn find(&self, name: &str) -> Result<Option<&Stored>, CheckpointError> {
        let Some(copies) = self.stored.get(name) else { return Ok(None) };
        let (first, others) = copies.split_first().expect("a name is there with its first copy");
        for other in others {
            if !self.are_equal(first, other)? {
                return Err(CheckpointError::Duplicate {
                    tensor: name.to_owned(),
                    first: self.path_of(first).to_owned(),
                    second: self.path_of(other).to_owned(),
                });
            }
        }
        Ok(Some(first))
    }

    fn are_equal(&self, a: &Stored, b: &Stored) -> Result<bool, CheckpointError> {
        const PART: u64 = 1 << 20;
        if (a.info.dtype, &a.info.shape) != (b.info.dtype, &b.info.shape) {
            return Ok(false);
        }
        let read = |stored: &Stored, at: u64| {
            let mut bytes = vec![0; PART.min(stored.bytes.end - stored.bytes.start - at) as usize];
            let Shard { path, blob } = &self.files[stored.shard];
            match blob.read_at(stored.bytes.start + at, &mut bytes) {
                Ok(()) => Ok(bytes),
                Err(error) => Err(IoError::new(path, error)),
            }
        };
        for at in (0..a.bytes.end - a.bytes.start).step_by(PART as usize) {
            if read(a, at)? != read(b, at)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a tensor is nothing but zeros.
    pub fn is_zero(&self, stored: &Stored) -> Result<bool, CheckpointError> {
        let Shard { path, blob } = &self.files[stored.shard];
        let io = |error| IoError::new(path, error);
        Ok(stored.bytes.is_empty() || is_zero(&**blob, stored.bytes.clone()).map_err(io)?)
    }

    /// The values of a tensor of a few integers; none of one that is another.
    pub fn integers(&self, stored: &Stored) -> Result<Vec<u64>, CheckpointError> {
        let width = match stored.info.dtype {
            Dtype::I64 | Dtype::U64 => 8,
            Dtype::I32 | Dtype::U32 => 4,
            _ => return Ok(Vec::new()),
        };
        let mut bytes = [0; 32];
        let Some(bytes) = bytes.get_mut(..(stored.bytes.end - stored.bytes.start) as usize) else {
            return Ok(Vec::new());
        };
        let Shard { path, blob } = &self.files[stored.shard];
        blob.read_at(stored.bytes.start, bytes).map_err(|error| IoError::new(path, error))?;
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b));
        Ok(bytes.chunks_exact(width).map(number).collect())
    }

    /// Fills `out` with bytes of a part's file.
    ///
    /// # Errors
    /// When the system cannot read them.
    pub fn read(&self, part: &Part, offset: u64, out: &mut [u8]) -> Result<(), SourceError> {
        let Shard { path, blob } = &self.files[part.shard];
        blob.read_at(offset, out)
            .map_err(|error| SourceError::reading(path.clone(), &part.name, error))
    }

    /// What is wrong with the bytes of a part.
    pub fn decode_error(&self, part: &Part, error: QuantError) -> SourceError {
        let (path, tensor) = (self.files[part.shard].path.clone(), part.name.clone());
        SourceError::Decode { path, tensor, error }
    }

    /// The file of a tensor.
    pub fn path_of(&self, stored: &Stored) -> &Path {
        &self.files[stored.shard].path
    }

    /// Why a tensor is not here, as far as files and index tell.
    pub fn why_missing(&mut self, name: &str) -> Option<CheckpointError> {
        if let Some(&unopened) = self.absent.get(name) {
            return self.unopened[unopened].error.take();
        }
        if let Some(path) = self.phantoms.get(name) {
            return Some(CheckpointError::NotInShard { path: path.clone(), tensor: name.into() });
        }
        self.incomplete.take()
    }

    /// Warns of files that end with zeros where weights should be.
    fn find_zero_tails(&mut self) -> Result<(), CheckpointError> {
        let mut last: Vec<Option<(&str, &Stored)>> = vec![None; self.files.len()];
        for (name, copies) in &self.stored {
            for stored in copies {
                let extents = stored.info.shape.iter().filter(|&&n| n > 1).count();
                let before = &mut last[stored.shard];
                if extents > 1 && before.is_none_or(|(_, b)| b.bytes.start < stored.bytes.start) {
                    *before = Some((name, stored));
                }
            }
        }
        for (shard, last) in self.files.iter().zip(last) {
            let Some((name, stored)) = last else { continue };
            let end = shard.blob.size();
            let zeros = stored.bytes.start.max(end / 2)..end;
            let found =
                is_zero(&*shard.blob, zeros).map_err(|error| IoError::new(&shard.path, error))?;
            if found {
                let text = format!(
                    "{}: nothing but zeros at its end, where `{name}` is at least: a download whose \
                     room was set aside and which has not ended? fetch it again",
                    shard.path.display()
                );
                self.warnings.push(Warning::new(Topic::Values, text));
            }
        }
        Ok(())
    }
}

/// A tensor's name without what tells the part for text of a model that also sees, as the reference
/// converter has it.
fn of_text(name: &str) -> String {
    name.replace("language_model.", "")
}

/// Whether all of these bytes are 0. Reads the last ones first, which tell of nearly every file.
fn is_zero(blob: &dyn Blob, bytes: Range<u64>) -> std::io::Result<bool> {
    let mut buffer = Vec::new();
    let (mut end, mut length) = (bytes.end, 1 << 10);
    while end > bytes.start {
        let start = end.saturating_sub(length).max(bytes.start);
        buffer.resize((end - start) as usize, 0);
        blob.read_at(start, &mut buffer)?;
        if buffer.iter().any(|&byte| byte != 0) {
            return Ok(false);
        }
        (end, length) = (start, 1 << 20);
    }
    Ok(!bytes.is_empty())
}

/// The index: the file of every tensor.
struct Index {
    path: PathBuf,
    files_of: BTreeMap<String, String>,
}

impl Index {
    /// Reads the usual index, or the only one that is there.
    fn read(dir: &Path) -> Result<Option<Self>, CheckpointError> {
        let mut path = dir.join(INDEX);
        if !path.is_file() {
            match names_in(dir, INDEX_END)?.as_slice() {
                [only] => path = dir.join(only),
                _ => return Ok(None),
            }
        }
        let json: Value = json::read(&path)?;
        let malformed =
            |what| CheckpointError::Index { path: path.clone(), what: String::from(what) };
        let map = json["weight_map"].as_object().ok_or_else(|| malformed("has no `weight_map`"))?;
        let mut files_of = BTreeMap::new();
        for (tensor, file) in map {
            let file = file.as_str().ok_or_else(|| malformed("names a file that is no string"))?;
            let within = |part| matches!(part, Component::Normal(_));
            if file.is_empty() || !Path::new(file).components().all(within) {
                return Err(malformed("names a file outside of the checkpoint's folder"));
            }
            files_of.insert(of_text(tensor), file.to_owned());
        }
        Ok(Some(Self { path, files_of }))
    }

    /// The files that it names, in order.
    fn files(&self) -> Vec<String> {
        let files: BTreeSet<&String> = self.files_of.values().collect();
        files.into_iter().cloned().collect()
    }

    /// Whether none of its files is here, and a complete set of others is.
    fn is_stale(&self, folder: &Folder, beside: &[String]) -> bool {
        self.files_of.values().all(|file| folder.lacks(file)) && Sets::of(beside).has_complete()
    }
}

/// Files that belong together by their names.
struct Sets<'a> {
    /// Files without a number.
    single: Vec<&'a String>,
    /// Numbered ones, by what comes after the number: `00003.safetensors`.
    numbered: BTreeMap<&'a str, Vec<&'a String>>,
}

impl<'a> Sets<'a> {
    fn of(beside: &'a [String]) -> Self {
        let mut sets = Self { single: Vec::new(), numbered: BTreeMap::new() };
        for name in beside.iter().filter(|name| name.starts_with("model")) {
            match name.split_once("-of-") {
                Some((_, of)) => sets.numbered.entry(of).or_default().push(name),
                None => sets.single.push(name),
            }
        }
        sets
    }

    fn is_complete(of: &str, files: &[&String]) -> bool {
        of.strip_suffix(SHARD_END).and_then(|n| n.parse().ok()) == Some(files.len())
    }

    fn has_complete(&self) -> bool {
        let complete = |(of, files): (&&str, &Vec<&String>)| Self::is_complete(of, files);
        !self.single.is_empty() || self.numbered.iter().any(complete)
    }

    /// The complete sets; where there is none, what is here, and a file of a set that lacks others.
    fn choose(self) -> (Vec<String>, Option<String>) {
        let any = self.has_complete();
        let mut lacking = None;
        let mut names: Vec<&String> = self.single;
        for (of, files) in &self.numbered {
            match Self::is_complete(of, files) {
                false if any => continue,
                false => lacking = files.first().map(|file| (*file).clone()),
                true => {}
            }
            names.extend(files);
        }
        names.sort_unstable();
        (names.into_iter().cloned().collect(), lacking)
    }
}

/// The files of weights in a folder, in order.
fn beside(dir: &Path) -> Result<Vec<String>, CheckpointError> {
    names_in(dir, SHARD_END)
}

/// The names in a folder that end so, in order.
fn names_in(dir: &Path, end: &str) -> Result<Vec<String>, CheckpointError> {
    let entries = std::fs::read_dir(dir).map_err(|error| IoError::new(dir, error))?;
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.retain(|name| name.ends_with(end));
    names.sort_unstable();
    Ok(names)
}

/// A folder without files of weights.
fn nothing(dir: &Path) -> CheckpointError {
    let pickles = [".bin", ".pth"].into_iter().filter_map(|end| names_in(dir, end).ok());
    match pickles.flatten().next() {
        Some(pickle) => CheckpointError::PytorchOnly { path: dir.join(pickle) },
        None => CheckpointError::NoShards { dir: dir.to_owned(), beside: unfinished(dir, "") },
    }
}

/// A file whose name begins so that may become one of weights, and what it seems to be.
fn unfinished(dir: &Path, name: &str) -> Option<(String, Seems)> {
    let mut names = names_in(dir, "").ok()?;
    names.retain(|found| found.starts_with(name) && found.contains(SHARD_END));
    names.into_iter().find_map(|name| {
        let seems = sniff::by_name(Path::new(&name))?;
        Some((name, seems))
    })
}

/// What a file is that is no safetensors file.
fn seems(path: &Path, blob: &dyn Blob) -> Option<Seems> {
    let mut head = vec![0; blob.size().min(sniff::WANTED as u64) as usize];
    blob.read_at(0, &mut head).ok()?;
    let seems = sniff::seems(&head, path)?;
    (!matches!(seems, Seems::Other { kind: "a safetensors file", .. })).then_some(seems)
}

/// A warning of files that look like weights of this checkpoint and are not read. Mistral's
/// `consolidated` files hold the same once more, which is as it should be.
fn ignored(dir: &Path, beside: &[String], names: &[String]) -> Option<Warning> {
    let mut ignored: Vec<&String> = beside.iter().collect();
    ignored.retain(|name| !names.contains(name) && !name.starts_with("consolidated"));
    (!ignored.is_empty()).then(|| {
        let text = format!(
            "{}: not read, as nothing says that they belong to the model: {}",
            dir.display(),
            few(&ignored)
        );
        Warning::new(Topic::Tensors, text)
    })
}

/// Longest header that safetensors files may have.
const MAX_HEADER: u64 = 100_000_000;

/// Where the data begins, and the tensors, which are found to tile the rest of the file.
fn read_header(path: &Path, blob: &dyn Blob) -> Result<(u64, Metadata), CheckpointError> {
    let io = |error| IoError::new(path, error);
    let truncated = || CheckpointError::Truncated { path: path.to_owned(), length: blob.size() };
    let invalid = |error| CheckpointError::Header { path: path.to_owned(), error };
    if blob.size() < 8 {
        return Err(truncated());
    }
    let mut length = [0; 8];
    blob.read_at(0, &mut length).map_err(io)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(invalid(SafeTensorError::HeaderTooLarge));
    }
    if length > blob.size() - 8 {
        return Err(truncated());
    }
    let mut header = vec![0; length as usize];
    blob.read_at(8, &mut header).map_err(io)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| {
        let path = path.to_owned();
        match unknown_dtype(&header) {
            Some((tensor, dtype)) => CheckpointError::Dtype { path, tensor, dtype },
            None => invalid(SafeTensorError::InvalidHeaderDeserialization(error)),
        }
    })?;
    let mut end = 0;
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        // As if none were 0, so that products of some of them fit too.
        let elements = info.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)));
        let bits = elements.and_then(|n| n.checked_mul(info.dtype.bitsize()));
        let bits = bits.ok_or_else(|| invalid(SafeTensorError::ValidationOverflow))?;
        let bits = if info.shape.contains(&0) { 0 } else { bits };
        if info.data_offsets.0 != end || info.data_offsets.1 < end {
            return Err(invalid(SafeTensorError::InvalidOffset(name)));
        }
        end = info.data_offsets.1;
        if bits % 8 != 0 || end - info.data_offsets.0 != bits / 8 {
            return Err(invalid(SafeTensorError::TensorInvalidInfo));
        }
    }
    match 8 + length + end as u64 == blob.size() {
        true => Ok((8 + length, metadata)),
        false => Err(truncated()),
    }
}

/// The tensor whose dtype made the header unreadable; the parser's own message does not name it.
fn unknown_dtype(header: &[u8]) -> Option<(String, String)> {
    let header: Value = serde_json::from_slice(header).ok()?;
    header.as_object()?.iter().filter(|(name, _)| *name != "__metadata__").find_map(|(name, t)| {
        let dtype = t.get("dtype")?;
        serde_json::from_value::<Dtype>(dtype.clone()).is_err().then(|| {
            (name.clone(), dtype.as_str().map_or_else(|| dtype.to_string(), str::to_owned))
        })
    })
}
