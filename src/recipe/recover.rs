//! From the types of a file's tensors back to a recipe.

use super::assign::layer_of;
use super::file_type::FileType;
use crate::quant::QuantType;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct File<'a> {
    name: &'a str,
    file_type: String,
    default: &'static str,
    rule: Vec<Rule>,
}

#[derive(Serialize)]
struct Rule {
    tensors: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<String>,
    r#type: &'static str,
}

/// The text of a recipe that gives tensors the types that they have here: name, weights and type
/// of those that are quantized. Layers that differ from most of their kind are listed.
pub fn recover(name: &str, file_type: FileType, tensors: &[(&str, u64, QuantType)]) -> String {
    let mut weights: BTreeMap<QuantType, u64> = BTreeMap::new();
    let mut kinds: BTreeMap<&str, BTreeMap<QuantType, Vec<Option<u32>>>> = BTreeMap::new();
    for &(name, n, ty) in tensors {
        *weights.entry(ty).or_default() += n;
        let layer = layer_of(name);
        let kind = match layer {
            Some(_) => name.splitn(3, '.').nth(2).unwrap_or_default(),
            None => name,
        };
        kinds.entry(kind).or_default().entry(ty).or_default().push(layer);
    }
    let most = weights.iter().max_by_key(|(_, n)| **n);
    let default = most.map_or(file_type.default_type(), |(ty, _)| *ty);
    let mut rule = Vec::new();
    for (kind, types) in kinds {
        let mut types: Vec<_> = types.into_iter().collect();
        types.sort_by_key(|(_, layers)| layers.len());
        let last = types.len() - 1;
        for (i, (ty, layers)) in types.into_iter().enumerate() {
            // The most frequent type stands last, for the layers that are not named.
            if i == last && ty == default {
                continue;
            }
            let mut layers: Vec<u32> = layers.into_iter().flatten().collect();
            layers.sort_unstable();
            let prefix = if layers.is_empty() { "^" } else { r"^blk\.\d+\." };
            rule.push(Rule {
                tensors: format!("{prefix}{}$", fancy_regex::escape(kind)),
                layers: (i < last && !layers.is_empty()).then(|| ranges(&layers)),
                r#type: ty.name(),
            });
        }
    }
    let file = File { name, file_type: file_type.to_string(), default: default.name(), rule };
    toml::to_string(&file).expect("strings and tables can be written")
}

/// `0-2, 5`.
fn ranges(sorted: &[u32]) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &layer in sorted {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == layer => *last = layer,
            _ => ranges.push((layer, layer)),
        }
    }
    let text = |(first, last): &(u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;

    #[test]
    fn layers_are_listed_where_a_kind_has_several_types() {
        use QuantType::{Q4_K, Q6_K, Q8_0};
        let mut tensors = vec![("output.weight", 8, Q6_K)];
        let names: Vec<String> = (0..6).map(|i| format!("blk.{i}.ffn_up.weight")).collect();
        for (i, name) in names.iter().enumerate() {
            tensors.push((name, 8, if [0, 1, 5].contains(&i) { Q8_0 } else { Q4_K }));
        }
        tensors.push(("blk.0.attn_q.weight", 80, Q4_K));
        let text = recover("it's", FileType::Q4_K_M, &tensors);
        assert!(text.contains("layers = \"0-1, 5\""), "{text}");
        assert_eq!(text.matches("[[rule]]").count(), 2, "{text}");
        let recipe = Recipe::parse(&text).unwrap();
        assert_eq!((recipe.name(), recipe.default_type()), ("it's", Q4_K));
    }
}
