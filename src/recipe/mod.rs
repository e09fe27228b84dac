//! Which type each tensor gets: the named mixes, options, and what happens to rows that fit no block.
//!
//! This room decides on names and shapes alone; it never sees a weight.

mod assign;
mod choose;
mod file_type;
mod recover;
mod role;
mod rules;

pub(crate) use assign::layer_and_kind;
pub use assign::{
    Assignment, Options, Reason, RecipeError, Shape, TensorType, assign, assign_as_converter,
    fitting, layer_of, needs_imatrix, output_order,
};
pub use choose::{Choice, choose};
pub use file_type::{FileType, UnknownFileType};
pub use recover::{Quantized, Recovered, amend, recover};
pub use role::Role;
pub use rules::{Facts, Recipe};
