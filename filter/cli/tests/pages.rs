//! The pages of `graph` and `report` in a real Chromium, and the diagrams in Graphviz.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod browser;
#[expect(dead_code, reason = "of the trails of other tests too")]
#[path = "audit/trail.rs"]
mod trail;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard};

use base64::Engine as _;
use serde_json::{Value, json};

use self::browser::{Browser, is_there};

const LOOK: &str = include_str!("browser/look.js");

/// What a stranger would write to become more than a text, and to hide.
const EVIL: &str = "</style></title></svg><script>window.pwned=1</script><img src=x onerror='window.pwned=1'>\" onload=\"window.pwned=1\" \u{202e}&lt;";

/// One browser at a time: each fills a processor.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A folder of its own. What is in it stays, to be looked at.
fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pages").join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Runs the tool, which must succeed; what it prints.
fn run(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_airflow-envoy"))
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A policy whose author is not to be trusted.
fn evil_policy() -> String {
    let evil = |field: &str| json!([format!("{field}{EVIL}")]);
    json!({
        "version": 1,
        "roles": {"ds": {"any": [{"teams": evil("team"), "dags": evil("dag"), "claims": {EVIL: evil("claim")}}]}},
        "destinations": {"orders": {"hosts": ["orders.internal"]}},
        "rules": [
            {"id": "reads", "intent": format!("intent {EVIL}"), "effect": "allow", "from": {"roles": ["ds"], "tags": evil("tag")},
             "to": ["orders"], "methods": ["GET"], "paths": ["/a<b>/**"],
             "valid": {"not_before": "2026-01-01T00:00:00Z", "expires_at": "2026-11-25T00:00:00Z"}},
            {"id": "denies", "effect": "deny", "from": {"owners": evil("owner")}, "to": ["*"]},
            {"id": "watches", "effect": "deny", "mode": "shadow", "to": ["orders"], "paths": ["/x\"'/**"]},
        ],
    })
    .to_string()
}

/// A decision as the filter records it; `changes` are laid over it.
fn decision(seq: u64, second: u64, changes: &Value) -> String {
    let mut record = json!({
        "v": 1, "kind": "decision", "stream": "00000000000000a1", "seq": seq, "prev": "x",
        "time": format!("2026-11-22T{:02}:{:02}:{:02}.000Z", second / 3600, second / 60 % 60, second % 60),
        "decision": "permit", "decision_id": format!("{seq:032x}"), "rule": "ds-reads-orders", "destination": "orders",
        "caller": {"identity": {"dag_id": "ds_churn", "task_id": "load", "run_id": "r"}},
        "request": {"method": "GET", "authority": "orders.internal", "path": "/v1/orders/7"},
        "response": {"status": 200}, "duration_us": {"decided": 15, "total": 3200},
    });
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            record.as_object_mut().unwrap().remove(name);
        } else {
            record[name] = value.clone();
        }
    }
    format!("{record}\n")
}

/// A trail in which every text is a stranger's.
fn evil_trail() -> String {
    let evil = |field: &str| format!("{field}{EVIL}");
    let caller = json!({
        "identity": {"dag_id": evil("dag"), "task_id": evil("task"), "run_id": evil("run"), "issuer": evil("issuer")},
    });
    let request = json!({"method": evil("method"), "authority": evil("authority"), "path": evil("path"),
        "request_id": evil("request")});
    let rejected = json!({
        "decision": "reject", "decision_id": evil("decision"), "code": evil("code"), "detail": evil("detail"),
        "nearest": evil("nearest"), "rule": null, "destination": null, "caller": caller, "request": request,
        "shadow": [format!("{}:permit", evil("shadow"))], "policies": {evil("policy"): 1},
    });
    let denied = json!({"decision": "reject", "code": "policy_denied", "rule": evil("rule"), "destination": evil("destination"),
        "caller": {"token": {"subject": evil("subject")}}});
    let granted = json!({"grant": evil("grant"), "rule": evil("grantable"), "caller": {"peer": {"service": evil("service")}}});
    let begin = json!({"v": 1, "kind": "begin", "stream": evil("stream"), "seq": 0, "time": "2026-11-22T00:00:00.000Z",
        "process": evil("process"), "version": evil("version"), "key_id": evil("key"), "mode": "enforce"});
    let end = json!({"v": 1, "kind": "end", "stream": evil("stream"), "seq": 1, "prev": "x", "time": "2026-11-22T00:00:00.000Z",
        "reason": evil("reason"), "key_id": evil("key")});
    let mut trail = format!("{begin}\n{end}\n");
    for (seq, changes) in [(1, &rejected), (2, &denied), (3, &granted)] {
        trail += &decision(seq, seq, changes);
    }
    trail
}

