//! Documents in, decisions out.

use serde_json::{Value, json};

use super::*;
use crate::limits::Limits;

const DOMAIN: &str = "11111111-2222-3333-4444-555555555555.consul";

fn settings() -> Settings {
    Settings {
        name: "mesh".to_owned(),
        destination: "orders".to_owned(),
        hosts: Vec::new(),
        default: DefaultAction::Deny,
        namespace: DEFAULT.to_owned(),
        partition: DEFAULT.to_owned(),
        trust_domain: DOMAIN.to_owned(),
        jwt_providers: vec![("okta".to_owned(), "idp".to_owned())],
        entries: false,
    }
}

fn parse(answer: &Value, settings: &Settings) -> Result<Intentions, String> {
    Intentions::parse(answer.to_string().as_bytes(), settings, &Limits::DEFAULT)
}

/// One intention as `match` tells of it.
fn one(source: &str, destination: &str, more: &Value) -> Value {
    let mut intention = json!({
        "ID": "1", "Description": "x", "SourceNS": "default", "SourceName": source,
        "DestinationNS": "default", "DestinationName": destination, "SourceType": "consul",
        "DefaultAddr": "", "DefaultPort": 0, "Meta": {"a": "b"}, "Precedence": 9, "Hash": "x=",
        "CreatedAt": "2026-01-01T00:00:00Z", "UpdatedAt": "", "CreateIndex": 1, "ModifyIndex": 2,
    });
    for (name, value) in more.as_object().unwrap() {
        intention[name] = value.clone();
    }
    intention
}

fn all(intentions: &[Value]) -> Intentions {
    parse(&json!({ "orders": intentions }), &settings()).unwrap()
}

fn id(service: &str) -> SpiffeId {
    peer(&format!("spiffe://{DOMAIN}/ns/default/dc/dc1/svc/{service}"))
}

fn peer(text: &str) -> SpiffeId {
    SpiffeId::parse(text.as_bytes()).unwrap()
}

fn ask<'i>(intentions: &'i Intentions, service: &str) -> Result<Matched<'i>, Reject> {
    judge(intentions, service, "/v1/a", &[], None)
}

fn judge<'i>(
    intentions: &'i Intentions,
    service: &str,
    path: &str,
    headers: &[(&[u8], &[u8])],
    claims: Option<&Value>,
) -> Result<Matched<'i>, Reject> {
    let claims = claims.map(|claims| claims.as_object().cloned().unwrap().into());
    let token = claims.as_ref().map(|claims| Token { issuer: "idp", claims });
    let id = id(service);
    intentions.judge(&Question { peer: Some(&id), method: "GET", path: Some(path), headers, token })
}

/// With permissions for `web`.
fn permitting(permissions: &Value) -> Intentions {
    all(&[one("web", "orders", &json!({ "Permissions": permissions }))])
}

#[test]
fn the_most_exact_destination_then_the_most_exact_source_decides_and_is_final() {
    let [allow, deny] = [json!({"Action": "allow"}), json!({"Action": "deny"})];
    let set = all(&[
        one("*", "*", &allow),
        one("web", "*", &allow),
        one("*", "orders", &deny),
        one("api", "orders", &allow),
    ]);
    let order: Vec<_> = set.order().collect();
    assert_eq!(order, [("api => orders", 9), ("* => orders", 8), ("web => *", 6), ("* => *", 5)]);
    assert_eq!(ask(&set, "api").unwrap().intention, Some("api => orders"));
    // An exact source with any destination loses.
    let reject = ask(&set, "web").unwrap_err();
    assert_eq!(reject.code, Code::IntentionDenied);
    assert_eq!(reject.rule.as_deref(), Some("mesh/* => orders"));
    assert_eq!(reject.detail, "Consul intentions `mesh`: `* => orders` (precedence 8) denies");
}

