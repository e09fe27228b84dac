//! `requant formats`: what is known of the tensor types.

use crate::cli::say;
use crate::quant::{Format, Importance, Kind, Numbers, QuantType};
use crate::recipe::FileType;
use serde_json::{Value, json};

/// List the tensor types: sizes, what importances do, what takes their place where rows do not fit.
///
/// A row that is no whole number of a type's blocks is stored in the type's fallback, or in that one's.
/// "wanted": llama-quantize makes no file with the type without an importance matrix. Activations are
/// rounded to the type named there by llama.cpp on a CPU, and with --activations q8.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant formats --json")]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) {
    if args.json {
        say::json(all());
        return;
    }
    let formats = QuantType::all().map(QuantType::format);
    println!(
        "{:>2}  {:<8}{:>8}{:>7}{:>7}  {:<18}{:<13}{:<10}mixes",
        "id", "type", "bits", "block", "bytes", "importances", "activations", "fallback"
    );
    for format in formats {
        let Format { ty, len, bytes, activations, .. } = format;
        let row = format!(
            "{:>2}  {ty:<8}{:>8}{len:>7}{bytes:>7}  {:<18}{:<13}{:<10}{}",
            ty.id(),
            format.bits_per_weight(),
            importances(format),
            format!("{activations:?}"),
            format.fallback.map_or("-", QuantType::name),
            mixes(*ty).join(" "),
        );
        println!("{}", row.trim_end());
    }
}

/// What is known of all types, as `--json` prints it.
pub fn all() -> Value {
    let formats: Vec<Value> = QuantType::all().map(QuantType::format).map(json).collect();
    json!({ "version": 1, "formats": formats })
}

/// The mixes that most tensors of have this type.
fn mixes(ty: QuantType) -> Vec<String> {
    let mixes = FileType::all().filter(|file_type| file_type.default_type() == ty);
    mixes.map(|file_type| file_type.to_string()).collect()
}

fn importances(format: &Format) -> String {
    match format.importance {
        Importance::Ignored if format.is_target() => "not used".to_owned(),
        Importance::Ignored => "-".to_owned(),
        Importance::Weighs => "used".to_owned(),
        Importance::WantedIn(mixes) => format!("wanted in {}", mixes.join(", ")),
        Importance::Wanted => "wanted".to_owned(),
        Importance::Required => "required".to_owned(),
    }
}

fn json(format: &Format) -> Value {
    let (importance, wanted_in) = match format.importance {
        Importance::Ignored => ("ignored", &[][..]),
        Importance::Weighs => ("weighs", &[][..]),
        Importance::WantedIn(mixes) => ("weighs", mixes),
        Importance::Wanted => ("wanted", &[][..]),
        Importance::Required => ("required", &[][..]),
    };
    let [plain, weighted] = format.cost;
    json!({
        "id": format.ty.id(),
        "name": format.ty.name(),
        "kind": match format.kind {
            Kind::Float(_) => "float",
            Kind::Integer => "integer",
            Kind::Blocks => "blocks",
            Kind::Activations => "activations",
        },
        "target": format.is_target(),
        "block_len": format.len,
        "block_bytes": format.bytes,
        "bits_per_weight": format.bits_per_weight(),
        "halves": match format.numbers {
            Numbers::None => Some(&[][..]),
            Numbers::Exponents(offsets, 0x7c00) => Some(offsets),
            Numbers::Exponents(..) | Numbers::Others(_) => None,
        },
        "importance": importance,
        "wanted_in": wanted_in,
        "activations": format!("{:?}", format.activations),
        "fallback": format.fallback.map(QuantType::name),
        "integer_products": format.groups.is_some(),
        "cost": { "plain": plain, "weighted": weighted },
        "mixes": mixes(format.ty),
    })
}
