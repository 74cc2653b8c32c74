use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use hyper::body::Bytes;
use hyper::header::HeaderValue;
use hyper::{Request, Response};
use rcgen::ExtendedKeyUsagePurpose::ClientAuth;

use super::answer::renewal;
use super::*;
use crate::mesh::authority::{Authority, Wanted};
use crate::server::{Service, reply, serve};

const SPIFFE_ID: &str = "spiffe://mesh.consul/ns/default/dc/dc1/svc/orders";

/// Answers as Consul does, with what a test gives it, and keeps what it was asked.
#[derive(Default)]
struct Fake {
    roots: Mutex<(u64, Value)>,
    leafs: Mutex<VecDeque<Value>>,
    asked: Mutex<Vec<String>>,
}

impl Service for Fake {
    async fn answer(&self, request: Request<Bytes>) -> Option<Response<Bytes>> {
        let target = request.uri().to_string();
        let token = request.headers().get("x-consul-token").map(HeaderValue::to_str);
        self.asked.lock().unwrap().push(format!(
            "{target} {}",
            token.map_or("-", |token| if token.unwrap().len() == 36 { "uuid" } else { "ours" })
        ));
        let (index, body) = match target.split('?').next().unwrap() {
            "/v1/connect/ca/roots" => self.roots.lock().unwrap().clone(),
            "/v1/agent/connect/ca/leaf/orders" => {
                let leaf = self.leafs.lock().unwrap().pop_front();
                (7, leaf.unwrap_or(Value::Null))
            }
            "/v1/acl/login" => (0, json!({ "SecretID": "00000000-0000-4000-8000-000000000000" })),
            _ => (0, Value::Null),
        };
        let mut answer = reply(200, "application/json", body.to_string());
        answer.headers_mut().insert("x-consul-index", index.into());
        Some(answer)
    }
}

impl Fake {
    /// Lists these roots, of which the last is the active one.
    fn list(&self, index: u64, roots: &[&Authority]) {
        let all = roots.iter().enumerate();
        let all: Vec<_> = all
            .map(|(id, root)| json!({ "ID": id.to_string(), "RootCert": root.certificate }))
            .collect();
        let active = (all.len() - 1).to_string();
        *self.roots.lock().unwrap() = (index, json!({ "ActiveRootID": active, "Roots": all }));
    }

