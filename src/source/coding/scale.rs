//! Scales that lie beside the values which they multiply, whatever they are called and however they are
//! stored. Shapes tell which weights share one: all of a tensor, of a row, or of a block of rows and
//! columns.

use super::{Part, Tensors};
use crate::quant::{QuantError, QuantType, fp8};
use crate::simd::Simd;
use crate::source::error::{CheckpointError, SourceError};
use crate::source::shards::{Shards, Stored};
use safetensors::tensor::Dtype as StDtype;
use std::ops::Range;

/// One factor for every `block[0]` rows and `block[1]` columns (torch order).
pub(super) struct Scale {
    pub part: Part,
    pub block: [usize; 2],
    pub per_row: usize,
    dtype: ScaleType,
}

/// How a factor is stored.
#[derive(Clone, Copy)]
enum ScaleType {
    Float(QuantType),
    /// A power of two: its exponent with a bias of 127.
    Exponent,
}

/// What the scales of a tensor may be called: by DeepSeek and transformers; by compressed-tensors,
/// ModelOpt, FBGEMM and Quark; by ComfyUI; by Mistral; by DeepSeek's own inference code.
pub(in crate::source) fn names(weight: &str) -> Vec<String> {
    let stem = weight.strip_suffix(".weight");
    let beside = [".scale_weight", ".qscale_weight", ".scale"];
    let of_stem = stem.into_iter().flat_map(|stem| beside.map(|end| format!("{stem}{end}")));
    ["_scale_inv", "_scale"]
        .map(|end| format!("{weight}{end}"))
        .into_iter()
        .chain(of_stem)
        .collect()
}

/// The tensor that this one would scale by its name.
pub(in crate::source) fn scaled(name: &str) -> Option<String> {
    let weights = ["_scale_inv", "_scale", "_scale_2"];
    let stems = [".scale_weight", ".qscale_weight", ".scale"];
    let of = weights.into_iter().find_map(|end| Some(name.strip_suffix(end)?.to_owned()));
    let of_stem =
        || stems.into_iter().find_map(|end| Some(format!("{}.weight", name.strip_suffix(end)?)));
    of.filter(|name| name.ends_with(".weight")).or_else(of_stem)
}

impl Scale {
    /// Finds the scale of a matrix whose values are stored so.
    pub fn of(
        weight: &str,
        stored: &Stored,
        [rows, columns]: [usize; 2],
        tensors: &Tensors,
    ) -> Result<Self, CheckpointError> {
        let Tensors { shards, declared } = tensors;
        let path = shards.path_of(stored).to_owned();
        let mut found: Vec<String> = names(weight);
        found.retain(|name| shards.stored.contains_key(name));
        let name = match found.as_slice() {
            [name] => name.clone(),
            [first, second, ..] => {
                return Err(CheckpointError::TwoScales {
                    path,
                    tensor: weight.to_owned(),
                    scales: [first.clone(), second.clone()],
                });
            }
            [] => {
                return Err(CheckpointError::MissingScale {
                    path,
                    tensor: weight.to_owned(),
                    scale: names(weight).swap_remove(0),
                });
            }
        };
        let scale = shards.find(&name)?.expect("it has just been found");
        let path = shards.path_of(scale).to_owned();
        let dtype = match scale.info.dtype {
            StDtype::F32 => ScaleType::Float(QuantType::F32),
            StDtype::BF16 => ScaleType::Float(QuantType::BF16),
            StDtype::F16 => ScaleType::Float(QuantType::F16),
            // What safetensors of before it had a name for them called them.
            StDtype::F8_E8M0 | StDtype::U8 => ScaleType::Exponent,
            other => {
                let dtype = format!("{other:?}");
                return Err(CheckpointError::Dtype { path, tensor: name, dtype });
            }
        };
        let shape = &scale.info.shape;
        let declared = declared.blocks(weight);
        match grid(shape, rows).and_then(|grid| block([rows, columns], grid, &declared)) {
            Some(block) => {
                let block = block.map(|n| n.max(1));
                let per_row = columns.div_ceil(block[1]);
                Ok(Self { part: tensors.part(&name, scale), block, per_row, dtype })
            }
            None => {
                let [r, c] = declared.first().copied().unwrap_or([1, columns.max(1)]);
                Err(CheckpointError::ScaleShape {
                    path,
                    tensor: name,
                    found: shape.clone(),
                    expected: vec![rows.div_ceil(r), columns.div_ceil(c)],
                })
            }
        }
    }

