//! Integers with scales, as compressed-tensors stores them: in a byte each, or packed into words.
//!
//! A weight is its integer, less a zero point where there is one, times its scale. Packed rows are strings
//! of bits, the lowest first, without gaps, filled up to words of 32; integers have half their range added.
//! Zero points are packed so down the columns.
//!
//! ```text
//! weight_packed  i32 [rows, words]     or  weight  i8 [rows, columns]
//! weight_scale   one for a tensor, a row, a group of columns, a block
//! weight_zero_point, weight_shape
//! ```
//! Groups of 32 columns, or of several times as many, are blocks of GGUF's oldest types: the same numbers on
//! the same grid, if F16 has the scales.

use super::scale::Scale;
use super::{Claimed, Coded, InBlocks, Part, Tensors, with_bytes};
use crate::quant::float::{f16_to_f32, f32_to_f16};
use crate::quant::{INTEGERS, QuantType, block_of_integers};
use crate::source::declared::Scheme;
use crate::source::error::{CheckpointError, SourceError};
use crate::source::shards::{Shards, Stored};
use crate::source::{Coding, Dtype};
use safetensors::tensor::Dtype as StDtype;
use std::ops::Range;
use std::sync::OnceLock;

/// What integers of so many bits, less one, are called.
const CODINGS: [Coding; 8] = {
    let names = ["INT1", "INT2", "INT3", "INT4", "INT5", "INT6", "INT7", "INT8"];
    let mut all = [Coding { name: "", bytes: 1, weights: 8, activations_of: None }; 8];
    let mut i = 0;
    while i < 8 {
        all[i] = Coding { name: names[i], bytes: i as u64 + 1, ..all[i] };
        i += 1;
    }
    all
};

/// The ways of compressed-tensors that this reads.
const FORMATS: [&str; 4] =
    ["pack-quantized", "int-quantized", "naive-quantized", "mixed-precision"];

struct Integers {
    values: Part,
    bits: u32,
    packed: bool,
    n_rows: u64,
    n_per_row: usize,
    scale: Scale,
    zero: Option<Zero>,
    /// The name of a tensor that says nothing more.
    shape: String,
    /// The type of blocks that are the same, once somebody has asked.
    blocks: OnceLock<Option<QuantType>>,
}

/// Zero points, one for each scale.
struct Zero {
    part: Part,
    packed: bool,
}

/// Rows of integers, zero points taken off.
struct Rows {
    integers: Vec<i16>,
    scales: Vec<f32>,
    /// What integers may be at least, for every scale.
    least: Vec<i16>,
}

/// Claims what is packed into words, and bytes that have scales by compressed-tensors.
pub(super) fn claim(
    tensors: &Tensors,
    name: &str,
    stored: Option<&Stored>,
) -> Result<Option<Claimed>, CheckpointError> {
    let declared = tensors.declared;
    let known = declared.method.as_deref().is_none_or(|method| method == "compressed-tensors")
        && declared.format(name).is_none_or(|format| FORMATS.contains(&format));
    let packed_name = format!("{name}_packed");
    let packed = match stored {
        None => tensors.find(&packed_name)?.filter(|found| found.info.dtype == StDtype::I32),
        Some(_) => None,
    };
    let scaled = || tensors.shards.stored.contains_key(&format!("{name}_scale"));
    let bytes = stored.filter(|found| found.info.dtype == StDtype::I8 && scaled());
    let Some(found) = packed.or(bytes).filter(|_| known) else { return Ok(None) };
    if tensors.shards.stored.contains_key(&format!("{name}_g_idx")) {
        return Err(CheckpointError::Packed {
            path: tensors.shards.path_of(found).to_owned(),
            tensor: name.to_owned(),
            format: "compressed-tensors with its columns in another order (weight_g_idx)"
                .to_owned(),
        });
    }
    let scheme = declared.scheme(name);
    let &[rows, width] = found.info.shape.as_slice() else {
        return Err(tensors.unfit(name, found, format!("{:?}", found.info.shape), "a matrix"));
    };
    let (bits, columns) = match packed {
        Some(_) => extent(tensors, name, found, scheme)?,
        None => (8, width),
    };
    let scale = Scale::of(name, found, [rows, columns], tensors)?;
    let zero = Zero::of(tensors, name, &scale, [rows, columns], bits, scheme)?;
    let values = tensors.part(if packed.is_some() { &packed_name } else { name }, found);
    let coded = Integers {
        values,
        bits,
        packed: packed.is_some(),
        n_rows: rows as u64,
        n_per_row: columns,
        scale,
        zero,
        shape: format!("{name}_shape"),
        blocks: OnceLock::new(),
    };
    let dims = vec![columns as u64, rows as u64];
    let dtype = Dtype::Coded(CODINGS[bits as usize - 1]);
    Ok(Some(Claimed { dtype, dims, coded: Box::new(coded) }))
}

