//! The binary from outside: what it prints, and how it ends.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;

/// A folder of its own that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> &Self {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn run_in(folder: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_airflow-envoy"))
        .args(arguments)
        .current_dir(folder)
        .env_remove("NO_COLOR")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Whoever does not read its input may have gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn run(arguments: &[&str]) -> Output {
    run_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."), arguments, "")
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

const GOOD: &str = "version: 1\nroles:\n  ds: {any: [{teams: [ds]}]}\ndestinations:\n  orders: {hosts: [orders]}\n\
    rules:\n  - {id: reads, effect: allow, from: {roles: [ds]}, to: [orders], methods: [GET], paths: ['/v1/**']}\n";

#[test]
fn a_good_policy_is_ok_from_a_file_a_folder_and_standard_input() {
    let folder = Folder::new();
    folder
        .file("p/policy.yaml", GOOD)
        .file("p/x_test.yaml", "not: [a policy")
        .file("p/.hidden.yaml", "-");
    for (arguments, input) in
        [(&["check", "p/policy.yaml"], ""), (&["check", "p"], ""), (&["check", "-"], GOOD)]
    {
        let output = run_in(&folder.0, arguments, input);
        assert_eq!(
            out(&output),
            "ok: 1 rule, 1 role, 1 destination\n",
            "{arguments:?} {}",
            err(&output)
        );
        assert_eq!(code(&output), 0);
    }
}

#[test]
fn faults_are_told_with_file_line_column_path_and_suggestion() {
    let folder = Folder::new();
    folder.file("p.yaml", &GOOD.replace("methods:", "method:"));
    let output = run_in(&folder.0, &["check", "p.yaml"], "");
    assert_eq!(
        out(&output),
        "p.yaml:7:67: error[invalid]: unknown field `method`, did you mean `methods`? (rules[0])\nnot usable: 1 error\n"
    );
    assert_eq!(code(&output), 1);
}

#[test]
fn warnings_are_denied_only_if_asked() {
    let folder = Folder::new();
    let over = GOOD.replace("paths: ['/v1/**']", "valid: {expires_at: 2026-12-01T00:00:00Z}");
    folder.file("p.yaml", &over);
    let at = ["--at", "2026-11-21T00:00:00Z"];
    let soon = run_in(&folder.0, &["check", "p.yaml", at[0], at[1]], "");
    assert_eq!(code(&soon), 0);
    assert!(
        out(&soon)
            .contains("p.yaml:7:5: warning[expires-soon]: rule `reads` is over at 2026-12-01")
    );
    let denied = run_in(&folder.0, &["check", "p.yaml", at[0], at[1], "--deny-warnings"], "");
    assert_eq!(code(&denied), 1);
    let later = run_in(&folder.0, &["check", "p.yaml", at[0], at[1], "--expiring", "5d"], "");
    assert_eq!(out(&later), "ok: 1 rule, 1 role, 1 destination\n");
}

#[test]
fn findings_are_json_and_sarif_too() {
    let folder = Folder::new();
    folder.file("a b.yaml", &GOOD.replace("to: [orders]", "to: [ordrs]"));
    let output = run_in(&folder.0, &["check", "a b.yaml", "--json"], "");
    let json: Value = serde_json::from_str(&out(&output)).unwrap();
    assert_eq!((&json["errors"], &json["warnings"]), (&1.into(), &0.into()));
    assert_eq!(json["findings"][0]["file"], "a b.yaml");
    assert_eq!(json["findings"][0]["line"], 7);
    assert_eq!(json["findings"][0]["path"], "rules[0].to");
    let output =
        run_in(&folder.0, &["check", "a b.yaml", "--format", "sarif", "--output", "s.sarif"], "");
    assert_eq!((code(&output), out(&output)), (1, String::new()));
    let text = std::fs::read_to_string(folder.0.join("s.sarif")).unwrap();
    let sarif: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(sarif["version"], "2.1.0");
    let result = &sarif["runs"][0]["results"][0];
    assert_eq!(result["level"], "error");
    let location = &result["locations"][0]["physicalLocation"];
    assert_eq!(location["artifactLocation"]["uri"], "a%20b.yaml");
    assert_eq!(location["region"]["startLine"], 7);
    let rule = result["ruleIndex"].as_u64().unwrap() as usize;
    assert_eq!(sarif["runs"][0]["tool"]["driver"]["rules"][rule]["id"], result["ruleId"]);
}

#[test]
fn what_cannot_be_read_ends_with_3_and_wrong_usage_with_2() {
    let folder = Folder::new();
    folder.file("empty/readme.txt", "").file("p.yaml", GOOD).file("t_test.yaml", "cases: []");
    for (arguments, expected) in [
        (&["check", "nothing.yaml"][..], 3),
        (&["check", "empty"], 3),
        (&["test", "empty"], 3),
        (&["test", "t_test.yaml"], 3),
        (&["explain", "nothing.yaml", "--host", "x"], 3),
        (&["explain", "p.yaml", "--denial", "p.yaml"], 3),
        (&["check", "p.yaml", "--output", "no/such/folder/x"], 3),
        (&["check"], 2),
        (&["check", "p.yaml", "--expiring", "soon"], 2),
        (&["check", "p.yaml", "--at", "2026-11-21"], 2),
        (&["test", "t_test.yaml", "--coverage", "101"], 2),
        (&["explain", "p.yaml"], 2),
        (&["explain", "p.yaml", "--host", "x", "--team", "ds"], 2),
        (&["explain", "-", "--denial", "-"], 2),
        (&["nonsense"], 2),
        (&["--version"], 0),
        (&["check", "--help"], 0),
    ] {
        let output = run_in(&folder.0, arguments, "");
        assert_eq!(code(&output), expected, "{arguments:?}: {}{}", out(&output), err(&output));
        assert!(!err(&output).contains("panicked"), "{arguments:?}");
    }
}

#[test]
fn the_examples_are_good_and_their_tests_cover_them_whole() {
    for example in ["examples/policy/small", "examples/policy/shop"] {
        let policy =
            if example.ends_with("shop") { "examples/policy/shop/policy" } else { example };
        let checked = run(&["check", policy, "--deny-warnings"]);
        assert_eq!(code(&checked), 0, "{}", out(&checked));
        let tested = run(&["test", example, "--coverage", "100", "--condition-coverage", "100"]);
        assert_eq!(code(&tested), 0, "{}{}", out(&tested), err(&tested));
    }
}

#[test]
fn a_failed_test_shows_what_was_expected_and_what_was_decided() {
    let folder = Folder::new();
    folder.file("policy.yaml", GOOD).file(
        "orders_test.yaml",
        "identities: {a: {dag_id: d, team: ds}}\ndefaults: {identity: a, request: GET http://orders/v1/x}\n\
         cases:\n  - {name: good, permit: reads}\n  - {name: bad, request: {method: PUT}, permit: reads}\n",
    );
    let output = run_in(&folder.0, &["test", ".", "--junit", "j.xml"], "");
    assert_eq!(code(&output), 1);
    let text = out(&output);
    assert!(text.contains("FAIL bad (./orders_test.yaml:5:5)"), "{text}");
    assert!(
        text.contains(
            "  - permit by rule `reads`\n  + reject policy_no_match, nearest rule `reads`\n"
        ),
        "{text}"
    );
    assert!(text.contains("rule `reads` is at ./policy.yaml:7:5"), "{text}");
    assert!(text.contains("FAILED: 1 passed, 1 failed"), "{text}");
    let junit = std::fs::read_to_string(folder.0.join("j.xml")).unwrap();
    assert!(junit.contains("tests=\"2\" failures=\"1\""), "{junit}");
    let only_good = run_in(&folder.0, &["test", ".", "--filter", "good"], "");
    assert_eq!(code(&only_good), 0, "{}", out(&only_good));
    let json = run_in(&folder.0, &["test", ".", "--json"], "");
    let json: Value = serde_json::from_str(&out(&json)).unwrap();
    assert_eq!((&json["passed"], &json["failed"]), (&1.into(), &1.into()));
    assert_eq!(json["tests"][1]["expected"], "permit by rule `reads`");
}

/// A process that goes with the test.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn watching_tests_again_what_changed_and_survives_a_fault() {
    let folder = Folder::new();
    let test =
        "cases: [{identity: {dag_id: d, team: ds}, request: GET orders/v1/x, permit: reads}]\n";
    folder.file("policy.yaml", GOOD).file("a_test.yaml", test);
    let mut child = Running(
        Command::new(env!("CARGO_BIN_EXE_airflow-envoy"))
            .args(["test", ".", "--watch"])
            .current_dir(&folder.0)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let output = BufReader::new(child.0.stdout.take().unwrap());
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if line.starts_with("ok:") || line.starts_with("FAILED:") {
                let _ = sender.send(line);
            }
        }
    });
    let verdict = || receiver.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(verdict().starts_with("ok: 1 passed"));
    folder.file("policy.yaml", &GOOD.replace("teams: [ds]", "teams: [other]"));
    assert!(verdict().starts_with("FAILED: 0 passed, 1 failed"));
    folder.file("policy.yaml", "version: [");
    std::thread::sleep(Duration::from_secs(1));
    folder.file("policy.yaml", GOOD);
    assert!(verdict().starts_with("ok: 1 passed"));
}

