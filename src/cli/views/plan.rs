//! A plan, for people and for programs.

use super::units;
use crate::cli::args::calibrate::Cost;
use crate::cli::say;
use crate::convert::{Ladder, Plan, Rung, Shard, Weighing};
use crate::gguf;
use crate::io::{LocalDisk, free_disk, read_rate, write_rate};
use crate::names::{base, in_short};
use crate::quant::QuantType;
use crate::recipe::Reason;
use crate::source::{GgufSource, Source};
use crate::warning::{Topic, Warning};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Adds the members of one object to another.
pub fn merge(json: &mut Value, others: Value) {
    if let (Some(json), Value::Object(others)) = (json.as_object_mut(), others) {
        json.extend(others);
    }
}

/// Prints how long what is planned will take, and its tensors, or all as JSON where what stands beside it there is
/// given; warns where the disk cannot suffice.
pub fn print(
    ladder: &Ladder,
    source: &dyn Source,
    shard: Option<Shard>,
    tensors: bool,
    calibration: Option<Cost>,
    json: Option<Value>,
) -> anyhow::Result<()> {
    let time = Time::of(ladder, source, shard);
    let place = ladder.place();
    let (size, free) = (ladder.size(shard), free_disk(&place));
    match json {
        Some(beside) => {
            let mut json = match ladder.folder() {
                Some(_) => ladder_json(ladder, shard),
                None => plan_json(ladder, source, shard),
            };
            merge(&mut json, time.json());
            merge(&mut json, json!({ "disk_free_bytes": free }));
            merge(&mut json, beside);
            if let Some(cost) = calibration {
                merge(&mut json, json!({ "calibration": cost.json() }));
            }
            say::json(json);
        }
        None => {
            println!("time       {}", time.describe());
            if let Some(cost) = calibration {
                println!("{}", cost.describe());
            }
            for &Rung { plan, output } in ladder.rungs().iter().filter(|_| tensors) {
                print!("\n{}", table(plan, source, plan.files_of(shard), output));
            }
        }
    }
    if let Some(free) = free.filter(|&free| free < size) {
        let text = format!(
            "{}: the output needs {} and {} are free; free some room or choose another folder",
            ladder.folder().unwrap_or(&place).display(),
            units::bytes(size),
            units::bytes(free)
        );
        say::warning(&Warning::new(Topic::Output, text));
    }
    Ok(())
}

/// A plan for programs.
fn plan_json(ladder: &Ladder, source: &dyn Source, shard: Option<Shard>) -> Value {
    let rung = &ladder.rungs()[0];
    let plan = rung.plan;
    let files = plan.files_of(shard);
    let tensors: Vec<Value> = files
        .flat_map(|i| plan.files()[i].tensors.clone().map(move |t| (i, t)))
        .map(|(file, tensor)| tensor_json(plan, source, file, tensor))
        .collect();
    json!({
        "version": 1,
        "bytes": ladder.size(shard),
        "weights": plan.n_weights(),
        "bits_per_weight": plan.bits_per_weight(),
        "peak_memory_bytes": ladder.peak_memory(),
        "threads": ladder.threads(),
        "files": files_json(rung, shard),
        "tensors": tensors,
        "further_end_tokens": plan.further_ends().iter().map(|(id, _)| id).collect::<Vec<_>>(),
        "importance_without_tensor": plan.unused_importance().collect::<Vec<_>>(),
    })
}

fn files_json(rung: &Rung, shard: Option<Shard>) -> Vec<Value> {
    let file = |i: usize| {
        let file = &rung.plan.files()[i];
        json!({
            "path": rung.plan.path(i, rung.output),
            "bytes": file.layout.file_size(),
            "tensors": file.tensors.len(),
        })
    };
    rung.plan.files_of(shard).map(file).collect()
}

