//! How much a model suffers where groups of its tensors are quantized: the divergence that each group causes
//! alone, and from that what any choice of types will cost.
//!
//! Divergences of small errors add up, and grow with the mean square of the error: with t² the error of a
//! tensor's weights relative to their own square, D ≈ Σ α·t² over the tensors, where α says how much it
//! matters. It is measured with one type for each group, a kind of tensor in some consecutive layers
//! (Malinovskii et al. 2024, arXiv:2411.17525, show the linearity).

use super::groups::{self, Measured, TOGETHER};
use super::{MeasureError, Options, Subject, Text};
use crate::calibrate::Errors;
use crate::eval::{self, Comparison, EvalError, Reference, comparison_work};
use crate::imatrix::Imatrix;
use crate::io::{Disk, IoError, write};
use crate::model::Model;
use crate::monitor::Monitor;
use crate::quant::{Guide, Importance, QuantType};
use crate::recipe::fitting;
use crate::simd::Simd;
use crate::source::{Overlay, Source, TensorMeta};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The type that sensitivities are measured with: its errors are well above rounding noise, and small enough
/// to add up.
pub const PROBE: QuantType = QuantType::Q3_K;
/// Rows of a tensor whose errors stand for those of all.
const SAMPLE: u64 = 96;

/// What is known of one tensor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OfTensor {
    /// Its name.
    pub name: String,
    /// Its extents, innermost first.
    pub dims: Vec<u64>,
    /// Divergence for an error as large as the weights, in nats.
    pub alpha: f64,
    /// The error relative to the weights, t², in each type that was asked for, rounded as the reference does.
    pub errors: BTreeMap<String, f64>,
    /// The same with scales searched for more widely, where that was asked for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub searched: BTreeMap<String, f64>,
    /// The same with compensated rounding, where that was asked for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub compensated: BTreeMap<String, f64>,
}

/// What is known of a group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Group {
    /// The kind of its tensors.
    pub name: String,
    /// First and last layer; absent outside of layers.
    pub layers: Option<(u32, u32)>,
    /// Mean KL divergence with all of its tensors in the probing type, in nats, and its standard error.
    pub divergence: f64,
    /// See `divergence`.
    pub error: f64,
}

impl Group {
    fn has(&self, tensor: &OfTensor) -> bool {
        groups::kind_of(&tensor.name).is_some_and(|(kind, layer)| {
            let range = self.layers.map(|(first, last)| first..=last);
            let layers = match (range, layer) {
                (Some(range), Some(layer)) => range.contains(&layer),
                (range, layer) => range.is_none() && layer.is_none(),
            };
            groups::rank(&self.name) == Some(kind) && layers
        })
    }
}

/// What a model's types cost, for any choice of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sensitivities {
    /// The version of this form.
    pub version: u32,
    /// The type that groups were measured with.
    pub probe: String,
    /// Tokens that they were measured on.
    pub tokens: u64,
    /// The groups.
    pub groups: Vec<Group>,
    /// The tensors that can be quantized; none while groups are missing.
    pub tensors: Vec<OfTensor>,
}

impl Sensitivities {
    /// Reads what was measured of a model before, with these types, and, where `search`, with scales that are
    /// searched for.
    ///
    /// # Errors
    /// A file that is no such, of another model, without one of the types or without searched scales.
    pub fn read(
        path: &Path,
        model: &Model,
        types: &[QuantType],
        search: bool,
    ) -> Result<Self, MeasureError> {
        let found: Self = crate::json::read(path)?;
        let bad = |what: String| MeasureError::OtherSensitivities { path: path.to_owned(), what };
        let source = model.source();
        let other = found.tensors.iter().find(|tensor| {
            source.find(&tensor.name).is_none_or(|i| source.tensors()[i].dims != tensor.dims)
        });
        if let Some(OfTensor { name, .. }) = other {
            return Err(bad(format!("measured on another model, this one has no such `{name}`")));
        }
        let lacks = |of: fn(&OfTensor) -> &BTreeMap<String, f64>| {
            let known =
                |ty: &&QuantType| found.tensors.iter().all(|t| of(t).contains_key(ty.name()));
            types.iter().find(|ty| !known(ty))
        };
        if let Some(missing) = lacks(|tensor| &tensor.errors) {
            return Err(bad(format!(
                "has nothing about {missing}; give another file for these types"
            )));
        }
        match lacks(|tensor| &tensor.searched).filter(|_| search) {
            Some(missing) => Err(bad(format!(
                "has nothing about {missing} with searched scales; give another file for this rounding"
            ))),
            None => Ok(found),
        }
    }

