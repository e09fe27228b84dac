//! Model names as people give them, `Org/Basename-7B-Instruct-v1.2`, taken apart by the reference
//! converter's rules (`Metadata.get_model_id_components`).

use crate::pattern::Pattern;
use std::path::Path;
use std::sync::LazyLock;

/// The parts of a model's name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ModelId {
    pub name: String,
    pub organization: Option<String>,
    pub basename: Option<String>,
    pub finetune: Option<String>,
    pub version: Option<String>,
    pub size_label: Option<String>,
}

/// What a part of the name may be; several can hold until the end.
#[derive(Clone, Copy, Default)]
struct Kinds {
    basename: bool,
    size_label: bool,
    finetune: bool,
    version: bool,
    quant_type: bool,
}

impl Kinds {
    fn count(self) -> usize {
        [self.basename, self.size_label, self.finetune, self.version, self.quant_type]
            .iter()
            .filter(|&&kind| kind)
            .count()
    }
}

fn full(pattern: &str) -> Pattern {
    Pattern::fixed(&format!("(?i)^(?:{pattern})$"))
}

static VERSION: LazyLock<Pattern> = LazyLock::new(|| full(r"(v|iter)?\d+([.]\d+)*"));
static QUANT_TYPE: LazyLock<Pattern> = LazyLock::new(|| full(r"i?q\d(_\w)*|b?fp?(16|32)"));
static SIZE: LazyLock<Pattern> =
    LazyLock::new(|| full(r"((A|\d+x)?\d+([._]\d+)?[KMBT]\d?|small|mini|medium|large|x?xl)"));
static FINETUNE: LazyLock<Pattern> = LazyLock::new(|| full("chat|instruct|vision|lora"));

/// Names that programs give: hashes, and keys of git-annex.
static HASH: LazyLock<Pattern> =
    LazyLock::new(|| full(r"[0-9a-f]{32,}|(sha\d|md5|blake2|skein|worm|url|git)\w*-s\d+.*--.*"));
/// Names that say what is in a folder, whichever model it is.
static GENERIC: LazyLock<Pattern> =
    LazyLock::new(|| full(r"model|checkpoint-\d+|snapshots?|\.?tmp[-._]?\w*"));

/// Whether `_name_or_path` is an identifier: a path on somebody's disk is none, nor is nothing.
pub(super) fn is_name(id: &str) -> bool {
    let name = id.rsplit('/').next().unwrap_or(id);
    id.matches('/').count() <= 1 && !name.is_empty() && !HASH.is_match(name)
}

/// What a folder calls its model. In the hub's cache, `models--org--name/snapshots/<hash>`, the
/// repository is the model; the reference converter takes the hash.
pub(super) fn of_folder(dir: &Path) -> Option<String> {
    let names = |dir: &Path| -> Vec<String> {
        let ancestors = dir.ancestors().map_while(Path::file_name);
        ancestors.take(3).map(|name| name.to_string_lossy().into_owned()).collect()
    };
    [Some(dir.to_owned()), dir.canonicalize().ok()].into_iter().flatten().find_map(|dir| {
        let names = names(&dir);
        if let Some(id) = names.iter().find_map(|name| name.strip_prefix("models--")) {
            return Some(id.replacen("--", "/", 1));
        }
        let own = names.first().filter(|name| !HASH.is_match(name));
        // A model's name has a number in it, `data` and `home` have none.
        let digits = |name: &&String| name.contains(|c: char| c.is_ascii_digit());
        let above = names.get(1).filter(|name| !HASH.is_match(name) && !GENERIC.is_match(name));
        match own {
            Some(own) if !GENERIC.is_match(own) => Some(own.clone()),
            _ => above.filter(digits).or(own).cloned(),
        }
    })
}