    fn give(&self, leafs: impl IntoIterator<Item = Value>) {
        *self.leafs.lock().unwrap() = leafs.into_iter().collect();
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

/// A certificate as Consul issues it: dated back by a minute, and good for so many seconds more.
fn issued(authority: &Authority, serial: &str, seconds: i64) -> Value {
    let now = SystemTime::now();
    let since = now - Duration::from_secs(60);
    let until = now.checked_add_signed(seconds);
    let wanted = Wanted { uris: &[SPIFFE_ID], since, until, usage: ClientAuth };
    let leaf = authority.sign(&wanted).unwrap();
    json!({
        "CertPEM": leaf.certificate, "PrivateKeyPEM": leaf.key, "Service": "orders", "ServiceURI": SPIFFE_ID,
        "SerialNumber": serial, "ValidAfter": rfc3339(since), "ValidBefore": rfc3339(until),
    })
}

trait Signed {
    fn checked_add_signed(self, seconds: i64) -> Self;
}

impl Signed for SystemTime {
    fn checked_add_signed(self, seconds: i64) -> Self {
        let by = Duration::from_secs(seconds.unsigned_abs());
        if seconds < 0 { self - by } else { self + by }
    }
}

fn rfc3339(time: SystemTime) -> String {
    let millis = time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    UnixTime::from_millis(i64::try_from(millis).unwrap()).to_string()
}

struct Stage {
    consul: Arc<Fake>,
    keeper: Keeper,
    folder: PathBuf,
}

impl Stage {
    async fn new(name: &str, token: Token, trust: Trust) -> Self {
        let consul = Arc::new(Fake::default());
        let address = serve(Arc::clone(&consul), None).await.unwrap();
        let folder = std::env::temp_dir().join(format!("agent-{name}-{}", std::process::id()));
        let _: Result<(), _> = fs::remove_dir_all(&folder);
        let options = Options {
            consul: address,
            service: "orders".to_owned(),
            directory: folder.clone(),
            token,
            trust,
        };
        Self { consul, keeper: Keeper::new(options).unwrap(), folder }
    }

    async fn step(&mut self) -> (Vec<Published>, Result<()>) {
        let mut published = Vec::new();
        let done = self.keeper.step(&mut |news| published.push(news)).await;
        (published, done)
    }

    fn live(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(LIVE).join(name)).unwrap()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _: Result<(), _> = fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test]
async fn a_generation_is_private_whole_and_the_last_but_one_goes() {
    let mut stage = Stage::new("files", Token::Nobody, Trust::Listed).await;
    let root = Authority::new("root").unwrap();
    let mut seen = Vec::new();
    for number in 1..=4 {
        let leaf = issued(&root, &number.to_string(), 3600);
        let certificate = leaf["CertPEM"].as_str().unwrap().to_owned();
        stage.consul.give([leaf]);
        stage.consul.list(number, &[&root]);
        stage.keeper.leaf = None;
        let (published, done) = stage.step().await;
        done.unwrap();
        assert_eq!(published[0].generation, number);
        assert_eq!(stage.live("cert.pem").trim(), certificate.trim());
        assert_eq!(stage.live("ca.pem").trim(), root.certificate.trim());
        seen = generations(&stage.folder);
        seen.sort_unstable();
    }
    assert_eq!(seen, [3, 4]);
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(stage.folder.clone()), 0o700);
    assert_eq!(mode(stage.folder.join("generation-4")), 0o700);
    for name in ["cert.pem", "key.pem", "ca.pem", "about.json"] {
        assert_eq!(mode(stage.folder.join(LIVE).join(name)), 0o600, "{name}");
    }
    let sds = fs::read_to_string(stage.folder.join("certificate.json")).unwrap();
    let sds: Value = serde_json::from_str(&sds).unwrap();
    let key = sds.pointer("/resources/0/tls_certificate/private_key/filename").unwrap();
    assert_eq!(fs::read_to_string(key.as_str().unwrap()).unwrap(), stage.live("key.pem"));

    // Another agent does not come between; one that comes after it goes on counting.
    let options = stage.keeper.options.clone();
    let second = Keeper::new(options.clone()).err().unwrap().to_string();
    assert!(second.starts_with("another agent keeps "), "{second}");
    stage.keeper = {
        let elsewhere = Options { directory: stage.folder.join("elsewhere"), ..options.clone() };
        Keeper::new(elsewhere).unwrap()
    };
    assert_eq!(Keeper::new(options.clone()).unwrap().generation, 4);

    // A folder in which somebody else could change `live` is no place for it.
    fs::set_permissions(&stage.folder, fs::Permissions::from_mode(0o770)).unwrap();
    let open = Keeper::new(options).err().unwrap().to_string();
    assert!(open.starts_with("others than its owner may write to "), "{open}");
}

#[tokio::test]
async fn what_could_not_be_written_is_written_when_it_can_be() {
    let mut stage = Stage::new("unwritten", Token::Nobody, Trust::Listed).await;
    let root = Authority::new("root").unwrap();
    stage.consul.list(5, &[&root]);
    stage.consul.give([issued(&root, "1", 3600)]);
    // In the way of the first generation.
    fs::write(stage.folder.join("generation-1"), "").unwrap();
    let (published, done) = stage.step().await;
    assert!(done.is_err() && published.is_empty(), "{published:?}");
    let (published, done) = stage.step().await;
    done.unwrap();
    assert_eq!(published[0].serial, "1");
    assert!(stage.live("cert.pem").contains("BEGIN"));
}

#[tokio::test]
async fn what_consul_gives_is_judged_and_the_last_good_files_stay() {
    let mut stage = Stage::new("judged", Token::Nobody, Trust::Listed).await;
    let (former, root) = (Authority::new("former").unwrap(), Authority::new("root").unwrap());
    stage.consul.list(5, &[&root]);
    stage.consul.give([issued(&root, "1", 3600)]);
    stage.step().await.1.unwrap();
    let good = stage.live("cert.pem");

    let mut another = issued(&root, "2", 3600);
    another["Service"] = json!("billing");
    let mut keyless = issued(&root, "2", 3600);
    keyless["PrivateKeyPEM"] = json!("");
    let mut torn = issued(&root, "2", 3600);
    torn["CertPEM"] = json!("-----BEGIN CERTIFICATE-----");
    let cases = [
        (issued(&former, "2", 3600), "not one that the active root signed"),
        (issued(&root, "2", -1), "not one that the active root signed"),
        (issued(&root, "1", 3600), "still the one that is to be renewed"),
        (another, "another service's"),
        (keyless, "PrivateKeyPEM"),
        (torn, "CertPEM"),
        (Value::Null, "CertPEM"),
    ];
    for (leaf, expected) in cases {
        stage.keeper.index = 0;
        stage.keeper.leaf.as_mut().unwrap().renew_at = now();
        stage.consul.give([leaf]);
        let (published, done) = stage.step().await;
        let error = done.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("PRIVATE"), "{error}");
        assert_eq!((published, stage.live("cert.pem")), (vec![], good.clone()), "{expected}");
    }
    for (roots, expected) in [
        (json!({ "ActiveRootID": "1", "Roots": null }), "the active one"),
        (
            json!({ "ActiveRootID": "1", "Roots": [{ "ID": "1", "RootCert": "nonsense" }] }),
            "RootCert",
        ),
        (json!({ "Roots": [] }), "ActiveRootID"),
        (Value::Null, "ActiveRootID"),
    ] {
        stage.keeper.index = 0;
        *stage.consul.roots.lock().unwrap() = (6, roots);
        let error = stage.step().await.1.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(stage.live("ca.pem").trim(), root.certificate.trim());
    }
}

