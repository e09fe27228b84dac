//! Checkpoints behind a URL: S3, Google Cloud Storage, Azure, HTTP servers and the Hugging Face
//! hub, read with ranged requests.
//!
//! Weights pass through a cache of chunks of fixed size, whose number is bounded; a chunk is
//! fetched once, by whoever needs it first: a reader, or the hint that one will come. Nothing of
//! the weights is stored on this machine. Failed requests are tried again with growing pauses.

use crate::io::Blob;
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
/// Files whose heads are fetched at a time.
const AT_A_TIME: usize = 16;
/// Largest file that is taken for a description.
const SMALL: u64 = 256 << 20;

/// The files that describe a model, where they exist.
const DESCRIPTIONS: [&str; 13] = [
    "config.json",
    "generation_config.json",
    "hf_quant_config.json",
    "tokenizer.json",
    "tiktoken.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "README.md",
];
const INDEX: &str = "model.safetensors.index.json";
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

/// Whether this is a URL rather than a path.
pub fn is_url(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| {
        scheme.len() > 1 && scheme.chars().all(|c| c.is_ascii_alphanumeric())
    })
}

/// A folder behind a URL, whose small files have been fetched.
pub struct RemoteFolder {
    shared: Arc<Shared>,
    root: ObjectPath,
    /// The URL as it may be shown.
    label: String,
    heads: Mutex<HashMap<String, Result<Head, object_store::Error>>>,
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

impl RemoteFolder {
    /// Fetches the small files of a checkpoint.
    ///
    /// # Errors
    /// A URL of an unknown kind, or a store that refuses.
    pub fn open(url: &str, options: &RemoteOptions) -> Result<Self, RemoteError> {
        let label = without_secrets(url.trim_end_matches('/'));
        let bad = |what: String| RemoteError::Url { url: label.clone(), what };
        let (store, root) = store(url, options).map_err(&bad)?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        // The converter takes the model's name from that of its folder. A revision is no part of it.
        let place = label.split_once("/resolve/").map_or(label.as_str(), |(place, _)| place);
        let revision = place.find('@').filter(|_| place.starts_with("hf://"));
        let place = &place[..revision.unwrap_or(place.len())];
        let name = place.rsplit('/').next().unwrap_or("model");
        let name = name.split('@').next().unwrap_or(name);
        let descriptions = tempfile::tempdir()?;
        let dir = descriptions.path().join(name);
        std::fs::create_dir(&dir)?;
        let cache = Mutex::default();
        let shared = Arc::new(Shared { runtime, store, cache });
        let heads = Mutex::default();
        let folder = Self { shared, root, label, heads, dir, _descriptions: descriptions };
        folder.fetch_descriptions()?;
        Ok(folder)
    }

    fn fetch_descriptions(&self) -> Result<(), RemoteError> {
        let failed = |name: &str, error: object_store::Error| RemoteError::Store {
            url: self.path_of(name).display().to_string(),
            what: without_secrets(&error.to_string()),
        };
        for name in DESCRIPTIONS.into_iter().chain([INDEX]) {
            let path = self.object(name);
            let fetched = self.shared.runtime.block_on(async {
                let found = self.shared.store.get(&path).await?;
                match found.meta.size <= SMALL {
                    true => found.bytes().await,
                    false => Err(object_store::Error::Generic {
                        store: "remote",
                        source: "too large to be a description".into(),
                    }),
                }
            });
            match fetched {
                Ok(bytes) => std::fs::write(self.dir.join(name), bytes)?,
                Err(object_store::Error::NotFound { .. }) if name != DESCRIPTIONS[0] => {}
                Err(error) => return Err(failed(name, error)),
            }
        }
        if !self.dir.join(INDEX).exists() {
            // Its name is all that is needed of a single file of weights.
            std::fs::write(self.dir.join(SINGLE), [])?;
        }
        Ok(())
    }

    /// The local folder that holds the small files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file's URL, as it may be shown.
    pub fn path_of(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("{}/{name}", self.label))
    }

    /// Memory that the cache and the heads of so many files take at most, chunks under way
    /// included.
    pub fn cache_bytes(&self, files: usize) -> u64 {
        2 * CHUNKS as u64 * CHUNK + files as u64 * HEAD
    }

    fn object(&self, name: &str) -> ObjectPath {
        name.split('/').fold(self.root.clone(), |path, part| path.join(part))
    }

