//! `airflow-envoy grant`, `revoke`, `grants`, `request` and `approve`.

use airflow_envoy_core::facts::{Call, Caller, Fact};
use airflow_envoy_core::jose::RustCrypto;
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::policy::{GrantDocument, Outcome, Policy, PolicySet};
use airflow_envoy_core::time::{Span, UnixTime};
use serde_json::{Value, json};

use crate::program::{Ended, Folder};
use crate::server::Server;

/// A folder with keys of two approvers and of a stranger, and a policy in which they may grant.
fn folder() -> Folder {
    let folder = Folder::new();
    let mut keys = Vec::new();
    for (name, alg) in [("ada", "EdDSA"), ("dan", "ES256"), ("eve", "EdDSA")] {
        let made = folder.run(&format!("keys new --alg {alg} --out {name}.json --kid {name}-1"));
        keys.push(made.with(0).json());
    }
    folder.file("policy.json", &policy(&keys).to_string());
    folder
}

fn policy(keys: &[Value]) -> Value {
    json!({
        "version": 1,
        "destinations": {
            "orders": {"hosts": ["orders.internal"]},
            "cards": {"hosts": ["cards.internal"]},
        },
        "approvers": {"on-call": {"keys": [keys[0]]}, "data": {"keys": [keys[1]]}},
        "grantable": [
            {
                "id": "orders-write", "intent": "Repair orders by hand.",
                "from": {"dags": ["ds_*"]}, "to": ["orders"], "methods": ["POST", "PUT"],
                "paths": ["/v1/orders/**"], "max_duration": "4h", "approvers": ["on-call"],
            },
            {
                "id": "cards-read", "from": {"dags": ["*"]}, "to": ["cards"], "methods": ["GET"],
                "max_duration": "1h", "approvers": ["data"],
            },
        ],
        "rules": [
            {"id": "reads", "effect": "allow", "from": {"dags": ["ds_*"]}, "to": ["orders"], "methods": ["GET"]},
            {"id": "no-audit", "effect": "deny", "to": ["orders"], "paths": ["/v1/orders/audit/**"]},
        ],
    })
}

fn grant(folder: &Folder, more: &str) -> Ended {
    folder.run(&format!("grant --policy policy.json --reason INC-17 --by ada {more}"))
}

/// What the core decides about a write to orders, `after` now, with the grants of the store.
fn decided(folder: &Folder, dag: &str, after: Span) -> String {
    let limits = Limits::DEFAULT;
    let now = UnixTime::from_secs(clock());
    let policy = Policy::parse(folder.text("policy.json").as_bytes(), &limits).unwrap();
    let grants = GrantDocument::parse(folder.text("grants.json").as_bytes(), &limits).unwrap();
    let (set, unfit) = PolicySet::from(policy).with_grants(&grants, now, &limits, &RustCrypto);
    assert_eq!(unfit, []);
    let caller = Caller { dags: Fact::one(dag), ..Caller::default() };
    let call = Call {
        authority: "orders.internal",
        scheme: "http",
        method: "POST",
        target: "/v1/orders/7",
    };
    let standing = set.standing(&caller, None);
    match set.decide(&caller, &standing, &call, now.plus(after), &limits).outcome {
        Outcome::Permit { rule, grant } => format!("{rule} by {}", grant.unwrap()),
        Outcome::Refuse(reject) => reject.code.to_string(),
    }
}

fn clock() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

#[test]
fn what_is_granted_the_core_permits_until_it_ends_or_is_revoked() {
    let folder = folder();
    let more = "orders-write --dag ds_repair --for 2h --key ada.json --store grants.json --id g-1";
    let ended = grant(&folder, more).with(0);
    assert!(ended.out.starts_with("granted: g-1, by `ada` (`on-call`)\n"), "{}", ended.out);
    let hours = |hours: i64| Span::from_secs(hours * 3600 - 5);
    assert_eq!(decided(&folder, "ds_repair", Span::ZERO), "orders-write by g-1");
    assert_eq!(decided(&folder, "ds_repair", hours(2)), "orders-write by g-1");
    assert_eq!(decided(&folder, "ds_repair", hours(3)), "policy_no_match");
    assert_eq!(decided(&folder, "ds_other", Span::ZERO), "policy_no_match");

    let unknown = folder.run("revoke g-2 --store grants.json").with(3);
    assert_eq!(
        unknown.err,
        "airflow-envoy: grants.json: there is no grant `g-2`; there are: `g-1`\n"
    );
    folder.run("revoke g-1 --store grants.json").with(0);
    assert_eq!(decided(&folder, "ds_repair", Span::ZERO), "policy_no_match");
    assert_eq!(folder.run("grants --store grants.json").with(0).out, "0 grants\n");
    let nothing = folder.run("grants --store other.json --policy policy.json").with(0);
    assert_eq!(nothing.out, "0 grants: there is no document yet\n");
}

