//! The forward pass against transformers in f32, and against llama-perplexity.
#![cfg(feature = "eval")]

mod common;

use common::{HELDOUT, TINY_R1, json};
use ndarray::{ArrayView2, s};
use requant::eval::{
    Activations, EvalError, Model, Observer, Paired, Perplexity, PerplexityOptions, perplexity,
};
use requant::model::{self, Mtp};
use requant::recipe::FileType;
use requant::simd::Simd;
use requant::tokenizer::{Tokenizer, Vocab};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

fn open(path: &str) -> model::Model {
    model::Model::open(Path::new(path), Mtp::Drop).unwrap()
}

fn tokens() -> Vec<u32> {
    let dir = Path::new(TINY_R1);
    let vocab = Vocab::from_checkpoint(dir, &json("tests/fixtures/tiny-r1/config.json"), None);
    let tokenizer = Tokenizer::from_checkpoint(dir, &vocab.unwrap()).unwrap();
    tokenizer.encode(&std::fs::read_to_string(HELDOUT).unwrap()).unwrap()
}

fn evaluate(model: &model::Model, chunks: Option<usize>) -> Perplexity {
    evaluate_with(model, chunks, Activations::F32)
}

fn evaluate_with(
    model: &model::Model,
    chunks: Option<usize>,
    activations: Activations,
) -> Perplexity {
    let mut runner = Model::new(model.hparams(), model.source()).unwrap();
    runner.set_activations(activations);
    let options = PerplexityOptions { bos: Some(0), chunks, ..PerplexityOptions::default() };
    perplexity(&runner, &tokens(), &options, &()).unwrap()
}

#[test]
fn likelihoods_equal_transformers() {
    let reference = &json("tests/fixtures/reference/transformers.json")["heldout.txt"];
    let found = evaluate(&open(TINY_R1), None);
    let expected = reference["nll_per_chunk"].as_array().unwrap();
    assert_eq!(found.nll_per_chunk.len(), expected.len());
    for (chunk, (found, expected)) in found.nll_per_chunk.iter().zip(expected).enumerate() {
        let expected = expected.as_f64().unwrap();
        let error = (found - expected).abs() / expected;
        assert!(error < 1e-5, "chunk {chunk}: {found} instead of {expected}");
    }
    assert_eq!(found.tokens_scored, 75 * 255);
    let ppl = reference["perplexity"].as_f64().unwrap();
    assert!((found.perplexity / ppl - 1.0).abs() < 1e-6);
}

const CHUNK0: &str = "tests/fixtures/reference/transformers-chunk0.safetensors";

/// The tokens that transformers' states and logits belong to.
fn chunk0() -> Vec<u32> {
    let bytes = std::fs::read(CHUNK0).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor("tokens").unwrap();
    let width = tensor.data().len() / 512;
    let number = |b: &[u8]| u32::from_le_bytes(b[..4].try_into().unwrap());
    tensor.data().chunks_exact(width).map(number).collect()
}

#[test]
fn states_and_logits_equal_transformers() {
    let bytes = std::fs::read(CHUNK0).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let data = reference.tensor(name).unwrap().data();
        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let chunk = chunk0();
    let opened = open(TINY_R1);
    let model = Model::new(opened.hparams(), opened.source()).unwrap();
    let positions = s![256..264, ..];
    // Some states reach into the hundreds, so the bound follows their scale; logits have an
    // absolute one.
    let close = |found: ArrayView2<f32>, expected: &[f32], what: &str, bound: f32| {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < bound, "{what}: {found} instead of {expected}");
        }
    };
    let mut states = model.embed(&chunk).unwrap();
    for layer in 0..3 {
        close(
            states.slice(positions),
            &floats(&format!("hidden.{layer}")),
            "hidden states",
            [1e-6, 3e-3, 4e-3][layer as usize],
        );
        model.layer(layer, &mut states, 512, 1 << 28).unwrap();
    }
    let normed = model.output_norm(states.slice(positions)).unwrap();
    close(normed.view(), &floats("hidden.3"), "output norm", 1e-3);
    let logits = model.logits(normed.view()).unwrap();
    close(logits.view(), &floats("logits"), "logits", 1e-3);
}

/// Notes of each product, by tensor and matrix, the rows, and the sum of the elements times a number for
/// each column.
struct Products(Mutex<BTreeMap<(usize, usize), (usize, f64)>>);

