//! Keys, signed policies and grants with the binary, and the stores that grants are kept in.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod keys;
mod policies;
mod program;
