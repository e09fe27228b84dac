//! How probable given tokens are after given others: what multiple choice is decided by.

use super::error::EvalError;
use super::model::Model;
use super::perplexity::PerplexityOptions;
use super::vocabulary::{self, Side};
use super::walk::{Walk, identity};
use crate::monitor::Monitor;

/// Sequences of tokens that see nothing of each other.
#[derive(Clone, Debug, Default)]
pub struct Sequences {
    /// Their tokens, BOS included.
    pub tokens: Vec<Vec<u32>>,
    /// What is asked: the probability of a token after those of a sequence up to a place, inclusive.
    pub asked: Vec<Asked>,
}

/// A token after a place of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The sequence.
    pub sequence: usize,
    /// The place of the last token that is seen.
    pub place: usize,
    /// The token that is to come next, or not.
    pub token: u32,
}

/// The shortest room that sequences are given.
const LEAST: usize = 32;

impl Sequences {
    /// Sequences of about the same length, which pass together: the room of each, and which they are.
    pub(crate) fn rooms(&self) -> Vec<(usize, Vec<usize>)> {
        let room = |i: &usize| self.tokens[*i].len().next_power_of_two().max(LEAST);
        let mut order: Vec<usize> = (0..self.tokens.len()).collect();
        order.sort_by_key(room);
        let rooms = order.chunk_by(|a, b| room(a) == room(b));
        rooms.map(|together| (room(&together[0]), together.to_vec())).collect()
    }

    /// Tokens that pass the model, with those that fill rooms up.
    pub fn n_tokens(&self) -> usize {
        self.rooms().iter().map(|(room, together)| room * together.len()).sum()
    }
}

/// The negative log-likelihood of all that is asked, in nats.
///
/// Sequences pass the model in groups of about the same length, filled up with tokens that nobody
/// before them sees. The monitor counts tokens times layers.
///
/// # Errors
/// Weights that cannot be read, tokens beyond the vocabulary, results that are not finite.
///
/// # Panics
/// When what is asked lies in no sequence.
pub fn continuations(
    model: &Model,
    sequences: &Sequences,
    options: &PerplexityOptions,
    monitor: &dyn Monitor,
) -> Result<Vec<f64>, EvalError> {
    let mut all = vec![0.0; sequences.asked.len()];
    for (ctx, together) in sequences.rooms() {
        let options = PerplexityOptions { ctx, chunks: None, bos: None, ..options.clone() };
        let mut tokens = vec![0; ctx * together.len()];
        let mut begins = vec![None; sequences.tokens.len()];
        for (i, (&sequence, room)) in together.iter().zip(tokens.chunks_mut(ctx)).enumerate() {
            let own = &sequences.tokens[sequence];
            room[..own.len()].copy_from_slice(own);
            begins[sequence] = Some(i * ctx);
        }
        let identity = identity(&[model], &tokens, &options);
        let mut walk = Walk::new(model, &tokens, together.len(), &options, identity)?;
        monitor.resume(walk.begin()?);
        for layer in 0..model.hparams().n_layer {
            walk.layer(layer, monitor)?;
        }
        let asked: Vec<(usize, usize, u32)> = (sequences.asked.iter().enumerate())
            .filter_map(|(i, asked)| Some((i, begins[asked.sequence]? + asked.place, asked.token)))
            .collect();
        for group in asked.chunks(vocabulary::ROWS) {
            let places: Vec<usize> = group.iter().map(|asked| asked.1).collect();
            let targets: Vec<u32> = group.iter().map(|asked| asked.2).collect();
            let normed = walk.normed_at(&places)?;
            let side = Side::States(model.output(), normed.view());
            let scores = vocabulary::score(model.simd(), side, &[], &targets).map_err(|bad| {
                let place = places[bad.row];
                bad.error(model, place)
            })?;
            group.iter().zip(scores.nll).for_each(|(asked, nll)| all[asked.0] = nll);
            if monitor.cancelled() {
                return Err(EvalError::Cancelled);
            }
        }
        monitor.advance(tokens.len() as u64);
    }
    Ok(all)
}
