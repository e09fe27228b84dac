//! Lattice types: groups of eight or four magnitudes (or ternary values) are stored as the index of
//! a point of a fixed lattice.
//!
//! [`grid`] finds points, [`points`] holds them; [`magnitudes`] is the search for a scale that
//! IQ2 and IQ3 share; `iq1`, `iq2` and `iq3` know the layouts. All follow `ggml-quants.c` operation
//! by operation, its quirks included.

mod grid;
pub(super) mod iq1;
pub(super) mod iq2;
pub(super) mod iq3;
mod magnitudes;
mod points;