#[test]
fn without_an_intention_the_default_decides() {
    let mut settings = settings();
    for answer in [json!({"orders": null}), json!({"orders": []})] {
        let set = parse(&answer, &settings).unwrap();
        let reject = ask(&set, "web").unwrap_err();
        assert_eq!(
            (reject.rule, reject.detail.as_str()),
            (None, "Consul intentions `mesh`: none is about `web`, and the default denies")
        );
    }
    settings.default = DefaultAction::Allow;
    let set = parse(&json!({"orders": null}), &settings).unwrap();
    assert_eq!(ask(&set, "web"), Ok(Matched { intention: None, permission: None }));
}

#[test]
fn who_is_no_service_of_this_mesh_is_denied_whatever_the_default() {
    let settings = Settings { default: DefaultAction::Allow, ..settings() };
    let allow = json!({"Action": "allow"});
    let set = parse(&json!({"orders": [one("*", "*", &allow)]}), &settings).unwrap();
    let foreign = "spiffe://other.consul/ns/default/dc/dc1/svc/web";
    let plain = format!("spiffe://{DOMAIN}/web");
    for id in [None, Some(foreign), Some(&plain)] {
        let id = id.map(peer);
        let question = Question {
            peer: id.as_ref(),
            method: "GET",
            path: Some("/"),
            headers: &[],
            token: None,
        };
        assert_eq!(set.judge(&question).unwrap_err().code, Code::IntentionDenied, "{id:?}");
    }
    let elsewhere = peer(&format!("spiffe://{DOMAIN}/ap/edge/ns/default/dc/dc1/svc/web"));
    let question = Question {
        peer: Some(&elsewhere),
        method: "GET",
        path: Some("/"),
        headers: &[],
        token: None,
    };
    // A wildcard is about every service of its partition and of no other.
    assert_eq!(set.judge(&question).unwrap().intention, None);
}

#[test]
fn namespaces_partitions_and_peers_are_told_apart() {
    let set = all(&[
        one("web", "orders", &json!({"Action": "allow", "SourceNS": "team"})),
        one("*", "orders", &json!({"Action": "allow", "SourceNS": "*", "SourcePartition": "edge"})),
        one("api", "orders", &json!({"Action": "allow", "SourcePeer": "other"})),
    ]);
    let ask = |path: &str| {
        let id = peer(&format!("spiffe://{DOMAIN}{path}"));
        let question =
            Question { peer: Some(&id), method: "GET", path: Some("/"), headers: &[], token: None };
        set.judge(&question).map(|matched| matched.intention.map(str::to_owned))
    };
    assert_eq!(ask("/ns/team/dc/dc9/svc/web").unwrap().as_deref(), Some("team/web => orders"));
    assert!(ask("/ns/default/dc/dc1/svc/web").is_err());
    assert_eq!(ask("/ap/edge/ns/any/dc/dc1/svc/x").unwrap().as_deref(), Some("edge/*/* => orders"));
    assert!(ask("/ns/default/dc/dc1/svc/api").is_err());
}

#[test]
fn the_first_permission_that_matches_decides_and_none_is_the_default_not_the_next_intention() {
    let permissions = json!([
        {"Action": "deny", "HTTP": {"PathPrefix": "/v1/admin"}},
        {"Action": "allow", "HTTP": {"PathPrefix": "/v1/", "Methods": ["GET", "POST"]}},
    ]);
    let allow = json!({"Action": "allow"});
    let set =
        all(&[one("web", "orders", &json!({ "Permissions": permissions })), one("*", "*", &allow)]);
    let ask = |path| judge(&set, "web", path, &[], None);
    assert_eq!(ask("/v1/a").unwrap().permission, Some(1));
    let reject = ask("/v1/administrator").unwrap_err();
    assert!(reject.detail.ends_with("`web => orders` (precedence 9) denies by its permission 1"));
    let reject = ask("/v2").unwrap_err();
    assert!(
        reject.detail.contains("has no permission that this request meets"),
        "{}",
        reject.detail
    );
    assert!(judge(&set, "api", "/v2", &[], None).is_ok());
    let settings = Settings { default: DefaultAction::Allow, ..settings() };
    let set = one("web", "orders", &json!({ "Permissions": permissions }));
    let set = parse(&json!({ "orders": [set] }), &settings).unwrap();
    assert!(judge(&set, "web", "/v2", &[], None).is_ok());
}

