//! One walk over a model, half a layer at a time: the inputs of a half's tensors are watched; they are rounded
//! with what was seen and written; the text passes the rounded half, and on to the next.

use super::memory::of_rows;
use super::moments::{Kept, Moments, Watch, locked};
use super::rows::{ROWS, Rounded, Rounder, Way, encoded};
use super::watching::{Inputs, Place, Watching};
use crate::convert::{Begun, ConvertError, Plan, PlannedTensor, RunOptions};
use crate::eval::{Activations, EvalError, Half, Model, Passage, PerplexityOptions, Stage};
use crate::model::Hparams;
use crate::monitor::Monitor;
use crate::quant::{Guide, QuantType};
use crate::simd::Simd;
use crate::source::{Overlay, Source};
use crate::tensor::{Kind, Part, TensorName};
use ndarray::ArrayView2;
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// How a conversion is calibrated.
pub struct Calibration<'a> {
    /// What the model is.
    pub hparams: &'a Hparams,
    /// The text.
    pub tokens: &'a [u32],
    /// How it is cut, and where its states wait.
    pub text: PerplexityOptions,
    /// A folder for the inputs of experts.
    pub folder: &'a Path,
    /// Whose inputs count.
    pub inputs: InputsOf,
    /// Bytes that second moments and their factors may take.
    pub memory: u64,
    /// Bytes that pieces of rows may take while they are rounded, beyond two, which always may.
    pub rows: u64,
    /// What is added to the diagonal of second moments, as a share of its mean.
    pub damping: f32,
    /// How often blocks are rounded again.
    pub sweeps: usize,
    /// The instructions.
    pub simd: Simd,
}

/// In which model the inputs of a matrix are measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InputsOf {
    /// In the original one: the text passes it once.
    Original,
    /// In the one that is rounded so far, so that later tensors make up for earlier ones: the text passes attention
    /// twice, as it was and as it is, and `gate` and `up` of the rounded model one more time for what goes into `down`.
    #[default]
    Rounded,
}

/// Of so many pieces of rows, one tells the reference's error to its end.
const WITH_ERRORS: usize = 8;

/// What became of a tensor.
#[derive(Clone, Debug)]
pub struct OfTensor {
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: QuantType,
    /// How many rows were rounded in each way.
    pub ways: BTreeMap<Way, u64>,
    /// The error of products that was expected of the better of the reference's ways, and is expected now:
    /// tr(Δ·H·Δᵀ) over an eighth of the rows of all matrices. Nothing where second moments had no factors.
    pub errors: Option<[f64; 2]>,
}

/// What became of all tensors, but for those that an earlier process had made.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// In the order in which they were rounded.
    pub tensors: Vec<OfTensor>,
}

/// Carries out a plan, with the tensors of layers, the first one for multi-token prediction included, and output
/// matrices rounded so that the error of their products with the inputs that a text gives them is small.
///
/// What is kept for the case that the run is stopped is that of [`Plan::run`], and the states of the text.
/// The first monitor counts tokens times halves of layers, the second rows that are rounded, each as the pairs of its
/// columns that are known with each other, the last weights that are written.
///
/// # Errors
/// As [`Plan::run`], and those of the forward pass.
pub fn run(
    plan: &Plan,
    source: &dyn Source,
    output: &Path,
    options: RunOptions,
    calibration: &Calibration,
    [passing, rounding, writing]: [&dyn Monitor; 3],
) -> Result<Outcome, ConvertError> {
    let mut outcome = Outcome::default();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(plan.threads()).build();
    let pool = pool.map_err(|error| ConvertError::Calibration(Box::new(error)))?;
    let done = plan.run_after(source, output, options, writing, |begun| {
        pool.install(|| round_layers(source, begun, calibration, [passing, rounding], &mut outcome))
    });
    if !matches!(done, Err(ConvertError::Stopped { .. }))
        && let Some(scratch) = &calibration.text.scratch
    {
        scratch.finish();
    }
    done.map(|()| outcome)
}

/// A model that a text passes. Its activations are rounded as they will be where the output runs, which takes a
/// third of the time of exact ones and leaves the same choices.
pub(super) fn runner<'a>(
    hparams: &'a Hparams,
    source: &'a dyn Source,
    simd: Simd,
) -> Result<Model<'a>, EvalError> {
    let mut model = Model::new(hparams, source)?;
    model.set_simd(simd);
    model.set_activations(Activations::Q8);
    Ok(model)
}

