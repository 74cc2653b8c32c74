//! The checked-in bootstraps, in the eyes of Envoy.

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic, too")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use airflow_envoy_testbed::audit::AuditKey;
use airflow_envoy_testbed::{envoy_program, filter_file, repository};

/// Whether Envoy, started in `folder`, accepts the repository's `file`.
#[track_caller]
fn accepted(file: &str, folder: &Path) {
    // Its path is in the file.
    filter_file().unwrap();
    let output = Command::new(envoy_program().unwrap())
        .args(["--mode", "validate", "--log-level", "warning", "--config-path"])
        .arg(repository().join(file))
        .env("AIRFLOW_ENVOY_AUDIT_KEY", AuditKey::new().private().to_string())
        .current_dir(folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    for trouble in ["deprecated", "[error]", "[critical]"] {
        assert!(!said.to_lowercase().contains(trouble), "{said}");
    }
}

#[test]
fn envoy_accepts_the_checked_in_file_as_it_is() {
    accepted("envoy.yaml", &repository());
}

/// Beside what an agent keeps, of which Envoy wants to see that it is there.
#[test]
fn envoy_accepts_the_sidecar_s_file_as_it_is() {
    let folder = std::env::temp_dir().join(format!("sidecar-{}", std::process::id()));
    let certificates = folder.join("certificates/orders");
    fs::create_dir_all(&certificates).unwrap();
    for name in ["certificate.json", "roots.json"] {
        fs::write(certificates.join(name), r#"{"resources": []}"#).unwrap();
    }
    symlink(repository().join("target"), folder.join("target")).unwrap();
    accepted("envoy-mesh.yaml", &folder);
    fs::remove_dir_all(folder).unwrap();
}
