//! Perplexity of models on a text: shared by `perplexity` and `convert --evaluate`.

use super::output::binary_size;
use super::progress::Progress;
use super::{say, units};
use crate::eval::{Activations, Paired, Perplexity, PerplexityOptions, Scratch, perplexity};
use crate::model::Model;
use crate::tokenizer::{self, Tokenizer, TokenizerError, Vocab};
use anyhow::{Context, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use std::path::{Path, PathBuf};

/// A text to evaluate on.
pub struct Text {
    path: PathBuf,
    text: String,
}

impl Text {
    /// Reads a UTF-8 file, but for a newline at its end, which llama-perplexity drops as well.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        match String::from_utf8(bytes) {
            Ok(mut text) => {
                text.truncate(text.strip_suffix('\n').unwrap_or(&text).len());
                Ok(Self { path: path.to_owned(), text })
            }
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                bail!("{}: not UTF-8 text (byte {at}); is this the right file?", path.display())
            }
        }
    }
}

impl Text {
    /// The text as a model reads it, and the token that its chunks begin with.
    pub fn tokens(&self, model: &Model) -> anyhow::Result<(Vec<u32>, Option<u32>)> {
        let tokenizer = tokenizer(model)?;
        let tokens =
            tokenizer.encode(&self.text).with_context(|| self.path.display().to_string())?;
        Ok((tokens, tokenizer.bos()))
    }
}

/// Where hidden states wait, and how much memory there is.
#[derive(Clone, clap::Args)]
pub struct Room {
    /// Folder for hidden states, instead of memory; an interrupted run goes on from there with the
    /// same command
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Memory to keep within, about: N bytes, or N followed by M or G (binary); the more, the fewer
    /// times a layer's weights are decoded [default: some 2G and the hidden states]
    #[arg(long, value_name = "SIZE", value_parser = binary_size)]
    memory: Option<u64>,
}

/// What everything else takes: code, tables, decoded weights and logits.
const OVERHEAD: u64 = 256 << 20;

impl Room {
    /// Memory as it comes, and a folder for hidden states.
    pub fn in_folder(scratch: Option<PathBuf>) -> Self {
        Self { scratch, memory: None }
    }

    /// Whether the folder is one.
    pub fn check(&self) -> anyhow::Result<()> {
        match &self.scratch {
            Some(folder) if !folder.is_dir() => {
                bail!("{}: not a folder; --scratch needs one with room", folder.display())
            }
            _ => Ok(()),
        }
    }

    /// Sets the options for models that run together over so many tokens.
    pub fn apply(
        &self,
        options: &mut PerplexityOptions,
        models: &[&Model],
        n_tokens: usize,
    ) -> anyhow::Result<()> {
        self.check()?;
        options.scratch = self.scratch.as_deref().map(Scratch::new);
        let Some(memory) = self.memory else { return Ok(()) };
        let n = (n_tokens / options.ctx).min(options.chunks.unwrap_or(usize::MAX)) * options.ctx;
        let width: u64 = models.iter().map(|model| u64::from(model.hparams().n_embd)).sum();
        let states = if self.scratch.is_some() { 0 } else { 4 * n as u64 * width };
        // One half is for the states of a batch and its products, one for a layer's own.
        let work = memory.saturating_sub(OVERHEAD + states) / 2;
        if work < 32 << 20 {
            bail!(
                "--memory {} is not enough: {} are needed besides{}",
                units::bytes(memory),
                units::bytes(OVERHEAD + states + (64 << 20)),
                match states {
                    0 => String::new(),
                    n => format!(
                        ", {} of them for hidden states; --scratch puts these on disk",
                        units::bytes(n)
                    ),
                }
            );
        }
        options.memory = usize::try_from(work).unwrap_or(usize::MAX);
        Ok(())
    }

    /// Removes what was kept of evaluations in one folder, now that their results are safe.
    pub fn finish<'a>(options: impl IntoIterator<Item = &'a PerplexityOptions>) {
        let scratches = options.into_iter().filter_map(|options| options.scratch.as_ref());
        let Some((scratch, (n, bytes))) = scratches.map(|s| (s, s.finish())).last() else { return };
        if n > 0 {
            // No fault of what was asked for, so no warning.
            say::info(format!(
                "{}: {n} other evaluations left {} here; delete requant-* if nothing of them is to \
                 go on",
                scratch.folder().display(),
                units::bytes(bytes)
            ));
        }
    }
}

/// In which precision activations meet weights.
#[derive(Clone, Copy, clap::Args)]
pub struct Precision {
    /// Precision in which activations meet weights: f32, or q8, the rounding of llama.cpp on a CPU,
    /// for its figures
    #[arg(long = "activations", value_name = "TYPE", default_value = "f32",
          value_parser = PossibleValuesParser::new(["f32", "q8"]).map(|name| match name.as_str() {
              "q8" => Activations::Q8,
              _ => Activations::F32,
          }))]
    pub activations: Activations,
}

/// How to evaluate.
pub struct Options {
    /// Where hidden states wait.
    pub room: Room,
    /// Threads.
    pub threads: usize,
    /// In which precision activations meet weights.
    pub activations: Activations,
}

/// The forward pass of a model.
pub fn runner(model: &Model, activations: Activations) -> anyhow::Result<crate::eval::Model<'_>> {
    let mut runner = crate::eval::Model::new(model.hparams(), model.source())?;
    runner.set_activations(activations);
    Ok(runner)
}