impl Observer for Products {
    fn product(
        &self,
        tensor: usize,
        matrix: usize,
        _x: ArrayView2<f32>,
        y: ArrayView2<f32>,
    ) -> Result<(), EvalError> {
        let factor = |column: usize| ((column * 7919 + 13) % 1009) as f64 / 504.5 - 1.0;
        let terms = y.indexed_iter().map(|((_, column), &y)| f64::from(y) * factor(column));
        let mut products = self.0.lock().unwrap();
        let (rows, total) = products.entry((tensor, matrix)).or_default();
        *rows += y.nrows();
        *total += terms.sum::<f64>();
        Ok(())
    }

    fn seen(&self, _: u32) -> Vec<u8> {
        Vec::new()
    }

    fn take_up(&self, _: u32, _: &[u8]) -> Result<(), EvalError> {
        Ok(())
    }
}

/// Where tokens go astray: the first matrix of the model, in the order of its computation, whose product
/// is another than transformers'. Watching changes no bit of what is computed.
#[test]
fn every_product_is_transformers() {
    let reference = json("tests/fixtures/reference/products.json");
    let opened = open(TINY_R1);
    let source = opened.source();
    let chunk = &chunk0()[..64];
    let products = Products(Mutex::default());
    let [watched, alone] = [Some(&products), None].map(|observer| {
        let mut model = Model::new(opened.hparams(), source).unwrap();
        if let Some(observer) = observer {
            model.observe(observer);
        }
        let mut states = model.embed(chunk).unwrap();
        (0..3).for_each(|layer| model.layer(layer, &mut states, 64, 1 << 28).unwrap());
        states
    });
    assert!(watched == alone);
    let products = products.0.into_inner().unwrap();
    let rows = reference.as_array().unwrap();
    assert_eq!(rows.len(), 117);
    for row in rows {
        let (name, matrix) = (row[0].as_str().unwrap(), row[1].as_u64().unwrap() as usize);
        let [total, norm] = [3, 4].map(|i| row[i].as_f64().unwrap());
        let (tokens, found) = products[&(source.find(name).unwrap(), matrix)];
        assert_eq!(tokens as u64, row[2].as_u64().unwrap(), "{name}, matrix {matrix}");
        assert!(
            (found - total).abs() < 1e-4 * norm,
            "{name}, matrix {matrix}: {found}, not {total}"
        );
    }
}

#[test]
fn perplexity_of_a_gguf_file_is_llama_perplexitys() {
    let found = evaluate(&open("tests/fixtures/reference/tiny-r1-bf16.gguf"), None);
    let reference = json("tests/fixtures/reference/llama-perplexity.json");
    let [ppl, error] = [0, 1].map(|i| reference["BF16"][i].as_f64().unwrap());
    // llama-perplexity rounds activations to BF16 on this file.
    assert!((found.perplexity / ppl - 1.0).abs() < 5e-4, "{} against {ppl}", found.perplexity);
    assert!((found.perplexity_error / error - 1.0).abs() < 1e-2);
}

/// The files are llama-quantize's, byte for byte; what is left is the order of sums, and a rounding to
/// eight bits that falls to the other side now and then.
#[test]
fn perplexity_with_rounded_activations_is_llama_perplexitys() {
    let dir = tempfile::tempdir().unwrap();
    let reference = json("tests/fixtures/reference/llama-perplexity.json");
    for (ty, name) in [
        (FileType::BF16, "BF16"),
        (FileType::Q4_1, "Q4_1"),
        (FileType::Q5_1, "Q5_1"),
        (FileType::Q6_K, "Q6_K"),
    ] {
        let path = dir.path().join(name);
        common::convert(&common::settings(ty), &path);
        let model = open(path.to_str().unwrap());
        let expected = reference[name][0].as_f64().unwrap();
        let error = |activations| {
            (evaluate_with(&model, None, activations).perplexity / expected).ln().abs()
        };
        let (rounded, exact) = (error(Activations::Q8), error(Activations::F32));
        assert!(rounded < 1.5e-4 && exact > 2.0 * rounded, "{name}: {rounded}, {exact}");
    }
}

#[test]
fn rounding_the_checkpoint_to_bf16_costs_next_to_nothing() {
    let source = evaluate(&open(TINY_R1), Some(8));
    let rounded = evaluate(&open("tests/fixtures/reference/tiny-r1-bf16.gguf"), Some(8));
    let paired = Paired::new(&source, &rounded).unwrap();
    assert!(paired.ln_ratio.abs() < 4.0 * paired.ln_ratio_error + 1e-6, "{paired:?}");
    assert!(paired.difference_error < source.perplexity_error / 10.0);
}

