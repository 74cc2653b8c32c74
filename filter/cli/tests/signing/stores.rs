//! Stores: no change gets lost, and nothing is overwritten that is not understood.

use std::sync::Barrier;

use airflow_envoy_cli::granting::add;
use airflow_envoy_cli::store::{Change, Store};
use airflow_envoy_core::time::UnixTime;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::program::Folder;
use crate::server::{Mishap, Server};

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

/// A message that looks like a grant; nothing here verifies it.
fn message(id: &str, exp: i64) -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = part(json!({ "alg": "EdDSA", "kid": "k", "typ": "airflow-grant+jws" }));
    format!("{header}.{}.AAAA", part(json!({ "id": id, "exp": exp })))
}

fn put(store: &str, id: &str) -> Result<(), String> {
    let message = message(id, NOW.as_secs() + 60);
    Store::at(store).unwrap().update(|found| add(found, id, &message, NOW))
}

fn count(document: &str) -> usize {
    let document: Value = serde_json::from_str(document).unwrap();
    document["grants"].as_array().unwrap().len()
}

/// Eight writers at once, each with several grants.
fn race(store: &str) {
    let start = Barrier::new(8);
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                for number in 0..3 {
                    put(store, &format!("g-{writer}-{number}")).unwrap();
                }
            });
        }
    });
}

#[test]
fn eight_writers_lose_no_grant() {
    let folder = Folder::new();
    let file = folder.0.join("grants.json");
    race(file.to_str().unwrap());
    assert_eq!(count(&folder.text("grants.json")), 24);

    let (object, consul) = (Server::start(None), Server::start(None));
    for (server, url) in [(&object, object.http()), (&consul, consul.consul())] {
        race(&url);
        assert_eq!(count(&server.document().unwrap()), 24, "{url}");
        // Otherwise nobody met anybody.
        assert!(server.kept(|kept| kept.lost) > 0, "{url}");
    }
}

#[test]
fn what_passes_is_tried_again_and_a_change_is_made_once() {
    for mishaps in [
        vec![("GET", Mishap::Status(503)), ("PUT", Mishap::Status(500))],
        vec![("PUT", Mishap::HangUp)],
        vec![("GET", Mishap::HangUp), ("PUT", Mishap::Status(429))],
    ] {
        let (object, consul) = (Server::start(None), Server::start(None));
        for (server, url) in [(&object, object.http()), (&consul, consul.consul())] {
            server.kept(|kept| kept.mishaps = mishaps.clone());
            put(&url, "g").unwrap();
            assert_eq!(count(&server.document().unwrap()), 1, "{mishaps:?}");
            assert!(server.kept(|kept| kept.mishaps.is_empty()));
        }
    }
}

