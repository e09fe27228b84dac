//! Which tensors go into which file of the output.

use super::error::ConvertError;
use super::plan::{PlannedFile, PlannedTensor};
use super::settings::{Limit, SplitBy};
use crate::gguf::{ALIGNMENT, Layout, Metadata, Split};
use crate::source::Source;
use std::borrow::Cow;
use std::ops::Range;

/// The files. The first has the metadata; the others, what says that they are parts.
pub(super) fn files(
    source: &dyn Source,
    tensors: &[PlannedTensor],
    metadata: &Metadata,
    split: Option<SplitBy>,
) -> Result<Vec<PlannedFile>, ConvertError> {
    let ranges = match split {
        None => std::iter::once(0..tensors.len()).collect(),
        Some(SplitBy::Source) => by_source_file(source, tensors),
        Some(SplitBy::Limit { limit, no_tensor_first }) => {
            by_limit(tensors, limit, no_tensor_first, metadata.alignment()?)
        }
    };
    let count = u16::try_from(ranges.len())
        .map_err(|_| ConvertError::TooManyFiles { count: ranges.len() })?;
    let n_tensors = i32::try_from(tensors.len()).unwrap_or(i32::MAX);
    let file = |(range, no): (Range<usize>, u16)| {
        let mut of_file = match no {
            0 => Cow::Borrowed(metadata),
            _ => Cow::Owned(Metadata::new()),
        };
        let keys = Split { no, count, n_tensors };
        match split {
            None => {}
            // As llama-quantize --keep-split, which knows no split of one file.
            Some(SplitBy::Source) if count < 2 => {}
            Some(SplitBy::Source) => keys.write_counts_last(of_file.to_mut()),
            Some(SplitBy::Limit { .. }) => keys.write(of_file.to_mut()),
        }
        let infos = tensors[range.clone()].iter().map(|t| (t.name.clone(), t.dims.clone(), t.ty));
        Ok(PlannedFile { layout: Layout::new(&of_file, infos)?, tensors: range })
    };
    ranges.into_iter().zip(0..).map(file).collect()
}

/// Cuts as llama-gguf-split does: sizes are those of the tensors with their padding, and the
/// number of tensors is counted over all files. A tensor larger than the limit gets a file of its
/// own. The alignment is that of the first file, which holds its key.
fn by_limit(
    tensors: &[PlannedTensor],
    limit: Limit,
    no_tensor_first: bool,
    alignment: u64,
) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    if no_tensor_first {
        ranges.push(0..0);
    }
    let (mut start, mut size) = (0, 0u64);
    for (i, tensor) in tensors.iter().enumerate() {
        let padded = |alignment: u64| {
            let bytes = tensor.ty.n_bytes(&tensor.dims).unwrap_or(0);
            bytes.checked_next_multiple_of(alignment.max(ALIGNMENT)).unwrap_or(u64::MAX)
        };
        let bytes = padded(if ranges.is_empty() { alignment } else { ALIGNMENT });
        let full = match limit {
            Limit::Tensors(n) => (i as u64).is_multiple_of(n),
            Limit::Bytes(n) => bytes.saturating_add(size) > n,
        };
        if full && i > start {
            ranges.push(start..i);
            (start, size) = (i, padded(ALIGNMENT));
        } else {
            size = bytes.saturating_add(size);
        }
    }
    ranges.push(start..tensors.len());
    ranges
}

/// Cuts where the source is cut; tensors are in its order.
fn by_source_file(source: &dyn Source, tensors: &[PlannedTensor]) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = vec![0..0; source.files().len().max(1)];
    let mut at = 0;
    for (file, range) in ranges.iter_mut().enumerate() {
        let start = at;
        while at < tensors.len() && source.file_of(tensors[at].source) == file {
            at += 1;
        }
        *range = start..at;
    }
    ranges
}
