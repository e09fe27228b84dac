//! Whether a file is what a plan would write: tensors are made again and compared.

use super::encode::{Encoder, Unit, by_place, shift_row};
use super::error::ConvertError;
use super::lossless::LOSSLESS;
use super::metadata::RECIPE;
use super::plan::Plan;
use crate::monitor::Monitor;
use crate::quant::Kind;
use crate::source::{GgufSource, Source, Storage};
use std::collections::{BTreeMap, HashSet};
use std::sync::Mutex;
use xxhash_rust::xxh3::xxh3_64;

/// What a comparison of a file with a plan found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Weights that were compared.
    pub weights: u64,
    /// Weights that the plan has in all.
    pub of: u64,
    /// Tensors that differ, with the first row of the first difference found.
    pub differing: BTreeMap<String, u64>,
    /// Tensors of the source that the file does not have.
    pub missing: Vec<String>,
    /// Tensors of the file that the source does not have.
    pub extra: Vec<String>,
    /// Metadata keys that are not what the plan would write. Names and file types are matters of
    /// taste, so this alone does not make a difference.
    pub keys: Vec<String>,
}

impl Comparison {
    /// Whether everything that was compared is the same.
    pub fn is_same(&self) -> bool {
        self.differing.is_empty() && self.missing.is_empty() && self.extra.is_empty()
    }
}

/// Keys that say how a file was made rather than what it holds.
const MAKING: [&str; 5] =
    ["general.file_type", "general.quantization_version", "general.alignment", RECIPE, LOSSLESS];

impl Plan {
    /// Compares a file with what this plan, made with [`Plan::like_file`], would write: all of it,
    /// or a random share of the units, which `seed` chooses.
    ///
    /// The monitor counts weights.
    ///
    /// # Errors
    /// Weights that cannot be read or encoded.
    pub fn compare(
        &self,
        source: &dyn Source,
        file: &GgufSource,
        share: f64,
        seed: u64,
        monitor: &dyn Monitor,
    ) -> Result<Comparison, ConvertError> {
        let planned: HashSet<&str> = self.tensors.iter().map(|t| t.name.as_str()).collect();
        let not_planned = |from: &dyn Source| -> Vec<String> {
            let names = from.tensors().iter().map(|t| t.name.clone());
            names.filter(|name| !planned.contains(name.as_str())).collect()
        };
        let mut keys: Vec<String> = self
            .metadata
            .iter()
            .filter(|&(key, value)| file.metadata().get(key) != Some(value))
            .map(|(key, _)| key.to_owned())
            .collect();
        let others = file.metadata().iter().map(|(key, _)| key);
        keys.extend(others.filter(|&key| self.metadata.get(key).is_none()).map(str::to_owned));
        keys.retain(|key| {
            let of_making = key.starts_with("split.") || key.starts_with("quantize.");
            !of_making && !MAKING.contains(&key.as_str())
        });
        let comparison = Comparison {
            of: self.n_weights(),
            missing: not_planned(source),
            extra: not_planned(file),
            keys,
            ..Comparison::default()
        };
        let chosen = |unit: &Unit| {
            let hash = xxh3_64(&[seed.to_le_bytes(), unit.number.to_le_bytes()].concat());
            share >= 1.0 || (hash as f64) < share * u64::MAX as f64
        };
        let units = Mutex::new(self.units(0..self.tensors.len()).filter(chosen));
        let result = Mutex::new(Ok(comparison));
        std::thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| {
                    let mut encoder = Encoder::new([self], source);
                    let mut found = Vec::new();
                    while result.lock().is_ok_and(|r| r.is_ok()) {
                        let Some(unit) = units.lock().ok().and_then(|mut u| u.next()) else {
                            break;
                        };
                        let outcome = match monitor.cancelled() {
                            true => Err(ConvertError::Cancelled),
                            false => self.compare_unit(&unit, &mut encoder, file, &mut found),
                        };
                        let Ok(mut result) = result.lock() else { break };
                        match (outcome, result.as_mut()) {
                            (Ok((weights, difference)), Ok(comparison)) => {
                                comparison.weights += weights;
                                if let Some(row) = difference {
                                    let name = self.tensors[unit.tensor].name.clone();
                                    let first = comparison.differing.entry(name).or_insert(row);
                                    *first = row.min(*first);
                                }
                                monitor.advance(weights);
                            }
                            (Err(error), Ok(_)) => *result = Err(error),
                            _ => {}
                        }
                    }
                });
            }
        });
        result.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Weights compared, and the first row that differs.
    fn compare_unit(
        &self,
        unit: &Unit,
        encoder: &mut Encoder,
        file: &GgufSource,
        found: &mut Vec<u8>,
    ) -> Result<(u64, Option<u64>), ConvertError> {
        let tensor = &self.tensors[unit.tensor];
        let index = file.find(&tensor.name).expect("the plan was made like this file");
        let weights = tensor.weights(&unit.rows);
        let shape = |dims: &[u64]| {
            let n = dims.iter().rposition(|&d| d != 1).map_or(0, |i| i + 1);
            dims[..n].to_vec()
        };
        if shape(&file.tensors()[index].dims) != shape(&tensor.dims) {
            return Ok((weights, Some(0)));
        }
        file.read_raw(index, unit.rows.clone(), found)?;
        file.release(index, unit.rows.clone());
        let expected = encoder.encode(unit)?;
        let row_bytes = expected.len() / (unit.rows.end - unit.rows.start).max(1) as usize;
        let at = expected.iter().zip(found.iter()).position(|(a, b)| a != b);
        Ok((weights, at.map(|at| unit.rows.start + (at / row_bytes.max(1)) as u64)))
    }
}

