//! Which recipe gives a file's tensors the types that they have: that which it was made with, a mix of
//! llama-quantize, such a mix with exceptions, or a list, whichever is the simplest.

use super::error::ConvertError;
use super::metadata::RECIPE;
use super::plan::Plan;
use super::settings::Settings;
use crate::quant::QuantType;
use crate::recipe::{FileType, Quantized, Reason, Recipe, Recovered, amend, recover};
use crate::source::GgufSource;
use std::sync::Arc;

/// A recipe that explains a file, and how it was found.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The recipe's text.
    pub text: String,
    /// How it was found.
    pub how: Explained,
}

/// How a recipe was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Explained {
    /// It is in the file.
    Stored,
    /// It is this mix.
    Mix {
        /// The mix.
        mix: FileType,
        /// Whether it gives these types only with an importance matrix.
        imatrix: bool,
    },
    /// It is this mix with so many rules before its own.
    Amended {
        /// The mix.
        mix: FileType,
        /// Whether it is what the mix gives with an importance matrix.
        imatrix: bool,
        /// Rules.
        rules: usize,
    },
    /// It lists the types.
    Listed,
}

/// The simplest recipe that gives a file's tensors their types; `name` is for one that has none of its own.
///
/// # Errors
/// Metadata that no plan can be made of.
pub fn explain(file: &GgufSource, name: &str) -> Result<Explanation, ConvertError> {
    if let Some(text) = file.metadata().str(RECIPE)? {
        return Ok(Explanation { text: text.to_owned(), how: Explained::Stored });
    }
    let given = file.metadata().u32("general.file_type")?;
    let said = given.and_then(FileType::of_id).unwrap_or(FileType::Q4_K_M);
    // The mix that the file claims to be, then all others.
    let mixes = std::iter::once(said).chain(FileType::all().filter(|&ft| ft != said));
    let mut best: Option<(Recovered, FileType, bool)> = None;
    for mix in mixes {
        let recipe = Arc::new(Recipe::of(mix));
        for imatrix in [false, true] {
            let Ok(plan) = plan(file, recipe.clone(), imatrix) else { continue };
            if is_exact(&plan) {
                let text = plan.recipe().text().to_owned();
                return Ok(Explanation { text, how: Explained::Mix { mix, imatrix } });
            }
            let (tensors, would) = quantized(&plan);
            let amended = amend(name, mix, &tensors, &would);
            if best.as_ref().is_none_or(|(best, _, _)| amended.rules < best.rules) {
                best = Some((amended, mix, imatrix));
            }
        }
    }
    let of_said = plan(file, Arc::new(Recipe::of(said)), true)?;
    let listed = recover(name, said, &quantized(&of_said).0);
    if let Some((Recovered { text, rules }, mix, imatrix)) = best
        && rules < listed.rules
        && let Ok(recipe) = Recipe::parse(&text)
        && plan(file, Arc::new(recipe), imatrix).is_ok_and(|plan| is_exact(&plan))
    {
        return Ok(Explanation { text, how: Explained::Amended { mix, imatrix, rules } });
    }
    Ok(Explanation { text: listed.text, how: Explained::Listed })
}

/// What a recipe would make of a file.
fn plan(file: &GgufSource, recipe: Arc<Recipe>, imatrix: bool) -> Result<Plan, ConvertError> {
    let settings = Settings::new(recipe.file_type());
    let mut settings = Settings { recipe, allow_requantize: true, ..settings };
    settings.options.imatrix = imatrix;
    Plan::of_gguf(file, &settings)
}

/// Whether a plan gives every tensor the type that it has.
fn is_exact(plan: &Plan) -> bool {
    plan.tensors().iter().all(|t| t.reason == Reason::Kept || t.ty == t.stored)
}

/// The tensors that are quantized, and the types that a plan would give them.
fn quantized(plan: &Plan) -> (Vec<Quantized<'_>>, Vec<QuantType>) {
    let tensors = plan.tensors().iter().filter(|t| t.reason != Reason::Kept);
    let known = tensors.filter_map(|t| {
        let tensor = Quantized { name: &t.name, weights: t.n_elements(), ty: t.stored.known()? };
        Some((tensor, t.ty.known()?))
    });
    known.unzip()
}
