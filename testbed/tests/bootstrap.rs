//! The checked-in `envoy.yaml`, in the eyes of Envoy.

use std::process::Command;

use airflow_envoy_testbed::audit::AuditKey;
use airflow_envoy_testbed::{envoy_program, filter_file, repository};

#[test]
fn envoy_accepts_the_checked_in_file_as_it_is() {
    // Its path is in the file.
    filter_file().unwrap();
    let output = Command::new(envoy_program().unwrap())
        .args(["--mode", "validate", "--config-path", "envoy.yaml", "--log-level", "warning"])
        .env("AIRFLOW_ENVOY_AUDIT_KEY", AuditKey::new().private().to_string())
        .current_dir(repository())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    for trouble in ["deprecated", "[error]", "[critical]"] {
        assert!(!said.to_lowercase().contains(trouble), "{said}");
    }
}
