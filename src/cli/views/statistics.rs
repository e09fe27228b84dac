//! What an importance matrix says about the inputs of tensors.

use crate::imatrix::{OfLayer, Statistics, Sums};
use serde_json::{Value, json};
use std::path::Path;

/// A line for each tensor, and one for each layer; 80 columns.
pub fn table(all: &[Statistics]) -> String {
    let mut out = format!(
        "{:>5} {:<16} {:>9} {:>9} {:>8} {:>8} {:>6} {:>5} {:>5}\n",
        "layer", "tensor", "sum", "max", "mean", "st.dev.", "entr.", "z>1", "cos"
    );
    for of in all {
        let layer = of.layer().map_or("-".to_owned(), |layer| layer.to_string());
        let cosine = of.cosine.map_or(String::new(), |cosine| format!("{cosine:.3}"));
        out += &format!(
            "{layer:>5} {:<16} {} {} {} {} {:>5.1}% {:>4.1}% {cosine:>5}\n",
            of.kind(),
            number(of.sum, 9),
            number(of.max, 9),
            number(of.mean, 8),
            number(of.deviation, 8),
            100.0 * of.entropy_share,
            100.0 * of.above_deviation
        );
    }
    out += &format!("\n{:>5} {:>12} {:>8} {:>8}\n", "layer", "sum", "z>1", "cos");
    for OfLayer { layer, sum, above_deviation, cosine } in Statistics::by_layer(all) {
        let (sum, above) = (number(sum, 12), 100.0 * above_deviation);
        out += &format!("{layer:>5} {sum} {above:>7.2}% {cosine:>8.4}\n");
    }
    out + "\nOf mean squares of inputs: entropy as a share of the largest, z>1 more than one\n\
           deviation above the mean, cos with the layer before. --json has all figures.\n"
}

/// See docs/schema/statistics.json.
pub fn json(path: &Path, sums: &Sums, all: &[Statistics]) -> Value {
    json!({
        "version": 1,
        "imatrix": path,
        "datasets": sums.datasets,
        "chunks": sums.chunk_count,
        "ctx": sums.chunk_size,
        "tensors": all,
        "layers": Statistics::by_layer(all),
    })
}

/// Four digits, in so many columns.
fn number(value: f64, width: usize) -> String {
    match value {
        v if v != 0.0 && (v.abs() < 1e-3 || v.abs() >= 1e6) => format!("{v:>width$.2e}"),
        v => {
            let digits = 3usize.saturating_sub(v.abs().max(1.0).log10() as usize);
            format!("{v:>width$.digits$}")
        }
    }
}
