//! Keys, signed policies and grants with the binary, and the stores that grants are kept in.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may fail by panicking"
)]

mod grants;
mod keys;
mod policies;
mod program;
mod server;
mod stores;
