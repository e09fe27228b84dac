//! What a file is that is not what its user thinks: the page of a server that refused, a download
//! that has not ended, a raw piece of a file.
//!
//! It knows first bytes and names, and neither of the formats it is asked for; whoever cannot read a
//! file asks here before it says so.

use crate::pattern::Pattern;
use bstr::ByteSlice;
use std::fmt;
use std::path::Path;
use std::sync::LazyLock;

/// How many bytes from the beginning of a file [`seems`] wants to see.
pub const WANTED: usize = 1024;

/// What a file seems to be. It displays as what it is, a semicolon, and what to do: `a Git LFS
/// pointer, not the file itself; …`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Seems {
    /// Nothing.
    Empty,
    /// Zeros, at its beginning at least.
    Zeros,
    /// The text that stands in a Git repository for a large file, with the size of that file.
    Pointer {
        /// Whose pointer it is, as `Git LFS`.
        of: &'static str,
        /// How to get the file itself.
        fetch: &'static str,
        /// Bytes of the file itself.
        size: Option<u64>,
    },
    /// A page or a message of a server, or some other text: its first line in short.
    Text(String),
    /// A container of another kind.
    Other {
        /// Its kind.
        kind: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// A download or a run that has not ended, by its name.
    Unfinished,
    /// A raw piece of a file, by its name.
    Piece,
}

impl fmt::Display for Seems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "an empty file; download it again"),
            Self::Zeros => write!(
                f,
                "zeros where it should begin, as in a download whose room was set aside and which \
                 has not got this far; download it again"
            ),
            Self::Pointer { of, fetch, size } => {
                write!(f, "a {of} pointer, not the file itself")?;
                if let Some(size) = size {
                    write!(f, " ({size} bytes)")?;
                }
                write!(f, "; {fetch}")
            }
            Self::Text(line) => write!(
                f,
                "text that begins with `{line}`, as when a server answers with a page or a message \
                 instead of the file; check address and access, and download it again"
            ),
            Self::Other { kind, advice } => write!(f, "{kind}; {advice}"),
            Self::Unfinished => write!(
                f,
                "by its name a download or a run that has not ended; let it end, or begin it again"
            ),
            Self::Piece => write!(
                f,
                "by its name a raw piece of a file; join all pieces in their order, as with \
                 `cat PIECE1 PIECE2 … > FILE`"
            ),
        }
    }
}

/// What a file seems to be, by its first bytes ([`WANTED`], or all where it has fewer), and where they
/// say nothing, by its name; `None` where neither does.
pub fn seems(head: &[u8], path: &Path) -> Option<Seems> {
    by_bytes(head).or_else(|| by_name(path))
}

/// What a file seems to be by its name: one that cannot be complete, whatever it begins with.
pub fn by_name(path: &Path) -> Option<Seems> {
    static UNFINISHED: LazyLock<Pattern> = LazyLock::new(|| {
        pattern(r"\.(incomplete|part|partial|crdownload|download|opdownload|aria2|tmp|!qb|!ut)$")
    });
    static PIECE: LazyLock<Pattern> = LazyLock::new(|| {
        pattern(
            r"(?x) (^|[._-])(part|split|piece|chunk)([._-]?\d+|[._-][a-z]{1,3})([._-]?of[._-]?\d+)?
                (\.(gguf|safetensors|bin|dat))?$
            | \.(gguf|safetensors|bin)[._-](\d{1,5}|[a-z]{1,3})$",
        )
    });
    let name = path.file_name()?.to_string_lossy();
    match () {
        () if UNFINISHED.is_match(&name) => Some(Seems::Unfinished),
        () if PIECE.is_match(&name) => Some(Seems::Piece),
        () => None,
    }
}

fn pattern(pattern: &str) -> Pattern {
    Pattern::fixed(&format!("(?i){pattern}"))
}

fn by_bytes(head: &[u8]) -> Option<Seems> {
    if head.is_empty() {
        return Some(Seems::Empty);
    }
    if head.iter().all(|&byte| byte == 0) {
        return Some(Seems::Zeros);
    }
    pointer(head).or_else(|| container(head)).or_else(|| text(head).map(Seems::Text))
}

fn pointer(head: &[u8]) -> Option<Seems> {
    const LFS: &str = "fetch it with `git lfs pull`, or download it with `hf download`";
    const XET: &str = "fetch it with git-xet, or download it with `hf download`";
    let kinds: [(&[u8], _, _, _); 3] = [
        (b"version https://git-lfs.github.com/spec/", "Git LFS", LFS, "size "),
        (b"version https://hawser.github.com/spec/", "Git LFS", LFS, "size "),
        (b"# xet version", "Xet", XET, "filesize = "),
    ];
    let (_, of, fetch, size) = kinds.into_iter().find(|(begin, ..)| head.starts_with(begin))?;
    let line = head.lines().find_map(|line| line.strip_prefix(size.as_bytes()));
    let size = line.and_then(|line| line.trim().to_str().ok()?.parse().ok());
    Some(Seems::Pointer { of, fetch, size })
}

