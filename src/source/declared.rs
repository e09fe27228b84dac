//! What a checkpoint says about how its weights are quantized: config.json's `quantization_config`, or
//! ModelOpt's hf_quant_config.json.
//!
//! Tensors say more, and more reliably: names, dtypes and shapes decide how weights are read. What is
//! declared helps where shapes leave a choice, and gives messages a name for the format.

use super::error::CheckpointError;
use crate::json;
use crate::pattern::Pattern;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// What is declared.
#[derive(Default)]
pub(super) struct Declared {
    /// `quant_method`, or the producer that hf_quant_config.json names.
    pub method: Option<String>,
    /// How compressed-tensors packs what no group of modules says more of.
    format: Option<String>,
    /// Rows and columns that share a scale, if it is the same everywhere.
    block: Option<[usize; 2]>,
    /// compressed-tensors' groups of modules, each with a way to quantize.
    schemes: Vec<Scheme>,
    /// Modules that are in none.
    ignored: Vec<Target>,
    /// ModelOpt's way to quantize, and that of modules with another.
    algorithm: Option<String>,
    algorithms: BTreeMap<String, String>,
}

/// How the weights of a group of modules are quantized.
pub(super) struct Scheme {
    targets: Vec<Target>,
    format: Option<String>,
    /// Bits of an integer.
    pub bits: Option<u32>,
    /// Whether integers are counted from 0.
    pub symmetric: bool,
    /// Rows and columns that share a scale.
    pub block: Option<[usize; 2]>,
}

/// Which modules are meant.
enum Target {
    /// Those that are named or classified so.
    Word(String),
    /// Those whose names begin so.
    Names(Pattern),
}

impl Declared {
    /// Reads it.
    pub fn of(dir: &Path) -> Result<Self, CheckpointError> {
        let mut declared = Self::of_config(dir)?;
        let beside = dir.join("hf_quant_config.json");
        if beside.is_file() && (declared.algorithm.is_none() || declared.algorithms.is_empty()) {
            let beside: Value = json::read(&beside)?;
            if declared.method.is_none() {
                declared.method = beside["producer"]["name"].as_str().map(str::to_owned);
            }
            declared.read_algorithms(&beside["quantization"]);
        }
        Ok(declared)
    }

    /// What config.json says.
    fn of_config(dir: &Path) -> Result<Self, CheckpointError> {
        let path = dir.join("config.json");
        let config: Value = json::read(&path)?;
        // A model for images and text may have it in the part for text.
        let places = [&config, &config["text_config"]];
        let declared = places.into_iter().find_map(|place| {
            let keys = ["quantization_config", "compression_config"].into_iter();
            keys.filter_map(|key| place.get(key)).find(|value| value.is_object())
        });
        let Some(declared) = declared else { return Ok(Self::default()) };
        let refuse = |key, found: &Value, expected| CheckpointError::Quantization {
            path: path.clone(),
            key,
            found: found.to_string(),
            expected,
        };
        let size = &declared["weight_block_size"];
        let block = pair(size);
        if !size.is_null() && block.is_none() {
            return Err(refuse("weight_block_size", size, "two positive integers"));
        }
        let targets = |key, list: &Value| -> Result<Vec<Target>, CheckpointError> {
            let targets = list.as_array().into_iter().flatten().map(Target::of);
            let targets: Option<Vec<Target>> = targets.collect();
            targets.ok_or_else(|| refuse(key, list, "names, classes and valid patterns"))
        };
        let groups = declared["config_groups"].as_object().into_iter().flat_map(|all| all.values());
        let scheme = |group: &Value| {
            let weights = &group["weights"];
            let width = weights["group_size"].as_u64().filter(|&n| n > 0);
            Ok(Scheme {
                targets: targets("config_groups.targets", &group["targets"])?,
                format: group["format"].as_str().map(str::to_owned),
                bits: weights["num_bits"].as_u64().and_then(|bits| u32::try_from(bits).ok()),
                symmetric: weights["symmetric"].as_bool().unwrap_or(true),
                block: pair(&weights["block_structure"]).or(width.map(|n| [1, n as usize])),
            })
        };
        let mut found = Self {
            method: Some(declared["quant_method"].as_str().unwrap_or("unnamed").to_owned()),
            format: declared["format"].as_str().map(str::to_owned),
            block,
            schemes: groups.map(scheme).collect::<Result<_, CheckpointError>>()?,
            ignored: targets("ignore", &declared["ignore"])?,
            ..Self::default()
        };
        found.read_algorithms(declared);
        Ok(found)
    }

    fn read_algorithms(&mut self, section: &Value) {
        if let Some(algorithm) = section["quant_algo"].as_str() {
            self.algorithm = Some(algorithm.to_owned());
        }
        for (module, how) in section["quantized_layers"].as_object().into_iter().flatten() {
            if let Some(algorithm) = how["quant_algo"].as_str() {
                let module = module.replace("language_model.", "");
                self.algorithms.insert(module, algorithm.to_owned());
            }
        }
    }

