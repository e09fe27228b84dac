//! `requant hash`: SHA-256 of a model's tensors, whatever files it is spread over.

use super::diff::trimmed;
use crate::cli::args::place;
use crate::cli::progress::Progress;
use crate::cli::say;
use crate::inspect::{hash_metadata, hash_tensor};
use crate::monitor::Monitor;
use crate::names::hex;
use crate::source::Source;
use rayon::prelude::*;
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};
use std::path::PathBuf;

/// Hash a GGUF model: SHA-256 of each tensor and of all, whatever files it is spread over.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant hash model-00001-of-00003.gguf")]
pub struct Args {
    /// GGUF file, or the first file of a split model
    model: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let model = place::gguf(&args.model)?;
    let weights: u64 = model.tensors().iter().map(|t| t.n_elements()).sum();
    let progress = Progress::start("hash", weights, "weights", model.n_bytes());
    let mut tensors: Vec<(usize, [u8; 32])> = (0..model.tensors().len())
        .into_par_iter()
        .map(|i| {
            progress.stop_if_asked()?;
            let hash = hash_tensor(&model, i)?;
            progress.advance(model.tensors()[i].n_elements());
            Ok((i, hash))
        })
        .collect::<anyhow::Result<_>>()?;
    progress.finish();
    tensors.sort_by(|(i, _), (j, _)| model.tensors()[*i].name.cmp(&model.tensors()[*j].name));
    let metadata = hash_metadata(model.metadata());
    let mut whole = Sha256::new_with_prefix(metadata);
    for (i, hash) in &tensors {
        let meta = &model.tensors()[*i];
        whole.update(format!("{}\n{:?}\n{}\n", meta.name, trimmed(&meta.dims), meta.dtype));
        whole.update(hash);
    }
    let whole: [u8; 32] = whole.finalize().into();
    if args.json {
        let named = |(i, hash): &(usize, [u8; 32])| {
            (model.tensors()[*i].name.clone(), Json::from(hex(hash)))
        };
        let tensors: serde_json::Map<String, Json> = tensors.iter().map(named).collect();
        let (all, metadata) = (hex(&whole), hex(&metadata));
        let json = json!({ "version": 1, "sha256": all, "metadata": metadata, "tensors": tensors });
        say::json(json);
        return Ok(());
    }
    for (i, hash) in &tensors {
        println!("{}  {}", hex(hash), model.tensors()[*i].name);
    }
    println!("{}  (metadata)", hex(&metadata));
    println!("{}  {}", hex(&whole), args.model.display());
    Ok(())
}