#[test]
fn too_little_coverage_fails_and_says_what_is_missing() {
    let folder = Folder::new();
    folder
        .file(
            "policy.yaml",
            &format!("{GOOD}  - {{id: never, effect: deny, to: [orders], paths: [/x]}}\n"),
        )
        .file(
            "a_test.yaml",
            "cases: [{identity: {dag_id: d, team: ds}, request: GET orders/v1/x, permit: reads}]",
        );
    let output = run_in(&folder.0, &["test", ".", "--coverage", "60"], "");
    assert_eq!(code(&output), 1);
    let text = out(&output);
    assert!(text.contains("coverage: 1/2 rules (50%), 1/4 conditions (25%)"), "{text}");
    assert!(text.contains("no case is decided by rule `never` (./policy.yaml:8:5)"), "{text}");
    assert!(
        text.contains("no case of rule `reads` fails only by its paths, methods, from.roles"),
        "{text}"
    );
    assert_eq!(code(&run_in(&folder.0, &["test", ".", "--coverage", "50"], "")), 0);
}

#[test]
fn only_finds_whoever_else_may() {
    let folder = Folder::new();
    let only = |may: &str| {
        format!(
            "only: [{{name: nobody else, may: {may}, to: [orders], methods: [GET], paths: ['/v1/**']}}]\n"
        )
    };
    folder
        .file("policy.yaml", &format!(
            "{GOOD}  - {{id: hole, effect: allow, from: {{tags: [debug*]}}, to: ['*'], valid: {{not_before: 2030-01-01T00:00:00Z}}}}\n"
        ))
        .file("a_test.yaml", &only("[{teams: [ds]}]"))
        .file("b/b_test.yaml", &format!("policy: ../policy.yaml\n{}", only("[{roles: [ds]}, {tags: [debugx]}]")))
        .file("c/c_test.yaml", &format!("policy: ../policy.yaml\n{}", only("[{teams: [nobody]}]")));
    let output = run_in(&folder.0, &["test", "a_test.yaml", "--policy", "policy.yaml"], "");
    assert_eq!(code(&output), 1, "{}", out(&output));
    // The hole opens years from now: found because the moment when a rule begins is tried too.
    assert!(out(&output).contains("at 2030-01-01T00:00:00Z by rule `hole`"), "{}", out(&output));
    let held = run_in(&folder.0, &["test", "b"], "");
    assert_eq!(code(&held), 0, "{}{}", out(&held), err(&held));
    let vacuous = run_in(&folder.0, &["test", "c"], "");
    assert!(out(&vacuous).contains("for the wrong reason"), "{}", out(&vacuous));
}