#[test]
fn regular_expressions_are_bounded_all_together() {
    let permission = json!({"Action": "allow", "HTTP": {"PathRegex": "/(a{1000}){0,3}"}});
    let of = |count: usize| {
        let permissions = vec![permission.clone(); count];
        one("web", "orders", &json!({ "Permissions": permissions }))
    };
    let set = all(&[of(60), one("api", "orders", &json!({"Action": "allow"}))]);
    assert_eq!(set.unfit().count(), 0);
    let set = all(&[of(1000), one("api", "orders", &json!({"Action": "allow"}))]);
    let (_, problem) = set.unfit().next().unwrap();
    assert!(problem.ends_with("has a `PathRegex` that is one too many"), "{problem}");
    assert!(ask(&set, "web").is_err() && ask(&set, "api").is_ok());
}

#[test]
fn a_denial_of_some_paths_or_methods_denies_every_tunnel() {
    let settings = Settings { default: DefaultAction::Allow, ..settings() };
    let id = id("web");
    for (permission, denied) in [
        (json!({"Action": "deny", "HTTP": {"PathPrefix": "/admin"}}), true),
        (json!({"Action": "deny", "HTTP": {"PathRegex": "/admin.*"}}), true),
        (json!({"Action": "deny", "HTTP": {"Methods": ["POST"]}}), true),
        (json!({"Action": "deny", "HTTP": {"Header": [{"Name": "x-a", "Present": true}]}}), false),
        (json!({"Action": "allow", "HTTP": {"PathPrefix": "/admin"}}), false),
    ] {
        let set = one("web", "orders", &json!({ "Permissions": [permission] }));
        let set = parse(&json!({ "orders": [set] }), &settings).unwrap();
        let (peer, headers, token) = (Some(&id), &[][..], None);
        let tunnel = Question { peer, method: "CONNECT", path: None, headers, token };
        assert_eq!(set.judge(&tunnel).is_err(), denied, "{permission}");
        let other = Question { method: "GET", path: Some("/"), ..tunnel };
        assert!(set.judge(&other).is_ok(), "{permission}");
    }
}

/// The table that was measured with Envoy's own filter: for each test whether it matches the header that is
/// absent, `v`, `V`, `w`, `v1`, empty, and two lines `v` and `w`, and one line `v,w`.
#[test]
fn headers_match_as_envoys_own_filter_matches_them() {
    let sent: [&[&[u8]]; 8] =
        [&[], &[b"v"], &[b"V"], &[b"w"], &[b"v1"], &[b""], &[b"w", b"v"], &[b"v,w"]];
    for (test, expected) in [
        (json!({"Exact": "v"}), "01000010"),
        (json!({"Exact": "v", "Invert": true}), "00111101"),
        (json!({"Present": true}), "01111111"),
        (json!({"Present": true, "Invert": true}), "10000000"),
        (json!({"Regex": "v[0-9]"}), "00001000"),
        (json!({"Contains": "v"}), "01001011"),
        (json!({"Exact": "v", "IgnoreCase": true}), "01100010"),
        (json!({"Prefix": "v", "Invert": true}), "00110100"),
        (json!({"Suffix": "1"}), "00001000"),
        (json!({"Contains": "V", "IgnoreCase": true}), "01101011"),
    ] {
        let mut header = test.clone();
        header["Name"] = json!("X-A");
        let set = permitting(&json!([{"Action": "allow", "HTTP": {"Header": [header]}}]));
        let found: String = sent
            .iter()
            .map(|lines| {
                let headers: Vec<(&[u8], &[u8])> =
                    lines.iter().map(|line| (&b"x-a"[..], *line)).collect();
                if judge(&set, "web", "/", &headers, None).is_ok() { '1' } else { '0' }
            })
            .collect();
        assert_eq!(found, expected, "{test}");
    }
}

