//! The mesh: services with certificates of Consul's, and who may call whom.

pub mod client;
pub mod intentions;
pub mod operate;
pub mod probe;
pub mod services;
pub mod worker;
