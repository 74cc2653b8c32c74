//! How results are shown: to people, to other programs.

pub mod html;
pub mod junit;
pub mod sarif;
pub mod svg;

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};

use clap::ColorChoice;
use serde_json::{Value, json};

use crate::lint::{Finding, Kind, Lint, Severity};

/// Whether and how text is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    coloured: bool,
}

impl Style {
    /// Colours if they are asked for, or if standard output is a terminal and `NO_COLOR` is not set.
    pub fn choose(choice: ColorChoice) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let coloured = match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => !unwanted && std::io::stdout().is_terminal(),
        };
        Self { coloured }
    }

    /// No colours.
    pub const PLAIN: Self = Self { coloured: false };

    fn paint(self, code: &str, text: &str) -> String {
        if self.coloured { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// What went wrong.
    pub fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// What may go wrong.
    pub fn warn(self, text: &str) -> String {
        self.paint("1;33", text)
    }

    /// What went well.
    pub fn good(self, text: &str) -> String {
        self.paint("1;32", text)
    }

    /// What matters.
    pub fn strong(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// What matters less.
    pub fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }
}

/// Findings as text: `file:line:column: error[invalid]: …`, and where they were found.
pub fn findings_text<K: Kind>(findings: &[Finding<K>], style: Style) -> String {
    let mut text = String::new();
    for Finding { lint, place, path, message, related } in findings {
        let severity = format!("{}[{}]", lint.severity().name(), lint.name());
        let severity = match lint.severity() {
            Severity::Error => style.bad(&severity),
            Severity::Warning => style.warn(&severity),
            Severity::Note => style.strong(&severity),
        };
        let place = style.strong(&place.to_string());
        let at = if path.is_empty() { String::new() } else { style.faint(&format!(" ({path})")) };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{place}: {severity}: {message}{at}");
        if let Some((place, what)) = related {
            let _ = writeln!(text, "  {}", style.faint(&format!("{place}: {what}")));
        }
    }
    text
}

/// Findings for programs.
pub fn findings_json<K: Kind>(findings: &[Finding<K>]) -> Value {
    let finding = |finding: &Finding<K>| {
        let place = &finding.place;
        let mut value = json!({
            "code": finding.lint.name(),
            "severity": finding.lint.severity().name(),
            "file": &*place.file, "line": place.line, "column": place.column,
            "path": finding.path, "message": finding.message,
        });
        if let Some((place, what)) = &finding.related
            && let Some(members) = value.as_object_mut()
        {
            let related = json!({
                "file": &*place.file, "line": place.line, "column": place.column, "message": what,
            });
            members.insert("related".to_owned(), related);
        }
        value
    };
    json!({
        "findings": findings.iter().map(finding).collect::<Vec<_>>(),
        "errors": count(findings, Severity::Error), "warnings": count(findings, Severity::Warning),
        "notes": count(findings, Severity::Note),
    })
}

/// How many findings are as bad as this.
pub fn count<K: Kind>(findings: &[Finding<K>], severity: Severity) -> usize {
    findings.iter().filter(|finding| finding.lint.severity() == severity).count()
}

/// "3 rules", "1 rule".
pub fn plural(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Every kind of finding with its meaning.
pub fn lints() -> impl Iterator<Item = (&'static str, &'static str, bool)> {
    Lint::ALL.into_iter().map(|lint| (lint.name(), lint.meaning(), lint.is_error()))
}

/// Writes to standard output. Whoever reads it may have gone, as `head` does: then there is nothing more
/// to say.
pub fn print(text: &str) {
    let mut output = std::io::stdout().lock();
    let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
}

/// Writes to standard error.
pub fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