#[test]
fn a_grant_may_be_narrower_and_begin_later() {
    let folder = folder();
    let begins = UnixTime::from_secs(clock() + 3600);
    let more = format!(
        "orders-write --dag ds_repair --task load --method POST --path /v1/orders/7 --to orders \
         --for 30m --begins {begins} --key ada.json --store grants.json --requested-by bob --json"
    );
    let told = grant(&folder, &more).with(0).json();
    assert_eq!(told["not_before"], begins.to_string());
    assert_eq!((&told["approver"], &told["key_id"]), (&"on-call".into(), &"ada-1".into()));
    assert!(told["id"].as_str().unwrap().starts_with("orders-write-"));
    let listed =
        folder.run("grants --policy policy.json --store grants.json --json").with(0).json();
    let listed = &listed["grants"][0];
    for (name, value) in [
        ("state", json!("waiting")),
        ("id", told["id"].clone()),
        ("from", json!({"dags": ["ds_repair"], "tasks": ["load"]})),
        ("to", json!(["orders"])),
        ("methods", json!(["POST"])),
        ("paths", json!(["/v1/orders/7"])),
        ("reason", json!("INC-17")),
        ("granted_by", json!("ada")),
        ("requested_by", json!("bob")),
    ] {
        assert_eq!(listed[name], value, "{name}");
    }
}

#[test]
fn what_the_core_would_not_take_whole_is_refused_with_what_could_be_granted() {
    let folder = folder();
    let good = "orders-write --dag ds_repair --for 2h --key ada.json";
    for (line, problems) in [
        (
            good.replace("-write", "-wrote"),
            vec!["nothing is grantable as `orders-wrote`, did you mean `orders-write`?"],
        ),
        (
            good.replace("ada.json", "eve.json"),
            vec!["the key `eve-1` is of no approver", "by `on-call`"],
        ),
        (
            good.replace("ada.json", "dan.json"),
            vec![
                "the key `dan-1` is of `data`, who may not grant `orders-write`",
                "may grant: `cards-read`",
            ],
        ),
        (
            good.replace("2h", "8h"),
            vec!["8h is too long: `orders-write` is granted for at most 4h", "by `on-call`"],
        ),
        (good.replace("2h", "0"), vec!["a grant lasts at least 1s"]),
        (good.replace("ds_repair", "etl"), vec!["from.dags: `etl` is not within `ds_*`"]),
        (
            good.replace("--dag ds_repair", "--from teams=x"),
            vec!["from.dags: is missing, and only `ds_*` may receive it"],
        ),
        (
            good.replace("--dag ds_repair", "--dag ds_a --from dag=x"),
            vec!["unknown field `dag`, did you mean `dags`?"],
        ),
        (format!("{good} --to cards"), vec!["to: `cards` is none of `orders`"]),
        (format!("{good} --to nowhere"), vec!["there is no destination `nowhere`"]),
        (format!("{good} --method DELETE"), vec!["methods: `DELETE` is none of `POST`, `PUT`"]),
        (format!("{good} --path /v2/**"), vec!["paths: `/v2/**` is not within `/v1/orders/**`"]),
        (format!("{good} --path /v1/**"), vec!["paths: `/v1/**` is not within `/v1/orders/**`"]),
        (format!("{good} --begins 2020-01-01T00:00:00Z"), vec!["it would have ended already"]),
        (format!("{good} --id ../x"), vec!["`../x` is not a name of 1 to 128 letters"]),
    ] {
        let ended = grant(&folder, &format!("{line} --store grants.json")).with(1);
        for problem in problems {
            assert!(ended.err.contains(problem), "{line}: {}", ended.err);
        }
        assert_eq!(ended.out, "");
        assert!(!folder.0.join("grants.json").exists(), "{line}");
    }
    let nobody = good.replace("--dag ds_repair", "");
    assert!(grant(&folder, &nobody).with(2).err.contains("say who receives it"));
}

#[test]
fn without_a_store_the_signed_grant_is_printed() {
    let folder = folder();
    let ended = grant(&folder, "orders-write --dag ds_a --for 1h --key ada.json").with(0);
    let grants = json!({ "version": 1, "grants": [ended.out.trim()] });
    folder.file("grants.json", &grants.to_string());
    assert!(decided(&folder, "ds_a", Span::ZERO).starts_with("orders-write by orders-write-"));
}

