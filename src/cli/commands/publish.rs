//! `requant publish`: what a hub shows of a folder of GGUF files, written beside them.

use crate::cli::args::places;
use crate::cli::progress::Progress;
use crate::cli::say;
use crate::cli::views::page::{self, Entry, Page};
use crate::convert::{HashedFile, MadeWith, Manifest, RECIPE};
use crate::gguf::{Metadata, whole_name};
use crate::io::{LocalDisk, write};
use crate::names::base;
use crate::recipe::FileType;
use crate::source::{GgufSource, Source, Storage, TensorMeta};
use anyhow::{Context, bail};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Write the page of a folder of GGUF files: README.md for the hub, SHA256SUMS, and a picture of their quality.
///
/// The page has the front matter that the hub reads, a table of the files, how each was made, the command that
/// makes it again, and checksums. What nobody has said, such as who quantized the model, is left to fill in.
/// Nothing is uploaded.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  requant compare DeepSeek-R1 R1-GGUF/*.gguf --text wiki.test.raw --json \
                        > quality.json\n  requant publish R1-GGUF --quality quality.json --base-model \
                        deepseek-ai/DeepSeek-R1"
)]
pub struct Args {
    /// Folder with GGUF files; manifests beside them (convert --manifest) are read
    folder: PathBuf,
    /// What requant compare --json printed for the files
    #[arg(long, value_name = "FILE")]
    quality: Option<PathBuf>,
    /// The original model on the hub, organization/name [default: what the files say]
    #[arg(long, value_name = "NAME")]
    base_model: Option<String>,
    /// Who quantized it
    #[arg(long, value_name = "NAME")]
    quantized_by: Option<String>,
    /// Replace what an earlier call wrote
    #[arg(long, short)]
    force: bool,
}

const PAGE: &str = "README.md";
const SUMS: &str = "SHA256SUMS";
const PICTURE: &str = "quality.svg";

pub fn run(args: &Args) -> anyhow::Result<()> {
    let at = |name: &str| args.folder.join(name);
    let quality = args.quality.as_deref().map(read_json).transpose()?;
    let found = models(&args.folder)?;
    let Some((first, _)) = found.first() else {
        bail!("{}: no GGUF model in there", args.folder.display());
    };
    let metadata = first.metadata();
    for name in [Some(PAGE), Some(SUMS), quality.as_ref().map(|_| PICTURE)].into_iter().flatten() {
        places::prepare_new(&at(name), args.force)?;
    }
    let sums = checksums(&found)?;
    let mut entries: Vec<Entry> = found
        .iter()
        .map(|(source, manifest)| entry(source, manifest.as_ref()))
        .collect::<anyhow::Result<_>>()?;
    if let Some((path, json)) = &quality {
        page::measure(&mut entries, json);
        for entry in entries.iter().filter(|entry| entry.quality.is_none()) {
            let text = format!("{}: not in {}", entry.file, path.display());
            say::warning(&crate::warning::Warning::new(crate::warning::Topic::Output, text));
        }
        say::heed()?;
    }
    let picture = page::picture(&entries);
    let json = quality.as_ref().map(|(_, json)| json);
    let page = Page {
        metadata,
        base_model: args.base_model.clone().or_else(|| base_model(metadata)),
        quantized_by: args.quantized_by.as_deref(),
        quality: json.zip(picture.as_ref().map(|_| PICTURE)),
        sums: SUMS,
        entries: &entries,
    };
    if let Some(picture) = &picture {
        write(&LocalDisk, &at(PICTURE), picture.as_bytes())?;
    }
    let lines: String =
        sums.iter().map(|file| format!("{}  {}\n", file.sha256, file.name)).collect();
    write(&LocalDisk, &at(SUMS), lines.as_bytes())?;
    write(&LocalDisk, &at(PAGE), page::text(&page).as_bytes())?;
    say::info(format!("{}: written; what is left to fill in says so", at(PAGE).display()));
    Ok(())
}

fn read_json(path: &Path) -> anyhow::Result<(PathBuf, Json)> {
    let json: Json = crate::json::read(path)?;
    if !json["models"].is_array() {
        bail!("{}: not what `requant compare --json` prints", path.display());
    }
    Ok((path.to_owned(), json))
}

