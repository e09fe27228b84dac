//! What was measured, for people and for programs.

use super::chart::Point;
use super::ladder::picture;
use super::models::{self, Format};
use super::{ci, per_token, report, units};
use crate::cli::{is_interrupted, say};
use crate::eval::{Activations, Check, Perplexity, Verdict};
use crate::io::LocalDisk;
use crate::measure::{Choices, Domain, Estimate, Found, Inputs, Judged, Judgement, Outcome, Row};
use crate::names::base;
use crate::warning::{Topic, Warning};
use anyhow::Context;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// How it is shown.
#[derive(Default)]
pub struct Show {
    /// As JSON.
    pub json: bool,
    /// In which form, where it is not JSON.
    pub format: Format,
    /// With all figures of several models, not a line each.
    pub verbose: bool,
    /// With values of every token, in this file.
    pub per_token: Option<PathBuf>,
    /// What is known of texts and models beside their names, for programs.
    pub inputs: Option<Inputs>,
    /// With the error of the hidden states after each layer.
    pub by_layer: bool,
    /// With a page.
    pub report: Option<PathBuf>,
    /// With a picture of divergences over sizes.
    pub plot: Option<PathBuf>,
    /// With a summary in Markdown of a verdict, at the end of this file.
    pub summary: Option<PathBuf>,
    /// With a verdict as JUnit's XML.
    pub junit: Option<PathBuf>,
    /// And how tasks were answered.
    pub choices: Option<Choices>,
}

/// Shows what was found, then writes the page, and gives the exit code that belongs to it. Importances and
/// sensitivities are a file.
pub fn found(found: &Found, show: &Show) -> anyhow::Result<u8> {
    match show.json {
        true => print_json(found, show)?,
        false => print_tables(found, show),
    }
    if let (Some(path), Found::Comparison(outcome)) = (&show.per_token, found) {
        per_token::write(outcome, path)?;
    }
    write_files(found, show)?;
    Ok(match found {
        Found::Judgement(judged) => match judged.verdict {
            Verdict::Pass => 0,
            Verdict::Fail => 3,
            Verdict::Undecided => 4,
        },
        _ if is_interrupted() && !found.is_complete() => 130,
        _ => 0,
    })
}

/// Divergences over sizes; nothing where no model was compared.
fn plot(outcome: &Outcome) -> Option<String> {
    let paths: Vec<&Path> = outcome.rows.iter().map(|row| row.path.as_path()).collect();
    let names = models::names(&paths).into_iter().zip(outcome.front());
    let points = names.zip(&outcome.rows).map(|((name, is_on_front), row)| {
        let kl = &row.comparison.kl_divergence;
        let (cost, error) = (kl.mean.value, kl.error_by_chunk());
        Point { name, size: row.bits_per_weight, cost, error, is_on_front }
    });
    picture(&points.collect::<Vec<_>>())
}

fn print_json(found: &Found, show: &Show) -> anyhow::Result<()> {
    let mut json = match found {
        Found::Perplexity(outcome) => perplexity(outcome)?,
        Found::Comparison(outcome) => comparison(outcome),
        Found::Judgement(judged) => judgement(judged),
        Found::Choices(choices) => json!({ "version": 1, "choices": choices }),
        Found::Importances(_) | Found::Sensitivities(_) => return Ok(()),
    };
    if let Some(choices) = &show.choices {
        json["choices"] = json!(choices);
    }
    if let Some(inputs) = &show.inputs {
        json["inputs"] = json!(inputs);
    }
    say::json(json);
    Ok(())
}

fn print_tables(found: &Found, show: &Show) {
    match found {
        Found::Perplexity(outcome) => print!("{}", perplexity_table(outcome)),
        Found::Comparison(outcome) => match (show.format, outcome.rows.len()) {
            (Format::Md, _) => print!("{}", models::markdown(outcome)),
            (Format::Csv, _) => print!("{}", models::csv(outcome)),
            (_, 0 | 1) => print!("{}", table(outcome, show.by_layer)),
            (_, _) if show.verbose || show.by_layer => print!("{}", table(outcome, show.by_layer)),
            (_, _) => print!("{}\n{}", of_reference(outcome), models::text(outcome)),
        },
        Found::Judgement(judged) => print!("{}", judgement_table(judged)),
        Found::Choices(choices) => print!("{}", answers(choices)),
        Found::Importances(_) | Found::Sensitivities(_) => {}
    }
    if let Some(choices) = &show.choices {
        print!("\n{}", answers(choices));
    }
}

