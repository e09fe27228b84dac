//! What a model of the R1 family is: hyper-parameters, tensor names and shapes.

mod hparams;

pub use hparams::{Arch, Attention, Gating, Hparams, Moe, Rope, Yarn};