#[test]
fn faults_of_tests_are_told_where_they_stand() {
    let folder = Folder::new();
    folder.file("policy.yaml", GOOD).file(
        "a_test.yaml",
        "identities: {a: {dag: d}}\ncases:\n  - {identity: b, request: GET orders/, permit: reads}\n  \
         - {request: orders, reject: policy_nomatch}\n  - {request: GET orders/}\nextra: 1\n",
    );
    let output = run_in(&folder.0, &["test", "a_test.yaml"], "");
    assert_eq!(code(&output), 3);
    let text = err(&output);
    for told in [
        "a_test.yaml:1:14: identities.a: unknown claim `dag`",
        "a_test.yaml:3:6: cases[0].identity: `identities` has no `b`, did you mean `a`?",
        "a_test.yaml:4:6: cases[1].request: `orders` is not a method and a URL",
        "a_test.yaml:4:23: cases[1].reject: there is no code `policy_nomatch`, did you mean `policy_no_match`?",
        "a_test.yaml:5:5: cases[2]: says neither `permit` nor `reject`",
        "a_test.yaml:6:1: unknown field `extra`",
    ] {
        assert!(text.contains(told), "{told} is not in\n{text}");
    }
}

#[test]
fn explain_shows_the_reasons_and_a_change_that_was_tried() {
    let folder = Folder::new();
    folder.file(
        "policy.yaml",
        &format!(
            "{GOOD}  - {{id: no-debug, effect: deny, from: {{tags: [debug]}}, to: [orders]}}\n"
        ),
    );
    let base =
        ["explain", "policy.yaml", "--at", "2026-11-21T00:00:00Z", "--dag", "d", "--tag", ""];
    let explain = |more: &[&str]| run_in(&folder.0, &[&base[..], more].concat(), "");
    let permitted = explain(&["--team", "ds", "--url", "https://orders/v1/7"]);
    assert_eq!(code(&permitted), 0, "{}", out(&permitted));
    assert!(out(&permitted).contains("permit by rule `reads`"), "{}", out(&permitted));

    let refused =
        explain(&["--team", "x", "--method", "PUT", "--host", "orders", "--path", "/v1/../v2/./a"]);
    assert_eq!(code(&refused), 1);
    let text = out(&refused);
    for told in [
        "reject policy_no_match, nearest rule `reads`",
        "path in its normal form: `/v2/a`",
        "`ds` not held (policy.yaml:3:3): teams `ds`; the caller's is `x`",
        "paths: only for paths `/v1/**`; this is `/v2/a`",
        "methods: only for methods GET; this is `PUT`",
        "from.roles: only for roles `ds`; the caller holds none of the policy's roles",
        "add `/v2/a` to `paths` of rule `reads` (policy.yaml:7:",
        "add `PUT` to `methods` of rule `reads`",
        "let the role `ds` be held by teams `x` too",
        "tried: the call is then permitted by `reads`",
    ] {
        assert!(text.contains(told), "{told} is not in\n{text}");
    }
    let json =
        explain(&["--team", "ds", "--tag", "debug", "--url", "https://orders/v1/7", "--json"]);
    let json: Value = serde_json::from_str(&out(&json)).unwrap();
    assert_eq!((&json["decision"], &json["rule"]), (&"reject".into(), &"no-debug".into()));
    assert_eq!(json["remedy"]["permitted_by"], "reads");
    assert_eq!(json["remedy"]["steps"][0]["path"], "rules[1]");
}

#[test]
fn explain_says_what_a_tunnel_must_be_allowed_by() {
    let folder = Folder::new();
    folder.file(
        "policy.yaml",
        &format!(
            "{GOOD}  - {{id: tunnel, effect: allow, from: {{teams: [ops]}}, to: [orders], methods: [CONNECT]}}\n  \
             - {{id: no-admin, effect: deny, from: {{tags: [debug]}}, to: [orders], paths: ['/admin/**']}}\n  \
             - {{id: no-put, effect: deny, from: {{tags: [pii]}}, to: [orders], methods: [PUT]}}\n"
        ),
    );
    let explain = |more: &[&str]| {
        let base = ["explain", "policy.yaml", "--dag", "d", "--method", "CONNECT"];
        run_in(&folder.0, &[&base[..], more].concat(), "")
    };
    for url in [&["--url", "orders:443"][..], &["--host", "orders:443"]] {
        let permitted = explain(&[&["--team", "ops", "--tag", ""], url].concat());
        assert_eq!(code(&permitted), 0, "{}", out(&permitted));
        let text = out(&permitted);
        assert!(text.starts_with("CONNECT orders:443\n"), "{text}");
        assert!(text.contains("permit by rule `tunnel`"), "{text}");
    }
    let refused = explain(&["--team", "ds", "--tag", "", "--url", "orders:443"]);
    let text = out(&refused);
    for told in [
        "reject policy_no_match, nearest rule `tunnel`",
        "methods: no tunnel, which hides methods and paths: a rule that allows one names `CONNECT`",
        "paths: no tunnel, which",
        "add `ds` to `from.teams` of rule `tunnel`",
        "tried: the call is then permitted by `tunnel`",
    ] {
        assert!(text.contains(told), "{told} is not in\n{text}");
    }
    let denied = explain(&["--team", "ops", "--tag", "debug", "--url", "orders:443"]);
    let text = out(&denied);
    for told in [
        "reject policy_denied by rule `no-admin`",
        "paths (unknown): rule `no-admin` cannot be evaluated for a tunnel",
        "remove the deny rule `no-admin`, or narrow it by `from` or `to`",
        "permitted by `tunnel`",
    ] {
        assert!(text.contains(told), "{told} is not in\n{text}");
    }
    let denied = explain(&["--team", "ops", "--tag", "pii", "--url", "orders:443", "--json"]);
    let json: Value = serde_json::from_str(&out(&denied)).unwrap();
    assert_eq!((&json["rule"], &json["path"]), (&"no-put".into(), &Value::Null));
    let rules = json["rules"].as_array().unwrap();
    let rule = rules.iter().find(|rule| rule["id"] == "no-put").unwrap();
    assert_eq!(rule["failures"][0]["condition"], "methods");
    assert_eq!((&rule["failures"][0]["unknown"], &rule["applies"]), (&true.into(), &true.into()));
    assert_eq!(rule["failures"].as_array().unwrap().len(), 1);

    for (arguments, told) in [
        (&["--url", "orders"][..], "reject authority_invalid"),
        (&["--host", "orders:443", "--path", "/v1/7"], "reject request_malformed"),
        (&["--url", "other:443"], "and a rule that allows it, with `CONNECT` in `methods`"),
    ] {
        let output = explain(arguments);
        assert!(out(&output).contains(told), "{told} is not in\n{}", out(&output));
    }
    let wrong = explain(&["--url", "https://orders/v1/7"]);
    assert_eq!(code(&wrong), 2);
    assert!(err(&wrong).contains("is not a tunnel such as `CONNECT host:443`"), "{}", err(&wrong));
    assert!(!err(&wrong).contains("panicked"));
}

