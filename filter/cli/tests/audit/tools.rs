//! The commands about the audit trail, from outside, on trails that the core wrote.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use airflow_envoy_cli::audit::Record;
use airflow_envoy_cli::replay;
use airflow_envoy_core::audit::{CallerParts, Fragment, IdentityParts, TokenParts};
use airflow_envoy_core::facts::{Assertion, Caller, Fact};
use serde_json::{Value, json};

use crate::trail::{Called, Stream, key, signer};

const POLICY: &str = "version: 1\nroles:\n  ds: {any: [{teams: [data-science]}]}\ndestinations:\n  orders: {hosts: [orders.internal]}\n\
    rules:\n  - {id: ds-reads-orders, effect: allow, from: {roles: [ds]}, to: [orders], methods: [GET], paths: ['/v1/orders/**']}\n";

/// A folder of its own that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("audit-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> &Self {
        std::fs::write(self.0.join(name), text).unwrap();
        self
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_airflow-envoy"));
        command.args(arguments).current_dir(&self.0).env_remove("NO_COLOR").stdin(Stdio::null());
        command
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn all(output: &Output) -> (i32, String, String) {
    (output.status.code().unwrap(), out(output), String::from_utf8(output.stderr.clone()).unwrap())
}

fn text(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// What the tests' stream is about: permits, refusals of the policy and of a bad token, a grant, a sample.
fn lines() -> Vec<String> {
    let (mut stream, begin) = Stream::begin(5, Some(signer(&key([7; 32], "k1").0)), None);
    let write =
        Called { method: "POST", rule: None, code: Some("policy_no_match"), ..Called::READ };
    vec![
        begin,
        stream.call(&Called::READ),
        stream.call(&write),
        stream.call(&Called { rule: None, code: Some("token_expired"), ..Called::READ }),
        stream.call(&Called { dag: "etl", team: "sales", ..write }),
        stream.call(&Called {
            method: "POST",
            rule: Some("orders-write"),
            grant: Some("g-1"),
            ..Called::READ
        }),
        stream.call(&Called {
            dag: "ds_\u{1b}[2J",
            path: "/v1/orders/8",
            sampled: Some(10),
            ..Called::READ
        }),
        stream.end(),
    ]
}

/// The id of the call at `number`, from 1.
fn id(number: u32) -> String {
    format!("{:016x}{number:016x}", 5)
}

fn keys() -> String {
    json!({"keys": [key([7; 32], "k1").1]}).to_string()
}

#[test]
fn verify_says_ok_or_where_and_how_loudly_it_did_not_check() {
    let folder = Folder::new();
    let lines = lines();
    folder.file("a.log", &text(&lines)).file("keys.json", &keys());
    let (code, told, _) = all(&folder.run(&["audit", "verify", "a.log", "--keys", "keys.json"]));
    assert_eq!(
        told,
        "ok: 8 records in 1 stream, 0 foreign lines\nsignatures vouch for 8 of 8 records\n"
    );
    assert_eq!(code, 0);
    let (code, told, _) = all(&folder.run(&["audit", "verify", "a.log"]));
    assert!(code == 0 && told.contains("SIGNATURES WERE NOT CHECKED"), "{told}");
    folder.file("b.log", &text(&lines).replace("\"etl\",\"issuer\"", "\"etc\",\"issuer\""));
    let (code, told, _) = all(&folder.run(&["audit", "verify", "b.log", "--keys", "keys.json"]));
    let offset: usize = lines.iter().take(4).map(|line| line.len() + 1).sum();
    assert!(
        told.starts_with(&format!(
            "b.log:5 (byte {offset}): error[edited]: stream 0000000000000005 record 4: edited: the line's hash is not the \
             one that record 5 names; no signature vouches for records 1 to 3 any more\n1 fault: 8 records"
        )),
        "{told}"
    );
    assert_eq!(code, 1);
    let (code, told, _) =
        all(&folder.run(&["audit", "verify", "b.log", "--keys", "keys.json", "--json"]));
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((code, &told["ok"], &told["signatures"]), (1, &json!(false), &json!("checked")));
    assert_eq!(told["faults"][0]["place"], json!({"file": "b.log", "line": 5, "offset": offset}));
    assert_eq!(
        told["streams"][0]["vouched"],
        json!([{"from_seq": 0, "to_seq": 0}, {"from_seq": 5, "to_seq": 7}])
    );
}

#[test]
fn what_cannot_be_verified_is_an_error_of_its_own() {
    let folder = Folder::new();
    let private = key([7; 32], "k1").0;
    folder
        .file("a.log", &text(&lines()))
        .file("foreign.log", "starting\n{\"a\":1}\n")
        .file("private.json", &private.to_string())
        .file("empty.json", "{\"keys\":[]}");
    for (arguments, told) in [
        (&["foreign.log"][..], "no record in 2 lines: nothing was verified"),
        (&["nowhere.log"], "nowhere.log: "),
        (&["."], ".: is a folder"),
        (
            &["a.log", "--keys", "private.json"],
            "private.json: keys[0] `k1`: a private key has been published",
        ),
        (&["a.log", "--keys", "empty.json"], "--keys: there is no key in it"),
        (&["a.log", "--keys", "a.log"], "a.log: "),
        (&["a.log", "--witness", "private.json"], "private.json: is no witness"),
    ] {
        let output = folder.run(&[&["audit", "verify"], arguments].concat());
        let (code, stdout, stderr) = all(&output);
        assert_eq!(code, 3, "{arguments:?}: {stdout}{stderr}");
        assert!(stderr.contains(told), "{arguments:?}: {stderr}");
        assert!(!stderr.contains(private["d"].as_str().unwrap()), "{stderr}");
    }
}

#[test]
fn a_witness_is_kept_and_contradicted() {
    let folder = Folder::new();
    let lines = lines();
    let verify = || folder.run(&["audit", "verify", "a.log", "--open", "--witness", "w.json"]);
    folder.file("a.log", &text(&lines[..6]));
    assert_eq!(all(&verify()).0, 0);
    let witness = || std::fs::read_to_string(folder.0.join("w.json")).unwrap();
    let first: Value = serde_json::from_str(&witness()).unwrap();
    assert_eq!(first["streams"]["0000000000000005"]["seq"], 5);
    folder.file("a.log", &text(&lines));
    assert_eq!(all(&verify()).0, 0);
    let second = witness();
    assert!(second.contains("\"seq\": 7"), "{second}");
    folder.file("a.log", &text(&lines[..7]));
    let (code, told, _) = all(&verify());
    assert!(
        told.contains("error[witness-contradicted]: stream 0000000000000005 record 7: vanished"),
        "{told}"
    );
    assert_eq!((code, witness()), (1, second));
}

#[test]
fn query_selects_by_globs_and_times_and_lets_nobody_move_the_cursor() {
    let folder = Folder::new();
    let lines = lines();
    // What a collector got twice is shown once.
    folder.file("a.log", &format!("{}{}", text(&lines), text(&lines[1..3])));
    let query = |arguments: &[&str]| {
        let output = folder.run(&[&["audit", "query", "a.log"], arguments].concat());
        let (code, told, errors) = all(&output);
        assert_eq!((code, errors.as_str()), (0, ""));
        told
    };
    assert_eq!(
        query(&["--dag", "ds_c*", "--decision", "permit"]).lines().next().unwrap(),
        format!(
            "2026-11-22T08:00:00.010Z permit    ds_churn/load GET orders.internal/v1/orders/7 ds-reads-orders {}",
            id(1)
        )
    );
    for (arguments, wanted) in [
        (&[][..], &[1, 2, 3, 4, 5, 6][..]),
        (&["--dag", "ds_churn"], &[1, 2, 3, 5]),
        (&["--dag", "etl", "--dag", "ds_?"], &[4]),
        (&["--code", "policy_*"], &[2, 4]),
        (&["--code", "policy_*", "--dag", "etl"], &[4]),
        (&["--decision", "reject", "--decision", "abandoned"], &[2, 3, 4]),
        (&["--rule", "*-write"], &[5]),
        (&["--grant", "*"], &[5]),
        (
            &[
                "--trace",
                "0af765*",
                "--task",
                "load",
                "--destination",
                "orders",
                "--run",
                "scheduled__*",
            ],
            &[1, 2, 3, 4, 5, 6],
        ),
        (&["--since", "2026-11-22T08:00:00.020Z", "--until", "2026-11-22T08:00:00.040Z"], &[2, 3]),
        (&["--decision-id", &id(3)], &[3]),
        (&["--dag", "nobody"], &[]),
    ] {
        let told = query(arguments);
        let found: Vec<&str> = told.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
        let wanted: Vec<String> = wanted.iter().map(|number| id(*number)).collect();
        assert_eq!(found, wanted, "{arguments:?}\n{told}");
    }
    let strange = query(&["--decision-id", &id(6)]);
    assert!(strange.contains("ds_\\u{1b}[2J/load") && strange.contains(" ×10 "), "{strange}");
    assert_eq!(query(&["--json", "--decision-id", &id(3)]), format!("{}\n", lines[3]));
}

/// The lines that a program prints, as they come.
fn follow(child: &mut Child) -> Receiver<String> {
    let (sender, receiver) = channel();
    let output = BufReader::new(child.stdout.take().unwrap());
    std::thread::spawn(move || {
        for line in output.lines() {
            if sender.send(line.unwrap()).is_err() {
                break;
            }
        }
    });
    receiver
}

#[test]
fn query_follows_a_file_that_grows_is_emptied_and_is_renamed() {
    let folder = Folder::new();
    let lines = lines();
    folder.file("a.log", &text(&lines[..2]));
    let mut child = folder
        .command(&["audit", "query", "a.log", "--follow", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let output = follow(&mut child);
    let next = || output.recv_timeout(Duration::from_secs(20)).unwrap();
    let mut seen = vec![next()];
    let path = folder.0.join("a.log");
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    let (half, rest) = lines[2].split_at(100);
    file.write_all(half.as_bytes()).unwrap();
    file.flush().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    file.write_all(format!("{rest}\n").as_bytes()).unwrap();
    seen.push(next());
    std::fs::write(&path, text(&lines[3..4])).unwrap();
    seen.push(next());
    std::fs::rename(&path, folder.0.join("a.log.1")).unwrap();
    std::fs::write(&path, text(&lines[4..5])).unwrap();
    seen.push(next());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(seen, lines[1..5]);
}

#[test]
fn keys_are_listed_with_their_streams_and_periods() {
    let folder = Folder::new();
    folder.file("a.log", &text(&lines()));
    let (code, told, _) = all(&folder.run(&["audit", "keys", "a.log"]));
    assert_eq!(
        told,
        "key `k1`: 1 stream from 2026-11-22T08:00:00.000Z to 2026-11-22T08:00:00.060Z\n  \
         0000000000000005 2026-11-22T08:00:00.000Z to 2026-11-22T08:00:00.060Z\n"
    );
    assert_eq!(code, 0);
}

fn replayed(folder: &Folder, arguments: &[&str]) -> (i32, Value) {
    let (code, told, errors) =
        all(&folder.run(&[&["replay", "a.log", "--json"], arguments].concat()));
    (code, serde_json::from_str(&told).unwrap_or_else(|_| panic!("{told}{errors}")))
}

#[test]
fn the_same_policy_decides_the_same_again() {
    let folder = Folder::new();
    folder.file("a.log", &text(&lines())).file("p.yaml", POLICY);
    let (code, told) = replayed(&folder, &["--policy", "p.yaml"]);
    assert_eq!(
        told["calls"],
        json!({
            "newly_denied": 0, "newly_allowed": 0, "other_rule": 0, "other_refusal": 0, "by_grant": 1, "same": 13,
        }),
        "{told:#}"
    );
    assert_eq!(
        (code, &told["left_out"], &told["undecidable"]),
        (0, &json!({"token_expired": 1}), &json!({}))
    );
}

#[test]
fn what_another_policy_changes_is_told_by_dag_and_destination() {
    let folder = Folder::new();
    let narrow = POLICY.replace("methods: [GET]", "methods: [POST]").replace("reads", "writes");
    folder.file("a.log", &text(&lines())).file("p.yaml", &narrow).file("old.yaml", POLICY);
    let (code, told) = replayed(&folder, &["--policy", "p.yaml"]);
    assert_eq!(code, 1);
    assert_eq!(told["calls"]["newly_denied"], 11, "{told:#}");
    assert_eq!(told["calls"]["newly_allowed"], 1);
    assert_eq!(told["calls"]["other_rule"], 1, "what a grant permitted a rule permits now");
    let denied = &told["groups"][1];
    assert_eq!(denied["dag_id"], "ds_churn");
    assert_eq!(denied["destination"], "orders");
    assert_eq!(denied["first"]["decision_id"], id(1));
    assert_eq!(
        denied["before"],
        json!({"outcome": "permit", "rule": "ds-reads-orders", "grant": null})
    );
    assert_eq!(
        (&denied["after"]["outcome"], &denied["nearest"]),
        (&json!("policy_no_match"), &json!("ds-writes-orders"))
    );
    let (code, by_policy) = replayed(&folder, &["--policy", "p.yaml", "--old", "old.yaml"]);
    assert_eq!(code, 1);
    assert_eq!(
        by_policy["calls"]["newly_allowed"], 2,
        "the old policy knows no grants: {by_policy:#}"
    );
    let output = folder.run(&["replay", "--policy", "p.yaml", "a.log"]);
    assert!(
        out(&output).contains(&format!(
            "  DAG `ds_churn` to `orders`: 1 call\n    first {} at 2026-11-22T08:00:00.010Z: `GET orders.internal/v1/orders/7`\n    \
             was permit by rule `ds-reads-orders`, is reject policy_no_match\n    nearest rule `ds-writes-orders`: ",
            id(1)
        )),
        "{}",
        out(&output)
    );
}

#[test]
fn replay_decides_at_the_time_of_the_call_unless_it_is_told_another() {
    let folder = Folder::new();
    let over = POLICY.replace("paths:", "valid: {expires_at: 2026-11-22T08:00:00.058Z}, paths:");
    folder.file("a.log", &text(&lines())).file("p.yaml", &over);
    // The last call was over at .060, and decided some 4 ms before.
    assert_eq!(replayed(&folder, &["--policy", "p.yaml"]).1["calls"]["newly_denied"], 0);
    let later = ["--policy", "p.yaml", "--at", "2026-11-23T00:00:00Z"];
    assert_eq!(replayed(&folder, &later).1["calls"]["newly_denied"], 11);
}

#[test]
fn claims_that_were_not_recorded_leave_open_only_what_depends_on_them() {
    let folder = Folder::new();
    folder.file("a.log", &text(&lines()));
    let undecided = |policy: &str, more: &[&str]| {
        folder.file("p.yaml", policy);
        let told = replayed(&folder, &[&["--policy", "p.yaml"], more].concat()).1;
        (
            told["undecidable"]["claims"].as_u64().unwrap_or(0),
            told["calls"]["same"].as_u64().unwrap(),
        )
    };
    // An allow rule, a role and a deny rule that ask for the claim: what they could change is open.
    let allow =
        POLICY.replace("from: {roles: [ds]}", "from: {roles: [ds], claims: {department: [x]}}");
    let role = POLICY
        .replace("{teams: [data-science]}", "{teams: [data-science], claims: {department: [x]}}");
    let deny = format!(
        "{POLICY}  - {{id: no, effect: deny, from: {{claims: {{department: [x]}}}}, to: [orders], paths: ['/v1/orders/8']}}\n"
    );
    let deny_role = deny
        .replace("roles:\n", "roles:\n  x: {any: [{claims: {department: [x]}}]}\n")
        .replace("from: {claims: {department: [x]}}, to", "from: {roles: [x]}, to");
    // Reads of the right team: one and ten.
    assert_eq!(undecided(&allow, &[]), (11, 2));
    assert_eq!(undecided(&role, &[]), (11, 2));
    assert_eq!(undecided(&deny, &[]), (10, 3));
    assert_eq!(undecided(&deny_role, &[]), (10, 3));
    // Who says that it is recorded says that the tokens had none.
    assert_eq!(undecided(&allow, &["--recorded-claim", "department"]), (0, 2));
    // What is always recorded is no question.
    assert_eq!(undecided(&allow.replace("department: [x]", "sub: [worker]"), &[]), (0, 13));
}

#[test]
fn a_record_becomes_the_caller_that_it_was_written_of() {
    let claims = json!({"department": "x", "level": 3}).as_object().cloned().unwrap().into();
    let facts = [
        Fact::Unknown,
        Fact::Known(Vec::new()),
        Fact::one("a\n\"b\" é"),
        Fact::Known(vec!["a".to_owned(), "b".to_owned()]),
    ];
    for fact in &facts {
        let caller = Fragment::caller(&CallerParts {
            identity: Some(IdentityParts {
                dag_id: "etl",
                task_id: "load",
                run_id: "run",
                map_index: 3,
                try_number: 2,
                run_type: fact,
                queue: fact,
                team: fact,
                owners: fact,
                tags: fact,
                roles: fact,
                taken_roles: &["Op".to_owned()],
                ti_id: None,
                triggering_user_name: None,
                issuer: "airflow",
                key_id: None,
            }),
            token: Some(TokenParts {
                issuer: "idp",
                key_id: Some("k"),
                subject: Some("worker"),
                client_id: None,
                scopes: fact,
                claims: &claims,
                recorded: &["department".to_owned()],
            }),
            spiffe_id: Some("spiffe://x/y"),
            service: Some("airflow-worker"),
        });
        let line = format!(
            r#"{{"caller":{},"decision":"permit","kind":"decision","seq":1,"stream":"00","time":"","v":1}}"#,
            caller.json()
        );
        let record = Record::parse(&line).unwrap();
        let expected = Caller {
            dags: Fact::one("etl"),
            tasks: Fact::one("load"),
            runs: Fact::one("run"),
            run_types: fact.clone(),
            owners: fact.clone(),
            tags: fact.clone(),
            teams: fact.clone(),
            airflow_roles: fact.clone(),
            taken_roles: vec!["Op".to_owned()],
            queues: fact.clone(),
            services: Fact::one("airflow-worker"),
            spiffe_ids: Fact::one("spiffe://x/y"),
            issuers: Fact::Known(vec!["idp".to_owned(), "airflow".to_owned()]),
            key_ids: Fact::Known(vec!["idp/k".to_owned()]),
            assertion: Some(Assertion { issuer: "airflow".to_owned(), key_id: None }),
            subjects: Fact::one("worker"),
            scopes: fact.clone(),
            claims: json!({"department": "x", "sub": "worker"})
                .as_object()
                .cloned()
                .unwrap()
                .into(),
        };
        assert_eq!(replay::caller(&record.caller), expected, "{line}");
    }
}

#[test]
fn a_recorded_decision_is_explained_as_a_call() {
    let folder = Folder::new();
    folder.file("a.log", &text(&lines())).file("p.yaml", POLICY);
    let explain = |number: u32, more: &[&str]| {
        let id = id(number);
        let arguments = ["explain", "p.yaml", "--audit", "a.log", "--decision", &id];
        all(&folder.run(&[&arguments[..], more].concat()))
    };
    let (code, told, _) = explain(1, &[]);
    assert!(
        told.starts_with(&format!(
            "recorded: permit by rule `ds-reads-orders`\n  decision {}\n",
            id(1)
        )),
        "{told}"
    );
    assert!(
        told.contains(
            "GET http://orders.internal/v1/orders/7\nas `ds_churn/load`, team `data-science`"
        ),
        "{told}"
    );
    assert!(
        told.contains(" at 2026-11-22T08:00:00Z\n\npermit by rule `ds-reads-orders`"),
        "{told}"
    );
    assert_eq!(code, 0);
    let (code, told, _) = explain(2, &[]);
    assert!(told.contains("denied: 403 policy_no_match"), "{told}");
    assert!(told.contains("the smallest change that would allow it"), "{told}");
    assert_eq!(code, 1);
    let (_, told, _) = explain(2, &["--json"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        (&told["denial"]["code"], &told["decision"]),
        (&json!("policy_no_match"), &json!("reject")),
        "{told:#}"
    );
    let (code, told, _) = explain(5, &[]);
    assert!(
        told.contains("permitted by the temporary grant `g-1`") && told.contains("a grant"),
        "{told}"
    );
    assert_eq!(code, 1);
    let (code, _, errors) = explain(99, &[]);
    assert!(errors.contains("is not in the trail"), "{errors}");
    assert_eq!(code, 3);
}
