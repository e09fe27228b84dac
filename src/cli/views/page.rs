//! The page of a folder of GGUF files, in Markdown with the front matter that the hub reads.

use super::chart::Point;
use super::ladder;
use super::models::names;
use super::units;
use crate::gguf::{Array, Metadata, Value, whole_name};
use crate::measure::front;
use crate::names::base;
use serde_json::Value as Json;
use std::fmt::Write;
use std::path::Path;

/// What the page is of.
pub struct Page<'a> {
    /// That of the largest file.
    pub metadata: &'a Metadata,
    pub base_model: Option<String>,
    pub quantized_by: Option<&'a str>,
    /// What `compare --json` printed of some of the entries, and the name of the picture beside the page.
    pub quality: Option<(&'a Json, &'a str)>,
    /// The name of the list of checksums beside the page.
    pub sums: &'a str,
    pub entries: &'a [Entry],
}

/// A model of the folder.
pub struct Entry {
    /// Its file, or the first of several.
    pub file: String,
    pub n_files: usize,
    pub bytes: u64,
    /// The mix or recipe.
    pub ty: String,
    pub bits_per_weight: f64,
    /// How many tensors have which type.
    pub types: Vec<(String, usize)>,
    /// The text of a recipe that is no mix of llama-quantize.
    pub recipe: Option<String>,
    /// The importance matrix that weighed it, and that one's text.
    pub importances: Option<(String, Option<String>)>,
    /// The text that its rounding was calibrated with.
    pub calibration: Option<String>,
    /// Whether its scales were searched for more widely than the reference does.
    pub search: bool,
    /// The program's arguments that made it, where a manifest has them.
    pub command: Option<Vec<String>>,
    /// How far it is from the original, and whether no other is as small and as close.
    pub quality: Option<(Quality, bool)>,
}

/// How far a model is from the original.
#[derive(Clone, Copy)]
pub struct Quality {
    /// Mean KL divergence and its standard error, by chunk where there are several.
    kl: (f64, f64),
    /// The KL divergence that 99.9 % of the tokens stay below.
    most: f64,
    /// Ratio of perplexities and its standard error.
    ratio: (f64, f64),
    /// Share of tokens for which both find the same one most probable.
    same_top: f64,
}

impl Quality {
    /// A model in what `compare --json` printed.
    pub fn of(model: &Json) -> Option<Self> {
        let result = &model["result"];
        let kl = &result["kl_divergence"];
        let paired = &result["paired"];
        let by_token = || kl["mean"]["error"].as_f64();
        Some(Self {
            kl: (
                kl["mean"]["value"].as_f64()?,
                kl["mean_error_by_chunk"].as_f64().or_else(by_token)?,
            ),
            most: kl["percentiles"]["99.9"].as_f64()?,
            ratio: (paired["ratio"].as_f64()?, paired["ratio_error"].as_f64()?),
            same_top: result["same_top"]["value"].as_f64()?,
        })
    }
}

impl Page<'_> {
    fn field(&self, key: &str) -> Option<&str> {
        self.metadata.str(key).ok().flatten().filter(|text| !text.is_empty())
    }

    fn list(&self, key: &str) -> Vec<String> {
        match self.metadata.get(key) {
            Some(Value::Array(Array::String(list))) => {
                list.iter().map(|text| text.to_string()).collect()
            }
            _ => Vec::new(),
        }
    }

    /// What it is called.
    fn name(&self) -> String {
        let of_base = self.base_model.as_deref().and_then(|name| name.split('/').next_back());
        let name = of_base.or_else(|| self.field("general.name"));
        name.unwrap_or("GGUF files").to_owned()
    }
}

/// Says of the entries what `compare --json` found, and whether nothing beats them.
pub fn measure(entries: &mut [Entry], json: &Json) {
    let quality = |entry: &Entry| {
        let mut models = json["models"].as_array().into_iter().flatten();
        let is_it = |model: &&Json| base(model["model"].as_str().unwrap_or_default()) == entry.file;
        models.find(is_it).and_then(Quality::of)
    };
    let (mut measured, mut points) = (Vec::new(), Vec::new());
    for entry in entries {
        if let Some(quality) = quality(entry) {
            points.push((entry.bytes as f64, quality.kl.0));
            measured.push((entry, quality));
        }
    }
    for ((entry, quality), is_on_front) in measured.into_iter().zip(front(&points)) {
        entry.quality = Some((quality, is_on_front));
    }
}