#[test]
fn the_change_for_a_tunnel_narrows_and_widens_no_rule_about_paths() {
    let folder = Folder::new();
    folder.file("paths.yaml", GOOD).file("methods.yaml", &GOOD.replace(", paths: ['/v1/**']", ""));
    for (policy, told) in [
        ("paths.yaml", "a new rule, with `CONNECT` in `methods` and without `paths`: no change"),
        ("methods.yaml", "add `CONNECT` to `methods` of rule `reads`"),
    ] {
        let arguments =
            ["explain", policy, "--dag", "d", "--team", "ds", "--method", "CONNECT", "--url"];
        let output = run_in(&folder.0, &[&arguments[..], &["orders:443"]].concat(), "");
        assert_eq!(code(&output), 1);
        assert!(out(&output).contains(told), "{told} is not in\n{}", out(&output));
    }
}

/// A policy of paths that are the caller's own.
const OWN: &str = "version: 1\ndestinations:\n  af: {hosts: [af]}\nrules:\n  \
    - {id: own, effect: allow, to: [af], methods: [PUT], paths: ['/ti/{sub}/run', /open]}\n";

#[test]
fn explain_opens_nobodys_own_path_to_others() {
    let folder = Folder::new();
    folder.file("policy.yaml", OWN).file(
        "deny.yaml",
        &format!("{OWN}  - {{id: not-own, effect: deny, to: [af], paths: ['/ti/{{sub}}/run']}}\n"),
    );
    let explain = |policy: &str, more: &[&str]| {
        let base = ["explain", policy, "--dag", "d", "--method", "PUT"];
        run_in(&folder.0, &[&base[..], more].concat(), "")
    };
    let own = explain("policy.yaml", &["--subject", "a b", "--url", "http://af/ti/a%20b/run"]);
    assert_eq!(code(&own), 0, "{}", out(&own));
    let other = explain("policy.yaml", &["--subject", "a", "--url", "http://af/ti/b/run"]);
    let text = out(&other);
    for told in [
        "reject policy_no_match, nearest rule `own`",
        "`{sub}` is the access token's `sub`, here `a`",
        "a new rule: no change of a single rule was found that does it",
    ] {
        assert!(text.contains(told), "{told} is not in\n{text}");
    }
    let elsewhere = explain("policy.yaml", &["--subject", "a", "--url", "http://af/elsewhere"]);
    let text = out(&elsewhere);
    assert!(text.contains("add `/elsewhere` to `paths` of rule `own`"), "{text}");
    let unknown = explain("deny.yaml", &["--url", "http://af/ti/b/run"]);
    let text = out(&unknown);
    for told in [
        "reject policy_denied by rule `not-own`",
        "paths (unknown): only for paths `/ti/{sub}/run`; this is `/ti/b/run`",
        "which is unknown here",
    ] {
        assert!(text.contains(told), "{told} is not in\n{text}");
    }
}

#[test]
fn only_tries_everybody_on_their_own_paths_and_by_tunnel() {
    let folder = Folder::new();
    let test = |policy: &str, only: &str| {
        folder.file("policy.yaml", policy).file("a_test.yaml", &format!("only: [{only}]\n"));
        let output = run_in(&folder.0, &["test", "a_test.yaml"], "");
        (code(&output), out(&output))
    };
    let (code, text) = test(OWN, "{name: n, may: [], to: [af], methods: [PUT], paths: ['/ti/**']}");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("PUT https://af/ti/a-stranger/run at"), "{text}");
    let (code, text) =
        test(OWN, "{name: n, may: [], to: [af], methods: [PUT], paths: ['/ti/{sub}/run']}");
    assert_eq!(code, 1, "{text}");
    let (code, text) =
        test(OWN, "{name: n, may: [], to: [af], methods: [PUT], paths: [/ti/x/run]}");
    assert_eq!(code, 0, "nobody of those who are tried is x: {text}");
    let closed = OWN.replace("/ti/{sub}/run', /open", "/ti/*/run'");
    let (code, text) =
        test(&closed, "{name: n, may: [], to: [af], methods: [PUT], paths: ['/ti/{sub}/run']}");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("PUT https://af/ti/a-stranger/run at"), "{text}");

    let tunnel = "version: 1\ndestinations:\n  af: {hosts: ['*.af:8443', '[::1]', af]}\nrules:\n  \
        - {id: tunnel, effect: allow, from: {teams: [x]}, to: [af], methods: [CONNECT]}\n";
    let (code, text) =
        test(tunnel, "{name: n, may: [], to: [af], methods: [GET], paths: [/admin]}");
    assert_eq!(code, 1, "{text}");
    for told in ["CONNECT x.af:8443 at", "CONNECT [::1]:443 at", "CONNECT af:443 at"] {
        assert!(text.contains(told), "{told} is not in\n{text}");
    }
    let (code, text) = test(tunnel, "{name: n, may: [{teams: [x]}], to: [af]}");
    assert_eq!(code, 0, "{text}");
}

