//! Where a model is: a folder or file, or a URL with the credentials that its provider's tools use.

use crate::cli::say;
use crate::convert::Manifest;
use crate::gguf::Header;
use crate::model::{CheckpointModel, GgufModel, Model, Mtp};
use crate::source::{Folder, GgufSource, is_url};
use crate::warning::{Topic, Warning};
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};

/// The URL that an argument is, if it is one.
pub(crate) fn url(place: &Path) -> Option<&str> {
    place.to_str().filter(|text| is_url(text))
}

/// Whether an argument names a GGUF file, here or elsewhere, and not a checkpoint.
pub fn is_gguf(place: &Path) -> bool {
    match url(place) {
        Some(url) => url.split(['?', '#']).next().is_some_and(|path| path.ends_with(".gguf")),
        None => place.is_file(),
    }
}

/// The folder that an argument names.
///
/// # Errors
/// There is none, or a store refuses.
pub fn folder(place: &Path) -> anyhow::Result<Folder> {
    if is_gguf(place) {
        bail!(
            "{}: a file, and a checkpoint is a folder; `requant quantize` takes GGUF files, and shows a \
             plan with --dry-run",
            place.display()
        );
    }
    if let Some(url) = url(place) {
        return remote::folder(url);
    }
    place.metadata().with_context(|| format!("{}{}", place.display(), on_hub(place)))?;
    if !place.is_dir() {
        bail!("{}: neither a folder nor a file", place.display());
    }
    Ok(Folder::local(place))
}

/// What to do about a name of the Hugging Face Hub that lacks its beginning.
fn on_hub(place: &Path) -> String {
    match place.to_str().map(|text| text.split('/').collect::<Vec<_>>()).as_deref() {
        Some([owner, name])
            if !place.exists()
                && !Path::new(owner).exists()
                && !owner.is_empty()
                && ![".", "..", "~"].contains(owner)
                && !name.is_empty() =>
        {
            format!(" (for a model of the Hugging Face Hub, write hf://{owner}/{name})")
        }
        _ => String::new(),
    }
}

/// An error where a GGUF file is wanted and a checkpoint's folder given.
pub(crate) fn refuse_folder(place: &Path) -> anyhow::Result<()> {
    match place.is_dir() {
        true => bail!(
            "{}: a folder; `requant convert` makes a GGUF file of a checkpoint, with all of its options",
            place.display()
        ),
        false => Ok(()),
    }
}

/// An error where a model is wanted and a text given. What calls itself a GGUF file and is none, others name.
pub(crate) fn refuse_text(place: &Path) -> anyhow::Result<()> {
    use std::io::Read;
    let mut head = [0; 256];
    let read = std::fs::File::open(place).and_then(|mut file| file.read(&mut head));
    let head = &head[..read.unwrap_or(0)];
    let is_text = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => !text.contains('\0'),
        Err(error) => error.error_len().is_none() && error.valid_up_to() > 0,
    };
    let named = place.extension().is_some_and(|end| end == "gguf");
    match place.is_file() && !named && head.len() > 8 && is_text(head) {
        true => bail!("{}: a text and no model; give texts with --text", place.display()),
        false => Ok(()),
    }
}

/// The GGUF file that an argument names, or all files of a split model.
///
/// # Errors
/// No whole GGUF file, or a store that refuses.
pub fn gguf(place: &Path) -> anyhow::Result<GgufSource> {
    match url(place) {
        Some(url) => remote::gguf(url),
        None => Ok(GgufSource::open(place)?),
    }
}

/// The header of the GGUF file that an argument names, whose data may be missing.
pub(crate) fn header(place: &Path) -> anyhow::Result<Header> {
    match url(place) {
        Some(url) => remote::header(url),
        None => Ok(Header::read(place)?),
    }
}

