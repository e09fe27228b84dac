//! What plans become: one file, or several in a folder, with their names.

use super::error::ConvertError;
use super::ladder::{Ladder, Rung};
use super::plan::Plan;
use crate::gguf::{Metadata, whole_name};
use crate::names::base;
use crate::recipe::FileType;
use crate::warning::Warning;
use std::path::{Path, PathBuf};

/// Plans, and the names of what they become.
pub struct Outputs {
    plans: Vec<Plan>,
    paths: Vec<PathBuf>,
    folder: Option<PathBuf>,
}

impl Outputs {
    /// A single file, which may be split.
    pub fn one(plan: Plan, path: &Path) -> Self {
        Self { plans: vec![plan], paths: vec![path.to_owned()], folder: None }
    }

    /// Files of one source in a folder, named after the model and their types.
    pub fn ladder(plans: Vec<Plan>, folder: &Path, source: &Path) -> Self {
        let path = |plan: &Plan| {
            let name =
                format!("{}-{}.gguf", model_name(source, plan.metadata()), plan.recipe().name());
            folder.join(name.replace(['/', '\\', ':', ' '], "-"))
        };
        let paths = plans.iter().map(path).collect();
        Self { plans, paths, folder: Some(folder.to_owned()) }
    }

    /// What a pass writes.
    ///
    /// # Errors
    /// Outputs that cannot be written together.
    pub fn to_write(&self) -> Result<Ladder<'_>, ConvertError> {
        match &self.folder {
            Some(folder) => {
                let rungs = self.plans.iter().zip(&self.paths);
                Ladder::new(rungs.map(|(plan, output)| Rung { plan, output }).collect(), folder)
            }
            None => Ok(Ladder::of(&self.plans[0], &self.paths[0])),
        }
    }

    /// What is not as one would expect of the plans, each once.
    pub fn warnings(&self) -> Vec<Warning> {
        let mut warnings: Vec<Warning> = Vec::new();
        for warning in self.plans.iter().flat_map(Plan::warnings) {
            if !warnings.contains(warning) {
                warnings.push(warning.clone());
            }
        }
        warnings
    }
}

/// What files made of a model are called: as its folder or file, without what says that it is split and of
/// which type; by its own name where the folder is named by a hash, as in the hub's cache.
fn model_name(source: &Path, metadata: &Metadata) -> String {
    let absolute = || source.canonicalize().unwrap_or_default();
    let last = match source.file_name() {
        Some(name) => name.to_string_lossy().into_owned(),
        None => base(absolute()),
    };
    let name = last.split('@').next().unwrap_or_default();
    let name = whole_name(name.strip_suffix(".gguf").unwrap_or(name));
    let name = match name.rsplit_once(['-', '.']) {
        Some((stem, ty)) if ty.parse::<FileType>().is_ok() && ty.parse::<u32>().is_err() => stem,
        _ => name,
    };
    let is_hash = name.len() >= 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    match metadata.str("general.name") {
        Ok(Some(own)) if is_hash || name.is_empty() => own.to_owned(),
        _ if name.is_empty() => "model".to_owned(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_named_after_where_they_are() {
        let mut metadata = Metadata::new();
        metadata.set("general.name", "Own Name");
        let name = |path: &str| model_name(Path::new(path), &metadata);
        assert_eq!(name("/models/DeepSeek-R1"), "DeepSeek-R1");
        assert_eq!(name("hf://deepseek-ai/DeepSeek-R1@v1.0"), "DeepSeek-R1");
        assert_eq!(name("x/Qwen3-0.6B-BF16.gguf"), "Qwen3-0.6B");
        assert_eq!(name("x/smol.f16.gguf"), "smol");
        assert_eq!(name("x/R1-BF16-00001-of-00030.gguf"), "R1");
        assert_eq!(name("x/model-7.gguf"), "model-7");
        assert_eq!(name("snapshots/0123456789abcdef0123456789abcdef01234567"), "Own Name");
    }
}
