//! What one share of a measurement has found, as a file, and shares joined to the whole.
//!
//! A part is a safetensors file of words of eight bytes: values of every token, sums in exact form. What
//! belongs to them stands in its metadata as JSON, with what tells the measurement from others.

use super::outcome::{Found, Outcome};
use super::values::{OfModel, Values};
use super::{MeasureError, Terms, gate};
use crate::convert::Shard;
use crate::eval::{Activations, Apart, Exact, Squares, TOP, TokenValues, importances};
use crate::io::{Disk, IoError, write};
use crate::warning::Warning;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The version of this form.
const FORM: u32 = 1;
/// The key of the metadata.
const HEAD: &str = "requant.part";
/// Words of a token of a model that is compared: four values, and agreement.
const TOKEN_WORDS: usize = 5;

/// What one share of a measurement has found, or all of them.
#[derive(Clone, Debug)]
pub struct Part {
    pub(super) head: Head,
    pub(super) measured: Measured,
}

/// What was measured.
#[derive(Clone, Debug)]
pub(super) enum Measured {
    Values(Values),
    Squares(BTreeMap<String, Squares>),
}

/// What a measurement is of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Head {
    pub form: u32,
    pub kind: Kind,
    /// What parts of the same measurement have in common, for people to read; empty where no share was
    /// asked for.
    pub identity: Vec<(String, String)>,
    /// The share, and of how many.
    pub share: Option<(u32, u32)>,
    /// Chunks of all shares.
    pub chunks: usize,
    /// Texts, and which chunks are of each.
    pub texts: Vec<(PathBuf, Range<usize>)>,
    /// The reference, or the one model.
    pub reference: PathBuf,
    /// The models compared with it, and their bits per weight.
    pub models: Vec<(PathBuf, f64)>,
    pub ctx: usize,
    pub activations: Activations,
    pub by_tensor: bool,
    pub until_error: Option<f64>,
    pub seed: u64,
    /// What was not as one would expect.
    pub warnings: Vec<Warning>,
}

/// Which measurement it is.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Perplexity,
    Compare,
    Gate(Terms),
    Imatrix,
}

impl Head {
    fn shard(&self) -> Option<Shard> {
        self.share.and_then(|(number, count)| Shard::new(number, count))
    }

    /// The chunks that belong to it.
    fn own_chunks(&self) -> Range<usize> {
        match self.shard() {
            Some(shard) => shard.of(self.chunks),
            None => 0..self.chunks,
        }
    }
}

impl Part {
    /// What was not as one would expect of models and texts.
    pub fn warnings(&self) -> &[Warning] {
        &self.head.warnings
    }

    /// Takes up what was not as one would expect.
    pub fn set_warnings(&mut self, warnings: Vec<Warning>) {
        self.head.warnings = warnings;
    }