    /// Writes a file that [`read`](Self::read) takes.
    ///
    /// # Errors
    /// The system refuses.
    pub fn write(&self, disk: &dyn Disk, path: &Path) -> Result<(), IoError> {
        let json = serde_json::to_vec_pretty(self);
        let json = json.map_err(|error| IoError::new(path, error.into()))?;
        write(disk, path, &json)
    }

    /// Nothing yet.
    pub(super) fn none() -> Self {
        let probe = PROBE.name().to_owned();
        Self { version: 1, probe, tokens: 0, groups: Vec::new(), tensors: Vec::new() }
    }

    /// A group's, if it is known.
    fn of(&self, group: &Measured) -> Option<&Group> {
        self.groups.iter().find(|known| known.name == group.name && known.layers == group.layers)
    }

    /// Adds what another share of the same search has found. The order is that of a single run.
    pub(super) fn add(&mut self, other: Self) {
        // A share without groups has measured nothing on any.
        self.tokens = self.tokens.max(other.tokens);
        self.groups.extend(other.groups);
        self.groups.sort_by_key(|group| (groups::rank(&group.name), group.layers));
        self.tensors.extend(other.tensors);
        let place = |tensor: &OfTensor| self.groups.iter().position(|group| group.has(tensor));
        self.tensors.sort_by_cached_key(place);
    }
}

/// What an interrupted measurement has left behind, and who keeps what this one finds.
pub struct SoFar<'a> {
    /// The groups that are measured already.
    pub begun: Option<Sensitivities>,
    /// Called with all that are, whenever some more have been.
    pub keep: &'a dyn Fn(&Sensitivities) -> Result<(), IoError>,
}

impl SoFar<'_> {
    /// Nothing, and nobody.
    pub const NONE: Self = Self { begun: None, keep: &|_| Ok(()) };
}

/// The errors of a tensor in some types.
type ByType = BTreeMap<QuantType, f64>;

/// The types that a model's tensors may get, and what is known beforehand of their errors.
#[derive(Clone, Copy)]
pub struct Types<'a> {
    /// The types.
    pub all: &'a [QuantType],
    /// What the errors of columns count.
    pub imatrix: Option<&'a Imatrix>,
    /// Errors of the products of some tensors, in these types and in [`PROBE`].
    pub known: &'a BTreeMap<String, Errors>,
    /// Whether errors with scales that are searched for more widely
    /// ([`QuantType::search_rows_with`]) are wanted too.
    pub search: bool,
}

