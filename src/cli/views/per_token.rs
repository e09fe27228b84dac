//! Values of every token of a comparison, as lines of JSON.

use crate::io::{IoError, LocalDisk, Output};
use crate::measure::Outcome;
use serde_json::json;
use std::path::Path;

/// Writes a line for each scored token: its chunk, its place among the chunk's scored tokens, and what the
/// reference and each model make of it. See docs/schema/per-token.json.
pub fn write(outcome: &Outcome, path: &Path) -> Result<(), IoError> {
    let mut file = Output::create(&LocalDisk, path)?;
    let per_chunk = (outcome.own.nll.len() / outcome.taken.len().max(1)).max(1);
    for (i, nll) in outcome.own.nll.iter().enumerate() {
        let models = outcome.rows.iter().map(|row| {
            let token = &row.comparison.tokens[i];
            json!({
                "nll": token.nll, "kld": token.kl, "p_change": token.p_change,
                "same_top": token.same_top,
            })
        });
        let line = json!({
            "chunk": outcome.taken[i / per_chunk],
            "token": i % per_chunk,
            "nll": nll,
            "models": models.collect::<Vec<_>>(),
        });
        file.write(format!("{line}\n").as_bytes())?;
    }
    file.finish()
}
