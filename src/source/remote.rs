//! Checkpoints behind a URL: S3, Google Cloud Storage, Azure, HTTP servers and the Hugging Face
//! hub, read with ranged requests.
//!
//! Weights pass through a cache of chunks of fixed size, whose number is bounded; a chunk is
//! fetched once, by whoever needs it first: a reader, or the hint that one will come. Nothing of
//! the weights is stored on this machine. Failed requests are tried again with growing pauses.

use super::folder::{DESCRIPTIONS, INDEX};
use super::url::{is_url, without_secrets};
use crate::gguf::{GgufError, Header};
use crate::io::Blob;
use crate::names::base;
use object_store::http::HttpBuilder;
use object_store::path::Path as ObjectPath;
use object_store::{ClientOptions, GetOptions, GetRange, HeaderMap, ObjectStore, ObjectStoreExt};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

/// Bytes of a chunk: large enough that its transfer outlasts the request's latency.
const CHUNK: u64 = 4 << 20;
/// Chunks held at once.
const CHUNKS: usize = 32;
/// Bytes fetched along with a file's size: the header of a shard of R1 is within.
const HEAD: u64 = 128 << 10;
/// Bytes fetched along with the size of a GGUF file: a header with a vocabulary of 130,000 tokens is within.
const GGUF_HEAD: u64 = 8 << 20;
/// Files of a folder that are listed, at most, and those that an error names.
const MOST_LISTED: usize = 10_000;
const MOST_NAMED: usize = 6;
/// Files whose heads are fetched at a time.
const AT_A_TIME: usize = 16;
/// Largest file that is taken for a description.
const SMALL: u64 = 256 << 20;

const SINGLE: &str = "model.safetensors";

/// What a remote store may need to know beside the URL.
#[derive(Default)]
pub struct RemoteOptions {
    /// Settings of the provider under their usual names, such as `AWS_ACCESS_KEY_ID`.
    pub settings: Vec<(String, String)>,
    /// Access token of the Hugging Face hub.
    pub hub_token: Option<String>,
    /// Address of the hub, if it is not `https://huggingface.co`.
    pub hub: Option<String>,
}

/// Something about a URL or what is behind it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// A URL that names no checkpoint.
    #[error(
        "{url}: {what}; known are s3://, gs://, az://, https:// and hf://organization/name[@revision]"
    )]
    Url {
        /// The URL, without secrets.
        url: String,
        /// What is wrong with it.
        what: String,
    },
    /// The store refuses, or cannot be reached.
    #[error("{url}: {what}")]
    Store {
        /// The URL, without secrets.
        url: String,
        /// What the store says, without secrets.
        what: String,
    },
    /// The descriptions cannot be kept on this machine.
    #[error("no room for the model's description: {0}")]
    Local(#[from] io::Error),
}

/// A folder behind a URL.
pub struct Remote {
    shared: Arc<Shared>,
    root: ObjectPath,
    /// The URL as it may be shown.
    label: String,
    /// Of the hub, where the list of a folder's files is.
    tree: Option<ObjectPath>,
    heads: Mutex<HashMap<String, Result<Head, object_store::Error>>>,
}

/// A checkpoint behind a URL, whose small files have been fetched.
pub struct RemoteFolder {
    remote: Remote,
    dir: PathBuf,
    _descriptions: TempDir,
}

struct Shared {
    runtime: Runtime,
    store: Arc<dyn ObjectStore>,
    cache: Mutex<Cache>,
}

/// The start of a file, and what the store says about all of it.
struct Head {
    size: u64,
    version: Option<String>,
    bytes: Bytes,
}

type Bytes = Arc<[u8]>;

/// The URL of a folder and the name of a GGUF file in it, where a URL names one.
pub fn gguf_in(url: &str) -> Option<(&str, &str)> {
    let path = url.split(['?', '#']).next().unwrap_or(url);
    let (folder, name) = path.rsplit_once('/').filter(|(_, name)| name.ends_with(".gguf"))?;
    is_url(folder).then_some((folder, name))
}

