//! Who may call whom, by a real Consul (1.8, which knows no permissions).

use std::time::{Duration, Instant};

use airflow_envoy_core::intentions::{DefaultAction, Question};
use airflow_envoy_core::peer::SpiffeId;
use airflow_envoy_testbed::consul::{Client, absence};
use airflow_envoy_testbed::{Access, Consul};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::random::Random;
use crate::{folder, parse, settings, spiffe_id};

const SERVICES: [&str; 4] = ["api", "billing", "orders", "web"];
const PATH: &str = "/v1/connect/intentions";
const SETS: usize = 40;

/// Puts a random set of intentions in the place of those that there are.
async fn replace(consul: &Client, random: &mut Random) {
    let known = consul.ask("GET", PATH, String::new()).await.unwrap();
    for intention in known.as_array().unwrap() {
        let path = format!("{PATH}/{}", intention["ID"].as_str().unwrap());
        consul.ask("DELETE", &path, String::new()).await.unwrap();
    }
    let names = [&SERVICES[..], &["*", "*"]].concat();
    for _ in 0..random.below(8) {
        let [source, destination] = [random.pick(&names), random.pick(&names)];
        let action = random.pick(&["allow", "deny"]);
        let intention = json!({
            "SourceName": source, "DestinationName": destination, "SourceType": "consul",
            "Action": action,
        });
        // One about the same two is refused, and that is as good.
        consul.send("POST", PATH, intention.to_string()).await.unwrap();
    }
}

/// What the agent of `destination` says about `source`. It has the intentions in a cache that follows.
async fn authorized(consul: &Client, source: &str, destination: &str, expected: bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let id = spiffe_id(source);
        let body = json!({ "Target": destination, "ClientCertURI": id, "ClientCertSerial": "09" });
        let path = "/v1/agent/connect/authorize";
        let answer = consul.ask("POST", path, body.to_string()).await.unwrap();
        let authorized = answer["Authorized"].as_bool().unwrap();
        if authorized == expected || Instant::now() > deadline {
            return authorized;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn compare(access: Access, default: DefaultAction, random: &mut Random) -> usize {
    let folder = folder(&format!("{default:?}"));
    let log = folder.join("consul.log");
    let running = Consul::start(&folder, log, access, Handle::current()).await.unwrap();
    let consul = running.client();
    let (mut cases, mut allowed) = (0, 0);
    for _ in 0..SETS {
        replace(&consul, random).await;
        for destination in SERVICES {
            let path = format!("{PATH}/match?by=destination&name={destination}");
            let answer = consul.ask("GET", &path, String::new()).await.unwrap();
            let read = parse(&answer, &settings(destination, default));
            let listed: Vec<Value> = answer[destination].as_array().cloned().unwrap_or_default();
            let theirs: Vec<_> = listed
                .iter()
                .map(|it| {
                    let [source, destination] =
                        ["SourceName", "DestinationName"].map(|name| it[name].as_str().unwrap());
                    (format!("{source} => {destination}"), it["Precedence"].as_u64().unwrap())
                })
                .collect();
            let ours = read.order().map(|(name, precedence)| (name.to_owned(), precedence.into()));
            assert_eq!(ours.collect::<Vec<_>>(), theirs);
            assert_eq!(read.unfit().count(), 0, "{answer:#}");
            for source in SERVICES {
                let peer = SpiffeId::parse(spiffe_id(source).as_bytes()).unwrap();
                let question = Question {
                    peer: Some(&peer),
                    method: "GET",
                    path: Some("/"),
                    headers: &[],
                    token: None,
                };
                let ours = read.judge(&question).is_ok();
                let check = format!("{PATH}/check?source={source}&destination={destination}");
                let checked = consul.ask("GET", &check, String::new()).await.unwrap();
                assert_eq!(checked["Allowed"], ours, "{source} => {destination}: {answer:#}");
                let authorized = authorized(&consul, source, destination, ours).await;
                assert_eq!(authorized, ours, "{source} => {destination}: {answer:#}");
                cases += 1;
                allowed += usize::from(ours);
            }
        }
    }
    drop(running);
    let _: Result<(), _> = std::fs::remove_dir_all(&folder);
    assert!((cases / 20..cases - cases / 20).contains(&allowed), "{allowed} of {cases} allowed");
    cases
}

#[tokio::test]
async fn who_may_call_whom_is_what_consul_says() {
    if let Some(why) = absence() {
        println!("SKIPPED: {why}");
        return;
    }
    let mut random = Random::seeded("Consul");
    let start = Instant::now();
    let compared = async {
        compare(Access::Open, DefaultAction::Allow, &mut random).await
            + compare(Access::ByToken, DefaultAction::Deny, &mut random).await
    };
    let cases = tokio::time::timeout(Duration::from_secs(90), compared).await.unwrap();
    println!("{cases} cases without a difference, in {:?}", start.elapsed());
    assert!(cases >= 1000);
}