#[test]
fn threads_and_batches_do_not_change_the_result() {
    let model = open(TINY_R1);
    let runner = Model::new(model.hparams(), model.source()).unwrap();
    let tokens = tokens();
    let run = |threads, memory| {
        let options = PerplexityOptions { chunks: Some(4), memory, ..PerplexityOptions::default() };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| perplexity(&runner, &tokens, &options, &())).unwrap().nll
    };
    let expected = run(1, 1 << 30);
    assert!(expected == run(3, 1 << 30), "threads change the result");
    let batched = run(2, 1);
    for (a, b) in expected.iter().zip(&batched) {
        assert!((a - b).abs() < 1e-4, "batches change the result: {a} and {b}");
    }
}

/// How far two measurements are apart in each token.
fn differences(a: &Perplexity, b: &Perplexity) -> Vec<f64> {
    a.nll.iter().zip(&b.nll).map(|(a, b)| a - b).collect()
}

/// The root of the mean square.
fn of_all(differences: &[f64]) -> f64 {
    (differences.iter().map(|x| x * x).sum::<f64>() / differences.len() as f64).sqrt()
}

/// Products of f32 with one rounding a term are the same at every level that has them; the portable
/// one rounds twice, and integers are summed exactly with VNNI, those of rounded activations with AVX2, too.
#[test]
fn every_level_gives_the_same_likelihoods() {
    let dir = tempfile::tempdir().unwrap();
    let mut paths = vec![TINY_R1.to_owned()];
    for ty in [FileType::Q8_0, FileType::Q4_1, FileType::Q4_K_M] {
        let path = dir.path().join(ty.to_string());
        common::convert(&common::settings(ty), &path);
        paths.push(path.to_str().unwrap().to_owned());
    }
    let tokens = tokens();
    let both = |path| [Activations::F32, Activations::Q8].map(|activations| (path, activations));
    for (path, activations) in paths.iter().flat_map(both) {
        let run = |simd: Simd, activations: Activations| {
            let mut model = open(path);
            model.set_simd(simd);
            let mut runner = Model::new(model.hparams(), model.source()).unwrap();
            runner.set_simd(simd);
            runner.set_activations(activations);
            let options =
                PerplexityOptions { ctx: 128, chunks: Some(2), ..PerplexityOptions::default() };
            perplexity(&runner, &tokens, &options, &()).unwrap()
        };
        let portable = run(Simd::Portable, activations);
        let rounding = of_all(&differences(&portable, &run(Simd::Portable, Activations::F32)));
        let mut fused: Option<Perplexity> = None;
        for simd in Simd::supported().skip(1) {
            let found = run(simd, activations);
            // There, integers have products of their own.
            let exact = match simd.name() {
                "avx512vnni" => path == TINY_R1 && activations == Activations::F32,
                "avx2" => path == TINY_R1 || activations == Activations::F32,
                _ => true,
            };
            if let Some(fused) = fused.as_ref().filter(|_| exact) {
                assert!(found.nll == fused.nll, "{path} at {simd}");
            }
            let apart = differences(&found, &portable);
            let (all, mean) = (of_all(&apart), apart.iter().sum::<f64>() / apart.len() as f64);
            let bounds = match activations {
                // Some hundred roundings to 24 bits on the way of a logit of a few units.
                Activations::F32 => [2e-5, 5e-6],
                // Where roundings to eight bits had nothing in common, levels would be √2 times as far
                // apart as each is from the exact ones. Few of them fall to the other side, to either.
                _ => [rounding, 4.0 * all / (apart.len() as f64).sqrt()],
            };
            assert!(all < bounds[0] && mean.abs() < bounds[1], "{path} at {simd}: {all}, {mean}");
            fused = fused.or(exact.then_some(found));
        }
    }
}

#[test]
fn tokens_beyond_the_vocabulary_are_refused() {
    let model = open(TINY_R1);
    let runner = Model::new(model.hparams(), model.source()).unwrap();
    let error = perplexity(&runner, &[2048; 1024], &PerplexityOptions::default(), &());
    assert!(error.unwrap_err().to_string().contains("token 2048"));
}