#[test]
fn a_test_asks_for_a_tunnel_and_for_ones_own_path() {
    let folder = Folder::new();
    folder
        .file("policy.yaml", &format!("{OWN}  - {{id: tunnel, effect: allow, from: {{dags: [t]}}, to: [af], methods: [CONNECT]}}\n"))
        .file(
            "a_test.yaml",
            "defaults: {request: GET https://af/x, at: 2026-11-21T12:00:00Z}\ncases:\n  \
             - {identity: {dag_id: t}, request: CONNECT af:443, permit: tunnel}\n  \
             - {identity: {dag_id: t}, request: {method: CONNECT, host: 'af:443'}, reject: request_malformed}\n  \
             - {identity: {dag_id: t}, reject: policy_no_match}\n  \
             - {identity: {dag_id: u}, request: CONNECT af:443, reject: policy_no_match, nearest: tunnel}\n  \
             - {token: {claims: {sub: a}}, request: PUT https://af/ti/a/run, permit: own}\n  \
             - {token: {claims: {sub: a}}, request: GET https://af/ti/a/run, reject: policy_no_match}\n  \
             - {token: {claims: {sub: a}}, request: PUT https://af/ti/b/run, reject: policy_no_match, detail: '`{sub}` is'}\n",
        );
    let all = ["test", "a_test.yaml", "--coverage", "100", "--condition-coverage", "100"];
    let output = run_in(&folder.0, &all, "");
    assert_eq!(code(&output), 0, "{}{}", out(&output), err(&output));
    assert!(out(&output).contains("2/2 rules (100%), 4/4 conditions (100%)"), "{}", out(&output));
    // A tunnel that a rule about something else does not allow tries nothing of that rule.
    folder.file(
        "a_test.yaml",
        "cases: [{token: {claims: {sub: a}}, request: CONNECT af:443, reject: policy_no_match}]\n",
    );
    let output = run_in(&folder.0, &all, "");
    assert!(out(&output).contains("0/2 rules (0%), 1/4 conditions (25%)"), "{}", out(&output));
    assert!(out(&output).contains("`own` fails only by its paths, methods"), "{}", out(&output));
}

#[test]
fn a_denial_is_explained_with_its_rule_and_what_differs() {
    let folder = Folder::new();
    folder.file("policy.yaml", GOOD);
    let denial = r#"{"type": "urn:airflow-envoy:code:policy_no_match", "code": "policy_no_match", "status": 403,
        "detail": "rule `main/reads` allows this path", "nearest": "main/reads", "decision_id": "4b", "action": "read"}"#;
    let output = run_in(&folder.0, &["explain", "policy.yaml", "--denial", "-"], denial);
    assert_eq!(code(&output), 1);
    let text = out(&output);
    assert!(text.contains("denied: 403 policy_no_match: No rule allows this call"), "{text}");
    assert!(text.contains("the nearest rule (policy.yaml:7:5):\n  id: reads\n"), "{text}");
    assert!(text.contains("\n  what to do: read\n"), "{text}");
    let ambiguous = r#"{"code": "token_ambiguous", "status": 407}"#;
    let output = run_in(&folder.0, &["explain", "policy.yaml", "--denial", "-"], ambiguous);
    let text = out(&output);
    assert!(text.contains("denied: 407 token_ambiguous: Two access tokens"), "{text}");
    assert!(text.contains("what to do: leave one of them out"), "{text}");
    let arguments = [
        "explain",
        "policy.yaml",
        "--denial",
        "-",
        "--dag",
        "d",
        "--team",
        "ds",
        "--url",
        "http://orders/v1/7",
    ];
    let output = run_in(&folder.0, &arguments, denial);
    assert_eq!(code(&output), 0);
    assert!(
        out(&output).contains("note: this policy permits the call by rule `reads`"),
        "{}",
        out(&output)
    );
    let gone = denial.replace("main/reads\", \"dec", "main/gone\", \"dec");
    let output = run_in(&folder.0, &["explain", "policy.yaml", "--denial", "-"], &gone);
    assert!(
        out(&output).contains("the nearest rule `main/gone` is not in this policy"),
        "{}",
        out(&output)
    );
}

