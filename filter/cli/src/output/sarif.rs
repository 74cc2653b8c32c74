//! Findings as SARIF 2.1.0, which code hosts show beside the lines that they are about.

use serde_json::{Value, json};

use crate::lint::{Finding, Lint};
use crate::source::Place;

/// The log of one run.
pub fn sarif(findings: &[Finding]) -> Value {
    let rules: Vec<Value> = Lint::ALL
        .into_iter()
        .map(|lint| {
            json!({
                "id": lint.name(),
                "shortDescription": {"text": lint.meaning()},
                "defaultConfiguration": {"level": level(lint)},
            })
        })
        .collect();
    let results: Vec<Value> = findings
        .iter()
        .map(|finding| {
            let mut result = json!({
                "ruleId": finding.lint.name(),
                "ruleIndex": Lint::ALL.iter().position(|lint| *lint == finding.lint),
                "level": level(finding.lint),
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

fn level(lint: Lint) -> &'static str {
    if lint.is_error() { "error" } else { "warning" }
}

fn sentence(finding: &Finding) -> String {
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
