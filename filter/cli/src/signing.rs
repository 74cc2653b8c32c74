//! Signed policies, written as the core reads them.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use airflow_envoy_core::document::{Node, Report};
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::policy::{Accepted, Admitted, Trust};
use serde_json::{Value, json};

use crate::jwk::PrivateKey;

/// The `typ` of a signed policy.
pub const POLICY_TYPE: &str = "airflow-policy+jws";

/// Signs a policy: a compact JWS that the core [admits](Trust::admit) with this key.
///
/// # Errors
/// Why the core would not admit it: it is no policy, or has no `revision`.
pub fn sign(document: &Value, key: &PrivateKey) -> Result<String, String> {
    let signed = key.sign_compact(POLICY_TYPE, document.to_string().as_bytes());
    admit(&trust(vec![key.public_jwk()])?, signed.as_bytes(), None)?;
    Ok(signed)
}

/// Whoever has one of these keys may sign, and somebody must.
///
/// # Errors
/// Which key cannot be used, and why.
pub fn trust(keys: Vec<Value>) -> Result<Trust, String> {
    let document = json!({ "keys": keys, "required": true });
    let mut report = Report::new();
    let trust = Trust::read(&Node::root(&document), &mut report, &Limits::DEFAULT);
    report.finish(trust).map_err(|faults| faults.to_string())
}

/// The policy that `document` carries, as the filter would take it after `last`.
///
/// # Errors
/// Why the filter would not.
pub fn admit(trust: &Trust, document: &[u8], last: Option<&Accepted>) -> Result<Admitted, String> {
    trust.admit(document, last, &Limits::DEFAULT)
}

/// Reads a file with a policy that may be signed; `-` is standard input. No more than a filter would.
///
/// # Errors
/// With the file's name.
pub fn read_document(path: &Path) -> Result<Vec<u8>, String> {
    let name = path.display();
    // base64url makes four of three, and there are a header and a signature.
    let most = Limits::DEFAULT.policy_bytes as u64 * 4 / 3 + 64 * 1024;
    let mut bytes = Vec::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().lock().take(most).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes))
    };
    read.map(|_| bytes).map_err(|error| format!("{name}: {error}"))
}
