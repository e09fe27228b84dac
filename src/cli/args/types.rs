//! Options on types that `convert` and `quantize` share.

use super::instructions::Instructions;
use crate::convert::{Importance, Ingredient, Role};
use crate::gguf::{self, Value};
use crate::imatrix::Unrouted;
use crate::quant::QuantType;
use crate::recipe::{FileType, Options, Recipe, TensorType};
use crate::simd::Simd;
use anyhow::Context;
use clap::builder::{PossibleValue, TypedValueParser};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What goes into a file, beyond the mix.
#[derive(clap::Args)]
#[command(next_help_heading = "Types and metadata")]
pub struct Args {
    #[command(flatten)]
    plan: Planned,
    /// Write the recipe and its SHA-256 into the file's metadata (requant.recipe)
    #[arg(long, conflicts_with_all = ["pure", "leave_output_tensor", "output_tensor_type",
        "token_embedding_type", "tensor_type", "tensor_type_file"])]
    pub write_recipe: bool,
    /// Look over every block after it is made, and fail where a scale has overflowed
    #[arg(long)]
    pub check: bool,
    #[command(flatten)]
    instructions: Instructions,
}

/// Which tensor gets which type, beyond the mix.
#[derive(clap::Args)]
#[command(next_help_heading = "Types and metadata")]
pub struct Planned {
    /// Give every tensor the type's default instead of its mix
    #[arg(long)]
    pure: bool,
    /// Leave output.weight unquantized
    #[arg(long)]
    leave_output_tensor: bool,
    /// Type of output.weight, or of the embedding that serves as such in a mix
    #[arg(long, value_name = "TYPE", value_parser = TENSOR_TYPES, hide_possible_values = true)]
    output_tensor_type: Option<QuantType>,
    /// Type of token_embd.weight
    #[arg(long, value_name = "TYPE", value_parser = TENSOR_TYPES, hide_possible_values = true)]
    token_embedding_type: Option<QuantType>,
    /// Type of the tensors whose names fit a pattern (a regular expression); repeatable, the first
    /// that fits counts
    #[arg(long, value_name = "PATTERN=TYPE", value_parser = tensor_type)]
    tensor_type: Vec<TensorType>,
    /// File with more of these, separated by spaces or lines
    #[arg(long, value_name = "FILE")]
    tensor_type_file: Option<PathBuf>,
    /// Accept patterns that fit no tensor
    #[arg(long)]
    allow_unmatched: bool,
    /// Leave out layers, counted from 0; those behind them move up
    #[arg(long, value_name = "L0,L1,...", value_delimiter = ',')]
    prune_layers: Vec<u32>,
    /// Set metadata: TYPE is int, float, bool or str; repeatable
    #[arg(long, value_name = "KEY=TYPE:VALUE", value_parser = override_kv)]
    override_kv: Vec<(String, Value)>,
    #[command(flatten)]
    weights: Imatrix,
}

/// What weighs the columns.
#[derive(clap::Args)]
#[command(next_help_heading = "Importances")]
pub struct Imatrix {
    /// Importance matrix that weighs the columns (GGUF or legacy format)
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Use the importance matrix only for tensors whose name contains this; repeatable
    #[arg(long, value_name = "NAME", requires = "imatrix", conflicts_with = "exclude_weights")]
    include_weights: Vec<String>,
    /// Do not use the importance matrix for tensors whose name contains this; repeatable
    #[arg(long, value_name = "NAME", requires = "imatrix")]
    exclude_weights: Vec<String>,
    /// What weighs experts that no token reached: all columns alike (as llama-quantize), the mean
    /// of the other experts, or nothing, which is an error
    #[arg(long, value_enum, default_value = "uniform", requires = "imatrix")]
    unrouted: UnroutedArg,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum UnroutedArg {
    Uniform,
    Shared,
    Error,
}

impl Imatrix {
    /// The file.
    pub fn path(&self) -> Option<&Path> {
        self.imatrix.as_deref()
    }

    /// The importance matrix, read and filtered.
    pub fn importance(&self) -> anyhow::Result<Option<Importance>> {
        let Some(path) = &self.imatrix else { return Ok(None) };
        let mut imatrix = crate::imatrix::Imatrix::open_with(
            path,
            match self.unrouted {
                UnroutedArg::Uniform => Unrouted::Uniform,
                UnroutedArg::Shared => Unrouted::Shared,
                UnroutedArg::Error => Unrouted::Error,
            },
        )?;
        if !self.exclude_weights.is_empty() {
            imatrix.exclude(&self.exclude_weights);
        }
        if !self.include_weights.is_empty() {
            imatrix.include(&self.include_weights);
        }
        let file = path.to_string_lossy().into_owned();
        let imatrix = Arc::new(imatrix);
        Ok((!imatrix.entries.is_empty()).then_some(Importance { imatrix, file }))
    }

    /// The file of the importance matrix.
    pub fn ingredients(&self) -> Vec<Ingredient> {
        let what = Role::Imatrix;
        self.imatrix.iter().map(|path| Ingredient { what, path: path.clone() }).collect()
    }
}

impl Args {
    /// Which tensor gets which type.
    pub fn plan(&self) -> &Planned {
        &self.plan
    }

