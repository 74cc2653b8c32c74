//! The comparison as a picture: bars of the processor time that is added, for a page in a light or a dark scheme.

use std::fmt::Write as _;

use super::report::{Measured, Report};
use super::statistics::Estimate;
use super::variants::READS;

/// What is shown of each build, after its label; and of everything else.
const OTHERS: [&str; 11] = [
    "jwt+rbac",
    "jwt+rbac/routes",
    "jwt+rbac/no-cache",
    "jwt+rbac/tokens",
    "jwt+rbac/many-rules",
    "jwt/both",
    "ext_authz/http",
    "ext_authz/grpc",
    READS,
    "opa",
    "opa/rules",
];
const OURS: [&str; 10] = [
    "",
    "/bare",
    "/filter-state",
    "/tokens",
    "/most-rules",
    "/routes",
    "/routes-filter-state",
    "/denied",
    "/cold-rs256",
    "/cold",
];

const WIDTH: f64 = 860.0;
const LEFT: f64 = 400.0;
const RIGHT: f64 = 110.0;
const ROW: f64 = 30.0;
const TOP: f64 = 64.0;

const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#1f2328}.title{font-size:16px;font-weight:600}.note{fill:#59636e}\
.ours{fill:#0969da}.other{fill:#818b98}.helper{fill:#c9d1d9}.ci{stroke:#1f2328}.axis{stroke:#d1d9e0}\
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.note{fill:#9198a1}.ours{fill:#4493f8}.other{fill:#656c76}.helper{fill:#3d444d}\
.ci{stroke:#f0f6fc}.axis{stroke:#3d444d}}";

/// An SVG.
pub fn svg(report: &Report) -> String {
    let shown: Vec<&Measured> = report.measured.iter().filter(|one| is_shown(one)).collect();
    let mut text = String::new();
    // Writing to a string does not fail.
    let _: std::fmt::Result = draw(&mut text, report, &shown);
    text
}

fn is_shown(measured: &Measured) -> bool {
    match &measured.module {
        None => OTHERS.contains(&measured.id.as_str()),
        Some(label) => {
            measured.id.strip_prefix(label.as_str()).is_some_and(|suffix| OURS.contains(&suffix))
        }
    }
}

fn draw(out: &mut String, report: &Report, shown: &[&Measured]) -> std::fmt::Result {
    let added = |one: &Measured| report.added(one);
    let most = shown.iter().map(|one| added(one).high).fold(1.0, f64::max);
    let scale = (WIDTH - LEFT - RIGHT) / most;
    let rows = shown.iter().map(|_| ROW).sum::<f64>();
    let height = TOP + rows + 44.0;
    let doubts = report.doubts();
    let note = if doubts.is_empty() {
        format!(
            "Envoy {}, one worker; lines are 95 % intervals; lighter: another process",
            report.envoy
        )
    } else {
        format!("NOT TO BE BELIEVED: {}", doubts.join("; "))
    };
    let words = shown.iter().map(|one| format!("{}: {:.1}", one.about, added(one).median));
    let words = words.collect::<Vec<_>>().join("; ");
    writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title words">
<title id="title">Processor time that is added to a request, in microseconds</title>
<desc id="words">{}</desc>
<style>{STYLE}</style>
<text class="title" x="16" y="26">Processor time added to a request, µs (less is better)</text>
<text class="note" x="16" y="46">{}</text>"#,
        escaped(&words),
        escaped(&note),
    )?;
    let mut y = TOP;
    for one in shown {
        let Estimate { median: middle, low, high } = added(one);
        let helper = report.helper(one);
        let class = if one.module.is_some() { "ours" } else { "other" };
        let (whole, own) = (middle.max(0.0) * scale, (middle - helper).max(0.0) * scale);
        let (text, line) = (y + 19.0, y + 15.0);
        writeln!(
            out,
            r#"<text x="{:.0}" y="{text:.0}" text-anchor="end">{}</text>
<rect class="{class}" x="{LEFT}" y="{:.0}" width="{own:.1}" height="18"/>"#,
            LEFT - 10.0,
            escaped(&label(one)),
            y + 6.0,
        )?;
        if helper > 0.0 {
            let (start, rest, top) = (LEFT + own, whole - own, y + 6.0);
            writeln!(
                out,
                r#"<rect class="helper" x="{start:.1}" y="{top:.0}" width="{rest:.1}" height="18"/>"#
            )?;
        }
        let (from, to) = (LEFT + low.max(0.0) * scale, LEFT + high.max(0.0) * scale);
        writeln!(
            out,
            r#"<path class="ci" d="M{from:.1} {line:.0}H{to:.1}"/>
<text x="{:.1}" y="{text:.0}">{middle:.1}</text>"#,
            to.max(LEFT + whole) + 8.0,
        )?;
        y += ROW;
    }
    writeln!(out, r#"<path class="axis" d="M{LEFT} {TOP}V{y:.0}"/>"#)?;
    let command = "scripts/bench compare";
    writeln!(out, r#"<text class="note" x="16" y="{:.0}">{command}</text>"#, y + 28.0)?;
    out.push_str("</svg>\n");
    Ok(())
}

/// What stands beside a bar: the phrase, cut to what there is room for.
fn label(measured: &Measured) -> String {
    let about = measured.about.replacen("this filter", measured.module.as_deref().unwrap_or(""), 1);
    if about.chars().count() <= 58 {
        return about;
    }
    about.chars().take(57).chain(['…']).collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn a_picture_tells_in_words_what_it_shows_and_fetches_nothing() {
        let mut found = report(0.05);
        found.measured[2].about = "a & <b>".to_owned();
        let picture = svg(&found);
        assert!(picture.contains("<desc id=\"words\">a &amp; &lt;b&gt;: 15.8;"), "{picture}");
        assert!(picture.contains("prefers-color-scheme:dark"));
        // The name of the format is the only address.
        assert_eq!(
            picture.matches("http").count(),
            picture.matches("http://www.w3.org/2000/svg").count()
                + picture.matches("ext_authz/http").count()
        );
        // One bar for each that is shown, as long as what it adds.
        let widths: Vec<f64> = picture
            .split("<rect class=\"o")
            .skip(1)
            .map(|rest| {
                rest.split("width=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap()
            })
            .collect();
        assert_eq!(widths.len(), 14);
        let ours = widths[7];
        assert!((widths[0] / ours - 2.0).abs() < 0.05, "{widths:?}");
        assert!(!picture.contains("NOT TO BE BELIEVED"));
        assert!(svg(&report(0.5)).contains("NOT TO BE BELIEVED"));
    }
}
