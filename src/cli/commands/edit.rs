//! `requant set` and `requant unset`: metadata of a GGUF file.

use crate::cli::say;
use crate::gguf::{Edited, GgufFile, Metadata, Value, finish_interrupted, replace_metadata};
use crate::names::did_you_mean;
use anyhow::bail;
use std::path::{Path, PathBuf};

/// Set metadata of a GGUF file: in place where it fits, otherwise the file is written anew.
///
/// What is to be written is read again and compared before it is. A new file replaces the old one
/// only when it is complete, on disk and found to hold the same tensors; if the process is killed
/// while it writes in place, the next call ends what was begun.
#[derive(clap::Args)]
#[command(after_help = "Values:\n  \
    u32:8, f32:1e-6, bool:true, str:some text    u8 i8 u16 i16 u32 i32 f32 bool str u64 i64 f64\n  \
    arr[i32]:1,2,3                               an array, of any of these types\n  \
    'arr[str]:[\"a\", \"b, c\"]'                     the same as a JSON list\n  \
    file:chat_template.jinja                     a string, from a file as it is\n  \
    arr[f32]:file:factors.json                   whatever the type, from a file\n\n\
    Examples:\n  \
    requant set model.gguf general.name=str:DeepSeek-R1 tokenizer.ggml.add_bos_token=bool:true\n  \
    requant set model.gguf tokenizer.chat_template=file:chat_template.jinja --backup")]
pub struct SetArgs {
    /// GGUF file, or the first file of a split model, which holds the metadata
    file: PathBuf,
    /// Keys and values; see below
    #[arg(required = true, value_name = "KEY=TYPE:VALUE", value_parser = assignment)]
    assignments: Vec<(String, Value)>,
    #[command(flatten)]
    options: Options,
}

/// Remove metadata from a GGUF file.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant unset model.gguf tokenizer.chat_template")]
pub struct UnsetArgs {
    /// GGUF file, or the first file of a split model, which holds the metadata
    file: PathBuf,
    /// Keys
    #[arg(required = true)]
    keys: Vec<String>,
    #[command(flatten)]
    options: Options,
}

#[derive(clap::Args)]
struct Options {
    /// Write a new file, and keep the old one as FILE.bak
    #[arg(long)]
    backup: bool,
}

fn assignment(text: &str) -> Result<(String, Value), String> {
    let form = "not of the form KEY=TYPE:VALUE";
    let (key, value) = text.split_once('=').ok_or(form)?;
    let (ty, value) = value.split_once(':').ok_or(form)?;
    if key.is_empty() {
        return Err("the key is empty".to_owned());
    }
    let value = match (ty, value.strip_prefix("file:")) {
        ("file", _) => from_file("str", value)?,
        (_, Some(path)) => from_file(ty, path)?,
        (_, None) => parse(ty, value, value)?,
    };
    Ok((key.to_owned(), value))
}

/// A value from a file: strings as they are, whatever bytes they hold.
fn from_file(ty: &str, path: &str) -> Result<Value, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("{path}: {error}"))?;
    if ty == "str" {
        return Ok(Value::String(bytes.into()));
    }
    let text = String::from_utf8(bytes).map_err(|_| format!("{path}: not UTF-8"))?;
    parse(ty, text.trim(), path)
}

fn parse(ty: &str, text: &str, shown: &str) -> Result<Value, String> {
    const TYPES: &str = "u8 i8 u16 i16 u32 i32 f32 bool str u64 i64 f64";
    let of = ty.strip_prefix("arr[").and_then(|ty| ty.strip_suffix(']')).unwrap_or(ty);
    if !TYPES.split(' ').any(|known| known == of) {
        return Err(format!("unknown type `{ty}`; known: {TYPES}, arr[TYPE], file"));
    }
    Value::parse(ty, text).ok_or_else(|| format!("`{shown}` is no {ty}"))
}

pub fn set(args: &SetArgs) -> anyhow::Result<()> {
    edit(&args.file, &args.options, |metadata| {
        for (key, value) in &args.assignments {
            metadata.set(key, value.clone());
        }
        Ok(())
    })
}

pub fn unset(args: &UnsetArgs) -> anyhow::Result<()> {
    edit(&args.file, &args.options, |metadata| {
        for key in &args.keys {
            if metadata.remove(key).is_none() {
                let near = did_you_mean(key, metadata.iter().map(|(key, _)| key));
                bail!("{}: there is no key `{key}`{near}", args.file.display());
            }
        }
        Ok(())
    })
}

fn edit(
    path: &Path,
    options: &Options,
    change: impl FnOnce(&mut Metadata) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    finish_interrupted(path)?;
    let mut metadata = GgufFile::open(path)?.metadata().clone();
    let before = metadata.clone();
    change(&mut metadata)?;
    // What says where bytes lie is not a matter of taste.
    for key in ["general.alignment", "split.no", "split.count", "split.tensors.count"] {
        if metadata.get(key) != before.get(key) {
            bail!("{}: `{key}` belongs to the file's structure and stays", path.display());
        }
    }
    let how = match replace_metadata(path, &metadata, options.backup)? {
        Edited::InPlace => "in place",
        Edited::Inserted => "with room made for it at the front",
        Edited::Anew => "in a new file, which replaced it",
    };
    say::info(format!("{}: metadata written {how}", path.display()));
    Ok(())
}
