//! The gate: what it remembers, and how several of them work together.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a test may panic"
)]

mod granting;
mod intentions;
mod narrowing;
mod peers;
mod process;
mod remembering;
mod worker;
