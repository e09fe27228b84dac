//! Pre-tokenizers: how text is split before merges apply, recognised by what tokenizer.json says
//! and named as GGUF names them.

use serde_json::Value;

/// One way to split text.
pub(super) struct Pre {
    /// The value of `tokenizer.ggml.pre`.
    pub name: &'static str,
    /// Regular expressions applied in turn, each to the pieces that the one before left; as
    /// tokenizer.json spells them, with `\r` and `\n` as escapes.
    splits: &'static [&'static str],
    /// A token whose presence tells two tokenizers of the same rules apart.
    marker: Option<&'static str>,
    /// Whether a piece that is a token is taken whole, whatever the merges say.
    pub ignore_merges: bool,
}

const HAN: &str = "[一-龥\u{3040}-ゟ゠-ヿ]+";
const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
/// Cased letters as DeepSeek V2 lists them.
const DEEPSEEK_LLM_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const DEEPSEEK_LLM_PUNCTUATION: &str = r"\s?[!-/:-~！-／：-～‘-‟　-。]+";
const DEEPSEEK_LLM_HAN: &str = "[一-龥\u{800}-一가-\u{d7ff}]+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As Mistral's Tekken lists letters; llama.cpp tells cases apart in ASCII alone.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Kimi's rules as llama.cpp has them, which tells no cases of letters apart, and marks from letters.
const KIMI: &str = r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2EBEF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}]+|[^\r\n\p{L}\p{N}]?(?:(?![\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2EBEF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}])\p{L})+(?:'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL]))?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// What a step for individual digits splits off.
const DIGIT: &str = r"\p{N}";
/// The regular expression that the ByteLevel step applies by itself.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The first that fits is taken, so the more particular ones come first.
const KNOWN: [Pre; 11] = [
    Pre {
        name: "deepseek-v3",
        splits: &[r"\p{N}{1,3}", HAN, DEEPSEEK_V3],
        marker: None,
        ignore_merges: false,
    },
    Pre {
        name: "deepseek-llm",
        splits: &[
            r"[\r\n]",
            DEEPSEEK_LLM_LETTERS,
            DEEPSEEK_LLM_PUNCTUATION,
            r"\s+$",
            DEEPSEEK_LLM_HAN,
            DIGIT,
        ],
        marker: None,
        ignore_merges: false,
    },
    Pre {
        name: "deepseek-r1-qwen",
        splits: &[QWEN2],
        marker: Some("<｜begin▁of▁sentence｜>"),
        ignore_merges: false,
    },
    Pre { name: "qwen2", splits: &[QWEN2], marker: None, ignore_merges: false },
    Pre { name: "llama-bpe", splits: &[LLAMA3], marker: None, ignore_merges: true },
    Pre { name: "gpt-2", splits: &[GPT2], marker: None, ignore_merges: false },
    Pre { name: "smollm", splits: &[DIGIT, GPT2], marker: None, ignore_merges: false },
    Pre {
        name: "deepseek-coder",
        splits: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_LLM_HAN, DIGIT],
        marker: None,
        ignore_merges: false,
    },
    Pre { name: "kimi-k2", splits: &[KIMI], marker: None, ignore_merges: false },
    Pre { name: "tekken", splits: &[TEKKEN], marker: None, ignore_merges: true },
    Pre {
        name: "default",
        splits: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        marker: None,
        ignore_merges: false,
    },
];

impl Pre {
    /// The pre-tokenizer of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        let name = usual_name(name);
        KNOWN.iter().find(|pre| pre.name == name)
    }

    /// Whether sequences begin with BOS where nothing says so.
    pub fn adds_bos(name: &str) -> bool {
        matches!(usual_name(name), "llama-bpe" | "tekken")
    }

    /// All known names.
    pub fn names() -> String {
        KNOWN.map(|pre| pre.name).join(", ")
    }

    /// Recognises the `pre_tokenizer` section of a tokenizer.json; `has_token` tells whether a
    /// token is in the vocabulary.
    pub fn recognise(section: &Value, has_token: impl Fn(&str) -> bool) -> Option<&'static Self> {
        let splits = splits_of(section)?;
        KNOWN.iter().find(|pre| {
            pre.splits.iter().copied().eq(splits.iter().map(String::as_str))
                && pre.marker.is_none_or(&has_token)
        })
    }

    /// A `pre_tokenizer` section that splits so.
    #[cfg(feature = "eval")]
    pub fn section(&self) -> Value {
        section(self.splits)
    }
}

