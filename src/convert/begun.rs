//! An output between its first byte and its last, for whoever makes some of its tensors in another way than
//! row by row: whole tensors are written, read back and noted, before the pass makes what is left.
#![cfg_attr(not(feature = "eval"), allow(dead_code, reason = "those who do need the forward pass"))]

use super::encode::{Encoder, Unit, shift_row};
use super::error::ConvertError;
use super::plan::Plan;
use super::run::Run;
use crate::quant::{QuantError, QuantType};
use std::ops::Range;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use xxhash_rust::xxh3::xxh3_64;

/// An output whose tensors are still to be written, for whoever makes some of them in another way than row
/// by row. What is noted survives the process.
pub(crate) struct Begun<'r> {
    run: &'r Run<'r>,
}

impl<'r> Begun<'r> {
    pub(super) fn new(run: &'r Run<'r>) -> Self {
        Self { run }
    }

    /// What is written.
    pub fn plan(&self) -> &Plan {
        self.run.plan()
    }

    fn units(&self, tensor: usize) -> impl Iterator<Item = Unit> {
        self.plan().units(tensor..tensor + 1)
    }

    /// Whether an earlier process has written and noted a whole tensor, and its bytes are still there.
    ///
    /// # Errors
    /// The output cannot be read.
    pub fn is_complete(&self, tensor: usize) -> Result<bool, ConvertError> {
        let mut bytes = Vec::new();
        for unit in self.units(tensor) {
            let Some(&hash) = self.run.past.units.get(&unit.number) else { return Ok(false) };
            self.read(tensor, unit.rows, &mut bytes)?;
            if xxh3_64(&bytes) != hash {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The weights of some rows, as the pass would encode them.
    pub fn weights(&self, tensor: usize, rows: Range<u64>) -> Result<Vec<f32>, ConvertError> {
        self.encoder().weights(tensor, rows)
    }

    fn encoder(&self) -> Encoder<'_> {
        Encoder::new([self.plan()], self.run.source).watched_by(&self.run.seen)
    }

    /// What tells this run from others.
    pub fn identity(&self) -> u64 {
        self.run.ladder.identity(self.run.source).digest()
    }

    /// An error in the weights of rows, by its place in the tensor.
    pub fn encode_error(
        &self,
        tensor: usize,
        first: u64,
        ty: QuantType,
        error: QuantError,
    ) -> ConvertError {
        let planned = &self.plan().tensors[tensor];
        ConvertError::Encode {
            origin: self.run.source.origin(planned.source, first),
            tensor: planned.name.clone(),
            ty,
            error: shift_row(error, first, planned.n_per_row() as usize),
        }
    }

    /// Writes the bytes of rows.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn write(&self, tensor: usize, first: u64, bytes: &[u8]) -> Result<(), ConvertError> {
        self.run.places(tensor).try_for_each(|place| place.write(first, bytes))
    }

    /// Reads the bytes of rows that were written.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn read(
        &self,
        tensor: usize,
        rows: Range<u64>,
        out: &mut Vec<u8>,
    ) -> Result<(), ConvertError> {
        self.run.places(tensor).try_for_each(|place| place.read(rows.clone(), out))
    }

    /// Notes that a tensor is written.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn note(&self, tensor: usize) -> Result<(), ConvertError> {
        let mut bytes = Vec::new();
        for unit in self.units(tensor) {
            self.read(tensor, unit.rows.clone(), &mut bytes)?;
            self.run.journal.record(unit.number, xxh3_64(&bytes))?;
            self.run.recorded.fetch_add(1, Ordering::Relaxed);
            let mut made = self.run.made.lock().unwrap_or_else(PoisonError::into_inner);
            made.insert(unit.number);
        }
        Ok(())
    }

    /// Writes and notes a tensor as the pass would.
    ///
    /// # Errors
    /// Weights that cannot be read or encoded.
    pub fn encode(&self, tensor: usize) -> Result<(), ConvertError> {
        let mut encoder = self.encoder();
        for unit in self.units(tensor) {
            self.write(tensor, unit.rows.start, encoder.encode(&unit)?)?;
        }
        self.note(tensor)
    }
}
