//! What tells the texts and models of a measurement from others, wherever they lie.

use super::{MeasureError, Subject, Text};
use serde::{Deserialize, Serialize};

/// Texts and models that were measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// The texts.
    pub texts: Vec<InputText>,
    /// The models, the reference first.
    pub models: Vec<InputModel>,
}

/// A text that was measured on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputText {
    /// Where it was, as its user says.
    pub path: String,
    /// Of the whole file.
    pub sha256: String,
}

/// A model that was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputModel {
    /// Where it was, as its user says.
    pub path: String,
    /// Bytes of its weights.
    pub bytes: u64,
    /// As [`Subject::fingerprint`] gives it.
    pub fingerprint: String,
}

impl Inputs {
    /// Those of a measurement.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn of(texts: &[Text], subjects: &[Subject]) -> Result<Self, MeasureError> {
        let text = |text: &Text| InputText {
            path: text.path().to_string_lossy().into_owned(),
            sha256: text.sha256().to_owned(),
        };
        let model = |subject: &Subject| {
            Ok(InputModel {
                path: subject.path.to_string_lossy().into_owned(),
                bytes: subject.size().0,
                fingerprint: subject.fingerprint()?,
            })
        };
        let models = subjects.iter().map(model).collect::<Result<_, MeasureError>>()?;
        Ok(Self { texts: texts.iter().map(text).collect(), models })
    }
}
