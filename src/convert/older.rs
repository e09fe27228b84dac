//! What an earlier output of the same name has left beside a new one.

use super::error::ConvertError;
use super::journal::Journal;
use super::ladder::Ladder;
use super::manifest::Manifest;
use super::run::RunOptions;
use crate::gguf::whole_name;
use crate::io::{IoError, folder};
use crate::names::base;
use crate::source::Source;
use std::path::{Path, PathBuf};

impl Ladder<'_> {
    /// What is different about the unfinished run that is kept beside the outputs, where it is another than
    /// this one.
    ///
    /// # Errors
    /// The journal cannot be read, or another process writes it.
    pub fn other_run(
        &self,
        source: &dyn Source,
        options: RunOptions,
    ) -> Result<Option<&'static str>, ConvertError> {
        let path = self.journal_path(options.shard);
        if options.restart || !path.exists() {
            return Ok(None);
        }
        let n_units = self.units(None).count() as u64;
        match Journal::open(options.disk, &path, &self.identity(source), n_units, false) {
            Ok(_) => Ok(None),
            Err(ConvertError::Journal { what, .. }) => Ok(Some(what)),
            Err(error) => Err(error),
        }
    }

    /// Removes what belonged to older outputs of these names and is no part of these: files of another
    /// division into parts, manifests and checksums, journals. What is read here stays. Returns what is gone.
    ///
    /// # Errors
    /// The system refuses.
    pub fn remove_older(
        &self,
        source: &dyn Source,
        options: RunOptions,
    ) -> Result<Vec<PathBuf>, ConvertError> {
        let place = self.place();
        let dir = folder(&place);
        let own: Vec<PathBuf> = self.rungs().iter().flat_map(|rung| rung.paths(None)).collect();
        let read = source.files().into_iter().filter_map(|file| file.path.canonicalize().ok());
        let read: Vec<PathBuf> = read.collect();
        let of_output = |output: &Path, path: &Path, name: &str| {
            is_part(output, name)
                || path == Manifest::path(output)
                || path == Manifest::checksums_path(output)
                || path == output && path.is_file()
        };
        let belongs = |path: &PathBuf| {
            let name = base(path);
            let older = self.rungs().iter().any(|rung| of_output(rung.output, path, &name))
                || options.shard.is_none() && is_journal(&place, &name);
            let is_read = || path.canonicalize().is_ok_and(|path| read.contains(&path));
            older && !own.contains(path) && !is_read()
        };
        let entries = dir.read_dir().map_err(|error| IoError::new(dir, error))?;
        let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
        let mut older: Vec<PathBuf> =
            names.map(|name| place.with_file_name(name)).filter(belongs).collect();
        older.sort_unstable();
        for path in &older {
            options.disk.remove(path).map_err(|error| IoError::new(path, error))?;
        }
        Ok(older)
    }
}

/// Whether a name is that of one of several files of an output, complete or not.
fn is_part(output: &Path, name: &str) -> bool {
    let own = base(output);
    let stem = own.strip_suffix(".gguf").unwrap_or(&own);
    let name = name.strip_suffix(".part").unwrap_or(name);
    let name = name.strip_suffix(".gguf");
    name.is_some_and(|name| name != stem && whole_name(name) == stem)
}

/// Whether a name is that of a journal of a share of an output.
fn is_journal(output: &Path, name: &str) -> bool {
    let own = base(output);
    let share = name.strip_prefix(&own).and_then(|rest| rest.strip_prefix('.'));
    let share = share.and_then(|rest| rest.strip_suffix(".journal"));
    share.and_then(|share| share.split_once("-of-")).is_some_and(|(number, count)| {
        number.parse::<u32>().is_ok() && count.parse::<u32>().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_an_output_can_have_belong_to_it() {
        let output = Path::new("dir/model.gguf");
        assert!(is_part(output, "model-00001-of-00003.gguf"));
        assert!(is_part(output, "model-00001-of-00003.gguf.part"));
        for other in ["model-1-of-3.gguf", "model-x-00001-of-00003.gguf", "model.gguf", "models"] {
            assert!(!is_part(output, other), "{other}");
        }
        assert!(is_journal(output, "model.gguf.1-of-3.journal"));
        assert!(!is_journal(output, "model.gguf.journal"));
    }
}
