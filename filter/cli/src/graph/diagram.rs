//! A graph in the languages of diagrams: Mermaid and Graphviz' DOT.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Agreement, Edge, Effect, Graph, State};
use crate::output::html::{short, visible};

/// Characters of a line of a label.
const MOST: usize = 80;

/// Lines of a label; a policy may have thousands of rules between the same two.
const LINES: usize = 12;

/// How a line is drawn, of rules between the same two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Look {
    /// It denies.
    Deny,
    /// It allows.
    Allow,
    /// It is only reported.
    Shadow,
    /// It may be granted.
    Grantable,
}

impl Edge {
    /// How it is drawn.
    pub const fn look(&self) -> Look {
        match (self.shadow, self.effect) {
            (true, _) => Look::Shadow,
            (false, Effect::Deny) => Look::Deny,
            (false, Effect::Allow) => Look::Allow,
            (false, Effect::Grantable) => Look::Grantable,
        }
    }

    /// What it is about, on one line: `reads: GET, HEAD /v1/**, if dags ds_*, until 2026-12-01T00:00:00Z`.
    pub fn told(&self) -> String {
        let mut told = match (self.look(), self.effect) {
            (Look::Shadow, effect) => format!("shadow {}, {}:", effect.name(), self.id),
            (_, Effect::Allow) => format!("{}:", self.id),
            (_, effect) => format!("{}, {}:", effect.name(), self.id),
        };
        let listed = |list: &Option<Vec<String>>| list.as_ref().map(|list| list.join(", "));
        // Writing to a string cannot fail.
        match (listed(&self.methods), listed(&self.paths)) {
            (None, None) => told.push_str(" everything"),
            (methods, paths) => {
                let methods = methods.unwrap_or_else(|| "every method".to_owned());
                let _ = write!(told, " {methods} {}", paths.unwrap_or_default());
            }
        }
        let mut told = told.trim_end().to_owned();
        if !self.further.is_empty() {
            let _ = write!(told, ", if {}", super::told(&self.further));
        }
        if let Some((most, approvers)) = &self.grant {
            let _ = write!(told, ", for {most}, by {}", approvers.join(" or "));
        }
        match (self.state, self.not_before, self.expires_at) {
            (State::NotYet, Some(start), _) => _ = write!(told, ", from {start}"),
            (State::Over, _, Some(end)) => _ = write!(told, ", over since {end}"),
            (_, _, Some(end)) => _ = write!(told, ", until {end}"),
            (_, _, None) => {}
        }
        told
    }
}

impl Graph {
    /// The rules between the same two that are drawn alike, as one line.
    pub fn lines(&self) -> BTreeMap<(usize, usize, Look), Vec<&Edge>> {
        let mut lines: BTreeMap<_, Vec<&Edge>> = BTreeMap::new();
        for edge in &self.edges {
            for caller in &edge.callers {
                for destination in &edge.destinations {
                    lines.entry((*caller, *destination, edge.look())).or_default().push(edge);
                }
            }
        }
        lines
    }

    /// The graph as a Mermaid flow chart.
    pub fn mermaid(&self) -> String {
        let mut text = "flowchart LR\n".to_owned();
        // Writing to a string cannot fail.
        for (at, caller) in self.callers.iter().enumerate() {
            let label = label([caller.name(), caller.note()], "<br/>", mermaid);
            let _ = writeln!(text, "  c{at}[\"{label}\"]");
        }
        for (at, destination) in self.destinations.iter().enumerate() {
            let label =
                label([destination.name().to_owned(), destination.note()], "<br/>", mermaid);
            let _ = writeln!(text, "  d{at}([\"{label}\"])");
        }
        if let Some(agreement) = &self.agreement {
            let label = label(agreement.iter().map(Agreement::told), "<br/>", mermaid);
            let _ = writeln!(text, "  agreement{{{{\"{label}\"}}}}");
        }
        let mut styles = String::new();
        for (number, ((caller, destination, look), edges)) in self.lines().iter().enumerate() {
            let label = label(edges.iter().map(|edge| edge.told()), "<br/>", mermaid);
            let (arrow, style) = match look {
                Look::Deny => ("--x", "stroke:#a40e26,stroke-width:2px"),
                Look::Allow => ("-->", "stroke:#116329"),
                Look::Shadow => ("-.->", "stroke:#57606a"),
                Look::Grantable => ("-.->", "stroke:#6639ba,stroke-width:2px"),
            };
            let _ = writeln!(text, "  c{caller} {arrow}|\"{label}\"| d{destination}");
            let _ = writeln!(styles, "  linkStyle {number} {style}");
        }
        text + &styles
    }

