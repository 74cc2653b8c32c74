//! `airflow-envoy test`: does the policy decide as it is meant to?

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use airflow_envoy_core::time::UnixTime;
use clap::Args;
use serde_json::json;

use super::{Exit, Failed, clock, time, usable_policy, write};
use crate::coverage::{Coverage, Report, percent};
use crate::evaluate::Evaluator;
use crate::intentions::{IntentionOptions, Mesh};
use crate::output::junit::{Test, junit};
use crate::output::{Style, complain, plural, print};
use crate::run::{Line, Tested, UnderTest, run as run_suite};
use crate::source::load::{Found, ReadError, Wanted, find};
use crate::source::read_file;
use crate::suite::{self, Suite};

const EXAMPLES: &str = "\
Examples:
  airflow-envoy test policy/                       # every *_test.yaml in the folder, on the policy in it
  airflow-envoy test tests/ --policy policy/ --coverage 100
  airflow-envoy test policy/ --junit report.xml
  airflow-envoy test policy/ --watch --filter orders

A test file:
  identities:
    churn: { dag_id: ds_churn, task_id: load, team: data-science }
  defaults: { identity: churn, at: 2026-11-21T12:00:00Z }
  cases:
    - name: data science reads orders
      request: GET http://orders.internal/v1/orders/7
      permit: ds-reads-orders
    - name: others do not
      request: GET http://orders.internal/v1/orders/7
      reject: policy_no_match
      rows:
        - { name: another team, identity: { team: sales } }
        - { name: another DAG, identity: { dag_id: etl } }
  only:
    - { name: nobody else, may: [{ teams: [data-science] }], to: [orders] }";

/// Runs policy tests.
///
/// A file of tests is about the policy that it names (`policy`, relative to it), that of --policy, or that
/// of its own folder.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// Files of tests, and folders with files whose names end with `_test`
    #[arg(required = true, value_name = "TESTS")]
    tests: Vec<PathBuf>,
    /// The policy that is tested, whatever the files say
    #[arg(long, value_name = "POLICY")]
    policy: Vec<PathBuf>,
    #[command(flatten)]
    intentions: IntentionOptions,
    /// Runs only tests whose names contain this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// The time of tests without one of their own, instead of now
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Option<UnixTime>,
    /// Writes a JUnit report
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Least part of the rules that must have decided a case; shows what is missing
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    coverage: Option<f64>,
    /// Least part of the rules' conditions by which alone a case must have failed
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    condition_coverage: Option<f64>,
    /// Runs again whenever a file changes, until it is interrupted
    #[arg(long, conflicts_with = "junit")]
    watch: bool,
    /// Prints results for programs
    #[arg(long)]
    json: bool,
    /// Names passed tests too
    #[arg(long, short)]
    verbose: bool,
}

fn parse_percent(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    let number = number.filter(|number| (0.0..=100.0).contains(number));
    number.ok_or_else(|| "expected a number from 0 to 100".to_owned())
}

