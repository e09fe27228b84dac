//! A search for a mix that several machines share, as parts: what tells it from others, wherever its files lie.

use super::chunks::{Chunks, fingerprint};
use super::job::common;
use super::part::{Head, Kind, Measured};
use super::{MeasureError, Options, Part, Sensitivities, Subject, Text};
use crate::imatrix::Imatrix;
use crate::quant::QuantType;
use xxhash_rust::xxh3::Xxh3;

/// What [`sensitivities`](super::sensitivities) are measured with, and what errors of tensors come from.
#[derive(Clone, Copy)]
pub struct Search<'a> {
    /// The model.
    pub subject: Subject<'a>,
    /// The text that groups are measured on.
    pub text: &'a Text,
    /// The types that tensors may get.
    pub types: &'a [QuantType],
    /// What the errors of columns count.
    pub imatrix: Option<&'a Imatrix>,
    /// Whether scales are searched for more widely than the reference does.
    pub search: bool,
    /// The text that weights are rounded with, and how many chunks of it at most.
    pub calibration: Option<(&'a Text, Option<usize>)>,
}

impl Search<'_> {
    /// The part of a share of it ([`Options::share`]), in which nothing is found yet; see
    /// [`Part::set_sensitivities`].
    ///
    /// # Errors
    /// A vocabulary that text cannot be made tokens with, a text too short, weights that cannot be read.
    pub fn part(&self, options: &Options) -> Result<Part, MeasureError> {
        let Self { subject, text, types, imatrix, search, calibration } = *self;
        let cut = |text: &Text, options: &Options| {
            Chunks::of_texts(std::slice::from_ref(text), subject, options, 1, &())
        };
        let chunks = cut(text, options)?;
        let mut head = Head::new(Kind::Sensitivities, subject.path.to_owned(), &chunks, options);
        let mut identity = common(head.kind.name().to_owned(), &chunks, options);
        let mut is = |what: &str, value: String| identity.push((what.to_owned(), value));
        is("types", types.iter().map(|ty| ty.name()).collect::<Vec<_>>().join(","));
        is("text", chunks.fingerprint());
        let nothing = || "nothing".to_owned();
        is("rounding", if search { "search" } else { "reference" }.to_owned());
        is("importances", imatrix.map_or_else(nothing, of_importances));
        let calibration = calibration.map(|(text, chunks)| {
            let chunks = cut(text, &Options { chunks, ..options.clone() })?;
            Ok::<_, MeasureError>(chunks.fingerprint())
        });
        is("text that weights are rounded with", calibration.transpose()?.unwrap_or_else(nothing));
        is("model 1", fingerprint(subject)?);
        head.identity = identity;
        let measured = Measured::Sensitivities(Sensitivities::none());
        Ok(Part { head, measured, stopped: false })
    }
}

/// What tells importances from others.
fn of_importances(imatrix: &Imatrix) -> String {
    let mut hash = Xxh3::new();
    for (name, values) in &imatrix.entries {
        hash.update(name.as_bytes());
        values.iter().for_each(|value| hash.update(&value.to_le_bytes()));
    }
    format!("{:032x}", hash.digest128())
}
