//! The mix of types that loses least for a size, by what was measured of a model's tensors.

use super::{MeasureError, OfTensor, Sensitivities, Subject};
use crate::convert::{ConvertError, Importance, Plan, Settings};
use crate::model::Model;
use crate::quant::QuantType;
use crate::recipe::{
    Choice, FileType, Quantized, Recipe, Role, TensorType, choose, fitting, recover,
};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

/// Bytes that are left for what files say about how they were rounded.
const NOTES: u64 = 512;

/// What a mix may be made of.
#[derive(Clone, Debug, Default)]
pub struct Bounds {
    /// Types to choose from.
    pub types: Vec<QuantType>,
    /// Bytes of the tensors of a role, apart from all others.
    pub budgets: Vec<(Role, u64)>,
    /// The least type of a role.
    pub floors: Vec<(Role, QuantType)>,
    /// The type of tensors whose names fit a pattern; the first that fits counts.
    pub keep: Vec<TensorType>,
    /// Whether scales will be searched for more widely than the reference does.
    pub search: bool,
}

impl Bounds {
    /// Whether a tensor may have a type.
    fn allow(&self, tensor: &str, ty: QuantType) -> bool {
        if let Some(kept) = self.keep.iter().find(|kept| kept.fits(tensor)) {
            return ty == kept.ty();
        }
        let bits = |ty: QuantType| ty.format().bits_per_weight();
        let role = Role::of(tensor);
        let floor = self.floors.iter().find(|(known, _)| *known == role);
        floor.is_none_or(|(_, floor)| bits(ty) >= bits(*floor))
    }
}

/// A mix for a size.
#[derive(Clone, Debug)]
pub struct Mix {
    /// Name, weights and type of each tensor that was chosen for.
    pub tensors: Vec<(String, u64, QuantType)>,
    /// The same as rules.
    pub recipe: Recipe,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bits per weight of the file, over all tensors.
    pub bits_per_weight: f64,
    /// The divergence that is expected of it, rounded as it was chosen for, in nats.
    pub expected: f64,
    /// The same, rounded as the reference does.
    pub expected_of_reference: f64,
    /// Whether scales are to be searched for, as it was chosen for.
    pub search: bool,
}

impl Mix {
    /// The type of each tensor that was chosen for.
    pub fn types(&self) -> Vec<(&str, QuantType)> {
        self.tensors.iter().map(|(name, _, ty)| (name.as_str(), *ty)).collect()
    }

    /// The recipe as a file, which says where it comes from; `proof` is a divergence that was measured, with its
    /// error: with searched scales where the mix was chosen for these, else rounded as the reference does.
    pub fn text(&self, model: &Path, found: &Sensitivities, proof: Option<(f64, f64)>) -> String {
        let mut text = format!(
            "# Found by requant mix for {}: {:.3} bits per weight, {} bytes.\n# Expected mean KL divergence \
             {:.6}, from groups measured in {} on {} tokens.\n",
            model.display(),
            self.bits_per_weight,
            self.bytes,
            self.expected,
            found.probe,
            found.tokens
        );
        if self.search {
            text += "# For scales that are searched for: --rounding search.\n";
        }
        if let Some((kld, error)) = proof {
            let (how, expected) = match self.search {
                true => ("With such scales", self.expected),
                false => ("Rounded as the reference does", self.expected_of_reference),
            };
            let _ = writeln!(
                text,
                "# {how}: expected {expected:.6}, measured {kld:.6} ± {error:.6} on other text."
            );
        }
        text + self.recipe.text()
    }
}

/// The best mix for a model whose file has at most so many bytes.
///
/// ```
/// use requant::measure::{Bounds, Options, SoFar, Subject, Text, Types, mix, sensitivities};
/// use requant::model::{Model, Mtp};
/// use requant::quant::QuantType;
/// use std::path::Path;
///
/// let path = Path::new("tests/fixtures/reference/tiny-r1-bf16.gguf");
/// let model = Model::open(path, Mtp::Drop)?;
/// let text = Text::read(Path::new("tests/fixtures/text/calibration.txt"))?;
/// let options = Options { ctx: 32, chunks: Some(2), ..Options::default() };
/// let subject = Subject { path, model: &model };
/// let bounds = Bounds { types: vec![QuantType::Q3_K, QuantType::Q6_K], ..Bounds::default() };
/// let known = Default::default();
/// let types = Types { all: &bounds.types, imatrix: None, known: &known, search: false };
/// let found = sensitivities(subject, &text, types, SoFar::NONE, &options, &())?;
/// let mix = mix(subject, &found, &bounds, None, 6 << 20)?;
/// assert!(mix.bytes <= 6 << 20 && mix.expected > 0.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// A size that no choice of types keeps to, and a tensor that bounds leave no type for.
pub fn mix(
    subject: Subject,
    found: &Sensitivities,
    bounds: &Bounds,
    importance: Option<&Importance>,
    size: u64,
) -> Result<Mix, MeasureError> {
    Search { subject, found, bounds, importance }.mix(size)
}

struct Search<'a> {
    subject: Subject<'a>,
    found: &'a Sensitivities,
    bounds: &'a Bounds,
    importance: Option<&'a Importance>,
}

