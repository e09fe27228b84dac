//! The way back: a GGUF model's tensors under the checkpoint's names and in its shapes, and the
//! configuration that describes them.

use super::GgufModel;
use super::arch::decoder::llama3_factors;
use super::error::ModelError;
use super::inventory::{From, TensorSpec};
use crate::source::{Source, SourceError};
use crate::tensor::{Kind, TensorName};
use serde_json::{Value, json};
use std::ops::Range;

/// A tensor of a checkpoint, made of those of a GGUF model.
pub struct Exported {
    /// Its name in the checkpoint.
    pub name: String,
    /// Extents, innermost first.
    pub dims: Vec<u64>,
    part: Part,
}

enum Part {
    /// Rows of a tensor, from this one on.
    Rows(usize, u64),
    /// Neighbours of each head go back into its halves.
    Halves(usize, u64),
    /// Keys, transposed, and values of each head under each other.
    Heads { keys: usize, values: usize, nope: u64, v: u64 },
}

impl Exported {
    /// Rows that are best read together.
    pub fn step(&self) -> u64 {
        match self.part {
            Part::Heads { nope, v, .. } => nope + v,
            _ => 1,
        }
    }

    /// Rows in all.
    pub fn n_rows(&self) -> u64 {
        self.dims.iter().skip(1).product()
    }

    /// Reads whole rows.
    ///
    /// # Errors
    /// Rows that cannot be read.
    pub fn read_rows(
        &self,
        source: &dyn Source,
        rows: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), SourceError> {
        let n = self.dims[0] as usize;
        let back = |at: u64, width: u64| {
            let (head, i) = (at / width * width, at % width);
            head + if i < width / 2 { 2 * i } else { 2 * (i - width / 2) + 1 }
        };
        match self.part {
            Part::Rows(tensor, first) => source.read_rows(tensor, first + rows.start, out),
            Part::Halves(tensor, width) if self.dims.len() == 1 => {
                let mut stored = vec![0.0; n];
                source.read_rows(tensor, 0, &mut stored)?;
                for (i, value) in (0..).zip(out) {
                    *value = stored[back(i, width) as usize];
                }
                Ok(())
            }
            Part::Halves(tensor, width) => rows
                .zip(out.chunks_exact_mut(n))
                .try_for_each(|(row, out)| source.read_rows(tensor, back(row, width), out)),
            Part::Heads { keys, values, nope, v } => {
                let mut key = vec![0.0; n * nope as usize];
                let mut of = None;
                for (row, out) in rows.zip(out.chunks_exact_mut(n)) {
                    let (head, i) = (row / (nope + v), row % (nope + v));
                    if i >= nope {
                        source.read_rows(values, head * v + i - nope, out)?;
                        continue;
                    }
                    if of != Some(head) {
                        source.read_rows(keys, head * n as u64, &mut key)?;
                        of = Some(head);
                    }
                    for (j, value) in out.iter_mut().enumerate() {
                        *value = key[j * nope as usize + i as usize];
                    }
                }
                Ok(())
            }
        }
    }
}

impl GgufModel {
    /// The tensors of a checkpoint of this model.
    ///
    /// # Errors
    /// A tensor that the architecture calls for is missing.
    pub fn exported(&self) -> Result<Vec<Exported>, ModelError> {
        let (hparams, source) = (&self.hparams, &self.source);
        let tied = source.find("output.weight").is_none();
        let mut specs = hparams.outer_tensors();
        specs.retain(|spec| spec.name.kind != Kind::Output || !tied);
        let layers = 0..hparams.n_layer + hparams.n_nextn;
        specs.extend(layers.flat_map(|layer| hparams.layer_tensors(layer)));
        let mut exported = Vec::new();
        for TensorSpec { name: spec, dims, from, optional } in specs {
            let name = spec.to_string();
            let Some(tensor) = source.find(&name) else {
                if optional {
                    continue;
                }
                let path = source.file().path().to_owned();
                return Err(ModelError::MissingTensor { path, tensor: name });
            };
            self.expect(tensor, &dims)?;
            let rows = dims.get(1).copied().unwrap_or(1);
            match from {
                From::Whole(name) => {
                    exported.push(Exported { name, dims, part: Part::Rows(tensor, 0) });
                }
                From::Stack { prefix, suffix } => {
                    for expert in 0..dims[2] {
                        let name = format!("{prefix}{expert}{suffix}");
                        let part = Part::Rows(tensor, expert * rows);
                        exported.push(Exported { name, dims: dims[..2].to_vec(), part });
                    }
                }
                From::Rotated { from, head_rows } => {
                    let part = Part::Halves(tensor, head_rows);
                    exported.push(Exported { name: from, dims, part });
                }
                From::HeadsTransposed { from, head_rows } => {
                    let values = TensorName { kind: Kind::AttnVB, ..spec }.to_string();
                    let Some(values) = source.find(&values) else {
                        let path = source.file().path().to_owned();
                        return Err(ModelError::MissingTensor { path, tensor: values });
                    };
                    let (nope, v) = (dims[0], head_rows - dims[0]);
                    self.expect(values, &[dims[1], v, dims[2]])?;
                    let part = Part::Heads { keys: tensor, values, nope, v };
                    let dims = vec![dims[1], head_rows.saturating_mul(dims[2])];
                    exported.push(Exported { name: from, dims, part });
                }
                // The keys have brought the values along.
                From::HeadRows { .. } | From::Computed(_) => {}
            }
        }
        Ok(exported)
    }

