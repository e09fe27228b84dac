//! A recipe of any bytes, applied to a model.
#![no_main]

use libfuzzer_sys::fuzz_target;
use requant::quant::QuantType;
use requant::recipe::{Facts, Options, Recipe, Shape, assign};

fuzz_target!(|text: &str| {
    let Ok(recipe) = Recipe::parse(text) else { return };
    let names: Vec<String> = (0..4).map(|i| format!("blk.{i}.ffn_down_exps.weight")).collect();
    let shape = |name, dims| Shape { name, dims, source: QuantType::F32, unmeasured: false };
    let mut shapes = vec![shape("output.weight", &[256, 8][..])];
    shapes.extend(names.iter().map(|name| shape(name, &[96, 8, 4])));
    let facts = Facts { n_layer: 4, n_head: 8, n_head_kv: 2, n_expert: 4, tied: false };
    let _ = assign(&shapes, &recipe, &facts, &Options::default());
});
