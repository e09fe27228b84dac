//! `requant perplexity`: how well a model predicts a text.

use super::compare::TextArgs;
use super::threads;
use super::{evaluate, say};
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
    /// Threads [default: all processors]
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    #[command(flatten)]
    room: evaluate::Room,
    #[command(flatten)]
    precision: evaluate::Precision,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let text = args.text.path().unwrap_or_else(|error| super::bad_usage(error));
    let model = super::place::model(&args.model)?;
    let (tokens, mut settings) = args.text.read(&model)?;
    let options = evaluate::Options {
        room: args.room.clone(),
        activations: args.precision.activations,
        threads: threads(args.threads.map(usize::from)),
    };
    let model = (args.model.as_path(), &model);
    let result = evaluate::run("perplexity", model, (text, &tokens), &mut settings, &options)?;
    if args.json {
        let mut json = serde_json::to_value(&result)?;
        json["model"] = serde_json::json!(args.model);
        json["text"] = serde_json::json!(text);
        json["ctx"] = serde_json::json!(settings.ctx);
        json["activations"] = serde_json::json!(args.precision.activations);
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
    evaluate::Room::finish([&settings]);
    Ok(())
}
