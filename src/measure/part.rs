//! What one share of a measurement has found, as a file, and shares joined to the whole.
//!
//! A part is a safetensors file of words of eight bytes: values of every token, sums in exact form; or of what a
//! search for a mix has found or of answers to tasks, as JSON. What belongs to them stands in its metadata as JSON, with what tells the
//! measurement from others.

use super::choices::Answered;
use super::chunks::Chunks;
use super::outcome::{Found, Outcome};
use super::values::{OfModel, Values};
use super::{Inputs, MeasureError, Options, Sensitivities, Terms, gate};
use crate::convert::Shard;
use crate::eval::{Activations, Apart, Exact, Squares, TOP, TokenValues, importances};
use crate::io::{Disk, IoError, write};
use crate::warning::Warning;
use safetensors::tensor::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The version of this form.
const FORM: u32 = 3;
/// The key of the metadata.
const HEAD: &str = "requant.part";
/// The array of what a search for a mix has found.
const SENSITIVITIES: &str = "sensitivities";
/// The array of answers to tasks.
const ANSWERS: &str = "answers";
/// Tokens of a chunk, at least.
const LEAST_CTX: usize = 4;
/// Missing shares that are named, at most.
const MOST_NAMED: usize = 32;
/// Words of a token of a model that is compared: four values, and agreement.
const TOKEN_WORDS: usize = 5;

/// What one share of a measurement has found, or all of them.
#[derive(Clone, Debug)]
pub struct Part {
    pub(super) head: Head,
    pub(super) measured: Measured,
    /// Whether it was ended before it had what was asked for. A share that is written never was.
    pub(super) stopped: bool,
}

/// What was measured.
#[derive(Clone, Debug)]
pub(super) enum Measured {
    Values(Values),
    Squares(BTreeMap<String, Squares>),
    Sensitivities(Sensitivities),
    Answers(Answered),
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
    /// What the share was of, where it was measured.
    pub inputs: Option<Inputs>,
    /// Chunks of all shares.
    pub chunks: usize,
    /// Texts, and which chunks are of each.
    pub texts: Vec<(PathBuf, Range<usize>)>,
    /// The reference, or the one model.
    pub reference: PathBuf,
    /// The models compared with it.
    pub models: Vec<Compared>,
    pub ctx: usize,
    pub activations: Activations,
    pub by_tensor: bool,
    pub until_error: Option<f64>,
    pub seed: u64,
    /// What was not as one would expect.
    pub warnings: Vec<Warning>,
}

/// A model that is compared with the reference.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Compared {
    pub path: PathBuf,
    pub bits_per_weight: f64,
    /// Its size.
    pub bytes: u64,
    /// Its tensors, where errors of tensors are wanted.
    pub stored: Vec<Stored>,
}

/// How a tensor is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    pub name: String,
    pub ty: String,
    pub weights: u64,
    pub bytes: u64,
}

/// Which measurement it is.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Perplexity,
    Compare,
    Gate(Terms),
    Imatrix,
    Sensitivities,
    Choices,
}

impl Head {
    /// That of a measurement on some chunks, which compares nothing yet and has nothing in common with others.
    pub fn new(kind: Kind, reference: PathBuf, chunks: &Chunks, options: &Options) -> Self {
        let counts = (chunks.len(), chunks.ctx);
        Self::of(kind, reference, counts, chunks.texts.clone(), options)
    }

    /// That of so many tasks of a file: these are its chunks, which have no length of their own.
    pub fn of_tasks(file: &Path, tasks: usize, reference: PathBuf, options: &Options) -> Self {
        let texts = vec![(file.to_owned(), 0..tasks)];
        Self::of(Kind::Choices, reference, (tasks, LEAST_CTX), texts, options)
    }

    fn of(
        kind: Kind,
        reference: PathBuf,
        (chunks, ctx): (usize, usize),
        texts: Vec<(PathBuf, Range<usize>)>,
        options: &Options,
    ) -> Self {
        Self {
            form: FORM,
            kind,
            identity: Vec::new(),
            share: options.share.map(|share| (share.number(), share.count())),
            inputs: None,
            chunks,
            texts,
            reference,
            models: Vec::new(),
            ctx,
            activations: options.activations,
            by_tensor: false,
            until_error: options.until_error,
            seed: options.seed,
            warnings: Vec::new(),
        }
    }

    fn shard(&self) -> Option<Shard> {
        self.share.and_then(|(number, count)| Shard::new(number, count))
    }

