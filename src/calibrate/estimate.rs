//! What a calibration will take, from the plan, the shapes of its tensors and short trials.

use super::layers::{Calibration, InputsOf, Target, runner, stage_of, targets};
use super::watching::{Place, kept_at_once, most_of_a_part, part, same_inputs};
use crate::convert::Plan;
use crate::eval::{EvalError, of_layers};
use crate::model::Moe;
use crate::source::{Overlay, Source};
use crate::tensor::TensorName;
use std::collections::BTreeMap;

/// Seconds of processor time that the text will take on its way through a model, from short trials.
///
/// # Errors
/// Weights that cannot be read.
pub fn seconds_of_text(
    plan: &Plan,
    source: &dyn Source,
    calibration: &Calibration,
) -> Result<f64, EvalError> {
    let Calibration { hparams, tokens, ref text, simd, .. } = *calibration;
    let n_tokens = text.checked_chunks(tokens)? * text.ctx;
    let seconds = |source: &dyn Source| {
        let model = runner(hparams, source, simd)?;
        of_layers(&model, &model.embed(&tokens[..text.ctx])?, n_tokens, text, false)
    };
    let [attention, feed_forward] = seconds(source)?;
    if calibration.inputs == InputsOf::Original {
        return Ok(attention + feed_forward);
    }
    // Blocks of nothing but zeros take as long as others.
    let mut changed = Overlay::new(source, simd);
    for Target { tensor, ty, place } in targets(plan) {
        let row_bytes = ty.row_bytes(plan.tensors()[tensor].n_per_row() as usize).unwrap_or(0);
        changed.set_written(place.source, ty, move |rows, out| {
            out.resize((rows.end - rows.start) as usize * row_bytes, 0);
            Ok(())
        });
    }
    let [changed_attention, changed_feed_forward] = seconds(&changed)?;
    // Of three matrices of a feed-forward network, two are passed again for the inputs of the third, those of routed
    // experts once more for the moments of all.
    let again = if hparams.moe.is_some() { 4.0 / 3.0 } else { 2.0 / 3.0 };
    Ok(attention + changed_attention + (1.0 + again) * changed_feed_forward)
}

/// Floating-point operations, roughly, that a pass of so many tokens and second moments within the calibration's memory
/// take, and all rows that are rounded, each as the pairs of its columns that are known with each other, of which each
/// takes [`operations`].
pub fn work(plan: &Plan, calibration: &Calibration, tokens: u64) -> [u64; 3] {
    let Calibration { hparams, memory, inputs, .. } = *calibration;
    let [mut text, mut moments, mut rows] = [0; 3];
    let targets = targets(plan);
    let together = |name: TensorName| (name.layer, stage_of(name.kind, inputs));
    let mut widths: BTreeMap<_, Vec<(u64, u64)>> = BTreeMap::new();
    for Target { tensor, place: Place { name, .. }, .. } in &targets {
        if same_inputs(name.kind).is_empty() {
            let kept = kept_at_once(name.kind, &plan.tensors()[*tensor].dims);
            widths.entry(together(*name)).or_default().push(kept);
        }
    }
    let most: BTreeMap<_, _> =
        widths.into_iter().map(|(at, all)| (at, most_of_a_part(&all, memory))).collect();
    for target in targets {
        let planned = &plan.tensors()[target.tensor];
        let (n, all) = (planned.n_per_row(), planned.n_elements());
        let kind = target.place.name.kind;
        let routed = |moe: &&Moe| kind.is_routed() && moe.n_expert > 0;
        let share = |all: u64| match hparams.moe.as_ref().filter(routed) {
            Some(moe) => all / u64::from(moe.n_expert) * u64::from(moe.n_used),
            None => all,
        };
        text += 2 * share(all) * tokens;
        let part = part(n, most.get(&together(target.place.name)).copied().unwrap_or(0));
        if same_inputs(kind).is_empty() {
            let matrices = planned.dims.get(2).copied().unwrap_or(1);
            moments += n * part * share(matrices) * tokens;
        }
        rows += part * all;
    }
    [text, moments, rows]
}

/// Floating-point operations that rounding a row takes for each pair of its columns: errors as the reference rounds,
/// twice, of which half is seldom needed, compensated once, and again with all columns in each sweep.
pub fn operations(sweeps: usize) -> u64 {
    2 + 2 * sweeps as u64
}
