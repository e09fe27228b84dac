//! Log-probabilities of a reference in the format of llama-perplexity's `--kl-divergence-base`.
//!
//! ```text
//! "_logits_" | n_ctx u32 | n_vocab i32 | n_chunk i32 | tokens i32…
//! for every scored token of every chunk:
//!   scale f32 | smallest log-probability f32 | codes u16…, an even number of them
//! ```
//! A log-probability is `scale * code + smallest`; whatever is more than 16 below the largest is
//! taken for the smallest.

use super::error::EvalError;
use crate::io::{Disk, IoError, Output};
use ndarray::{Array2, ArrayView2};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"_logits_";

/// Tokens that a file may hold at most; a larger number is taken for damage.
const MAX_TOKENS: u64 = 1 << 32;

/// Writes log-probabilities, row after row, into a `.part` file that gets its name at the end.
pub struct BaseWriter<'a>(Output<'a>);

/// Reads log-probabilities row after row.
pub struct BaseReader {
    path: PathBuf,
    file: BufReader<File>,
    ctx: u32,
    n_vocab: u32,
    tokens: Vec<u32>,
    /// The chunks whose rows are read, in this order.
    chosen: Vec<usize>,
    /// Rows of them that were read.
    row: usize,
}

impl<'a> BaseWriter<'a> {
    /// Begins a file for `tokens`, which are whole chunks of `ctx`.
    ///
    /// # Errors
    /// The system refuses.
    pub fn create(
        disk: &'a dyn Disk,
        path: &Path,
        ctx: u32,
        n_vocab: u32,
        tokens: &[u32],
    ) -> Result<Self, EvalError> {
        let mut file = Output::create(disk, path)?;
        let n_chunk = tokens.len() as u32 / ctx;
        file.write(MAGIC)?;
        for n in [ctx, n_vocab, n_chunk].iter().chain(tokens) {
            file.write(&n.to_le_bytes())?;
        }
        Ok(Self(file))
    }

    /// Writes rows of logits (`log_softmax` in `perplexity.cpp`, in its precision).
    ///
    /// # Errors
    /// The system refuses.
    pub fn write(&mut self, logits: ArrayView2<f32>) -> Result<(), EvalError> {
        for row in logits.rows() {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let min = row.iter().copied().fold(f32::INFINITY, f32::min).max(max - 16.0);
            let sum: f64 = row.iter().map(|&x| f64::from((x - max).exp())).sum();
            let smallest = min - max - sum.ln() as f32;
            let scale = (max - min) / 65535.0;
            let inverse = 1.0 / scale;
            let mut bytes = Vec::with_capacity(8 + 2 * row.len() + 2);
            bytes.extend_from_slice(&scale.to_le_bytes());
            bytes.extend_from_slice(&smallest.to_le_bytes());
            for &x in &row {
                let code = match scale > 0.0 && x > min {
                    true => (inverse * (x - min)).round_ties_even() as u16,
                    false => 0,
                };
                bytes.extend_from_slice(&code.to_le_bytes());
            }
            if !row.len().is_multiple_of(2) {
                bytes.extend_from_slice(&[0; 2]);
            }
            self.0.write(&bytes)?;
        }
        Ok(())
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// The system refuses.
    pub fn finish(self) -> Result<(), EvalError> {
        Ok(self.0.finish()?)
    }
}

impl BaseReader {
    /// Opens a file, and checks its length against its header.
    ///
    /// # Errors
    /// Another kind of file, a damaged one, a system that refuses.
    pub fn open(path: &Path) -> Result<Self, EvalError> {
        let io = |error| IoError::new(path, error);
        let bad = |what: &str| EvalError::Base { path: path.to_owned(), what: what.to_owned() };
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let mut file = BufReader::new(file);
        let mut head = [0; 20];
        file.read_exact(&mut head).map_err(|_| bad("is too short"))?;
        if head[..8] != *MAGIC {
            return Err(bad("holds no log-probabilities"));
        }
        let word = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
        let [ctx, n_vocab, n_chunk] = [word(8), word(12), word(16)];
        let n_tokens = u64::from(ctx) * u64::from(n_chunk);
        let rows = u64::from(n_chunk) * u64::from(ctx.saturating_sub(1 + ctx / 2));
        let row = 8 + 2 * u64::from(n_vocab).next_multiple_of(2);
        let expected = rows.checked_mul(row).and_then(|n| n.checked_add(20 + 4 * n_tokens));
        if ctx < 4 || n_vocab == 0 || n_tokens > MAX_TOKENS || expected != Some(length) {
            return Err(bad("is not as long as its header says; it is cut short or damaged"));
        }
        let mut tokens = vec![0; 4 * n_tokens as usize];
        file.read_exact(&mut tokens).map_err(io)?;
        let tokens = tokens.as_chunks::<4>().0.iter().map(|&b| u32::from_le_bytes(b)).collect();
        let chosen = (0..n_chunk as usize).collect();
        Ok(Self { path: path.to_owned(), file, ctx, n_vocab, tokens, chosen, row: 0 })
    }

