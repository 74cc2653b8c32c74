//! Consul's intentions: what they mean by a real Consul and by Envoy's own RBAC filter, and how the filter follows
//! them.
#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's helpers may panic, too"
)]

mod consul;
mod enforced;
mod modern;
mod random;
mod rbac;

use std::path::PathBuf;

use airflow_envoy_core::intentions::{DefaultAction, Intentions, Settings};
use airflow_envoy_core::limits::Limits;
use serde_json::Value;

/// What a source about `destination` is configured with.
fn settings(destination: &str, default: DefaultAction) -> Settings {
    Settings {
        name: "mesh".to_owned(),
        destination: destination.to_owned(),
        hosts: Vec::new(),
        default,
        namespace: "default".to_owned(),
        partition: "default".to_owned(),
        trust_domain: "td.consul".to_owned(),
        jwt_providers: Vec::new(),
        entries: false,
    }
}

fn parse(answer: &Value, settings: &Settings) -> Intentions {
    Intentions::parse(answer.to_string().as_bytes(), settings, &Limits::DEFAULT).unwrap()
}

fn spiffe_id(service: &str) -> String {
    format!("spiffe://td.consul/ns/default/dc/dc1/svc/{service}")
}

/// A folder for one test's files.
fn folder(name: &str) -> PathBuf {
    let name = format!("airflow-envoy-intentions-{name}-{}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}