/// A day of a busy proxy: permits, some of them sampled, refusals of several kinds, a grant, shadow mode.
fn busy_trail() -> String {
    let mut trail = json!({"v": 1, "kind": "begin", "stream": "00000000000000a1", "seq": 0, "process": "00000000000000b2",
        "time": "2026-11-22T00:00:00.000Z", "version": "0.1.0", "key_id": "audit-2026", "mode": "enforce"})
    .to_string()
        + "\n";
    let dags = [
        "ds_churn",
        "features_daily",
        "close_month",
        "ship_orders",
        "exchange_rates",
        "forecast_delivery",
    ];
    let rules = [
        "ds-reads-orders",
        "ds-writes-features",
        "finance-closes-books",
        "logistics-ships",
        "finance-fetches-rates",
    ];
    let targets = ["orders", "features", "ledger", "shipping", "rates"];
    for seq in 1..600_u64 {
        let (kind, second) = (seq % 20, seq * 144);
        let which = usize::try_from(seq * seq % 31 % 5).unwrap();
        let dag = dags[if kind == 7 { 5 } else { which }];
        let caller = json!({"identity": {"dag_id": dag, "task_id": "load", "run_id": "r", "team": "data-science"}});
        let target = targets[which];
        let request = json!({"method": "GET", "authority": format!("{target}.internal"), "path": format!("/v1/{target}/{}", seq % 9)});
        let durations =
            json!({"decided": 9 + seq % 13, "total": 900 * (which as u64 + 1) + seq % 700});
        let mut changes = json!({"caller": caller, "request": request, "destination": target, "rule": rules[which],
            "duration_us": durations});
        let more = match kind {
            3 => {
                json!({"decision": "reject", "code": "policy_no_match", "rule": null, "nearest": rules[(which + 1) % 5],
                "detail": format!("no rule allows the call; the nearest is `{}`, whose `dags` do not match", rules[(which + 1) % 5]),
                "request": {"method": "POST", "authority": "carriers.internal", "path": "/bookings"}, "destination": "carriers"})
            }
            5 => json!({"decision": "reject", "code": "policy_denied", "rule": "no-admin-paths",
                "detail": "the rule `no-admin-paths` denies the call",
                "request": {"method": "GET", "authority": format!("{target}.internal"), "path": "/admin/users"}}),
            6 => {
                json!({"decision": "reject", "code": "token_expired", "rule": null, "caller": {}, "destination": null,
                "detail": "the access token expired at 2026-11-22T00:00:00Z"})
            }
            7 => json!({"grant": "0b2f8a3e", "rule": "orders-write"}),
            8 => json!({"decision": "abandoned", "rule": null}),
            9 => json!({"sampled": 10}),
            _ => json!({}),
        };
        for (name, value) in more.as_object().unwrap() {
            changes[name] = value.clone();
        }
        trail += &decision(seq, second, &changes);
    }
    let counts =
        json!({"permits": 480, "rejects": 90, "abandoned": 29, "sampled_out": 0, "lost": 0});
    let end = json!({"v": 1, "kind": "end", "stream": "00000000000000a1", "seq": 600, "prev": "x", "counts": counts,
        "time": "2026-11-22T23:59:59.000Z", "reason": "shutdown", "key_id": "audit-2026"});
    let _ = writeln!(trail, "{end}");
    trail
}

/// Looks at a page, light and dark, broad and narrow: at how it looks, at what it says to its tools and to others.
fn look_at(browser: &mut Browser, page: &Path) {
    for scheme in ["light", "dark"] {
        for width in [1280, 390] {
            browser.look(width, scheme);
            browser.open(page);
            let seen = format!("{} {scheme} {width}", page.display());
            assert_eq!(browser.value(LOOK), json!([]), "{seen}");
            assert_eq!(browser.complaints(), Vec::<&Value>::new(), "{seen}");
            assert_eq!(browser.requests(), [format!("file://{}", page.display())], "{seen}");
            let dark = browser.value("getComputedStyle(document.body).backgroundColor")
                != "rgb(255, 255, 255)";
            assert_eq!(dark, scheme == "dark", "{seen}");
            let picture = browser.picture(width, 3000);
            let picture = base64::prelude::BASE64_STANDARD.decode(picture).unwrap();
            let name = page.file_stem().unwrap().to_string_lossy();
            std::fs::write(page.with_file_name(format!("{name}-{scheme}-{width}.png")), picture)
                .unwrap();
        }
    }
}

