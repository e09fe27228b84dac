//! The model card: the YAML between the lines of dashes that README.md begins with, as PyYAML
//! reads it for the reference converter (`Metadata.load_model_card`).
//!
//! Cards are written by hand and by tools of all kinds, and no conversion should fail of one: what
//! cannot be read is left out with a warning.

use crate::pattern::Pattern;
use crate::warning::{Topic, Warning};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::LazyLock;
use yaml_rust2::parser::{Event, Parser};
use yaml_rust2::scanner::TScalarStyle;

/// Bytes of front matter that are read, and bytes that aliases may add: a thousand times as much as
/// cards have.
const MOST: usize = 1 << 20;

/// How deep lists and mappings may stand in each other.
const DEEPEST: usize = 100;

/// A value of the front matter.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    /// Nothing.
    Null,
    /// A word as it is written, and whether it is a string to YAML: numbers, dates, `yes` are not.
    Word(String, bool),
    /// A list.
    List(Vec<Node>),
    /// A mapping, which of several equal keys has the last.
    Map(Vec<(String, Node)>),
}

impl Node {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Node> {
        let Self::Map(entries) = self else { return None };
        entries.iter().rev().find(|(known, _)| known == key).map(|(_, node)| node)
    }

    /// The words of a text field: those of a list with commas, as the reference joins licenses.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Word(text, _) => Some(text.clone()),
            Self::List(list) => {
                Some(list.iter().filter_map(Self::word).collect::<Vec<_>>().join(","))
            }
            Self::Null | Self::Map(_) => None,
        }
    }

    /// A string, or a list of words.
    pub fn words(&self) -> Vec<String> {
        match self {
            Self::Word(text, true) => vec![text.clone()],
            Self::List(list) => list.iter().filter_map(Self::word).map(str::to_owned).collect(),
            _ => Vec::new(),
        }
    }

    fn word(&self) -> Option<&str> {
        match self {
            Self::Word(text, _) => Some(text),
            _ => None,
        }
    }

    fn of_scalar(text: String, plain: bool) -> Self {
        match text.as_str() {
            "" | "~" | "null" | "Null" | "NULL" if plain => Self::Null,
            _ => {
                let string = !plain || !OTHER_TYPE.is_match(&text);
                Self::Word(text, string)
            }
        }
    }

    /// Keys and values in turn; `<<` stands for the entries of other mappings.
    fn of_pairs(items: Vec<Node>) -> Result<Self, String> {
        let (mut merged, mut entries) = (Vec::new(), Vec::new());
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            match (key, value) {
                (Self::Word(key, true), others) if key == "<<" => {
                    let others = match others {
                        Self::List(list) => list,
                        one => vec![one],
                    };
                    merged.extend(others.into_iter().flat_map(Self::into_entries));
                }
                (Self::Word(key, _), value) => entries.push((key, value)),
                (Self::Null, value) => entries.push((String::new(), value)),
                _ => return Err("has a key that is no word".to_owned()),
            }
        }
        merged.append(&mut entries);
        Ok(Self::Map(merged))
    }

    fn into_entries(self) -> Vec<(String, Node)> {
        match self {
            Self::Map(entries) => entries,
            _ => Vec::new(),
        }
    }

    fn n_bytes(&self) -> usize {
        1 + match self {
            Self::Null => 0,
            Self::Word(text, _) => text.len(),
            Self::List(list) => list.iter().map(Self::n_bytes).sum(),
            Self::Map(entries) => {
                entries.iter().map(|(key, node)| key.len() + node.n_bytes()).sum()
            }
        }
    }
}