/// The manifest beside the model that an argument names, if there is one.
pub(crate) fn manifest(model: &Path) -> anyhow::Result<Option<(PathBuf, Manifest)>> {
    match url(model) {
        Some(url) => remote::manifest(url, &Manifest::names(model)),
        None => match Manifest::beside(model) {
            Some(path) => Ok(Some((path.clone(), Manifest::read(&path)?))),
            None => Ok(None),
        },
    }
}

/// Names and sizes of the files in a folder behind a URL.
pub(crate) fn list(url: &str) -> anyhow::Result<Vec<(String, u64)>> {
    remote::list(url)
}

/// The model that an argument names: a checkpoint or a GGUF file, here or elsewhere. What is odd about it
/// is left to whoever plans with it.
///
/// # Errors
/// As [`folder`] and [`gguf`], and what is no model of a known architecture.
pub fn open(place: &Path) -> anyhow::Result<Model> {
    open_with(place, Mtp::Drop)
}

/// As [`open`], with a choice of what becomes of layers for multi-token prediction.
pub(crate) fn open_with(place: &Path, mtp: Mtp) -> anyhow::Result<Model> {
    Ok(match is_gguf(place) {
        true => Model::Gguf(Box::new(GgufModel::of(gguf(place)?)?)),
        false => Model::Checkpoint(Box::new(CheckpointModel::open_in(folder(place)?, mtp)?)),
    })
}

/// As [`open`], with layers for multi-token prediction.
pub(crate) fn open_with_drafts(place: &Path) -> anyhow::Result<Model> {
    let model = open_with(place, Mtp::Keep)?;
    say::warnings(model.warnings());
    Ok(model)
}

/// As [`open_with_drafts`], or without those layers where a checkpoint does not have them whole.
pub(crate) fn open_with_drafts_if_there(place: &Path) -> anyhow::Result<Model> {
    let (model, missed) = match open_with(place, Mtp::Keep) {
        Ok(model) => (model, None),
        Err(error) => (open(place)?, Some(error)),
    };
    say::warnings(model.warnings());
    if let Some(error) = missed {
        let text = format!("the layer for multi-token prediction is left out: {error}");
        say::warning(&Warning::new(Topic::Tensors, text));
    }
    Ok(model)
}

/// As [`open`], and tells what is odd about it.
pub(crate) fn model(place: &Path) -> anyhow::Result<Model> {
    let model = open(place)?;
    say::warnings(model.warnings());
    Ok(model)
}

#[cfg(not(feature = "remote"))]
mod remote {
    use super::*;

    fn refuse<T>() -> anyhow::Result<T> {
        bail!("this build reads no URLs; build it with --features remote")
    }

    pub fn folder(_url: &str) -> anyhow::Result<Folder> {
        refuse()
    }

    pub fn gguf(_url: &str) -> anyhow::Result<GgufSource> {
        refuse()
    }

    pub fn header(_url: &str) -> anyhow::Result<Header> {
        refuse()
    }

    pub fn manifest(_url: &str, _names: &[String]) -> anyhow::Result<Option<(PathBuf, Manifest)>> {
        refuse()
    }

    pub fn list(_url: &str) -> anyhow::Result<Vec<(String, u64)>> {
        refuse()
    }
}

#[cfg(feature = "remote")]
mod remote {
    use super::*;
    use crate::source::{Remote, RemoteFolder, RemoteOptions, gguf_in};

    pub fn folder(url: &str) -> anyhow::Result<Folder> {
        Ok(Folder::remote(RemoteFolder::open(url, &options(url))?))
    }

    /// A folder, and the name of a GGUF file in it.
    fn file(url: &str) -> anyhow::Result<(Remote, &str)> {
        let Some((folder, name)) = gguf_in(url) else {
            bail!("{url}: not the URL of a GGUF file, whose name ends with .gguf")
        };
        Ok((Remote::new(folder, &options(url))?, name))
    }

    pub fn gguf(url: &str) -> anyhow::Result<GgufSource> {
        let (folder, name) = file(url)?;
        Ok(GgufSource::open_remote(&folder, name)?)
    }