#[test]
fn what_cannot_be_said_for_certain_denies() {
    let set = permitting(&json!([
        {"Action": "deny", "HTTP": {"Header": [{"Name": "x-a", "Regex": "(?i)k"}]}},
        {"Action": "allow", "HTTP": {"PathPrefix": "/"}},
    ]));
    let ask = |value: &[u8]| judge(&set, "web", "/", &[(b"x-a", value)], None);
    assert!(ask(b"K").is_err());
    assert!(ask(b"x").is_ok());
    let reject = ask("\u{212a}".as_bytes()).unwrap_err();
    assert!(reject.detail.contains("no certain answer"), "{}", reject.detail);
}

#[test]
fn a_token_is_asked_for_by_the_whole_and_by_a_permission() {
    let demand = |value: &str| {
        json!({"Providers": [
            {"Name": "okta", "VerifyClaims": [{"Path": ["perms", "role"], "Value": value}]},
        ]})
    };
    let whole = all(&[one("web", "orders", &json!({"Action": "allow", "JWT": demand("admin")}))]);
    let one_of = permitting(&json!([
        {"Action": "allow", "HTTP": {"PathPrefix": "/"}, "JWT": demand("admin")},
    ]));
    for (claims, fine) in [
        (Some(json!({"perms": {"role": "admin"}})), true),
        (Some(json!({"perms": {"role": "user"}})), false),
        // No element of a list is the value.
        (Some(json!({"perms": {"role": ["admin"]}})), false),
        (Some(json!({"perms.role": "admin"})), false),
        (None, false),
    ] {
        for set in [&whole, &one_of] {
            assert_eq!(judge(set, "web", "/", &[], claims.as_ref()).is_ok(), fine, "{claims:?}");
        }
    }
    let foreign = json!({"perms": {"role": "admin"}}).as_object().cloned().unwrap().into();
    let id = id("web");
    let token = Some(Token { issuer: "other", claims: &foreign });
    let question =
        Question { peer: Some(&id), method: "GET", path: Some("/"), headers: &[], token };
    assert!(whole.judge(&question).is_err());
}