/// Bits of an integer, and columns, of a packed matrix. Declared bits and scales by group tell both;
/// elsewhere it takes `weight_shape`, whose numbers have to be read.
fn extent(
    tensors: &Tensors,
    name: &str,
    packed: &Stored,
    scheme: Option<&Scheme>,
) -> Result<(u32, usize), CheckpointError> {
    let [rows, words] = [packed.info.shape[0], packed.info.shape[1]];
    let fits = |bits: u32, columns: usize| (columns * bits as usize).div_ceil(32) == words;
    let declared = scheme.and_then(|scheme| scheme.bits);
    let group = scheme.and_then(|scheme| scheme.block).filter(|block| block[0] == 1);
    let groups = tensors.find(&format!("{name}_scale"))?.map_or(&[][..], |s| &s.info.shape);
    if let (Some(bits), Some([_, width]), &[n, groups]) = (declared, group, groups)
        && let Some(columns) = groups.checked_mul(width)
        && n == rows
        && (1..=8).contains(&bits)
        && fits(bits, columns)
    {
        return Ok((bits, columns));
    }
    let shape_name = format!("{name}_shape");
    let Some(shape) = tensors.find(&shape_name)? else {
        return Err(CheckpointError::MissingScale {
            path: tensors.shards.path_of(packed).to_owned(),
            tensor: name.to_owned(),
            scale: shape_name,
        });
    };
    let numbers = tensors.shards.integers(shape)?;
    let columns = match *numbers {
        [r, columns] if r == rows as u64 && columns <= words as u64 * 32 => columns as usize,
        _ => {
            let expected = format!("[{rows}, columns] for `{name}_packed`");
            return Err(tensors.unfit(&shape_name, shape, format!("{numbers:?}"), &expected));
        }
    };
    let mut fitting = (1..=8).filter(|&bits| fits(bits, columns));
    let bits = match declared {
        Some(bits) => Some(bits).filter(|bits| fitting.any(|fits| fits == *bits)),
        None => fitting.next().filter(|_| fitting.next().is_none()),
    };
    let found = format!("{words} words a row");
    let expected = match declared {
        Some(bits) => format!("{columns} integers of {bits} bits, as config.json has it"),
        None => format!("{columns} integers of so many bits that only one number fits"),
    };
    let unfit = || tensors.unfit(&format!("{name}_packed"), packed, found, &expected);
    bits.map(|bits| (bits, columns)).ok_or_else(unfit)
}

impl Zero {
    fn of(
        tensors: &Tensors,
        name: &str,
        scale: &Scale,
        [rows, columns]: [usize; 2],
        bits: u32,
        scheme: Option<&Scheme>,
    ) -> Result<Option<Self>, CheckpointError> {
        let zero_name = format!("{name}_zero_point");
        let Some(found) = tensors.find(&zero_name)? else {
            return match scheme {
                Some(scheme) if !scheme.symmetric => Err(CheckpointError::MissingScale {
                    path: tensors.shards.files[scale.part.shard].path.clone(),
                    tensor: name.to_owned(),
                    scale: zero_name,
                }),
                _ => Ok(None),
            };
        };
        let block_rows = rows.div_ceil(scale.block[0]);
        let (packed, expected) = match found.info.dtype {
            StDtype::I32 => (
                true,
                [(block_rows * bits as usize).div_ceil(32), columns.div_ceil(scale.block[1])],
            ),
            StDtype::I8 => (false, [block_rows, columns.div_ceil(scale.block[1])]),
            other => {
                let path = tensors.shards.path_of(found).to_owned();
                let dtype = format!("{other:?}");
                return Err(CheckpointError::Dtype { path, tensor: zero_name, dtype });
            }
        };
        let shape = &found.info.shape;
        // Exporters leave out extents of 1.
        let is_expected = match shape.as_slice() {
            [a, b] => [*a, *b] == expected,
            [n] => expected == [*n, 1],
            shape => shape.is_empty() && expected == [1, 1],
        };
        match is_expected {
            true => Ok(Some(Self { part: tensors.part(&zero_name, found), packed })),
            false => {
                let expected = format!("{expected:?}");
                Err(tensors.unfit(&zero_name, found, format!("{shape:?}"), &expected))
            }
        }
    }