/// The models of a folder with their manifests, the largest first.
fn models(folder: &Path) -> anyhow::Result<Vec<(GgufSource, Option<Manifest>)>> {
    let listed = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut found = Vec::new();
    for file in listed {
        let path = file.with_context(|| folder.display().to_string())?.path();
        let name = base(&path);
        let Some(stem) = name.strip_suffix(".gguf") else { continue };
        let whole = whole_name(stem);
        if whole != stem && !stem[whole.len()..].starts_with("-00001-of-") {
            continue;
        }
        let source = GgufSource::open(&path)?;
        // An importance matrix and the like.
        if !matches!(source.metadata().str("general.type"), Ok(None | Some("model"))) {
            continue;
        }
        let manifest = Manifest::beside(&path).map(|path| Manifest::read(&path)).transpose()?;
        found.push((source, manifest));
    }
    found.sort_by_key(|(source, _)| std::cmp::Reverse(source.n_bytes()));
    Ok(found)
}

/// SHA-256 of all files: as manifests have it, for files of the size that they know, otherwise reckoned.
fn checksums(models: &[(GgufSource, Option<Manifest>)]) -> anyhow::Result<Vec<HashedFile>> {
    let files = models.iter().flat_map(|(source, manifest)| {
        let known = manifest.as_ref().map_or(&[][..], |manifest| &manifest.outputs);
        Storage::files(source).into_iter().map(move |file| {
            let name = base(&file.path);
            let is_it = |hash: &&HashedFile| base(&hash.name) == name && hash.bytes == file.size;
            let hash = known.iter().find(is_it).map(|hash| HashedFile { name, ..hash.clone() });
            (file, hash)
        })
    });
    let files: Vec<_> = files.collect();
    let left = files.iter().filter(|(_, known)| known.is_none()).map(|(file, _)| file.size).sum();
    let progress = Progress::start("hash", left, "B", 0);
    let hashed = files.into_iter().map(|(file, known)| match known {
        Some(known) => Ok(known),
        None => Ok(HashedFile::of(&file.path, &progress)?),
    });
    let hashed = hashed.collect::<anyhow::Result<Vec<_>>>()?;
    if left > 0 {
        progress.finish();
    }
    Ok(hashed)
}

fn entry(source: &GgufSource, manifest: Option<&Manifest>) -> anyhow::Result<Entry> {
    let metadata = source.metadata();
    let files = Storage::files(source);
    let file = base(&files[0].path);
    let mut types: BTreeMap<String, usize> = BTreeMap::new();
    for tensor in source.tensors() {
        *types.entry(tensor.dtype.to_string()).or_default() += 1;
    }
    let bytes: u64 = source.tensors().iter().map(TensorMeta::n_bytes).sum();
    let weights: u64 = source.tensors().iter().map(TensorMeta::n_elements).sum();
    let ty = mix_name(metadata, &file);
    let made_with = MadeWith::read(metadata)?;
    Ok(Entry {
        command: manifest.map(|manifest| manifest.options.clone()),
        recipe: metadata.str(RECIPE)?.map(str::to_owned),
        importances: made_with.imatrix.map(|imatrix| (imatrix.file, imatrix.dataset)),
        calibration: made_with.calibration.map(|text| text.file),
        search: made_with.search,
        n_files: files.len(),
        bytes: files.iter().map(|file| file.size).sum(),
        bits_per_weight: bytes as f64 * 8.0 / weights.max(1) as f64,
        types: types.into_iter().collect(),
        file,
        ty,
        quality: None,
    })
}

/// The name of a recipe where the file has its text, of a mix otherwise.
fn mix_name(metadata: &Metadata, file: &str) -> String {
    let recipe = metadata.str(RECIPE).ok().flatten();
    let named = recipe.and_then(|text| crate::recipe::Recipe::parse(text).ok());
    let id = metadata.u32("general.file_type").ok().flatten();
    let mix = id.and_then(FileType::of_id);
    match (named, mix) {
        (Some(recipe), _) => recipe.name().to_owned(),
        (None, Some(mix)) => mix.to_string(),
        (None, None) => file.to_owned(),
    }
}

/// The repository on the hub that the files name as their source.
fn base_model(metadata: &Metadata) -> Option<String> {
    const HUB: &str = "https://huggingface.co/";
    let keys = ["general.source.repo_url", "general.repo_url", "general.source.url"];
    let urls = keys.iter().filter_map(|key| metadata.str(key).ok().flatten());
    let mut names = urls.filter_map(|url| url.strip_prefix(HUB));
    names.find(|name| name.split('/').count() == 2).map(str::to_owned)
}
