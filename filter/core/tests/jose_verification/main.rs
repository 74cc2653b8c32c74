//! Verification of signatures and credentials, seen from outside the crate.
#![cfg(test)]

mod credentials;
mod signers;
mod tampering;
mod vectors;
