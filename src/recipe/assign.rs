//! From a request to a type for each tensor (`llama_tensor_get_type` and its helpers).

use super::file_type::{FileType, UnknownFileType};
use super::rules::{Conditions, Facts, Recipe};
use crate::io::IoError;
use crate::pattern::Pattern;
use crate::quant::{Importance, QuantType};

/// A tensor as the rules see it.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// Name in GGUF's spelling.
    pub name: &'a str,
    /// Extents, innermost first.
    pub dims: &'a [u64],
    /// The type that it keeps when it is not quantized.
    pub source: QuantType,
    /// Whether importance matrices have no entry for it, because nothing measures its inputs.
    pub unmeasured: bool,
}

impl Shape<'_> {
    fn n_per_row(&self) -> u64 {
        self.dims.first().copied().unwrap_or(1)
    }
}

/// What is asked for beside the mix, as llama-quantize's options.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Give every tensor that is quantized the mix's default type.
    pub pure: bool,
    /// Whether an importance matrix is given, which some mixes ask.
    pub imatrix: bool,
    /// Leave `output.weight` as it is.
    pub leave_output_tensor: bool,
    /// A type for `output.weight`, or for the embedding that serves as such in a mix.
    pub output_tensor_type: Option<QuantType>,
    /// A type for `token_embd.weight`.
    pub token_embedding_type: Option<QuantType>,
    /// Types for the tensors whose names fit a pattern; the first that fits counts.
    pub tensor_types: Vec<TensorType>,
    /// Whether a pattern may fit no tensor.
    pub allow_unmatched: bool,
}

/// A pattern and the type of the tensors whose names it fits (`--tensor-type`).
#[derive(Clone, Debug)]
pub struct TensorType {
    pattern: Pattern,
    ty: QuantType,
}

impl TensorType {
    /// The pattern is a regular expression, searched for in the name.
    ///
    /// # Errors
    /// No regular expression.
    pub fn new(pattern: &str, ty: QuantType) -> Result<Self, RecipeError> {
        let pattern = Pattern::parse(pattern).map_err(|error| RecipeError::Pattern {
            pattern: pattern.to_owned(),
            error: error.into(),
        })?;
        Ok(Self { pattern, ty })
    }

    /// The type.
    pub fn ty(&self) -> QuantType {
        self.ty
    }

    /// Whether it is meant for the tensor of this name.
    pub fn fits(&self, name: &str) -> bool {
        self.pattern.is_match(name)
    }
}

/// Why a tensor gets its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// It is never quantized: a norm, a bias, a router.
    Kept,
    /// The recipe's default type.
    Default,
    /// A rule of the recipe, by its place.
    Rule(usize),
    /// What the reference converter does with a tensor outside of the layers.
    Outside,
    /// An option names the type.
    Requested,
    /// The wanted type makes no sense without importances, and none can exist for it.
    Unmeasured {
        /// The type that needs them.
        wanted: QuantType,
    },
    /// Its rows are no whole number of the wanted type's blocks.
    Fallback {
        /// The type that does not fit.
        wanted: QuantType,
    },
}

/// A tensor's type and the reason for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The type.
    pub ty: QuantType,
    /// Why.
    pub reason: Reason,
}

/// What a crate that reads expressions says.
pub(super) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A request that cannot be met.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// No mix of this name.
    #[error(transparent)]
    Unknown(#[from] UnknownFileType),
    /// A recipe that cannot be read.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A recipe in a file that is none.
    #[error("{path}: {error}")]
    In {
        /// The file.
        path: String,
        /// What is wrong with it.
        #[source]
        error: Box<RecipeError>,
    },
    /// A recipe that is no TOML, or has other keys than a recipe's.
    #[error("{0}")]
    Toml(#[from] toml::de::Error),
    /// A rule of a recipe that makes no sense.
    #[error("recipe, {rule}: {what}")]
    Rule {
        /// The rule's name.
        rule: String,
        /// What is wrong.
        what: String,
    },
    /// An expression in a rule that cannot be read, or not be computed.
    #[error("recipe, {rule}: {what}: {error}")]
    Expression {
        /// The rule's name.
        rule: String,
        /// The expression.
        what: String,
        /// What is wrong with it.
        #[source]
        error: Cause,
    },
    /// A pattern that is no regular expression.
    #[error("`{pattern}` is no regular expression: {error}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        #[source]
        error: Cause,
    },
    /// A pattern that fits no tensor that is quantized.
    #[error("`{pattern}={ty}` fits no tensor that is quantized; mend the pattern")]
    Unmatched {
        /// The pattern.
        pattern: String,
        /// The type that it asks for.
        ty: QuantType,
    },
    /// A pattern where none counts.
    #[error(
        "`{pattern}={ty}` changes nothing: patterns count only in files of a quantized type, not \
         of {default}; leave it out"
    )]
    Unheeded {
        /// The pattern.
        pattern: String,
        /// The type that it asks for.
        ty: QuantType,
        /// The file's type.
        default: QuantType,
    },
    /// No block of this or a similar type fits the row.
    #[error(
        "tensor `{tensor}`: rows of {n_per_row} weights are no whole number of {wanted} blocks of \
         {}, and no other type takes its place; ask for another type",
        wanted.block_len()
    )]
    NoFallback {
        /// The tensor.
        tensor: String,
        /// Weights in a row.
        n_per_row: u64,
        /// The type asked for.
        wanted: QuantType,
    },
    /// The type makes no sense without an importance matrix.
    #[error("tensor `{tensor}`: {ty} in a {file_type} file needs an importance matrix")]
    NeedsImatrix {
        /// The tensor.
        tensor: String,
        /// Its type.
        ty: QuantType,
        /// The mix.
        file_type: FileType,
    },
}

