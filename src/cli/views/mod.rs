//! What commands show: tables for people, JSON for programs, pages.

mod ci;
pub mod conversion;
pub mod evaluation;
pub mod measured;
pub mod models;
mod per_token;
pub mod plan;
mod report;
pub mod statistics;
pub mod types;
pub mod units;
