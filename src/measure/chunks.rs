//! Texts cut into chunks, of which a measurement takes all, a machine's share, or some after others.

use super::text::bos;
use super::{MeasureError, Options, Subject, Text};
use crate::convert::Shard;
use crate::eval::{BaseReader, EvalError};
use crate::monitor::Monitor;
use std::ops::Range;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// The chunks of one or more texts, one text after the other.
pub(super) struct Chunks {
    pub ctx: usize,
    /// The token that chunks begin with, if any.
    pub bos: Option<u32>,
    /// Whole chunks.
    tokens: Vec<u32>,
    /// Each text, and which chunks are of it.
    pub texts: Vec<(PathBuf, Range<usize>)>,
}

impl Chunks {
    /// Cuts texts, of which each must have `least` chunks.
    pub fn of_texts(
        texts: &[Text],
        subject: Subject,
        options: &Options,
        least: usize,
        monitor: &dyn Monitor,
    ) -> Result<Self, MeasureError> {
        let ctx = options.ctx;
        let mut all = Self { ctx, bos: None, tokens: Vec::new(), texts: Vec::new() };
        let up_to = |chunks| options.first_chunk.saturating_add(chunks).saturating_mul(ctx);
        let needed = up_to(least);
        let enough = up_to(options.chunks.unwrap_or(usize::MAX).max(least));
        for text in texts {
            let pre = options.tokenizer_pre.as_deref();
            let read = text.first_tokens(enough, subject, pre, monitor)?;
            let (found, path) = (read.tokens.len(), text.path().to_owned());
            if found < needed {
                return Err(MeasureError::TooShort { path, found, needed, ctx });
            }
            let begin = all.len();
            let tokens = &read.tokens[options.first_chunk * ctx..];
            all.tokens.extend(&tokens[..options.n_chunks(tokens.len()) * ctx]);
            all.texts.push((path, begin..all.len()));
            all.bos = read.bos;
        }
        match all.len() {
            0 => Err(EvalError::NothingToScore.into()),
            _ => Ok(all),
        }
    }

    /// The chunks of a file of log-probabilities, for models of which one is `subject`.
    pub fn of_base(
        base: &BaseReader,
        subject: Option<Subject>,
        options: &Options,
        monitor: &dyn Monitor,
    ) -> Result<Self, MeasureError> {
        let ctx = base.ctx() as usize;
        let bos = subject.map_or(Ok(None), |subject| bos(subject, monitor))?;
        let n = options.chunks.unwrap_or(usize::MAX).min(base.tokens().len() / ctx);
        let tokens = base.tokens()[..n * ctx].to_vec();
        Ok(Self { ctx, bos, tokens, texts: Vec::new() })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.tokens.len() / self.ctx.max(1)
    }

    /// The chunks of a share, or all.
    pub fn share(&self, shard: Option<Shard>) -> Range<usize> {
        shard.map_or(0..self.len(), |shard| shard.of(self.len()))
    }

    /// The tokens of some chunks.
    pub fn tokens(&self, chunks: &[usize]) -> Vec<u32> {
        chunks
            .iter()
            .flat_map(|chunk| &self.tokens[chunk * self.ctx..][..self.ctx])
            .copied()
            .collect()
    }

    /// An error that was found in some chunks, with the token's place in the text.
    pub fn placed(&self, error: EvalError, chunks: &[usize]) -> EvalError {
        error.placed(&|token| chunks[token / self.ctx] * self.ctx + token % self.ctx)
    }

    /// What tells these tokens from others.
    pub fn fingerprint(&self) -> String {
        let mut hash = Xxh3::new();
        self.tokens.iter().for_each(|token| hash.update(&token.to_le_bytes()));
        let begins = self.texts.iter().map(|(_, chunks)| chunks.start as u64);
        begins
            .chain([self.bos.map_or(u64::MAX, u64::from)])
            .for_each(|n| hash.update(&n.to_le_bytes()));
        format!("{:032x}", hash.digest128())
    }
}

/// What tells a model from others, wherever it lies: names, shapes and types of its tensors, and the first
/// and the last row of each.
pub(super) fn fingerprint(subject: Subject) -> Result<String, MeasureError> {
    let source = subject.model.source();
    let mut hash = Xxh3::new();
    for (i, tensor) in source.tensors().iter().enumerate() {
        hash.update(tensor.name.as_bytes());
        hash.update(tensor.dtype.to_string().as_bytes());
        tensor.dims.iter().for_each(|n| hash.update(&n.to_le_bytes()));
        let mut row = vec![0.0; tensor.n_per_row() as usize];
        for at in [0, tensor.n_rows().saturating_sub(1)] {
            if tensor.n_rows() > 0 && tensor.dtype.is_readable() {
                let read = source.read_rows(i, at, &mut row);
                read.map_err(|error| MeasureError::of(subject.path, error.into()))?;
                row.iter().for_each(|value| hash.update(&value.to_le_bytes()));
            }
        }
    }
    Ok(format!("{:032x}", hash.digest128()))
}

/// What tells a file of log-probabilities from others: its first and its last mebibyte.
pub(super) fn fingerprint_of_file(path: &Path) -> Result<String, MeasureError> {
    use crate::io::{Blob, IoError, LocalFile};
    const END: u64 = 1 << 20;
    let io = |error| IoError::new(path, error);
    let file = LocalFile::open(path).map_err(io)?;
    let mut bytes = vec![0; file.size().min(END) as usize];
    let mut hash = Xxh3::new();
    hash.update(&file.size().to_le_bytes());
    for at in [0, file.size() - bytes.len() as u64] {
        file.read_at(at, &mut bytes).map_err(io)?;
        hash.update(&bytes);
    }
    Ok(format!("{:032x}", hash.digest128()))
}
