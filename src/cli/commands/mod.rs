//! The commands, a file for each: its arguments, and what it does with them.

mod begun;
pub mod compare;
pub mod convert;
pub mod diff;
pub mod edit;
pub mod export;
pub mod formats;
pub mod gate;
pub mod hash;
pub mod imatrix;
pub mod inspect;
pub mod join;
pub mod mix;
pub mod perplexity;
pub mod plan;
pub mod publish;
pub mod quantize;
pub mod recipe;
pub mod split;
pub mod types;
pub mod verify;