impl RecipeError {
    pub(super) fn rule(rule: &str, what: String) -> Self {
        Self::Rule { rule: rule.to_owned(), what }
    }

    pub(super) fn expression(rule: &str, what: String, error: impl Into<Cause>) -> Self {
        Self::Expression { rule: rule.to_owned(), what, error: error.into() }
    }
}

/// What a tensor is for, as far as options and the need of an importance matrix care
/// (`tensor_category`).
fn is_outside(name: &str) -> bool {
    name == "output.weight" || is_embedding(name)
}

fn is_embedding(name: &str) -> bool {
    matches!(name, "token_embd.weight" | "per_layer_token_embd.weight")
}

/// Chooses a type for every tensor. `tensors` must be in the order of the output file, which some
/// rules count in (see [`output_order`]).
///
/// # Errors
/// A type that fits no row, or one that needs an importance matrix when there is none.
pub fn assign(
    tensors: &[Shape],
    recipe: &Recipe,
    facts: &Facts,
    options: &Options,
) -> Result<Vec<Assignment>, RecipeError> {
    let conditions = Conditions::new();
    let mut chooser = conditions.chooser(recipe, tensors, facts, options.imatrix)?;
    let (default, file_type) = (recipe.default_type(), recipe.file_type());
    // llama-quantize looks at no pattern where it only changes the width of floats.
    let default_quantizes = default.is_quantized();
    for given @ TensorType { pattern, ty } in &options.tensor_types {
        if options.allow_unmatched {
            break;
        }
        let (pattern, ty) = (pattern.as_str().to_owned(), *ty);
        if !default_quantizes {
            return Err(RecipeError::Unheeded { pattern, ty, default });
        }
        if !tensors.iter().any(|t| is_quantized(t, options) && given.fits(t.name)) {
            return Err(RecipeError::Unmatched { pattern, ty });
        }
    }
    tensors
        .iter()
        .map(|tensor| {
            let assigned = if !is_quantized(tensor, options) {
                Assignment { ty: tensor.source, reason: Reason::Kept }
            } else if let Some(ty) = requested(tensor.name, options) {
                if !fits(tensor, ty) {
                    return Err(no_fallback(tensor, ty));
                }
                Assignment { ty, reason: Reason::Requested }
            } else {
                let mut given = options.tensor_types.iter().filter(|_| default_quantizes);
                let given = given.find(|given| given.fits(tensor.name)).map(|given| given.ty);
                // The mixes treat an embedding that serves as output matrix as such.
                let output = options.output_tensor_type.filter(|_| {
                    facts.tied && is_embedding(tensor.name) && default_quantizes && !options.pure
                });
                let (wanted, reason) = match given.or(output) {
                    Some(ty) => (ty, Reason::Requested),
                    None if options.pure => (default, Reason::Default),
                    None => match chooser.choose(tensor)? {
                        Some((rule, ty)) => (ty, Reason::Rule(rule)),
                        None => (default, Reason::Default),
                    },
                };
                match fallback(tensor, wanted)? {
                    ty if ty == wanted => Assignment { ty, reason },
                    ty => Assignment { ty, reason: Reason::Fallback { wanted } },
                }
            };
            let needs = |ty| needs_imatrix(tensor.name, ty, file_type);
            let Assignment { ty: wanted, reason } = assigned;
            if reason == Reason::Kept || !needs(wanted) {
                return Ok(assigned);
            }
            if !options.imatrix {
                let tensor = tensor.name.to_owned();
                return Err(RecipeError::NeedsImatrix { tensor, ty: wanted, file_type });
            }
            let bytes = wanted.block_bytes();
            let suits = |ty: &QuantType| ty.block_bytes() >= bytes && !needs(*ty);
            let other = WITHOUT_IMPORTANCES.into_iter().find(suits);
            Ok(match other.filter(|_| tensor.unmeasured) {
                Some(ty) => Assignment { ty, reason: Reason::Unmeasured { wanted } },
                None => assigned,
            })
        })
        .collect()
}