impl Remote {
    /// Takes a folder; nothing is fetched.
    ///
    /// # Errors
    /// A URL of an unknown kind, or no room for threads.
    pub fn new(url: &str, options: &RemoteOptions) -> Result<Self, RemoteError> {
        // One for the whole program; where that has chosen another, it stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let label = without_secrets(url.trim_end_matches('/'));
        let Found { store, root, tree } =
            store(url, options).map_err(|what| RemoteError::Url { url: label.clone(), what })?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let shared = Arc::new(Shared { runtime, store, cache: Mutex::default() });
        Ok(Self { shared, root, label, tree, heads: Mutex::default() })
    }

    /// A file's URL, as it may be shown.
    pub fn path_of(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("{}/{name}", self.label))
    }

    /// Memory that the cache and the heads of so many files take at most, chunks under way
    /// included.
    pub(super) fn cache_bytes(&self, files: usize) -> u64 {
        2 * CHUNKS as u64 * CHUNK + files as u64 * HEAD
    }

    fn object(&self, name: &str) -> ObjectPath {
        name.split('/').fold(self.root.clone(), |path, part| path.join(part))
    }

    fn failed(&self, name: &str, error: &object_store::Error) -> RemoteError {
        let what = without_secrets(&error.to_string());
        RemoteError::Store { url: self.path_of(name).display().to_string(), what }
    }

    /// A small file; `None` where there is none of that name.
    fn small(&self, path: &ObjectPath) -> Result<Option<Bytes>, object_store::Error> {
        let fetched = self.shared.runtime.block_on(async {
            let found = self.shared.store.get(path).await?;
            match found.meta.size <= SMALL {
                true => Ok(found.bytes().await?.as_ref().into()),
                false => Err(object_store::Error::Generic {
                    store: "remote",
                    source: "too large to be a description".into(),
                }),
            }
        });
        match fetched {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What is in a file that describes others; `None` where there is none of that name.
    ///
    /// # Errors
    /// What the store says, and a file that is too large to be such.
    pub fn description(&self, name: &str) -> Result<Option<Arc<[u8]>>, RemoteError> {
        self.small(&self.object(name)).map_err(|error| self.failed(name, &error))
    }

    /// Names and sizes of all files, those of folders within included.
    ///
    /// # Errors
    /// What the store says; servers of plain files have no lists.
    pub fn list(&self) -> Result<Vec<(String, u64)>, RemoteError> {
        let mut files = Vec::new();
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            let found = match &self.tree {
                Some(tree) => self.of_hub(tree, &folder)?,
                None => self.of_store(&folder)?,
            };
            for (name, size) in found {
                match size {
                    Some(size) => files.push((name, size)),
                    None if folders.len() + files.len() < MOST_LISTED => folders.push(name),
                    None => {}
                }
            }
        }
        files.sort_unstable();
        Ok(files)
    }

    /// What a folder of the hub holds: files with their sizes, and folders.
    fn of_hub(
        &self,
        tree: &ObjectPath,
        folder: &str,
    ) -> Result<Vec<(String, Option<u64>)>, RemoteError> {
        #[derive(serde::Deserialize)]
        struct Entry {
            path: String,
            #[serde(rename = "type")]
            kind: String,
            size: u64,
        }
        let parts = folder.split('/').filter(|part| !part.is_empty());
        let path = parts.fold(tree.clone(), |path, part| path.join(part));
        let bytes = self.small(&path).map_err(|error| self.failed(folder, &error))?;
        let bad = |what: String| RemoteError::Store { url: self.label.clone(), what };
        let bytes =
            bytes.ok_or_else(|| bad("there is no such repository or revision".to_owned()))?;
        let entries: Vec<Entry> = serde_json::from_slice(&bytes)
            .map_err(|error| bad(format!("a list of files that cannot be read: {error}")))?;
        let of = |entry: Entry| (entry.path, (entry.kind == "file").then_some(entry.size));
        Ok(entries.into_iter().map(of).collect())
    }

    fn of_store(&self, folder: &str) -> Result<Vec<(String, Option<u64>)>, RemoteError> {
        let parts = folder.split('/').filter(|part| !part.is_empty());
        let path = parts.fold(self.root.clone(), |path, part| path.join(part));
        let listed = self.shared.store.list_with_delimiter(Some(&path));
        let listed = self.shared.runtime.block_on(listed);
        let listed = listed.map_err(|error| self.failed(folder, &error))?;
        let name = |path: &ObjectPath| -> String {
            let below = path.prefix_match(&self.root);
            let parts = below.into_iter().flatten().map(|part| part.as_ref().to_owned());
            parts.collect::<Vec<_>>().join("/")
        };
        let files = listed.objects.iter().map(|meta| (name(&meta.location), Some(meta.size)));
        let folders = listed.common_prefixes.iter().map(|path| (name(path), None));
        Ok(files.chain(folders).collect())
    }

    /// Fetches so many bytes of these files' beginnings, many files at a time.
    fn expect(&self, names: &[String], bytes: u64) {
        for some in names.chunks(AT_A_TIME) {
            let mut tasks = JoinSet::new();
            for name in some {
                let (store, path) = (self.shared.store.clone(), self.object(name));
                let name = name.clone();
                let handle = self.shared.runtime.handle();
                let head = async move { (name, head(&*store, &path, bytes).await) };
                tasks.spawn_on(head, handle);
            }
            let done = self.shared.runtime.block_on(tasks.join_all());
            self.heads.lock().unwrap_or_else(PoisonError::into_inner).extend(done);
        }
    }

    /// Opens a file, of whose beginning so many bytes are fetched with its size.
    fn open(&self, name: &str, bytes: u64) -> io::Result<RemoteFile> {
        let path = self.object(name);
        let known = self.heads.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        let head = match known {
            Some(head) => head,
            None => self.shared.runtime.block_on(head(&*self.shared.store, &path, bytes)),
        };
        let head = head.map_err(io_error)?;
        Ok(RemoteFile { shared: self.shared.clone(), path, head })
    }

    /// The header of a GGUF file, whose data may be missing.
    ///
    /// # Errors
    /// As [`Header::read`], and what the store says.
    pub fn gguf_header(&self, name: &str) -> Result<Header, GgufError> {
        let path = self.path_of(name);
        let file = self.open(name, GGUF_HEAD).map_err(|error| GgufError::io(&path, error));
        file?.header(&path)
    }

    /// Opens GGUF files, of whose headers the first one's has a vocabulary.
    pub(super) fn open_all(&self, paths: &[PathBuf], first: bool) -> Vec<io::Result<RemoteFile>> {
        let bytes = if first { GGUF_HEAD } else { HEAD };
        let names: Vec<String> = paths.iter().map(base).collect();
        self.expect(&names, bytes);
        names.iter().map(|name| self.open(name, bytes)).collect()
    }
}

