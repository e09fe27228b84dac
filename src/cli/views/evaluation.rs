//! What `convert --evaluate` finds: a model measured against its source.

use super::units;
use crate::cli::progress::Progress;
use crate::eval::{Paired, Perplexity};
use crate::measure::{Options, Subject, Text, perplexity};
use std::path::PathBuf;

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
             {} tokens scored in {} of {}",
            p.difference,
            p.difference_error,
            100.0 * (p.ratio - 1.0),
            100.0 * p.ratio_error,
            first.tokens_scored,
            units::of(first.nll_per_chunk.len(), "chunk"),
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