#[test]
fn what_is_printed_is_the_policy_in_either_language() {
    let folder = Folder::new();
    folder
        .file("p/a.yaml", GOOD)
        .file("p/b.json", r#"{"rules": [{"id": "b", "effect": "deny", "to": ["orders"]}]}"#);
    let json = run_in(&folder.0, &["print", "p"], "");
    assert_eq!(code(&json), 0);
    let value: Value = serde_json::from_str(&out(&json)).unwrap();
    assert_eq!(value["rules"][1]["id"], "b");
    let yaml = run_in(&folder.0, &["print", "p", "--format", "yaml"], "");
    let again = run_in(&folder.0, &["print", "-"], &out(&yaml));
    assert_eq!(out(&again), out(&json));
    let broken = run_in(&folder.0, &["print", "-"], "version: 2\nrules: []\n");
    assert_eq!((code(&broken), out(&broken)), (3, String::new()));
    assert!(
        err(&broken).contains("-:1:1: error[invalid]: the only version is 1"),
        "{}",
        err(&broken)
    );
}

#[test]
fn hostile_documents_are_refused_in_time_and_without_panic() {
    let folder = Folder::new();
    let bomb: String = (1..40).fold("a0: &a0 [x]\n".to_owned(), |text, level| {
        format!("{text}a{level}: &a{level} [*a{0}, *a{0}, *a{0}]\n", level - 1)
    });
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    let deep_map = "{a: ".repeat(100_000);
    let long = format!("version: {}\n", "9".repeat(1_000_000));
    let many = format!("rules:\n{}", "  - {}\n".repeat(20_000));
    let flood = format!(
        "version: 1\nrules: []\n{}",
        (0..20_000).map(|n| format!("x{n}: 1\n")).collect::<String>()
    );
    for (name, text) in [
        ("bomb", bomb.as_bytes()),
        ("deep", deep.as_bytes()),
        ("deep map", deep_map.as_bytes()),
        ("long", long.as_bytes()),
        ("many", many.as_bytes()),
        ("flood", flood.as_bytes()),
        ("latin-1", b"version: 1\nrules: [\xe9]\n"),
        ("utf-16", b"\xff\xfev\0e\0r\0"),
        ("control", b"version: 1\nrules: \"\x00\x1b[2J\"\n"),
        ("only a dash", b"-"),
        ("a directive", b"%YAML 1.1\n---\nversion: 1\n"),
        ("a tab", b"version: 1\nrules:\n\t- id: a\n"),
        ("a glob", b"version: 1\ndestinations: {a: {hosts: ['*']}}\nrules: [{id: a, effect: allow, to: [a], paths: ['/**/x', '/a?b']}]\n"),
        ("a time without zone", b"version: 1\nrules: [{id: a, effect: allow, to: ['*'], valid: {expires_at: '2026-11-22T00:00:00'}}]\n"),
    ] {
        for ending in ["yaml", "json"] {
            let file = format!("{}.{ending}", name.replace(' ', "_"));
            std::fs::write(folder.0.join(&file), text).unwrap();
            let begun = std::time::Instant::now();
            let output = run_in(&folder.0, &["check", &file], "");
            assert_eq!(code(&output), 1, "{file}: {} {}", out(&output), err(&output));
            assert!(out(&output).starts_with(&format!("{file}:")), "{file}: {}", out(&output));
            assert!(out(&output).len() < 20_000, "{file}: {} bytes", out(&output).len());
            assert!(!out(&output).contains('\u{1b}') && !err(&output).contains("panicked"), "{file}");
            assert!(begun.elapsed().as_secs() < 20, "{file}: {:?}", begun.elapsed());
        }
    }
}

#[test]
fn colours_are_only_where_they_are_wanted() {
    let coloured = run(&["check", "examples/policy/small", "--color", "always"]);
    assert!(out(&coloured).starts_with("\u{1b}[1;32mok\u{1b}[0m"));
    let piped = run(&["check", "examples/policy/small"]);
    assert!(out(&piped).starts_with("ok:"));
}

#[test]
fn completions_and_the_manual_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert_eq!(code(&output), 0);
        for command in ["check", "test", "explain", "print"] {
            assert!(out(&output).contains(command), "{shell} {command}");
        }
    }
    let folder = Folder::new();
    assert_eq!(code(&run_in(&folder.0, &["manual", "man"], "")), 0);
    let page = std::fs::read_to_string(folder.0.join("man/airflow-envoy-check.1")).unwrap();
    assert!(page.contains("airflow\\-envoy\\-check") && page.contains("deny\\-warnings"), "{page}");
    assert!(out(&run(&["manual"])).contains("Exit codes"));
}

const CHANGED: &str = "version: 1\nroles:\n  of-science: {any: [{teams: [ds]}]}\ndestinations:\n  orders: {hosts: [orders]}\n\
    rules:\n  - {id: reads-and-writes, effect: allow, from: {roles: [of-science]}, to: [orders], methods: [GET, POST], paths: ['/v1/**']}\n\
    \x20 - {id: no-cards, effect: deny, from: {tags: [guest]}, to: ['*'], paths: ['/v1/cards/**']}\n";

#[test]
fn a_difference_is_told_with_a_call_that_explain_explains() {
    let folder = Folder::new();
    folder.file("old/p.yaml", GOOD).file("new.yaml", CHANGED);
    let output = run_in(&folder.0, &["diff", "old", "new.yaml", "--json"], "");
    assert_eq!(code(&output), 1, "{}", err(&output));
    let json: Value = serde_json::from_str(&out(&output)).unwrap();
    assert_eq!((&json["gains"], &json["losses"]), (&1.into(), &1.into()), "{json:#}");
    assert_eq!(json["certain"], serde_json::json!({"no_gain": false, "no_loss": false}));
    for difference in json["differences"].as_array().unwrap() {
        let is_gain = difference["kind"] == "gain";
        let (rule, method) = if is_gain { ("reads-and-writes", "POST") } else { ("reads", "GET") };
        assert_eq!(difference["rule"], rule);
        assert_eq!(difference["methods"], serde_json::json!([method]));
        assert_eq!(difference["destinations"], serde_json::json!(["orders"]));
        // The policy that refuses explains it, as a shell would have it done.
        let command = difference["explain"].as_str().unwrap();
        let command = command.replacen("airflow-envoy", env!("CARGO_BIN_EXE_airflow-envoy"), 1);
        let refused =
            Command::new("sh").args(["-c", &command]).current_dir(&folder.0).output().unwrap();
        assert_eq!(code(&refused), 1, "{command}: {}", err(&refused));
        let (refuses, permits) = if is_gain { ("old", "new.yaml") } else { ("new.yaml", "old") };
        let command =
            command.replacen(&format!("explain {refuses}"), &format!("explain {permits}"), 1);
        let permitted =
            Command::new("sh").args(["-c", &command]).current_dir(&folder.0).output().unwrap();
        assert_eq!(code(&permitted), 0, "{command}: {}", out(&permitted));
        // The witness is a case of a policy test.
        let mut case = difference["witness"].clone();
        case["name"] = "the witness".into();
        case["permit"] = rule.into();
        let test = serde_json::json!({"cases": [case]}).to_string();
        folder.file("w_test.json", &test);
        let tested = run_in(&folder.0, &["test", "w_test.json", "--policy", permits], "");
        assert_eq!(code(&tested), 0, "{}{}", out(&tested), err(&tested));
    }
    let output = run_in(&folder.0, &["diff", "old", "new.yaml", "--format", "markdown"], "");
    assert!(
        out(&output).contains("| gain | `reads-and-writes` | roles `of-science` | `orders`: POST"),
        "{}",
        out(&output)
    );
}

