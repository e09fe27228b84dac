//! What a search for a mix has measured so far, in a file beside the one that it is to become, so that a search that
//! was stopped goes on.

use crate::calibrate::Errors;
use crate::io::{IoError, LocalDisk, part_path, write};
use crate::measure::Sensitivities;
use crate::quant::QuantType;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The errors of tensors, by the names of types.
type ByName = BTreeMap<String, BTreeMap<String, [f64; 2]>>;

#[derive(Serialize, Deserialize)]
struct State {
    /// What tells this search from others.
    identity: String,
    /// Errors of products with the text that weights are rounded with.
    errors: Option<ByName>,
    measured: Option<Sensitivities>,
}

/// A search that has begun.
pub struct Begun {
    path: Option<PathBuf>,
    state: RefCell<State>,
}

impl Begun {
    /// Takes up what an earlier search with the same identity has left for this file; without a file, nothing is kept.
    pub fn take_up(file: Option<&Path>, identity: String) -> anyhow::Result<Self> {
        let path = file.map(part_path);
        let earlier = match path.as_ref().filter(|path| path.exists()) {
            Some(path) => {
                let state = crate::json::read::<State>(path);
                Some(state.context("remove what an earlier search has left, to begin anew")?)
            }
            None => None,
        };
        let state = earlier.filter(|state| state.identity == identity);
        let state = state.unwrap_or(State { identity, errors: None, measured: None });
        Ok(Self { path, state: RefCell::new(state) })
    }

    /// The errors that are known, or else what is found now.
    pub fn errors(
        &self,
        find: impl FnOnce() -> anyhow::Result<BTreeMap<String, Errors>>,
    ) -> anyhow::Result<BTreeMap<String, Errors>> {
        if let Some(known) = &self.state.borrow().errors {
            let typed = |(name, errors): (&String, &BTreeMap<String, [f64; 2]>)| {
                let errors =
                    errors.iter().map(|(ty, errors)| Ok((ty.parse::<QuantType>()?, *errors)));
                Ok((name.clone(), errors.collect::<anyhow::Result<Errors>>()?))
            };
            return known.iter().map(typed).collect();
        }
        let found = find()?;
        let named = |(name, errors): (&String, &Errors)| {
            let errors = errors.iter().map(|(ty, errors)| (ty.name().to_owned(), *errors));
            (name.clone(), errors.collect())
        };
        self.state.borrow_mut().errors = Some(found.iter().map(named).collect());
        self.write()?;
        Ok(found)
    }

    /// What is measured already.
    pub fn measured(&self) -> Option<Sensitivities> {
        self.state.borrow().measured.clone()
    }

    /// Keeps what is measured now.
    pub fn keep(&self, measured: &Sensitivities) -> Result<(), IoError> {
        self.state.borrow_mut().measured = Some(measured.clone());
        self.write()
    }

    /// Removes what was kept, now that the file itself is there.
    pub fn finish(self) -> anyhow::Result<()> {
        match self.path.filter(|path| path.exists()) {
            Some(path) => std::fs::remove_file(&path).with_context(|| path.display().to_string()),
            None => Ok(()),
        }
    }

    fn write(&self) -> Result<(), IoError> {
        let Some(path) = &self.path else { return Ok(()) };
        let json = serde_json::to_vec(&*self.state.borrow());
        let json = json.map_err(|error| IoError::new(path, error.into()))?;
        write(&LocalDisk, path, &json)
    }
}