#[test]
fn pages_are_fit_to_be_seen_and_speak_to_nobody() {
    let _alone = alone();
    let folder = folder("look");
    let Some(mut browser) = Browser::start(&folder) else { return };
    let path = |name: &str| folder.join(name).display().to_string();
    std::fs::write(path("trail.log"), busy_trail()).unwrap();
    let at = ["--at", "2027-01-25T00:00:00Z"];
    run(&[
        "graph",
        "examples/policy/shop",
        "--format",
        "html",
        "-o",
        &path("graph.html"),
        at[0],
        at[1],
    ]);
    run(&[
        "report",
        &path("trail.log"),
        "--html",
        &path("report.html"),
        "--policy",
        "examples/policy/shop",
        at[0],
        at[1],
    ]);
    for name in ["graph.html", "report.html"] {
        look_at(&mut browser, &folder.join(name));
    }
}

#[test]
fn what_strangers_write_is_only_text() {
    let _alone = alone();
    let folder = folder("evil");
    let Some(mut browser) = Browser::start(&folder) else { return };
    let path = |name: &str| folder.join(name).display().to_string();
    std::fs::write(path("policy.json"), evil_policy()).unwrap();
    std::fs::write(path("trail.log"), evil_trail()).unwrap();
    run(&["graph", &path("policy.json"), "--format", "html", "-o", &path("graph.html")]);
    run(&[
        "report",
        &path("trail.log"),
        "--html",
        &path("report.html"),
        "--policy",
        &path("policy.json"),
    ]);
    for (page, fields) in [
        ("graph.html", &["team", "dag", "tag", "owner", "claim", "intent "][..]),
        (
            "report.html",
            &[
                "dag",
                "task",
                "method",
                "code",
                "detail",
                "nearest",
                "rule",
                "destination",
                "subject",
                "grant",
                "grantable",
                "service",
                "stream",
                "process",
                "version",
                "key",
                "reason",
                "shadow",
                "decision",
            ],
        ),
    ] {
        look_at(&mut browser, &folder.join(page));
        // It is all there, to be read.
        let shown = browser.value("document.body.textContent");
        for field in fields {
            let begin = format!("{field}</style></title></svg><script>window.pwned=1</script>");
            assert!(shown.as_str().unwrap().contains(&begin), "{page} {field}");
        }
        assert!(!shown.as_str().unwrap().contains('\u{202e}'), "{page}");
    }
}