/// The picture of what was measured, where anything was.
pub fn picture(entries: &[Entry]) -> Option<String> {
    let measured = || entries.iter().filter_map(|entry| Some((entry, entry.quality?)));
    let paths: Vec<&Path> = measured().map(|(entry, _)| Path::new(&entry.file)).collect();
    let points = names(&paths).into_iter().zip(measured());
    let points = points.map(|(name, (entry, (quality, is_on_front)))| {
        let (size, (cost, error)) = (entry.bits_per_weight, quality.kl);
        Point { name, size, cost, error, is_on_front }
    });
    ladder::picture(&points.collect::<Vec<_>>())
}

/// The page.
pub fn text(page: &Page) -> String {
    let mut out = front_matter(page);
    let _ = writeln!(out, "\n# {} GGUF\n", page.name());
    let _ = match &page.base_model {
        Some(name) => writeln!(
            out,
            "[{name}](https://huggingface.co/{name}) in the sizes below, quantized with requant {}.\n",
            env!("CARGO_PKG_VERSION")
        ),
        None => writeln!(
            out,
            "The model in the sizes below, quantized with requant {}.\n",
            env!("CARGO_PKG_VERSION")
        ),
    };
    files(&mut out, page);
    how(&mut out, page);
    let _ = write!(
        out,
        "\n## Checksums\n\n[{0}]({0}) has the SHA-256 of each file:\n\n```sh\nsha256sum -c {0}\n```\n",
        page.sums
    );
    out
}

/// What the hub reads. JSON's strings are YAML's.
fn front_matter(page: &Page) -> String {
    let mut out = "---\n".to_owned();
    let mut set = |key: &str, value: Option<&str>| match value {
        Some(value) => out += &format!("{key}: {}\n", Json::from(value)),
        None => out += &format!("{key}: # to fill in\n"),
    };
    set("base_model", page.base_model.as_deref());
    set("base_model_relation", Some("quantized"));
    set("quantized_by", page.quantized_by);
    set("license", page.field("general.license"));
    for key in ["name", "link"] {
        if let Some(value) = page.field(&format!("general.license.{key}")) {
            set(&format!("license_{key}"), Some(value));
        }
    }
    set("library_name", Some("gguf"));
    for (key, name) in [("general.languages", "language"), ("general.tags", "tags")] {
        let list = page.list(key);
        if !list.is_empty() {
            let _ = writeln!(out, "{name}: {}", Json::from(list));
        }
    }
    out + "---\n"
}