#[test]
fn what_is_not_understood_denies_and_says_why() {
    let http = |http: Value| json!({"Permissions": [{"Action": "allow", "HTTP": http}]});
    let header = |test: Value| {
        let mut header = json!({"Name": "x-a"});
        header.as_object_mut().unwrap().extend(test.as_object().unwrap().clone());
        http(json!({"Header": [header]}))
    };
    for (more, words) in [
        (json!({"Action": "allow", "Schedule": "nights"}), "has `Schedule`"),
        (json!({"Action": "audit"}), "has the `Action` `audit`"),
        (json!({"Action": ""}), "has no `Action`"),
        (json!({"Action": "allow", "SourceType": "external"}), "of the type `external`"),
        (json!({"Action": "allow", "SourceSamenessGroup": "g"}), "`SamenessGroup`"),
        (json!({"Action": "allow", "Permissions": [{}]}), "both `Action` and `Permissions`"),
        (json!({"Permissions": {"a": 1}}), "`Permissions` that is not a list"),
        (json!({"Permissions": [{"Action": "allow"}]}), "a permission 1 that has no `HTTP`"),
        (http(json!({"PathExact": "/a", "Grpc": {"x": 1}})), "has `Grpc`"),
        (http(json!({"PathExact": "/a", "PathPrefix": "/b"})), "more than one of `PathExact`"),
        (http(json!({"PathExact": "/a//b"})), "whose normal form is `/a/b`"),
        (http(json!({"PathPrefix": "a"})), "does not begin with `/`"),
        (http(json!({"PathRegex": "/(?=a)"})), "a `PathRegex` that has a group or a flag"),
        (http(json!({"Methods": ["get"]})), "has a method that is none"),
        (http(json!({"Methods": []})), "an `HTTP` that asks for nothing"),
        (http(json!({})), "has no `HTTP`, or an empty one"),
        (header(json!({})), "with no test, or several"),
        (header(json!({"Exact": "a", "Prefix": "b"})), "whose tests exclude each other"),
        (header(json!({"Exact": "a", "Present": true})), "with no test, or several"),
        (header(json!({"Regex": "a", "IgnoreCase": true})), "whose tests exclude each other"),
        (header(json!({"Exact": "a", "Fuzzy": 2})), "has `Fuzzy`"),
        (header(json!({"Name": ":path", "Exact": "a"})), "asks for the header `:path`"),
        (header(json!({"Name": "Host", "Exact": "a"})), "asks for the header `host`"),
        (header(json!({"Exact": 7})), "has a `Exact` that is not a string"),
        (
            json!({"Action": "allow", "JWT": {"Providers": [{"Name": "auth0"}]}}),
            "`auth0`, which `jwt_providers`",
        ),
        (json!({"Action": "allow", "JWT": {"Providers": []}}), "a `JWT` without providers"),
        (
            json!({"Action": "allow", "JWT": {"Providers": [{"Name": "okta", "VerifyClaims": [{"Value": "x"}]}]}}),
            "whose `Path` is none",
        ),
        (
            json!({"Action": "allow", "JWT": {"Providers": [{"Name": "okta", "Scopes": ["x"]}]}}),
            "has `Scopes`",
        ),
    ] {
        let allow = json!({"Action": "allow"});
        let set = all(&[one("web", "orders", &more), one("*", "*", &allow)]);
        let reject = ask(&set, "web").unwrap_err();
        assert!(reject.detail.contains(words), "{more}: {}", reject.detail);
        assert!(reject.detail.ends_with(", so it denies"), "{}", reject.detail);
        assert_eq!(reject.rule.as_deref(), Some("mesh/web => orders"));
        // The others work.
        assert!(ask(&set, "api").is_ok());
        assert_eq!(set.unfit().count(), 1);
    }
    // Consul leaves such members out: they say nothing.
    let harmless =
        json!({"Action": "allow", "New": "", "More": null, "List": [], "Flag": false, "Count": 0});
    assert!(ask(&all(&[one("web", "orders", &harmless)]), "web").is_ok());
}

#[test]
fn a_document_about_something_else_or_without_names_is_none() {
    let allow = json!({"Action": "allow"});
    let listed = |intention: Value| json!({"orders": [intention]});
    for (answer, words) in [
        (json!([]), "expected an object"),
        (json!(null), "expected an object"),
        (json!({}), "of the destination and of no other"),
        (json!({"billing": []}), "of the destination and of no other"),
        (json!({"orders": [], "billing": []}), "of the destination and of no other"),
        (json!({"orders": "x"}), "of the destination and of no other"),
        (listed(json!(7)), "intention 0 is not an object"),
        (listed(one("web", "billing", &allow)), "is about `billing`"),
        (
            listed(one("web", "orders", &json!({"DestinationNS": "team"}))),
            "not about the destination",
        ),
        (listed(one("", "orders", &allow)), "has no `SourceName`"),
        (listed(one("airflow-*", "orders", &allow)), "which is no name"),
        (listed(one("web", "orders", &json!({"SourceName": 7}))), "not a string"),
    ] {
        let error = parse(&answer, &settings()).unwrap_err();
        assert!(error.contains(words), "{answer}: {error}");
    }
    for text in ["", "<html>", "7", "12\n", "x\n{}", "{\"orders\":[],\"orders\":[]}"] {
        assert!(
            Intentions::parse(text.as_bytes(), &settings(), &Limits::DEFAULT).is_err(),
            "{text}"
        );
    }
    let few = Limits { intentions: 1, ..Limits::DEFAULT };
    let two = json!({"orders": [one("a", "orders", &allow), one("b", "orders", &allow)]});
    assert!(Intentions::parse(two.to_string().as_bytes(), &settings(), &few).is_err());
    let indexed = Intentions::parse(b"42\n{\"orders\":null}", &settings(), &Limits::DEFAULT);
    assert_eq!(indexed.unwrap().index(), 42);
}