    /// Whether what it says can be.
    fn is_sound(&self) -> bool {
        let compared = match self.kind {
            Kind::Perplexity | Kind::Imatrix | Kind::Sensitivities | Kind::Choices => {
                self.models.is_empty()
            }
            Kind::Compare => true,
            Kind::Gate(_) => !self.models.is_empty(),
        };
        let share = self.share.is_some() == self.shard().is_some();
        compared && share && self.chunks > 0 && self.ctx >= LEAST_CTX
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

    /// What a share was of, where it was measured; of joined shares, where the first was.
    pub fn inputs(&self) -> Option<&Inputs> {
        self.head.inputs.as_ref()
    }

    /// Takes up what was not as one would expect.
    pub fn set_warnings(&mut self, warnings: Vec<Warning>) {
        self.head.warnings = warnings;
    }

    /// Takes up what a share of a search for a mix has found.
    pub fn set_sensitivities(&mut self, found: Sensitivities) {
        self.measured = Measured::Sensitivities(found);
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
        let metadata = Some(HashMap::from([(HEAD.to_owned(), head)]));
        let arrays = self.arrays().map_err(|error| bad(error.to_string()))?;
        let bytes = safetensors::serialize(arrays, metadata);
        let bytes = bytes.map_err(|error| bad(error.to_string()))?;
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
        if head.form != FORM || !head.is_sound() {
            return Err(bad("a part of another version of this program"));
        }
        let tensors = SafeTensors::deserialize(&bytes).map_err(|_| bad("cut short or damaged"))?;
        let measured = Measured::read(&head, &Arrays(tensors));
        let measured = measured.ok_or_else(|| bad("a part that is damaged"))?;
        Ok(Self { head, measured, stopped: false })
    }

    fn arrays(&self) -> Result<Vec<(String, Array<'_>)>, serde_json::Error> {
        let mut all = Vec::new();
        match &self.measured {
            Measured::Squares(squares) => {
                for (name, of) in squares {
                    let sums = || of.sums.iter().flat_map(|sum| sum.words());
                    all.push((format!("{name}.sums"), Array::new(2 * of.sums.len(), sums)));
                    let counts = || of.counts.iter().copied();
                    all.push((format!("{name}.counts"), Array::new(of.counts.len(), counts)));
                }
            }
            Measured::Sensitivities(found) => {
                all.push((SENSITIVITIES.to_owned(), Array::of_bytes(serde_json::to_vec(found)?)));
            }
            Measured::Answers(answered) => {
                all.push((ANSWERS.to_owned(), Array::of_bytes(serde_json::to_vec(answered)?)));
            }
            Measured::Values(values) => {
                let nll = || values.nll.iter().map(|value| value.to_bits());
                all.push(("nll".to_owned(), Array::new(values.nll.len(), nll)));
                for (i, model) in values.models.iter().enumerate() {
                    let OfModel { tokens, layers, tensors } = model;
                    let words = || tokens.iter().flat_map(token_words);
                    all.push((
                        format!("{i}.tokens"),
                        Array::new(TOKEN_WORDS * tokens.len(), words),
                    ));
                    let words = || layers.iter().flat_map(|layer| layer.words());
                    all.push((format!("{i}.layers"), Array::new(4 * layers.len(), words)));
                    for (name, error) in tensors {
                        let words = || error.words().into_iter();
                        all.push((format!("{i}.tensor.{name}"), Array::new(4, words)));
                    }
                }
            }
        }
        Ok(all)
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
        // A damaged file may say any number.
        let mut shares: Vec<String> =
            missing.map(|number| format!("{number}/{count}")).take(MOST_NAMED + 1).collect();
        if shares.len() > MOST_NAMED {
            shares[MOST_NAMED] = "…".to_owned();
        }
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
            (Measured::Sensitivities(own), Measured::Sensitivities(other)) => own.add(other),
            (Measured::Answers(own), Measured::Answers(other)) => own.add(other),
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
            (Measured::Sensitivities(found), _) => Found::Sensitivities(found.clone()),
            (Measured::Answers(answered), _) => Found::Choices(answered.choices()),
            (Measured::Values(values), Kind::Gate(terms)) => {
                Found::Judgement(Box::new(gate::judgement(values, head, terms, self.stopped)?))
            }
            (Measured::Values(values), kind) => {
                let outcome = Box::new(Outcome::new(head, values, self.stopped)?);
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
    // Of the same measurement they are equal, unless somebody has changed a file.
    let holds = |head: &Head| {
        let of = (head.chunks, head.ctx, head.models.len());
        ("what it holds".to_owned(), format!("{} {of:?}", head.kind.name()))
    };
    let differs = differs.or_else(|| Some((holds(a), holds(b))).filter(|(a, b)| a != b));
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

/// Words, or bytes, that are made when they are written, so that they are not all there twice.
struct Array<'a> {
    dtype: Dtype,
    shape: [usize; 1],
    bytes: Box<dyn Fn() -> Vec<u8> + 'a>,
}

impl<'a> Array<'a> {
    fn new<I: Iterator<Item = u64>>(len: usize, words: impl Fn() -> I + 'a) -> Self {
        let bytes = Box::new(move || words().flat_map(u64::to_le_bytes).collect());
        Self { dtype: Dtype::U64, shape: [len], bytes }
    }

    fn of_bytes(bytes: Vec<u8>) -> Self {
        let shape = [bytes.len()];
        Self { dtype: Dtype::U8, shape, bytes: Box::new(move || bytes.clone()) }
    }
}

impl View for Array<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        (self.bytes)().into()
    }

    fn data_len(&self) -> usize {
        self.dtype.bitsize() / 8 * self.shape[0]
    }
}

/// The arrays of a file.
struct Arrays<'b>(SafeTensors<'b>);

