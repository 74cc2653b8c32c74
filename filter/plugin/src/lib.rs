//! Airflow Envoy as a proxy-wasm HTTP filter.
//!
//! It translates: host calls become events of the core's gate, and the gate's verdicts and effects
//! become host calls. What it is not: a place where anything is decided.

mod abi;
mod crypto;
mod entry;
mod host;
mod pairs;
mod root;
mod stream;