    /// Has the rows of these chunks be read next, and of no others.
    ///
    /// # Panics
    /// When the file has no such chunk.
    pub fn choose(&mut self, chunks: &[usize]) {
        let n_chunk = self.tokens.len() / self.ctx as usize;
        assert!(chunks.iter().all(|&chunk| chunk < n_chunk), "chunks of the file");
        self.chosen = chunks.to_vec();
        self.row = 0;
    }

    /// Tokens of a chunk.
    pub fn ctx(&self) -> u32 {
        self.ctx
    }

    /// Tokens of the vocabulary.
    pub fn n_vocab(&self) -> u32 {
        self.n_vocab
    }

    /// The text.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Reads the next rows as log-probabilities.
    ///
    /// # Errors
    /// The system refuses.
    pub fn read(&mut self, rows: usize) -> Result<Array2<f32>, EvalError> {
        let n_vocab = self.n_vocab as usize;
        let mut out = Array2::zeros((rows, n_vocab));
        let mut bytes = vec![0; self.row_bytes()];
        for mut row in out.rows_mut() {
            let read = self.find_row().and_then(|()| self.file.read_exact(&mut bytes));
            read.map_err(|error| IoError::new(&self.path, error))?;
            self.row += 1;
            let float =
                |i: usize| f32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
            let (scale, smallest) = (float(0), float(4));
            for (value, code) in row.iter_mut().zip(bytes[8..].as_chunks::<2>().0) {
                *value = scale * f32::from(u16::from_le_bytes(*code)) + smallest;
            }
        }
        Ok(out)
    }

    fn row_bytes(&self) -> usize {
        8 + 2 * (self.n_vocab as usize).next_multiple_of(2)
    }

    /// Goes to the next row, where a chunk begins.
    fn find_row(&mut self) -> io::Result<()> {
        let per_chunk = self.ctx as usize - 1 - self.ctx as usize / 2;
        if !self.row.is_multiple_of(per_chunk) {
            return Ok(());
        }
        let chunk = self.chosen.get(self.row / per_chunk);
        let chunk = chunk.ok_or(io::ErrorKind::UnexpectedEof)?;
        let rows = (chunk * per_chunk * self.row_bytes()) as u64;
        self.file.seek(SeekFrom::Start(20 + 4 * self.tokens.len() as u64 + rows)).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::small::Small;

    #[test]
    fn a_full_disk_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base.kld");
        let logits = Array2::from_shape_fn((50, 301), |(i, j)| ((7 * i + 3 * j) % 11) as f32);
        for (room, fits) in [(0, false), (20_000, false), (1 << 20, true)] {
            let disk = Small::new(room);
            let written = BaseWriter::create(&disk, &path, 100, 301, &[1; 200])
                .and_then(|mut writer| writer.write(logits.view()).map(|()| writer))
                .and_then(BaseWriter::finish);
            match written {
                Ok(()) => assert!(fits),
                Err(EvalError::Io(error)) => assert!(!fits && error.is_full(), "{error}"),
                Err(error) => panic!("{error}"),
            }
            assert_eq!(std::fs::read_dir(&dir).unwrap().count(), usize::from(fits));
        }
    }
}
