//! One row a type: what is known of it, for everybody who asks.
//!
//! A family of formats has its rows, the constant `FORMATS`, under the bit diagrams in its file, and
//! [`FAMILIES`] gathers them. A type without a row does not compile.

use super::groups::Groups;
use super::kernels::Levels;
use super::rounding::Rounding;
use super::{QuantType, activations, float, fp4, iq4, k_min, k_sym, lattice, legacy, ternary};

/// What is known of a tensor type.
#[derive(Debug)]
#[non_exhaustive]
pub struct Format {
    /// The type.
    pub ty: QuantType,
    /// What is stored in it.
    pub kind: Kind,
    /// Weights in a block.
    pub len: usize,
    /// Bytes of a block.
    pub bytes: usize,
    /// What in a block can be infinite or NaN.
    pub numbers: Numbers,
    /// What importances do.
    pub importance: Importance,
    /// The activations that weights meet in llama.cpp on a CPU (`vec_dot_type` in `ggml-cpu.c`).
    pub activations: Activation,
    /// The type that takes its place where rows are no whole number of blocks
    /// (`tensor_type_fallback`), and so on from there.
    pub fallback: Option<QuantType>,
    /// Nanoseconds to encode a weight, roughly, without and with importances: enough to share work
    /// out evenly.
    pub cost: [f32; 2],
    /// From weights to blocks and back, for types that are one for weights.
    pub(super) kernels: Option<Levels>,
    /// How to make codes in another way, where each weight has one of its own.
    #[cfg_attr(not(feature = "eval"), allow(dead_code))]
    pub(crate) rounding: Option<Rounding>,
    /// How to read blocks as integers, where products can do with them.
    #[cfg_attr(not(feature = "eval"), allow(dead_code))]
    pub(crate) groups: Option<Groups>,
}

/// What is stored in a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Floating-point numbers, of the type that torch knows by this name.
    Float(&'static str),
    /// Integers.
    Integer,
    /// Blocks of codes for weights.
    Blocks,
    /// Blocks that exist in memory only, for activations.
    Activations,
}

/// The numbers of a block that can be infinite or NaN.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Numbers {
    /// There are none: every block is valid.
    None,
    /// Those whose exponents are these bits of the words of 16 bits from these bytes on.
    Exponents(&'static [usize], u16),
    /// Others; whether a block's are finite.
    Others(fn(&[u8]) -> bool),
}

/// What the importances of columns do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Importance {
    /// Nothing.
    Ignored,
    /// They weigh errors.
    Weighs,
    /// They weigh errors, and llama-quantize makes no file of these mixes without
    /// (`tensor_requires_imatrix`).
    WantedIn(&'static [&'static str]),
    /// They weigh errors, and llama-quantize makes no file with the type without.
    Wanted,
    /// No block can be made without.
    Required,
}

/// What activations are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "as the types are spelled")]
#[non_exhaustive]
pub enum Activation {
    /// Nothing: they stay as they are.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// Bytes, one F16 scale for 32.
    Q8_0,
    /// As Q8_0, with the sum of each block in F16.
    Q8_1,
    /// Bytes, one f32 scale for 256.
    Q8_K,
}

const FAMILIES: [&[Format]; 11] = [
    float::FORMATS,
    legacy::FORMATS,
    k_min::FORMATS,
    k_sym::FORMATS,
    iq4::FORMATS,
    lattice::iq1::FORMATS,
    lattice::iq2::FORMATS,
    lattice::iq3::FORMATS,
    ternary::FORMATS,
    fp4::FORMATS,
    activations::FORMATS,
];

impl Format {
    /// The row of a type, found when this is compiled.
    pub(super) const fn of(ty: QuantType) -> &'static Self {
        let mut family = 0;
        while family < FAMILIES.len() {
            let mut i = 0;
            while i < FAMILIES[family].len() {
                if FAMILIES[family][i].ty as u32 == ty as u32 {
                    return &FAMILIES[family][i];
                }
                i += 1;
            }
            family += 1;
        }
        panic!("a type without a row")
    }

    /// Whether weights can be encoded in it.
    pub fn is_target(&self) -> bool {
        self.kernels.is_some()
    }

    /// Bits that one weight occupies, scales included.
    pub fn bits_per_weight(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.len as f64
    }
}

impl Numbers {
    /// Those of F16s from these bytes on.
    pub(super) const fn halves(at: &'static [usize]) -> Self {
        Self::Exponents(at, 0x7c00)
    }

    /// Whether those of blocks of so many bytes are finite.
    pub(super) fn are_finite(self, blocks: &[u8], bytes: usize) -> bool {
        match self {
            Self::None => true,
            Self::Exponents(at, bits) => {
                at.iter().all(|&at| highest(blocks, bytes, at, bits) < bits)
            }
            Self::Others(are_finite) => blocks.chunks_exact(bytes).all(are_finite),
        }
    }
}

/// The highest value that these bits of a word have in any block. The bits leave out the sign.
fn highest(blocks: &[u8], bytes: usize, at: usize, bits: u16) -> u16 {
    match bytes {
        2 => highest_of_pairs(blocks, bits),
        4 if at == 2 => highest_of_fours(blocks, bits),
        _ => {
            let word = |block: &[u8]| u16::from_le_bytes([block[at], block[at + 1]]) & bits;
            blocks.chunks_exact(bytes).map(word).fold(0, u16::max)
        }
    }
}

// Each by itself, or the compiler makes one loop of all, with a step that it does not know. Signed numbers, of which
// every x86 has the maximum.

#[inline(never)]
fn highest_of_pairs(words: &[u8], bits: u16) -> u16 {
    let mut highest = 0;
    for word in words.as_chunks().0 {
        highest = highest.max((u16::from_le_bytes(*word) & bits) as i16);
    }
    highest as u16
}

#[inline(never)]
fn highest_of_fours(numbers: &[u8], bits: u16) -> u16 {
    let mut highest = 0;
    for number in numbers.as_chunks().0 {
        highest = highest.max(i32::from((u32::from_le_bytes(*number) >> 16) as u16 & bits));
    }
    highest as u16
}
