//! Which instructions are used.

use crate::simd::Simd;

/// The level of instructions.
#[derive(clap::Args)]
#[command(next_help_heading = "Machine")]
pub struct Instructions {
    /// Instructions to use: portable, neon, avx2, avx512 or avx512vnni. Files are the same with all;
    /// figures of the forward pass differ by roundings [default: the best of this machine]
    #[arg(long, value_name = "LEVEL", env = "REQUANT_SIMD")]
    simd: Option<Simd>,
}

impl Instructions {
    /// The level asked for, or the best.
    pub fn simd(&self) -> Simd {
        self.simd.unwrap_or_else(Simd::detect)
    }
}