fn files(out: &mut String, page: &Page) {
    *out += "| file | size | bits per weight |";
    let columns =
        ["mean KL divergence", "99.9 % of it below", "perplexity ratio", "same top token", "front"];
    let columns = if page.quality.is_some() { &columns[..] } else { &[] };
    columns.iter().for_each(|column| *out += &format!(" {column} |"));
    let _ = writeln!(out, "\n|---|---:|---:|{}", "---:|".repeat(columns.len()));
    for entry in page.entries {
        let more = match entry.n_files {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        let _ = write!(
            out,
            "| [{0}]({0}){more} | {1} | {2:.2} |",
            entry.file,
            units::bytes(entry.bytes),
            entry.bits_per_weight
        );
        match entry.quality {
            Some((q, is_on_front)) => {
                let _ = write!(
                    out,
                    " {:.5} ± {:.5} | {:.3} | {:.4} ± {:.4} | {:.2} % | {} |",
                    q.kl.0,
                    q.kl.1,
                    q.most,
                    q.ratio.0,
                    q.ratio.1,
                    100.0 * q.same_top,
                    if is_on_front { "●" } else { "" }
                );
            }
            None => columns.iter().for_each(|_| *out += " |"),
        }
        out.push('\n');
    }
    if let Some((json, picture)) = page.quality {
        let own = &json["reference_perplexity"];
        let _ = write!(
            out,
            "\nAgainst the original on {}, {} tokens in chunks of {}, by `requant compare`; ± is one standard \
             error, that of KL divergence by chunk. KL divergence is in nats. ● marks what no other file beats in both size and divergence.\n\n\
             ![Mean KL divergence over bits per weight]({picture})\n",
            texts(&json["text"]),
            own["tokens_scored"],
            json["ctx"],
        );
    }
}

/// The names of texts, without their folders.
fn texts(json: &Json) -> String {
    let name = |text: &Json| base(text.as_str().unwrap_or_default());
    match json {
        Json::Array(list) => list.iter().map(name).collect::<Vec<_>>().join(", "),
        Json::String(_) => name(json),
        _ => "the text of its log-probabilities".to_owned(),
    }
}

/// How each file was made, and by which commands.
fn how(out: &mut String, page: &Page) {
    *out += "\n## How they were made\n";
    let mut commands: Vec<(String, Vec<&str>)> = Vec::new();
    for entry in page.entries {
        let command = command(page, entry);
        match commands.iter_mut().find(|(known, _)| *known == command) {
            Some((_, files)) => files.push(&entry.ty),
            None => commands.push((command, vec![&entry.ty])),
        }
    }
    for (command, types) in commands {
        let _ = write!(out, "\n{}:\n\n```sh\n{command}\n```\n", types.join(", "));
    }
    *out += "\n| type | tensors | weighed by | rounded |\n|---|---|---|---|\n";
    for entry in page.entries {
        let types: Vec<String> = entry.types.iter().map(|(ty, n)| format!("{n} {ty}")).collect();
        let importances = match &entry.importances {
            Some((file, Some(text))) => format!("{} of {}", base(file), base(text)),
            Some((file, None)) => base(file),
            None => String::new(),
        };
        let rounded = match &entry.calibration {
            Some(text) => format!("to make up on {}", base(text)),
            None if entry.search => "with scales searched for".to_owned(),
            None => String::new(),
        };
        let _ =
            writeln!(out, "| {} | {} | {importances} | {rounded} |", entry.ty, types.join(", "));
    }
    for entry in page.entries {
        if let Some(recipe) = &entry.recipe {
            let _ = write!(
                out,
                "\n<details><summary>The recipe of {}</summary>\n\n```toml\n{}\n```\n\n</details>\n",
                entry.ty,
                recipe.trim_end()
            );
        }
    }
}

/// The command that made a file: a manifest's, or what follows from the file itself.
fn command(page: &Page, entry: &Entry) -> String {
    if let Some(arguments) = &entry.command {
        let words = arguments.iter().map(|word| quoted(word));
        return format!("requant {}", words.collect::<Vec<_>>().join(" "));
    }
    let source = page.base_model.as_ref().map_or("MODEL".to_owned(), |name| format!("hf://{name}"));
    let stem = whole_name(entry.file.strip_suffix(".gguf").unwrap_or(&entry.file));
    let (before, ty) = match &entry.recipe {
        Some(_) => {
            let recipe = format!("{stem}.toml");
            let from = quoted(&entry.file);
            (format!("requant recipe from {from} > {}\n", quoted(&recipe)), recipe)
        }
        None => (String::new(), entry.ty.clone()),
    };
    let mut words = vec![
        "requant".to_owned(),
        "convert".to_owned(),
        source,
        format!("{stem}.gguf"),
        "--type".to_owned(),
        ty,
    ];
    let mut option = |name: &str, value: Option<&String>| {
        words.extend(value.into_iter().flat_map(|value| [name.to_owned(), base(value)]));
    };
    option("--imatrix", entry.importances.as_ref().map(|(file, _)| file));
    option("--calibrate", entry.calibration.as_ref());
    option("--rounding", entry.search.then(|| "search".to_owned()).as_ref());
    if entry.recipe.is_some() {
        words.push("--write-recipe".to_owned());
    }
    let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    format!("{before}{}", words.join(" "))
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=@%+".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}
