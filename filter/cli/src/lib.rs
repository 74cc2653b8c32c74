//! `airflow-envoy`: checks, tests, compares and explains policies with the decision core of the filter.
//!
//! One module for each command ([`command`]); what they share is how documents are read ([`source`]),
//! what a policy says ([`model`]), how a call is decided ([`evaluate`]), the keys that sign ([`jwk`]), the
//! places that keep what is granted ([`store`]), the mesh's own layer ([`intentions`]), how the audit trail is read ([`audit`]), how Envoy's
//! configuration is ([`envoy`]) and how results are shown ([`output`]). What it is not: it has no policy
//! semantics of its own. Whether a document is a policy and what that decides, the core says.

pub mod audit;
pub mod command;
pub mod coverage;
pub mod diff;
pub mod envoy;
pub mod evaluate;
pub mod granting;
pub mod graph;
pub mod intentions;
pub mod jwk;
pub mod lint;
pub mod model;
pub mod only;
pub mod output;
pub mod remedy;
pub mod replay;
pub mod report;
pub mod run;
pub mod signing;
pub mod source;
pub mod store;
pub mod suite;
