//! Names in messages: what an unknown one may have meant, and many of them in short.

/// What a message says after a name that is none of the known ones: which of them it is most like,
/// three at most; nothing where none is similar.
pub(crate) fn did_you_mean<'a>(found: &str, known: impl Iterator<Item = &'a str>) -> String {
    // Types are written in either case, with and without what separates their parts.
    let squeeze = |name: &str| name.to_ascii_uppercase().replace(['_', '-', ' '], "");
    let wanted = squeeze(found);
    let part = |whole: &str, part: &str| part.len() >= 2 && whole.contains(part);
    let most = (wanted.len() / 4).min(3);
    let mut near: Vec<(usize, &str)> = known
        .map(|known| {
            let name = squeeze(known);
            let distance = strsim::osa_distance(&wanted, &name);
            match part(&name, &wanted) || part(&wanted, &name) {
                true => (distance.min(1), known),
                false => (distance, known),
            }
        })
        .filter(|(distance, _)| *distance <= most.max(1))
        .collect();
    near.sort_by_key(|(distance, _)| *distance);
    let least = near.first().map_or(0, |(distance, _)| *distance);
    let near: Vec<&str> =
        near.into_iter().filter(|(n, _)| *n == least).map(|(_, name)| name).take(3).collect();
    match near.is_empty() {
        true => String::new(),
        false => format!("; did you mean {}?", near.join(" or ")),
    }
}

/// Names of tensors, those of several layers as one: `blk.0-2,5.attn_q.weight`.
#[cfg(feature = "convert")]
pub(crate) fn by_layer(names: &[&str]) -> Vec<String> {
    let mut kinds: Vec<(&str, Vec<u32>)> = Vec::new();
    for name in names {
        let (layer, kind) = crate::recipe::layer_and_kind(name);
        match kinds.iter_mut().find(|(known, layers)| *known == kind && !layers.is_empty()) {
            Some((_, layers)) => layers.extend(layer),
            None => kinds.push((kind, layer.into_iter().collect())),
        }
    }
    let shown = kinds.into_iter().map(|(kind, mut layers)| {
        if layers.is_empty() {
            return kind.to_owned();
        }
        layers.sort_unstable();
        format!("blk.{}.{kind}", runs(layers))
    });
    shown.collect()
}

/// Ascending numbers in short: `0-2,5`.
#[cfg(feature = "convert")]
pub(crate) fn runs(numbers: impl IntoIterator<Item = u32>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let shown = runs.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
    shown.collect::<Vec<_>>().join(",")
}

/// The same on one line.
#[cfg(feature = "convert")]
pub(crate) fn in_short(names: &[&str]) -> String {
    by_layer(names).join(", ")
}

/// The first of these names, and how many more there are.
#[cfg(feature = "convert")]
pub(crate) fn few<T: AsRef<str>>(names: &[T]) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<String> =
        names.iter().take(SHOWN).map(|name| format!("`{}`", name.as_ref())).collect();
    let shown = shown.join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// The name of a file without its folders.
#[cfg(feature = "convert")]
pub(crate) fn base(path: impl AsRef<std::path::Path>) -> String {
    path.as_ref().file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The digits of a hash.
#[cfg(feature = "convert")]
pub(crate) fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_most_like_a_name_is_found() {
        let types = ["Q4_K", "Q4_K_S", "Q4_K_M", "Q6_K", "IQ4_XS", "blk.0.attn_q.weight"];
        let hint = |found| did_you_mean(found, types.into_iter());
        for (found, expected) in [
            ("q4km", "; did you mean Q4_K_M?"),
            ("Q6_K_L", "; did you mean Q6_K?"),
            ("iq4", "; did you mean IQ4_XS?"),
            ("blk.0.atn_q.wieght", "; did you mean blk.0.attn_q.weight?"),
            ("blk.0.attn_q", "; did you mean blk.0.attn_q.weight?"),
            ("4_k", "; did you mean Q4_K or Q4_K_S or Q4_K_M?"),
            ("Q", ""),
            ("output.weight", ""),
        ] {
            assert_eq!(hint(found), expected, "{found}");
        }
    }

    #[test]
    #[cfg(feature = "convert")]
    fn layers_are_gathered() {
        let all =
            ["output.weight", "blk.0.a.weight", "blk.1.a.weight", "blk.4.a.weight", "blk.2.b"];
        assert_eq!(in_short(&all), "output.weight, blk.0-1,4.a.weight, blk.2.b");
    }
}