impl Search<'_> {
    fn mix(&self, size: u64) -> Result<Mix, MeasureError> {
        let choices: Vec<Vec<Choice>> =
            self.found.tensors.iter().map(|tensor| self.choices(tensor)).collect();
        if let Some(at) = choices.iter().position(Vec::is_empty) {
            return Err(MeasureError::NoType { tensor: self.found.tensors[at].name.clone() });
        }
        let mut left = size;
        // The header and what is never quantized are known once there is a plan.
        let mut known = false;
        for _ in 0..8 {
            let Some(chosen) = self.within(&choices, left) else { break };
            let mix = self.planned(&chosen)?;
            if known && mix.bytes <= size {
                return Ok(mix);
            }
            let of_chosen: u64 = chosen.iter().map(|choice| choice.bytes).sum();
            let others = mix.bytes.saturating_sub(of_chosen) + NOTES;
            left = match known {
                true => left.saturating_sub(mix.bytes - size),
                false => size.saturating_sub(others),
            };
            known = true;
        }
        let bytes = |choices: &Vec<Choice>| choices.iter().map(|choice| choice.bytes).min();
        let least = choices.iter().filter_map(bytes).sum();
        Err(MeasureError::TooFewBytes { size, least, by_role: !self.bounds.budgets.is_empty() })
    }

    /// The types that a tensor may have.
    fn choices(&self, tensor: &OfTensor) -> Vec<Choice> {
        let n = tensor.dims.first().copied().unwrap_or(1);
        let types = self.bounds.types.iter().filter(|&&ty| self.bounds.allow(&tensor.name, ty));
        let choice = |&ty: &QuantType| {
            let stored = fitting(ty, n)?;
            let rows: u64 = tensor.dims.iter().skip(1).product();
            let bytes = stored.row_bytes(n as usize)? as u64 * rows;
            let errors = match self.bounds.search {
                true => &tensor.searched,
                false if tensor.compensated.is_empty() => &tensor.errors,
                false => &tensor.compensated,
            };
            Some(Choice { ty: stored, bytes, cost: tensor.alpha * errors.get(ty.name())? })
        };
        types.filter_map(choice).collect()
    }

    /// The best choice of types of at most so many bytes, each role that has a budget within its own.
    fn within(&self, choices: &[Vec<Choice>], bytes: u64) -> Option<Vec<Choice>> {
        let budgets = &self.bounds.budgets;
        let rest = bytes.checked_sub(budgets.iter().map(|(_, bytes)| bytes).sum())?;
        let budget = |tensor: &OfTensor| {
            let role = Role::of(&tensor.name);
            budgets.iter().position(|&(own, _)| own == role)
        };
        let of: Vec<Option<usize>> = self.found.tensors.iter().map(budget).collect();
        let own = budgets.iter().enumerate().map(|(i, &(_, bytes))| (Some(i), bytes));
        let mut chosen = vec![None; choices.len()];
        for (part, bytes) in own.chain([(None, rest)]) {
            let part: Vec<usize> = (0..choices.len()).filter(|&i| of[i] == part).collect();
            let choices: Vec<_> = part.iter().map(|&i| choices[i].clone()).collect();
            for (i, choice) in part.into_iter().zip(choose(&choices, bytes)?) {
                chosen[i] = Some(choice);
            }
        }
        chosen.into_iter().collect()
    }

    /// The mix that a choice of types is, as the file will have it.
    fn planned(&self, chosen: &[Choice]) -> Result<Mix, MeasureError> {
        let tensors: Vec<(String, u64, QuantType)> = (self.found.tensors.iter().zip(chosen))
            .map(|(tensor, choice)| (tensor.name.clone(), tensor.dims.iter().product(), choice.ty))
            .collect();
        let mut weights: BTreeMap<QuantType, u64> = BTreeMap::new();
        tensors.iter().for_each(|(_, n, ty)| *weights.entry(*ty).or_default() += n);
        let most = weights.iter().max_by_key(|(_, n)| **n).map(|(ty, _)| *ty);
        let file_type = most.and_then(FileType::of_type).unwrap_or(FileType::Q4_K_M);
        let named = tensors.iter().map(|(name, n, ty)| Quantized { name, weights: *n, ty: *ty });
        let recovered = recover("measured mix", file_type, &named.collect::<Vec<_>>());
        let recipe = Recipe::parse(&recovered.text).map_err(ConvertError::from)?;
        let mut settings = Settings {
            recipe: Arc::new(recipe.clone()),
            importance: self.importance.cloned(),
            allow_requantize: true,
            ..Settings::new(file_type)
        };
        settings.options.imatrix = true;
        let plan = match self.subject.model {
            Model::Checkpoint(model) => Plan::of_checkpoint(model, &settings)?,
            Model::Gguf(model) => Plan::of_gguf(model.gguf(), &settings)?,
        };
        let of_reference = self.found.tensors.iter().zip(&tensors).map(|(tensor, (_, _, ty))| {
            // A fallback's error is known by the type that it stands for.
            let n = tensor.dims.first().copied().unwrap_or(1);
            let asked = self.bounds.types.iter().find(|&&asked| fitting(asked, n) == Some(*ty));
            tensor.alpha * asked.and_then(|asked| tensor.errors.get(asked.name())).unwrap_or(&0.0)
        });
        Ok(Mix {
            expected: chosen.iter().map(|choice| choice.cost).sum(),
            expected_of_reference: of_reference.sum(),
            bytes: plan.file_size(),
            bits_per_weight: plan.bits_per_weight(),
            tensors,
            recipe,
            search: self.bounds.search,
        })
    }
}
