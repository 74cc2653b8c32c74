//! Pages for people: one file each, which asks nobody for anything.
//!
//! A page shows what strangers wrote. So every text goes through [`maud`], which escapes it, and
//! through [`visible`]; nothing of it ever stands in the script or the style; and the page's own
//! Content Security Policy allows that one script and that one style by their hashes, and nothing else.

use std::borrow::Cow;
use std::fmt::Write as _;

use airflow_envoy_core::time::UnixTime;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest as _, Sha256};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// A part of a page with its own heading and a place in the page's navigation.
#[derive(Debug)]
pub struct Section {
    /// For links; a word of ours.
    pub id: &'static str,
    /// Its heading.
    pub title: &'static str,
    /// What it says.
    pub body: Markup,
}

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    title: &'static str,
    number: bool,
}

impl Column {
    /// Of words.
    pub const fn words(title: &'static str) -> Self {
        Self { title, number: false }
    }

    /// Of numbers.
    pub const fn numbers(title: &'static str) -> Self {
        Self { title, number: true }
    }
}

/// A whole page. `lead` stands below its heading, `made` in its footer.
pub fn page(title: &str, lead: &Markup, sections: &[Section], made: &str) -> String {
    let policy = format!(
        "default-src 'none'; style-src '{}'; script-src '{}'; base-uri 'none'; form-action 'none'",
        hash(STYLE),
        hash(SCRIPT)
    );
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(policy);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="referrer" content="no-referrer";
                title { (visible(title)) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                header {
                    h1 { (visible(title)) }
                    (lead)
                    nav aria-label="On this page" {
                        ul { @for Section { id, title, .. } in sections { li { a href={"#" (id)} { (title) } } } }
                    }
                    // It needs the script, which shows it.
                    form #finder role="search" hidden {
                        label for="search" { "Search" }
                        input #search type="search" autocomplete="off" spellcheck="false"
                            placeholder="words; / jumps here";
                        span #found.faint role="status" {}
                    }
                }
                main #main tabindex="-1" {
                    @for Section { id, title, body } in sections {
                        section id=(id) aria-labelledby={(id) "-title"} {
                            h2 id={(id) "-title"} { (title) }
                            (body)
                        }
                    }
                }
                footer { p { (visible(made)) } }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    }
    .into_string()
}

/// A source expression of a Content Security Policy (CSP 3 §2.3.1) for exactly this text.
fn hash(text: &str) -> String {
    format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(text)))
}

/// `text` with everything written out that could hide, reorder or move what is beside it, as
/// [`airflow_envoy_core::quote::quote`] does. What a page makes of markup is not its business.
pub fn visible(text: &str) -> Cow<'_, str> {
    let is_plain = |character: char| match character {
        '"' | '\'' | '\\' => true,
        character => character.escape_debug().len() == 1,
    };
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len().saturating_add(16));
    for character in text.chars() {
        if is_plain(character) {
            shown.push(character);
        } else {
            // Writing to a string cannot fail.
            let _ = write!(shown, "{}", character.escape_debug());
        }
    }
    Cow::Owned(shown)
}

/// Prose in which backticks quote what is not prose.
pub fn prose(text: &str) -> Markup {
    html! {
        @for (index, part) in visible(text).split('`').enumerate() {
            @if index.is_multiple_of(2) { (part) } @else { code { (part) } }
        }
    }
}

/// The first `most` characters of `text`, the last of them an ellipsis if that is not all.
pub fn short(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(most.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// A table whose columns can be sorted, or a word that there is nothing. `rows` are `tr` elements.
pub fn table(caption: &str, columns: &[Column], rows: &[Markup]) -> Markup {
    // So long that it gets a window of its own; the head stays in sight.
    const TALL: usize = 25;
    if rows.is_empty() {
        return html! { p.faint { "None." } };
    }
    let class = if rows.len() > TALL { "scroll tall" } else { "scroll" };
    html! {
        // What scrolls must be reachable by keys.
        div class=(class) tabindex="0" role="region" aria-label=(caption) {
            table.sortable {
                caption { (caption) }
                thead { tr {
                    @for Column { title, number } in columns { th scope="col" class=[number.then_some("n")] { (title) } }
                } }
                tbody { @for row in rows { (row) } }
            }
        }
    }
}

/// A cell with a number.
pub fn number(value: u64) -> Markup {
    html! { td.n data-v=(value) { (grouped(value)) } }
}

/// A cell with a time.
pub fn time(at: Option<UnixTime>) -> Markup {
    match at {
        Some(at) => html! { td data-v=(at.as_millis()) { time datetime=(at) { (clock(at)) } } },
        None => html! { td data-v="0" {} },
    }
}

/// A time for people, in UTC.
pub fn clock(at: UnixTime) -> String {
    at.to_string().replace('T', " ").replace('Z', " UTC")
}

/// A number with its thousands apart.
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len().saturating_mul(2));
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{a0}');
        }
        text.push(digit);
    }
    text
}

/// Figures side by side: what they count, and the number.
pub fn figures(figures: &[(&str, String)]) -> Markup {
    html! {
        dl.figures {
            @for (name, value) in figures {
                div { dt { (name) } dd class=[(value.len() > 12).then_some("small")] { (visible(value)) } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hides_or_reorders_text_is_written_out() {
        for (text, shown) in [
            ("ds_x", "ds_x"),
            ("a\"b'c\\d", "a\"b'c\\d"),
            ("grün 日本", "grün 日本"),
            ("a\u{202e}b\u{200b}\n\0", "a\\u{202e}b\\u{200b}\\n\\0"),
        ] {
            assert_eq!(visible(text), shown);
        }
    }

    #[test]
    fn markup_is_text_wherever_it_comes_from() {
        let evil = "</title></script><script>x</script>\"'&";
        let rows = [html! { tr { td title=(evil) { (evil) } } }];
        let body = table(evil, &[Column::words("a")], &rows);
        let page = page(evil, &html! {}, &[Section { id: "a", title: "A", body }], evil);
        assert_eq!(page.matches("<script>").count(), 1);
        assert_eq!(page.matches("</title>").count(), 1);
        assert!(page.contains("&lt;script&gt;x&lt;/script&gt;&quot;'&amp;"));
    }

    #[test]
    fn what_prose_quotes_is_set_apart() {
        let shown = prose("no rule `a<b>` \u{202e}").into_string();
        assert_eq!(shown, "no rule <code>a&lt;b&gt;</code> \\u{202e}");
        assert_eq!(prose("an open `end").into_string(), "an open <code>end</code>");
    }

    #[test]
    fn numbers_are_grouped_and_texts_cut() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(1_234_567), "1\u{a0}234\u{a0}567");
        assert_eq!(grouped(123_456), "123\u{a0}456");
        assert_eq!(short("abcdef", 4), "abc…");
        assert_eq!(short("abcd", 4), "abcd");
    }
}