/// Writes the files that are asked for.
fn write_files(found: &Found, show: &Show) -> anyhow::Result<()> {
    let outcome = match found {
        Found::Comparison(outcome) => Some(&**outcome),
        Found::Judgement(judged) => judged.outcome.as_ref(),
        _ => None,
    };
    if let (Some(path), Some(outcome)) = (&show.report, outcome) {
        let page = report::page(outcome, show.choices.as_ref());
        crate::io::write(&LocalDisk, path, page.as_bytes())?;
    }
    if let (Some(path), Some(outcome)) = (&show.plot, outcome) {
        match plot(outcome) {
            Some(picture) => crate::io::write(&LocalDisk, path, picture.as_bytes())?,
            None => {
                let text = format!("{}: not drawn, for no model was compared", path.display());
                say::warning(&Warning::new(Topic::Output, text));
            }
        }
    }
    let Found::Judgement(judged) = found else { return Ok(()) };
    if let Some(path) = &show.summary {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let written = file.and_then(|mut file| file.write_all(ci::summary(judged).as_bytes()));
        written.with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &show.junit {
        crate::io::write(&LocalDisk, path, ci::junit(judged).as_bytes())?;
    }
    Ok(())
}

/// How tasks were answered, where nothing else was measured.
pub fn choices(choices: &Choices, json: bool) {
    match json {
        true => say::json(json!({ "version": 1, "choices": choices })),
        false => print!("{}", answers(choices)),
    }
}

/// What a measurement will take. See docs/schema/estimate.json.
pub fn estimate(estimate: &Estimate, json: bool) {
    if json {
        return say::json(json!({ "version": 1, "estimate": estimate }));
    }
    let processor = units::duration(estimate.processor_seconds);
    let time = units::duration(estimate.seconds);
    println!("tokens   {} for each model", estimate.tokens);
    println!(
        "time     about {time}: {processor} of processor time on {}",
        units::of(estimate.threads, "thread")
    );
    let bytes = units::bytes(estimate.read_bytes);
    match estimate.read_bytes_per_second {
        Some(rate) => println!("reading  {bytes}, at {}/s", units::bytes(rate as u64)),
        None => println!("reading  {bytes}"),
    }
    println!("memory   about {}", units::bytes(estimate.memory_bytes));
    if estimate.scratch_bytes > 0 {
        println!("scratch  {}", units::bytes(estimate.scratch_bytes));
    }
}

fn answers(choices: &Choices) -> String {
    let mut out = format!("{} of {}\n", units::of(choices.tasks, "task"), choices.file.display());
    let several = choices.models.len() > 1;
    for model in &choices.models {
        let share = |accuracy: f64, error: f64| {
            format!("{:.4} ± {:.4} % right", 100.0 * accuracy, 100.0 * error)
        };
        let nll = format!(", {:.4} ± {:.4} nats a token", model.nll, model.nll_error);
        let same = match several {
            true => format!(", {:.2} % as the first model", 100.0 * model.same_as_first),
            false => String::new(),
        };
        out += &format!(
            "  {:<24} {}{nll}{same}\n",
            base(&model.model),
            share(model.accuracy, model.error)
        );
        for (domain, part) in &model.domains {
            let of = share(part.accuracy, part.error);
            out += &format!("    {domain:<22} {of} of {} tasks\n", part.tasks);
        }
    }
    out
}

/// The text, the list of them, or null where it is not known.
fn texts(texts: &[PathBuf]) -> Value {
    match texts {
        [] => Value::Null,
        [text] => json!(text),
        texts => json!(texts),
    }
}

/// Adds what only some measurements have.
fn add_parts(value: &mut Value, outcome: &Outcome, domain: impl Fn(&Domain) -> Value) {
    if !outcome.domains.is_empty() {
        value["domains"] = outcome.domains.iter().map(domain).collect();
    }
    if let Some(sampling) = &outcome.sampling {
        value["sampling"] = json!(sampling);
    }
    value["complete"] = json!(outcome.complete);
    value["chunks"] = json!(outcome.chunks);
    value["chunks_available"] = json!(outcome.chunks_available);
}

fn of_text(p: &Perplexity) -> String {
    let n = p.tokens_scored;
    format!("perplexity {:.4} ± {:.4}, {n} tokens scored", p.perplexity, p.perplexity_error)
}

/// How much of the texts was taken.
fn sampled(outcome: &Outcome) -> String {
    if !outcome.complete {
        let Outcome { chunks, chunks_available, .. } = outcome;
        return format!(
            "stopped after {chunks} of {chunks_available} chunks, from all over the text\n"
        );
    }
    let Some(sampling) = &outcome.sampling else { return String::new() };
    let [error, wanted] = [sampling.error, sampling.wanted].map(|x| 100.0 * x);
    let (n, all) = (sampling.chunks, sampling.chunks_available);
    let enough = match error <= wanted {
        true => format!("within the {wanted} % asked for"),
        false => format!("{wanted} % were asked for, but the text ends"),
    };
    format!("standard error {error:.2} % of the mean after {n} of {all} chunks, {enough}\n")
}

/// See docs/schema/perplexity.json.
fn perplexity(outcome: &Outcome) -> anyhow::Result<Value> {
    let mut value = serde_json::to_value(&outcome.own)?;
    value["version"] = json!(1);
    value["model"] = json!(outcome.reference);
    value["text"] = texts(&outcome.texts);
    value["ctx"] = json!(outcome.ctx);
    value["activations"] = json!(outcome.activations);
    add_parts(
        &mut value,
        outcome,
        |domain| json!({ "text": domain.text, "perplexity": domain.own }),
    );
    Ok(value)
}

fn perplexity_table(outcome: &Outcome) -> String {
    let own = &outcome.own;
    let mut out = format!(
        "perplexity = {:.4} ± {:.5}\nmean NLL   = {:.6} over {} tokens in {}\n",
        own.perplexity,
        own.perplexity_error,
        own.mean_nll,
        own.tokens_scored,
        units::of(own.nll_per_chunk.len(), "chunk")
    );
    for domain in &outcome.domains {
        out += &format!("{:<24} {}\n", base(&domain.text), of_text(&domain.own));
    }
    out + &sampled(outcome)
}

/// See docs/schema/gate.json.
fn judgement(judged: &Judgement) -> Value {
    let model = |model: &Judged| {
        json!({
            "model": model.path,
            "bits_per_weight": model.bits_per_weight,
            "verdict": model.verdict,
            "chunks": model.chunks,
            "checks": model.checks,
        })
    };
    json!({
        "version": 2,
        "reference": judged.reference,
        "text": texts(&judged.texts),
        "ctx": judged.ctx,
        "activations": judged.activations,
        "verdict": judged.verdict,
        "complete": judged.complete,
        "confidence": judged.confidence,
        "chunks": judged.chunks,
        "chunks_available": judged.chunks_available,
        "models": judged.models.iter().map(model).collect::<Vec<_>>(),
    })
}

/// A verdict as people read it.
pub fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "FAIL",
        Verdict::Undecided => "undecided",
    }
}