/// Measures how much the groups of a model's tensors matter on a text, and the errors of
/// its tensors in these types, weighted by importances where there are some.
///
/// What is known of errors of products, as [`calibrate::errors`](crate::calibrate::errors) has it, takes the
/// place of errors of weights. A share ([`Options::share`]) is some of the groups, with the errors of their tensors.
///
/// The monitor counts tokens times layers.
///
/// ```
/// use requant::measure::{Options, SoFar, Subject, Text, Types, sensitivities};
/// use requant::model::{Model, Mtp};
/// use requant::quant::QuantType;
/// use std::path::Path;
///
/// let path = Path::new("tests/fixtures/reference/tiny-r1-bf16.gguf");
/// let model = Model::open(path, Mtp::Drop)?;
/// let text = Text::read(Path::new("tests/fixtures/text/calibration.txt"))?;
/// let options = Options { ctx: 32, chunks: Some(2), ..Options::default() };
/// let subject = Subject { path, model: &model };
/// let known = Default::default();
/// let types = Types { all: &[QuantType::Q4_K], imatrix: None, known: &known, search: false };
/// let found = sensitivities(subject, &text, types, SoFar::NONE, &options, &())?;
/// assert!(found.tensors.iter().all(|tensor| tensor.alpha >= 0.0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As [`compare`](super::compare), and what whoever keeps results meets.
pub fn sensitivities(
    subject: Subject,
    text: &Text,
    Types { all: types, imatrix, known, search }: Types,
    SoFar { begun, keep }: SoFar,
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Sensitivities, MeasureError> {
    let read = text.wanted(subject, options, monitor)?;
    let settings = options.settings(&[subject; TOGETHER + 1], read.tokens.len(), read.bos)?;
    let (source, hparams) = (subject.model.source(), subject.model.hparams());
    let groups = groups::groups(source, hparams.n_layer, options.share);
    let weights = Weights { source, imatrix, simd: options.simd };
    let reference = subject.runner(options)?;
    let each = settings.work(read.tokens.len(), hparams) / u64::from(hparams.n_layer + 1);
    let mut found = begun.unwrap_or_else(Sensitivities::none);
    let missing: Vec<&Measured> = groups.iter().filter(|group| found.of(group).is_none()).collect();
    let references = missing.len().div_ceil(TOGETHER) as u64 * u64::from(hparams.n_layer + 1);
    monitor.expect(
        each * (references + missing.iter().map(|group| group.cost(hparams.n_layer)).sum::<u64>()),
    );
    for groups in missing.chunks(TOGETHER) {
        let probed = |group: &&Measured| {
            weights.overlay(group.tensors.iter().map(|&tensor| (tensor, PROBE)), false)
        };
        let overlays: Vec<Overlay> = groups.iter().map(probed).collect();
        let models = groups.iter().zip(&overlays).map(|(group, overlay)| {
            let mut model = subject.runner_over(overlay, options)?;
            model.differs_from(group.first_different(hparams.n_layer));
            Ok(model)
        });
        let models = models.collect::<Result<Vec<_>, MeasureError>>()?;
        let models: Vec<&eval::Model> = models.iter().collect();
        let comparisons = options.on_threads(|| {
            let reference = Reference::Model(&reference);
            eval::compare(reference, &models, &read.tokens, &settings, None, monitor)
        })?;
        let (_, comparisons) =
            comparisons.map_err(|error| MeasureError::of(subject.path, error))?;
        for (group, comparison) in groups.iter().zip(comparisons) {
            let mean = comparison.kl_divergence.mean;
            found.tokens = comparison.tokens.len() as u64;
            found.groups.push(Group {
                name: group.name.to_owned(),
                layers: group.layers,
                divergence: mean.value,
                error: mean.error,
            });
        }
        keep(&found)?;
    }
    let probed_too: Vec<QuantType> =
        types.iter().copied().filter(|&ty| ty != PROBE).chain([PROBE]).collect();
    for group in &groups {
        let metas = || group.tensors.iter().map(|&tensor| &source.tensors()[tensor]);
        let known: Option<Vec<&Errors>> = metas().map(|meta| known.get(&meta.name)).collect();
        let of = |types, search| {
            let errors = options.on_threads(|| weights.errors(group, types, search))?;
            errors.map_err(|error| MeasureError::of(subject.path, error))
        };
        let searched = if search { of(types, true)? } else { Vec::new() };
        let mut searched = searched.into_iter();
        // Of each tensor: in the reference's way, and compensated.
        let errors: Vec<[ByType; 2]> = match known {
            Some(known) => {
                let way = |errors: &Errors, way: usize| {
                    errors.iter().map(|(&ty, errors)| (ty, errors[way])).collect()
                };
                known.into_iter().map(|errors| [way(errors, 0), way(errors, 1)]).collect()
            }
            None => {
                let errors = of(&probed_too, false)?;
                errors.into_iter().map(|errors| [errors, ByType::new()]).collect()
            }
        };
        let sum: f64 = errors.iter().filter_map(|[reference, _]| reference.get(&PROBE)).sum();
        let divergence = found.of(group).map_or(0.0, |group| group.divergence);
        let alpha = divergence.max(0.0) / sum.max(f64::MIN_POSITIVE);
        for (meta, [reference, compensated]) in metas().zip(errors) {
            let searched = searched.next().unwrap_or_default();
            let [errors, searched, compensated] =
                [reference, searched, compensated].map(|errors| {
                    let asked = errors.into_iter().filter(|(ty, _)| types.contains(ty));
                    asked.map(|(ty, error)| (ty.name().to_owned(), error)).collect()
                });
            let TensorMeta { name, dims, .. } = meta.clone();
            found.tensors.push(OfTensor { name, dims, alpha, errors, searched, compensated });
        }
    }
    Ok(found)
}

/// Measures a model with tensors in other types, rounded as the reference does or, where `search`, with
/// scales that are searched for, against itself.
///
/// The monitor counts tokens times layers.
///
/// # Errors
/// As [`compare`](super::compare).
pub fn proof(
    subject: Subject,
    text: &Text,
    types: &[(&str, QuantType)],
    imatrix: Option<&Imatrix>,
    search: bool,
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Comparison, MeasureError> {
    let read = text.wanted(subject, options, monitor)?;
    let settings = options.settings(&[subject, subject], read.tokens.len(), read.bos)?;
    let source = subject.model.source();
    let weights = Weights { source, imatrix, simd: options.simd };
    let tensors = types.iter().filter_map(|&(name, ty)| Some((source.find(name)?, ty)));
    let overlay = weights.overlay(tensors, search);
    let reference = subject.runner(options)?;
    let model = subject.runner_over(&overlay, options)?;
    monitor.expect(comparison_work(&[&reference, &model], read.tokens.len(), &settings));
    let found = options.on_threads(|| {
        let reference = Reference::Model(&reference);
        eval::compare(reference, &[&model], &read.tokens, &settings, None, monitor)
    })?;
    let (_, mut found) = found.map_err(|error| MeasureError::of(subject.path, error))?;
    Ok(found.swap_remove(0))
}

/// Where weights are, and how much their columns count.
struct Weights<'a> {
    source: &'a dyn Source,
    imatrix: Option<&'a Imatrix>,
    simd: Simd,
}

impl<'a> Weights<'a> {
    /// The importances of a tensor's columns, one for each matrix and column.
    fn importances(&self, meta: &TensorMeta) -> Option<&'a [f32]> {
        let values = self.imatrix?.entries.get(&meta.name)?;
        let expected = meta.n_per_row() * meta.dims.iter().skip(2).product::<u64>();
        (values.len() as u64 == expected).then_some(values)
    }

    /// The model with some tensors in other types.
    fn overlay(
        &self,
        tensors: impl Iterator<Item = (usize, QuantType)>,
        search: bool,
    ) -> Overlay<'a> {
        let overlay = Overlay::new(self.source, self.simd);
        let mut overlay = overlay.search(search);
        for (tensor, ty) in tensors {
            let meta = &self.source.tensors()[tensor];
            let importances = self.importances(meta).map(<[f32]>::to_vec);
            if let Some(ty) = fitting(ty, meta.n_per_row()) {
                overlay.set(tensor, ty, importances).expect("both lengths fit");
            }
        }
        overlay
    }

    /// The errors of a group's tensors in some types.
    fn errors(
        &self,
        group: &Measured,
        types: &[QuantType],
        search: bool,
    ) -> Result<Vec<ByType>, EvalError> {
        group.tensors.par_iter().map(|&tensor| self.error(tensor, types, search)).collect()
    }

    /// Errors of a tensor relative to its weights, from some of its rows.
    fn error(&self, tensor: usize, types: &[QuantType], search: bool) -> Result<ByType, EvalError> {
        let meta = &self.source.tensors()[tensor];
        let (n, rows) = (meta.n_per_row() as usize, meta.n_rows());
        let per_matrix = meta.dims.get(1).copied().unwrap_or(1).max(1);
        let mut sums = vec![(0.0, 0.0); types.len()];
        let (mut weights, mut values) = (vec![0.0; n], vec![0.0; n]);
        for row in (0..rows).step_by((rows / SAMPLE).max(1) as usize) {
            self.source.read_rows(tensor, row, &mut weights)?;
            let matrix = (row / per_matrix) as usize;
            let importances = self.importances(meta).map(|all| &all[matrix * n..][..n]);
            for (sum, &ty) in sums.iter_mut().zip(types) {
                let Some(ty) = fitting(ty, n as u64) else { continue };
                let needs = ty.format().importance == Importance::Required;
                let ones = vec![1.0; if needs { n } else { 0 }];
                let guide = Guide::from(importances.or((needs).then_some(&ones)));
                let mut bytes = vec![0; ty.row_bytes(n).unwrap_or(0)];
                let coded = ty.encode_or_search(search, self.simd, &weights, n, guide, &mut bytes);
                let decode = |()| ty.decode_rows_with(self.simd, &bytes, n, &mut values);
                if coded.and_then(decode).is_err() {
                    continue;
                }
                for i in 0..n {
                    let importance = importances.map_or(1.0, |all| f64::from(all[i]));
                    sum.0 += importance * f64::from(weights[i] - values[i]).powi(2);
                    sum.1 += importance * f64::from(weights[i]).powi(2);
                }
            }
        }
        let relative = |&(error, all): &(f64, f64)| if all > 0.0 { error / all } else { 0.0 };
        Ok(types.iter().copied().zip(sums.iter().map(relative)).collect())
    }
}