#[test]
fn other_words_are_no_difference_and_what_is_certain_is_said() {
    let folder = Folder::new();
    let renamed = GOOD
        .replace("id: reads", "intent: To read., id: read-orders")
        .replace("  ds:", "  science:");
    let renamed = renamed.replace("roles: [ds]", "roles: [science]");
    let less = renamed.replace("/v1/**", "/v1/a");
    folder.file("old.yaml", GOOD).file("same.yaml", &renamed).file("less.yaml", &less);
    let output = run_in(&folder.0, &["diff", "old.yaml", "same.yaml", "--all"], "");
    assert_eq!(code(&output), 0);
    assert_eq!(
        out(&output),
        "text: rule `reads` is now rule `read-orders`, and means the same\n\
         same access: no gain, which is certain; no loss, which is certain\n"
    );
    let output = run_in(&folder.0, &["diff", "same.yaml", "less.yaml"], "");
    assert_eq!(code(&output), 1);
    assert!(
        out(&output).contains("different access: no gain, which is certain; 1 loss; "),
        "{}",
        out(&output)
    );
    let few = run_in(&folder.0, &["diff", "same.yaml", "less.yaml", "--calls", "1"], "");
    assert!(out(&few).contains("not all was tried: "), "{}", out(&few));
    assert_eq!(code(&run_in(&folder.0, &["diff", "-", "-"], "")), 2);
    assert_eq!(code(&run_in(&folder.0, &["diff", "old.yaml", "none.yaml"], "")), 3);
    let piped = run_in(&folder.0, &["diff", "old.yaml", "-"], &renamed);
    assert_eq!(code(&piped), 0, "{}", err(&piped));
}

#[test]
fn what_is_grantable_otherwise_is_a_difference() {
    let folder = Folder::new();
    assert_eq!(code(&run_in(&folder.0, &["keys", "new", "--out", "k.json"], "")), 0);
    let public = out(&run_in(&folder.0, &["keys", "public", "k.json"], ""));
    let public: Value = serde_json::from_str(&public).unwrap();
    let policy = |duration: &str, method: &str| {
        format!(
            "{GOOD}grantable:\n  - {{id: writes, from: {{roles: [ds]}}, to: [orders], methods: [{method}], max_duration: {duration}, approvers: [lead]}}\n\
             approvers:\n  lead: {{keys: {}}}\n",
            public["keys"]
        )
    };
    folder.file("old.yaml", &policy("1h", "PUT"));
    for (new, code_is, told) in [
        (policy("60m", "PUT"), 0, ""),
        (policy("2h", "PUT"), 1, "grantable: `writes` differs in how long it may last\n"),
        (policy("1h", "POST"), 1, "grantable: `writes` differs in what it allows, and to whom\n"),
        (GOOD.to_owned(), 1, "grantable: `writes` is gone\n"),
    ] {
        folder.file("new.yaml", &new);
        let output = run_in(&folder.0, &["diff", "old.yaml", "new.yaml"], "");
        assert_eq!(code(&output), code_is, "{}{}", out(&output), err(&output));
        assert!(out(&output).starts_with(told), "{}", out(&output));
        assert!(
            out(&output).contains("same access: no gain, which is certain"),
            "{}",
            out(&output)
        );
    }
}

#[test]
fn the_configuration_of_envoy_is_checked_with_places_and_exit_codes() {
    let output = run(&["config", "check", "envoy.yaml", "--deny-warnings"]);
    assert_eq!((code(&output), &*out(&output)), (0, "ok: 1 file\n"), "{}", err(&output));
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../envoy.yaml"))
            .unwrap();
    let folder = Folder::new();
    folder.file(
        "warned.yaml",
        &text.replace("use_remote_address: true", "use_remote_address: false"),
    );
    folder.file("wrong.yaml", &text.replace("\"max_age\": \"15m\"", "\"max_age\": \"15 min\""));
    folder.file("torn.yaml", "a: [b");
    assert_eq!(code(&run_in(&folder.0, &["config", "check", "warned.yaml"], "")), 0);
    assert_eq!(
        code(&run_in(&folder.0, &["config", "check", "warned.yaml", "--deny-warnings"], "")),
        1
    );
    let output = run_in(&folder.0, &["config", "check", "wrong.yaml", "warned.yaml"], "");
    assert_eq!(code(&output), 1);
    let line = text.lines().position(|line| line.contains("\"max_age\": \"15m\"")).unwrap() + 1;
    assert!(
        out(&output).contains(&format!("wrong.yaml:{line}:25: error[invalid]: ")),
        "{}",
        out(&output)
    );
    assert!(out(&output).contains("(policy.max_age)"), "{}", out(&output));
    let output = run_in(&folder.0, &["config", "check", "torn.yaml", "--format", "sarif"], "");
    let sarif: Value = serde_json::from_str(&out(&output)).unwrap();
    assert_eq!((code(&output), &sarif["runs"][0]["results"][0]["ruleId"]), (1, &"syntax".into()));
    assert_eq!(code(&run_in(&folder.0, &["config", "check", "none.yaml"], "")), 3);
}

const AGREED: &str = "version: 1\nroles:\n  ds: {any: [{teams: [ds]}]}\ndestinations:\n  orders: {hosts: [orders]}\n\
    agreement:\n  - {id: workers, from: {services: [airflow-worker], issuers: [airflow]}, may_assert: {dags: ['ds_*']}}\n\
    rules:\n  - {id: reads, effect: allow, from: {roles: [ds]}, to: [orders], methods: [GET], paths: ['/v1/**']}\n";

const INTENTIONS: &str = r#"{"Kind": "service-intentions", "Name": "orders", "Sources": [
    {"Name": "airflow-worker", "Permissions": [{"Action": "allow", "HTTP": {"PathPrefix": "/v1/orders"}}]}]}"#;

