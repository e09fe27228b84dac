//! How long a run will take, from a short trial on its own weights.

use super::encode::Encoder;
use super::plan::Plan;
use crate::gguf::TensorType;
use crate::io::{Clock, processor_time};
use crate::source::{Origin, Source};
use std::ops::Range;
use std::time::Duration;

/// Time spent on each kind of work, unless its first unit takes longer.
const TRIAL: Duration = Duration::from_millis(60);

impl Plan {
    /// Seconds of processor time that reading and encoding some of the files will take, over all threads:
    /// what else the machine does has no say in it. Every kind of work, a source type on its way to an output type,
    /// is tried on units from all over the model.
    pub fn estimate(&self, source: &dyn Source, files: Range<usize>) -> f64 {
        let (Some(first), Some(last)) = (self.files[files.clone()].first(), files.last()) else {
            return 0.0;
        };
        let tensors = first.tensors.start..self.files[last].tensors.end;
        let mut kinds: Vec<(_, u64, Vec<usize>)> = Vec::new();
        for i in tensors.clone() {
            let tensor = &self.tensors[i];
            let dtype = source.tensors()[tensor.source].dtype;
            let kind = (dtype, tensor.stored, tensor.ty, tensor.weighing.is_some());
            match kinds.iter_mut().find(|(known, _, _)| *known == kind) {
                Some((_, weights, of)) => {
                    *weights += tensor.n_elements();
                    of.push(i);
                }
                None => kinds.push((kind, tensor.n_elements(), vec![i])),
            }
        }
        let mut encoder = Encoder::new(self, source);
        kinds
            .into_iter()
            .map(|(_, weights, of)| {
                let (mut done, mut spent) = (0, Duration::ZERO);
                // Every tenth of the tensors, the largest part of which is typical.
                for &i in of.iter().rev().step_by(of.len().div_ceil(10)) {
                    let Some(unit) = self.units(i..i + 1).last() else { continue };
                    // What is wrong with a weight is for the run to say.
                    let (_, time) = processor_time(Clock::Thread, || drop(encoder.encode(&unit)));
                    // Where time is too short to be told, a trial still ends.
                    spent += time.max(Duration::from_micros(1));
                    done += self.tensors[i].weights(&unit.rows);
                    if spent > TRIAL {
                        break;
                    }
                }
                weights as f64 * spent.as_secs_f64() / (done.max(1) as f64)
            })
            .sum()
    }

    /// The stored tensors that a tensor of the output is made of, and where they lie.
    pub fn pieces(&self, tensor: usize, source: &dyn Source) -> Vec<Origin> {
        let planned = &self.tensors[tensor];
        let per_matrix = match planned.ty {
            TensorType::Known(_) => planned.rows_per_matrix(),
            TensorType::Unknown(_) => planned.n_rows().max(1),
        };
        let rows = (0..planned.n_rows()).step_by(per_matrix as usize);
        let mut pieces: Vec<Origin> = rows.map(|row| source.origin(planned.source, row)).collect();
        pieces.dedup();
        pieces
    }
}