pub(super) fn run(options: &Options, style: Style) -> Result<Exit, Failed> {
    if !options.watch {
        return once(options, style);
    }
    loop {
        let before = stamps(options);
        if std::io::stdout().is_terminal() {
            print("\u{1b}[H\u{1b}[2J");
        }
        // A fault is mended while one watches.
        if let Err(Failed { problem, .. }) = once(options, style) {
            complain(&format!("airflow-envoy: {problem}"));
        }
        complain(&style.faint("watching; interrupt to end"));
        while stamps(options) == before {
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}

/// When each of the files changed last.
fn stamps(options: &Options) -> BTreeMap<PathBuf, Option<SystemTime>> {
    let mut stamps = BTreeMap::new();
    let mut note = |path: &Path| {
        let changed = std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
        stamps.insert(path.to_path_buf(), changed);
    };
    let tests = find(&options.tests, Wanted::Tests).unwrap_or_default();
    let mut policies = options.policy.clone();
    for test in &tests {
        if let Found::File(path) = test {
            note(path);
            if policies.is_empty()
                && let Ok(document) = read_file(test)
                && let Ok(suite) = suite::read(&document)
            {
                policies.push(policy_of(&suite, path));
            }
        }
    }
    for policy in find(&policies, Wanted::Policies).unwrap_or_default() {
        if let Found::File(path) = policy {
            note(&path);
        }
    }
    stamps
}

fn policy_of(suite: &Suite, file: &Path) -> PathBuf {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    match &suite.policy {
        Some(policy) => tidy(&folder.join(policy)),
        None => folder.to_path_buf(),
    }
}

/// `a/tests/../policy` as `a/policy`, as far as names alone say so.
fn tidy(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut tidy = PathBuf::new();
    for component in path.components() {
        match (component, tidy.components().next_back()) {
            (Component::CurDir, _) => {}
            (Component::ParentDir, Some(Component::Normal(_))) => {
                tidy.pop();
            }
            _ => tidy.push(component),
        }
    }
    if tidy.as_os_str().is_empty() { PathBuf::from(".") } else { tidy }
}

/// A policy, the files of tests about it, and what they covered.
struct Job {
    policy: UnderTest,
    suites: Vec<Suite>,
    coverage: Coverage,
}

fn once(options: &Options, style: Style) -> Result<Exit, Failed> {
    let begun = Instant::now();
    let mut jobs = read_jobs(options, style)?;
    let now = options.at.unwrap_or_else(clock);
    let wanted = |name: &str| options.filter.as_ref().is_none_or(|filter| name.contains(filter));
    let covering = options.coverage.is_some() || options.condition_coverage.is_some();
    let files: usize = jobs.iter().map(|job| job.suites.len()).sum();
    let progress = files > 20 && std::io::stderr().is_terminal() && !options.json;

    let mut tested: Vec<Tested> = Vec::new();
    let mut done = 0_usize;
    for job in &mut jobs {
        for suite in &job.suites {
            if progress {
                done += 1;
                let _ = write!(std::io::stderr(), "\r{done}/{files} files");
            }
            let coverage = covering.then_some(&mut job.coverage);
            tested.extend(run_suite(suite, &job.policy, now, &wanted, coverage));
        }
    }
    if progress {
        let _ = write!(std::io::stderr(), "\r                    \r");
    }
    if tested.is_empty() {
        let filter = options.filter.as_deref().unwrap_or_default();
        return Err(Failed::usage(format!("no test has `{filter}` in its name")));
    }
    let reports: Vec<Report> = if covering {
        jobs.iter().map(|job| job.coverage.report(&job.policy.model)).collect()
    } else {
        Vec::new()
    };
    let seconds = begun.elapsed().as_secs_f64();
    let failed = tested.iter().filter(|test| !test.failure.is_empty()).count();
    let short = |least: Option<f64>, part: fn(&Report) -> (usize, usize)| {
        least.is_some_and(|least| reports.iter().any(|report| percent(part(report)) < least))
    };
    let too_little = short(options.coverage, |report| report.rules)
        || short(options.condition_coverage, |report| report.conditions);

    if let Some(file) = &options.junit {
        let tests: Vec<Test> = tested.iter().map(for_junit).collect();
        write(file, &junit(&tests, seconds))?;
    }
    if options.json {
        print(&for_programs(&tested, &reports));
    } else if options.junit.as_deref() != Some(Path::new("-")) {
        print(&for_people(&tested, &reports, options, style, seconds));
        if too_little {
            print(&format!("{}: less is covered than was asked for\n", style.bad("FAILED")));
        }
    }
    Ok(if failed > 0 || too_little { Exit::Findings } else { Exit::Good })
}

fn read_jobs(options: &Options, style: Style) -> Result<Vec<Job>, Failed> {
    let mut by_policy: BTreeMap<Vec<PathBuf>, Vec<Suite>> = BTreeMap::new();
    let mut problems = Vec::new();
    for found in find(&options.tests, Wanted::Tests)? {
        let document = match read_file(&found) {
            Ok(document) => document,
            Err(ReadError::File(problem)) => return Err(problem.into()),
            Err(error) => {
                problems.push(error.to_string());
                continue;
            }
        };
        match suite::read(&document) {
            Ok(suite) => {
                let policy = match &found {
                    _ if !options.policy.is_empty() => options.policy.clone(),
                    Found::File(path) => vec![policy_of(&suite, path)],
                    Found::StandardInput => {
                        return Err(Failed::usage("tests from standard input need --policy"));
                    }
                };
                by_policy.entry(policy).or_default().push(suite);
            }
            Err(faults) => problems.extend(faults.into_iter().map(|fault| {
                let at = if fault.path.is_empty() { "" } else { ": " };
                format!("{}: {}{at}{}", fault.place, fault.path, fault.problem)
            })),
        }
    }
    if !problems.is_empty() {
        return Err(format!("tests cannot be run\n{}", problems.join("\n")).into());
    }
    let mesh = Mesh::read(&options.intentions)?;
    let mut jobs = Vec::new();
    for (names, suites) in by_policy {
        let (source, policy, model) = usable_policy(&names, style)?;
        let evaluator = Evaluator::new(policy).behind(mesh.clone());
        let policy = UnderTest { evaluator, model, document: source.node.value() };
        jobs.push(Job { policy, suites, coverage: Coverage::default() });
    }
    Ok(jobs)
}

fn for_people(
    tested: &[Tested],
    reports: &[Report],
    options: &Options,
    style: Style,
    seconds: f64,
) -> String {
    let mut text = String::new();
    for test in tested {
        let place = style.faint(&format!("({})", test.place));
        if test.failure.is_empty() {
            if options.verbose {
                text.push_str(&format!("{} {} {place}\n", style.good("pass"), test.name));
            }
            continue;
        }
        text.push_str(&format!("{} {} {place}\n", style.bad("FAIL"), style.strong(&test.name)));
        for line in &test.failure {
            let shown = match line {
                Line::Expected(_) => style.good(&line.to_string()),
                Line::Decided(_) => style.bad(&line.to_string()),
                Line::Note(_) => line.to_string(),
            };
            text.push_str(&format!("  {shown}\n"));
        }
    }
    for report in reports {
        text.push_str(&report.text(true));
    }
    let failed = tested.iter().filter(|test| !test.failure.is_empty()).count();
    let verdict = if failed == 0 { style.good("ok") } else { style.bad("FAILED") };
    let passed = tested.len() - failed;
    text.push_str(&format!(
        "{verdict}: {passed} passed, {failed} failed; {} in {seconds:.2} s\n",
        plural(tested.len(), "test")
    ));
    text
}

fn for_programs(tested: &[Tested], reports: &[Report]) -> String {
    let tests = tested.iter().map(|test| {
        let lines = |wanted: fn(&Line) -> Option<&String>| {
            test.failure.iter().filter_map(wanted).cloned().collect::<Vec<_>>()
        };
        let first = |mut lines: Vec<String>| (!lines.is_empty()).then(|| lines.remove(0));
        let expected = lines(|line| match line {
            Line::Expected(text) => Some(text),
            _ => None,
        });
        let decided = lines(|line| match line {
            Line::Decided(text) => Some(text),
            _ => None,
        });
        let notes = lines(|line| match line {
            Line::Note(text) => Some(text),
            _ => None,
        });
        let place = &test.place;
        json!({
            "name": test.name, "file": &*place.file, "line": place.line, "passed": test.failure.is_empty(),
            "expected": first(expected), "decided": first(decided), "notes": notes,
        })
    });
    let tests: Vec<_> = tests.collect();
    let failed = tested.iter().filter(|test| !test.failure.is_empty()).count();
    let coverage: Vec<_> = reports.iter().map(Report::json).collect();
    let results = json!({
        "passed": tested.len() - failed, "failed": failed, "tests": tests, "coverage": coverage,
    });
    format!("{results:#}\n")
}

fn for_junit(test: &Tested) -> Test {
    let lines: Vec<String> = test.failure.iter().map(ToString::to_string).collect();
    Test {
        file: test.place.file.to_string(),
        line: test.place.line,
        name: test.name.clone(),
        failure: (!lines.is_empty()).then(|| lines.join("\n")),
    }
}
