//! What people really hold: inputs that are valid but rare, made by tools that nobody tested with, or
//! damaged in ways that were reported. One test program, so that the crate is linked once.
//!
//! Every module makes its inputs with [`raw`], which shares no code with the program, runs the program
//! as a user would, and asserts the right value: not only that it ends.

mod card;
mod checkpoint;
mod config;
mod gguf;
mod imatrix;
mod prune;
mod raw;
mod scales;
mod shards;
mod tokens;
mod values;