    pub fn header(url: &str) -> anyhow::Result<Header> {
        let (folder, name) = file(url)?;
        Ok(folder.gguf_header(name)?)
    }

    pub fn manifest(url: &str, names: &[String]) -> anyhow::Result<Option<(PathBuf, Manifest)>> {
        let (folder, _) = file(url)?;
        for name in names {
            if let Some(bytes) = folder.description(name)? {
                let path = folder.path_of(name);
                let manifest = Manifest::parse(&path, &bytes)?;
                return Ok(Some((path, manifest)));
            }
        }
        Ok(None)
    }

    pub fn list(url: &str) -> anyhow::Result<Vec<(String, u64)>> {
        Ok(Remote::new(url, &options(url))?.list()?)
    }

    /// Settings and credentials, from where the providers' own tools have them.
    fn options(url: &str) -> RemoteOptions {
        let home = std::env::home_dir().unwrap_or_default();
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let mut settings = Vec::new();
        if url.starts_with("s3") {
            let profile = variable("AWS_PROFILE").unwrap_or_else(|| "default".to_owned());
            let file = |name: &str, default: &str| {
                let path = variable(name).map_or_else(|| home.join(default), Into::into);
                std::fs::read_to_string(path).unwrap_or_default()
            };
            let config = file("AWS_CONFIG_FILE", ".aws/config");
            let credentials = file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials");
            settings.extend(section(&config, &format!("profile {profile}")));
            settings.extend(section(&config, &profile));
            settings.extend(section(&credentials, &profile));
        }
        // What comes later wins: the environment stands above files, as in the providers' own tools.
        settings.extend(std::env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let known = ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|prefix| name.starts_with(prefix));
            Some((name, value.into_string().ok()?)).filter(|(_, value)| known && !value.is_empty())
        }));
        let endpoint = settings.iter().rev().find(|(name, _)| {
            let name = name.to_ascii_lowercase();
            ["aws_endpoint_url", "aws_endpoint_url_s3", "aws_endpoint"].contains(&name.as_str())
        });
        if let Some((_, endpoint)) = endpoint {
            let endpoint = endpoint.clone();
            if endpoint.starts_with("http://") {
                settings.push(("aws_allow_http".to_owned(), "true".to_owned()));
            }
            settings.push(("aws_endpoint".to_owned(), endpoint));
        }
        let hub_home =
            variable("HF_HOME").map_or_else(|| home.join(".cache/huggingface"), PathBuf::from);
        let hub_token = variable("HF_TOKEN")
            .or_else(|| std::fs::read_to_string(hub_home.join("token")).ok())
            .map(|token| token.trim().to_owned())
            .filter(|token| !token.is_empty());
        RemoteOptions { settings, hub_token, hub: variable("HF_ENDPOINT") }
    }

    /// The settings of one profile in a file of the AWS tools, under the names of their variables.
    pub(super) fn section(text: &str, profile: &str) -> Vec<(String, String)> {
        let mut within = false;
        let mut found = Vec::new();
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                within = name.trim() == profile;
            } else if let Some((key, value)) = line.split_once('=').filter(|_| within) {
                let key = match key.trim() {
                    "region" => "aws_region",
                    "endpoint_url" => "aws_endpoint_url",
                    key if key.starts_with("aws_") => key,
                    _ => continue,
                };
                found.push((key.to_owned(), value.trim().to_owned()));
            }
        }
        found
    }
}

#[cfg(all(test, feature = "remote"))]
mod tests {
    #[test]
    fn a_profile_is_found_among_others() {
        let text =
            "[a]\naws_access_key_id = 1\n[b]\n aws_access_key_id=2 \nregion = x\noutput=json";
        let found = super::remote::section(text, "b");
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(found, [pair("aws_access_key_id", "2"), pair("aws_region", "x")]);
    }
}
