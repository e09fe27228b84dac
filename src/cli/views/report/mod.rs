//! The page that `requant compare --report` writes: one file without links to others.

mod tensors;

use super::chart::{Across, FIGURE, Point, curves, figure, legend, marked, over_size};
use super::markup::escape;
use super::models::names;
use crate::cli::views::units;
use crate::eval::{Activations, Comparison};
use crate::measure::{Choices, Outcome};
use crate::names::base;
use std::fmt::Write;
use tensors::Shades;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--faint:#d0d7de;--line:#0b62d6;--soft:#57606a;\
--m0:#0b62d6;--m1:#c2410c;--m2:#0f7b4f;--m3:#a21caf;--m4:#8a6d00;--m5:#0e7490;--m6:#b91c4b;--m7:#555}\
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0d1117;--faint:#30363d;--line:#58a6ff;--soft:#9198a1;\
--m0:#58a6ff;--m1:#fb923c;--m2:#4ade80;--m3:#e879f9;--m4:#eab308;--m5:#22d3ee;--m6:#fb7185;--m7:#bbb}}\
.m0{--c:var(--m0)}.m1{--c:var(--m1)}.m2{--c:var(--m2)}.m3{--c:var(--m3)}.m4{--c:var(--m4)}.m5{--c:var(--m5)}.m6{--c:var(--m6)}.m7{--c:var(--m7)}\
.legend{list-style:none;padding:0;margin:.5rem 0;font-size:.85rem}.legend li{display:inline-block;margin-right:1.25rem}\
.legend li::before{content:\"\";display:inline-block;width:1.2rem;border-top:3px solid var(--c);margin-right:.4rem;vertical-align:middle}.legend li.dashed::before{border-top-style:dashed}\
*{box-sizing:border-box}\
body{margin:0 auto;padding:1.5rem;max-width:60rem;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.5rem}\
table{border-collapse:collapse;width:100%}\
th,td{padding:.3rem .5rem;text-align:right;vertical-align:bottom;border-bottom:1px solid var(--faint);font-variant-numeric:tabular-nums;font-size:.85rem}\
td span{white-space:nowrap}\
th:first-child,td:first-child{text-align:left;min-width:9rem}.tensors td:first-child{min-width:14.5rem}th{overflow-wrap:normal}\
figure{margin:1.5rem 0}figcaption,.soft{color:var(--soft);font-size:.9rem}\
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font:12px system-ui,sans-serif}\
.grid{stroke:var(--faint)}.curve{fill:none;stroke:var(--c,var(--line));stroke-width:1.5}.curve.dashed{stroke-dasharray:6 4}.mark{fill:var(--c,var(--line))}.bar{fill:var(--line)}.same{fill:none;stroke:var(--faint)}.front{fill:none;stroke:var(--soft);stroke-dasharray:3 3}svg text.on{fill:var(--paper)}svg text.off{fill:var(--ink)}\
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
    if !outcome.complete {
        let Outcome { chunks, chunks_available, .. } = outcome;
        let _ = write!(out, "<p>Stopped after {chunks} of {chunks_available} chunks.</p>");
    } else if let Some(s) = &outcome.sampling {
        let _ = write!(
            out,
            "<p>{} of {} chunks, from all over the text, until the standard error of the mean KL divergence was \
             {:.2} % of it.</p>",
            s.chunks,
            s.chunks_available,
            100.0 * s.error
        );
    }
    const COLUMNS: [&str; 9] = [
        "size",
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
    let names = names(&outcome.rows.iter().map(|row| row.path.as_path()).collect::<Vec<_>>());
    for (row, name) in outcome.rows.iter().zip(&names) {
        let c = &row.comparison;
        let shared = c.top_k.iter().map(|top| format!("<span>{:.2} %</span>", 100.0 * top.value));
        let (p, kl) = (&c.perplexity, &c.kl_divergence);
        let [top, change] =
            [c.same_top, c.p_change_rms].map(|e| [100.0 * e.value, 100.0 * e.error]);
        let cells = [
            format!("<span>{}</span>", units::bytes(row.bytes)),
            format!("<span>{:.3}</span>", row.bits_per_weight),
            format!("<span>{:.4}</span> <span>± {:.4}</span>", p.perplexity, p.perplexity_error),
            format!(
                "<span>{:.5}</span> <span>± {:.5}</span>",
                c.paired.ratio, c.paired.ratio_error
            ),
            format!("<span>{:.6}</span> <span>± {:.6}</span>", kl.mean.value, kl.error_by_chunk()),
            format!(
                "<span>{:.4}</span> <span>{:.4}</span>",
                kl.percentile(99.0),
                kl.percentile(99.9)
            ),
            format!("<span>{:.2}</span> <span>± {:.2} %</span>", top[0], top[1]),
            shared.collect::<Vec<_>>().join(" "),
            format!("<span>{:.3}</span> <span>± {:.3} %</span>", change[0], change[1]),
        ];
        let _ = write!(out, "<tr><td>{}", escape(name));
        for (column, cell) in COLUMNS.iter().zip(cells) {
            let _ = write!(out, "<td data-of=\"{column}\">{cell}");
        }
        out += "</tr>";
    }
    out += "</tbody></table><p class=\"soft\">± is one standard error; that of the mean KL divergence takes chunks as \
            independent, the others tokens. KL divergence in nats.</p>";
    if let Some(choices) = choices {
        answers(&mut out, choices);
    }
    pictures(&mut out, outcome, &names);
    let shades = Shades::of(outcome.rows.iter().flat_map(|row| row.tensors.iter().flatten()));
    for (i, row) in outcome.rows.iter().enumerate() {
        if row.tensors.is_none() && outcome.domains.is_empty() {
            continue;
        }
        let _ = write!(out, "<h2>{}</h2>", escape(&row.path.display().to_string()));
        domains(&mut out, outcome, i);
        if let Some(tensors) = &row.tensors {
            tensors::errors(&mut out, tensors, shades);
        }
    }
    let _ = write!(out, "<p class=\"soft\">requant {}</p></html>", env!("CARGO_PKG_VERSION"));
    out.push('\n');
    out
}

/// What all models cost, in the same pictures.
fn pictures(out: &mut String, outcome: &Outcome, names: &[String]) {
    let rows = &outcome.rows;
    if rows.is_empty() {
        return;
    }
    legend(out, names);
    if rows.len() > 1 {
        let largest = rows.iter().map(|row| row.bytes).max().unwrap_or(0);
        let (unit, bytes) = if largest < 1 << 30 { (" MiB", 1 << 20) } else { (" GiB", 1 << 30) };
        let points =
            rows.iter().zip(names).zip(outcome.front()).map(|((row, name), front)| Point {
                name: name.clone(),
                size: row.bytes as f64 / f64::from(bytes),
                cost: row.comparison.kl_divergence.mean.value,
                error: row.comparison.kl_divergence.error_by_chunk(),
                is_on_front: front,
            });
        let points: Vec<Point> = points.collect();
        let caption = "Mean KL divergence over size, with its standard error by chunk; a line joins those that \
                       nothing beats";
        let says = |p: &Point| format!("{}: {:.6} ± {:.6}", p.name, p.cost, p.error);
        figure(out, caption, |out| over_size(out, FIGURE, unit, &points, says));
    }
    let caption = "KL divergence below which so many percent of the tokens lie";
    let quantiles: Vec<_> = rows.iter().map(|row| quantiles(&row.comparison)).collect();
    figure(out, caption, |out| curves(out, Across::new(0.0..100.0, " %"), &quantiles));
    let chunks: Vec<_> =
        rows.iter().map(|row| numbered(row.comparison.kl_per_chunk.iter().copied())).collect();
    let n = chunks.iter().map(Vec::len).max().unwrap_or(0);
    if n > 1 {
        let caption = "Mean KL divergence of each chunk";
        figure(out, caption, |out| {
            marked(out, Across::of_numbers(n), &chunks, |model, chunk| {
                format!("{}, chunk {chunk}: {:.6}", names[model], chunks[model][chunk].1)
            });
        });
    }
    let layers: Vec<Vec<(f64, f64)>> =
        rows.iter().map(|row| numbered(row.comparison.layer_error.iter().copied())).collect();
    let n = layers.iter().map(Vec::len).max().unwrap_or(0);
    if n > 0 {
        let caption = "Relative error of the hidden states after each layer";
        figure(out, caption, |out| {
            marked(out, Across::of_numbers(n), &layers, |model, layer| {
                format!("{}, layer {layer}: {:.3e}", names[model], layers[model][layer].1)
            });
        });
    }
}

fn numbered(values: impl Iterator<Item = f64>) -> Vec<(f64, f64)> {
    values.enumerate().map(|(i, value)| (i as f64, value)).collect()
}

/// KL divergences in order, as many as a picture can show.
fn quantiles(comparison: &Comparison) -> Vec<(f64, f64)> {
    let mut kl: Vec<f64> = comparison.tokens.iter().map(|t| t.kl.max(1e-9)).collect();
    kl.sort_by(f64::total_cmp);
    let last = kl.len().saturating_sub(1);
    let step = (kl.len() / 400).max(1);
    let places = (0..kl.len()).step_by(step).chain(kl.len().checked_sub(1));
    places.map(|i| (100.0 * i as f64 / last.max(1) as f64, kl[i])).collect()
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
            escape(&base(&model.model)),
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
        let p99 = c.kl_divergence.percentile(99.0);
        let _ = write!(
            out,
            "<tr><td>{}<td>{:.4}<td>{:.5}<td>{:.6} ± {:.6}<td>{p99:.4}<td>{:.2} %</tr>",
            escape(&base(&domain.text)),
            domain.own.perplexity,
            c.paired.ratio,
            kl.value,
            kl.error,
            100.0 * c.same_top.value
        );
    }
    *out += "</tbody></table>";
}