impl RemoteFolder {
    /// Fetches the small files of a checkpoint.
    ///
    /// # Errors
    /// A URL of an unknown kind, or a store that refuses.
    pub fn open(url: &str, options: &RemoteOptions) -> Result<Self, RemoteError> {
        let remote = Remote::new(url, options)?;
        // The converter takes the model's name from that of its folder. A revision is no part of it.
        let label = remote.label.as_str();
        let place = label.split_once("/resolve/").map_or(label, |(place, _)| place);
        let revision = place.find('@').filter(|_| place.starts_with("hf://"));
        let place = &place[..revision.unwrap_or(place.len())];
        let name = place.rsplit('/').next().unwrap_or("model");
        let name = name.split('@').next().unwrap_or(name);
        let descriptions = tempfile::tempdir()?;
        let dir = descriptions.path().join(name);
        std::fs::create_dir(&dir)?;
        let folder = Self { remote, dir, _descriptions: descriptions };
        folder.fetch_descriptions()?;
        Ok(folder)
    }

    fn fetch_descriptions(&self) -> Result<(), RemoteError> {
        for name in DESCRIPTIONS {
            match self.remote.description(name)? {
                Some(bytes) => std::fs::write(self.dir.join(name), bytes)?,
                None if name == DESCRIPTIONS[0] => return Err(self.nothing()),
                None => {}
            }
        }
        if !self.dir.join(INDEX).exists() {
            // Its name is all that is needed of a single file of weights.
            std::fs::write(self.dir.join(SINGLE), [])?;
        }
        Ok(())
    }