#[test]
fn a_key_goes_by_the_name_that_the_policy_gives_it() {
    let folder = folder();
    let mut key: Value = serde_json::from_str(&folder.text("ada.json")).unwrap();
    key["kid"] = "another".into();
    folder.file("ada.json", &key.to_string());
    let more = "orders-write --dag ds_a --for 1h --key ada.json --store grants.json --json";
    assert_eq!(grant(&folder, more).with(0).json()["key_id"], "ada-1");
}

#[test]
fn the_list_shows_what_the_filter_leaves_out_and_why() {
    let folder = folder();
    for (id, dag) in [("g-1", "ds_a"), ("g-2", "ds_b")] {
        let more = "--for 1h --key ada.json --store grants.json";
        grant(&folder, &format!("orders-write --id {id} --dag {dag} {more}")).with(0);
    }
    let mut document: Value = serde_json::from_str(&folder.text("grants.json")).unwrap();
    let second = document["grants"][1].as_str().unwrap().to_owned();
    let (message, signature) = second.rsplit_once('.').unwrap();
    let other = document["grants"][0].as_str().unwrap().rsplit_once('.').unwrap().1.to_owned();
    assert_ne!(signature, other);
    document["grants"][1] = format!("{message}.{other}").into();
    document["grants"].as_array_mut().unwrap().push("\u{1b}[2Jx".into());
    folder.file("grants.json", &document.to_string());

    let listed = folder.run("grants --policy policy.json --store grants.json").with(1);
    let lines: Vec<_> = listed.out.lines().collect();
    assert!(lines[0].starts_with("`g-1` in effect until 2"), "{lines:?}");
    assert_eq!(lines[1], "  `orders-write` to `dags` `ds_a`");
    assert_eq!(lines[2], "  `INC-17` by `ada`");
    assert_eq!(lines[3], "`g-2` refused: the `EdDSA` signature is not by the key");
    assert!(lines[6].starts_with("? refused: "), "{lines:?}");
    assert_eq!(lines.last(), Some(&"3 grants: 1 in effect, 2 refused"));
    assert!(!listed.out.contains('\u{1b}'));

    let unverified = folder.run("grants --store grants.json --json").with(0).json();
    let states: Vec<_> =
        unverified["grants"].as_array().unwrap().iter().map(|one| &one["state"]).collect();
    assert_eq!(states, ["not_verified"; 3]);
}

#[test]
fn a_denial_becomes_a_request_and_the_request_a_grant() {
    let folder = folder();
    let call = "POST http://orders.internal/v1/orders/7";
    let common =
        ["--policy", "policy.json", "--for", "2h", "--reason", "INC-17", "--requested-by", "bob"];
    let problem = json!({
        "type": "about:blank", "status": 403, "code": "policy_no_match",
        "detail": "no rule allows it; `orders-write` would allow it, and is grantable by `on-call`",
    });
    let record = json!({
        "v": 1, "kind": "decision", "decision": "reject", "code": "policy_no_match",
        "caller": {"identity": {"dag_id": "ds_repair", "task_id": "load", "run_id": "r"}},
        "request": {"method": "POST", "scheme": "http", "authority": "orders.internal", "path": "/v1/orders/7"},
    });
    folder.file("problem.json", &problem.to_string()).file("record.json", &record.to_string());
    for (arguments, methods) in [
        (vec!["--denial", "problem.json", "--dag", "ds_repair"], None),
        (vec!["--denial", "record.json"], Some("POST")),
        (vec!["--call", call, "--dag", "ds_repair"], Some("POST")),
        (vec!["--grantable", "orders-write", "--dag", "ds_repair"], None),
    ] {
        let arguments = [&["request"], common.as_slice(), &arguments].concat();
        let asked = folder.run_with(&arguments, "").with(0);
        folder.file("request.yaml", &asked.out);
        let told =
            folder.run_with(&[arguments.as_slice(), &["--json"]].concat(), "").with(0).json();
        assert_eq!(told["grantable"], "orders-write", "{arguments:?}");
        assert_eq!(told["from"], json!({"dags": ["ds_repair"]}));
        assert_eq!(told["methods"][0].as_str(), methods);

        let _ = std::fs::remove_file(folder.0.join("grants.json"));
        let line = "approve request.yaml --policy policy.json --by ada --key ada.json --store grants.json --id g-1";
        let unasked = folder.run(line).with(2);
        assert!(
            unasked.err.contains("asked by `bob`") && unasked.err.contains("say --yes"),
            "{}",
            unasked.err
        );
        assert!(!folder.0.join("grants.json").exists());
        folder.run(&format!("{line} --yes")).with(0);
        assert_eq!(decided(&folder, "ds_repair", Span::ZERO), "orders-write by g-1");
        assert_eq!(decided(&folder, "ds_other", Span::ZERO), "policy_no_match");
    }
}

