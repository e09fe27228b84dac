//! Names that are none of the known ones, and what they may have meant.

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
}