    /// A folder without a configuration, which may hold GGUF files.
    fn nothing(&self) -> RemoteError {
        let url = self.remote.path_of(DESCRIPTIONS[0]).display().to_string();
        let files = self.remote.tree.as_ref().and_then(|_| self.remote.list().ok());
        let files = files.unwrap_or_default().into_iter().map(|(name, _)| name);
        let mut names: Vec<String> = files.filter(|name| name.ends_with(".gguf")).collect();
        let more = names.len().saturating_sub(MOST_NAMED);
        names.truncate(MOST_NAMED);
        if more > 0 {
            names.push(format!("{more} more"));
        }
        let what = match names.is_empty() {
            true => "there is no such file".to_owned(),
            false => format!(
                "there is no such file, but there are GGUF files: {}; add the name of one to the URL",
                names.join(", ")
            ),
        };
        RemoteError::Store { url, what }
    }

    /// The local folder that holds the small files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file's URL, as it may be shown.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.remote.path_of(name)
    }

    /// Memory that the cache and the heads of so many files take at most, chunks under way
    /// included.
    pub fn cache_bytes(&self, files: usize) -> u64 {
        self.remote.cache_bytes(files)
    }

    /// Fetches the heads of these files, many at a time.
    pub fn expect(&self, names: &[String]) {
        self.remote.expect(names, HEAD);
    }

    /// Opens a file of weights.
    ///
    /// # Errors
    /// What the store says.
    pub fn open_file(&self, name: &str) -> io::Result<Box<dyn Blob>> {
        Ok(Box::new(self.remote.open(name, HEAD)?))
    }
}

/// A file of weights behind a URL.
pub(super) struct RemoteFile {
    shared: Arc<Shared>,
    path: ObjectPath,
    head: Head,
}

impl Blob for RemoteFile {
    fn size(&self) -> u64 {
        self.head.size
    }

    fn version(&self) -> String {
        self.head.version.clone().unwrap_or_default()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(out.len() as u64).filter(|&end| end <= self.head.size);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        if end <= self.head.bytes.len() as u64 {
            out.copy_from_slice(&self.head.bytes[offset as usize..end as usize]);
            return Ok(());
        }
        let mut at = offset;
        while at < end {
            let (start, cell) = (at - at % CHUNK, self.cell(at / CHUNK, true));
            let cell = cell.expect("readers always get a cell");
            let chunk = self.shared.runtime.block_on(self.load(&cell, start)).map_err(io_error)?;
            let stop = end.min(start + CHUNK);
            let into = (at - offset) as usize..(stop - offset) as usize;
            out[into].copy_from_slice(&chunk[(at - start) as usize..(stop - start) as usize]);
            at = stop;
        }
        Ok(())
    }

    fn prefetch(&self, bytes: Range<u64>) {
        for chunk in bytes.start / CHUNK..bytes.end.min(self.head.size).div_ceil(CHUNK) {
            let Some(cell) = self.cell(chunk, false) else { return };
            let file = RemoteFile {
                shared: self.shared.clone(),
                path: self.path.clone(),
                head: Head { bytes: Arc::new([]), version: self.head.version.clone(), ..self.head },
            };
            // What fails here is tried again, and reported, by the reader.
            self.shared.runtime.spawn(async move {
                let _ = file.load(&cell, chunk * CHUNK).await;
            });
        }
    }
}

