//! What of a run is done: a small text file beside the output, which lets the same command go on
//! where it was stopped.
//!
//! ```text
//! {"requant journal":1,"program":…,"layout":…,"source":…,"importance":…}
//! 17 0123456789abcdef      unit 17 is written; XXH3 of its bytes
//! all written              every unit is on disk, files are getting their names
//! ```
//! What a line claims is checked against the file before it is believed.

use super::error::ConvertError;
use crate::io::{self, Disk, IoError};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

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

    /// All of it in one number.
    #[cfg_attr(not(feature = "eval"), allow(dead_code))]
    pub fn digest(&self) -> u64 {
        let all = [&self.layout, &self.source, &self.importance].map(String::as_str);
        xxhash_rust::xxh3::xxh3_64(all.concat().as_bytes())
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

/// The journal of a run.
pub(super) struct Journal(io::Journal);

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
        let Some(journal) = io::Journal::open(disk, path)? else {
            return Err(ConvertError::InUse { path: path.to_owned() });
        };
        let size = journal.size()?;
        if restart || size == 0 {
            return Ok((Self(journal), None));
        }
        let foreign = |what: &'static str| ConvertError::Journal { path: path.to_owned(), what };
        // A unit's line has at most 38 bytes, and is written once in a run.
        if size > 64 * n_units + (1 << 20) {
            return Err(foreign("another run: it is longer than this one's can get"));
        }
        let text = journal.read()?;
        let mut lines = text.lines();
        let Some(first) = lines.next() else {
            return Ok((Self(journal), None));
        };
        let first: Identity =
            serde_json::from_str(first).map_err(|_| foreign("something else: it is damaged"))?;
        if first != *identity {
            return Err(foreign(first.difference(identity)));
        }
        let mut past = Past::default();
        for line in lines {
            if line == ALL_WRITTEN {
                past.all_written = true;
            } else if let Some((unit, hash)) = line.split_once(' ')
                && let (Ok(unit), Ok(hash)) = (unit.parse(), u64::from_str_radix(hash, 16))
                && unit < n_units
            {
                past.units.insert(unit, hash);
            }
        }
        Ok((Self(journal), Some(past)))
    }

    /// Begins anew.
    pub fn begin(&self, identity: &Identity) -> Result<(), IoError> {
        self.0.clear()?;
        self.0.append(&serde_json::to_string(identity).expect("strings are always JSON"))
    }

    /// Notes that a unit is written.
    pub fn record(&self, unit: u64, hash: u64) -> Result<(), IoError> {
        self.0.append(&format!("{unit} {hash:016x}"))
    }

    /// Notes that every unit is on disk.
    pub fn all_written(&self) -> Result<(), IoError> {
        self.0.append(ALL_WRITTEN)?;
        self.0.sync()
    }
}
