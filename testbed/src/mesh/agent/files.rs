//! The files: a folder for each generation, and a link to the one in use.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::Path;

use serde_json::json;

use super::answer::Issued;
use super::{GENERATION, LIVE, Published};
use crate::error::{Context as _, Result};
use crate::write_private;

/// Writes a generation and lets `live` lead to it.
pub(super) fn publish(
    directory: &Path,
    news: &Published,
    leaf: &Issued,
    trusted: &[String],
) -> Result<()> {
    let name = format!("{GENERATION}{}", news.generation);
    let folder = directory.join(&name);
    fs::DirBuilder::new().mode(0o700).create(&folder).context(folder.display())?;
    let about = json!({
        "spiffe_id": news.spiffe_id,
        "serial": news.serial,
        "expires": news.expires.to_string(),
        "renewed_at": leaf.renew_at.to_string(),
        "active_root": news.root,
        "roots": news.roots,
    });
    write_private(&folder.join("cert.pem"), &leaf.chain)?;
    write_private(&folder.join("key.pem"), &leaf.key)?;
    write_private(&folder.join("ca.pem"), &trusted.concat())?;
    write_private(&folder.join("about.json"), &format!("{about:#}\n"))?;
    describe(directory)?;
    let draft = directory.join(".live");
    let _: Result<(), _> = fs::remove_file(&draft);
    symlink(&name, &draft).context(draft.display())?;
    fs::rename(&draft, directory.join(LIVE)).context("changing over to the new files")?;
    for old in generations(directory) {
        if old.saturating_add(1) < news.generation {
            // One that cannot be removed is removed next time.
            let _: Result<(), _> = fs::remove_dir_all(directory.join(format!("{GENERATION}{old}")));
        }
    }
    Ok(())
}

/// Writes what Envoy is pointed to, if it is not there yet.
fn describe(directory: &Path) -> Result<()> {
    let live = directory.join(LIVE);
    let file = |name: &str| json!({ "filename": live.join(name).display().to_string() });
    let watched = json!({ "path": directory.display().to_string() });
    let secrets = [
        (
            "certificate",
            "tls_certificate",
            json!({
                "certificate_chain": file("cert.pem"),
                "private_key": file("key.pem"),
                "watched_directory": watched,
            }),
        ),
        (
            "roots",
            "validation_context",
            json!({
                "trusted_ca": file("ca.pem"),
                "watched_directory": watched,
            }),
        ),
    ];
    for (name, kind, secret) in secrets {
        let resource = json!({
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            "name": name,
            kind: secret,
        });
        let text = format!("{:#}\n", json!({ "resources": [resource] }));
        let place = directory.join(format!("{name}.json"));
        if fs::read_to_string(&place).is_ok_and(|known| known == text) {
            continue;
        }
        let draft = directory.join(format!(".{name}.json"));
        write_private(&draft, &text)?;
        fs::rename(&draft, &place).context(place.display())?;
    }
    Ok(())
}

/// The numbers of the generations in `directory`.
pub(super) fn generations(directory: &Path) -> Vec<u64> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let number =
        |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix(GENERATION)?.parse().ok();
    entries.filter_map(number).collect()
}