#[test]
fn a_test_may_say_the_peer_and_intentions_decide_with_the_policy() {
    let folder = Folder::new();
    let tests = "identities: {churn: {dag_id: ds_churn, team: ds}}\n\
        peers:\n  worker: {spiffe_id: 'spiffe://td.consul/ns/default/dc/dc1/svc/airflow-worker'}\n\
        defaults: {identity: churn, peer: worker, request: GET http://orders/v1/orders}\ncases:\n\
        - {permit: reads}\n\
        - {peer: {service: batch, spiffe_id: 'spiffe://td.consul/ns/default/dc/dc1/svc/batch'}, reject: peer_not_allowed, rule: workers}\n\
        - {peer: null, reject: peer_not_allowed, detail: 'nothing is known'}\n\
        - {identity: {dag_id: etl}, reject: assertion_not_allowed, rule: workers, detail: 'dags `ds_*`'}\n\
        - {identity: {issuer: other}, reject: assertion_not_allowed}\n\
        - {request: GET http://orders/v1/bills, permit: reads}\n";
    folder.file("p/policy.yaml", AGREED).file("p/a_test.yaml", tests).file("mesh.json", INTENTIONS);
    let output = run_in(&folder.0, &["test", "p"], "");
    assert_eq!(code(&output), 0, "{}{}", out(&output), err(&output));

    // With the mesh's own layer the last one is refused, and who may not call at all is refused by it first.
    let output = run_in(&folder.0, &["test", "p", "--intentions", "mesh.json"], "");
    assert_eq!(code(&output), 1, "{}", err(&output));
    let told = out(&output);
    assert!(
        told.contains("reject intention_denied by rule `mesh/airflow-worker => orders`"),
        "{told}"
    );
    assert_eq!(told.matches("+ reject intention_denied").count(), 3, "{told}");
    assert!(told.contains("has no permission that this request meets"), "{told}");

    let bad = tests.replace("service: batch,", "service: other,");
    folder.file("p/a_test.yaml", &bad);
    let output = run_in(&folder.0, &["test", "p"], "");
    assert_eq!(code(&output), 3, "{}", err(&output));
    assert!(err(&output).contains("is not that of the service `other`"), "{}", err(&output));
    folder.file("p/a_test.yaml", tests);
    let output = run_in(&folder.0, &["test", "p", "--intentions", "p/policy.yaml"], "");
    assert_eq!(code(&output), 3);
    assert!(err(&output).contains("p/policy.yaml: "), "{}", err(&output));
}

#[test]
fn explain_tells_which_entry_of_the_agreement_covers_the_identity() {
    let folder = Folder::new();
    folder.file("policy.yaml", AGREED).file("mesh.json", INTENTIONS);
    let explain = |more: &[&str]| {
        let base = ["explain", "policy.yaml", "--dag", "ds_churn", "--team", "ds"];
        let output = run_in(&folder.0, &[&base[..], more].concat(), "");
        (code(&output), out(&output))
    };
    let url = ["--url", "https://orders/v1/bills"];
    let (status, told) = explain(&[&["--service", "airflow-worker"], &url[..]].concat());
    assert_eq!(status, 0, "{told}");
    assert!(told.contains("agreement\n  `workers` holds (policy.yaml:7:5): "), "{told}");
    assert!(told.contains("from `airflow-worker`"), "{told}");
    let (status, told) = explain(&[&["--service", "batch"], &url[..]].concat());
    assert_eq!(status, 1, "{told}");
    assert!(told.contains("reject peer_not_allowed by rule `workers`"), "{told}");
    assert!(
        told.contains("`workers` does not hold (policy.yaml:7:5): services `airflow-worker`; the caller's is `batch`"),
        "{told}"
    );
    assert!(told.contains("an entry of `agreement` that covers this peer"), "{told}");
    let (status, told) = explain(&[&["--service", "batch", "--json"], &url[..]].concat());
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((status, &told["code"]), (1, &"peer_not_allowed".into()));
    assert_eq!(told["agreement"][0]["id"], "workers");
    assert_eq!(told["agreement"][0]["from"][0]["holds"], false);
    let mesh = ["--service", "airflow-worker", "--intentions", "mesh.json"];
    let (status, told) = explain(&[&mesh[..], &url[..]].concat());
    assert_eq!(status, 1, "{told}");
    assert!(told.contains("reject intention_denied"), "{told}");
    assert!(told.contains("Consul's intentions have to"), "{told}");
    // The answer that a task got.
    let denial =
        r#"{"code": "peer_not_allowed", "status": 403, "detail": "x", "rule": "main/workers"}"#;
    folder.file("denial.json", denial);
    let output = run_in(&folder.0, &["explain", "policy.yaml", "--denial", "denial.json"], "");
    assert!(
        out(&output).contains("the rule that denied (policy.yaml:7:5):\n  id: workers"),
        "{}",
        out(&output)
    );
}

#[test]
fn a_diff_tells_who_gains_and_who_loses_by_the_agreement() {
    let folder = Folder::new();
    let wider = AGREED.replace("services: [airflow-worker]", "services: [airflow-worker, batch]");
    folder.file("old.yaml", AGREED).file("new.yaml", &wider);
    let output = run_in(&folder.0, &["diff", "old.yaml", "new.yaml", "--json"], "");
    let told: Value = serde_json::from_str(&out(&output)).unwrap();
    assert_eq!(code(&output), 1, "{told:#}");
    let gained = &told["differences"][0];
    assert_eq!(told["differences"].as_array().unwrap().len(), 1, "{told:#}");
    assert!(told.to_string().contains("\"service\":\"batch\""), "{told:#}");
    assert!(gained.to_string().contains("peer_not_allowed"), "{told:#}");
    let same = run_in(&folder.0, &["diff", "old.yaml", "old.yaml"], "");
    assert_eq!(code(&same), 0, "{}", out(&same));
}
