//! The shipped filter code against a host in the test binary: what Envoy would do to it, and worse.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may panic"
)]

mod audit;
mod corpus;
mod grants;
mod host;
mod hotpath;
mod metrics;
mod requests;
