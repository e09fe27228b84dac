//! What compensated rounding would leave of the error of each tensor in each type, from some of its rows: a
//! search for types asks this before any file is written.

use super::layers::{Calibration, runner};
use super::moments::{Kept, Watch, locked};
use super::rows::{ROWS, Rounder};
use super::watching::{Inputs, Place, Watching};
use crate::eval::{EvalError, Half, Passage};
use crate::monitor::Monitor;
use crate::quant::QuantType;
use crate::recipe::fitting;
use crate::source::Source;
use crate::tensor::{Kind, Part, TensorName};
use ndarray::{Array2, s};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Matrices of a stack that stand for all.
const MATRICES: usize = 4;

/// The errors of a tensor's products, tr(Δ·H·Δᵀ) in relation to tr(W·H·Wᵀ), in some types: as the better of the
/// reference's ways has it, and compensated.
pub type Errors = BTreeMap<QuantType, [f64; 2]>;

/// Passes a text through a model and rounds some rows of each tensor of its layers, and of its output matrix,
/// in some types: of those of `tensors`, numbers in the source. What is found of a tensor does not depend on which
/// others are wanted. Tensors that no input reaches are left out.
///
/// The monitor counts tokens times halves of layers.
///
/// # Errors
/// Weights that cannot be read, results that are not finite, folders that cannot be written to.
pub fn errors(
    source: &dyn Source,
    calibration: &Calibration,
    types: &[QuantType],
    tensors: &[usize],
    monitor: &dyn Monitor,
) -> Result<BTreeMap<String, Errors>, EvalError> {
    if tensors.is_empty() {
        return Ok(BTreeMap::new());
    }
    let Calibration { hparams, simd, .. } = *calibration;
    let wanted = |place: &Place| tensors.contains(&place.source);
    let watch = Watch { simd, kept: Mutex::default() };
    let mut model = runner(hparams, source, simd)?;
    model.observe(&watch);
    let watching = Watching { source, calibration, watch: &watch, downs_later: false };
    let sample = Sample { source, calibration, types };
    let places: Vec<Place> = (0..source.tensors().len()).filter_map(|i| place(source, i)).collect();
    let mut passage = Passage::begin(&model, calibration.tokens, &calibration.text, 0, 0)?;
    let mut found = BTreeMap::new();
    for layer in 0..hparams.n_layer {
        let of_layer =
            || places.iter().copied().filter(move |place| place.name.layer == Some(layer));
        watching.watch(layer, of_layer(), &of_layer().filter(wanted).collect::<Vec<_>>())?;
        for half in Half::BOTH {
            passage.pass(layer, half, monitor)?;
        }
        let kept = std::mem::take(&mut *locked(&watch.kept));
        for (watched, kept) in kept {
            let places: Vec<Place> =
                of_layer().filter(wanted).filter(|&p| watching.watched(p) == watched).collect();
            let matrices =
                places.iter().map(|place| sample.matrices(place.source)).max().unwrap_or(0);
            let prior = match &*kept {
                Kept::Each(_) | Kept::Later { .. } => None,
                Kept::Spooled(spool) => Some(locked(spool).of_all(simd)?),
            };
            for matrix in (0..matrices).step_by(matrices.div_ceil(MATRICES).max(1)) {
                let inputs = match &*kept {
                    Kept::Each(moments) => watching.inputs(&locked(&moments[matrix]), None),
                    Kept::Spooled(spool) => {
                        let spool = locked(spool);
                        let own = spool.moments(spool.inputs(matrix)?.view(), simd);
                        watching.inputs(&own, prior.as_ref())
                    }
                    Kept::Later { .. } => continue,
                };
                for place in &places {
                    sample.add(place.source, matrix, &inputs, &mut found)?;
                }
            }
        }
    }
    let output = places.iter().find(|place| place.name.kind == Kind::Output);
    let output = output.or(places.iter().find(|place| place.name.kind == Kind::TokenEmbd));
    if let Some(output) = output.filter(|&place| wanted(place)) {
        let moments = watching.outputs(|see| passage.last(see))?;
        sample.add(output.source, 0, &watching.inputs(&moments, None), &mut found)?;
    }
    Ok(found.into_iter().map(|(tensor, sums)| sums.relative(source, tensor)).collect())
}

fn place(source: &dyn Source, tensor: usize) -> Option<Place> {
    let meta = &source.tensors()[tensor];
    let name = TensorName::parse(&meta.name)?;
    let matrix = meta.dims.len() > 1 && name.part == Part::Weight;
    (matrix && name.kind != Kind::FfnGateInp).then_some(Place { source: tensor, name })
}

/// Sums over rows of a tensor.
#[derive(Default)]
struct Sums {
    weights: f64,
    errors: Vec<[f64; 2]>,
    types: Vec<QuantType>,
}

impl Sums {
    fn relative(self, source: &dyn Source, tensor: usize) -> (String, Errors) {
        let relative = |sums: [f64; 2]| sums.map(|sum| sum / self.weights.max(f64::MIN_POSITIVE));
        let errors = self.types.into_iter().zip(self.errors.iter().map(|&sums| relative(sums)));
        (source.tensors()[tensor].name.clone(), errors.collect())
    }
}

/// Where rows are read, and the types that they are rounded to.
struct Sample<'a> {
    source: &'a dyn Source,
    calibration: &'a Calibration<'a>,
    types: &'a [QuantType],
}

impl Sample<'_> {
    fn matrices(&self, tensor: usize) -> usize {
        self.source.tensors()[tensor].dims.get(2).map_or(1, |&n| n as usize)
    }

    /// Rounds some rows of a matrix.
    fn add(
        &self,
        tensor: usize,
        matrix: usize,
        Inputs { importances, factored, .. }: &Inputs,
        found: &mut BTreeMap<usize, Sums>,
    ) -> Result<(), EvalError> {
        let Some(moments) = factored else { return Ok(()) };
        let meta = &self.source.tensors()[tensor];
        let (n, rows) = (meta.n_per_row() as usize, meta.dims[1]);
        let some = (ROWS / self.matrices(tensor).min(MATRICES)) as u64;
        let rows: Vec<u64> = (0..rows).step_by(rows.div_ceil(some).max(1) as usize).collect();
        let mut weights = Array2::zeros((rows.len(), n));
        for (i, row) in rows.iter().enumerate() {
            let mut to = weights.slice_mut(s![i, ..]);
            let to = to.as_slice_mut().expect("rows are contiguous");
            self.source.read_rows(tensor, matrix as u64 * meta.dims[1] + row, to)?;
        }
        let Calibration { sweeps, simd, .. } = *self.calibration;
        let types = self.types.iter().filter(|&&ty| fitting(ty, n as u64).is_some());
        let types: Vec<QuantType> = types.copied().collect();
        let errors = types.par_iter().map(|&ty| {
            let ty = fitting(ty, n as u64).unwrap_or(ty);
            let rounder = Rounder { ty, moments, importances, sweeps, simd };
            // Weights that cannot be encoded are an error where they are written.
            let rounded = rounder.round(weights.view(), true);
            rounded.ok().and_then(|rounded| rounded.errors).unwrap_or_default()
        });
        let errors: Vec<[f64; 2]> = errors.collect();
        let sums = found.entry(tensor).or_default();
        sums.weights += moments.errors(weights.view(), None).iter().sum::<f64>();
        sums.errors.resize(types.len(), [0.0; 2]);
        sums.types = types;
        for (sum, errors) in sums.errors.iter_mut().zip(errors) {
            *sum = [sum[0] + errors[0], sum[1] + errors[1]];
        }
        Ok(())
    }
}
