//! Importance matrices while they grow: sums of squares and counts, which can be added.

use super::{Imatrix, ImatrixError, file};
use crate::gguf::{GgufError, Layout, Metadata, Value, Writer};
use crate::io::{Disk, Output, complete, part_path};
use crate::quant::QuantType;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Sums of squares of the inputs of each tensor, in f64.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sums {
    /// By tensor name, in GGUF's spelling.
    pub entries: BTreeMap<String, Entry>,
    /// Names of the texts.
    pub datasets: Vec<String>,
    /// Chunks of text.
    pub chunk_count: u32,
    /// Tokens of a chunk.
    pub chunk_size: u32,
}

/// The sums of one tensor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entry {
    /// One a column, matrix after matrix for stacked tensors.
    pub sums: Vec<f64>,
    /// Tokens that went into each sum: one number, or one for each matrix of experts.
    pub counts: Vec<u64>,
}

impl Sums {
    /// Reads a file of either format. Where it does not say how many tokens a chunk has, as in the
    /// legacy format, `chunk_size` tokens do: that many went into a sum at each call
    /// (`IMatrixCollector::load_imatrix`).
    ///
    /// # Errors
    /// A file of another kind, or a damaged one.
    pub fn open(path: &Path, chunk_size: u32) -> Result<Self, ImatrixError> {
        let file = file::read(path)?;
        let chunk_size = if file.chunk_size > 0 { file.chunk_size } else { chunk_size };
        let tokens = if file.legacy { chunk_size as f32 } else { 1.0 };
        let entries = file.entries.into_iter().map(|(name, entry)| {
            let counts: Vec<f32> = entry.counts.iter().map(|n| n.round()).collect();
            let matrices = entry.sums.chunks(entry.columns()).zip(&counts);
            // Where nothing was added, files do not always have zeros.
            let sums = matrices.flat_map(|(sums, &count)| {
                sums.iter().map(move |&sum| match count > 0.0 {
                    true => f64::from(sum * tokens),
                    false => 0.0,
                })
            });
            let sums = sums.collect();
            (
                name,
                Entry {
                    sums,
                    counts: counts
                        .iter()
                        .map(|&n| (f64::from(n) * f64::from(tokens)) as u64)
                        .collect(),
                },
            )
        });
        let entries = entries.collect();
        let chunk_count = file.chunk_count;
        Ok(Self { entries, datasets: file.datasets, chunk_count, chunk_size })
    }

    /// Adds the sums of another text, or of another part of it. A count that is one for all
    /// matrices is added to each, if the other side has one for each. There are then as many chunks
    /// as the largest count has, as llama-imatrix reckons.
    ///
    /// # Errors
    /// The name of an entry whose shape differs.
    pub fn add(&mut self, other: &Self) -> Result<(), String> {
        for (name, entry) in &other.entries {
            let own = self.entries.entry(name.clone()).or_insert_with(|| Entry {
                sums: vec![0.0; entry.sums.len()],
                counts: vec![0; entry.counts.len()],
            });
            let n = own.counts.len().max(entry.counts.len());
            let fits = |entry: &Entry| entry.counts.len() == 1 || entry.counts.len() == n;
            if own.sums.len() != entry.sums.len() || !fits(own) || !fits(entry) {
                return Err(name.clone());
            }
            own.sums.iter_mut().zip(&entry.sums).for_each(|(a, b)| *a += b);
            own.counts.resize(n, own.counts.first().copied().unwrap_or(0));
            own.counts.iter_mut().zip(entry.counts.iter().cycle()).for_each(|(a, b)| *a += b);
        }
        self.datasets.extend(other.datasets.iter().cloned());
        self.chunk_size = self.chunk_size.max(other.chunk_size);
        let most = self.entries.values().flat_map(|entry| &entry.counts).max().copied();
        let chunks = most.unwrap_or(0).checked_div(self.chunk_size.into()).unwrap_or(0);
        self.chunk_count = chunks.try_into().unwrap_or(u32::MAX);
        Ok(())
    }

    /// Entries of which some matrices met no token, with the numbers of those matrices.
    pub fn unreached(&self) -> Vec<(&str, Vec<usize>)> {
        let missing = |entry: &Entry| -> Vec<usize> {
            (0..entry.counts.len()).filter(|&i| entry.counts[i] == 0).collect()
        };
        let all = self.entries.iter().map(|(name, entry)| (name.as_str(), missing(entry)));
        all.filter(|(_, missing)| !missing.is_empty()).collect()
    }