    /// Fetches the heads of these files, many at a time.
    pub fn expect(&self, names: &[String]) {
        for some in names.chunks(AT_A_TIME) {
            let mut tasks = JoinSet::new();
            for name in some {
                let (store, path) = (self.shared.store.clone(), self.object(name));
                let name = name.clone();
                let handle = self.shared.runtime.handle();
                tasks.spawn_on(async move { (name, head(&*store, &path).await) }, handle);
            }
            let done = self.shared.runtime.block_on(tasks.join_all());
            self.heads.lock().unwrap_or_else(PoisonError::into_inner).extend(done);
        }
    }

    /// Opens a file of weights.
    ///
    /// # Errors
    /// What the store says.
    pub fn open_file(&self, name: &str) -> io::Result<Box<dyn Blob>> {
        let path = self.object(name);
        let known = self.heads.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        let head = match known {
            Some(head) => head,
            None => self.shared.runtime.block_on(head(&*self.shared.store, &path)),
        };
        let head = head.map_err(io_error)?;
        Ok(Box::new(RemoteFile { shared: self.shared.clone(), path, head }))
    }
}

/// A file of weights behind a URL.
struct RemoteFile {
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
    /// The chunk's place in the cache. A hint gets none where others wait to be read or the chunk
    /// is there already.
    fn cell(&self, chunk: u64, reader: bool) -> Option<Arc<OnceCell<Bytes>>> {
        self.shared.cache().cell(&self.path, chunk, reader)
    }

    async fn load(&self, cell: &OnceCell<Bytes>, start: u64) -> Result<Bytes, object_store::Error> {
        let range = start..self.head.size.min(start + CHUNK);
        let expected = (range.end - range.start) as usize;
        let load = || async {
            let (bytes, size, version) = get(&*self.shared.store, &self.path, range).await?;
            match bytes.len() == expected && size == self.head.size && version == self.head.version
            {
                true => Ok(bytes),
                false => Err(object_store::Error::Generic {
                    store: "remote",
                    source: "the file has changed since it was opened; begin anew".into(),
                }),
            }
        };
        cell.get_or_try_init(load).await.cloned()
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

async fn head(store: &dyn ObjectStore, path: &ObjectPath) -> Result<Head, object_store::Error> {
    let (bytes, size, version) = get(store, path, 0..HEAD).await?;
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

/// The store behind a URL, and the folder within.
fn store(url: &str, options: &RemoteOptions) -> Result<(Arc<dyn ObjectStore>, ObjectPath), String> {
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
    Ok((store.into(), root))
}

/// A repository of the Hugging Face hub: `organization/name`, and a revision behind an `@`.
fn hub(place: &str, options: &RemoteOptions) -> Result<(Arc<dyn ObjectStore>, ObjectPath), String> {
    let (id, revision) = place.trim_end_matches('/').split_once('@').unwrap_or((place, "main"));
    let id = id.trim_end_matches('/');
    if id.split('/').count() != 2 || id.split('/').any(str::is_empty) || revision.is_empty() {
        return Err("not of the form hf://organization/name[@revision]".to_owned());
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
    // A revision such as `refs/pr/1` is one segment of the address.
    let root = ObjectPath::from_iter(id.split('/').chain(["resolve", revision]));
    Ok((Arc::new(store), root))
}

fn io_error(error: object_store::Error) -> io::Error {
    let kind = match error {
        object_store::Error::NotFound { .. } => io::ErrorKind::NotFound,
        object_store::Error::PermissionDenied { .. }
        | object_store::Error::Unauthenticated { .. } => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, without_secrets(&error.to_string()))
}

/// A text without the parts of URLs that grant access: what follows a `?`, and what precedes an
/// `@` in front of the host.
fn without_secrets(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, url) = rest.split_at(at + 3);
        out += before;
        let end = url.find(|c: char| c.is_whitespace() || "\"')>".contains(c)).unwrap_or(url.len());
        let (url, after) = url.split_at(end);
        let url = url.split('?').next().unwrap_or(url);
        let (host, path) = url.split_at(url.find('/').unwrap_or(url.len()));
        // On the hub the `@` introduces a revision, and stands behind the first slash.
        out += host.rsplit('@').next().unwrap_or(host);
        out += path;
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let shown = without_secrets("GET \"https://u:p@host/a/b?sig=xyz\" failed, see hf://o/n@v1");
        assert_eq!(shown, "GET \"https://host/a/b\" failed, see hf://o/n@v1");
    }

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

    #[test]
    fn urls_are_told_from_paths() {
        assert!(is_url("s3://bucket/x") && is_url("hf://a/b"));
        assert!(!is_url("models/R1") && !is_url("C:\\models") && !is_url("/a://b"));
    }
}
