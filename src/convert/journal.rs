//! What of a run is done: a small text file beside the output, which lets the same command go on
//! where it was stopped.
//!
//! ```text
//! {"requant journal":1,"program":…,"layout":…,"source":…,"importance":…}
//! 17 0123456789abcdef      unit 17 is written; XXH3 of its bytes
//! all written              every unit is on disk, files are getting their names
//! ```
//! A line counts only with its end, and what it claims is checked against the file before it is
//! believed: the journal needs no durability of its own.

use super::error::ConvertError;
use crate::gguf::{Disk, GgufError, Part, read_all, write_all};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

const ALL_WRITTEN: &str = "all written";

/// What decides the bytes of the output. Two runs whose identities are equal write the same files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    #[serde(rename = "requant journal")]
    format: u32,
    /// Version of the program.
    program: String,
    /// Headers of all files and how rows are cut into units, hashed.
    layout: String,
    /// Names, sizes and times of the input files, hashed.
    source: String,
    /// The importance matrix, hashed.
    importance: String,
}

impl Identity {
    pub fn new(layout: u64, source: u64, importance: u64) -> Self {
        let hex = |hash: u64| format!("{hash:016x}");
        Self {
            format: 1,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            layout: hex(layout),
            source: hex(source),
            importance: hex(importance),
        }
    }

    /// What differs, in words.
    fn difference(&self, other: &Self) -> &'static str {
        if (self.format, &self.program) != (other.format, &other.program) {
            "another version of the program"
        } else if self.source != other.source {
            "other input files: one has changed since"
        } else if self.importance != other.importance {
            "another importance matrix"
        } else {
            "other options"
        }
    }
}

/// The journal of a run, locked against other processes.
pub(super) struct Journal {
    part: Box<dyn Part>,
    path: PathBuf,
    end: Mutex<u64>,
}

/// What a journal says about the run before.
#[derive(Default)]
pub(super) struct Past {
    /// Units that were written, and the hashes of their bytes.
    pub units: HashMap<u64, u64>,
    /// Whether files were getting their names.
    pub all_written: bool,
}

impl Journal {
    /// Opens the journal, and reads what it says about an earlier run of the same identity; `None`
    /// where there was none.
    ///
    /// # Errors
    /// Another process holds it, or it belongs to another run and `restart` is not given.
    pub fn open(
        disk: &dyn Disk,
        path: &Path,
        identity: &Identity,
        n_units: u64,
        restart: bool,
    ) -> Result<(Self, Option<Past>), ConvertError> {
        let io = |error| GgufError::io(path, error);
        let part = disk.open(path).map_err(io)?;
        let journal = Self { part, path: path.to_owned(), end: Mutex::new(0) };
        if !journal.part.lock().map_err(io)? {
            return Err(ConvertError::InUse { path: path.to_owned() });
        }
        let size = journal.part.size().map_err(io)?;
        if restart || size == 0 {
            return Ok((journal, None));
        }
        let foreign = |what: &'static str| ConvertError::Journal { path: path.to_owned(), what };
        // A unit's line has at most 38 bytes, and is written once in a run.
        if size > 64 * n_units + (1 << 20) {
            return Err(foreign("another run: it is longer than this one's can get"));
        }
        let mut bytes = vec![0; size as usize];
        read_all(journal.part.as_ref(), &mut bytes, 0).map_err(io)?;
        // Reserved or torn ends are no lines.
        let complete = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        let mut lines = bytes[..complete].split_inclusive(|&b| b == b'\n');
        let Some(first) = lines.next() else {
            return Ok((journal, None));
        };
        let first: Identity =
            serde_json::from_slice(first).map_err(|_| foreign("something else: it is damaged"))?;
        if first != *identity {
            return Err(foreign(first.difference(identity)));
        }
        let mut past = Past::default();
        for line in lines {
            let Ok(line) = std::str::from_utf8(line) else { continue };
            let line = line.trim_end_matches('\n');
            if line == ALL_WRITTEN {
                past.all_written = true;
            } else if let Some((unit, hash)) = line.split_once(' ')
                && let (Ok(unit), Ok(hash)) = (unit.parse(), u64::from_str_radix(hash, 16))
                && unit < n_units
            {
                past.units.insert(unit, hash);
            }
        }
        *journal.end.lock().unwrap_or_else(|e| e.into_inner()) = complete as u64;
        Ok((journal, Some(past)))
    }

    /// Begins anew.
    pub fn begin(&self, identity: &Identity) -> Result<(), ConvertError> {
        self.part.reserve(0).map_err(|error| GgufError::io(&self.path, error))?;
        *self.end.lock().unwrap_or_else(|e| e.into_inner()) = 0;
        self.append(&serde_json::to_string(identity).expect("strings are always JSON"))
    }

    /// Notes that a unit is written.
    pub fn record(&self, unit: u64, hash: u64) -> Result<(), ConvertError> {
        self.append(&format!("{unit} {hash:016x}"))
    }

    /// Notes that every unit is on disk.
    pub fn all_written(&self) -> Result<(), ConvertError> {
        self.append(ALL_WRITTEN)?;
        Ok(self.part.sync().map_err(|error| GgufError::io(&self.path, error))?)
    }

    fn append(&self, line: &str) -> Result<(), ConvertError> {
        let line = format!("{line}\n");
        let mut end = self.end.lock().unwrap_or_else(|e| e.into_inner());
        write_all(self.part.as_ref(), line.as_bytes(), *end)
            .map_err(|error| GgufError::io(&self.path, error))?;
        *end += line.len() as u64;
        Ok(())
    }

    /// Removes the journal.
    pub fn remove(self, disk: &dyn Disk) -> Result<(), ConvertError> {
        Ok(disk.remove(&self.path).map_err(|error| GgufError::io(&self.path, error))?)
    }
}