    /// The instructions to use.
    pub fn simd(&self) -> Simd {
        self.instructions.simd()
    }

    /// Whether types are asked for beside the mix's.
    pub fn chooses_types(&self) -> bool {
        self.write_recipe || self.plan.chooses_types()
    }
}

impl Planned {
    /// Files that the output is made with.
    pub fn ingredients(&self) -> Vec<Ingredient> {
        let types = self.tensor_type_file.iter();
        let what = Role::TensorTypes;
        let types = types.map(|path| Ingredient { what, path: path.clone() });
        self.weights.ingredients().into_iter().chain(types).collect()
    }

    /// The importance matrix, read and filtered.
    pub fn importance(&self) -> anyhow::Result<Option<Importance>> {
        self.weights.importance()
    }

    /// The options as the library takes them.
    pub fn options(&self, imatrix: bool) -> anyhow::Result<Options> {
        let mut tensor_types = self.tensor_type.clone();
        if let Some(path) = &self.tensor_type_file {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            for word in text.split_whitespace() {
                let given = tensor_type(word).map_err(anyhow::Error::msg);
                tensor_types.push(given.with_context(|| path.display().to_string())?);
            }
        }
        Ok(Options {
            tensor_types,
            allow_unmatched: self.allow_unmatched,
            pure: self.pure,
            imatrix,
            leave_output_tensor: self.leave_output_tensor,
            output_tensor_type: self.output_tensor_type,
            token_embedding_type: self.token_embedding_type,
        })
    }

    fn chooses_types(&self) -> bool {
        self.pure
            || self.leave_output_tensor
            || self.output_tensor_type.or(self.token_embedding_type).is_some()
            || self.tensor_type_file.is_some()
            || !self.tensor_type.is_empty()
    }

    /// Layers to leave out.
    pub fn prune_layers(&self) -> Vec<u32> {
        self.prune_layers.clone()
    }

    /// Metadata to set.
    pub fn override_kv(&self) -> Vec<(String, Value)> {
        self.override_kv.clone()
    }
}

/// A word that names something, which a shell can complete.
#[derive(Clone, Copy)]
pub struct Named<T> {
    parse: fn(&str) -> Result<T, String>,
    names: fn() -> Vec<&'static str>,
}

impl<T: Clone + Send + Sync + 'static> TypedValueParser for Named<T> {
    type Value = T;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<T, clap::Error> {
        self.parse.parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new((self.names)().into_iter().map(PossibleValue::new)))
    }
}

/// What [`recipe`] takes.
pub const MIXES: Named<Arc<Recipe>> =
    Named { parse: recipe, names: || FileType::all().map(FileType::name).collect() };

impl<T> Named<T> {
    /// As these, and one name more that is parsed otherwise.
    pub const fn new(
        parse: fn(&str) -> Result<T, String>,
        names: fn() -> Vec<&'static str>,
    ) -> Self {
        Self { parse, names }
    }
}

const TENSOR_TYPES: Named<QuantType> = Named {
    parse: |text| text.parse().map_err(|error| format!("{error}")),
    names: || {
        let targets = QuantType::all().filter(|ty| ty.format().is_target());
        targets.map(QuantType::name).collect()
    },
};

/// A mix of llama-quantize by its name, or a recipe file.
pub fn recipe(text: &str) -> Result<Arc<Recipe>, String> {
    Recipe::named(text).map(Arc::new).map_err(|error| error.to_string())
}

/// `PATTERN=TYPE`; patterns are taken in lower case, as llama-quantize takes them.
fn tensor_type(text: &str) -> Result<TensorType, String> {
    let (pattern, ty) = text.split_once('=').ok_or("not of the form PATTERN=TYPE")?;
    if pattern.is_empty() {
        return Err("the pattern is empty".to_owned());
    }
    let ty: QuantType = ty.parse().map_err(|error| format!("{error}"))?;
    TensorType::new(&pattern.to_lowercase(), ty).map_err(|error| error.to_string())
}

/// `KEY=TYPE:VALUE`, as llama.cpp has it: integers become u32, whatever the key held.
fn override_kv(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or("not of the form KEY=TYPE:VALUE")?;
    let (ty, value) = value.split_once(':').ok_or("not of the form KEY=TYPE:VALUE")?;
    if key.is_empty() {
        return Err("the key is empty".to_owned());
    }
    if [gguf::SPLIT_NO, gguf::SPLIT_COUNT, gguf::SPLIT_TENSORS].contains(&key) {
        return Err(format!("`{key}` follows from how many files are written"));
    }
    let value: Value = match ty {
        "int" => {
            let n: i64 = value.parse().map_err(|error| format!("`{value}`: {error}"))?;
            u32::try_from(n.unsigned_abs()).map_err(|_| format!("{n} is too large"))?.into()
        }
        "float" => {
            let x: f64 = value.parse().map_err(|error| format!("`{value}`: {error}"))?;
            (x as f32).into()
        }
        "bool" => {
            value.parse::<bool>().map_err(|_| format!("`{value}` is not true or false"))?.into()
        }
        "str" if value.len() > 127 => return Err("longer than 127 bytes".to_owned()),
        "str" => value.into(),
        _ => return Err(format!("unknown type `{ty}`; known: int, float, bool, str")),
    };
    Ok((key.to_owned(), value))
}
