//! The page that `requant compare --report` writes: one file without links to others.

use crate::eval::Activations;
use crate::measure::{Choices, Outcome, Row};
use std::fmt::Write;

/// Width and height of a picture, in its own units.
const SIZE: (f64, f64) = (640.0, 240.0);
/// Room for the scales on the left and at the bottom.
const MARGIN: (f64, f64) = (64.0, 32.0);

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--faint:#d0d7de;--line:#0b62d6;--soft:#57606a}\
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0d1117;--faint:#30363d;--line:#58a6ff;--soft:#9198a1}}\
*{box-sizing:border-box}\
body{margin:0 auto;padding:1.5rem;max-width:60rem;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.5rem}\
table{border-collapse:collapse;width:100%}\
th,td{padding:.3rem .5rem;text-align:right;vertical-align:bottom;border-bottom:1px solid var(--faint);font-variant-numeric:tabular-nums;font-size:.85rem}\
td span{white-space:nowrap}\
th:first-child,td:first-child{text-align:left;min-width:9rem}.tensors td:first-child{min-width:14.5rem}th{overflow-wrap:normal}\
figure{margin:1.5rem 0}figcaption,.soft{color:var(--soft);font-size:.9rem}\
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font:12px system-ui,sans-serif}\
.grid{stroke:var(--faint)}.curve{fill:none;stroke:var(--line);stroke-width:2}.bar{fill:var(--line)}svg text.on{fill:var(--paper)}svg text.off{fill:var(--ink)}\
summary{cursor:pointer;margin:1rem 0}\
@media screen and (max-width:48rem){body{padding:1rem}svg text{font-size:17px}svg.map text{font-size:15px}svg text.on,svg text.off{display:none}\
.models thead{display:none}.models tr{display:block;padding:.5rem 0;border-bottom:1px solid var(--faint)}\
.models td{display:flex;justify-content:flex-end;gap:.4rem;min-width:0;border:0;padding:.1rem 0}.models td:first-child{justify-content:flex-start;font-weight:600}\
.models td::before{content:attr(data-of);color:var(--soft);margin-right:auto}.models td:first-child::before{content:none}}\
@page{margin:1.5cm}@media print{:root{--ink:#000;--paper:#fff;--faint:#ccc;--line:#0b62d6;--soft:#444}body{max-width:none;padding:0}.models th,.models td{font-size:.75rem}.models td:first-child{min-width:7rem}\
figure,tr{break-inside:avoid}h2{break-after:avoid}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}\
details::details-content{content-visibility:visible;display:block}summary{display:none}details thead{display:none}}";

