//! What the memory of a calibration is shared out to. It follows from the model alone, so that bytes do not depend
//! on the number of threads.

use super::rows::ROWS;
use crate::model::{Attention, Hparams};

/// Bytes of memory for the parts of a calibration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// For the text on its way through a layer.
    pub text: u64,
    /// For second moments and their factors.
    pub moments: u64,
    /// For rows that are being rounded; a piece on each of two threads has room beside it.
    pub rows: u64,
}

/// What the program takes for itself.
const PROGRAM: u64 = 80 << 20;
/// A token of the vocabulary, as metadata, and in the tables of a tokenizer: as measured with 151,936 tokens.
const TOKEN: u64 = 1280;
/// Most that a text needs.
const ENOUGH_FOR_TEXT: u64 = 1 << 30;

impl Memory {
    /// Shares: of what the program, the vocabulary and two pieces of rows leave, a quarter is for the text, a
    /// sixteenth for more pieces, all else for moments.
    pub fn of(all: u64, hparams: &Hparams) -> Self {
        let fixed = PROGRAM + TOKEN * u64::from(hparams.n_vocab) + 2 * of_rows(widest(hparams));
        // Where that is more than there is, something must be left to work with.
        let left = all - fixed.min(all / 4 * 3);
        Self { text: (left / 4).min(ENOUGH_FOR_TEXT), moments: left / 16 * 11, rows: left / 16 }
    }
}

/// The longest rows of a layer's matrices.
fn widest(hparams: &Hparams) -> u64 {
    let heads = match &hparams.attention {
        Attention::Latent(a) => a.n_head * a.v_head,
        Attention::Grouped(a) => a.n_head * a.head_dim,
    };
    u64::from(hparams.n_embd.max(hparams.n_ff).max(heads))
}

/// Bytes that a piece of rows takes while it is rounded: weights, what is left of them as the reference rounds and
/// with compensation, products of one of these, as f32; what was read; blocks.
pub(super) fn of_rows(columns: u64) -> u64 {
    24 * ROWS as u64 * columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Model, Mtp};
    use std::path::Path;

    #[test]
    fn nothing_is_shared_out_twice() {
        let path = Path::new("tests/fixtures/reference/tiny-r1-bf16.gguf");
        let model = Model::open(path, Mtp::Drop).unwrap();
        let tiny = model.hparams();
        // What is widest in R1 are the rows of `ffn_down` in a dense layer.
        let r1 = Hparams { n_vocab: 129_280, n_embd: 7168, n_ff: 18_432, ..tiny.clone() };
        for (hparams, fixed) in [(tiny, 81 << 20), (&r1, 300 << 20)] {
            for all in [64 << 20, 400 << 20, 1 << 30, 1 << 32, 1 << 36] {
                let Memory { text, moments, rows } = Memory::of(all, hparams);
                assert!(text + moments + rows <= all - fixed.min(all / 4 * 3), "{all}");
                assert!(5 * (text + moments + rows) >= all, "{all}");
                assert!(text <= ENOUGH_FOR_TEXT);
            }
        }
    }
}
