//! Options of everything that is measured, and `convert --evaluate`.

use super::output::binary_size;
use super::progress::Progress;
use super::{say, units};
use crate::eval::{Activations, Paired, Perplexity, Scratch};
use crate::measure::{Options, Subject, Text, perplexity};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use std::path::PathBuf;

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

impl Room {
    /// Memory as it comes, and a folder for hidden states.
    pub fn in_folder(scratch: Option<PathBuf>) -> Self {
        Self { scratch, memory: None }
    }

    /// Sets these of the options.
    pub fn apply(&self, options: Options) -> Options {
        let scratch = self.scratch.as_deref().map(Scratch::new);
        Options { scratch, memory: self.memory, ..options }
    }

    /// Removes what was kept of evaluations, now that their results are safe.
    pub fn finish(options: &Options) {
        let Some(scratch) = &options.scratch else { return };
        let (n, bytes) = scratch.finish();
        if n > 0 {
            // No fault of what was asked for, so no warning.
            say::info(format!(
                "{}: {n} other evaluations, running or stopped, have {} here; delete requant-* of those \
                 that are not to go on",
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

/// A model measured against its source.
pub struct Evaluation {
    text: PathBuf,
    rows: [Row; 2],
    paired: Paired,
}

struct Row {
    name: String,
    path: PathBuf,
    n_bytes: u64,
    bits_per_weight: f64,
    perplexity: Perplexity,
}

/// Evaluates two models on the same text, chunk by chunk the same tokens. `pre` as for
/// [`Text::tokens`].
pub fn compare(
    source: (&str, Subject),
    result: (&str, Subject),
    text: &Text,
    options: &Options,
) -> anyhow::Result<Evaluation> {
    let row = |what, (name, subject): (&str, Subject)| -> anyhow::Result<Row> {
        let progress = Progress::start(what, 0, "token-layers", 0);
        let perplexity = perplexity(subject, std::slice::from_ref(text), options, &progress)?.own;
        progress.finish();
        Ok(Row {
            name: name.to_owned(),
            path: subject.path.to_owned(),
            n_bytes: subject.size().0,
            bits_per_weight: subject.bits_per_weight(),
            perplexity,
        })
    };
    let source = row("evaluate source", source)?;
    let result = row("evaluate result", result)?;
    let paired = Paired::new(&source.perplexity, &result.perplexity)?;
    Ok(Evaluation { text: text.path().to_owned(), rows: [source, result], paired })
}

impl Evaluation {
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
