//! Which inputs are watched, and what is kept of them.

use super::factor::{BLOCK, Factored};
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
    /// Columns that are known with each other.
    pub part: usize,
    pub factored: Option<Factored>,
}

/// Columns of a tensor's rows, and how many moments of so many are kept at once.
pub(super) fn kept_at_once(kind: Kind, dims: &[u64]) -> (u64, u64) {
    let matrices = dims.get(2).copied().unwrap_or(1);
    (dims.first().copied().unwrap_or(1), if kind.is_routed() { 2 } else { matrices })
}

/// How many columns are known with each other at most, so that moments of matrices with so many columns, of which
/// so many are kept at once, and the factors of one fit in memory. Wider ones are cut into parts: errors in one are
/// not made up for by columns of another.
pub(super) fn most_of_a_part(matrices: &[(u64, u64)], memory: u64) -> u64 {
    let block = BLOCK as u64;
    let mut most = matrices.iter().map(|&(columns, _)| columns).max().unwrap_or(0);
    let fits = |most: u64| {
        let moments =
            matrices.iter().map(|&(columns, kept)| 4 * columns * part(columns, most) * kept);
        let factors =
            matrices.iter().map(|&(columns, _)| Factored::memory(columns, part(columns, most)));
        moments.sum::<u64>() + factors.max().unwrap_or(0) <= memory
    };
    while most > 0 && !fits(most) {
        most = if most > block { (most / 2).next_multiple_of(block) } else { 0 };
    }
    most
}

/// Columns of a part: whole blocks, as even as they can be.
pub(super) fn part(columns: u64, most: u64) -> u64 {
    match columns <= most || most == 0 {
        true => columns.min(most),
        false => columns.div_ceil(columns.div_ceil(most)).next_multiple_of(BLOCK as u64),
    }
}

/// How the inputs of a model's tensors are watched.
pub(super) struct Watching<'a> {
    pub source: &'a dyn Source,
    pub calibration: &'a Calibration<'a>,
    pub watch: &'a Watch,
    /// Whether what goes into the `down` of routed experts is made from what goes into `gate` and `up`, when these are
    /// rounded.
    pub downs_later: bool,
}

impl Watching<'_> {
    /// The number in the source of the tensor that is watched for the inputs of this one.
    pub fn watched(&self, place: Place) -> usize {
        let find = |&kind: &Kind| {
            self.source.find(&TensorName::weight(place.name.layer, kind).to_string())
        };
        same_inputs(place.name.kind).iter().find_map(find).unwrap_or(place.source)
    }

    /// Has the inputs of some tensors of a layer watched: of those that are wanted. All `places` that are watched at
    /// the same time in a run that is not interrupted have a say in how wide parts are.
    pub fn watch(
        &self,
        layer: u32,
        places: impl Iterator<Item = Place>,
        wanted: &[Place],
    ) -> Result<(), IoError> {
        let watched: BTreeMap<usize, Kind> =
            places.map(|place| (self.watched(place), place.name.kind)).collect();
        let dims = |tensor: usize| &self.source.tensors()[tensor].dims;
        let together = watched.iter().map(|(&tensor, &kind)| kept_at_once(kind, dims(tensor)));
        let most = most_of_a_part(&together.collect::<Vec<_>>(), self.calibration.memory);
        let wanted: BTreeMap<usize, Kind> =
            wanted.iter().map(|&place| (self.watched(place), place.name.kind)).collect();
        let mut kept = HashMap::new();
        for (&tensor, &kind) in &wanted {
            let (columns, matrices) = kept_at_once(kind, dims(tensor));
            let part = part(columns, most) as usize;
            let moments = |_| Mutex::new(Moments::new(columns as usize, part));
            let of = match kind.is_routed() {
                true if kind == Kind::FfnDownExps && self.downs_later => {
                    Kept::Later { columns: columns as usize, part }
                }
                true => self.spool(tensor, part)?,
                false => Kept::Each((0..matrices).map(moments).collect()),
            };
            kept.insert(tensor, Arc::new(of));
        }
        if self.downs_later && wanted.values().any(|&kind| kind == Kind::FfnDownExps) {
            let name = TensorName::weight(Some(layer), Kind::FfnGateExps).to_string();
            if let Some(gate) = self.source.find(&name).filter(|gate| !kept.contains_key(gate)) {
                kept.insert(gate, Arc::new(self.spool(gate, 0)?));
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
        let columns = u64::from(self.calibration.hparams.n_embd);
        let most = most_of_a_part(&[(columns, 1)], self.calibration.memory);
        let mut moments = Moments::new(columns as usize, part(columns, most) as usize);
        pass(&mut |x| moments.add(x, self.calibration.simd, true))?;
        Ok(moments)
    }

    fn spool(&self, tensor: usize, part: usize) -> Result<Kept, IoError> {
        let dims = &self.source.tensors()[tensor].dims;
        let matrices = dims.get(2).copied().unwrap_or(1) as usize;
        let spool = Spool::new(self.calibration.folder, dims[0] as usize, matrices, part);
        Ok(Kept::Spooled(Mutex::new(spool?)))
    }

    /// Importances and factors, with a prior.
    pub fn inputs(&self, moments: &Moments, prior: Option<&Moments>) -> Inputs {
        let Calibration { damping, simd, .. } = *self.calibration;
        let factored = match moments.has_products() {
            true => Factored::new(moments.mean(prior), damping, simd),
            false => None,
        };
        Inputs { importances: moments.importances(prior), part: moments.part(), factored }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_as_wide_as_memory_lets_them() {
        // R1's `attn_output` and `ffn_down` of a dense layer.
        let wide = [(16384, 1), (18432, 1), (7168, 1), (1536, 1)];
        let gib = |n: u64| n << 30;
        let parts = |memory| {
            let most = most_of_a_part(&wide, memory);
            wide.map(|(columns, _)| part(columns, most))
        };
        assert_eq!(parts(gib(8)), [16384, 18432, 7168, 1536]);
        assert_eq!(parts(gib(4)), [8192, 9216, 7168, 1536]);
        assert_eq!(parts(gib(1)), [2048, 2304, 1792, 1536]);
        assert_eq!(parts(1 << 20), [0; 4]);
        for memory in [gib(8), gib(4), gib(2), gib(1), gib(1) / 4] {
            let parts = parts(memory);
            let kept: u64 = wide.iter().zip(parts).map(|((n, _), part)| 4 * n * part).sum();
            let factors = wide.iter().zip(parts).map(|((n, _), part)| Factored::memory(*n, part));
            assert!(kept + factors.max().unwrap_or(0) <= memory);
        }
    }
}
