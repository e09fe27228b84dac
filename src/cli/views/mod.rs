//! What commands show: tables for people, JSON for programs, pages.

pub mod conversion;
pub mod evaluation;
pub mod measured;
pub mod models;
mod per_token;
pub mod plan;
mod report;
pub mod types;
pub mod units;