/// Plain words that YAML 1.1 takes for booleans, numbers and dates (PyYAML's `Resolver`).
static OTHER_TYPE: LazyLock<Pattern> = LazyLock::new(|| {
    let pattern = r"(?x)^(?:
        yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF
        | [-+]?0b[01_]+ | [-+]?0[0-7_]+ | [-+]?(?:0|[1-9][0-9_]*) | [-+]?0x[0-9a-fA-F_]+
        | [-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+
        | [-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+][0-9]+)? | \.[0-9][0-9_]*(?:[eE][-+][0-9]+)?
        | [-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]* | [-+]?\.(?:inf|Inf|INF) | \.(?:nan|NaN|NAN)
        | \d{4}-\d\d-\d\d
        | \d{4}-\d\d?-\d\d?(?:[Tt]|[\ \t]+)\d\d?:\d\d:\d\d(?:\.\d*)?
          (?:[\ \t]*(?:Z|[-+]\d\d?(?::\d\d)?))?
    )$";
    Pattern::fixed(pattern)
});

/// The front matter of a folder's README.md; `Node::Null` where there is none.
pub(super) fn read(dir: &Path, warnings: &mut Vec<Warning>) -> Node {
    let path = dir.join("README.md");
    let mut warn = |what: &str| {
        let text = format!("{}: the front matter {what}", path.display());
        warnings.push(Warning::new(Topic::Card, text));
    };
    if !path.is_file() {
        return Node::Null;
    }
    let found = match front_matter(&path) {
        Ok(None) => return Node::Null,
        Ok(Some(yaml)) => {
            if yaml.contains(char::REPLACEMENT_CHARACTER) {
                warn("is not UTF-8 throughout");
            }
            parse(&yaml)
        }
        Err(error) => Err(format!("cannot be read ({error})")),
    };
    match found {
        Ok(node @ (Node::Map(_) | Node::Null)) => return node,
        Ok(_) => warn("is no mapping, and left out"),
        Err(what) => warn(&format!("{what}; it is left out")),
    }
    Node::Null
}

/// The lines between the first, which has to be `---`, and the next that is.
fn front_matter(path: &Path) -> std::io::Result<Option<String>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST as u64 + 1).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).replace("\r\n", "\n");
    // Python's lines.
    let mut lines = text.split(|c| {
        matches!(
            c,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    });
    if lines.next() != Some("---") {
        return Ok(None);
    }
    let mut front = String::new();
    let mut ended = false;
    for line in lines {
        if line == "---" {
            ended = true;
            break;
        }
        front += &line.replace('\t', "  ");
        front.push('\n');
    }
    if !ended && bytes.len() > MOST {
        return Err(std::io::Error::other("it has no end within a MiB"));
    }
    Ok(Some(front))
}

/// A list or mapping that has not ended: its anchor, and its values so far.
struct Open {
    anchor: usize,
    items: Vec<Node>,
}

/// The first document.
fn parse(yaml: &str) -> Result<Node, String> {
    let mut parser = Parser::new_from_str(yaml);
    let mut open: Vec<Open> = Vec::new();
    let mut anchors: HashMap<usize, Node> = HashMap::new();
    let mut copied = 0;
    loop {
        let (event, _) = parser.next_token().map_err(|error| format!("is no YAML ({error})"))?;
        let (node, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == TScalarStyle::Plain && tag.is_none();
                (Node::of_scalar(text, plain), anchor)
            }
            Event::Alias(anchor) => match anchors.get(&anchor) {
                Some(node) => {
                    copied += node.n_bytes();
                    if copied > MOST {
                        return Err("has aliases that stand for too much".to_owned());
                    }
                    (node.clone(), 0)
                }
                None => return Err("has an alias within what it stands for".to_owned()),
            },
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => {
                if open.len() >= DEEPEST {
                    return Err("is nested too deep".to_owned());
                }
                open.push(Open { anchor, items: Vec::new() });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(Open { anchor, items }) = open.pop() else { continue };
                let node = match event {
                    Event::SequenceEnd => Node::List(items),
                    _ => Node::of_pairs(items)?,
                };
                (node, anchor)
            }
            Event::DocumentEnd | Event::StreamEnd => return Ok(Node::Null),
            _ => continue,
        };
        if anchor > 0 {
            copied += node.n_bytes();
            anchors.insert(anchor, node.clone());
        }
        match open.last_mut() {
            Some(within) => within.items.push(node),
            None => return Ok(node),
        }
    }
}
