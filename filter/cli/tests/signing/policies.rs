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

#[test]
fn a_bundle_is_the_same_however_the_policy_is_cut() {
    let folder = folder();
    let rules = [
        "  - {id: b, effect: allow, to: [orders], methods: [GET]}\n",
        "  - {id: a, effect: deny, to: [orders], paths: [/x]}\n",
    ];
    let head = "version: 1\ndestinations:\n  orders: {hosts: [orders]}\nrules:\n";
    folder.file("one.yaml", &format!("{head}{}{}", rules[0], rules[1]));
    folder.file("two.yaml", &format!("# the other way round\n{head}{}", rules[1]));
    folder.file("three.yaml", &format!("version: 1\nrules:\n{}", rules[0]));
    let whole = folder.run("bundle one.yaml").with(0).out;
    assert_eq!(folder.run("bundle two.yaml three.yaml").with(0).out, whole);
    folder.file("served.json", &whole);
    assert_eq!(folder.run("bundle served.json").with(0).out, whole);
    folder.run("check served.json").with(0);
    assert_eq!(folder.run("diff one.yaml served.json").with(0).err, "");

    let told = folder.run("bundle one.yaml --revision 7 --out b.json").with(0).err;
    let digest = std::process::Command::new("sha256sum").arg(folder.0.join("b.json")).output();
    let digest = String::from_utf8(digest.unwrap().stdout).unwrap();
    let digest = digest.split_whitespace().next().unwrap();
    assert_eq!(told, format!("revision 7, 2 rules, digest {digest}\n"));
}

#[test]
fn a_bundle_with_a_key_is_a_signed_policy() {
    let folder = folder();
    folder.run("bundle policy.yaml --key k.json").with(3);
    folder.run("bundle policy.yaml --key k.json --revision 7 --output p.jws").with(0);
    let verified = folder.run("verify p.jws --keys keys.json --json").with(0).json();
    assert_eq!((&verified["revision"], &verified["rules"]), (&7.into(), &1.into()));
    folder.run("bundle policy.yaml --key k.json --revision-after p.jws -o q.jws").with(0);
    folder.run("verify q.jws --keys keys.json --after p.jws").with(0);
}
