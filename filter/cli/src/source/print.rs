//! Documents as YAML that reads as the same document again.

use std::fmt::Write as _;

use super::{Content, Node};

/// Columns of a list that stays on one line.
const MOST_COLUMNS: usize = 100;

/// The document as YAML, its members in the order in which they stand.
pub fn yaml(node: &Node) -> String {
    let mut text = String::new();
    match &node.content {
        Content::Map(members) if !members.is_empty() => block(node, 0, &mut text),
        Content::List(elements) if !elements.is_empty() => block(node, 0, &mut text),
        _ => {
            text.push_str(&flow(node));
            text.push('\n');
        }
    }
    text
}

fn block(node: &Node, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match &node.content {
        Content::Map(members) => {
            for member in members {
                let _ = write!(text, "{indent}{}:", scalar(&member.name));
                below(&member.value, depth, text);
            }
        }
        Content::List(elements) => {
            for element in elements {
                if fits(element, depth) || element.members().is_empty() {
                    let _ = write!(text, "{indent}-");
                    below(element, depth, text);
                    continue;
                }
                // A map in a list begins on the line of its dash.
                let mut inner = String::new();
                block(element, depth + 1, &mut inner);
                let _ = write!(text, "{indent}- {}", inner.trim_start_matches(' '));
            }
        }
        _ => {}
    }
}

/// What stands behind a `:` or a `-`.
fn below(node: &Node, depth: usize, text: &mut String) {
    if fits(node, depth) {
        let _ = writeln!(text, " {}", flow(node));
    } else {
        text.push('\n');
        block(node, depth + 1, text);
    }
}

/// Whether it stays on one line: scalars, what is empty, short lists of scalars, short maps of those.
fn fits(node: &Node, depth: usize) -> bool {
    let is_scalar = |node: &Node| !matches!(node.content, Content::List(_) | Content::Map(_));
    let is_flat = |node: &Node| is_scalar(node) || node.elements().iter().all(is_scalar);
    match &node.content {
        Content::List(elements) => {
            elements.is_empty()
                || elements.iter().all(is_scalar)
                    && flow(node).len() + 2 * depth < MOST_COLUMNS - 20
        }
        Content::Map(members) => {
            members.is_empty()
                || depth > 1
                    && members.iter().all(|member| {
                        is_flat(&member.value) && !matches!(member.value.content, Content::Map(_))
                    })
                    && flow(node).len() + 2 * depth < MOST_COLUMNS - 40
        }
        _ => true,
    }
}

fn flow(node: &Node) -> String {
    match &node.content {
        Content::Null => "null".to_owned(),
        Content::Bool(value) => value.to_string(),
        Content::Number(number) => number.to_string(),
        Content::Text(text) => scalar(text),
        Content::List(elements) => {
            format!("[{}]", elements.iter().map(flow).collect::<Vec<_>>().join(", "))
        }
        Content::Map(members) if members.is_empty() => "{}".to_owned(),
        Content::Map(members) => {
            let members = members.iter();
            let members =
                members.map(|member| format!("{}: {}", scalar(&member.name), flow(&member.value)));
            format!("{{ {} }}", members.collect::<Vec<_>>().join(", "))
        }
    }
}

/// A text without quotes where that cannot be taken for anything else, otherwise in double quotes.
fn scalar(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_./-".contains(&byte);
    let first = text.bytes().next();
    // What YAML 1.1 takes for a boolean is quoted too: other readers may be of that age.
    let word = matches!(
        text.to_ascii_lowercase().as_str(),
        "null" | "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n"
    );
    let is_plain = !word
        && first.is_some_and(|first| first.is_ascii_alphabetic() || matches!(first, b'_' | b'/'))
        && text.bytes().all(plain);
    if is_plain {
        text.to_owned()
    } else {
        // JSON's strings are YAML's, but for what YAML 1.2 takes for a line break or does not print.
        let quoted = serde_json::to_string(text).unwrap_or_default();
        let mut escaped = String::with_capacity(quoted.len());
        for character in quoted.chars() {
            match character {
                '\u{7f}'..='\u{9f}'
                | '\u{2028}'
                | '\u{2029}'
                | '\u{feff}'
                | '\u{fffe}'
                | '\u{ffff}' => {
                    let _ = write!(escaped, "\\u{:04x}", u32::from(character));
                }
                _ => escaped.push(character),
            }
        }
        escaped
    }
}

#[cfg(test)]
mod tests {
    use super::super::load::read_bytes;
    use super::*;

    #[test]
    fn what_is_printed_reads_as_the_same() {
        for text in [
            r#"{"a":[1,-2.5,true,null,"x","yes","","*","a: b","- c"," #d","\n\t","\u2028\u0007\u0085"],"":{},"b c":[]}"#,
            r#"{"rules":[{"id":"a","from":{"claims":{"https://x/":["y"]}},"to":["*"]},{"id":"1","l":[[1,[2]],[],{}]}]}"#,
            r#"[{"a":[{"b":[{"c":[{"d":1,"e":[1]}]}]}]},[],[[["x"]]]]"#,
            r#""only text""#,
            "[]",
        ] {
            let node = read_bytes("p.json", text.as_bytes()).unwrap();
            let printed = yaml(&node);
            let again = read_bytes("p.yaml", printed.as_bytes()).unwrap_or_else(|fault| {
                panic!("{fault} in\n{printed}");
            });
            assert_eq!(again.value(), node.value(), "{printed}");
        }
    }

    #[test]
    fn a_policy_is_printed_as_people_write_it() {
        let text = r#"{"version":1,"roles":{"ds":{"any":[{"teams":["ds"]}]}},"destinations":{"o":{"hosts":["o:1"]}},
            "rules":[{"id":"a","effect":"allow","from":{"roles":["ds"]},"to":["o"],"paths":["/v1/**"]}]}"#;
        let printed = yaml(&read_bytes("p.json", text.as_bytes()).unwrap());
        let expected = "version: 1\nroles:\n  ds:\n    any:\n      - { teams: [ds] }\ndestinations:\n  o:\n    \
            hosts: [\"o:1\"]\nrules:\n  - id: a\n    effect: allow\n    from: { roles: [ds] }\n    to: [o]\n    \
            paths: [\"/v1/**\"]\n";
        assert_eq!(printed, expected);
    }
}