impl ModelId {
    /// Takes a name apart. A size in it counts as the model's only if it is near `total`
    /// parameters; otherwise it is likely a context length.
    pub fn parse(id: &str, total: u64) -> Self {
        if id.contains(' ') {
            return Self { name: id.to_owned(), ..Self::default() };
        }
        let (organization, name) = match id.split_once('/') {
            Some((organization, name)) => (Some(organization), name),
            None => (None, id),
        };
        let organization = organization.filter(|o| !o.starts_with('.')).map(str::to_owned);
        let mut parts: Vec<(String, Kinds)> = name
            .split('-')
            .filter(|part| !part.is_empty())
            .map(|part| (part.to_owned(), Kinds::default()))
            .collect();
        for (i, (part, kinds)) in parts.iter_mut().enumerate() {
            if VERSION.is_match(part) {
                kinds.version = true;
            } else if QUANT_TYPE.is_match(part) {
                kinds.quant_type = true;
                *part = part.to_uppercase();
            } else if i > 0 && SIZE.is_match(part) {
                (*part, kinds.finetune) = size(part, total);
                kinds.size_label = !kinds.finetune;
            } else if i > 0 && FINETUNE.is_match(part) {
                kinds.finetune = true;
            }
        }
        let has_digit = |s: &str| s.chars().any(|c| c.is_ascii_digit());
        if parts.iter().any(|(part, kinds)| kinds.size_label && has_digit(part)) {
            for (part, kinds) in &mut parts {
                kinds.size_label &= !part.chars().all(char::is_alphabetic);
            }
        }
        let mut at_start = true;
        for (part, kinds) in &mut parts {
            let plain = kinds.count() == 0;
            if at_start && (kinds.version || (plain && part.starts_with(char::is_alphabetic))) {
                kinds.basename = true;
            } else {
                at_start = false;
                kinds.finetune |= plain;
            }
        }
        // A version at the end of the base name is a version after all.
        for (_, kinds) in parts.iter_mut().rev() {
            if !kinds.basename || kinds.count() < 2 {
                break;
            }
            kinds.basename = false;
        }
        let join = |keep: fn(&Kinds) -> bool| {
            let kept: Vec<&str> =
                parts.iter().filter(|(_, k)| keep(k)).map(|(part, _)| part.as_str()).collect();
            (!kept.is_empty()).then(|| kept.join("-"))
        };
        let mut sizes: Vec<&str> = Vec::new();
        for (part, _) in parts.iter().filter(|(_, kinds)| kinds.size_label) {
            if !sizes.contains(&part.as_str()) {
                sizes.push(part);
            }
        }
        let mut parsed = Self {
            name: name.to_owned(),
            organization,
            basename: join(|k| k.basename),
            finetune: join(|k| k.finetune),
            version: join(|k| k.version && !k.basename),
            size_label: (!sizes.is_empty()).then(|| sizes.join("-")),
        };
        if parsed.size_label.is_none() && parsed.finetune.is_none() && parsed.version.is_none() {
            parsed.basename = None; // too ambiguous
        }
        parsed
    }
}

/// A size with its suffix in upper case, or, with `true`, a number that is none.
fn size(part: &str, total: u64) -> (String, bool) {
    let mut chars: Vec<char> = part.replace('_', ".").chars().collect();
    let n = chars.len();
    if chars[n - 1].is_ascii_digit() && n >= 2 {
        // `7b1` stands for 7.1b.
        let (unit, digit) = (chars[n - 2], chars[n - 1]);
        chars.splice(n - 2.., ['.', digit, unit]);
    }
    let n = chars.len();
    let last = chars[n - 1];
    if n > 1 && chars[n - 2].is_ascii_digit() && "kmbt".contains(last) {
        chars[n - 1] = last.to_ascii_uppercase();
    }
    let number: String = chars[..n - 1].iter().collect();
    if let (Ok(number), true) = (number.parse::<f64>(), total != 0) {
        let power = " KMBT".find(chars[n - 1]).map_or(-1, |p| p as i32);
        let label = number * 1000f64.powi(power);
        if (label - total as f64).abs() > (7 * total / 8) as f64 {
            chars[n - 1] = chars[n - 1].to_ascii_lowercase();
            return (chars.into_iter().collect(), true);
        }
    }
    (chars.into_iter().collect(), false)
}

/// An identifier as a title: dashes become spaces, words in lower case are capitalised, except
/// versions and numbers (`Metadata.id_to_title`).
pub(super) fn title(id: &str) -> String {
    let words: Vec<String> = id.trim().replace('-', " ").split_whitespace().map(word).collect();
    words.join(" ")
}

fn word(word: &str) -> String {
    static NUMBER: LazyLock<Pattern> = LazyLock::new(|| Pattern::fixed(r"^(v\d+(?:\.\d+)*|\d.*)$"));
    let lower = word.chars().any(char::is_lowercase) && !word.chars().any(char::is_uppercase);
    if !lower || NUMBER.is_match(word) {
        return word.to_owned();
    }
    let mut within = false;
    let mut out = String::new();
    for c in word.chars() {
        if within {
            out.push(c);
        } else {
            out.extend(c.to_uppercase());
        }
        within = c.is_alphabetic();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(id: &str, total: u64) -> [Option<String>; 4] {
        let id = ModelId::parse(id, total);
        [id.basename, id.finetune, id.version, id.size_label]
    }

    #[test]
    fn names_come_apart_as_in_the_reference() {
        let some = |s: &str| Some(s.to_owned());
        assert_eq!(parts("DeepSeek-R1", 671_000_000_000), [None, None, None, None]);
        assert_eq!(
            parts("DeepSeek-R1-0528", 671_000_000_000),
            [some("DeepSeek-R1"), None, some("0528"), None]
        );
        assert_eq!(
            parts("Mistral-7B-Instruct-v0.2", 7_000_000_000),
            [some("Mistral"), some("Instruct"), some("v0.2"), some("7B")]
        );
        assert_eq!(parts("bloom-7b1", 7_100_000_000)[3], some("7.1B"));
        assert_eq!(
            parts("Qwen2.5-14B-1m", 14_000_000_000),
            [some("Qwen2.5"), some("1m"), None, some("14B")]
        );
    }

    #[test]
    fn titles_leave_versions_and_acronyms_alone() {
        assert_eq!(title("tiny-r1"), "Tiny R1");
        assert_eq!(title("my_model-7b-v1.2-GGUF"), "My_Model 7b v1.2 GGUF");
    }
}