fn container(head: &[u8]) -> Option<Seems> {
    const UNPACK: &str = "unpack it first";
    const CONVERT: &str = "convert the original model anew";
    const PICKLE: &str = "only safetensors are read, which the model's page offers as well, or which \
                          the library that wrote it can save";
    const OLD: &str = "a model in a format from before GGUF";
    let kinds: [(&[u8], _, _); 22] = [
        (b"GGUF", "a GGUF file", "give the file itself where a GGUF file is read"),
        (b"PK\x03\x04", "a zip archive, as PyTorch writes its checkpoints", PICKLE),
        (b"\x80\x02", "a Python pickle", PICKLE),
        (b"\x80\x03", "a Python pickle", PICKLE),
        (b"\x80\x04", "a Python pickle", PICKLE),
        (b"\x80\x05", "a Python pickle", PICKLE),
        (b"\x1f\x8b", "gzip-compressed", UNPACK),
        (b"\x28\xb5\x2f\xfd", "Zstandard-compressed", UNPACK),
        (b"\xfd7zXZ\0", "xz-compressed", UNPACK),
        (b"BZh", "bzip2-compressed", UNPACK),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
        (b"Rar!", "a RAR archive", UNPACK),
        (b"\x89HDF", "an HDF5 file", CONVERT),
        (b"\x93NUMPY", "a NumPy array", CONVERT),
        (b"lmgg", OLD, CONVERT),
        (b"fmgg", OLD, CONVERT),
        (b"tjgg", OLD, CONVERT),
        (b"algg", OLD, CONVERT),
        (b"ggml", OLD, CONVERT),
        (b"GGML", OLD, CONVERT),
        (b"ggjt", OLD, CONVERT),
        (b"GGJT", OLD, CONVERT),
    ];
    let found = kinds.into_iter().find(|(magic, ..)| head.starts_with(magic));
    let tar = || (head.get(257..262)? == b"ustar").then_some(("a tar archive", UNPACK));
    let safetensors = || {
        let (length, rest) = head.split_first_chunk::<8>()?;
        let plausible = (2..1 << 32).contains(&u64::from_le_bytes(*length));
        let advice = "give the folder that it lies in where a checkpoint is read";
        (plausible && rest.first() == Some(&b'{')).then_some(("a safetensors file", advice))
    };
    let (kind, advice) =
        found.map(|(_, kind, advice)| (kind, advice)).or_else(tar).or_else(safetensors)?;
    Some(Seems::Other { kind, advice })
}

/// The first line of what is text from beginning to end, in short.
fn text(head: &[u8]) -> Option<String> {
    let text = match head.to_str() {
        Ok(text) => text,
        // A sequence may be cut at the end.
        Err(error) if error.valid_up_to() + 4 > head.len() => {
            head[..error.valid_up_to()].to_str().ok()?
        }
        Err(_) => return None,
    };
    let text = text.trim_start_matches('\u{feff}');
    if text.chars().any(|c| c.is_control() && !c.is_whitespace()) {
        return None;
    }
    let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
    let short: String = line.chars().take(60).collect();
    Some(if short.len() < line.len() { short + "…" } else { short })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn says(head: &[u8], name: &str, expected: &[&str]) {
        let seems = seems(head, Path::new(name)).map(|seems| seems.to_string());
        let said = seems.as_deref().unwrap_or("nothing");
        expected.iter().for_each(|word| assert!(said.contains(word), "{said}"));
    }

    #[test]
    fn what_is_fetched_instead_of_a_file_is_recognized() {
        let lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4300000000\n";
        says(lfs.as_bytes(), "a.gguf", &["Git LFS pointer", "4300000000 bytes", "git lfs pull"]);
        says(b"# xet version 0\nfilesize = 17\n", "a", &["Xet pointer", "(17 bytes)"]);
        says(b"<!DOCTYPE html>\n<html>", "a", &["`<!DOCTYPE html>`", "server"]);
        says("\u{feff}\n <?xml version=\"1.0\"?>".as_bytes(), "a", &["`<?xml"]);
        says(br#"{"error":"Invalid username or password."}"#, "a", &["Invalid username"]);
        says(b"Entry not found", "a", &["`Entry not found`"]);
        says("ä".repeat(512).as_bytes(), "a", &["ä…`"]);
        says(&"xä".repeat(512).as_bytes()[..1025], "a", &["ä"]);
        says(b"", "a", &["empty"]);
        says(&[0; 1024], "a.part", &["zeros", "set aside"]);
    }

    #[test]
    fn containers_are_recognized() {
        let safetensors = [&300u64.to_le_bytes()[..], b"{\"__metadata__\""].concat();
        let mut tar = vec![1; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (head, expected) in [
            (&safetensors[..], "a safetensors file"),
            (&tar, "a tar archive"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"PK\x03\x04", "zip archive"),
            (b"\x80\x02}q", "pickle"),
            (b"tjgg\x03\0\0\0", "before GGUF"),
            (b"GGUF\x03\0\0\0", "a GGUF file"),
        ] {
            says(head, "a", &[expected]);
        }
    }

    #[test]
    fn names_speak_where_bytes_do_not() {
        let bytes = [0x17, 0x80, 0xff, 3];
        for name in ["m.gguf.part2of3", "m.gguf.part2", "m.gguf-split-b", "m.gguf.001", "m.gguf.ab"]
        {
            says(&bytes, name, &["raw piece", "cat"]);
        }
        for name in [
            "m.Q4_K.part-2-of-3",
            "m.part1of3.gguf",
            "m.safetensors.part_aa",
            "M.GGUF.PART1",
            "part03.bin",
            "model_part_0000",
        ] {
            says(&bytes, name, &["raw piece"]);
        }
        for name in ["m.gguf.part", "a/4f3e.incomplete", "m.gguf.crdownload", "m.gguf.tmp"] {
            says(&bytes, name, &["not ended"]);
        }
        let ordinary =
            ["m.gguf", "m-00002-of-00003.gguf", "model.safetensors", "m-part.gguf", "m-Q4_K.gguf"];
        for name in ordinary {
            assert_eq!(by_name(Path::new(name)), None, "{name}");
        }
    }
}