    /// ModelOpt's way to quantize a module: that of the innermost one around it that has its own.
    pub fn algorithm(&self, module: &str) -> Option<&str> {
        let mut around =
            std::iter::successors(Some(module), |module| Some(module.rsplit_once('.')?.0));
        let own = around.find_map(|module| self.algorithms.get(module));
        own.or(self.algorithm.as_ref()).map(String::as_str)
    }

    /// How a weight is quantized by what is declared: as the group says that names its module, or else
    /// one with a pattern for it, or else one for its class.
    pub fn scheme(&self, weight: &str) -> Option<&Scheme> {
        let module = weight.strip_suffix(".weight").unwrap_or(weight);
        let among = |targets: &[Target], rank| targets.iter().any(|t| t.rank(module) == Some(rank));
        if (0..3).any(|rank| among(&self.ignored, rank)) {
            return None;
        }
        (0..3).find_map(|rank| self.schemes.iter().find(|s| among(&s.targets, rank)))
    }

    /// Rows and columns that may share a scale in a weight, as far as it is declared.
    pub fn blocks(&self, weight: &str) -> Vec<[usize; 2]> {
        match self.scheme(weight).and_then(|scheme| scheme.block) {
            Some(block) => vec![block],
            None => {
                let of_schemes = self.schemes.iter().filter_map(|scheme| scheme.block);
                self.block.into_iter().chain(of_schemes).collect()
            }
        }
    }

    /// How compressed-tensors packs a weight.
    pub fn format(&self, weight: &str) -> Option<&str> {
        let of_scheme = self.scheme(weight).and_then(|scheme| scheme.format.as_deref());
        of_scheme.or(self.format.as_deref())
    }
}

impl Target {
    /// `None` for a pattern that is none, and for what is no text.
    fn of(value: &Value) -> Option<Self> {
        // As tensors are called here.
        let text = value.as_str()?.replace(r"language_model\.", "").replace("language_model.", "");
        Some(match text.strip_prefix("re:") {
            Some(pattern) => Self::Names(Pattern::parse(&format!("^(?:{pattern})")).ok()?),
            None => Self::Word(text),
        })
    }

    /// How closely a module is meant: by its name (0), by a pattern (1), by its class (2).
    fn rank(&self, module: &str) -> Option<u8> {
        // Nothing else that is quantized has a matrix.
        let class = if module.ends_with("embed_tokens") { "Embedding" } else { "Linear" };
        match self {
            Self::Word(word) if word == module => Some(0),
            Self::Names(pattern) => pattern.is_match(module).then_some(1),
            Self::Word(word) => (word == class || word == "Module").then_some(2),
        }
    }
}

/// Two positive integers, as a list or as `128x128`.
fn pair(value: &Value) -> Option<[usize; 2]> {
    let numbers: Option<Vec<usize>> = match value.as_str() {
        Some(text) => text.split('x').map(|n| n.parse().ok()).collect(),
        None => value.as_array()?.iter().map(|n| usize::try_from(n.as_u64()?).ok()).collect(),
    };
    <[usize; 2]>::try_from(numbers?).ok().filter(|pair| pair.iter().all(|&n| n > 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_name_counts_more_than_a_pattern_and_that_more_than_a_class() {
        let dir = tempfile::tempdir().unwrap();
        let group = |targets: Value, bits: u32, format: Value| json!({"targets": targets, "weights": {"num_bits": bits, "symmetric": bits != 5}, "format": format});
        let config = json!({"text_config": {"quantization_config": {
            "quant_method": "compressed-tensors", "format": "mixed-precision",
            "ignore": ["language_model.lm_head", "re:.*self_attn", "Embedding"],
            "config_groups": {
                "a": group(json!(["Linear"]), 8, json!("int-quantized")),
                "b": group(json!(["re:model.layers.1.*"]), 4, json!("pack-quantized")),
                "c": group(json!(["model.layers.1.mlp.up_proj"]), 5, Value::Null),
            },
        }}});
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let declared = Declared::of(dir.path()).unwrap();
        for (module, bits, format) in [
            ("model.layers.0.mlp.up_proj", Some(8), "int-quantized"),
            ("model.layers.1.mlp.down_proj", Some(4), "pack-quantized"),
            ("model.layers.1.mlp.up_proj", Some(5), "mixed-precision"),
            ("model.layers.1.self_attn.q_proj", None, "mixed-precision"),
            ("prefix.model.layers.1.mlp.down_proj", Some(8), "int-quantized"),
            ("lm_head", None, "mixed-precision"),
            ("model.embed_tokens", None, "mixed-precision"),
        ] {
            let weight = format!("{module}.weight");
            let scheme = declared.scheme(&weight);
            assert_eq!(scheme.and_then(|scheme| scheme.bits), bits, "{module}");
            assert_eq!(declared.format(&weight), Some(format), "{module}");
        }
        assert!(!declared.scheme("model.layers.1.mlp.up_proj.weight").unwrap().symmetric);
    }
}
