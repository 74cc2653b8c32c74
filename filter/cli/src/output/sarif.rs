//! Findings as SARIF 2.1.0, which code hosts show beside the lines that they are about.

use serde_json::{Value, json};

use crate::lint::{Finding, Kind};
use crate::source::Place;

/// The log of one run.
pub fn sarif<K: Kind>(findings: &[Finding<K>]) -> Value {
    let rules: Vec<Value> = K::KINDS
        .iter()
        .map(|lint| {
            json!({
                "id": lint.name(),
                "shortDescription": {"text": lint.meaning()},
                "defaultConfiguration": {"level": lint.severity().name()},
            })
        })
        .collect();
    let results: Vec<Value> = findings
        .iter()
        .map(|finding| {
            let mut result = json!({
                "ruleId": finding.lint.name(),
                "ruleIndex": K::KINDS.iter().position(|lint| *lint == finding.lint),
                "level": finding.lint.severity().name(),
                "message": {"text": sentence(finding)},
                "locations": [{"physicalLocation": physical(&finding.place)}],
            });
            if let Some((place, what)) = &finding.related
                && let Some(members) = result.as_object_mut()
            {
                let related =
                    json!([{"physicalLocation": physical(place), "message": {"text": what}}]);
                members.insert("relatedLocations".to_owned(), related);
            }
            result
        })
        .collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "airflow-envoy", "version": env!("CARGO_PKG_VERSION"), "rules": rules,
            }},
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

fn sentence<K>(finding: &Finding<K>) -> String {
    match finding.path.as_str() {
        "" => finding.message.clone(),
        path => format!("{path}: {}", finding.message),
    }
}

fn physical(place: &Place) -> Value {
    let file = json!({"uri": uri(&place.file)});
    if place.line == 0 {
        return json!({"artifactLocation": file});
    }
    let region = json!({"startLine": place.line, "startColumn": place.column.max(1)});
    json!({"artifactLocation": file, "region": region})
}

/// A path as a relative reference (RFC 3986 §4.2).
fn uri(file: &str) -> String {
    let mut uri = String::with_capacity(file.len());
    for byte in file.bytes() {
        match byte {
            b'\\' if cfg!(windows) => uri.push('/'),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                uri.push(char::from(byte));
            }
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri
}