#[test]
fn pages_are_used_by_keys_and_read_without_script() {
    let _alone = alone();
    let folder = folder("keys");
    let Some(mut browser) = Browser::start(&folder) else { return };
    let path = |name: &str| folder.join(name).display().to_string();
    run(&["graph", "examples/policy/shop", "--format", "html", "-o", &path("graph.html")]);
    browser.look(1280, "light");
    browser.open(&folder.join("graph.html"));
    // Each key leads on in the order of the page, and what has the focus can be seen.
    let mut focused = Vec::new();
    for _ in 0..30 {
        browser.press("Tab");
        let at = browser.value(
            "(() => { const at = document.activeElement; const style = getComputedStyle(at); \
             const forward = !window.before || (window.before.compareDocumentPosition(at) & Node.DOCUMENT_POSITION_FOLLOWING) !== 0; \
             window.before = at; \
             return [at.tagName + ' ' + (at.textContent || at.id).trim().slice(0, 24), style.outlineStyle, forward]; })()",
        );
        assert_eq!((&at[1], &at[2]), (&json!("solid"), &json!(true)), "{at}");
        focused.push(at[0].as_str().unwrap().to_owned());
    }
    assert_eq!(focused[0], "A Skip to the content");
    assert_eq!(focused[1], "A Who may call what");
    let place = |wanted: &str| focused.iter().position(|at| at == wanted).unwrap();
    assert!(place("INPUT search") < place("BUTTON Caller"), "{focused:?}");
    // A table is sorted by the button of its column.
    let sorted = "Array.from(document.querySelectorAll('#allow tbody tr'), (row) => row.cells[2].textContent)";
    let before = browser.value(sorted);
    browser.value("document.querySelectorAll('#allow th button')[2].focus()");
    browser.press("Enter");
    let ascending = browser.value(sorted);
    assert_ne!(ascending, before);
    let mut expected: Vec<String> = serde_json::from_value(ascending.clone()).unwrap();
    expected.sort();
    assert_eq!(ascending, json!(expected));
    browser.press("Enter");
    expected.reverse();
    assert_eq!(browser.value(sorted)[0], json!(expected[0]));
    let order = "document.querySelectorAll('#allow th')[2].getAttribute('aria-sort')";
    assert_eq!(browser.value(order), "descending");
    // `/` leads to the search, which leaves what has all words.
    for key in ["/", "l", "e", "d", "g", "e", "r"] {
        browser.press(key);
    }
    assert_eq!(
        browser.value("document.activeElement.id + document.activeElement.value"),
        "searchledger"
    );
    let frame =
        "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))";
    browser.value(frame);
    let shown = "Array.from(document.querySelectorAll('tbody tr:not([hidden]) td:first-child code'), (id) => id.textContent)";
    assert_eq!(
        browser.value(shown),
        json!(["no-ledger-by-hand", "no-admin-paths", "finance-closes-books"])
    );
    assert_eq!(browser.value("document.getElementById('found').textContent"), "3 rows found");

    // Without script there is no search, and everything else.
    browser.call("Emulation.setScriptExecutionDisabled", json!({"value": true}));
    browser.open(&folder.join("graph.html"));
    let rows = browser.value(
        "[document.querySelectorAll('tbody tr').length, document.getElementById('finder').hidden, \
                              document.querySelectorAll('th button').length]",
    );
    assert_eq!(rows, json!([20, true, 0]));
    assert_eq!(browser.value("document.querySelector('#allow tbody tr').checkVisibility()"), true);
}

#[test]
fn five_thousand_rows_stay_usable() {
    let _alone = alone();
    let folder = folder("many");
    let Some(mut browser) = Browser::start(&folder) else { return };
    let path = |name: &str| folder.join(name).display().to_string();
    let rules: Vec<Value> = (0..5_000)
        .map(|number| {
            json!({"id": format!("rule-{number}"), "intent": "One of many.", "effect": "allow",
                "from": {"roles": [format!("role-{}", number % 100)], "dags": [format!("dag_{number}_*")]},
                "to": [format!("destination-{}", number % 70)], "methods": ["GET"], "paths": [format!("/v1/{number}/**")]})
        })
        .collect();
    let roles = (0..100).map(|number| {
        (format!("role-{number}"), json!({"any": [{"teams": [format!("team-{number}")]}]}))
    });
    let hosts = (0..70).map(|number| {
        (format!("destination-{number}"), json!({"hosts": [format!("host-{number}")]}))
    });
    let policy = json!({"version": 1, "rules": rules, "roles": roles.collect::<serde_json::Map<_, _>>(),
        "destinations": hosts.collect::<serde_json::Map<_, _>>()});
    std::fs::write(path("policy.json"), policy.to_string()).unwrap();
    run(&["graph", &path("policy.json"), "--format", "html", "-o", &path("graph.html")]);
    browser.look(1280, "light");
    let begun = std::time::Instant::now();
    browser.open(&folder.join("graph.html"));
    let loaded = begun.elapsed();
    assert_eq!(browser.value("document.querySelectorAll('#allow tbody tr').length"), 5_000);
    // The picture has the busiest ones, and one for the rest.
    assert_eq!(
        browser.value("document.querySelectorAll('#picture svg[role=img] rect.box').length"),
        82
    );
    let frame =
        "await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))";
    let took = browser.value(&format!(
        "(async () => {{ const begun = performance.now(); const input = document.getElementById('search'); \
         input.value = 'rule-4321'; input.dispatchEvent(new Event('input')); {frame}; \
         const searched = performance.now(); document.querySelector('#allow th button').click(); {frame}; \
         return [searched - begun, performance.now() - searched]; }})()"
    ));
    println!("5 000 rows: loaded in {loaded:?}, searched and sorted in ms: {took}");
    let shown = "Array.from(document.querySelectorAll('tbody tr:not([hidden]) td:first-child code'), (id) => id.textContent)";
    assert_eq!(browser.value(shown), json!(["rule-4321"]));
    // Generous, for a machine that has much else to do: something quadratic takes longer than that.
    assert!(loaded.as_secs() < 50, "{loaded:?}");
    assert!(took[0].as_f64().unwrap() < 5_000.0 && took[1].as_f64().unwrap() < 5_000.0, "{took}");
}

