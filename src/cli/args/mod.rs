//! Options that several commands share, and what they make of them.

pub mod calibrate;
pub mod choices;
pub mod imatrix;
pub mod instructions;
pub mod measure;
pub mod numbers;
pub mod operands;
pub mod output;
pub mod place;
pub mod places;
pub mod share;
pub mod types;