/// The page.
pub fn page(outcome: &Outcome, choices: Option<&Choices>) -> String {
    let mut out = String::new();
    let _ = write!(
        out,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>Cost of quantization</title><style>{STYLE}</style><h1>Cost of quantization</h1>"
    );
    let own = &outcome.own;
    let texts: Vec<String> =
        outcome.texts.iter().map(|path| escape(&path.display().to_string())).collect();
    let text = match texts.is_empty() {
        true => "the text of the file".to_owned(),
        false => texts.join(", "),
    };
    let _ = write!(
        out,
        "<p>Reference {}: perplexity {:.4} ± {:.4} on {text}, {} tokens scored in {} chunks of {}{}.</p>",
        escape(&outcome.reference.display().to_string()),
        own.perplexity,
        own.perplexity_error,
        own.tokens_scored,
        own.nll_per_chunk.len(),
        outcome.ctx,
        match outcome.activations {
            Activations::F32 => "",
            Activations::Q8 => "; activations rounded as llama.cpp does on a CPU",
        }
    );
    if let Some(s) = &outcome.sampling {
        let _ = write!(
            out,
            "<p>{} of {} chunks, from all over the text, until the standard error of the mean KL divergence was \
             {:.2} % of it.</p>",
            s.chunks,
            s.chunks_available,
            100.0 * s.error
        );
    }
    const COLUMNS: [&str; 8] = [
        "bits per weight",
        "perplexity",
        "PPL ratio",
        "mean KL divergence",
        "99, 99.9 % KL",
        "same top token",
        "top 5, 10 shared",
        "RMS change of p",
    ];
    out += "<table class=\"models\"><thead><tr><th>model";
    COLUMNS.iter().for_each(|column| out += &format!("<th>{column}"));
    out += "</tr></thead><tbody>";
    for row in &outcome.rows {
        let c = &row.comparison;
        let at = |percent: f64| {
            c.kl_divergence.percentiles.iter().find(|p| p.0 == percent).map_or(0.0, |p| p.1)
        };
        let shared = c.top_k.iter().map(|top| format!("<span>{:.2} %</span>", 100.0 * top.value));
        let (p, kl) = (&c.perplexity, c.kl_divergence.mean);
        let [top, change] =
            [c.same_top, c.p_change_rms].map(|e| [100.0 * e.value, 100.0 * e.error]);
        let cells = [
            format!("<span>{:.3}</span>", row.bits_per_weight),
            format!("<span>{:.4}</span> <span>± {:.4}</span>", p.perplexity, p.perplexity_error),
            format!(
                "<span>{:.5}</span> <span>± {:.5}</span>",
                c.paired.ratio, c.paired.ratio_error
            ),
            format!("<span>{:.6}</span> <span>± {:.6}</span>", kl.value, kl.error),
            format!("<span>{:.4}</span> <span>{:.4}</span>", at(99.0), at(99.9)),
            format!("<span>{:.2}</span> <span>± {:.2} %</span>", top[0], top[1]),
            shared.collect::<Vec<_>>().join(" "),
            format!("<span>{:.3}</span> <span>± {:.3} %</span>", change[0], change[1]),
        ];
        let _ = write!(out, "<tr><td>{}", name(row));
        for (column, cell) in COLUMNS.iter().zip(cells) {
            let _ = write!(out, "<td data-of=\"{column}\">{cell}");
        }
        out += "</tr>";
    }
    out += "</tbody></table><p class=\"soft\">± is one standard error. KL divergence in nats.</p>";
    if let Some(choices) = choices {
        answers(&mut out, choices);
    }
    for (i, row) in outcome.rows.iter().enumerate() {
        let _ = write!(out, "<h2>{}</h2>", escape(&row.path.display().to_string()));
        domains(&mut out, outcome, i);
        let mut kl: Vec<f64> = row.comparison.tokens.iter().map(|t| t.kl.max(1e-9)).collect();
        kl.sort_by(f64::total_cmp);
        let n = kl.len().saturating_sub(1).max(1) as f64;
        let step = (kl.len() / 400).max(1);
        let points: Vec<(f64, f64)> =
            kl.iter().enumerate().step_by(step).map(|(i, &v)| (100.0 * i as f64 / n, v)).collect();
        figure(&mut out, "KL divergence below which so many percent of the tokens lie", |out| {
            curve(out, &points);
        });
        if !row.comparison.layer_error.is_empty() {
            let errors = &row.comparison.layer_error;
            figure(&mut out, "Relative error of the hidden states after each layer", |out| {
                bars(out, errors);
            });
        }
        if let Some(tensors) = &row.tensors {
            tensor_errors(&mut out, tensors);
        }
    }
    let _ = write!(out, "<p class=\"soft\">requant {}</p></html>", env!("CARGO_PKG_VERSION"));
    out.push('\n');
    out
}

/// How all models answer tasks.
fn answers(out: &mut String, choices: &Choices) {
    let _ = write!(
        out,
        "<h2>{} tasks of {}</h2><table><thead><tr><th>model<th>right<th>as the reference</tr></thead><tbody>",
        choices.tasks,
        escape(&choices.file.display().to_string())
    );
    for model in &choices.models {
        let _ = write!(
            out,
            "<tr><td>{}<td>{:.2} ± {:.2} %<td>{:.2} %</tr>",
            escape(&model.model.file_name().unwrap_or_default().to_string_lossy()),
            100.0 * model.accuracy,
            100.0 * model.error,
            100.0 * model.same_as_first
        );
        for (domain, part) in &model.domains {
            let (right, error) = (100.0 * part.accuracy, 100.0 * part.error);
            let _ = write!(
                out,
                "<tr><td>&emsp;{}<td>{right:.2} ± {error:.2} %<td></tr>",
                escape(domain)
            );
        }
    }
    *out += "</tbody></table>";
}

