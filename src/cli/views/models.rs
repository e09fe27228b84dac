//! Several models compared with a reference: one line each, by size.

use super::units;
use crate::gguf::whole_name;
use crate::measure::{Outcome, Row};
use crate::names::base;
use std::collections::HashSet;
use std::path::Path;

/// How a comparison is written for people and for spreadsheets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A table for a terminal
    #[default]
    Text,
    /// A table in Markdown
    Md,
    /// Values separated by commas, a line for each model
    Csv,
    /// All that was found
    Json,
}

/// Widest name in a table for a terminal.
const WIDEST: usize = 15;

/// What one model's line says.
struct Line {
    name: String,
    /// Whether no other model is as small and as close to the reference.
    is_on_front: bool,
    row: usize,
    bytes: u64,
    bits: f64,
    kl: [f64; 2],
    median: f64,
    tail: f64,
    ratio: f64,
    top: f64,
}

impl Line {
    fn of(row: &Row, is_on_front: bool, number: usize, name: String) -> Self {
        let (c, kl) = (&row.comparison, &row.comparison.kl_divergence);
        Self {
            name,
            is_on_front,
            row: number,
            bytes: row.bytes,
            bits: row.bits_per_weight,
            kl: [kl.mean.value, kl.error_by_chunk()],
            median: kl.percentile(50.0),
            tail: kl.percentile(99.9),
            ratio: c.paired.ratio,
            top: 100.0 * c.same_top.value,
        }
    }

    /// What the name is followed by.
    fn mark(&self) -> &'static str {
        if self.is_on_front { "*" } else { "" }
    }
}

/// Models by size, largest first.
fn lines(outcome: &Outcome) -> Vec<Line> {
    let names = names(&outcome.rows.iter().map(|row| row.path.as_path()).collect::<Vec<_>>());
    let rows = outcome.rows.iter().zip(outcome.front()).zip(names).enumerate();
    let line = |(i, ((row, is_on_front), name))| Line::of(row, is_on_front, i, name);
    let mut lines: Vec<Line> = rows.map(line).collect();
    lines.sort_by_key(|line| std::cmp::Reverse(line.bytes));
    lines
}

/// What models are called: their files, without what all of these have in common; where two have the same file name,
/// with their folders.
pub fn names(paths: &[&Path]) -> Vec<String> {
    let stem = |path: &&Path| {
        let name = base(path);
        whole_name(name.strip_suffix(".gguf").unwrap_or(&name)).to_owned()
    };
    let names: Vec<String> = paths.iter().map(stem).collect();
    if names.iter().collect::<HashSet<_>>().len() < names.len() {
        return paths.iter().map(|path| path.display().to_string()).collect();
    }
    let Some(first) = names.first().filter(|_| names.len() > 1) else { return names };
    let ends =
        first.char_indices().filter(|(_, c)| "-._".contains(*c)).map(|(i, c)| i + c.len_utf8());
    let common = ends.filter(|&end| names.iter().all(|name| name.starts_with(&first[..end]))).max();
    let common = common.filter(|&end| names.iter().all(|name| name.len() > end)).unwrap_or(0);
    names.iter().map(|name| name[common..].to_owned()).collect()
}

/// A name that fits a column, by its end, where names differ.
fn fitting(name: &str) -> String {
    match name.chars().count() {
        n if n > WIDEST => format!("…{}", name.chars().skip(n + 1 - WIDEST).collect::<String>()),
        _ => name.to_owned(),
    }
}

/// A number in few digits, small ones as well.
fn short(x: f64) -> String {
    match x {
        0.0 => "0".to_owned(),
        x if x < 1e-4 => format!("{x:.1e}"),
        x if x < 1.0 => format!("{x:.5}"),
        x => format!("{x:.3}"),
    }
}

