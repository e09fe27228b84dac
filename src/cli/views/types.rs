//! What `--type` takes, one line each.

use crate::quant::Importance;
use crate::recipe::FileType;
use serde_json::{Value, json};

/// For people.
pub fn table() -> String {
    let mut out = format!("{:<10}{:>6}  {:<12}what for\n", "type", "bits", "importances");
    for mix in FileType::all() {
        let bits = mix.default_type().format().bits_per_weight();
        out += &format!("{mix:<10}{bits:>6.2}  {:<12}{}\n", importances(mix), what_for(mix));
    }
    out + "\nbits: those of most tensors; `requant plan` says the size of a model,\n\
           `requant recipe show TYPE` the rules. For `convert`, also lossless: each tensor\n\
           in the smallest type that keeps its values.\n"
}

/// For programs. See docs/schema/types.json.
pub fn json() -> Value {
    let types = FileType::all().map(|mix| {
        json!({
            "name": mix.name(),
            "id": mix.id(),
            "bits_per_weight": mix.default_type().format().bits_per_weight(),
            "most": mix.default_type().name(),
            "importances": importances(mix),
            "what_for": what_for(mix),
        })
    });
    json!({ "version": 1, "types": types.collect::<Vec<_>>() })
}

/// What a mix makes of an importance matrix.
fn importances(mix: FileType) -> &'static str {
    match mix.default_type().format().importance {
        Importance::Ignored => "not used",
        Importance::WantedIn(mixes) if mixes.contains(&mix.name()) => "wanted",
        Importance::Weighs | Importance::WantedIn(_) => "used",
        Importance::Wanted => "wanted",
        Importance::Required => "required",
    }
}

fn what_for(mix: FileType) -> &'static str {
    match mix {
        FileType::F32 => "exact; twice the size of a usual checkpoint",
        FileType::F16 => "half precision; large values overflow",
        FileType::BF16 => "as most checkpoints store it; a source for others",
        FileType::Q8_0 => "hardly to be told from the original",
        FileType::Q4_0 => "old and fast everywhere; Q4_K_S loses less",
        FileType::Q4_1 => "as Q4_0, with minima",
        FileType::Q5_0 => "old; Q5_K_S loses less",
        FileType::Q5_1 => "as Q5_0, with minima",
        FileType::Q2_K => "large loss; IQ2_M loses less in the same space",
        FileType::Q2_K_S => "as Q2_K, with fewer exceptions",
        FileType::Q3_K_S => "visible loss; IQ3_S loses less",
        FileType::Q3_K_M => "visible loss, where 4 bits do not fit",
        FileType::Q3_K_L => "as Q3_K_M, with more in larger types",
        FileType::Q4_K_S => "small loss in little space",
        FileType::Q4_K_M => "the usual choice: small loss at a good size",
        FileType::Q5_K_S => "very small loss",
        FileType::Q5_K_M => "very small loss, with more in larger types",
        FileType::Q6_K => "nearly as Q8_0, in three quarters of the space",
        FileType::IQ1_S => "the smallest; for models far too large otherwise",
        FileType::IQ1_M => "hardly larger than IQ1_S, and better",
        FileType::IQ2_XXS => "for large models in little memory",
        FileType::IQ2_XS => "as IQ2_XXS, a little larger",
        FileType::IQ2_S => "as IQ2_XS, with some tensors in larger types",
        FileType::IQ2_M => "the best around 2.7 bits",
        FileType::IQ3_XXS => "the best around 3 bits",
        FileType::IQ3_XS => "between IQ3_XXS and IQ3_S",
        FileType::IQ3_S => "as large as Q3_K_S, and better",
        FileType::IQ3_M => "as IQ3_S, with some tensors in larger types",
        FileType::IQ4_NL => "as IQ4_XS, where rows fit no blocks of 256",
        FileType::IQ4_XS => "smaller than Q4_K_S at about the same loss",
        FileType::TQ1_0 => "for models trained with ternary weights",
        FileType::TQ2_0 => "for models trained with ternary weights, faster",
        FileType::MXFP4_MOE => "experts in MXFP4, the rest in Q8_0",
        FileType::Q1_0 => "for models trained with weights of one bit",
        FileType::Q2_0 => "for models trained with weights of two bits",
    }
}
