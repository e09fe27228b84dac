//! What an error says to whoever runs the program: the library's words, and the option that helps, for
//! the library knows none.

use super::say;
use super::views::units;
use crate::convert::ConvertError;
use crate::gguf::GgufError;
use crate::imatrix::ImatrixError;
use crate::measure::MeasureError;
use crate::model::ModelError;
use crate::recipe::RecipeError;
use crate::tokenizer::TokenizerError;

use std::error::Error;

/// Arguments that mean nothing together.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadUsage(pub String);

/// The chain of causes on one line. Library errors name their cause themselves, so a cause that is
/// repeated in what came before adds nothing.
pub fn describe(error: &anyhow::Error) -> String {
    if let (true, Err(strict)) = (is_unwanted(error), say::heed()) {
        return strict.to_string();
    }
    let mut text = String::new();
    for cause in error.chain() {
        let cause = said(cause);
        if cause.starts_with(&text) {
            text = cause;
        } else if !text.contains(&cause) {
            if !text.is_empty() {
                text += ": ";
            }
            text += &cause;
        }
    }
    text + error.chain().map(help).find(|help| !help.is_empty()).unwrap_or_default()
}

/// Whether it is a warning that nothing but `--strict` made an error, and that was printed as one.
fn is_unwanted(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ConvertError::Unwanted(_)))
        || matches!(error.downcast_ref(), Some(MeasureError::Unwanted(_)))
}

/// The error's own words, but for amounts of memory and bytes of files.
fn said(error: &(dyn Error + 'static)) -> String {
    match error.downcast_ref() {
        Some(MeasureError::Memory { memory, needed, states }) => {
            let [memory, needed] = [memory, needed].map(|n| units::bytes(*n));
            let of_states = match states {
                0 => String::new(),
                n => format!(
                    ", {} of them for hidden states, which --scratch puts on disk",
                    units::bytes(*n)
                ),
            };
            format!("{memory} of memory are not enough, {needed} are needed{of_states} (--memory)")
        }
        Some(MeasureError::TooFewBytes { size, least, by_role }) => {
            let [size, least] = [size, least].map(|n| units::bytes(*n));
            let each = if *by_role { "; --budget holds for each part" } else { "" };
            format!("{size} are too few: the smallest types take {least}{each}")
        }
        _ => error.to_string(),
    }
}

/// How the error's text goes on to say which option helps.
fn help(error: &(dyn Error + 'static)) -> &'static str {
    None.or_else(|| error.downcast_ref().map(convert))
        .or_else(|| error.downcast_ref().map(measure))
        .or_else(|| error.downcast_ref().map(model))
        .or_else(|| error.downcast_ref().map(gguf))
        .or_else(|| error.downcast_ref().map(tokenizer))
        .or_else(|| error.downcast_ref().map(recipe))
        .or_else(|| error.downcast_ref().map(imatrix))
        .unwrap_or_default()
}

fn convert(error: &ConvertError) -> &'static str {
    match error {
        ConvertError::NoLayerLeft => " (--prune-layers)",
        ConvertError::Requantize { .. } => ", or give --allow-requantize",
        ConvertError::NoImportance { .. } => " (--tensor-type)",
        ConvertError::Memory { .. } => "; raise --memory",
        ConvertError::Journal { .. } => ", or give --restart to begin anew",
        ConvertError::Model(error) => model(error),
        ConvertError::Tokenizer(error) => tokenizer(error),
        ConvertError::Recipe(error) => recipe(error),
        ConvertError::Gguf(error) => gguf(error),
        _ => "",
    }
}

fn measure(error: &MeasureError) -> &'static str {
    match error {
        MeasureError::TooShort { .. } => " (--ctx)",
        MeasureError::NoType { .. } => "; look at --types, --floor and --keep",
        MeasureError::Plan(error) => convert(error),
        _ => "",
    }
}

fn model(error: &ModelError) -> &'static str {
    match error {
        ModelError::Gguf(error) => gguf(error),
        _ => "",
    }
}

fn gguf(error: &GgufError) -> &'static str {
    match error {
        GgufError::Exists { .. } => ", or --force to replace it",
        GgufError::Cut { .. } => "; `requant inspect --header` shows what it was to hold",
        GgufError::Interrupted { .. } => "; run `requant set` on it again, which ends it",
        _ => "",
    }
}

fn tokenizer(error: &TokenizerError) -> &'static str {
    match error {
        TokenizerError::UnknownPre { .. } | TokenizerError::Damaged { .. } => {
            " with --tokenizer-pre NAME"
        }
        TokenizerError::NoRules(_) => " with --tokens FILE",
        TokenizerError::Gguf(error) => gguf(error),
        _ => "",
    }
}

fn recipe(error: &RecipeError) -> &'static str {
    match error {
        RecipeError::Unmatched { .. } => ", or accept it with --allow-unmatched",
        RecipeError::Unheeded { .. } => ", or accept that with --allow-unmatched",
        RecipeError::NeedsImatrix { .. } => " (--imatrix)",
        _ => "",
    }
}

fn imatrix(error: &ImatrixError) -> &'static str {
    match error {
        ImatrixError::Unrouted { .. } => ", or --unrouted",
        ImatrixError::Gguf(error) => gguf(error),
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::IoError;
    use std::io;
    use std::path::Path;

    fn exists() -> ConvertError {
        GgufError::Exists { path: "a.gguf".into() }.into()
    }

    #[track_caller]
    fn reads(error: impl Into<anyhow::Error>, expected: &str) {
        assert_eq!(describe(&error.into()), expected);
    }

    #[test]
    fn an_error_ends_with_the_option_that_helps_wherever_it_comes_from() {
        let text = "a.gguf: exists already; give another name, or --force to replace it";
        reads(exists(), text);
        reads(anyhow::Error::from(exists()).context("b"), &format!("b: {text}"));
        let pre = TokenizerError::NoRules("mine".to_owned());
        let text = "m: tokenizer.ggml.pre is `mine`, whose rules are not known here; give the numbers of \
                    the text's tokens with --tokens FILE";
        reads(MeasureError::Tokenizer { path: "m".into(), error: pre }, text);
        let memory = MeasureError::Memory { memory: 1 << 30, needed: 1 << 31, states: 0 };
        reads(memory, "1.0 GiB of memory are not enough, 2.0 GiB are needed (--memory)");
    }

    #[test]
    fn a_cause_is_said_once() {
        let disk = io::Error::from(io::ErrorKind::StorageFull);
        let cause = disk.to_string();
        let error = ConvertError::from(IoError::new(Path::new("a"), disk));
        assert_eq!(error.source().unwrap().to_string(), cause);
        assert_eq!(describe(&error.into()).matches(&cause).count(), 1);
    }
}