#[tokio::test]
async fn whom_to_trust_does_not_wait_for_the_own_certificate() {
    for (trust, count) in [(Trust::Listed, 2), (Trust::Active, 1)] {
        let mut stage = Stage::new(&format!("trust-{count}"), Token::Nobody, trust).await;
        let (former, root) = (Authority::new("former").unwrap(), Authority::new("root").unwrap());
        stage.consul.list(5, &[&former]);
        stage.consul.give([issued(&former, "1", 3600)]);
        stage.step().await.1.unwrap();
        stage.consul.list(6, &[&former, &root]);
        // None of the new root yet, then one.
        stage.consul.give([issued(&former, "2", 3600), issued(&root, "3", 3600)]);
        let (published, done) = stage.step().await;
        assert!(done.is_err());
        assert_eq!((published[0].roots, &*published[0].serial), (count, "1"));
        assert_eq!(stage.live("ca.pem").matches("BEGIN").count(), count);
        assert_eq!(
            stage.live("ca.pem").contains(former.certificate.trim()),
            trust == Trust::Listed
        );
        let (published, done) = stage.step().await;
        done.unwrap();
        assert_eq!((published[0].roots, &*published[0].serial), (count, "3"));
    }
}

#[tokio::test]
async fn a_fresh_certificate_is_had_past_consul_s_cache() {
    let (former, root) = (Authority::new("former").unwrap(), Authority::new("root").unwrap());
    let leaf = "/v1/agent/connect/ca/leaf/orders";
    let bearer = std::env::temp_dir().join(format!("agent-bearer-{}", std::process::id()));
    fs::write(&bearer, "a JWT\n").unwrap();
    let login = Token::Login { method: "workloads".to_owned(), bearer: bearer.clone() };
    let nobody = [format!("{leaf} uuid")];
    let logged_in =
        ["/v1/acl/login -".to_owned(), format!("{leaf} uuid"), "/v1/acl/logout uuid".to_owned()];
    // The cache has one of a former root: the second question waits for another.
    let secret = [format!("{leaf} ours"), format!("{leaf}?index=7&wait=15s ours")];
    let cases: [(&str, Token, &[String], Vec<Value>); 3] = [
        ("nobody", Token::Nobody, &nobody, vec![]),
        ("login", login, &logged_in, vec![]),
        ("secret", Token::Secret("secret".to_owned()), &secret, vec![issued(&former, "1", 3600)]),
    ];
    for (name, token, expected, cached) in cases {
        let mut stage = Stage::new(name, token, Trust::Listed).await;
        stage.consul.list(5, &[&former, &root]);
        stage.consul.give(cached.into_iter().chain([issued(&root, "2", 3600)]));
        let (published, done) = stage.step().await;
        done.unwrap();
        assert_eq!(published[0].serial, "2", "{name}");
        let asked = stage.consul.asked();
        assert!(asked[0].starts_with("/v1/connect/ca/roots "), "{asked:?}");
        assert_eq!(&asked[1..], expected, "{name}");
    }
    fs::remove_file(bearer).unwrap();
}