/// Looks every block of a model over, as `--check` does while quantizing: each must decode to
/// finite numbers. The monitor counts weights.
///
/// # Errors
/// The first block that does not, by file, tensor and row.
pub fn validate_blocks(
    file: &GgufSource,
    threads: usize,
    monitor: &dyn Monitor,
) -> Result<(), ConvertError> {
    let next = Mutex::new(0..file.tensors().len());
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let mut bytes = Vec::new();
                while failure.lock().is_ok_and(|f: std::sync::MutexGuard<Option<_>>| f.is_none()) {
                    let Some(i) = next.lock().ok().and_then(|mut n| n.next()) else { break };
                    if let Err(error) = validate_tensor(file, i, &mut bytes, monitor)
                        && let Ok(mut failure) = failure.lock()
                    {
                        failure.get_or_insert(error);
                    }
                }
            });
        }
    });
    match failure.into_inner() {
        Ok(None) => Ok(()),
        Ok(Some(error)) => Err(error),
        Err(_) => Err(ConvertError::Cancelled),
    }
}

fn validate_tensor(
    file: &GgufSource,
    tensor: usize,
    bytes: &mut Vec<u8>,
    monitor: &dyn Monitor,
) -> Result<(), ConvertError> {
    let meta = &file.tensors()[tensor];
    let crate::source::Dtype::Gguf(ty) = meta.dtype else { return Ok(()) };
    let n = meta.n_per_row();
    if n == 0 || ty.format().kind == Kind::Integer {
        return Ok(());
    }
    let step = (super::plan::UNIT_ELEMENTS / n).max(1);
    for first in (0..meta.n_rows()).step_by(step as usize) {
        if monitor.cancelled() {
            return Err(ConvertError::Cancelled);
        }
        let rows = first..(first + step).min(meta.n_rows());
        let weights = (rows.end - rows.start) * n;
        file.read_raw(tensor, rows.clone(), bytes)?;
        ty.validate_rows(bytes, n as usize).map_err(|error| ConvertError::Damaged {
            origin: file.origin(tensor, first),
            error: shift_row(by_place(error, n as usize, bytes), first, n as usize),
        })?;
        file.release(tensor, rows);
        monitor.advance(weights);
    }
    Ok(())
}
