//! The errors of single tensors: a map of layers and kinds, and a table.

use crate::cli::views::chart::SIZE;
use crate::cli::views::markup::escape;
use crate::cli::views::units;
use crate::measure::TensorCost;
use crate::recipe::layer_and_kind;
use std::fmt::Write;

/// The least and the largest error of several models, so that one colour means one error in all maps.
#[derive(Clone, Copy)]
pub struct Shades {
    low: f64,
    high: f64,
}

impl Shades {
    /// Of all tensors that differ.
    pub fn of<'t>(tensors: impl Iterator<Item = &'t TensorCost>) -> Self {
        let errors = tensors.map(|tensor| tensor.error).filter(|error| *error > 0.0);
        let (low, high) = errors
            .fold((f64::INFINITY, 0.0), |(low, high): (f64, f64), e| (low.min(e), high.max(e)));
        Self { low, high }
    }

    /// From a tenth of the colour to all of it, on a logarithmic scale.
    fn shade(self, error: f64) -> f64 {
        match self.high > self.low {
            true => {
                0.1 + 0.9 * ((error / self.low).ln() / (self.high / self.low).ln()).clamp(0.0, 1.0)
            }
            false => 1.0,
        }
    }
}

/// The errors of a model's tensors, as a picture and, largest first, as a table.
pub fn errors(out: &mut String, tensors: &[TensorCost], shades: Shades) {
    const SHOWN: usize = 20;
    map(out, tensors, shades);
    let table = |out: &mut String, part: &[TensorCost]| {
        *out += "<table class=\"tensors\"><thead><tr><th>tensor<th>type<th>bits per weight<th>size\
                 <th>relative error of its output</tr></thead><tbody>";
        for tensor in part {
            let error = match tensor.error {
                0.0 => "unchanged".to_owned(),
                error => format!("{error:.3e}"),
            };
            let _ = write!(
                out,
                "<tr><td>{}<td>{}<td>{:.3}<td>{}<td>{error}</tr>",
                escape(&tensor.name),
                escape(&tensor.ty),
                tensor.bits_per_weight,
                units::bytes(tensor.bytes)
            );
        }
        *out += "</tbody></table>";
    };
    let (first, rest) = tensors.split_at(SHOWN.min(tensors.len()));
    table(out, first);
    if !rest.is_empty() {
        let _ = write!(out, "<details><summary>{} more tensors</summary>", rest.len());
        table(out, rest);
        *out += "</details>";
    }
}

/// A tensor's place in the map.
struct Cell<'t> {
    /// None outside of the layers.
    layer: Option<u32>,
    kind: &'t str,
    tensor: &'t TensorCost,
}

impl<'t> Cell<'t> {
    /// blk.3.attn_q.weight is of layer 3 and kind attn_q.
    fn new(tensor: &'t TensorCost) -> Self {
        let (layer, kind) = layer_and_kind(&tensor.name);
        Self { layer, kind: kind.strip_suffix(".weight").unwrap_or(kind), tensor }
    }
}

const ROW: f64 = 20.0;
const LEFT: f64 = 148.0;

/// One row for each kind of tensor, one column for each layer; the darker, the larger the error.
fn map(out: &mut String, tensors: &[TensorCost], shades: Shades) {
    let cells: Vec<Cell> = tensors.iter().map(Cell::new).collect();
    let mut kinds: Vec<&str> = cells.iter().map(|cell| cell.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let columns = cells.iter().filter_map(|cell| cell.layer).map(|layer| layer + 1).max();
    let columns = columns.unwrap_or(1);
    if cells.is_empty() || shades.low > shades.high {
        return;
    }
    let bottom = kinds.len() as f64 * ROW;
    let step = (SIZE.0 - 8.0 - LEFT) / f64::from(columns);
    let caption = "Relative error of each tensor's output, by layer; the stronger the colour, the larger, \
                   in all models alike; outlined where the tensor is unchanged";
    let _ = write!(
        out,
        "<figure><svg class=\"map\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{caption}\">",
        SIZE.0,
        bottom + 52.0
    );
    for (i, kind) in kinds.iter().enumerate() {
        let _ = write!(
            out,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            (i as f64 + 0.5) * ROW + 4.0,
            escape(kind)
        );
    }
    for cell in &cells {
        let row = kinds.iter().position(|known| *known == cell.kind).unwrap_or(0);
        // What is outside of the layers stretches over all.
        let (first, width) = match cell.layer {
            Some(layer) => (f64::from(layer), step),
            None => (0.0, step * f64::from(columns)),
        };
        draw(out, cell, (LEFT + step * first, row as f64 * ROW), width, shades, columns <= 10);
    }
    let every = columns.div_ceil(16);
    for layer in (0..columns).step_by(every as usize) {
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{layer}</text>",
            LEFT + step * (f64::from(layer) + 0.5),
            bottom + 16.0
        );
    }
    scale(out, shades, bottom);
    let _ = write!(out, "</svg><figcaption>{caption}</figcaption></figure>");
}

fn draw(
    out: &mut String,
    cell: &Cell,
    (x, y): (f64, f64),
    width: f64,
    shades: Shades,
    numbers: bool,
) {
    let TensorCost { error, ty, bits_per_weight, .. } = cell.tensor;
    let shade = shades.shade(*error);
    let (class, says) = match *error {
        0.0 => ("same".to_owned(), "unchanged".to_owned()),
        error => (format!("bar\" fill-opacity=\"{shade:.3}"), format!("{error:.3e}")),
    };
    let _ = write!(
        out,
        "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{}\">\
         <title>{}: {says}; {}, {bits_per_weight:.3} bits</title></rect>",
        x + 0.03 * width.min(40.0),
        y + 1.0,
        width - 0.06 * width.min(40.0),
        ROW - 2.0,
        escape(&cell.tensor.name),
        escape(ty)
    );
    if numbers && *error > 0.0 {
        let ink = if shade > 0.7 { "on" } else { "off" };
        let _ = write!(
            out,
            "<text class=\"{ink}\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{error:.1e}</text>",
            x + 0.5 * width,
            y + 0.5 * ROW + 4.0
        );
    }
}

/// The scale of colours, in steps.
fn scale(out: &mut String, shades: Shades, bottom: f64) {
    const STEPS: u32 = 12;
    let width = 10.0;
    for i in 0..STEPS {
        let part = f64::from(i) / f64::from(STEPS - 1);
        let _ = write!(
            out,
            "<rect class=\"bar\" x=\"{:.1}\" y=\"{:.1}\" width=\"{width}\" height=\"10\" fill-opacity=\"{:.3}\"/>",
            LEFT + 64.0 + width * f64::from(i),
            bottom + 32.0,
            0.1 + 0.9 * part
        );
    }
    let _ = write!(
        out,
        "<text x=\"{}\" y=\"{1:.1}\" text-anchor=\"end\">{2:.1e}</text>\
         <text x=\"{3}\" y=\"{1:.1}\">{4:.1e}</text>",
        LEFT + 56.0,
        bottom + 41.0,
        shades.low,
        LEFT + 72.0 + width * f64::from(STEPS),
        shades.high
    );
}
