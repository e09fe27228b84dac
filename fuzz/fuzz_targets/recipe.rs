//! A recipe of any bytes, applied to a model.
#![no_main]

use libfuzzer_sys::fuzz_target;
use requant::quant::QuantType;
use requant::recipe::{Facts, Options, Recipe, Shape, assign};

fuzz_target!(|text: &str| {
    let Ok(recipe) = Recipe::parse(text) else { return };
    let names: Vec<String> = (0..4).map(|i| format!("blk.{i}.ffn_down_exps.weight")).collect();
    let mut shapes = vec![Shape { name: "output.weight", dims: &[256, 8], source: QuantType::F32 }];
    shapes.extend(
        names.iter().map(|name| Shape { name, dims: &[96, 8, 4], source: QuantType::F32 }),
    );
    let facts = Facts { n_layer: 4, n_head: 8, n_head_kv: 2, n_expert: 4, tied: false };
    let _ = assign(&shapes, &recipe, &facts, &Options::default());
});
