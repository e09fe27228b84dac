//! `requant perplexity`: how well a model predicts a text.

use super::compare::{self, RunArgs, TextArgs};
use super::evaluate::Room;
use super::progress::Progress;
use super::say;
use crate::measure::{Subject, perplexity};
use std::path::PathBuf;

/// Perplexity of a checkpoint folder or a GGUF file on a text.
///
/// The text is cut into chunks as llama-perplexity cuts it, and the second half of each chunk is
/// scored. Activations are f32, unless --activations says otherwise; weights are used exactly as stored.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant perplexity DeepSeek-R1-Q4_K_M.gguf \
                        --text wiki.test.raw --json")]
pub struct Args {
    /// Checkpoint folder or GGUF file
    model: PathBuf,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    room: Room,
    #[command(flatten)]
    run: RunArgs,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let text = args.text.read()?;
    let options = compare::options(&args.text, &args.room, &args.run);
    let model = compare::model(&args.model, &options)?;
    let subject = Subject { path: &args.model, model: &model };
    let progress = Progress::start("perplexity", 0, "token-layers", 0);
    let result = perplexity(subject, &text, &options, &progress)?;
    progress.finish();
    if args.run.json {
        let mut json = serde_json::to_value(&result)?;
        json["model"] = serde_json::json!(args.model);
        json["text"] = serde_json::json!(text.path());
        json["ctx"] = serde_json::json!(options.ctx);
        json["activations"] = serde_json::json!(options.activations);
        say::json(json);
    } else {
        println!("perplexity = {:.4} ± {:.5}", result.perplexity, result.perplexity_error);
        println!(
            "mean NLL   = {:.6} over {} tokens in {} chunks",
            result.mean_nll,
            result.tokens_scored,
            result.nll_per_chunk.len()
        );
    }
    Room::finish(&options);
    Ok(())
}