/// A verdict, and how much text would give one.
pub fn with_need(check: &Check) -> String {
    match check.chunks_needed {
        Some(n) => format!("{}, some {n} chunks would decide", verdict(check.verdict)),
        None => verdict(check.verdict).to_owned(),
    }
}

fn judgement_table(judged: &Judgement) -> String {
    let mut out = String::new();
    for model in &judged.models {
        let n = model.chunks;
        out += &format!("{}: {} after {n} chunks\n", base(&model.path), verdict(model.verdict));
        for check in &model.checks {
            out += &format!(
                "  {:<20} {:.6} ± {:.6}, limit {}: {}\n",
                check.what.name(),
                check.value,
                check.error,
                check.limit,
                with_need(check)
            );
        }
    }
    let (confidence, n, all) = (judged.confidence, judged.chunks, judged.chunks_available);
    let all_together = verdict(judged.verdict).to_uppercase();
    let stopped = if judged.complete { "" } else { ", stopped" };
    out + &format!("{all_together} at confidence {confidence} after {n} of {all} chunks{stopped}\n")
}

/// The reference, and how much of the texts was taken.
fn of_reference(outcome: &Outcome) -> String {
    let mut out = format!(
        "reference {}\n  perplexity {:.4} ± {:.4}, {} tokens scored in {} of {}{}\n",
        outcome.reference.display(),
        outcome.own.perplexity,
        outcome.own.perplexity_error,
        outcome.own.tokens_scored,
        units::of(outcome.chunks, "chunk"),
        outcome.ctx,
        match outcome.activations {
            Activations::F32 => "",
            Activations::Q8 => ", activations rounded as llama.cpp does",
        },
    );
    for domain in &outcome.domains {
        out += &format!("  {:<24} {}\n", base(&domain.text), of_text(&domain.own));
    }
    out + &sampled(outcome)
}

