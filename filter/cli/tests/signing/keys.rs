//! `airflow-envoy keys`.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::program::Folder;

#[test]
fn a_new_key_is_private_to_its_owner_and_only_its_public_half_is_told() {
    let folder = Folder::new();
    for (alg, kty) in [("EdDSA", "OKP"), ("ES256", "EC")] {
        let ended = folder.run(&format!("keys new --alg {alg} --out {alg}.json")).with(0);
        let public = ended.json();
        let private: Value = serde_json::from_str(&folder.text(&format!("{alg}.json"))).unwrap();
        assert_eq!((&public["kty"], &public["alg"]), (&kty.into(), &alg.into()));
        assert_eq!(public.get("d"), None);
        assert!(!ended.out.contains(private["d"].as_str().unwrap()));
        let mode = folder.0.join(format!("{alg}.json")).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let shown = folder.run(&format!("keys show {alg}.json --json")).with(0);
        let key = &shown.json()["keys"][0];
        assert_eq!((&key["kid"], &key["private"]), (&public["kid"], &true.into()));
        assert_eq!(key["thumbprint"], public["kid"], "the kid is the thumbprint");
        assert_eq!(shown.err, "");
    }
    let set = folder.run("keys public EdDSA.json ES256.json EdDSA.json").with(0);
    assert_eq!(set.json()["keys"].as_array().unwrap().len(), 2);
    assert!(!set.out.contains("\"d\""));
    // What it prints it also reads.
    folder.file("set.json", &set.out);
    let list = folder.run("keys public set.json --list").with(0).json();
    assert_eq!(list, set.json()["keys"]);
}

#[test]
fn a_key_is_never_overwritten() {
    let folder = Folder::new();
    folder.run("keys new --out k.json --kid mine").with(0);
    let before = folder.text("k.json");
    let ended = folder.run("keys new --out k.json").with(3);
    assert_eq!(ended.err, "airflow-envoy: k.json is there already: a key is never overwritten\n");
    assert_eq!((ended.out.as_str(), folder.text("k.json")), ("", before));
    assert_eq!(folder.run("keys show k.json --json").json()["keys"][0]["kid"], "mine");
}

#[test]
fn a_private_key_can_go_to_another_program() {
    let folder = Folder::new();
    let private = folder.run("keys new --out - --kid mine").with(0).out;
    assert_eq!(private.lines().count(), 1);
    let shown = folder.run_with(&["keys", "show", "-", "--json"], &private).with(0).json();
    assert_eq!(
        (&shown["keys"][0]["kid"], &shown["keys"][0]["private"]),
        (&"mine".into(), &true.into())
    );
    assert!(!folder.0.join("-").exists());
}

#[test]
fn a_key_that_others_can_read_is_told() {
    let folder = Folder::new();
    folder.run("keys new --out k.json").with(0);
    let file = folder.0.join("k.json");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
    let warning =
        "warning: k.json can be read or written by others than its owner: chmod 600 k.json\n";
    assert_eq!(folder.run("keys show k.json").with(0).err, warning);
    folder.file("p.json", r#"{"version": 1, "revision": 1, "rules": []}"#);
    assert_eq!(folder.run("sign p.json --key k.json").with(0).err, warning);
}

#[test]
fn what_is_no_key_is_an_input_that_cannot_be_read() {
    let folder = Folder::new();
    folder
        .file("empty.json", r#"{"keys": []}"#)
        .file("set.json", r#"{"keys": [{"kty": "oct", "k": "AA"}]}"#)
        .file("twice.json", r#"{"kty": "OKP", "kty": "EC"}"#)
        .file("key.pem", "-----BEGIN PUBLIC KEY-----");
    for (file, problem) in [
        ("empty.json", "has no keys"),
        ("set.json", "keys[0]: a symmetric key"),
        ("twice.json", "kty"),
        ("key.pem", "is PEM; a JWK (JSON) is needed"),
        ("none.json", "No such file"),
    ] {
        let ended = folder.run(&format!("keys public {file}")).with(3);
        let told = ended.err.strip_prefix(&format!("airflow-envoy: {file}: ")).unwrap();
        assert!(told.contains(problem), "{told}");
    }
}