impl RemoteFile {
    /// The header of a GGUF file, of which more is fetched where the beginning does not hold it.
    pub fn header(&mut self, path: &Path) -> Result<Header, GgufError> {
        loop {
            let there = self.head.bytes.len() as u64;
            match Header::parse(path, &self.head.bytes, self.head.size) {
                Err(GgufError::Truncated { .. }) if there < self.head.size => {
                    let end = self.head.size.min(8 * there.max(HEAD));
                    let more = self.shared.runtime.block_on(self.fetch(there..end));
                    let more = more.map_err(|error| GgufError::io(path, io_error(error)))?;
                    self.head.bytes = [&*self.head.bytes, &more].concat().into();
                }
                header => {
                    // Nobody reads it again.
                    self.head.bytes = Arc::new([]);
                    return header;
                }
            }
        }
    }

    /// The chunk's place in the cache. A hint gets none where others wait to be read or the chunk
    /// is there already.
    fn cell(&self, chunk: u64, reader: bool) -> Option<Arc<OnceCell<Bytes>>> {
        self.shared.cache().cell(&self.path, chunk, reader)
    }

    async fn load(&self, cell: &OnceCell<Bytes>, start: u64) -> Result<Bytes, object_store::Error> {
        let range = start..self.head.size.min(start + CHUNK);
        cell.get_or_try_init(|| self.fetch(range)).await.cloned()
    }

    /// Bytes of the file that was opened, and of no other that has taken its place.
    async fn fetch(&self, range: Range<u64>) -> Result<Bytes, object_store::Error> {
        let expected = (range.end - range.start) as usize;
        let (bytes, size, version) = get(&*self.shared.store, &self.path, range).await?;
        match bytes.len() == expected && size == self.head.size && version == self.head.version {
            true => Ok(bytes),
            false => Err(object_store::Error::Generic {
                store: "remote",
                source: "the file has changed since it was opened; begin anew".into(),
            }),
        }
    }
}

/// Chunks in the order of their last use.
#[derive(Default)]
struct Cache {
    slots: VecDeque<Slot>,
}

struct Slot {
    path: ObjectPath,
    chunk: u64,
    bytes: Arc<OnceCell<Bytes>>,
    /// Whether a reader has been here.
    read: bool,
}

impl Shared {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    fn cell(
        &mut self,
        path: &ObjectPath,
        chunk: u64,
        reader: bool,
    ) -> Option<Arc<OnceCell<Bytes>>> {
        let known = self.slots.iter().position(|s| s.chunk == chunk && s.path == *path);
        let slot = match known {
            Some(_) if !reader => return None,
            Some(i) => self.slots.remove(i)?,
            None => {
                let unread = self.slots.iter().filter(|s| !s.read).count();
                if !reader && unread >= CHUNKS / 2 {
                    return None;
                }
                if self.slots.len() == CHUNKS {
                    // What has been read is needed less than what will be.
                    let oldest = self.slots.iter().position(|s| s.read).unwrap_or(0);
                    self.slots.remove(oldest);
                }
                Slot { path: path.clone(), chunk, bytes: Arc::default(), read: false }
            }
        };
        let bytes = slot.bytes.clone();
        self.slots.push_back(Slot { read: slot.read || reader, ..slot });
        Some(bytes)
    }
}

async fn head(
    store: &dyn ObjectStore,
    path: &ObjectPath,
    bytes: u64,
) -> Result<Head, object_store::Error> {
    let (bytes, size, version) = get(store, path, 0..bytes).await?;
    Ok(Head { size, version, bytes })
}

/// Bytes of an object, its size, and what changes when it does.
async fn get(
    store: &dyn ObjectStore,
    path: &ObjectPath,
    range: Range<u64>,
) -> Result<(Bytes, u64, Option<String>), object_store::Error> {
    let range = Some(GetRange::Bounded(range));
    let found = store.get_opts(path, GetOptions { range, ..GetOptions::default() }).await?;
    let meta = found.meta.clone();
    let version = meta.e_tag;
    Ok((found.bytes().await?.as_ref().into(), meta.size, version))
}