/// When what goes into tensors of a kind is known. The inputs of the `down` of routed experts are made from those of
/// `gate` and `up`, one expert at a time; the original model gives those of all others in one go.
pub(super) fn stage_of(kind: Kind, inputs: InputsOf) -> Stage {
    match kind {
        Kind::FfnDown | Kind::FfnDownShexp if inputs == InputsOf::Rounded => Stage::Down,
        Kind::FfnDown | Kind::FfnDownShexp | Kind::FfnGateInp => Stage::Hidden,
        Kind::FfnGate | Kind::FfnUp | Kind::FfnGateShexp | Kind::FfnUpShexp => Stage::Hidden,
        Kind::FfnGateExps | Kind::FfnUpExps | Kind::FfnDownExps => Stage::Hidden,
        _ => Stage::Attention,
    }
}

/// An error of the forward pass among those of conversions.
fn converted(error: EvalError) -> ConvertError {
    match error {
        EvalError::Cancelled => ConvertError::Cancelled,
        EvalError::Io(error) => ConvertError::Io(error),
        EvalError::Source(error) => ConvertError::Source(error),
        error => ConvertError::Calibration(Box::new(error)),
    }
}

/// What a tensor of the plan is, where it can be rounded with moments.
pub(super) struct Target {
    /// Its number in the plan.
    pub tensor: usize,
    pub ty: QuantType,
    pub place: Place,
}

pub(super) fn targets(plan: &Plan) -> Vec<Target> {
    let target = |(tensor, planned): (usize, &PlannedTensor)| {
        let name = TensorName::parse(&planned.name)?;
        let ty =
            planned.ty.known().filter(|ty| ty.is_quantized() && planned.ty != planned.stored)?;
        let place = Place { source: planned.source, name };
        (name.part == Part::Weight).then_some(Target { tensor, ty, place })
    };
    plan.tensors().iter().enumerate().filter_map(target).collect()
}

/// The output matrix: the token embedding where there is none of its own.
fn is_output(plan: &Plan, target: &Target) -> bool {
    let own = TensorName::weight(None, Kind::Output).to_string();
    let tied = plan.tensors().iter().all(|tensor| tensor.name != own);
    target.place.name.kind == if tied { Kind::TokenEmbd } else { Kind::Output }
}

/// Those of some tensors that an earlier process has not finished.
fn unfinished<'t>(
    begun: &Begun,
    targets: impl Iterator<Item = &'t Target>,
) -> Result<Vec<&'t Target>, ConvertError> {
    let left = |target: &'t Target| match begun.is_complete(target.tensor) {
        Ok(complete) => (!complete).then_some(Ok(target)),
        Err(error) => Some(Err(error)),
    };
    targets.filter_map(left).collect()
}