    /// The means, as a reader of the file finds them.
    pub fn means(&self) -> Imatrix {
        let entries = self.entries.iter().map(|(name, entry)| {
            let columns = (entry.sums.len() / entry.counts.len().max(1)).max(1);
            let means =
                entry.sums.iter().enumerate().map(|(i, &sum)| match entry.counts[i / columns] {
                    0 => 1.0,
                    n => sum as f32 / n as f32,
                });
            (name.clone(), means.collect())
        });
        let (datasets, chunk_count) = (self.datasets.clone(), self.chunk_count);
        Imatrix { entries: entries.collect(), datasets, chunk_count, excluded: BTreeSet::new() }
    }

    /// Writes a GGUF file (`IMatrixCollector::save_imatrix`).
    ///
    /// # Errors
    /// The system refuses.
    pub fn write_gguf(&self, disk: &dyn Disk, path: &Path) -> Result<(), ImatrixError> {
        let mut metadata = Metadata::new();
        metadata.set("general.type", "imatrix");
        metadata.set("imatrix.datasets", self.datasets.iter().cloned().collect::<Value>());
        metadata.set("imatrix.chunk_count", self.chunk_count);
        metadata.set("imatrix.chunk_size", self.chunk_size);
        let mut infos = Vec::new();
        let mut data: Vec<Vec<f32>> = Vec::new();
        for (name, entry) in &self.entries {
            let n = entry.counts.len().max(1) as u64;
            let columns = entry.sums.len() as u64 / n;
            infos.push((format!("{name}.in_sum2"), vec![columns, n], QuantType::F32));
            data.push(entry.sums.iter().map(|&x| x as f32).collect());
            infos.push((format!("{name}.counts"), vec![1, n], QuantType::F32));
            data.push(entry.counts.iter().map(|&x| x as f32).collect());
        }
        let layout = Layout::new(&metadata, infos)?;
        complete::<GgufError>(disk, &part_path(path), path, || {
            let writer = Writer::open(disk, path, &layout)?;
            for (i, values) in data.iter().enumerate() {
                let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                writer.write_at(i, 0, &bytes)?;
            }
            writer.sync()
        })?;
        Ok(())
    }

    /// Writes the legacy format (`IMatrixCollector::save_imatrix_legacy`).
    ///
    /// # Errors
    /// The system refuses.
    pub fn write_legacy(&self, disk: &dyn Disk, path: &Path) -> Result<(), ImatrixError> {
        let mut out = Output::create(disk, path)?;
        let int = |out: &mut Output, n: usize| out.write(&(n as i32).to_le_bytes());
        let reached = |entry: &&Entry| entry.counts.iter().any(|&n| n > 0);
        let kept: Vec<_> = self.entries.iter().filter(|(_, entry)| reached(entry)).collect();
        int(&mut out, kept.len())?;
        for (name, entry) in kept {
            int(&mut out, name.len())?;
            out.write(name.as_bytes())?;
            let most = entry.counts.iter().copied().max().unwrap_or(0);
            let calls = most.div_ceil(u64::from(self.chunk_size.max(1)));
            int(&mut out, calls as usize)?;
            int(&mut out, entry.sums.len())?;
            let columns = entry.sums.len() / entry.counts.len();
            for (i, &sum) in entry.sums.iter().enumerate() {
                let value = match entry.counts[i / columns] {
                    0 => 1.0,
                    n => sum as f32 / n as f32,
                };
                out.write(&(value * calls as f32).to_le_bytes())?;
            }
        }
        int(&mut out, self.chunk_count as usize)?;
        let dataset = self.datasets.last().map_or("", String::as_str);
        int(&mut out, dataset.len())?;
        out.write(dataset.as_bytes())?;
        Ok(out.finish()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::small::Small;

    #[test]
    fn a_full_disk_leaves_no_file() {
        let entry = Entry { sums: vec![2.0; 64], counts: vec![1] };
        let entries = ["blk.0.attn_q.weight", "blk.1.attn_q.weight"];
        let entries = entries.map(|name| (name.to_owned(), entry.clone())).into();
        let sums = Sums { entries, chunk_size: 512, ..Sums::default() };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imatrix.gguf");
        for room in [0, 20, 500] {
            let disk = Small::new(room);
            let gguf = sums.write_gguf(&disk, &path).unwrap_err();
            let legacy = sums.write_legacy(&Small::new(room), &path).unwrap_err();
            for error in [gguf, legacy].map(|error| error.to_string()) {
                assert!(error.contains("imatrix.gguf.part: the disk is full"), "{error}");
            }
            assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        }
        sums.write_legacy(&Small::new(1 << 20), &path).unwrap();
        assert_eq!(Sums::open(&path, 512).unwrap().entries.len(), 2);
    }
}