/// The store behind a URL.
struct Found {
    store: Arc<dyn ObjectStore>,
    /// The folder within.
    root: ObjectPath,
    /// Of the hub, where the list of a folder's files is.
    tree: Option<ObjectPath>,
}

fn store(url: &str, options: &RemoteOptions) -> Result<Found, String> {
    if let Some(place) = url.strip_prefix("hf://") {
        return hub(place, options);
    }
    let url = url::Url::parse(url).map_err(|error| error.to_string())?;
    let mut settings = options.settings.clone();
    if url.scheme() == "http" {
        settings.push(("allow_http".to_owned(), "true".to_owned()));
    }
    let pairs = settings.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let (store, root) = object_store::parse_url_opts(&url, pairs)
        .map_err(|error| without_secrets(&error.to_string()))?;
    Ok(Found { store: store.into(), root, tree: None })
}

/// A repository of the Hugging Face hub: `organization/name`, a revision behind an `@`, and a folder.
fn hub(place: &str, options: &RemoteOptions) -> Result<Found, String> {
    let parts: Vec<&str> = place.trim_end_matches('/').split('/').collect();
    let [organization, name, rest @ ..] = &parts[..] else {
        return Err(FORM_OF_HUB.to_owned());
    };
    let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
    // Such as `refs/pr/1`, which is one segment of the address.
    let of_refs = if revision == "refs" { rest.len().min(2) } else { 0 };
    let (of_revision, folder) = rest.split_at(of_refs);
    let revision = [&[revision], of_revision].concat().join("/");
    if parts.iter().any(|part| part.is_empty()) || name.is_empty() || revision.is_empty() {
        return Err(FORM_OF_HUB.to_owned());
    }
    let address = options.hub.as_deref().unwrap_or("https://huggingface.co");
    let mut client = ClientOptions::new().with_allow_http(address.starts_with("http://"));
    if let Some(token) = &options.hub_token {
        let mut value: http::HeaderValue =
            format!("Bearer {token}").parse().map_err(|_| "the hub's token is malformed")?;
        value.set_sensitive(true);
        client = client
            .with_default_headers(HeaderMap::from_iter([(http::header::AUTHORIZATION, value)]));
    }
    let store = HttpBuilder::new()
        .with_url(address)
        .with_client_options(client)
        .build()
        .map_err(|error| error.to_string())?;
    let under = |begin: &[&str], what: &str| {
        let parts = begin.iter().copied().chain([*organization, name, what, &revision]);
        ObjectPath::from_iter(parts.chain(folder.iter().copied()))
    };
    let (root, tree) = (under(&[], "resolve"), under(&["api", "models"], "tree"));
    Ok(Found { store: Arc::new(store), root, tree: Some(tree) })
}

const FORM_OF_HUB: &str = "not of the form hf://organization/name[@revision]";

fn io_error(error: object_store::Error) -> io::Error {
    let kind = match error {
        object_store::Error::NotFound { .. } => io::ErrorKind::NotFound,
        object_store::Error::PermissionDenied { .. }
        | object_store::Error::Unauthenticated { .. } => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, without_secrets(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_leave_room_for_readers() {
        let mut cache = Cache::default();
        let path = ObjectPath::from("a");
        for chunk in 0..CHUNKS as u64 {
            let taken = cache.cell(&path, chunk, false).is_some();
            assert_eq!(taken, chunk < CHUNKS as u64 / 2);
        }
        for chunk in 0..3 * CHUNKS as u64 {
            assert!(cache.cell(&path, chunk, true).is_some());
            assert!(cache.slots.len() <= CHUNKS);
        }
        assert!(cache.cell(&path, 3 * CHUNKS as u64 - 1, false).is_none());
    }
}