/// Several outputs for programs.
pub fn ladder_json(ladder: &Ladder, shard: Option<Shard>) -> Value {
    let output = |rung: &Rung| {
        json!({
            "type": rung.plan.recipe().name(),
            "output": rung.output,
            "bytes": rung.size(shard),
            "bits_per_weight": rung.plan.bits_per_weight(),
            "files": files_json(rung, shard),
        })
    };
    json!({
        "version": 1,
        "bytes": ladder.size(shard),
        "weights": ladder.rungs()[0].plan.n_weights(),
        "peak_memory_bytes": ladder.peak_memory(),
        "threads": ladder.threads(),
        "outputs": ladder.rungs().iter().map(output).collect::<Vec<_>>(),
    })
}

/// How long a run will take.
struct Time {
    /// Seconds of processor time, over all threads.
    processor: f64,
    threads: usize,
    /// Bytes that are read and written.
    read: u64,
    written: u64,
    /// Bytes a second, as far as they can be measured.
    read_rate: Option<f64>,
    write_rate: Option<f64>,
}

impl Time {
    fn of(ladder: &Ladder, source: &dyn Source, shard: Option<Shard>) -> Self {
        let stored = source.files();
        let all: u64 = stored.iter().map(|file| file.size).sum();
        let share = ladder.weights(shard) as f64 / ladder.weights(None).max(1) as f64;
        let place = match ladder.folder() {
            Some(folder) if !folder.exists() => folder.to_owned(),
            _ => ladder.place(),
        };
        let stored: Vec<(PathBuf, u64)> =
            stored.into_iter().map(|file| (file.path, file.size)).collect();
        Self {
            processor: ladder.estimate(source, shard),
            threads: ladder.threads(),
            read: (all as f64 * share) as u64,
            written: ladder.size(shard),
            read_rate: read_rate(&stored),
            write_rate: write_rate(&LocalDisk, &place),
        }
    }

