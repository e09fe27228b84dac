//! How many tokens pass through a layer together, from the memory that intermediate results may
//! take. The number of threads has no say, so that it does not change results.

use super::feed_forward::WAVE;
use crate::model::{Attention, Hparams};

/// Beyond this many tokens, decoding weights once for all no longer shows in the time, but results
/// that leave the caches do.
const ENOUGH: usize = 2048;

/// Chunks that a layer's experts are decoded for once.
pub(super) fn batch(hparams: &Hparams, ctx: usize, memory: usize) -> usize {
    (memory / 4 / values_of_batch(hparams) / ctx).max(1)
}

/// A token takes its normalised state and the sum of its experts' outputs, and its share of the experts
/// that run at the same time.
fn values_of_batch(hparams: &Hparams) -> usize {
    let embd = hparams.n_embd as usize;
    let experts = hparams.moe.as_ref().map_or(0, |moe| {
        let share = moe.n_used as usize * WAVE.min(moe.n_expert as usize);
        (share * 2 * (embd + moe.n_ff as usize)).div_ceil(moe.n_expert as usize)
    });
    2 * embd + experts
}

/// Tokens, in whole chunks, of a batch that take the rest of a layer together.
pub(super) fn part(hparams: &Hparams, ctx: usize, memory: usize) -> usize {
    ((memory / 4 / values_of_part(hparams, ctx)).min(ENOUGH) / ctx).max(1) * ctx
}

/// A token takes attention with its queries and outputs of all heads, or a dense layer with its two hidden
/// rows, and a bit for each token of its chunk where an indexer chooses.
fn values_of_part(hparams: &Hparams, ctx: usize) -> usize {
    let [embd, ff] = [hparams.n_embd, hparams.n_ff].map(|n| n as usize);
    let shared = hparams.moe.as_ref().map_or(0, |moe| moe.n_ff as usize * moe.n_shared as usize);
    let attention = 2 * embd
        + match &hparams.attention {
            Attention::Latent(a) => {
                let chosen = a.indexer.map_or(0, |_| ctx.div_ceil(32));
                a.n_head as usize * (a.qk_nope + a.qk_rope + a.v_head) as usize + chosen
            }
            Attention::Grouped(a) => 2 * (a.n_head + a.n_head_kv) as usize * a.head_dim as usize,
        };
    attention.max(2 * ff.max(shared)) + 2 * embd
}

/// Bytes that so many tokens take at most on their way through a layer, beside their states.
pub(super) fn bytes(hparams: &Hparams, ctx: usize, memory: usize, n_tokens: usize) -> u64 {
    let batch = batch(hparams, ctx, memory) * ctx;
    let values = batch.min(n_tokens) * values_of_batch(hparams)
        + part(hparams, ctx, memory).min(n_tokens) * values_of_part(hparams, ctx);
    4 * values as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Arch, Gating, Latent, Moe, Rope};

    #[test]
    fn r1_takes_many_chunks_within_a_gibibyte() {
        let r1 = Hparams {
            arch: Arch::DeepSeek2,
            n_layer: 61,
            n_nextn: 0,
            context_length: 163_840,
            n_embd: 7168,
            n_ff: 18432,
            n_vocab: 129_280,
            rms_eps: 1e-6,
            attention: Attention::Latent(Latent {
                indexer: None,
                mla: Default::default(),
                n_head: 128,
                q_lora_rank: Some(1536),
                kv_lora_rank: 512,
                qk_nope: 128,
                qk_rope: 64,
                v_head: 128,
            }),
            rope: Rope { freq_base: 10000.0, yarn: None },
            moe: Some(Moe {
                leading_dense: 3,
                n_expert: 256,
                n_used: 8,
                n_shared: 1,
                n_group: 8,
                n_group_used: 4,
                n_ff: 2048,
                gating: Gating::Sigmoid,
                norm_weights: true,
                weights_scale: 2.5,
            }),
        };
        assert_eq!(batch(&r1, 512, 1 << 30), 22);
        assert_eq!(part(&r1, 512, 1 << 30), 4 * 512);
        assert_eq!(part(&r1, 512, 512 << 20), 3 * 512);
        assert_eq!((batch(&r1, 512, 1), part(&r1, 512, 1)), (1, 512));
    }
}
