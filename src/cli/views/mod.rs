//! What commands show: tables for people, JSON for programs, pages.

pub mod conversion;
pub mod evaluation;
pub mod measured;
pub mod plan;
mod report;
pub mod units;
