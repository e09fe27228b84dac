//! What commands show: tables for people, JSON for programs, pages.

pub mod chart;
mod ci;
pub mod conversion;
pub mod evaluation;
pub mod ladder;
mod markup;
pub mod measured;
pub mod models;
pub mod page;
mod per_token;
pub mod plan;
mod report;
pub mod statistics;
pub mod types;
pub mod units;