/// Of models compared with a reference, for people.
fn table(outcome: &Outcome, by_layer: bool) -> String {
    let mut out = of_reference(outcome);
    for (i, row) in outcome.rows.iter().enumerate() {
        let c = &row.comparison;
        out += &format!(
            "\n{} ({}, {:.3} bits per weight)\n",
            row.path.display(),
            units::bytes(row.bytes),
            row.bits_per_weight
        );
        let mut line = |name: &str, text: String| out += &format!("  {name:<24} {text}\n");
        let p = &c.perplexity;
        line("perplexity", format!("{:.4} ± {:.4}", p.perplexity, p.perplexity_error));
        line(
            "ln(PPL ratio), paired",
            format!("{:+.6} ± {:.6}", c.paired.ln_ratio, c.paired.ln_ratio_error),
        );
        line("PPL ratio", format!("{:.6} ± {:.6}", c.paired.ratio, c.paired.ratio_error));
        line("correlation of ln p", format!("{:.3} %", 100.0 * c.correlation));
        let kl = &c.kl_divergence;
        let (mean, token) = (kl.mean.value, kl.mean.error);
        let error = format!("± {:.6} by chunk, ± {token:.6} by token", kl.error_by_chunk());
        line("mean KL divergence", format!("{mean:.6} {error}"));
        let percentiles =
            [50.0, 90.0, 95.0, 99.0, 99.9].map(|p| format!("{:.6}", kl.percentile(p)));
        line("  50 90 95 99 99.9 %", percentiles.join("  "));
        line("  maximum", format!("{:.6}", kl.max));
        let top = c.same_top;
        line("same top token", format!("{:.3} ± {:.3} %", 100.0 * top.value, 100.0 * top.error));
        for top in &c.top_k {
            let share = format!("{:.3} ± {:.3} %", 100.0 * top.value, 100.0 * top.error);
            line(&format!("  shared of the top {}", top.k), share);
        }
        let change = &c.p_change;
        line(
            "change of p, mean",
            format!("{:+.3} ± {:.3} %", 100.0 * change.mean.value, 100.0 * change.mean.error),
        );
        let rms = c.p_change_rms;
        line("change of p, RMS", format!("{:.3} ± {:.3} %", 100.0 * rms.value, 100.0 * rms.error));
        let percentiles =
            [1.0, 5.0, 50.0, 95.0, 99.0].map(|p| format!("{:+.3}", 100.0 * change.percentile(p)));
        line("  1 5 50 95 99 %", percentiles.join("  "));
        if by_layer {
            for (layer, error) in c.layer_error.iter().enumerate() {
                line(&format!("state after layer {layer}"), format!("{error:.3e} relative"));
            }
        }
        for domain in &outcome.domains {
            let c = &domain.models[i];
            let (kl, top) = (c.kl_divergence.mean, c.same_top);
            let kl = format!("KL divergence {:.6} ± {:.6}", kl.value, kl.error);
            let top = format!("same top token {:.3} %", 100.0 * top.value);
            line(&base(&domain.text), format!("{kl}, {top}, PPL ratio {:.6}", c.paired.ratio));
        }
        for tensor in row.tensors.iter().flatten() {
            let says = match tensor.error {
                0.0 => "unchanged".to_owned(),
                error => format!("{error:.3e} relative, of its output"),
            };
            line(&tensor.name, format!("{says}, {}", tensor.ty));
        }
    }
    out
}

/// See docs/schema/compare.json.
fn comparison(outcome: &Outcome) -> Value {
    let row = |(row, is_on_front): (&Row, bool)| {
        let mut value = json!({
            "model": row.path,
            "bits_per_weight": row.bits_per_weight,
            "bytes": row.bytes,
            "front": is_on_front,
            "result": row.comparison,
        });
        if let Some(tensors) = &row.tensors {
            value["tensors"] = json!(tensors);
        }
        value
    };
    let mut value = json!({
        "version": 2,
        "reference": outcome.reference,
        "text": texts(&outcome.texts),
        "ctx": outcome.ctx,
        "activations": outcome.activations,
        "reference_perplexity": outcome.own,
        "models": outcome.rows.iter().zip(outcome.front()).map(row).collect::<Vec<_>>(),
        "pairs": outcome.pairs(),
    });
    add_parts(&mut value, outcome, |domain| {
        json!({
            "text": domain.text,
            "reference_perplexity": domain.own,
            "models": domain.models,
        })
    });
    value
}