    /// Reading, encoding and writing go on at the same time.
    fn parts(&self) -> [(f64, &'static str); 3] {
        let of = |bytes: u64, rate: Option<f64>| rate.map_or(0.0, |rate| bytes as f64 / rate);
        [
            (self.processor / self.threads as f64, "encoding"),
            (of(self.read, self.read_rate), "reading"),
            (of(self.written, self.write_rate), "writing"),
        ]
    }

    fn seconds(&self) -> f64 {
        self.parts().iter().fold(0.0, |most, part| part.0.max(most))
    }

    fn json(&self) -> Value {
        json!({
            "estimated_seconds": self.seconds(),
            "processor_seconds": self.processor,
            "read_bytes": self.read,
            "read_bytes_per_second": self.read_rate,
            "write_bytes_per_second": self.write_rate,
        })
    }

    fn describe(&self) -> String {
        let parts = self.parts().map(|(seconds, what)| {
            format!(
                "{what} {}",
                if seconds > 0.0 { units::duration(seconds) } else { "?".to_owned() }
            )
        });
        format!(
            "about {}: {} on {}",
            units::duration(self.seconds()),
            parts.join(", "),
            units::of(self.threads, "thread")
        )
    }
}

fn table(plan: &Plan, source: &dyn Source, files: Range<usize>, output: &Path) -> String {
    let mut out = String::new();
    let width = plan.tensors().iter().map(|t| t.name.len()).max().unwrap_or(0);
    for i in files {
        let file = &plan.files()[i];
        let path = plan.path(i, output);
        let _ = writeln!(out, "{}: {} bytes", path.display(), file.layout.file_size());
        for t in file.tensors.clone() {
            let tensor = &plan.tensors()[t];
            let dims: Vec<String> = tensor.dims.iter().map(u64::to_string).collect();
            let _ = writeln!(
                out,
                "{:<width$} {:>14} {:>8} > {:<7} {:>6.3}",
                tensor.name,
                dims.join("x"),
                source.tensors()[tensor.source].dtype,
                tensor.ty,
                bits(plan, t),
            );
            if let Some(reason) = reason(plan, t) {
                let _ = writeln!(out, "    {reason}");
            }
        }
    }
    out
}

fn tensor_json(plan: &Plan, source: &dyn Source, file: usize, tensor: usize) -> Value {
    let planned = &plan.tensors()[tensor];
    let in_file = tensor - plan.files()[file].tensors.start;
    let layout = &plan.files()[file].layout;
    let pieces: Vec<Value> = plan
        .pieces(tensor, source)
        .iter()
        .map(|piece| json!({ "file": piece.path, "tensor": piece.tensor }))
        .collect();
    json!({
        "name": planned.name,
        "shape": planned.dims,
        "from": source.tensors()[planned.source].dtype.to_string(),
        "type": planned.ty.to_string(),
        "bits_per_weight": bits(plan, tensor),
        "why": reason(plan, tensor),
        "weighed": planned.weighing.is_some(),
        "file": file,
        "offset": layout.offset(in_file),
        "bytes": layout.n_bytes(in_file),
        "pieces": pieces,
    })
}

fn bits(plan: &Plan, tensor: usize) -> f64 {
    plan.n_bytes(tensor) as f64 * 8.0 / plan.tensors()[tensor].n_elements().max(1) as f64
}

/// Why a tensor does not simply get the type asked for; `None` where it does.
fn reason(plan: &Plan, tensor: usize) -> Option<String> {
    let planned = &plan.tensors()[tensor];
    let why = match planned.reason {
        Reason::Default => None,
        Reason::Kept => {
            let is_quantized = planned.ty.known().is_some_and(QuantType::is_quantized);
            (!is_quantized).then(|| "not quantized".to_owned())
        }
        Reason::Rule(rule) => Some(format!("by rule: {}", plan.recipe().rule_name(rule))),
        Reason::Outside => Some("outside of the layers".to_owned()),
        Reason::Requested => Some("by an option".to_owned()),
        Reason::Unmeasured { wanted } => {
            Some(format!("{wanted} needs importances, and there are none"))
        }
        Reason::Fallback { wanted } => {
            Some(format!("rows of {} are no whole {wanted} blocks", planned.n_per_row()))
        }
    };
    let by_another = planned.weighing.as_ref().and_then(Weighing::by_another);
    let weighed = match by_another {
        Some(entry) => Some(format!("weighed by {entry}")),
        None => plan.is_unweighed(tensor).then(|| "not in the importance matrix".to_owned()),
    };
    match (why, weighed) {
        (Some(why), Some(weighed)) => Some(format!("{why}; {weighed}")),
        (why, weighed) => why.or(weighed),
    }
}

/// A line of a plan, in as many as it takes in 80 columns.
pub fn line(out: &mut String, name: &str, text: &str) {
    let name = format!("{name:<10} ");
    let folded = textwrap::Options::new(80)
        .initial_indent(&name)
        .subsequent_indent("           ")
        .break_words(false)
        .word_separator(textwrap::WordSeparator::AsciiSpace)
        .word_splitter(textwrap::WordSplitter::NoHyphenation);
    let _ = writeln!(out, "{}", textwrap::fill(text, folded));
}

/// What will be made of a GGUF file.
pub fn of_file(
    source: &GgufSource,
    ladder: &Ladder,
    name: &str,
    path: &Path,
    shard: Option<Shard>,
) -> String {
    let mut out = String::new();
    let size = units::bytes(source.n_bytes());
    line(&mut out, "source", &format!("{} ({size})", path.display()));
    summary(&mut out, ladder, name, shard);
    out
}

/// What will be written, and what that takes.
pub fn summary(out: &mut String, ladder: &Ladder, file_type: &str, shard: Option<Shard>) {
    match ladder.folder() {
        Some(folder) => {
            line(out, "outputs", &folder.display().to_string());
            ladder.rungs().iter().for_each(|rung| one_of_several(out, rung));
        }
        None => output(out, &ladder.rungs()[0], file_type),
    }
    if let Some(shard) = shard {
        let files = |shard| ladder.rungs().iter().map(|rung| rung.paths(shard).count()).sum();
        let (own, all): (usize, usize) = (files(Some(shard)), files(None));
        let size = units::bytes(ladder.size(Some(shard)));
        let text = format!("{}/{}, {own} of {all} files, {size}", shard.number(), shard.count());
        line(out, "share", &text);
    }
    let plan = ladder.rungs()[0].plan;
    let weights = units::count(plan.n_weights() as f64);
    let n = plan.tensors().len();
    let types =
        if ladder.folder().is_some() { String::new() } else { format!(" ({})", types(plan)) };
    line(out, "tensors", &format!("{n}{types}, {weights} weights"));
    line(out, "memory", &format!("at most {}", units::bytes(ladder.peak_memory())));
    let free = free_disk(&ladder.place()).map(|free| format!(", {} free", units::bytes(free)));
    let size = units::bytes(ladder.size(shard));
    line(out, "disk", &format!("{size}{}", free.unwrap_or_default()));
    exceptions(out, ladder);
}

/// One of several files that a plan becomes.
fn one_of_several(out: &mut String, rung: &Rung) {
    let name = base(rung.output);
    let (bits, size) = (rung.plan.bits_per_weight(), units::bytes(rung.plan.file_size()));
    line(out, "", &format!("{name:<44} {bits:>6.2} bits {size:>11}"));
}

/// The file that a plan becomes.
fn output(out: &mut String, rung: &Rung, file_type: &str) {
    let size = rung.plan.file_size();
    line(
        out,
        "output",
        &format!(
            "{} ({file_type}, {:.2} bits per weight, {} = {size} bytes)",
            rung.output.display(),
            rung.plan.bits_per_weight(),
            units::bytes(size),
        ),
    );
}

/// How many tensors get which type.
fn types(plan: &Plan) -> String {
    let mut types: BTreeMap<u32, (gguf::TensorType, usize)> = BTreeMap::new();
    for tensor in plan.tensors() {
        types.entry(tensor.ty.id()).or_insert((tensor.ty, 0)).1 += 1;
    }
    let types: Vec<String> = types.values().map(|(ty, n)| format!("{n} {ty}")).collect();
    types.join(", ")
}

/// Tensors that get another type than wanted, or are weighed by another's importances: one line
/// for all layers' tensors of a kind.
fn exceptions(out: &mut String, ladder: &Ladder) {
    let mut lines: Vec<((&str, String), Vec<&str>)> = Vec::new();
    let mut add = |title, why: String, name| {
        let key = (title, why);
        match lines.iter_mut().find(|(known, _)| *known == key) {
            Some((_, names)) if names.contains(&name) => {}
            Some((_, names)) => names.push(name),
            None => lines.push((key, vec![name])),
        }
    };
    for tensor in ladder.rungs().iter().flat_map(|rung| rung.plan.tensors()) {
        let ty = tensor.ty;
        match tensor.reason {
            Reason::Fallback { wanted } => {
                let (n, block) = (tensor.n_per_row(), wanted.block_len());
                let why = format!(
                    "{ty} instead of {wanted}, rows of {n} are no whole number of blocks of {block}"
                );
                add("fallback", why, tensor.name.as_str());
            }
            Reason::Unmeasured { wanted } => {
                let why = format!("{ty} instead of {wanted}, which needs importances");
                add("unmeasured", why, tensor.name.as_str());
            }
            _ => {}
        }
        if let Some(entry) = tensor.weighing.as_ref().and_then(Weighing::by_another) {
            let kind = entry.splitn(3, '.').nth(2).unwrap_or(entry);
            add(
                "weighed",
                format!("by entries of {kind}, with the same inputs"),
                tensor.name.as_str(),
            );
        }
    }
    for ((title, why), names) in lines {
        line(out, title, &format!("{why}: {}", in_short(&names)));
    }
}