fn round_layers(
    source: &dyn Source,
    begun: &Begun,
    calibration: &Calibration,
    [monitor, rounding]: [&dyn Monitor; 2],
    outcome: &mut Outcome,
) -> Result<(), ConvertError> {
    let Calibration { hparams, simd, inputs, .. } = *calibration;
    let all = targets(begun.plan());
    let n_layer = hparams.n_layer;
    let of_layer =
        |layer: u32| all.iter().filter(move |target| target.place.name.layer == Some(layer));
    // What is no product, and other layers take in.
    let first = |target: &&Target| match target.place.name.kind {
        Kind::TokenEmbd => !is_output(begun.plan(), target),
        kind => kind == Kind::NextnEmbedTokens,
    };
    for target in unfinished(begun, all.iter().filter(first))? {
        begun.encode(target.tensor)?;
    }
    let mut todo: BTreeMap<(u32, Stage), Vec<&Target>> = BTreeMap::new();
    for layer in 0..n_layer {
        for target in unfinished(begun, of_layer(layer))? {
            todo.entry((layer, stage_of(target.place.name.kind, inputs))).or_default().push(target);
        }
    }
    let is_last = |target: &&Target| is_output(begun.plan(), target);
    let outputs = unfinished(begun, all.iter().filter(is_last))?;
    let of_prediction = unfinished(begun, of_layer(n_layer).filter(|target| !first(target)))?;
    let behind = !outputs.is_empty() || !of_prediction.is_empty();
    if todo.is_empty() && !behind {
        return Ok(());
    }
    let in_layers = |target: &&Target| target.place.name.layer.is_some_and(|at| at <= n_layer);
    let written = all.iter().filter(|target| in_layers(target) && !first(target));
    let written = written.chain(all.iter().filter(first));
    // Whoever reads them sees to it that they are written.
    let mut changed_source = Overlay::new(source, simd);
    for target in written {
        let read = |rows, out: &mut Vec<u8>| begun.read(target.tensor, rows, out);
        changed_source.set_written(target.place.source, target.ty, move |rows, out| {
            read(rows, out).map_err(std::io::Error::other)
        });
    }
    let watch = Watch { simd, kept: Mutex::default() };
    let mut original = runner(hparams, source, simd).map_err(converted)?;
    let changed = runner(hparams, &changed_source, simd).map_err(converted)?;
    let mut watched = runner(hparams, &changed_source, simd).map_err(converted)?;
    original.observe(&watch);
    watched.observe(&watch);
    let rounded = inputs == InputsOf::Rounded;
    let mut passage = Passage::begin(
        if rounded { &changed } else { &original },
        calibration.tokens,
        &calibration.text,
        begun.identity(),
        todo.keys().next().map_or(2 * n_layer, |&(layer, stage)| stage.half().number(layer)),
    )
    .map_err(converted)?;
    let watching = Watching { source, calibration, watch: &watch, downs_later: true };
    let layers = Layers { begun, calibration, changed: &changed, watching, rounding };
    for (layer, half) in (0..n_layer).flat_map(|layer| Half::BOTH.map(|half| (layer, half))) {
        for stage in Stage::ALL.into_iter().filter(|stage| stage.half() == half) {
            let Some(targets) = todo.remove(&(layer, stage)) else { continue };
            let in_stage = |target: &&Target| stage_of(target.place.name.kind, inputs) == stage;
            layers.watch(layer, of_layer(layer).filter(in_stage), &targets)?;
            let shown = if half == Half::Attention { &original } else { &watched };
            match rounded {
                true => passage.look(shown, layer, stage, monitor),
                false => passage.pass(layer, half, monitor),
            }
            .map_err(converted)?;
            layers.round(layer, &targets, monitor, outcome)?;
        }
        // Beyond the last tensor that is still to be rounded, nobody asks for states.
        if todo.is_empty() && !behind {
            return Ok(());
        }
        // States that have passed already do not once more.
        passage.pass(layer, half, monitor).map_err(converted)?;
    }
    for target in outputs {
        let moments = layers.watching.outputs(|see| passage.last(see)).map_err(converted)?;
        layers.round_matrices(&[target], &[Mutex::new(moments)], outcome)?;
    }
    let is_head = |target: &&Target| target.place.name.kind == Kind::NextnSharedHeadHead;
    let (heads, others): (Vec<_>, Vec<_>) = of_prediction.into_iter().partition(is_head);
    if !others.is_empty() {
        let products = of_layer(n_layer).filter(|target| !first(target) && !is_head(target));
        layers.watch(n_layer, products, &others)?;
        passage.draft(&original, monitor, |_| ()).map_err(converted)?;
        layers.round(n_layer, &others, monitor, outcome)?;
    }
    for target in heads {
        let drafting = if rounded { &changed } else { &original };
        let moments = layers.watching.outputs(|see| passage.draft(drafting, monitor, see));
        let moments = moments.map_err(converted)?;
        layers.round_matrices(&[target], &[Mutex::new(moments)], outcome)?;
    }
    Ok(())
}

/// What all layers are rounded with.
struct Layers<'a> {
    begun: &'a Begun<'a>,
    calibration: &'a Calibration<'a>,
    changed: &'a Model<'a>,
    watching: Watching<'a>,
    /// Sees rows that are rounded.
    rounding: &'a dyn Monitor,
}