#[test]
fn a_report_repeats_what_the_verifier_says() {
    use trail::{Called, Stream, key, signer};
    let folder = folder("verified");
    let path = |name: &str| folder.join(name).display().to_string();
    let seed =
        std::array::from_fn(|at| u8::try_from(at).unwrap() ^ (std::process::id() % 256) as u8);
    let (private, public) = key(seed, "audit-1");
    std::fs::write(path("keys.json"), public.to_string()).unwrap();
    let (mut stream, begin) = Stream::begin(0xa1, Some(signer(&private)), None);
    let mut lines = vec![begin];
    for _ in 0..10 {
        lines.push(stream.call(&Called::READ));
    }
    lines.push(stream.end());
    let whole = lines.join("\n") + "\n";
    std::fs::write(path("whole.log"), &whole).unwrap();
    std::fs::write(path("edited.log"), whole.replacen("ds_churn", "ds_other", 1)).unwrap();
    let report = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_airflow-envoy"))
            .args([&["report", "--color", "never"], arguments].concat())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let keys = ["--keys", &path("keys.json")];
    let (code, told) = report(&[&path("whole.log"), keys[0], keys[1]]);
    assert_eq!(code, 0, "{told}");
    assert!(told.contains("The trail is whole; signatures vouch for 12 of 12 records."), "{told}");
    let (code, told) = report(&[&path("whole.log"), "--verify"]);
    assert_eq!(code, 0, "{told}");
    assert!(told.contains("signatures were not checked"), "{told}");
    let (code, told) = report(&[&path("edited.log"), keys[0], keys[1]]);
    assert_eq!(code, 1, "{told}");
    assert!(told.contains("edited.log:2") && told.contains("edited: "), "{told}");
    let (code, json) = report(&[&path("edited.log"), "--verify", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, json["decisions"]["permits"].as_u64()), (1, Some(10)));
    assert_eq!(json["verified"]["faults"].as_array().unwrap().len(), 1, "{json}");
    assert_eq!(report(&["-", "--verify"]).0, 2);
    assert_eq!(report(&[&path("nothing.log")]).0, 3);
}

#[test]
fn diagrams_are_valid_whatever_a_policy_says() {
    let folder = folder("diagrams");
    let policy = folder.join("policy.json").display().to_string();
    std::fs::write(&policy, evil_policy()).unwrap();
    for (policy, edges) in [(&*policy, 3), ("examples/policy/shop", 28)] {
        // Every line of the flow chart is one of five, and a label has nothing but letters and entity codes.
        let mermaid = run(&["graph", policy]);
        let mut lines = mermaid.lines();
        assert_eq!(lines.next(), Some("flowchart LR"));
        let mut arrows = 0;
        for line in lines {
            let rest = line.strip_prefix("  ").unwrap();
            if rest.starts_with("linkStyle ") {
                continue;
            }
            let (before, rest) = rest.split_once('"').unwrap();
            let (label, after) = rest.rsplit_once('"').unwrap();
            let plain = label.replace("<br/>", "");
            assert!(
                plain.chars().all(|one| one.is_alphanumeric() || " .,:/_-#;".contains(one)),
                "{line}"
            );
            let skeleton: String =
                format!("{before}{after}").chars().filter(|one| !one.is_ascii_digit()).collect();
            let known = ["c[]", "d([])", "c --x|| d", "c -->|| d", "c -.->|| d"];
            assert!(known.contains(&&*skeleton), "{line}");
            arrows += usize::from(skeleton.contains('|'));
        }
        assert_eq!(arrows, edges, "{policy}");

        let dot = run(&["graph", policy, "--format", "dot"]);
        if !is_there("dot") {
            println!("SKIPPED: there is no dot to draw with: install the package graphviz");
            continue;
        }
        let mut child = Command::new("dot")
            .arg("-Tsvg")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(dot.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
        let complaints: Vec<&str> =
            complaints.lines().filter(|line| !line.contains("ontconfig")).collect();
        assert_eq!(complaints, Vec::<&str>::new(), "{dot}");
        let svg = String::from_utf8(output.stdout).unwrap();
        assert_eq!(svg.matches("class=\"edge\"").count(), edges, "{svg}");
        assert!(!svg.contains("<script") && !svg.contains("<img"), "{svg}");
    }
}