/// How Qwen2's tokenizer splits where no tokenizer.json says so.
pub(super) fn qwen2_section() -> Value {
    section(&[QWEN2])
}

/// A `pre_tokenizer` section with these regular expressions.
fn section(splits: &[&str]) -> Value {
    let mut steps: Vec<Value> = splits
        .iter()
        .map(|split| {
            serde_json::json!({
                "type": "Split", "pattern": {"Regex": split},
                "behavior": "Isolated", "invert": false,
            })
        })
        .collect();
    steps.push(serde_json::json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": false,
    }));
    serde_json::json!({"type": "Sequence", "pretokenizers": steps})
}

/// The name here of rules for which llama.cpp has several.
fn usual_name(name: &str) -> &str {
    match name {
        "joyai-llm" | "hunyuan-dense" => "deepseek-v3",
        "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2" => {
            "llama-bpe"
        }
        "stablelm2" | "hunyuan" | "kormo" | "grok-2" => "qwen2",
        "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => "smollm",
        "phi-2" | "mpt" | "olmo" | "jais" | "mellum" | "exaone4" | "trillion" => "gpt-2",
        other => other,
    }
}

/// The steps of a section.
pub(super) fn steps(section: &Value) -> &[Value] {
    match section["pretokenizers"].as_array() {
        Some(steps) => steps,
        None => std::slice::from_ref(section),
    }
}

/// The regular expressions of a section that does nothing but split and map bytes.
fn splits_of(section: &Value) -> Option<Vec<String>> {
    let (last, splits) = steps(section).split_last()?;
    if last["type"] != "ByteLevel" || last["add_prefix_space"] == true {
        return None;
    }
    let mut found = Vec::new();
    for split in splits {
        if split["type"] == "Digits" && split["individual_digits"] == true {
            found.push(DIGIT.to_owned());
            continue;
        }
        let plain =
            split["type"] == "Split" && split["behavior"] == "Isolated" && split["invert"] != true;
        let regex = split["pattern"]["Regex"].as_str().filter(|_| plain)?;
        found.push(regex.replace('\r', r"\r").replace('\n', r"\n"));
    }
    // Absent means true, in files older than the switch.
    if last["use_regex"] != false {
        found.push(GPT2.to_owned());
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    #[cfg(feature = "eval")]
    fn every_known_section_is_recognised() {
        for pre in &KNOWN {
            let found = Pre::recognise(&pre.section(), |token| Some(token) == pre.marker);
            assert_eq!(found.map(|p| p.name), Some(pre.name));
        }
    }

    #[test]
    #[cfg(feature = "eval")]
    fn digits_may_be_a_step_of_their_own() {
        let pre = Pre::named("deepseek-llm").unwrap();
        let mut section = pre.section();
        section["pretokenizers"][5] = json!({"type": "Digits", "individual_digits": true});
        assert_eq!(Pre::recognise(&section, |_| false).map(|p| p.name), Some("deepseek-llm"));
    }

    #[test]
    fn byte_level_alone_splits_as_gpt2_does() {
        let section = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true});
        assert_eq!(Pre::recognise(&section, |_| false).map(|p| p.name), Some("gpt-2"));
        let digits = json!({"type": "Digits", "individual_digits": true});
        let section = json!({"type": "Sequence", "pretokenizers": [digits, section]});
        assert_eq!(Pre::recognise(&section, |_| false).map(|p| p.name), Some("smollm"));
        let section = json!({"type": "Whitespace"});
        assert!(Pre::recognise(&section, |_| false).is_none());
    }
}