impl Layers<'_> {
    /// Has the inputs of some tensors of a layer watched, of all those that are at the same time.
    fn watch<'t>(
        &self,
        layer: u32,
        all: impl Iterator<Item = &'t Target>,
        targets: &[&Target],
    ) -> Result<(), ConvertError> {
        let wanted: Vec<Place> = targets.iter().map(|target| target.place).collect();
        Ok(self.watching.watch(layer, all.map(|target| target.place), &wanted)?)
    }

    fn planned(&self, target: &Target) -> &PlannedTensor {
        &self.begun.plan().tensors()[target.tensor]
    }

    /// Rounds some tensors of a layer with what was seen of their inputs.
    fn round(
        &self,
        layer: u32,
        targets: &[&Target],
        monitor: &dyn Monitor,
        outcome: &mut Outcome,
    ) -> Result<(), ConvertError> {
        let kept = std::mem::take(&mut *locked(&self.watching.watch.kept));
        let mut groups: BTreeMap<usize, Vec<&Target>> = BTreeMap::new();
        let (routed, others): (Vec<&Target>, _) =
            targets.iter().partition(|target| target.place.name.kind.is_routed());
        for target in others {
            groups.entry(self.watching.watched(target.place)).or_default().push(target);
        }
        for (watched, targets) in groups {
            match kept.get(&watched).map(|kept| &**kept) {
                Some(Kept::Each(moments)) => self.round_matrices(&targets, moments, outcome)?,
                _ => targets.iter().try_for_each(|target| self.begun.encode(target.tensor))?,
            }
            if monitor.cancelled() {
                return Err(ConvertError::Cancelled);
            }
        }
        if !routed.is_empty() {
            self.round_experts(layer, &routed, &kept, monitor, outcome)?;
        }
        Ok(())
    }

    /// Rounds tensors with the same inputs, matrix by matrix.
    fn round_matrices(
        &self,
        targets: &[&Target],
        moments: &[Mutex<Moments>],
        outcome: &mut Outcome,
    ) -> Result<(), ConvertError> {
        let mut made: Vec<_> = targets.iter().map(|target| self.begin(target)).collect();
        for (matrix, moments) in moments.iter().enumerate() {
            // What is known from elsewhere weighs as much as so many tokens as there are columns.
            let known = |target| self.begun.plan().importances(self.planned(target), matrix);
            let prior = targets.iter().copied().find_map(known).map(Moments::known);
            let inputs = self.watching.inputs(&locked(moments), prior.as_ref());
            for (target, made) in targets.iter().zip(&mut made) {
                self.round_matrix(target, matrix, &inputs, made)?;
            }
        }
        for (target, made) in targets.iter().zip(made) {
            self.begun.note(target.tensor)?;
            outcome.tensors.push(made);
        }
        Ok(())
    }

    /// Rounds the routed experts of a layer, one after the other.
    fn round_experts(
        &self,
        layer: u32,
        targets: &[&Target],
        kept: &HashMap<usize, Arc<Kept>>,
        monitor: &dyn Monitor,
        outcome: &mut Outcome,
    ) -> Result<(), ConvertError> {
        let simd = self.calibration.simd;
        let kept = |kind| {
            let name = TensorName::weight(Some(layer), kind).to_string();
            kept.get(&self.watching.source.find(&name)?).map(|kept| &**kept)
        };
        let Some(Kept::Spooled(into)) = kept(Kind::FfnGateExps) else { return Ok(()) };
        let into = locked(into);
        let n_expert = self.calibration.hparams.moe.as_ref().map_or(0, |moe| moe.n_expert as usize);
        let is_down = |target: &&&Target| target.place.name.kind == Kind::FfnDownExps;
        let (downs, others): (Vec<&Target>, _) = targets.iter().partition(is_down);
        if !others.is_empty() {
            let of_layer = into.of_all(simd)?;
            let inputs = |expert| Ok(into.moments(into.inputs(expert)?.view(), simd));
            self.round_each(&others, n_expert, (&of_layer, &inputs), monitor, outcome)?;
        }
        if let Some(&Kept::Later { columns, part }) = kept(Kind::FfnDownExps) {
            let hidden = |expert| {
                let x = into.inputs(expert)?;
                self.changed.hidden(layer, expert, x.view()).map_err(converted)
            };
            let mut of_layer = Moments::new(columns, part);
            for expert in 0..n_expert {
                of_layer.add(hidden(expert)?.view(), simd, true);
                if monitor.cancelled() {
                    return Err(ConvertError::Cancelled);
                }
            }
            let inputs = |expert| Ok(Moments::of(hidden(expert)?.view(), part, simd));
            self.round_each(&downs, n_expert, (&of_layer, &inputs), monitor, outcome)?;
        }
        Ok(())
    }

    /// Rounds tensors with the same inputs, expert by expert, with the moments of all experts and of each.
    fn round_each(
        &self,
        targets: &[&Target],
        n_expert: usize,
        (of_layer, inputs): (&Moments, &dyn Fn(usize) -> Result<Moments, ConvertError>),
        monitor: &dyn Monitor,
        outcome: &mut Outcome,
    ) -> Result<(), ConvertError> {
        let mut made: Vec<_> = targets.iter().map(|target| self.begin(target)).collect();
        for expert in 0..n_expert {
            let inputs = self.watching.inputs(&inputs(expert)?, Some(of_layer));
            for (target, made) in targets.iter().zip(&mut made) {
                self.round_matrix(target, expert, &inputs, made)?;
            }
            if monitor.cancelled() {
                return Err(ConvertError::Cancelled);
            }
        }
        for (target, made) in targets.iter().zip(made) {
            self.begun.note(target.tensor)?;
            outcome.tensors.push(made);
        }
        Ok(())
    }

    fn begin(&self, target: &Target) -> OfTensor {
        let name = self.planned(target).name.clone();
        OfTensor { name, ty: target.ty, ways: BTreeMap::new(), errors: Some([0.0; 2]) }
    }

    /// Rounds and writes one matrix of a tensor.
    fn round_matrix(
        &self,
        target: &Target,
        matrix: usize,
        inputs: &Inputs,
        made: &mut OfTensor,
    ) -> Result<(), ConvertError> {
        let planned = self.planned(target);
        let n = planned.n_per_row() as usize;
        let n_rows = planned.dims.get(1).copied().unwrap_or(1);
        let first = matrix as u64 * n_rows;
        let pieces: Vec<u64> = (first..first + n_rows).step_by(ROWS).collect();
        let at_once = 2 + (self.calibration.rows / of_rows(n as u64).max(1)) as usize;
        let round = |(piece, &start): (usize, &u64)| {
            let rows = start..(first + n_rows).min(start + ROWS as u64);
            let weights = self.begun.weights(target.tensor, rows.clone())?;
            let weights = ArrayView2::from_shape((weights.len() / n, n), &weights);
            let with_errors = piece % WITH_ERRORS == 0;
            let weights = weights.expect("whole rows");
            let rounded = self.round_rows(target.ty, inputs, weights, with_errors);
            let rounded = rounded.map_err(|error| {
                self.begun.encode_error(target.tensor, rows.start, target.ty, error)
            })?;
            self.begun.write(target.tensor, rows.start, &rounded.bytes)?;
            self.rounding.advance((n * inputs.part) as u64 * (rows.end - rows.start));
            Ok((rounded.ways, rounded.errors))
        };
        if inputs.factored.is_none() {
            made.errors = None;
        }
        let pieces: Vec<_> = pieces.iter().enumerate().collect();
        for pieces in pieces.chunks(at_once) {
            let rounded: Result<Vec<_>, ConvertError> =
                pieces.par_iter().map(|&piece| round(piece)).collect();
            for (ways, errors) in rounded? {
                ways.into_iter().for_each(|way| *made.ways.entry(way).or_default() += 1);
                if let (Some(sums), Some(errors)) = (&mut made.errors, errors) {
                    sums.iter_mut().zip(errors).for_each(|(sum, error)| *sum += error);
                }
            }
        }
        Ok(())
    }

    fn round_rows(
        &self,
        ty: QuantType,
        inputs: &Inputs,
        weights: ArrayView2<f32>,
        with_errors: bool,
    ) -> Result<Rounded, crate::quant::QuantError> {
        let Calibration { sweeps, simd, .. } = *self.calibration;
        let importances = &inputs.importances;
        let Some(moments) = &inputs.factored else {
            let way = if importances.iter().any(|&x| x > 0.0) { Way::Weighed } else { Way::Plain };
            let guide =
                if way == Way::Weighed { Guide::Columns(importances) } else { Guide::Plain };
            let bytes = encoded(ty, weights, guide, simd)?;
            return Ok(Rounded { bytes, ways: vec![way; weights.nrows()], errors: None });
        };
        Rounder { ty, moments, importances, sweeps, simd }.round(weights, with_errors)
    }
}