    /// Rows of zero points, of integers of so many bits.
    fn read(
        &self,
        shards: &Shards,
        rows: Range<usize>,
        per_row: usize,
        bits: u32,
    ) -> Result<Vec<i16>, SourceError> {
        if !self.packed {
            let mut bytes = vec![0; rows.len() * per_row];
            let at = self.part.bytes.start + (rows.start * per_row) as u64;
            shards.read(&self.part, at, &mut bytes)?;
            return Ok(bytes.into_iter().map(|byte| i16::from(byte as i8)).collect());
        }
        // 32 of them are whole words.
        let first = rows.start / 32 * 32;
        let words = first * bits as usize / 32..(rows.end * bits as usize).div_ceil(32);
        let mut stored = vec![0; 4 * words.len() * per_row];
        let at = self.part.bytes.start + (4 * words.start * per_row) as u64;
        shards.read(&self.part, at, &mut stored)?;
        let mut zeros = vec![0; rows.len() * per_row];
        let mut down = vec![0; rows.end - first];
        for column in 0..per_row {
            let words = stored.chunks_exact(4).skip(column).step_by(per_row);
            unpack(&words.collect::<Vec<_>>().concat(), bits, &mut down);
            for (row, zero) in down[rows.start - first..].iter().enumerate() {
                zeros[row * per_row + column] = *zero;
            }
        }
        Ok(zeros)
    }
}

/// Integers of so many bits, the lowest bits first, half of their range taken off.
fn unpack(bytes: &[u8], bits: u32, out: &mut [i16]) {
    let (mask, half) = ((1u32 << bits) - 1, 1 << (bits - 1));
    let (mut held, mut n, mut bytes) = (0u32, 0, bytes.iter());
    for out in out {
        if n < bits {
            held |= u32::from(*bytes.next().unwrap_or(&0)) << n;
            n += 8;
        }
        *out = (held & mask) as i16 - half;
        held >>= bits;
        n -= bits;
    }
}

impl Integers {
    fn rows(&self, shards: &Shards, rows: Range<u64>) -> Result<Rows, SourceError> {
        let n = self.n_per_row;
        let mut integers = vec![0; (rows.end - rows.start) as usize * n];
        let bytes = self.values.rows(rows.clone(), self.n_rows);
        let per_row = (self.values.n_bytes().checked_div(self.n_rows).unwrap_or(0) as usize).max(1);
        with_bytes(shards, &self.values, bytes, |bytes| {
            let of_rows = bytes.chunks_exact(per_row).zip(integers.chunks_exact_mut(n.max(1)));
            for (bytes, integers) in of_rows {
                match self.packed {
                    true => unpack(bytes, self.bits, integers),
                    false => {
                        let bytes = bytes.iter().map(|&byte| i16::from(byte as i8));
                        integers.iter_mut().zip(bytes).for_each(|(out, integer)| *out = integer);
                    }
                }
            }
        })?;
        let block_rows = self.scale.rows(&rows);
        let scales = self.scale.read(shards, block_rows.clone())?;
        let mut least = vec![-1 << (self.bits - 1); scales.len()];
        if let Some(zero) = &self.zero {
            let zeros = zero.read(shards, block_rows, self.scale.per_row, self.bits)?;
            self.each_group(rows.start, &mut integers, |integers, at| {
                integers.iter_mut().for_each(|integer| *integer -= zeros[at]);
            });
            least.iter_mut().zip(zeros).for_each(|(least, zero)| *least -= zero);
        }
        Ok(Rows { integers, scales, least })
    }

    /// Calls `each` with what belongs to every scale, row after row, and the scale's place.
    fn each_group<T>(&self, first: u64, of: &mut [T], mut each: impl FnMut(&mut [T], usize)) {
        let [height, width] = self.scale.block;
        let before = first as usize % height;
        for (row, of) in of.chunks_exact_mut(self.n_per_row.max(1)).enumerate() {
            let at = (before + row) / height * self.scale.per_row;
            of.chunks_mut(width).enumerate().for_each(|(i, of)| each(of, at + i));
        }
    }

