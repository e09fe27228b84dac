//! Output, type and threads, as words behind the input or as options.

use std::path::{Path, PathBuf};

/// What follows the input.
#[derive(clap::Args)]
pub struct Operands {
    /// File to write, or with --types the folder of several
    #[arg(value_name = "OUTPUT")]
    first: Option<PathBuf>,
    /// Type of the output; as --type
    #[arg(value_name = "TYPE")]
    second: Option<String>,
    /// Threads, in the place where llama-quantize takes them; as --threads
    #[arg(value_name = "NTHREADS", hide = true)]
    third: Option<String>,
    /// File to write, or with --types the folder of several
    #[arg(long, short, value_name = "OUTPUT", help_heading = "Output")]
    output: Option<PathBuf>,
}

/// What the words are.
#[derive(Debug, Default, PartialEq)]
pub struct Words {
    pub output: Option<PathBuf>,
    pub ty: Option<String>,
    pub threads: Option<u16>,
}

impl Operands {
    /// Tells the words apart. `has_type` says that the type is an option, and `is_type` whether a word is one,
    /// before which the output may be left out.
    pub fn words(&self, has_type: bool, is_type: impl Fn(&str) -> bool) -> Result<Words, String> {
        let first = self.first.iter().map(|path| path.to_string_lossy().into_owned());
        let rest = self.second.iter().chain(&self.third).cloned();
        let mut words = first.chain(rest).peekable();
        let mut found = Words { output: self.output.clone(), ..Words::default() };
        if found.output.is_none() {
            let named = |word: &String| !has_type && is_type(word) && !word.ends_with(".toml");
            if words.next_if(|word| !named(word)).is_some() {
                // As it was given, whether or not it is text.
                found.output.clone_from(&self.first);
            }
        }
        if !has_type {
            found.ty = words.next();
        }
        found.threads = match words.next() {
            None => None,
            Some(word) => match word.parse() {
                Ok(n @ 1..=1024) => Some(n),
                _ => {
                    let ty = found.ty.as_deref().unwrap_or("--type");
                    return Err(format!(
                        "`{word}` is no number of threads from 1 to 1024, and only that may follow `{ty}`, \
                         which is a type; the output stands before the type"
                    ));
                }
            },
        };
        match words.next() {
            Some(word) => Err(format!("one word too many: `{word}`")),
            None => Ok(found),
        }
    }
}

/// The one place that is written.
#[derive(clap::Args)]
pub struct Destination {
    /// What is written: a file, or a folder for what is one
    #[arg(value_name = "OUTPUT", required_unless_present = "output")]
    word: Option<PathBuf>,
    /// The same as an option
    #[arg(long, short, value_name = "OUTPUT", conflicts_with = "word")]
    output: Option<PathBuf>,
}

impl Destination {
    /// It.
    pub fn path(&self) -> &Path {
        self.word.as_deref().or(self.output.as_deref()).unwrap_or(Path::new(""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str], output: Option<&str>, has_type: bool) -> Result<Words, String> {
        let word = |i: usize| words.get(i).map(|word| (*word).to_owned());
        let operands = Operands {
            first: word(0).map(PathBuf::from),
            second: word(1),
            third: word(2),
            output: output.map(PathBuf::from),
        };
        operands.words(has_type, |word| word.starts_with('Q'))
    }

    fn of(output: Option<&str>, ty: Option<&str>, threads: Option<u16>) -> Result<Words, String> {
        let (output, ty) = (output.map(PathBuf::from), ty.map(str::to_owned));
        Ok(Words { output, ty, threads })
    }

    #[test]
    fn words_and_options_are_told_apart() {
        assert_eq!(words(&["a.gguf", "Q4_0"], None, false), of(Some("a.gguf"), Some("Q4_0"), None));
        assert_eq!(words(&["Q4_0", "8"], None, false), of(None, Some("Q4_0"), Some(8)));
        assert_eq!(
            words(&["a.gguf", "Q4_0", "8"], None, false),
            of(Some("a.gguf"), Some("Q4_0"), Some(8))
        );
        assert_eq!(words(&["Q4_0"], Some("a.gguf"), false), of(Some("a.gguf"), Some("Q4_0"), None));
        assert_eq!(words(&["a.gguf", "2"], None, true), of(Some("a.gguf"), None, Some(2)));
        assert_eq!(words(&[], Some("a.gguf"), true), of(Some("a.gguf"), None, None));
        assert_eq!(words(&["Q.toml", "Q4_0"], None, false), of(Some("Q.toml"), Some("Q4_0"), None));
        assert!(words(&["Q4_0", "a.gguf"], None, false).unwrap_err().contains("before the type"));
        assert!(words(&["a", "1", "2"], None, true).unwrap_err().contains("too many"));
    }
}
