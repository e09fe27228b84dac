//! What activations are rounded to before they meet weights: Q8_1, Q8_K. No file holds them.
//!
//! ```text
//! Q8_1  36 bytes  d f16 | d · the sum of qs, f16 | qs 32×i8       block of 32, value q·d
//! Q8_K 292 bytes  d f32 | qs 256×i8 | sums of 16 codes 16×i16     block of 256, value q·d
//! ```

use super::format::{Activation, Format, Importance, Kind, Numbers};
use super::types::QuantType;

const fn row(ty: QuantType, len: usize, bytes: usize, numbers: Numbers) -> Format {
    Format {
        ty,
        kind: Kind::Activations,
        len,
        bytes,
        numbers,
        importance: Importance::Ignored,
        activations: Activation::F32,
        fallback: None,
        cost: [1.5; 2],
        kernels: None,
        rounding: None,
        groups: None,
    }
}

pub(super) const FORMATS: &[Format] = &[
    row(QuantType::Q8_1, 32, 36, Numbers::None),
    row(QuantType::Q8_K, 256, 292, super::float::F32),
];
