//! What a checkpoint says about how its weights are quantized: config.json's `quantization_config`, or
//! ModelOpt's hf_quant_config.json.
//!
//! Tensors say more, and more reliably: names, dtypes and shapes decide how weights are read. What is
//! declared helps where shapes leave a choice, and gives messages a name for the format.

use super::error::CheckpointError;
use crate::json;
use serde_json::Value;
use std::path::Path;

/// What is declared.
#[derive(Default)]
pub(super) struct Declared {
    /// `quant_method`, or the producer that hf_quant_config.json names.
    pub method: Option<String>,
    /// Rows and columns that share a scale, for each way that is declared.
    pub blocks: Vec<[usize; 2]>,
}

impl Declared {
    /// Reads it.
    pub fn of(dir: &Path) -> Result<Self, CheckpointError> {
        let path = dir.join("config.json");
        let config: Value = json::read(&path)?;
        let declared = ["quantization_config", "compression_config"]
            .into_iter()
            .find_map(|key| config.get(key).filter(|value| value.is_object()));
        let Some(declared) = declared else {
            let beside = dir.join("hf_quant_config.json");
            let producer = match beside.is_file() {
                true => {
                    json::read::<Value>(&beside)?["producer"]["name"].as_str().map(str::to_owned)
                }
                false => None,
            };
            return Ok(Self { method: producer, blocks: Vec::new() });
        };
        let mut blocks = Vec::new();
        let size = &declared["weight_block_size"];
        if !size.is_null() {
            blocks.push(pair(size).ok_or_else(|| CheckpointError::Quantization {
                path,
                key: "weight_block_size",
                found: size.to_string(),
                expected: "two positive integers",
            })?);
        }
        for group in declared["config_groups"].as_object().into_iter().flat_map(|all| all.values())
        {
            let weights = &group["weights"];
            let width = weights["group_size"].as_u64().filter(|&n| n > 0);
            blocks.extend(pair(&weights["block_structure"]));
            blocks.extend(width.map(|n| [1, n as usize]));
        }
        let method = declared["quant_method"].as_str().unwrap_or("unnamed");
        Ok(Self { method: Some(method.to_owned()), blocks })
    }
}

/// Two positive integers.
fn pair(value: &Value) -> Option<[usize; 2]> {
    let numbers: Option<Vec<usize>> =
        value.as_array()?.iter().map(|n| usize::try_from(n.as_u64()?).ok()).collect();
    <[usize; 2]>::try_from(numbers?).ok().filter(|pair| pair.iter().all(|&n| n > 0))
}