#[test]
fn a_request_that_no_grant_can_help_says_so() {
    let folder = folder();
    for (call, dag, problem) in [
        (
            "GET http://orders.internal/v1/orders/7",
            "ds_a",
            "no grant is needed: rule `reads` allows",
        ),
        (
            "POST http://orders.internal/v1/orders/audit/7",
            "ds_a",
            "no grant helps against `policy_denied`",
        ),
        (
            "POST http://orders.internal/v1/orders/7",
            "etl",
            "nothing is grantable that would allow this",
        ),
        ("GET http://elsewhere/", "ds_a", "no grant helps against"),
    ] {
        let arguments = [
            "request",
            "--policy",
            "policy.json",
            "--for",
            "1h",
            "--reason",
            "x",
            "--call",
            call,
            "--dag",
            dag,
        ];
        let ended = folder.run_with(&arguments, "");
        assert!(ended.err.contains(problem), "{call}: {ended:?}");
        assert_eq!((ended.code, ended.out.as_str()), (1, ""), "{call}");
    }
}

#[test]
fn all_that_would_be_granted_is_shown_before_it_is() {
    let folder = folder();
    let many = |name: &str| -> Vec<String> {
        (0..40).map(|number| format!("{name}{number:02}")).collect()
    };
    let paths: Vec<String> = many("/v1/orders/");
    let request = json!({
        "version": 1, "grantable": "orders-write", "from": {"dags": many("ds_"), "runs": ["a b", "c`d"]},
        "paths": paths, "for": "2h", "reason": format!("{} and then", "x".repeat(200)),
    });
    let arguments = "approve - --policy policy.json --by ada --key ada.json";
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let shown = folder.run_with(&arguments, &request.to_string()).with(2).err;
    for part in many("ds_").iter().chain(&paths) {
        assert!(shown.contains(&format!("`{part}`")), "{part} is not in: {shown}");
    }
    assert!(shown.contains(r"`a b`, `c\u{60}d`"), "two values are two: {shown}");
    assert!(shown.contains("xx and then`"), "{shown}");
}

#[test]
fn a_request_is_only_data() {
    let folder = folder();
    let good = json!({
        "version": 1, "grantable": "orders-write", "from": {"dags": ["ds_repair"]}, "for": "2h",
        "reason": "line\nwhy      something else\u{1b}[2J",
    });
    let approve = |request: &Value, more: &[&str]| {
        let line = ["approve", "-", "--policy", "policy.json", "--by", "ada", "--key", "ada.json"];
        folder.run_with(&[&line, more].concat(), &request.to_string())
    };
    let shown = approve(&good, &[]).with(2).err;
    assert!(shown.contains(r"why      `line\nwhy      something else\u{1b}[2J`"), "{shown}");
    approve(&good, &["--yes", "--for", "1h"]).with(0);
    approve(&good, &["--yes", "--for", "3h"]).with(2);
    for (change, value, code, problem) in [
        ("for", json!("8h"), 1, "8h is too long"),
        ("from", json!({}), 1, "from"),
        ("from", json!({"dags": ["*"]}), 1, "`*` is not within `ds_*`"),
        ("paths", json!([]), 3, "paths: must not be empty"),
        ("extra", json!(1), 3, "unknown field `extra`"),
        ("version", json!(2), 3, "version: the only version is 1"),
        ("begins", json!("tomorrow"), 3, "begins: `tomorrow` is not a date"),
    ] {
        let mut request = good.clone();
        request[change] = value;
        let ended = approve(&request, &["--yes"]);
        assert!(ended.err.contains(problem), "{change}: {}", ended.err);
        assert_eq!((ended.code, ended.out.as_str()), (code, ""), "{change}");
    }
}

#[test]
fn the_binary_grants_into_consul_and_behind_http() {
    let folder = folder();
    let server = Server::start(None);
    for url in [server.consul(), server.http()] {
        let more = format!("orders-write --dag ds_a --for 1h --key ada.json --store {url} --json");
        let id = grant(&folder, &more).with(0).json()["id"].as_str().unwrap().to_owned();
        folder.file("grants.json", &server.document().unwrap());
        assert_eq!(decided(&folder, "ds_a", Span::ZERO), format!("orders-write by {id}"));
        folder.run(&format!("revoke {id} --store {url}")).with(0);
        let left: Value = serde_json::from_str(&server.document().unwrap()).unwrap();
        assert_eq!(left, json!({ "version": 1, "grants": [] }));
    }
}