    /// Makes sure that a tensor has the shape that the hyper-parameters give it.
    fn expect(&self, tensor: usize, expected: &[u64]) -> Result<(), ModelError> {
        let meta = &self.source.tensors()[tensor];
        let extents = |dims: &[u64]| std::array::from_fn(|i| dims.get(i).copied().unwrap_or(1));
        let [found, wanted]: [[u64; 4]; 2] = [&meta.dims, expected].map(extents);
        match found == wanted {
            true => Ok(()),
            false => Err(ModelError::Shape {
                path: self.source.file().path().to_owned(),
                tensor: meta.name.clone(),
                found: meta.dims.iter().rev().copied().collect(),
                expected: expected.iter().rev().copied().collect(),
            }),
        }
    }

    /// config.json, but for what the tokenizer knows.
    ///
    /// # Errors
    /// Rotary factors that no setting gives.
    pub fn config_json(&self) -> Result<Value, ModelError> {
        let h = &self.hparams;
        let mut config = json!({
            "architectures": [], "model_type": null,
            "hidden_act": "silu", "hidden_size": h.n_embd, "intermediate_size": h.n_ff,
            "max_position_embeddings": h.context_length,
            "num_attention_heads": h.attention.n_head(), "num_hidden_layers": h.n_layer,
            "rms_norm_eps": short(h.rms_eps), "rope_theta": short(h.rope.freq_base),
            "tie_word_embeddings": self.source.find("output.weight").is_none(),
            "vocab_size": h.n_vocab,
        });
        if let Some(yarn) = &h.rope.yarn {
            let mut scaling = json!({
                "type": "yarn", "rope_type": "yarn", "factor": short(yarn.factor),
                "original_max_position_embeddings": yarn.original_context,
            });
            for (name, value) in [("beta_fast", yarn.beta_fast), ("beta_slow", yarn.beta_slow)] {
                let key = format!("{}.rope.scaling.yarn_{name}", h.arch.name());
                if self.source.metadata().get(&key).is_some() {
                    scaling[name] = short(value);
                }
            }
            config["rope_scaling"] = scaling;
        }
        let [class, model_type] = (h.arch.row().describe)(h, &mut config);
        config["architectures"] = json!([class]);
        config["model_type"] = model_type.into();
        if let Some(tensor) = self.source.find("rope_freqs.weight") {
            config["rope_scaling"] = self.llama3(tensor)?;
        }
        Ok(config)
    }

    /// The settings of Llama 3's rotary embedding that give these factors.
    fn llama3(&self, tensor: usize) -> Result<Value, ModelError> {
        let meta = &self.source.tensors()[tensor];
        let n = (meta.n_per_row() * meta.n_rows()) as usize;
        let mut found = vec![0.0; n];
        let path = || self.source.file().path().to_owned();
        let bad = || ModelError::Key { path: path(), key: "rope_freqs.weight".to_owned() };
        self.source.read_rows(tensor, 0, &mut found).map_err(|_| bad())?;
        let factor = found.iter().copied().fold(1.0, f32::max);
        for context in (4..20).map(|power| 1u32 << power) {
            let made =
                llama3_factors(self.hparams.rope.freq_base, n, factor, 1.0, 4.0, context.into());
            if made.iter().zip(&found).all(|(a, b)| (a - b).abs() <= 1e-5 * b) {
                return Ok(json!({
                    "rope_type": "llama3", "factor": short(factor), "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0, "original_max_position_embeddings": context,
                }));
            }
        }
        Err(bad())
    }
}

/// A number as short as its precision allows: 0.1, where the f32 is 0.10000000149.
pub(super) fn short(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}