/// A model on each of several texts.
fn domains(out: &mut String, outcome: &Outcome, model: usize) {
    if outcome.domains.is_empty() {
        return;
    }
    *out += "<table><thead><tr><th>text<th>reference's perplexity<th>PPL ratio<th>mean KL divergence\
             <th>99 % KL<th>same top token</tr></thead><tbody>";
    for domain in &outcome.domains {
        let c = &domain.models[model];
        let kl = c.kl_divergence.mean;
        let p99 = c.kl_divergence.percentiles.iter().find(|p| p.0 == 99.0).map_or(0.0, |p| p.1);
        let _ = write!(
            out,
            "<tr><td>{}<td>{:.4}<td>{:.5}<td>{:.6} ± {:.6}<td>{p99:.4}<td>{:.2} %</tr>",
            escape(&domain.text.file_name().unwrap_or_default().to_string_lossy()),
            domain.own.perplexity,
            c.paired.ratio,
            kl.value,
            kl.error,
            100.0 * c.same_top.value
        );
    }
    *out += "</tbody></table>";
}

/// The errors of single tensors, as a picture and, largest first, as a table.
fn tensor_errors(out: &mut String, tensors: &[(String, f64)]) {
    const SHOWN: usize = 20;
    map(out, tensors);
    let table = |out: &mut String, part: &[(String, f64)]| {
        *out += "<table class=\"tensors\"><thead><tr><th>tensor<th>relative error of its output\
                 </tr></thead><tbody>";
        for (name, error) in part {
            let _ = write!(out, "<tr><td>{}<td>{error:.3e}</tr>", escape(name));
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

/// One row for each kind of tensor, one column for each layer; the darker, the larger the error.
fn map(out: &mut String, tensors: &[(String, f64)]) {
    // blk.3.attn_q.weight is of layer 3 and kind attn_q.
    let parts = |name: &str| -> (u32, String) {
        let of_layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let (layer, kind) = match of_layer.map(|(layer, kind)| (layer.parse(), kind)) {
            Some((Ok(layer), kind)) => (layer, kind),
            _ => (0, name),
        };
        (layer, kind.strip_suffix(".weight").unwrap_or(kind).to_owned())
    };
    let cells: Vec<(u32, String, f64)> = tensors
        .iter()
        .map(|(name, error)| {
            let (layer, kind) = parts(name);
            (layer, kind, *error)
        })
        .collect();
    let mut kinds: Vec<&str> = cells.iter().map(|cell| cell.1.as_str()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let columns = cells.iter().map(|cell| cell.0 + 1).max().unwrap_or(0);
    let (low, high) = cells
        .iter()
        .filter(|cell| cell.2 > 0.0)
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), cell| {
            (low.min(cell.2), high.max(cell.2))
        });
    if columns == 0 || low > high {
        return;
    }
    const ROW: f64 = 20.0;
    const LEFT: f64 = 148.0;
    let bottom = kinds.len() as f64 * ROW;
    let step = (SIZE.0 - 8.0 - LEFT) / f64::from(columns);
    let caption =
        "Relative error of each tensor's output, by layer; the stronger the colour, the larger";
    let _ = write!(
        out,
        "<figure><svg class=\"map\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{caption}\">",
        SIZE.0,
        bottom + 52.0
    );
    // From a tenth of the colour to all of it, on a logarithmic scale.
    let shade = |error: f64| match high > low {
        true => 0.1 + 0.9 * ((error / low).ln() / (high / low).ln()).clamp(0.0, 1.0),
        false => 1.0,
    };
    for (i, kind) in kinds.iter().enumerate() {
        let _ = write!(
            out,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            (i as f64 + 0.5) * ROW + 4.0,
            escape(kind)
        );
    }
    for (layer, kind, error) in &cells {
        let row = kinds.iter().position(|known| known == kind).unwrap_or(0);
        let (x, y) = (LEFT + step * f64::from(*layer), row as f64 * ROW);
        let _ = write!(
            out,
            "<rect class=\"bar\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{}\" \
             fill-opacity=\"{:.3}\"><title>layer {layer}, {}: {error:.3e}</title></rect>",
            x + 0.03 * step,
            y + 1.0,
            0.94 * step,
            ROW - 2.0,
            shade(*error),
            escape(kind)
        );
        if columns <= 10 {
            let ink = if shade(*error) > 0.7 { "on" } else { "off" };
            let _ = write!(
                out,
                "<text class=\"{ink}\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{error:.1e}</text>",
                x + 0.5 * step,
                y + 0.5 * ROW + 4.0
            );
        }
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
    // The scale, in steps.
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
        "<text x=\"{}\" y=\"{1:.1}\" text-anchor=\"end\">{low:.1e}</text>\
         <text x=\"{2}\" y=\"{1:.1}\">{high:.1e}</text>\
         </svg><figcaption>{caption}</figcaption></figure>",
        LEFT + 56.0,
        bottom + 41.0,
        LEFT + 72.0 + width * f64::from(STEPS)
    );
}

fn name(row: &Row) -> String {
    escape(&row.path.file_name().unwrap_or_default().to_string_lossy())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn figure(out: &mut String, caption: &str, draw: impl FnOnce(&mut String)) {
    let (width, height) = SIZE;
    let _ = write!(
        out,
        "<figure><svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{caption}\">"
    );
    draw(out);
    let _ = write!(out, "</svg><figcaption>{caption}</figcaption></figure>");
}

/// Powers of ten that enclose the values.
fn decades(values: impl Iterator<Item = f64>) -> (i32, i32) {
    let (low, high) = values
        .filter(|v| *v > 0.0)
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    match low <= high {
        true => {
            let low = low.log10().floor() as i32;
            (low, (high.log10().ceil() as i32).max(low + 1))
        }
        false => (-1, 0),
    }
}

/// Lines and numbers of a logarithmic scale; gives the height of a value.
fn scale(out: &mut String, (low, high): (i32, i32)) -> impl Fn(f64) -> f64 + use<> {
    let bottom = SIZE.1 - MARGIN.1;
    let span = f64::from(high - low);
    let place = move |v: f64| {
        let part = (v.max(1e-300).log10() - f64::from(low)) / span;
        bottom - part.clamp(0.0, 1.0) * (bottom - 10.0)
    };
    for power in low..=high {
        let y = place(10f64.powi(power));
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{0}\" x2=\"{1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{2}\" y=\"{3:.1}\" text-anchor=\"end\">1e{power}</text>",
            MARGIN.0,
            SIZE.0 - 8.0,
            MARGIN.0 - 8.0,
            y + 4.0
        );
    }
    place
}

fn curve(out: &mut String, points: &[(f64, f64)]) {
    let place = scale(out, decades(points.iter().map(|p| p.1)));
    let across = |percent: f64| MARGIN.0 + percent / 100.0 * (SIZE.0 - 8.0 - MARGIN.0);
    let line: Vec<String> =
        points.iter().map(|&(x, y)| format!("{:.1},{:.1}", across(x), place(y))).collect();
    let _ = write!(out, "<polyline class=\"curve\" points=\"{}\"/>", line.join(" "));
    for percent in [0, 25, 50, 75, 100] {
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{percent} %</text>",
            across(f64::from(percent)).min(SIZE.0 - 26.0),
            SIZE.1 - 10.0
        );
    }
}

fn bars(out: &mut String, values: &[f64]) {
    // Also the shortest bar is to be seen.
    let place = scale(out, decades(values.iter().flat_map(|v| [*v, 0.5 * v])));
    let step = (SIZE.0 - 8.0 - MARGIN.0) / values.len() as f64;
    let every = values.len().div_ceil(16);
    for (i, &value) in values.iter().enumerate() {
        let (x, y) = (MARGIN.0 + step * i as f64, place(value));
        let _ = write!(
            out,
            "<rect class=\"bar\" x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\">\
             <title>layer {i}: {value:.3e}</title></rect>",
            x + 0.1 * step,
            0.8 * step,
            SIZE.1 - MARGIN.1 - y
        );
        if i % every == 0 {
            let _ = write!(
                out,
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{i}</text>",
                x + 0.5 * step,
                SIZE.1 - 10.0
            );
        }
    }
}
