//! The checked-in bootstraps, in the eyes of Envoy.

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic, too")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use airflow_envoy_testbed::audit::AuditKey;
use airflow_envoy_testbed::bootstrap::Bootstrap;
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
fn envoy_accepts_the_files_of_the_sidecar_and_of_the_worker_as_they_are() {
    for (service, file) in [("orders", "envoy-mesh.yaml"), ("airflow-worker", "envoy-worker.yaml")]
    {
        let folder = std::env::temp_dir().join(format!("{service}-{}", std::process::id()));
        let certificates = folder.join("certificates").join(service);
        fs::create_dir_all(&certificates).unwrap();
        for name in ["certificate.json", "roots.json"] {
            fs::write(certificates.join(name), r#"{"resources": []}"#).unwrap();
        }
        symlink(repository().join("target"), folder.join("target")).unwrap();
        accepted(file, &folder);
        fs::remove_dir_all(folder).unwrap();
    }
}

/// The bound that the README states, and what it rests on.
#[test]
fn a_connection_of_the_mesh_ends_within_five_minutes_and_no_session_is_resumed() {
    let mut bootstrap = Bootstrap::read(&repository().join("envoy-mesh.yaml")).unwrap();
    let manager = bootstrap.manager().unwrap().clone();
    let seconds = |place: &str| {
        let value = manager.pointer(place).unwrap().as_str().unwrap();
        value.strip_suffix('s').unwrap().parse::<u64>().unwrap()
    };
    let bound = seconds("/common_http_protocol_options/max_connection_duration")
        + seconds("/common_http_protocol_options/idle_timeout")
        + seconds("/drain_timeout");
    assert_eq!(bound, 5 * 60);
    let tls = "/static_resources/listeners/0/filter_chains/0/transport_socket/typed_config";
    let tls = bootstrap.0.pointer(tls).unwrap();
    for flag in [
        "require_client_certificate",
        "disable_stateless_session_resumption",
        "disable_stateful_session_resumption",
    ] {
        assert_eq!(tls[flag], true, "{flag}");
    }
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    assert!(
        readme.contains("five minutes at most (`max_connection_duration`"),
        "the README's bound"
    );
}