/// For a terminal of 80 columns.
pub fn text(outcome: &Outcome) -> String {
    let lines = lines(outcome);
    let width =
        lines.iter().map(|line| fitting(&line.name).chars().count()).max().unwrap_or(0).max(5) + 1;
    let mut out = format!(
        "{:<width$} {:>9} {:>5} {:>17} {:>7} {:>7} {:>7} {:>5}\n",
        "model", "size", "bits", "KLD ± error", "median", "99.9 %", "PPL", "top"
    );
    for line in &lines {
        let [kl, error] = line.kl.map(short);
        out += &format!(
            "{:<width$} {:>9} {:>5.2} {:>17} {:>7} {:>7} {:>7.4} {:>5.2}\n",
            fitting(&line.name) + line.mark(),
            units::bytes(line.bytes),
            line.bits,
            format!("{kl} ± {error}"),
            short(line.median),
            short(line.tail),
            line.ratio,
            line.top
        );
    }
    out += "\nKLD: mean KL divergence in nats ± standard error by chunk, median, percentile.\n\
            PPL: perplexity, divided by the reference's. top: % of tokens with the same most\n\
            probable one. *: no other is as small and as close. --verbose says more.\n";
    let neighbours = lines.windows(2).map(|pair| {
        let pair_of = outcome.pair([pair[0].row, pair[1].row]);
        let (kl, ln) = (pair_of.kl, pair_of.ln_ratio);
        format!(
            "{} less {}: KLD {:+.5} ± {}, ln PPL {:+.5} ± {}\n",
            fitting(&pair[1].name),
            fitting(&pair[0].name),
            kl.value,
            short(kl.error),
            ln.value,
            short(ln.error)
        )
    });
    let neighbours: String = neighbours.collect();
    match neighbours.is_empty() {
        true => out,
        false => format!("{out}\nPaired, token by token; errors by chunk:\n{neighbours}"),
    }
}

/// For a README or a model card.
pub fn markdown(outcome: &Outcome) -> String {
    let mut out = "| model | size | bits | mean KLD | median | 99.9 % | PPL ratio | same top |\n\
                   |---|---:|---:|---:|---:|---:|---:|---:|\n"
        .to_owned();
    for line in lines(outcome) {
        let [kl, error] = line.kl.map(short);
        out += &format!(
            "| {}{} | {} | {:.2} | {kl} ± {error} | {} | {} | {:.4} | {:.2} % |\n",
            line.name.replace('|', "\\|"),
            line.mark().replace('*', "\\*"),
            units::bytes(line.bytes),
            line.bits,
            short(line.median),
            short(line.tail),
            line.ratio,
            line.top
        );
    }
    out
}

/// For spreadsheets.
pub fn csv(outcome: &Outcome) -> String {
    let mut out =
        "model,path,bytes,bits_per_weight,mean_kld,mean_kld_error_by_chunk,median_kld,kld_99_9,\
                   ppl_ratio,same_top,front\n"
            .to_owned();
    for line in lines(outcome) {
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let path = outcome.rows[line.row].path.display().to_string();
        out += &format!(
            "{},{},{},{},{},{},{},{},{},{},{}\n",
            quoted(&line.name),
            quoted(&path),
            line.bytes,
            line.bits,
            line.kl[0],
            line.kl[1],
            line.median,
            line.tail,
            line.ratio,
            line.top / 100.0,
            line.is_on_front
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_files_do_not_have_in_common() {
        let of = |paths: &[&str]| names(&paths.iter().map(Path::new).collect::<Vec<_>>());
        assert_eq!(of(&["a/R1-Q4_K_M.gguf", "b/R1-Q5_K_S.gguf"]), ["Q4_K_M", "Q5_K_S"]);
        assert_eq!(of(&["R1-IQ2-00001-of-00009.gguf", "R1-Q8_0.gguf"]), ["IQ2", "Q8_0"]);
        assert_eq!(of(&["a/R1-Q4_K_M.gguf"]), ["R1-Q4_K_M"]);
        let folders = ["a/x-1.gguf", "b/x-1.gguf"];
        assert_eq!(of(&folders), folders);
        assert_eq!(of(&["ä-1.gguf", "ä-2"]), ["1", "2"]);
        assert_eq!(fitting("a-very-long-name-Q4_K_M"), "…ng-name-Q4_K_M");
    }

    #[test]
    fn small_numbers_keep_their_digits() {
        assert_eq!([0.0, 0.000012, 0.00738, 3.25].map(short), ["0", "1.2e-5", "0.00738", "3.250"]);
    }
}
