//! Which inputs are watched, and what is kept of them.

use super::factor::Factored;
use super::layers::Calibration;
use super::moments::{Kept, Moments, Spool, Watch, locked};
use crate::eval::EvalError;
use crate::io::IoError;
use crate::source::Source;
use crate::tensor::{Kind, TensorName};
use ndarray::ArrayView2;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

/// The kind whose inputs are those of this one as well, where a layer has it.
pub(super) fn same_inputs(kind: Kind) -> &'static [Kind] {
    match kind {
        Kind::AttnK | Kind::AttnV => &[Kind::AttnQ],
        Kind::AttnKvAMqa => &[Kind::AttnQA, Kind::AttnQ],
        Kind::FfnUp => &[Kind::FfnGate],
        Kind::FfnUpShexp => &[Kind::FfnGateShexp],
        Kind::FfnUpExps => &[Kind::FfnGateExps],
        _ => &[],
    }
}

/// A tensor of the source.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Its number.
    pub source: usize,
    pub name: TensorName,
}

/// What is known of a matrix's inputs.
pub(super) struct Inputs {
    pub importances: Vec<f32>,
    pub factored: Option<Factored>,
}

/// How the inputs of a model's tensors are watched.
pub(super) struct Watching<'a> {
    pub source: &'a dyn Source,
    pub calibration: &'a Calibration<'a>,
    pub watch: &'a Watch,
}

impl Watching<'_> {
    /// The number in the source of the tensor that is watched for the inputs of this one.
    pub fn watched(&self, place: Place) -> usize {
        let find = |&kind: &Kind| {
            self.source.find(&TensorName::weight(place.name.layer, kind).to_string())
        };
        same_inputs(place.name.kind).iter().find_map(find).unwrap_or(place.source)
    }

    /// Has the inputs of a layer's tensors watched.
    pub fn watch(&self, layer: u32, places: impl Iterator<Item = Place>) -> Result<(), IoError> {
        let shape = |tensor: usize| {
            let dims = &self.source.tensors()[tensor].dims;
            (dims[0], dims.get(2).copied().unwrap_or(1) as usize)
        };
        let watched: BTreeMap<usize, Kind> =
            places.map(|place| (self.watched(place), place.name.kind)).collect();
        // The widest are left out where all would not fit.
        let needed = |(&tensor, &kind): (&usize, &Kind)| {
            let (columns, matrices) = shape(tensor);
            (columns, 4 * columns * columns * if kind.is_routed() { 2 } else { matrices as u64 })
        };
        let mut sizes: Vec<_> = watched.iter().map(needed).collect();
        sizes.sort_unstable();
        let (mut limit, mut used) = (0, 0);
        for (columns, bytes) in sizes {
            used += bytes;
            if used + Factored::memory(columns) > self.calibration.memory {
                break;
            }
            limit = columns;
        }
        let mut kept = HashMap::new();
        for (&tensor, &kind) in &watched {
            let (columns, matrices) = shape(tensor);
            let whole = columns <= limit;
            let moments = |_| Mutex::new(Moments::new(columns as usize, whole));
            let of = match kind.is_routed() {
                true => self.spool(tensor, whole)?,
                false => Kept::Each((0..matrices).map(moments).collect()),
            };
            kept.insert(tensor, Arc::new(of));
        }
        // The inputs of `down` come from what becomes of the other two.
        if watched.values().any(|&kind| kind == Kind::FfnDownExps) {
            let name = TensorName::weight(Some(layer), Kind::FfnGateExps).to_string();
            if let Some(gate) = self.source.find(&name).filter(|gate| !kept.contains_key(gate)) {
                kept.insert(gate, Arc::new(self.spool(gate, false)?));
            }
        }
        *locked(&self.watch.kept) = kept;
        Ok(())
    }

    /// What goes into an output matrix, as `pass` hands it on.
    pub fn outputs(
        &self,
        pass: impl FnOnce(&mut dyn FnMut(ArrayView2<f32>)) -> Result<(), EvalError>,
    ) -> Result<Moments, EvalError> {
        let columns = self.calibration.hparams.n_embd;
        let whole = Factored::memory(columns.into()) <= self.calibration.memory;
        let mut moments = Moments::new(columns as usize, whole);
        pass(&mut |x| moments.add(x, self.calibration.simd, true))?;
        Ok(moments)
    }

    fn spool(&self, tensor: usize, whole: bool) -> Result<Kept, IoError> {
        let dims = &self.source.tensors()[tensor].dims;
        let matrices = dims.get(2).copied().unwrap_or(1) as usize;
        let spool = Spool::new(self.calibration.folder, dims[0] as usize, matrices, whole);
        Ok(Kept::Spooled(Mutex::new(spool?)))
    }

    /// Importances and factors, with a prior.
    pub fn inputs(&self, moments: &Moments, prior: Option<&Moments>) -> Inputs {
        let Calibration { damping, simd, .. } = *self.calibration;
        let factored = match moments.is_whole() {
            true => Factored::new(moments.mean(prior), damping, simd),
            false => None,
        };
        Inputs { importances: moments.importances(prior), factored }
    }
}