/// Perplexity of one model on the tokens of a file. `settings` are to be given to [`Room::finish`]
/// when it is safe.
pub fn run(
    what: &'static str,
    (path, model): (&Path, &Model),
    (text, tokens): (&Path, &[u32]),
    settings: &mut PerplexityOptions,
    options: &Options,
) -> anyhow::Result<Perplexity> {
    let needed = 2 * settings.ctx;
    if tokens.len() < needed {
        bail!(
            "{}: {} tokens, but chunks of {} need at least {needed}; use a longer text or a \
             smaller --ctx",
            text.display(),
            tokens.len(),
            settings.ctx
        );
    }
    options.room.apply(settings, &[model], tokens.len())?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build()?;
    let runner = runner(model, options.activations).with_context(|| path.display().to_string())?;
    let work = settings.work(tokens.len(), model.hparams());
    let progress = Progress::start(what, work, "token-layers", 0);
    let result = pool
        .install(|| perplexity(&runner, tokens, settings, &progress))
        .with_context(|| path.display().to_string())?;
    progress.finish();
    Ok(result)
}

/// The token that chunks of a model begin with, if any.
pub fn bos(model: &Model) -> anyhow::Result<Option<u32>> {
    match model {
        Model::Checkpoint(_) => Ok(tokenizer(model)?.bos()),
        Model::Gguf(model) => Ok(tokenizer::bos(model.metadata())?),
    }
}

fn tokenizer(model: &Model) -> anyhow::Result<Tokenizer> {
    Ok(match model {
        Model::Checkpoint(model) => {
            let config = model.config().json();
            let vocab = match Vocab::from_checkpoint(model.dir(), &config, None) {
                // tokenizer.json splits text whether or not GGUF has a name for its rules.
                Err(TokenizerError::UnknownPre { .. }) => {
                    Vocab::from_checkpoint(model.dir(), &config, Some(""))
                }
                vocab => vocab,
            }?;
            Tokenizer::from_checkpoint(model.dir(), &vocab)?
        }
        Model::Gguf(model) => Tokenizer::from_metadata(model.metadata())
            .with_context(|| model.gguf().file().path().display().to_string())?,
    })
}

/// A model measured against its source.
pub struct Evaluation {
    text: PathBuf,
    rows: [Row; 2],
    paired: Paired,
    options: [PerplexityOptions; 2],
}

struct Row {
    name: String,
    path: PathBuf,
    n_bytes: u64,
    bits_per_weight: f64,
    perplexity: Perplexity,
}

/// Evaluates two models on the same text, chunk by chunk the same tokens.
pub fn compare(
    source: (&str, &Path, &Model),
    result: (&str, &Path, &Model),
    text: &Text,
    chunks: Option<usize>,
    options: &Options,
) -> anyhow::Result<Evaluation> {
    let row = |what, (name, path, model): (&str, &Path, &Model)| -> anyhow::Result<_> {
        let n_weights: u64 = model.source().tensors().iter().map(|t| t.n_elements()).sum();
        let (tokens, bos) = text.tokens(model).with_context(|| path.display().to_string())?;
        let mut settings = PerplexityOptions { chunks, bos, ..PerplexityOptions::default() };
        let tokens = (text.path.as_path(), &tokens[..]);
        let perplexity = run(what, (path, model), tokens, &mut settings, options)?;
        let row = Row {
            name: name.to_owned(),
            path: path.to_owned(),
            n_bytes: model.n_bytes(),
            bits_per_weight: model.n_bytes() as f64 * 8.0 / n_weights.max(1) as f64,
            perplexity,
        };
        Ok((row, settings))
    };
    let (source, of_source) = row("evaluate source", source)?;
    let (result, of_result) = row("evaluate result", result)?;
    let paired = Paired::new(&source.perplexity, &result.perplexity)?;
    let (rows, options) = ([source, result], [of_source, of_result]);
    Ok(Evaluation { text: text.path.clone(), rows, paired, options })
}

impl Evaluation {
    /// Removes what was kept for the case that the evaluation is stopped.
    pub fn finish(&self) {
        Room::finish(&self.options);
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut table =
            format!("{:<10}{:>13}{:>13}{:>24}\n", "", "bits/weight", "size", "perplexity");
        for row in &self.rows {
            let p = &row.perplexity;
            let perplexity = format!("{:.4} ± {:.4}", p.perplexity, p.perplexity_error);
            let size = units::bytes(row.n_bytes);
            let bits = format!("{:.2}", row.bits_per_weight);
            table += &format!("{:<10}{bits:>13}{size:>13}{perplexity:>24}\n", row.name);
        }
        let (p, first) = (&self.paired, &self.rows[0].perplexity);
        format!(
            "{table}\ndifference of perplexity, paired  {:+.4} ± {:.4}  ({:+.3} % ± {:.3} %)\n\
             {} tokens scored in {} chunks of {}",
            p.difference,
            p.difference_error,
            100.0 * (p.ratio - 1.0),
            100.0 * p.ratio_error,
            first.tokens_scored,
            first.nll_per_chunk.len(),
            self.text.display(),
        )
    }

    /// For scripts.
    pub fn json(&self) -> serde_json::Value {
        let row = |row: &Row| {
            serde_json::json!({
                "model": row.path,
                "bytes": row.n_bytes,
                "bits_per_weight": row.bits_per_weight,
                "perplexity": row.perplexity,
            })
        };
        serde_json::json!({
            "text": self.text,
            "source": row(&self.rows[0]),
            "result": row(&self.rows[1]),
            "paired": self.paired,
        })
    }
}
