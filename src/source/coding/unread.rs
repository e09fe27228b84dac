//! Formats that pack weights into integers, as far as they are not read: how to recognise them, for
//! messages.

use crate::source::declared::Declared;

/// What such formats call their tensors: the end of a name, and the format.
const ENDS: [(&str, &str); 23] = [
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".g_idx", "GPTQ"),
    (".scales", "GPTQ or AWQ"),
    (".absmax", "bitsandbytes"),
    (".nested_absmax", "bitsandbytes"),
    (".quant_map", "bitsandbytes"),
    (".nested_quant_map", "bitsandbytes"),
    (".SCB", "bitsandbytes"),
    (".weight_format", "bitsandbytes"),
    (".weight_packed", "compressed-tensors"),
    (".weight_shape", "compressed-tensors"),
    (".weight_global_scale", "compressed-tensors"),
    (".weight_g_idx", "compressed-tensors"),
    (".compressed", "compressed-tensors"),
    (".bitmask", "compressed-tensors"),
    (".W_q", "HQQ"),
    ("._data", "quanto"),
    ("._shift", "quanto"),
    ("_blocks", "MXFP4"),
    (".codebooks", "AQLM"),
    (".codes", "AQLM"),
    (".Qidxs", "QuIP#"),
];

/// The format that packs a tensor of this name: as it is declared, or else as names tell.
pub(in crate::source) fn format(name: &str, declared: &Declared) -> Option<String> {
    let named = ENDS.iter().find(|(end, _)| name.ends_with(end)).map(|(_, format)| *format);
    let named = named.or(name.contains(".quant_state.").then_some("bitsandbytes"))?;
    let method = declared.method.as_deref().unwrap_or(named);
    // Of its formats, some are read.
    let format = name.rfind(".weight").and_then(|at| declared.format(&name[..at + 7]));
    Some(match format {
        Some(format) if method == "compressed-tensors" => format!("{method} ({format})"),
        _ => method.to_owned(),
    })
}
