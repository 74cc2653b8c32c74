//! The audit trail, as the core writes it, verified and read by the tools.
#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unreachable,
    clippy::unwrap_used,
    reason = "a test may panic"
)]

mod tools;
mod trail;
mod verify;