    /// The smallest type whose blocks are these integers with these scales.
    fn find_blocks(&self, shards: &Shards) -> Result<Option<QuantType>, SourceError> {
        let whole = self.scale.per_row == 1 || self.scale.block[1].is_multiple_of(INTEGERS);
        if !whole || !self.n_per_row.is_multiple_of(INTEGERS) {
            return Ok(None);
        }
        let least = -(1i16 << (self.bits - 1));
        // Of zero points, and whether Q4_1 has what they come to.
        let (mut lowest, mut highest, mut offsets) = (i16::MAX, i16::MIN, true);
        let all = (self.n_rows as usize).div_ceil(self.scale.block[0]);
        for first in (0..all).step_by(1024) {
            let rows = first..all.min(first + 1024);
            let scales = self.scale.read(shards, rows.clone())?;
            if !scales.iter().all(|&scale| in_f16(scale)) {
                return Ok(None);
            }
            let zeros = match &self.zero {
                Some(zero) => zero.read(shards, rows, self.scale.per_row, self.bits)?,
                None => vec![0; scales.len()],
            };
            for (zero, scale) in zeros.into_iter().zip(scales) {
                (lowest, highest) = (lowest.min(zero), highest.max(zero));
                offsets &= in_f16(scale * f32::from(least - zero));
            }
        }
        let range = least.saturating_sub(highest)..=(-1 - least).saturating_sub(lowest);
        let within = |most: i16| *range.start() >= -1 - most && *range.end() <= most;
        Ok(match self.bits {
            _ if within(7) => Some(QuantType::Q4_0),
            ..=4 if offsets => Some(QuantType::Q4_1),
            _ if within(15) => Some(QuantType::Q5_0),
            _ if within(127) => Some(QuantType::Q8_0),
            _ => None,
        })
    }
}

/// Whether F16 has this number.
fn in_f16(x: f32) -> bool {
    f16_to_f32(f32_to_f16(x)) == x
}

impl Coded for Integers {
    fn values(&self) -> &Part {
        &self.values
    }

    fn beside(&self) -> Vec<&Part> {
        [&self.scale.part].into_iter().chain(self.zero.as_ref().map(|zero| &zero.part)).collect()
    }

    fn without_use(&self) -> Vec<String> {
        vec![self.shape.clone()]
    }

    fn is_moved(&self) -> bool {
        self.packed
    }

    fn read(&self, shards: &Shards, rows: Range<u64>, out: &mut [f32]) -> Result<(), SourceError> {
        let first = rows.start;
        let Rows { integers, scales, .. } = self.rows(shards, rows)?;
        for (out, integer) in out.iter_mut().zip(integers) {
            *out = f32::from(integer);
        }
        self.each_group(first, out, |out, at| out.iter_mut().for_each(|out| *out *= scales[at]));
        Ok(())
    }

    fn settle(&self, shards: &Shards) -> Result<(), SourceError> {
        if self.blocks.get().is_none() {
            // Another thread would have found the same.
            let _ = self.blocks.set(self.find_blocks(shards)?);
        }
        Ok(())
    }

    fn blocks(&self) -> Option<&dyn InBlocks> {
        self.blocks.get().copied().flatten().map(|_| self as &dyn InBlocks)
    }
}

impl InBlocks for Integers {
    fn ty(&self) -> QuantType {
        self.blocks.get().copied().flatten().expect("blocks are asked for once they are found")
    }

    fn read(&self, shards: &Shards, rows: Range<u64>, out: &mut [u8]) -> Result<(), SourceError> {
        let (first, ty) = (rows.start, InBlocks::ty(self));
        let Rows { mut integers, scales, least } = self.rows(shards, rows)?;
        let mut blocks = out.chunks_exact_mut(ty.block_bytes());
        self.each_group(first, &mut integers, |integers, at| {
            for integers in integers.as_chunks::<INTEGERS>().0 {
                let Some(block) = blocks.next() else { return };
                block_of_integers(ty, scales[at], least[at], integers, block);
            }
        });
        Ok(())
    }
}
