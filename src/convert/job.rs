//! What is asked of a source's tensors: which of them the output has, in which order, by which names,
//! and in which types.

use super::error::ConvertError;
use super::importance::Importances;
use super::plan::PlannedTensor;
use super::prune::Pruned;
use super::settings::{Mode, Settings, SplitBy};
use crate::gguf::{Opaque, TensorType};
use crate::quant::QuantType;
use crate::recipe::{self, Assignment, Facts, Reason, Shape};
use crate::source::{Dtype, GgufSource, Source, TensorMeta};

/// What is asked.
pub(super) enum Job<'a> {
    /// A mix, for a model of which these are the facts.
    Mix(Facts),
    /// One type for all matrices.
    Outtype,
    /// Every tensor as it is.
    Copy,
    /// Every tensor as it is and where it is.
    Regroup,
    /// The types of a file, for the tensors that it has.
    Like(&'a GgufSource),
}

/// A tensor of the source that the output has.
struct Chosen<'a> {
    source: usize,
    name: String,
    meta: &'a TensorMeta,
    stored: TensorType,
}

impl Job<'_> {
    /// What a mode asks; a mix alone asks for facts, so that files of unknown models can be copied.
    pub fn of(
        mode: Mode,
        facts: impl FnOnce() -> Result<Facts, ConvertError>,
    ) -> Result<Self, ConvertError> {
        Ok(match mode {
            Mode::Quantize => Self::Mix(facts()?),
            Mode::Convert => Self::Outtype,
            Mode::Copy | Mode::Lossless => Self::Copy,
            Mode::Regroup => Self::Regroup,
        })
    }

    /// The tensors of the output, out of those of a source in the order that it is read in. `stored` is
    /// the type that each has on the way.
    pub fn tensors(
        &self,
        source: &dyn Source,
        mut order: Vec<usize>,
        stored: &dyn Fn(usize) -> TensorType,
        importances: &Importances,
        settings: &Settings,
    ) -> Result<Vec<PlannedTensor>, ConvertError> {
        let metas = source.tensors();
        if let Self::Like(file) = self {
            order.retain(|&i| file.find(&metas[i].name).is_some());
        }
        if self.sorts() && settings.split != Some(SplitBy::Source) {
            order.sort_by(|&a, &b| recipe::output_order(&metas[a].name, &metas[b].name));
        }
        let names = Pruned::new(&settings.prune_layers).names(metas, &mut order)?;
        let chosen =
            |(source, name)| Chosen { source, name, meta: &metas[source], stored: stored(source) };
        let chosen: Vec<Chosen> = order.into_iter().zip(names).map(chosen).collect();
        let types = self.types(&chosen, importances, settings)?;
        let planned = chosen.into_iter().zip(types);
        planned.map(|(tensor, (ty, why))| tensor.planned(ty, why, importances, settings)).collect()
    }

    /// Whether tensors are in the order of their layers, instead of that of the source.
    fn sorts(&self) -> bool {
        match self {
            Self::Mix(_) | Self::Copy | Self::Like(_) => true,
            Self::Outtype | Self::Regroup => false,
        }
    }

    fn types(
        &self,
        tensors: &[Chosen],
        importances: &Importances,
        settings: &Settings,
    ) -> Result<Vec<(TensorType, Reason)>, ConvertError> {
        let shapes = || -> Result<Vec<Shape>, ConvertError> {
            tensors.iter().map(|tensor| tensor.shape(importances)).collect()
        };
        let by_rule = |assigned: Vec<Assignment>| -> Vec<(TensorType, Reason)> {
            assigned.into_iter().map(|given| (given.ty.into(), given.reason)).collect()
        };
        let recipe = &settings.recipe;
        Ok(match self {
            Self::Mix(facts) => {
                by_rule(recipe::assign(&shapes()?, recipe, facts, &settings.options)?)
            }
            Self::Outtype => {
                let mut types =
                    by_rule(recipe::assign_as_converter(&shapes()?, recipe.file_type()));
                for ((ty, why), tensor) in types.iter_mut().zip(tensors) {
                    if settings.fp8_as_q8 && tensor.is_fp8() {
                        let n = tensor.meta.n_per_row();
                        let fitting = recipe::fitting(QuantType::Q8_0, n).unwrap_or(QuantType::F16);
                        (*ty, *why) = (fitting.into(), Reason::Requested);
                    }
                }
                types
            }
            Self::Copy | Self::Regroup => {
                tensors.iter().map(|tensor| (tensor.stored, Reason::Kept)).collect()
            }
            Self::Like(file) => tensors
                .iter()
                .filter_map(|Chosen { name, meta, .. }| Some((name, file.find(&meta.name)?)))
                .map(|(name, i)| Ok((known(type_in(file, i), name)?.into(), Reason::Requested)))
                .collect::<Result<_, ConvertError>>()?,
        })
    }
}

impl Chosen<'_> {
    /// Whether it is a matrix of FP8 in the checkpoint.
    fn is_fp8(&self) -> bool {
        let Dtype::Coded(coding) = self.meta.dtype else { return false };
        coding.name.starts_with("F8_") && !self.name.ends_with("_norm.weight")
    }

    /// The tensor as rules see it.
    fn shape(&self, importances: &Importances) -> Result<Shape<'_>, ConvertError> {
        let source = known(self.stored, &self.name)?;
        let unmeasured = importances.is_unmeasured(self.meta);
        Ok(Shape { name: &self.name, dims: &self.meta.dims, source, unmeasured })
    }

    /// The tensor in a type, with what weighs its columns.
    fn planned(
        self,
        ty: TensorType,
        reason: Reason,
        importances: &Importances,
        settings: &Settings,
    ) -> Result<PlannedTensor, ConvertError> {
        let Self { source, name, meta, stored } = self;
        let mut weighing = None;
        if let (TensorType::Known(from), TensorType::Known(to)) = (stored, ty)
            && from != to
        {
            let again = meta.dtype == Dtype::Gguf(from) && from.is_quantized();
            if again && !settings.allow_requantize {
                return Err(ConvertError::Requantize { tensor: name, from, to });
            }
            weighing = importances.of(meta)?;
            if weighing.is_none()
                && settings.importance.is_some()
                && recipe::needs_imatrix(&name, to, settings.recipe.file_type())
            {
                return Err(ConvertError::NoImportance { tensor: name, ty: to });
            }
        }
        let unweighable = importances.is_unmeasured(meta) || importances.is_excluded(meta);
        let dims = meta.dims.clone();
        Ok(PlannedTensor { source, name, dims, stored, ty, reason, weighing, unweighable })
    }
}

/// The type of a tensor in a file.
pub(super) fn type_in(file: &GgufSource, tensor: usize) -> TensorType {
    match file.tensors()[tensor].dtype {
        Dtype::Gguf(ty) => TensorType::Known(ty),
        Dtype::Opaque(opaque) => TensorType::Unknown(opaque),
        Dtype::Coded(_) => unreachable!("GGUF has no such type"),
    }
}

/// A type whose values can be read.
fn known(ty: TensorType, tensor: &str) -> Result<QuantType, ConvertError> {
    match ty {
        TensorType::Known(ty) => Ok(ty),
        TensorType::Unknown(Opaque { id, .. }) => {
            Err(ConvertError::UnknownType { tensor: tensor.to_owned(), id })
        }
    }
}
