//! From the types of a file's tensors back to a recipe.

use super::assign::{layer_and_kind, layer_of};
use super::file_type::FileType;
use super::rules::Recipe;
use crate::names::runs;
use crate::quant::QuantType;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct File<'a, R> {
    name: &'a str,
    file_type: String,
    default: &'static str,
    rule: Vec<R>,
}

#[derive(Serialize)]
struct Rule {
    tensors: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<String>,
    r#type: &'static str,
}

/// A recipe that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Its text.
    pub text: String,
    /// The rules that it took to say it, those of a mix left out.
    pub rules: usize,
}

/// A tensor that is quantized.
#[derive(Clone, Copy, Debug)]
pub struct Quantized<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its weights.
    pub weights: u64,
    /// Its type.
    pub ty: QuantType,
}

/// A recipe that gives tensors the types that they have here. Layers that differ from most of their kind are
/// listed.
pub fn recover(name: &str, file_type: FileType, tensors: &[Quantized]) -> Recovered {
    let mut weights: BTreeMap<QuantType, u64> = BTreeMap::new();
    let mut kinds: BTreeMap<&str, BTreeMap<QuantType, Vec<Option<u32>>>> = BTreeMap::new();
    for tensor in tensors {
        *weights.entry(tensor.ty).or_default() += tensor.weights;
        let (layer, kind) = layer_and_kind(tensor.name);
        let types = kinds.entry(kind).or_default();
        types.entry(tensor.ty).or_default().push(layer);
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
            rule.push(Rule::new(kind, &layers, i < last, ty));
        }
    }
    let rules = rule.len();
    let file = File { name, file_type: file_type.to_string(), default: default.name(), rule };
    Recovered { text: toml::to_string(&file).expect("strings and tables can be written"), rules }
}

/// A mix, with rules before its own for the tensors that are not of the type that it `would` give them.
///
/// # Panics
/// When there are not as many types as tensors.
pub fn amend(name: &str, mix: FileType, tensors: &[Quantized], would: &[QuantType]) -> Recovered {
    assert_eq!(tensors.len(), would.len());
    let mut kinds: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, tensor) in tensors.iter().enumerate() {
        kinds.entry(layer_and_kind(tensor.name).1).or_default().push(i);
    }
    let mut rules = Vec::new();
    for (kind, of_kind) in kinds {
        let all_alike = of_kind.iter().all(|&i| tensors[i].ty == tensors[of_kind[0]].ty);
        let mut types: BTreeMap<QuantType, Vec<Option<u32>>> = BTreeMap::new();
        for &i in of_kind.iter().filter(|&&i| tensors[i].ty != would[i]) {
            types.entry(tensors[i].ty).or_default().push(layer_of(tensors[i].name));
        }
        rules.extend(types.iter().map(|(&ty, layers)| Rule::new(kind, layers, !all_alike, ty)));
    }
    let n = rules.len();
    let own = rules.into_iter().map(|rule| toml::Value::try_from(rule).expect("strings"));
    let recipe = mix.recipe();
    let of_mix: toml::Table = recipe.parse().expect("the recipes that are shipped can be read");
    let of_mix = of_mix.get("rule").and_then(toml::Value::as_array).into_iter().flatten().cloned();
    let default = Recipe::of(mix).default_type().name();
    let rule = own.chain(of_mix).collect();
    let file = File { name, file_type: mix.to_string(), default, rule };
    Recovered { text: toml::to_string(&file).expect("strings and tables can be written"), rules: n }
}

impl Rule {
    /// For tensors of a kind in all layers, or in these alone.
    fn new(kind: &str, layers: &[Option<u32>], listed: bool, ty: QuantType) -> Self {
        let mut layers: Vec<u32> = layers.iter().copied().flatten().collect();
        layers.sort_unstable();
        let prefix = if layers.is_empty() { "^" } else { r"^blk\.\d+\." };
        Self {
            tensors: format!("{prefix}{}$", fancy_regex::escape(kind)),
            layers: (listed && !layers.is_empty()).then(|| runs(layers).replace(',', ", ")),
            r#type: ty.name(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;

    #[test]
    fn layers_are_listed_where_a_kind_has_several_types() {
        use QuantType::{Q4_K, Q6_K, Q8_0};
        let of = |name, weights, ty| Quantized { name, weights, ty };
        let mut tensors = vec![of("output.weight", 8, Q6_K)];
        let names: Vec<String> = (0..6).map(|i| format!("blk.{i}.ffn_up.weight")).collect();
        for (i, name) in names.iter().enumerate() {
            tensors.push(of(name, 8, if [0, 1, 5].contains(&i) { Q8_0 } else { Q4_K }));
        }
        tensors.push(of("blk.0.attn_q.weight", 80, Q4_K));
        let Recovered { text, rules } = recover("it's", FileType::Q4_K_M, &tensors);
        assert!(text.contains("layers = \"0-1, 5\""), "{text}");
        assert_eq!((text.matches("[[rule]]").count(), rules), (2, 2), "{text}");
        let recipe = Recipe::parse(&text).unwrap();
        assert_eq!((recipe.name(), recipe.default_type()), ("it's", Q4_K));

        // All but the output as Q4_0, of which it is Q6_K already.
        let would: Vec<QuantType> =
            tensors.iter().map(|t| if t.ty == Q6_K { Q6_K } else { QuantType::Q4_0 }).collect();
        let Recovered { text, rules } = amend("mine", FileType::Q4_0, &tensors, &would);
        assert_eq!(rules, 3, "{text}");
        assert!(
            text.contains("layers = \"0-1, 5\"") && text.contains("layers = \"2-4\""),
            "{text}"
        );
        let recipe = Recipe::parse(&text).unwrap();
        assert_eq!((recipe.name(), recipe.default_type()), ("mine", QuantType::Q4_0));
    }
}
