//! Test results as JUnit XML, which every CI knows.

use std::fmt::Write as _;

/// One test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Test {
    /// The file.
    pub file: String,
    /// Its line.
    pub line: usize,
    /// Its name.
    pub name: String,
    /// Why it failed, in several lines.
    pub failure: Option<String>,
}

/// The report of `tests`, which took `seconds` together.
pub fn junit(tests: &[Test], seconds: f64) -> String {
    let failures = tests.iter().filter(|test| test.failure.is_some()).count();
    let count = tests.len();
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    // Writing to a string cannot fail.
    let _ = writeln!(
        xml,
        "<testsuites tests=\"{count}\" failures=\"{failures}\" errors=\"0\" time=\"{seconds:.3}\">"
    );
    let mut rest = tests;
    while let Some(Test { file, .. }) = rest.first() {
        let here = rest.iter().take_while(|test| test.file == *file).count();
        let (suite, behind) = rest.split_at(here);
        rest = behind;
        let failed = suite.iter().filter(|test| test.failure.is_some()).count();
        let name = escape(file);
        let _ = writeln!(
            xml,
            "  <testsuite name=\"{name}\" tests=\"{here}\" failures=\"{failed}\" errors=\"0\">"
        );
        for test in suite {
            let (case, line) = (escape(&test.name), test.line);
            let _ = write!(
                xml,
                "    <testcase classname=\"{name}\" name=\"{case}\" file=\"{name}\" line=\"{line}\""
            );
            let _ = match &test.failure {
                None => writeln!(xml, "/>"),
                Some(failure) => {
                    let first = escape(failure.lines().next().unwrap_or_default());
                    let whole = escape(failure);
                    writeln!(
                        xml,
                        ">\n      <failure message=\"{first}\">{whole}</failure>\n    </testcase>"
                    )
                }
            };
        }
        xml.push_str("  </testsuite>\n");
    }
    xml.push_str("</testsuites>\n");
    xml
}

/// Text for XML 1.0, which has no way to say most control characters.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(character),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            _ if character.is_control() => escaped.push('\u{fffd}'),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_name_breaks_the_report() {
        let test = |name: &str, failure: Option<&str>| Test {
            file: "a&b_test.yaml".to_owned(),
            line: 3,
            name: name.to_owned(),
            failure: failure.map(str::to_owned),
        };
        let report =
            junit(&[test("<x> \"y\"\u{1b}", Some("one\ntwo]]>")), test("fine", None)], 0.5);
        assert!(report.contains("tests=\"2\" failures=\"1\""));
        assert!(report.contains("name=\"&lt;x&gt; &quot;y&quot;\u{fffd}\""));
        assert!(report.contains("<failure message=\"one\">one\ntwo]]&gt;</failure>"));
        assert!(report.contains("a&amp;b_test.yaml"));
    }
}
