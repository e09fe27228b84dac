//! The forward pass on models of other shapes than the fixture's, against transformers in f32.
#![cfg(feature = "eval")]

use requant::eval;
use requant::model::{Model, Mtp};
use safetensors::SafeTensors;
use std::path::Path;

const SHAPES: &str = "tests/fixtures/shapes";

/// Largest difference of logits at every eighth position.
fn largest_error(name: &str) -> f32 {
    let bytes = std::fs::read(format!("{SHAPES}/logits.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| -> Vec<u32> {
        let data = reference.tensor(name).unwrap().data();
        data.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let (tokens, expected) = (words("tokens"), words(name));
    let folder = Path::new(SHAPES).join(name);
    let path =
        if folder.is_dir() { folder } else { Path::new(SHAPES).join(format!("{name}.gguf")) };
    let opened = Model::open(&path, Mtp::Drop).unwrap();
    let model = eval::Model::new(opened.hparams(), opened.source()).unwrap();
    let mut states = model.embed(&tokens).unwrap();
    for layer in 0..opened.hparams().n_layer {
        model.layer(layer, &mut states, tokens.len(), 1 << 28).unwrap();
    }
    let logits = model.logits(model.output_norm(states.view()).unwrap().view()).unwrap();
    let found: Vec<f32> = logits.rows().into_iter().skip(7).step_by(8).flatten().copied().collect();
    assert_eq!(found.len(), expected.len());
    let errors = found.iter().zip(&expected).map(|(f, &e)| (f - f32::from_bits(e)).abs());
    errors.fold(0.0, f32::max)
}

/// One test for each shape, so that a failure names it.
macro_rules! shapes {
    ($($test:ident: $name:literal,)*) => {$(
        #[test]
        fn $test() {
            let error = largest_error($name);
            assert!(error < 1e-3, "logits differ by {error}");
        }
    )*};
}

shapes! {
    expert_groups_and_two_shared_experts: "groups",
    direct_queries_and_no_shared_expert: "direct",
    temperatures_of_rope_and_scores_differ: "mscale",
    yarn_without_temperatures: "plain-yarn",
    dense_layers_and_a_tied_output: "dense",
    ragged_fp8_blocks: "ragged-fp8",
    v2_lite_from_gguf: "v2-lite",
    v2_with_groups_from_gguf: "v2",
}