    /// Whether this is the same share of the same measurement.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.head.identity, self.head.share) == (&other.head.identity, other.head.share)
    }

    /// Writes a file.
    ///
    /// # Errors
    /// The system refuses.
    pub fn write(&self, disk: &dyn Disk, path: &Path) -> Result<(), MeasureError> {
        let bad = |what: String| MeasureError::Part { path: path.to_owned(), what };
        let head = serde_json::to_string(&self.head).map_err(|error| bad(error.to_string()))?;
        let arrays = self.arrays().into_iter().map(|(name, words)| {
            (name, words.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<u8>>())
        });
        let arrays: Vec<(String, Vec<u8>)> = arrays.collect();
        let views = arrays.iter().map(|(name, bytes)| {
            Ok((name, TensorView::new(Dtype::U64, vec![bytes.len() / 8], bytes)?))
        });
        let metadata = Some(HashMap::from([(HEAD.to_owned(), head)]));
        let bytes = views
            .collect::<Result<Vec<_>, _>>()
            .and_then(|views| safetensors::serialize(views, metadata))
            .map_err(|error| bad(error.to_string()))?;
        Ok(write(disk, path, &bytes)?)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// A file of another kind, a damaged one, a system that refuses.
    pub fn open(path: &Path) -> Result<Self, MeasureError> {
        let bad = |what: &str| MeasureError::Part { path: path.to_owned(), what: what.to_owned() };
        let bytes = std::fs::read(path).map_err(|error| IoError::new(path, error))?;
        let other = || bad("no part of a measurement, which --shard makes, or cut short");
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|_| other())?;
        let head = metadata.metadata().as_ref().and_then(|all| all.get(HEAD)).ok_or_else(other)?;
        let head: Head = serde_json::from_str(head)
            .map_err(|_| bad("a part of another version of this program"))?;
        if head.form != FORM || head.share.is_some() != head.shard().is_some() {
            return Err(bad("a part of another version of this program"));
        }
        let tensors = SafeTensors::deserialize(&bytes).map_err(|_| bad("cut short or damaged"))?;
        let words = |view: &TensorView| -> Vec<u64> {
            view.data().as_chunks::<8>().0.iter().map(|&word| u64::from_le_bytes(word)).collect()
        };
        let arrays = tensors.tensors();
        let mut arrays: HashMap<String, Vec<u64>> =
            arrays.iter().map(|(name, view)| (name.clone(), words(view))).collect();
        let measured = Measured::read(&head, &mut arrays);
        let measured = measured.ok_or_else(|| bad("a part that is damaged"))?;
        Ok(Self { head, measured })
    }

    fn arrays(&self) -> Vec<(String, Vec<u64>)> {
        match &self.measured {
            Measured::Squares(squares) => (squares.iter())
                .flat_map(|(name, of)| {
                    let sums = of.sums.iter().flat_map(|sum| sum.words()).collect();
                    [(format!("{name}.sums"), sums), (format!("{name}.counts"), of.counts.clone())]
                })
                .collect(),
            Measured::Values(values) => {
                let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect();
                let mut all = vec![("nll".to_owned(), bits(&values.nll))];
                for (i, model) in values.models.iter().enumerate() {
                    let tokens = model.tokens.iter().flat_map(token_words).collect();
                    let layers = model.layers.iter().flat_map(|layer| layer.words()).collect();
                    all.push((format!("{i}.tokens"), tokens));
                    all.push((format!("{i}.layers"), layers));
                    all.extend(model.tensors.iter().map(|(name, error)| {
                        (format!("{i}.tensor.{name}"), error.words().to_vec())
                    }));
                }
                all
            }
        }
    }

    /// Joins the shares of a measurement, which come with their files' names.
    ///
    /// # Errors
    /// Shares that do not belong together, are missing or appear twice.
    pub fn join(parts: Vec<(PathBuf, Self)>) -> Result<Self, MeasureError> {
        let mut parts = parts.into_iter();
        let Some((first, mut whole)) = parts.next() else { return Err(MeasureError::NoPart) };
        let count = whole.head.share.map_or(1, |(_, count)| count);
        let mut seen = BTreeMap::from([(whole.head.share.map_or(1, |(n, _)| n), first.clone())]);
        for (path, part) in parts {
            differing(&first, &whole.head, &path, &part.head)?;
            let number = part.head.share.map_or(1, |(number, _)| number);
            if let Some(first) = seen.insert(number, path.clone()) {
                return Err(MeasureError::Twice {
                    first,
                    path,
                    share: format!("{number}/{count}"),
                });
            }
            whole.add(part, &path)?;
        }
        let missing = (1..=count).filter(|number| !seen.contains_key(number));
        let shares: Vec<String> = missing.map(|number| format!("{number}/{count}")).collect();
        if !shares.is_empty() {
            return Err(MeasureError::Missing { first, shares });
        }
        whole.head.share = None;
        Ok(whole)
    }

    fn add(&mut self, other: Self, path: &Path) -> Result<(), MeasureError> {
        let news = other.head.warnings.into_iter();
        let news: Vec<Warning> =
            news.filter(|warning| !self.head.warnings.contains(warning)).collect();
        self.head.warnings.extend(news);
        match (&mut self.measured, other.measured) {
            (Measured::Values(own), Measured::Values(other)) => own.add(other),
            (Measured::Squares(own), Measured::Squares(other)) => {
                for (name, squares) in other {
                    let fits = match own.get_mut(&name) {
                        Some(own) => own.add(&squares),
                        None => own.insert(name.clone(), squares).is_none(),
                    };
                    if !fits {
                        let what = format!("`{name}` has another shape than in the parts before");
                        return Err(MeasureError::Part { path: path.to_owned(), what });
                    }
                }
            }
            _ => unreachable!("kinds are compared"),
        }
        Ok(())
    }

    /// What follows from all shares.
    ///
    /// # Errors
    /// Nothing was scored.
    pub fn result(&self) -> Result<Found, MeasureError> {
        let head = &self.head;
        Ok(match (&self.measured, head.kind) {
            (Measured::Squares(squares), _) => {
                let texts = head.texts.iter().map(|(path, _)| path.display().to_string());
                let (chunks, ctx) = (head.chunks as u32, head.ctx as u32);
                Found::Importances(importances(squares, texts.collect(), chunks, ctx))
            }
            (Measured::Values(values), Kind::Gate(terms)) => {
                Found::Judgement(gate::judge(values, head, terms)?)
            }
            (Measured::Values(values), kind) => {
                let outcome = Box::new(Outcome::new(head, values)?);
                match kind {
                    Kind::Perplexity => Found::Perplexity(outcome),
                    _ => Found::Comparison(outcome),
                }
            }
        })
    }
}

