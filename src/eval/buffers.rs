//! Memory of results that are no longer needed, for those that come next.
//!
//! The system clears memory that it gives, and maps it page by page when it is first written: a tenth
//! of the time of a pass, were every result in memory of its own.

use ndarray::{Array2, ArrayView2};
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Smaller results are the allocator's affair: it keeps them itself.
const LARGE: usize = 1 << 15;
/// Values of buffers that wait to be used again, at least: 64 MiB.
const KEPT: usize = 1 << 24;

/// Buffers that wait.
struct Spare {
    /// The one given back last at the end.
    buffers: Vec<Vec<f32>>,
    /// Values of all, at most.
    most: usize,
}

static SPARE: Mutex<Spare> = Mutex::new(Spare { buffers: Vec::new(), most: KEPT });

fn spare() -> MutexGuard<'static, Spare> {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Spare {
    /// A buffer that holds so many values, but not twice as many: in the end all would be as large
    /// as the largest.
    fn take(&mut self, len: usize) -> Option<Vec<f32>> {
        let fits = |kept: &Vec<f32>| (len..2 * len).contains(&kept.capacity());
        let i = self.buffers.iter().rposition(fits).filter(|_| len >= LARGE)?;
        Some(self.buffers.remove(i))
    }

    fn put(&mut self, values: Vec<f32>) {
        if !(LARGE..=self.most).contains(&values.capacity()) {
            return;
        }
        self.buffers.push(values);
        while self.buffers.iter().map(Vec::capacity).sum::<usize>() > self.most {
            self.buffers.remove(0);
        }
    }
}

/// Rows whose memory is used again.
pub(super) struct Rows(Array2<f32>);

impl Rows {
    /// Rows to be written over: what is in them was left by others.
    pub fn new(rows: usize, columns: usize) -> Self {
        let len = rows * columns;
        let kept = spare().take(len);
        let mut values = kept.unwrap_or_else(|| vec![0.0; len]);
        values.resize(len, 0.0);
        Self(Array2::from_shape_vec((rows, columns), values).expect("as many values"))
    }

    /// A copy that is contiguous.
    pub fn copy(of: ArrayView2<f32>) -> Self {
        let mut rows = Self::new(of.nrows(), of.ncols());
        rows.assign(&of);
        rows
    }

    /// All values, row after row.
    pub fn values(&self) -> &[f32] {
        self.0.as_slice().expect("rows are contiguous")
    }

    /// All values, row after row.
    pub fn values_mut(&mut self) -> &mut [f32] {
        self.0.as_slice_mut().expect("rows are contiguous")
    }

    /// The rows, whose memory does not come back.
    pub fn into_array(mut self) -> Array2<f32> {
        std::mem::take(&mut self.0)
    }
}

impl Deref for Rows {
    type Target = Array2<f32>;

    fn deref(&self) -> &Array2<f32> {
        &self.0
    }
}

impl DerefMut for Rows {
    fn deref_mut(&mut self) -> &mut Array2<f32> {
        &mut self.0
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        let (values, _) = std::mem::take(&mut self.0).into_raw_vec_and_offset();
        spare().put(values);
    }
}

/// Lets as much memory wait as results of a pass within so many bytes call for: a quarter of them, and 64 MiB at
/// least. Products of bytes are so fast that pages that are new for each of their results cost an eighth of the time.
pub(super) fn keep_for(memory: usize) {
    spare().most = (memory / 4 / size_of::<f32>()).max(KEPT);
}

/// Gives back the memory that waits.
pub(super) fn release() {
    let mut spare = spare();
    spare.buffers.clear();
    spare.most = KEPT;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_for_about_their_size() {
        let mut spare = Spare { buffers: Vec::new(), most: KEPT };
        spare.put(vec![1.0; LARGE - 1]);
        assert!(spare.take(LARGE - 1).is_none());
        let large = vec![1.0; 3 * LARGE];
        let place = large.as_ptr();
        spare.put(large);
        assert!(spare.take(3 * LARGE + 1).is_none() && spare.take(LARGE).is_none());
        let taken = spare.take(2 * LARGE).unwrap();
        assert_eq!(taken.as_ptr(), place);
        assert!(spare.take(2 * LARGE).is_none());
        spare.put(vec![0.0; KEPT + 1]);
        assert!(spare.buffers.is_empty());
        for size in [KEPT / 2, KEPT / 4, KEPT / 2] {
            spare.put(vec![0.0; size]);
        }
        let lens: Vec<usize> = spare.buffers.iter().map(Vec::len).collect();
        assert_eq!(lens, [KEPT / 4, KEPT / 2]);
    }

    #[test]
    fn rows_have_their_shape_whatever_their_memory_held() {
        for rows in [300, 500, 400] {
            let mut all = Rows::new(rows, 128);
            assert_eq!((all.dim(), all.values().len()), ((rows, 128), rows * 128));
            all.fill(f32::NAN);
        }
        let of = Array2::from_shape_fn((128, 400), |(i, j)| (i * 400 + j) as f32);
        let copy = Rows::copy(of.t());
        assert_eq!((copy.view(), copy.values()[1]), (of.t(), 400.0));
    }
}
