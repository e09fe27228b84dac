//! How a text is cut and how models run over it, and what that means in memory.

use super::{MeasureError, Subject};
use crate::convert::Shard;
use crate::eval::{Activations, PerplexityOptions, Scratch};
use crate::io::memory;
use crate::simd::Simd;
use std::time::Duration;

/// How a text is cut and how models run over it.
#[derive(Clone)]
pub struct Options {
    /// Tokens per chunk.
    pub ctx: usize,
    /// Chunks at the beginning of each text that are left out.
    pub first_chunk: usize,
    /// Chunks at most, from there on.
    pub chunks: Option<usize>,
    /// In which precision activations meet weights.
    pub activations: Activations,
    /// Name of the pre-tokenizer of a checkpoint, where its user knows better than its files.
    pub tokenizer_pre: Option<String>,
    /// The instructions of the forward pass. Products with others are rounded elsewhere.
    pub simd: Simd,
    /// Threads; 0 for as many as there are processors.
    pub threads: usize,
    /// Where hidden states wait between layers and are kept when a measurement is stopped; in memory
    /// where there is none. [`Scratch::finish`] is left to whoever has made the results safe.
    pub scratch: Option<Scratch>,
    /// Memory to keep within, about, in bytes; by default some 2 GiB and the hidden states, or three quarters
    /// of what may be used where that is less.
    pub memory: Option<u64>,
    /// The share of one of several machines: a range of the chunks, or some of the groups of tensors whose
    /// sensitivities are measured. All of them without.
    pub share: Option<Shard>,
    /// Take chunks from all over the text until the standard error of what is measured is this part of
    /// its mean: of the KL divergence of each model, or of the negative log-likelihood where there is one
    /// model alone.
    pub until_error: Option<f64>,
    /// Take chunks from all over the text for so long, and give what was found by then.
    pub time_limit: Option<Duration>,
    /// Which chunks come first, where not all may be needed.
    pub seed: u64,
}

impl Default for Options {
    /// Chunks of 512 tokens, all of them, in f32 on all processors, with the best instructions of this machine.
    fn default() -> Self {
        Self {
            ctx: PerplexityOptions::default().ctx,
            first_chunk: 0,
            chunks: None,
            activations: Activations::F32,
            tokenizer_pre: None,
            simd: Simd::detect(),
            threads: 0,
            scratch: None,
            memory: None,
            share: None,
            until_error: None,
            time_limit: None,
            seed: 0,
        }
    }
}

/// What everything takes beside states and products: code, tables, decoded weights and logits.
const OVERHEAD: u64 = 256 << 20;

/// The least that the products of a batch may take.
const LEAST_WORK: u64 = 32 << 20;

impl Options {
    /// The settings for models that run together over a text.
    pub(super) fn settings(
        &self,
        subjects: &[Subject],
        n_tokens: usize,
        bos: Option<u32>,
    ) -> Result<PerplexityOptions, MeasureError> {
        self.check()?;
        let mut settings = PerplexityOptions {
            ctx: self.ctx,
            chunks: self.chunks,
            bos,
            scratch: self.scratch.clone(),
            ..PerplexityOptions::default()
        };
        let n = self.n_chunks(n_tokens) * self.ctx;
        let widths = subjects.iter().map(|s| u64::from(s.model.hparams().n_embd));
        let states = match self.scratch {
            Some(_) => 0,
            None => 4 * n as u64 * widths.sum::<u64>(),
        };
        let usual = OVERHEAD + states + 2 * settings.memory as u64;
        // A quarter is left to others, the system's cache of what is read among them.
        let most = memory().usable().map(|all| all / 4 * 3).filter(|&most| most < usual);
        if let Some(memory) = self.memory.or(most) {
            // One half is for the states of a batch and its products, one for a layer's own.
            let work = memory.saturating_sub(OVERHEAD + states) / 2;
            if work < LEAST_WORK {
                let needed = OVERHEAD + states + 2 * LEAST_WORK;
                return Err(MeasureError::Memory { memory, needed, states });
            }
            settings.memory = usize::try_from(work).unwrap_or(usize::MAX);
        }
        Ok(settings)
    }

    /// Whether the folder for hidden states is one.
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self) -> Result<(), MeasureError> {
        match self.scratch.as_ref().map(Scratch::folder) {
            Some(folder) if !folder.is_dir() => Err(MeasureError::NoFolder(folder.to_owned())),
            _ => Ok(()),
        }
    }

    /// Whether it may be that not all chunks are taken.
    pub(super) fn takes_some(&self) -> bool {
        self.until_error.is_some() || self.time_limit.is_some()
    }

    /// Whole chunks of a text that are used.
    pub(super) fn n_chunks(&self, n_tokens: usize) -> usize {
        (n_tokens / self.ctx.max(1)).min(self.chunks.unwrap_or(usize::MAX))
    }

    /// Does the work on threads of its own.
    pub(super) fn on_threads<T: Send>(
        &self,
        work: impl FnOnce() -> T + Send,
    ) -> Result<T, MeasureError> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.threads).build()?;
        Ok(pool.install(work))
    }
}
