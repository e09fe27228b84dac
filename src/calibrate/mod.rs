//! Rounding that knows what weights are multiplied with: a text passes the model layer by layer, and each
//! layer is rounded so that the error of its products with the text's activations is small.
//!
//! This room stands between the pipeline and the forward pass. What it writes are ordinary blocks of the
//! types that the plan has; how they are stored, and where, others know.

mod columns;
mod errors;
mod estimate;
mod factor;
mod layers;
mod memory;
mod moments;
mod rows;
mod watching;

pub use errors::{Errors, errors};
pub use estimate::{operations, seconds_of_text, work};
pub use factor::speed;
pub use layers::{Calibration, InputsOf, OfTensor, Outcome, run};
pub use memory::Memory;
pub use rows::Way;