    /// The graph in Graphviz' language.
    pub fn dot(&self) -> String {
        let mut text = "digraph policy {\n  rankdir=LR;\n  ranksep=3;\n  \
            node [shape=box, style=rounded, fontname=\"sans-serif\"];\n  \
            edge [fontname=\"sans-serif\", fontsize=10];\n"
            .to_owned();
        for (at, caller) in self.callers.iter().enumerate() {
            let label = label([caller.name(), caller.note()], "\\n", dot);
            let _ = writeln!(text, "  c{at} [label=\"{label}\"];");
        }
        for (at, destination) in self.destinations.iter().enumerate() {
            let label = label([destination.name().to_owned(), destination.note()], "\\n", dot);
            let _ = writeln!(text, "  d{at} [label=\"{label}\", shape=component];");
        }
        if let Some(agreement) = &self.agreement {
            let label = label(agreement.iter().map(Agreement::told), "\\l", dot);
            let _ = writeln!(text, "  agreement [label=\"{label}\\l\", shape=note];");
        }
        for ((caller, destination, look), edges) in self.lines() {
            let label = label(edges.iter().map(|edge| edge.told()), "\\l", dot);
            let style = match look {
                Look::Deny => "color=\"#a40e26\", style=bold, arrowhead=tee",
                Look::Allow => "color=\"#116329\"",
                Look::Shadow => "color=\"#57606a\", style=dotted",
                Look::Grantable => "color=\"#6639ba\", style=dashed",
            };
            let _ =
                writeln!(text, "  c{caller} -> d{destination} [label=\"{label}\\l\", {style}];");
        }
        text.push_str("}\n");
        text
    }
}

fn label(
    lines: impl IntoIterator<Item = String>,
    between: &str,
    escape: fn(&str) -> String,
) -> String {
    let lines: Vec<String> = lines.into_iter().filter(|line| !line.is_empty()).collect();
    let mut shown: Vec<String> =
        lines.iter().take(LINES).map(|line| escape(&short(&visible(line), MOST))).collect();
    if lines.len() > LINES {
        shown.push(escape(&format!("and {} more", lines.len() - LINES)));
    }
    shown.join(between)
}

/// A text within quotation marks in Mermaid: what is no letter, digit or harmless sign becomes an entity code,
/// because its labels may be HTML and Markdown.
fn mermaid(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_alphanumeric() || " .,:/_-".contains(character) {
            escaped.push(character);
        } else {
            // Writing to a string cannot fail.
            let _ = write!(escaped, "#{};", u32::from(character));
        }
    }
    escaped
}

/// A text within quotation marks in DOT, whose labels know escapes and HTML entities.
fn dot(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' => escaped.push_str("\\\""),
            '\\' => escaped.push_str("\\\\"),
            '&' => escaped.push_str("&amp;"),
            character => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_label_is_more_than_a_label() {
        assert_eq!(mermaid("a\"]-->b#<br>`*`"), "a#34;#93;--#62;b#35;#60;br#62;#96;#42;#96;");
        assert_eq!(dot("a\"b\\l&lt;"), "a\\\"b\\\\l&amp;lt;");
        assert_eq!(label(["a\nb".to_owned(), String::new()], "\\n", dot), "a\\\\nb");
    }
}
