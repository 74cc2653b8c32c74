//! `airflow-envoy sign` and `verify`.

use serde_json::Value;

use crate::program::Folder;

const POLICY: &str = "version: 1\ndestinations:\n  orders: {hosts: [orders]}\n\
    rules:\n  - {id: reads, effect: allow, to: [orders], methods: [GET]}\n";

fn folder() -> Folder {
    let folder = Folder::new();
    folder.file("policy.yaml", POLICY);
    folder.run("keys new --out k.json --kid policy-2026").with(0);
    folder.run("keys new --alg ES256 --out other.json").with(0);
    let keys = folder.run("keys public k.json").with(0).out;
    folder.file("keys.json", &keys);
    folder
}

#[test]
fn what_is_signed_verifies_and_says_by_whom() {
    let folder = folder();
    for key in ["k.json", "other.json"] {
        folder.run(&format!("sign policy.yaml --key {key} --revision 7 -o p.jws")).with(0);
        let verified = folder.run(&format!("verify p.jws --keys {key} --json")).with(0).json();
        assert_eq!((&verified["revision"], &verified["rules"]), (&7.into(), &1.into()));
        let id = &folder.run(&format!("keys show {key} --json")).json()["keys"][0]["kid"];
        assert_eq!(&verified["key_id"], id);
    }
    let ended = folder.run("verify p.jws --keys keys.json").with(1);
    assert!(
        ended.out.starts_with("p.jws: refused: signed policy: none of the 1 keys has the `kid`"),
        "{}",
        ended.out
    );
    let ended = folder.run("verify p.jws --keys keys.json --keys other.json").with(0);
    assert!(ended.out.ends_with("revision 7, 1 rule\n"), "{}", ended.out);
}

#[test]
fn a_changed_octet_of_a_signed_policy_is_found() {
    let folder = folder();
    let signed = folder.run("sign policy.yaml --key k.json --revision 7").with(0).out;
    let at = |part: usize| signed.match_indices('.').nth(part).unwrap().0 + 5;
    for place in [5, at(0), at(1)] {
        let mut octets = signed.clone().into_bytes();
        octets[place] = if octets[place] == b'A' { b'B' } else { b'A' };
        folder.file("p.jws", std::str::from_utf8(&octets).unwrap());
        let ended = folder.run("verify p.jws --keys keys.json --json").with(1);
        assert_eq!(ended.json()["valid"], false, "{place}");
    }
    folder.file("p.jws", POLICY);
    folder.run("verify p.jws --keys keys.json").with(1);
}

#[test]
fn a_revision_is_needed_and_may_be_the_next() {
    let folder = folder();
    let ended = folder.run("sign policy.yaml --key k.json").with(2);
    assert!(ended.err.contains("names no `revision`"), "{}", ended.err);
    folder.run("sign policy.yaml --key k.json --revision 41 -o a.jws").with(0);
    let told = folder.run("sign policy.yaml --key k.json --revision-after a.jws -o b.jws").with(0);
    assert_eq!(told.err, "revision 42, signed by policy-2026\n");
    folder.run("verify b.jws --keys keys.json --after a.jws").with(0);
    let older = folder.run("verify a.jws --keys keys.json --after b.jws").with(1);
    assert!(older.out.contains("revision 41 is older than revision 42"), "{}", older.out);
    // The policy's own one is taken as it is.
    folder.file("own.json", r#"{"version": 1, "revision": 9, "rules": []}"#);
    folder.run("sign own.json --key k.json -o a.jws").with(0);
    let verified = folder.run("verify a.jws --keys keys.json --json").with(0).json();
    assert_eq!(verified["revision"], Value::from(9));
}

#[test]
fn what_is_no_policy_is_not_signed() {
    let folder = folder();
    folder.file("policy.yaml", &POLICY.replace("methods:", "method:"));
    let ended = folder.run("sign policy.yaml --key k.json --revision 1 -o p.jws").with(3);
    assert!(
        ended.err.contains("policy.yaml:5:") && ended.err.contains("did you mean `methods`"),
        "{}",
        ended.err
    );
    assert!(!folder.0.join("p.jws").exists());
    let public = folder.run("keys public k.json --list").out;
    folder.file("policy.yaml", POLICY).file("public.json", &public);
    let ended = folder.run("sign policy.yaml --key public.json --revision 1").with(3);
    assert_eq!(ended.err, "airflow-envoy: public.json: is not a JWK: not an object\n");
}