#[test]
fn a_store_that_cannot_be_used_is_told_and_left_as_it_is() {
    let all = |mishap: Mishap| vec![("GET", mishap); 5];
    let changes = |mishap: Mishap| vec![("PUT", mishap); 5];
    for (mishaps, problem) in [
        (all(Mishap::Status(503)), "503: `trouble`"),
        (all(Mishap::Status(403)), "403: access is denied: `trouble`"),
        (all(Mishap::Status(302)), "redirects (302), which is not followed"),
        (all(Mishap::Status(418)), "answers 418: `trouble`"),
        (changes(Mishap::Status(413)), "413: the document is too large for this store"),
        (changes(Mishap::Status(503)), "503: `trouble`; whether it was changed is not known"),
    ] {
        let before = r#"{"version": 1, "grants": []}"#;
        let (object, consul) = (Server::start(Some(before)), Server::start(Some(before)));
        for (server, url) in [(&object, object.http()), (&consul, consul.consul())] {
            server.kept(|kept| kept.mishaps = mishaps.clone());
            assert_eq!(put(&url, "g").unwrap_err(), format!("{url}: {problem}"));
            assert_eq!(server.document().as_deref(), Some(before));
        }
    }
    for mishap in [Mishap::NoTag, Mishap::WeakTag] {
        let server = Server::start(Some(r#"{"version": 1, "grants": []}"#));
        server.kept(|kept| kept.mishaps = vec![("GET", mishap); 5]);
        assert!(put(&server.http(), "g").unwrap_err().contains("without a strong ETag"));
        assert!(Store::at(&server.http()).unwrap().read().unwrap().is_some(), "it can be read");
    }
    let nobody = "http://127.0.0.1:1/grants.json";
    assert!(put(nobody, "g").unwrap_err().starts_with(nobody));
}

#[test]
fn garbage_is_never_overwritten() {
    let folder = Folder::new();
    let file = folder.0.join("grants.json");
    for garbage in [
        "",
        "null",
        "{}",
        "<html>login</html>",
        r#"{"version": 2, "grants": []}"#,
        r#"{"version": 1, "grants": [], "more": 1}"#,
        r#"{"version": 1, "version": 1, "grants": []}"#,
        r#"{"version": 1, "grants": {}}"#,
    ] {
        let (object, consul) = (Server::start(Some(garbage)), Server::start(Some(garbage)));
        folder.file("grants.json", garbage);
        for url in [object.http(), consul.consul(), file.to_str().unwrap().to_owned()] {
            let problem = put(&url, "g").unwrap_err();
            assert!(problem.contains("is no document of grants, and is left alone"), "{problem}");
        }
        assert_eq!(object.document().as_deref(), Some(garbage));
        assert_eq!(consul.document().as_deref(), Some(garbage));
        assert_eq!(folder.text("grants.json"), garbage);
    }
}

#[test]
fn ended_grants_go_and_what_cannot_be_read_stays() {
    let now = NOW.as_secs();
    let old = json!({ "version": 1, "grants": [
        message("ended", now - 3600), message("just-ended", now - 30), "not a JWS", 7,
        message("lives", now + 1),
    ]});
    let server = Server::start(Some(&old.to_string()));
    put(&server.http(), "new").unwrap();
    let new: Value = serde_json::from_str(&server.document().unwrap()).unwrap();
    let expected = json!([
        message("just-ended", now - 30),
        "not a JWS",
        7,
        message("lives", now + 1),
        message("new", now + 60),
    ]);
    assert_eq!(new["grants"], expected);
    assert_eq!(put(&server.http(), "new"), Ok(()), "the same once more");
    let other = message("new", now + 90);
    let taken = Store::at(&server.http()).unwrap().update(|found| add(found, "new", &other, NOW));
    assert_eq!(taken.unwrap_err(), "there is a grant `new` already");
}

#[test]
fn a_document_holds_as_many_grants_as_the_filter_reads() {
    let full: Vec<_> = (0..1000).map(|number| message(&format!("g{number}"), i64::MAX)).collect();
    let full = json!({ "version": 1, "grants": full }).to_string();
    let server = Server::start(Some(&full));
    let problem = put(&server.http(), "one-more").unwrap_err();
    assert!(problem.contains("1001 grants are more than the 1000"), "{problem}");
    assert_eq!(server.document(), Some(full));
}

#[test]
fn a_file_keeps_its_mode_and_its_link_and_leaves_nothing_behind() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = Folder::new();
    folder.file("real.json", r#"{"version": 1, "grants": []}"#);
    let real = folder.0.join("real.json");
    std::fs::set_permissions(&real, PermissionsExt::from_mode(0o640)).unwrap();
    let link = folder.0.join("link.json");
    symlink(&real, &link).unwrap();
    put(&format!("file://{}", link.display()), "g").unwrap();
    assert_eq!(count(&folder.text("real.json")), 1);
    assert!(link.symlink_metadata().unwrap().is_symlink());
    assert_eq!(real.metadata().unwrap().permissions().mode() & 0o777, 0o640);
    let mut names: Vec<_> =
        folder.0.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [".real.json.lock", "link.json", "real.json"]);
    // A change that fails leaves the old one.
    let store = Store::at(real.to_str().unwrap()).unwrap();
    let failed = store.update::<(), String>(|_| Err("no".to_owned()));
    assert_eq!(failed, Err("no".to_owned()));
    let kept = store.update::<_, String>(|_| Ok(Change::Keep(1)));
    assert_eq!((kept, count(&folder.text("real.json"))), (Ok(1), 1));
}

#[test]
fn a_url_that_is_no_store_is_told_without_its_secrets() {
    for (url, problem) in [
        ("", "the store has no name"),
        (
            "redis://x/y",
            "a store of the kind `redis` is not known; known are a path, `consul://`, `http://` and `https://`",
        ),
        (
            "http://ada:secret@x/y",
            "the store's URL has a user or a password: they belong into the environment",
        ),
        ("consul://x:1", "consul://x:1: names no key: consul://host:port/key"),
        (
            "consul://x:1/k?token=secret",
            "consul://x:1/k: only `dc`, `ns` and `partition` may follow the key",
        ),
        ("http:///x?sig=secret", "http:///x: is not a URL"),
    ] {
        assert_eq!(Store::at(url).unwrap_err(), problem);
    }
}