impl Arrays<'_> {
    /// Pieces of so many words.
    fn pieces<const N: usize>(&self, name: &str) -> Option<impl Iterator<Item = [u64; N]> + '_> {
        let (words, rest) = self.0.tensor(name).ok()?.data().as_chunks::<8>();
        let (pieces, left) = words.as_chunks::<N>();
        let read = |piece: &[[u8; 8]; N]| piece.map(u64::from_le_bytes);
        (rest.is_empty() && left.is_empty()).then(|| pieces.iter().map(read))
    }

    /// Names that begin so, without that.
    fn named<'n>(&'n self, begin: &'n str) -> impl Iterator<Item = &'n str> {
        self.0.names().into_iter().filter_map(move |name| name.strip_prefix(begin))
    }
}

impl Measured {
    /// What was measured, if the arrays are those that the head calls for.
    fn read(head: &Head, arrays: &Arrays) -> Option<Self> {
        match head.kind {
            Kind::Imatrix => Self::squares(arrays).map(Self::Squares),
            Kind::Sensitivities => {
                let json = arrays.0.tensor(SENSITIVITIES).ok()?;
                serde_json::from_slice(json.data()).ok().map(Self::Sensitivities)
            }
            Kind::Choices => {
                let json = arrays.0.tensor(ANSWERS).ok()?;
                let answered: Answered = serde_json::from_slice(json.data()).ok()?;
                answered.is_sound(head.own_chunks().len()).then_some(Self::Answers(answered))
            }
            _ => Self::values(head, arrays).map(Self::Values),
        }
    }

    fn squares(arrays: &Arrays) -> Option<BTreeMap<String, Squares>> {
        let names = arrays.named("").filter_map(|name| name.strip_suffix(".sums"));
        let read = |name: &str| {
            let sums = arrays.pieces(&format!("{name}.sums"))?.map(Exact::from_words).collect();
            let counts = arrays.pieces(&format!("{name}.counts"))?.map(|[count]| count).collect();
            let squares = Squares { sums, counts };
            let fits = squares.sums.len().checked_rem(squares.counts.len()) == Some(0);
            fits.then(|| (name.to_owned(), squares))
        };
        names.map(read).collect()
    }

    fn values(head: &Head, arrays: &Arrays) -> Option<Values> {
        let chunks = head.own_chunks();
        let scored = chunks.len().checked_mul(head.ctx.checked_sub(1 + head.ctx / 2)?)?;
        let nll: Vec<f64> = arrays.pieces("nll")?.map(|[word]| f64::from_bits(word)).collect();
        let models = (0..head.models.len()).map(|i| {
            let tokens: Vec<_> = arrays.pieces(&format!("{i}.tokens"))?.map(token).collect();
            let layers = arrays.pieces(&format!("{i}.layers"))?.map(Apart::from_words).collect();
            let begin = format!("{i}.tensor.");
            let tensors = arrays.named(&begin).map(|name| {
                let error = arrays.pieces(&format!("{begin}{name}"))?.next()?;
                Some((name.to_owned(), Apart::from_words(error)))
            });
            let tensors = tensors.collect::<Option<_>>()?;
            (tokens.len() == scored).then_some(OfModel { tokens, layers, tensors })
        });
        // Not before it is known that there are as many.
        match nll.len() == scored {
            true => {
                let models = models.collect::<Option<_>>()?;
                Some(Values { chunks: chunks.collect(), nll, models })
            }
            false => None,
        }
    }
}