fn entry(name: &str, sources: &Value) -> Value {
    json!({
        "Kind": "service-intentions", "Name": name, "Sources": sources, "Meta": {"owner": "data"},
        "Hash": 123, "CreateIndex": 10, "ModifyIndex": 12,
    })
}

#[test]
fn configuration_entries_say_the_same_as_answers_to_match() {
    let settings = Settings { entries: true, ..settings() };
    let mut own = entry(
        "orders",
        &json!([
            {"Name": "web", "Type": "consul", "Precedence": 9, "Description": "x", "Permissions": [
                {"Action": "allow", "HTTP": {"PathPrefix": "/v1/"}}]},
            {"Name": "*", "Type": "consul", "Action": "deny", "LegacyID": "x", "Precedence": 8},
        ]),
    );
    let any = entry("*", &json!([{"Name": "api", "Action": "allow", "Precedence": 6}]));
    let set = parse(&json!([own, any]), &settings).unwrap();
    let order: Vec<_> = set.order().map(|(name, _)| name).collect();
    assert_eq!(order, ["web => orders", "* => orders", "api => *"]);
    assert!(ask(&set, "web").is_ok() && ask(&set, "api").is_err());
    let set = parse(&json!([null, any]), &settings).unwrap();
    assert!(ask(&set, "api").is_ok() && ask(&set, "web").is_err());
    assert!(parse(&json!([null, null]), &settings).unwrap().is_empty());
    // A source without a namespace is none of every namespace, whatever the entry is about.
    let mut every = any.clone();
    every["Namespace"] = json!("*");
    let set = parse(&json!([null, every]), &settings).unwrap();
    assert_eq!(set.order().map(|(name, _)| name).collect::<Vec<_>>(), ["api => */*"]);
    // What the whole asks for, every source does.
    own["JWT"] = json!({"Providers": [{"Name": "okta"}]});
    let set = parse(&json!([own, null]), &settings).unwrap();
    assert!(judge(&set, "web", "/v1/a", &[], None).is_err());
    assert!(judge(&set, "web", "/v1/a", &[], Some(&json!({}))).is_ok());
    own["Hours"] = json!("nights");
    let set = parse(&json!([own, null]), &settings).unwrap();
    assert_eq!(set.unfit().count(), 2);
    for answer in [
        json!({}),
        json!([null]),
        json!([entry("billing", &json!([])), null]),
        json!([any, null]),
        json!([7, null]),
        json!([{"Kind": "service-defaults", "Name": "orders"}, null]),
    ] {
        assert!(parse(&answer, &settings).is_err(), "{answer}");
    }
}

#[test]
fn an_odd_name_forges_no_metric_and_no_line() {
    let deny = json!({"Action": "deny"});
    let odd =
        all(&[one("a;rule=x\n\u{e9}", "orders", &deny), one(&"x".repeat(1000), "orders", &deny)]);
    let names: Vec<_> = odd.order().map(|(name, _)| name.to_owned()).collect();
    assert_eq!(names[0], "a?rule=x?? => orders");
    assert_eq!(names[1].len(), 300);
}

#[test]
fn among_many_sources_the_right_one_is_found() {
    let intentions: Vec<_> = (0..300)
        .map(|number| {
            let action = if number % 3 == 0 { "allow" } else { "deny" };
            one(&format!("s{number}"), "orders", &json!({ "Action": action }))
        })
        .chain([one("s0", "*", &json!({"Action": "deny"}))])
        .collect();
    let set = all(&intentions);
    for number in 0..300 {
        assert_eq!(ask(&set, &format!("s{number}")).is_ok(), number % 3 == 0, "{number}");
    }
}