/// Chooses types as convert_hf_to_gguf.py `--outtype` does (`ModelBase.prepare_tensors`).
pub fn assign_as_converter(tensors: &[Shape], file_type: FileType) -> Vec<Assignment> {
    let (wanted, outside) = (file_type.default_type(), file_type.outside());
    let precise = |t: &Shape| {
        t.dims.len() <= 1
            || t.name.ends_with("_norm.weight")
            || t.name.ends_with("ffn_gate_inp.weight")
            || t.name.ends_with("indexer.proj.weight")
            || !t.name.ends_with(".weight")
    };
    let choose = |t: &Shape| {
        let (ty, reason) = match t {
            t if t.source.is_quantized() => (t.source, Reason::Kept),
            t if precise(t) => (QuantType::F32, Reason::Kept),
            t if outside != wanted && is_outside(t.name) => (outside, Reason::Outside),
            t if fits(t, wanted) => (wanted, Reason::Default),
            _ => (QuantType::F16, Reason::Fallback { wanted }),
        };
        Assignment { ty, reason }
    };
    tensors.iter().map(choose).collect()
}

/// Sorts as llama-quantize orders its output: tensors outside of the layers first, then layer by
/// layer, by the bytes of the name within each (`weight_name_comparer`).
pub fn output_order(a: &str, b: &str) -> std::cmp::Ordering {
    layer_of(a).cmp(&layer_of(b)).then_with(|| a.cmp(b))
}

/// The layer number in `blk.N.…`.
pub fn layer_of(name: &str) -> Option<u32> {
    layer_and_kind(name).0
}

/// The layer number in `blk.N.…`, and what the tensor is called in every layer; its name outside of them.
pub(crate) fn layer_and_kind(name: &str) -> (Option<u32>, &str) {
    let parts = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    match parts.and_then(|(layer, kind)| Some((layer.parse().ok()?, kind))) {
        Some((layer, kind)) => (Some(layer), kind),
        None => (None, name),
    }
}

/// `tensor_allows_quantization`, for the names that occur in this family.
fn is_quantized(tensor: &Shape, options: &Options) -> bool {
    let n_dims = tensor.dims.iter().rposition(|&d| d > 1).map_or(1, |i| i + 1);
    n_dims >= 2
        && tensor.name.ends_with("weight")
        && !tensor.name.contains("_norm.weight")
        && !tensor.name.contains("ffn_gate_inp.weight")
        && !(options.leave_output_tensor && tensor.name == "output.weight")
}

fn requested(name: &str, options: &Options) -> Option<QuantType> {
    match name {
        "output.weight" => options.output_tensor_type,
        _ if is_embedding(name) => options.token_embedding_type,
        _ => None,
    }
}

/// The first type from the wanted one on, each with smaller blocks than the one before, that the row
/// fits.
fn fallback(tensor: &Shape, wanted: QuantType) -> Result<QuantType, RecipeError> {
    fitting(wanted, tensor.n_per_row()).ok_or_else(|| no_fallback(tensor, wanted))
}

/// The first type from this one on whose blocks rows of so many weights fit, each with smaller blocks than the
/// one before.
pub fn fitting(ty: QuantType, n_per_row: u64) -> Option<QuantType> {
    std::iter::successors(Some(ty), |ty| ty.format().fallback)
        .find(|ty| n_per_row.is_multiple_of(ty.block_len() as u64))
}

fn fits(tensor: &Shape, ty: QuantType) -> bool {
    tensor.n_per_row().is_multiple_of(ty.block_len() as u64)
}

fn no_fallback(tensor: &Shape, wanted: QuantType) -> RecipeError {
    RecipeError::NoFallback {
        tensor: tensor.name.to_owned(),
        n_per_row: tensor.n_per_row(),
        wanted,
    }
}

/// What takes the place of types that need importances, in blocks of the same length.
const WITHOUT_IMPORTANCES: [QuantType; 2] = [QuantType::Q2_K, QuantType::Q3_K];

/// Whether a tensor of this type makes no sense without an importance matrix
/// (`tensor_requires_imatrix`).
pub fn needs_imatrix(name: &str, ty: QuantType, file_type: FileType) -> bool {
    !is_outside(name)
        && match ty.format().importance {
            Importance::Ignored | Importance::Weighs => false,
            Importance::WantedIn(mixes) => mixes.contains(&file_type.to_string().as_str()),
            Importance::Wanted | Importance::Required => true,
        }
}
