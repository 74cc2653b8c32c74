//! The decision core of Airflow Envoy: who calls, and may they?
//!
//! It verifies OIDC access tokens and Airflow task identities ([`jose`], [`credential`], [`identity`]),
//! decides by a compiled policy ([`policy`]) and keeps what a worker must remember between requests
//! ([`gate`]). It is an event machine: events in, effects out.
//!
//! What it is not: it has never heard of proxy-wasm, reads no clock, draws no random numbers and
//! does no I/O. Time, randomness and bytes are arguments; callouts, replies and parking are values
//! that it returns and the host carries out.
#![forbid(unsafe_code)]

pub mod answer;
pub mod arrival;
pub mod audit;
pub mod cache;
pub mod catalog;
pub mod configuration;
pub mod credential;
mod digest;
pub mod document;
pub mod facts;
pub mod feed;
pub mod filter_state;
pub mod gate;
mod hexadecimal;
pub mod identity;
pub mod intentions;
pub mod jose;
pub mod json;
pub mod limits;
pub mod pace;
pub mod peer;
pub mod policy;
pub mod quote;
pub mod reject;
pub mod retry;
mod segments;
pub mod series;
pub mod shared;
pub mod status;
pub mod tally;
pub mod time;