/// An error where two parts are of different measurements, which names what differs first.
fn differing(first: &Path, a: &Head, path: &Path, b: &Head) -> Result<(), MeasureError> {
    let nothing = (String::new(), "nothing".to_owned());
    let at = |head: &Head, i: usize| head.identity.get(i).unwrap_or(&nothing).clone();
    let n = a.identity.len().max(b.identity.len());
    let differs = (0..n).map(|i| (at(a, i), at(b, i))).find(|(a, b)| a != b);
    match differs {
        None => Ok(()),
        Some(((what, there), (other, here))) => Err(MeasureError::Unlike {
            first: first.to_owned(),
            path: path.to_owned(),
            what: if what.is_empty() { other } else { what },
            values: [there, here],
        }),
    }
}

fn token_words(token: &TokenValues) -> [u64; TOKEN_WORDS] {
    let shared = token.shared.iter().fold(0, |word, &n| (word << 8) | u64::from(n));
    let floats = [token.nll_reference, token.nll, token.kl, token.p_change].map(f64::to_bits);
    let [a, b, c, d] = floats;
    [a, b, c, d, (shared << 1) | u64::from(token.same_top)]
}

fn token([a, b, c, d, agreement]: [u64; TOKEN_WORDS]) -> TokenValues {
    let [nll_reference, nll, kl, p_change] = [a, b, c, d].map(f64::from_bits);
    let mut shared = [0; TOP.len()];
    let mut word = agreement >> 1;
    for n in shared.iter_mut().rev() {
        *n = word as u8;
        word >>= 8;
    }
    TokenValues { nll_reference, nll, kl, p_change, same_top: agreement & 1 == 1, shared }
}

impl Measured {
    /// Takes what was measured out of arrays, if they are those that the head calls for.
    fn read(head: &Head, arrays: &mut HashMap<String, Vec<u64>>) -> Option<Self> {
        match head.kind {
            Kind::Imatrix => Self::squares(arrays).map(Self::Squares),
            _ => Self::values(head, arrays).map(Self::Values),
        }
    }

    fn squares(arrays: &mut HashMap<String, Vec<u64>>) -> Option<BTreeMap<String, Squares>> {
        let mut squares = BTreeMap::new();
        for (name, words) in arrays.iter() {
            let Some(name) = name.strip_suffix(".sums") else { continue };
            let counts = arrays.get(&format!("{name}.counts"))?.clone();
            let sums: Vec<Exact> =
                words.as_chunks::<2>().0.iter().map(|&words| Exact::from_words(words)).collect();
            if counts.is_empty() || !sums.len().is_multiple_of(counts.len()) {
                return None;
            }
            squares.insert(name.to_owned(), Squares { sums, counts });
        }
        Some(squares)
    }

    fn values(head: &Head, arrays: &mut HashMap<String, Vec<u64>>) -> Option<Values> {
        let chunks = head.own_chunks();
        let scored = chunks.len().checked_mul(head.ctx.checked_sub(1 + head.ctx / 2)?)?;
        let nll: Vec<f64> = arrays.remove("nll")?.into_iter().map(f64::from_bits).collect();
        if nll.len() != scored {
            return None;
        }
        let mut models = Vec::new();
        for i in 0..head.models.len() {
            let tokens = arrays.remove(&format!("{i}.tokens"))?;
            let tokens: Vec<TokenValues> =
                tokens.as_chunks().0.iter().map(|&words| token(words)).collect();
            let layers = arrays.remove(&format!("{i}.layers"))?;
            let layers = layers.as_chunks().0.iter().map(|&words| Apart::from_words(words));
            let tensors = arrays.iter().filter_map(|(name, words)| {
                let name = name.strip_prefix(&format!("{i}.tensor."))?;
                Some((name.to_owned(), Apart::from_words(words.as_slice().try_into().ok()?)))
            });
            if tokens.len() != scored {
                return None;
            }
            models.push(OfModel { tokens, layers: layers.collect(), tensors: tensors.collect() });
        }
        Some(Values { chunks: chunks.collect(), nll, models })
    }
}
