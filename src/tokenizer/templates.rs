//! Chat templates: chat_template.jinja, as `AutoTokenizer` takes it first, tokenizer_config.json, and
//! what the reference converter reads where these have none.

use super::error::TokenizerError;
use super::files::{CONFIG, Files, read_json, read_text};
use crate::warning::{Topic, Warning};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Templates by name; the default one has no name.
pub(super) type Templates = Vec<(Option<String>, String)>;

pub(super) fn read(
    files: &Files,
    warnings: &mut Vec<Warning>,
) -> Result<Templates, TokenizerError> {
    const JINJA: &str = "chat_template.jinja";
    let (jinja, json) = (files.dir.join(JINJA), files.dir.join("chat_template.json"));
    let configured = match files.config.get("chat_template") {
        Some(template) => listed(CONFIG, template, warnings),
        None if json.is_file() && !jinja.is_file() => {
            listed("chat_template.json", &read_json(&json)?["chat_template"], warnings)
        }
        None => Templates::new(),
    };
    let mut templates = match jinja.is_file() {
        false => configured,
        true => {
            let template = read_text(&jinja)?;
            if !configured.is_empty() && !configured.contains(&(None, template.clone())) {
                let text = format!("{JINJA} differs from the template in {CONFIG}, and is taken");
                warnings.push(Warning::new(Topic::Tokenizer, text));
            }
            vec![(None, template)]
        }
    };
    for path in additional(&files.dir) {
        let name = key_name(&path.file_stem().unwrap_or_default().to_string_lossy());
        templates.retain(|(known, _)| known.as_ref() != Some(&name));
        templates.push((Some(name), read_text(&path)?));
    }
    Ok(templates)
}

/// Files of templates beside the default one, in order.
fn additional(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.join("additional_chat_templates"));
    let mut paths: Vec<PathBuf> = entries
        .map(|entries| entries.filter_map(|e| Some(e.ok()?.path())).collect())
        .unwrap_or_default();
    paths.retain(|path| path.extension().is_some_and(|x| x == "jinja"));
    paths.sort();
    paths
}

/// A template, or a list of them with their names.
fn listed(file: &str, value: &Value, warnings: &mut Vec<Warning>) -> Templates {
    let mut odd = |what: &str| {
        let text = format!("{file}: `chat_template` {what}; left out");
        warnings.push(Warning::new(Topic::Tokenizer, text));
    };
    let mut templates = Templates::new();
    match value {
        Value::Null => {}
        Value::String(template) => templates.push((None, template.clone())),
        Value::Array(list) => {
            for entry in list {
                let (Some(name), Some(text)) = (entry["name"].as_str(), entry["template"].as_str())
                else {
                    odd("has an entry without name or template");
                    continue;
                };
                let name = Some(key_name(name)).filter(|name| name != "default");
                templates.retain(|(known, _)| *known != name);
                templates.push((name, text.to_owned()));
            }
        }
        _ => odd("is no text"),
    }
    templates
}

/// A template's name as part of a key.
fn key_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}
