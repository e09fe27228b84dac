//! Options of the reference's programs that this one does not have: what to do instead.

use super::Cli;
use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, Error, ErrorKind};
use std::path::Path;

const OPTIONS: [(&str, &str); 18] = [
    ("--bigendian", "files are little-endian"),
    (
        "--disable-mistral-community-chat-template",
        "Mistral's own format is not read; convert a folder as transformers writes it",
    ),
    ("--dspark", "DeepSeek-V4 is not known here"),
    (
        "--fuse-gate-up-exps",
        "that program fails with it for every class with experts that is known here",
    ),
    ("--fuse-qkv", "queries, keys and values stay tensors of their own"),
    (
        "--mistral-format",
        "Mistral's own format (params.json, consolidated*.safetensors) is not read; convert a folder as \
         transformers writes it",
    ),
    ("--mmproj", "what a model sees with is left out; convert_hf_to_gguf.py makes that file"),
    ("--no-mtp", "--mtp drop leaves the layer out"),
    ("--no-nextn", "--mtp drop leaves the layer out"),
    ("--outfile", "the output follows the checkpoint without a word before it"),
    ("--print-supported-models", "the error for a class that is not known names those that are"),
    ("--remote", "give the place itself: hf://organization/name"),
    ("--sentence-transformers-dense-modules", "models that embed sentences are not known here"),
    ("--target-model-dir", "draft models of their own are not known here"),
    ("-f", "--text FILE gives a text; -f alone replaces a file that is there"),
    ("-p", "--text FILE gives a text, --text - takes it from standard input"),
    ("-t", "-j N gives threads; -t is a type"),
    ("--vocab-only", "a file has its tensors; `requant inspect` shows the vocabulary"),
];

/// Says of an argument that is not known what it is in the reference's programs, or how a text is given.
pub fn explain(error: Error) -> Error {
    let Some(ContextValue::String(given)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    let known = OPTIONS.iter().find(|(option, _)| given == option);
    let text = match known {
        Some((option, instead)) => {
            format!("{option} of the reference's program is not taken: {instead}")
        }
        None if Path::new(given).is_file() => {
            format!("one word too many: `{given}`; if it is a text, write --text {given}")
        }
        None => return error,
    };
    Cli::command().error(ErrorKind::UnknownArgument, text)
}