    /// The rows of factors that these rows of weights have.
    pub fn rows(&self, rows: &Range<u64>) -> Range<usize> {
        rows.start as usize / self.block[0]..(rows.end as usize).div_ceil(self.block[0])
    }

    /// Bytes of a factor.
    fn width(&self) -> usize {
        match self.dtype {
            ScaleType::Float(ty) => ty.block_bytes(),
            ScaleType::Exponent => 1,
        }
    }

    /// The factors that are stored so.
    fn decode(&self, simd: Simd, stored: &[u8]) -> Result<Vec<f32>, QuantError> {
        match self.dtype {
            ScaleType::Exponent => Ok(stored.iter().map(|&byte| fp8::power_of_two(byte)).collect()),
            ScaleType::Float(ty) => {
                let mut factors = vec![0.0; stored.len() / ty.block_bytes()];
                ty.decode_rows_with(simd, stored, self.per_row, &mut factors)?;
                Ok(factors)
            }
        }
    }

    /// Reads rows of factors.
    pub fn read(&self, shards: &Shards, block_rows: Range<usize>) -> Result<Vec<f32>, SourceError> {
        let row = self.per_row * self.width();
        let mut stored = vec![0; block_rows.len() * row];
        let at = self.part.bytes.start + (block_rows.start * row) as u64;
        shards.read(&self.part, at, &mut stored)?;
        let factors = self.decode(shards.simd, &stored);
        let factors = factors.map_err(|e| shards.decode_error(&self.part, e))?;
        match factors.iter().position(|f| !(f.is_finite() && *f >= 0.0)) {
            None => Ok(factors),
            Some(at) => Err(SourceError::Scale {
                path: shards.files[self.part.shard].path.clone(),
                tensor: self.part.name.clone(),
                row: (block_rows.start + at / self.per_row) as u64,
                column: (at % self.per_row) as u64,
                value: factors[at],
            }),
        }
    }
}

/// How many scales there are along rows and columns. Exporters add and leave out extents of 1.
fn grid(shape: &[usize], rows: usize) -> Option<[usize; 2]> {
    match *shape {
        [] => Some([1, 1]),
        [n] if n == rows || n == 1 => Some([n, 1]),
        [a, b] | [a, b, 1] | [a, 1, b, 1] => Some([a, b]),
        _ => None,
    }
}

/// Rows and columns that share a scale: all, those of a row, a declared block, or one whose extents are
/// powers of two, of which at most one gives as many scales.
fn block(weight: [usize; 2], grid: [usize; 2], declared: &[[usize; 2]]) -> Option<[usize; 2]> {
    let [rows, columns] = weight;
    if grid == [1, 1] {
        return Some(weight);
    }
    if grid == [rows, 1] {
        return Some([1, columns]);
    }
    if !declared.is_empty() {
        let fits = |&&[r, c]: &&[usize; 2]| [rows.div_ceil(r), columns.div_ceil(c)] == grid;
        return declared.iter().find(fits).copied();
    }
    let extent = |n: usize, count: usize| match count {
        1 => Some(n),
        _ => (0..usize::BITS - 1).map(|k| 1 << k).find(|&size| n.div_ceil(size) == count),
    };
    Some([extent(rows, grid[0])?, extent(columns, grid[1])?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_tell_which_weights_share_a_scale() {
        let none: &[[usize; 2]] = &[];
        for (weight, shape, declared, expected) in [
            ([256, 512], &[][..], none, Some([256, 512])),
            ([256, 512], &[1], none, Some([256, 512])),
            ([256, 512], &[1, 1], &[[128, 128]], Some([256, 512])),
            ([256, 512], &[256], none, Some([1, 512])),
            ([256, 512], &[256, 1], &[[128, 128]], Some([1, 512])),
            ([320, 512], &[3, 4], none, Some([128, 128])),
            ([7168, 18432], &[56, 144], none, Some([128, 128])),
            ([256, 512], &[256, 16], none, Some([1, 32])),
            ([256, 512], &[2, 1, 4, 1], none, Some([128, 128])),
            ([300, 300], &[3, 3], &[[100, 100]], Some([100, 100])),
            ([300, 300], &[3, 3], &[[1, 32], [100, 100]], Some([100, 100])),
            ([256, 512], &[2, 4], &[[64, 128]], None),
            ([256, 512], &[512], none, None),
            ([256, 512], &[2, 4, 2], none, None),
            ([256, 512], &[257, 1], none, None),
            ([256, 512], &[3, 4], none, None),
        ] {
            let grid = grid(shape, weight[0]);
            assert_eq!(grid.and_then(|grid| block(weight, grid, declared)), expected, "{shape:?}");
        }
    }
}