#[tokio::test]
async fn indexes_of_another_consul_do_not_blind_the_agent() {
    let mut stage = Stage::new("index", Token::Nobody, Trust::Listed).await;
    let root = Authority::new("root").unwrap();
    stage.consul.give([issued(&root, "1", 3600)]);
    let mut asked = Vec::new();
    for index in [900, 900, 12, 12, 0, 0] {
        stage.consul.list(index, &[&root]);
        stage.step().await.1.unwrap();
        let question = stage.consul.asked().remove(0);
        asked.push(question.split("&wait").next().unwrap().replace("/v1/connect/ca/roots", ""));
    }
    // After a lower one the next question does not wait, and one without an index is not asked with 0.
    assert_eq!(asked, [" -", "?index=900", "?index=900", " -", "?index=12", " -"]);
}

#[test]
fn a_certificate_is_renewed_at_three_fifths_of_its_life() {
    let at = UnixTime::from_secs;
    // Consul dates back by a minute, whatever the lifetime is.
    for (since, until, now, expected) in [
        (940, 4600, 1000, 1000 + 2160),
        (940, 1006, 1000, 1003),
        // Somebody else's clock, and one that was handed out late.
        (1000, 4600, 1000, 1000 + 2160),
        (0, 3660, 3000, 60 + 2160),
    ] {
        let renewed = renewal(at(since), at(until), at(now)).as_millis() / 1000;
        assert_eq!(renewed, expected, "{since} {until} {now}");
    }
}

#[test]
fn a_pause_is_shortened_by_half_at_most_and_a_secret_is_not_shown() {
    for _ in 0..100 {
        let pause = jittered(Duration::from_secs(10));
        assert!((Duration::from_secs(5)..=Duration::from_secs(10)).contains(&pause), "{pause:?}");
    }
    let shown = format!("{:?}", Token::Secret("0abe9a65".to_owned()));
    assert_eq!(shown, "Secret(…)");
}

#[test]
fn a_name_that_is_no_service_s_is_refused_before_consul_is_asked() {
    for name in ["", "orders/../x", "orders?x", "a b"] {
        let options = Options {
            consul: SocketAddr::from(([127, 0, 0, 1], 1)),
            service: name.to_owned(),
            directory: std::env::temp_dir().join("agent-never-made"),
            token: Token::Nobody,
            trust: Trust::Listed,
        };
        let error = Keeper::new(options).err().unwrap().to_string();
        assert!(error.ends_with("is not a service's name"), "{error}");
    }
}
