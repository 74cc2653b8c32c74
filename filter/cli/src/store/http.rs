//! A document behind a URL: GET with its entity tag, PUT if it still has that (RFC 9110 §13.1.1).

use ureq::http::Method;

use super::client::Client;
use super::{Backend, Fault, Held, MOST_BYTES, Version};

/// A bearer token for the store.
const TOKEN: &str = "AIRFLOW_ENVOY_STORE_TOKEN";

#[derive(Debug)]
pub(super) struct HttpStore {
    url: String,
    client: Client,
}

impl HttpStore {
    pub(super) fn new(url: &str) -> Result<Self, String> {
        let token = std::env::var(TOKEN).ok().filter(|token| !token.is_empty());
        let credential = token.map(|token| ("authorization", format!("Bearer {token}")));
        let client = Client::new(url, &[], credential, MOST_BYTES)?;
        Ok(Self { url: url.to_owned(), client })
    }
}

impl Backend for HttpStore {
    fn read(&self) -> Result<Held, Fault> {
        // A cache on the way would give an old one, and every change of it were lost.
        let fresh = [("accept", "application/json"), ("cache-control", "no-cache")];
        let answer = self.client.send(Method::GET, &self.url, &fresh, &[])?;
        let tag = answer.headers.get("etag").and_then(|tag| tag.to_str().ok());
        let version = match (answer.status, tag) {
            (404, _) => return Ok(Held { document: None, version: Version::Absent }),
            // A weak one never matches (RFC 9110 §8.8.3.2).
            (200, Some(tag)) if !tag.starts_with("W/") => Version::Tag(tag.to_owned()),
            (200, _) => Version::Unknown(
                "answers without a strong ETag, so that a change could overwrite another one"
                    .to_owned(),
            ),
            _ => return Err(answer.unexpected()),
        };
        Ok(Held { document: Some(answer.body), version })
    }

    fn replace(&self, version: &Version, document: &[u8]) -> Result<bool, Fault> {
        let condition = match version {
            Version::Tag(tag) => ("if-match", tag.as_str()),
            _ => ("if-none-match", "*"),
        };
        let headers = [("content-type", "application/json"), condition];
        let answer = self.client.send(Method::PUT, &self.url, &headers, document)?;
        match answer.status {
            200..=299 => Ok(true),
            // 409: some stores say so when two PUTs meet.
            409 | 412 => Ok(false),
            428 => Err(Fault::lasting("answers 428: it did not understand the condition")),
            _ => Err(answer.unexpected()),
        }
    }
}
