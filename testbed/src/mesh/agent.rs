//! The certificate agent: keeps the certificate of one service of a Consul mesh, and the roots that its peers are
//! checked against, in files that Envoy watches.
//!
//! ```text
//! <directory>/certificate.json     what Envoy's `tls_certificate_sds_secret_configs` reads: the files, and where to watch
//! <directory>/roots.json           what its `validation_context_sds_secret_config` reads
//! <directory>/live -> generation-7
//! <directory>/generation-7/        cert.pem, key.pem, ca.pem, about.json
//! ```
//!
//! A new generation is a new folder; `live` changes over to it by rename(2). So whoever reads through `live` never sees
//! a certificate without its key, and Envoy, which watches `<directory>`, reads all of it anew. The former generation
//! stays until the next one, for those who are reading it; older ones are removed.
//!
//! Consul's roots are long-polled. A certificate is asked for at the start, when another root became the active one, and
//! at 60 % of its lifetime. What Consul answers is judged before it is used: Consul 1.8 returns certificates from its
//! agent's cache that have expired, or were signed by a root of the past (see [`Token`]). Whatever goes wrong,
//! the last good generation stays, and the agent goes on trying, more and more slowly, at least twice a minute.
//!
//! What it is not: a judge of peers. Envoy is, by these files, and the trust domain stands in Envoy's configuration.

mod answer;
mod files;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use airflow_envoy_core::time::UnixTime;
use p256::elliptic_curve::rand_core::{OsRng, RngCore as _};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use self::answer::{Issued, Listed, index, listed, now, read_leaf, text};
use self::files::{generations, publish};
use crate::client::Answer;
use crate::consul::Client;
use crate::error::{Context as _, Error, Result};
use crate::mesh::client::Leaf;

/// The longest time that one question to Consul stays open: well below what [`Client`] waits for an answer.
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// The link to the generation in use.
const LIVE: &str = "live";
/// What the names of generations begin with.
const GENERATION: &str = "generation-";
/// The first pause after a failure, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(30)];
/// The least time between two questions to Consul, whatever it answers.
const LEAST_PAUSE: Duration = Duration::from_millis(100);
/// How long [`Agent::start`] waits for the first certificate.
const PATIENCE: Duration = Duration::from_secs(10);

/// What an agent is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where Consul's HTTP interface listens.
    pub consul: SocketAddr,
    /// The service whose certificate it is.
    pub service: String,
    /// Where its files go. Only its owner may read them.
    pub directory: PathBuf,
    /// How Consul knows who asks.
    pub token: Token,
    /// Which roots peers are checked against.
    pub trust: Trust,
}

/// How Consul knows who asks for a certificate, and so how a fresh one is had.
///
/// Consul's local agent keeps certificates in a cache, whose key has the caller's token in it. Version 1.8 answers from it
/// whatever it has, also what has expired, or was signed by a root of the past; later versions do not. No header and no
/// parameter goes around it, but a token that was not there before does.
#[derive(Clone)]
pub enum Token {
    /// Consul has no access control. Each question has a token of its own, which nobody knows: nothing is cached under it.
    Nobody,
    /// Each question has a token of its own, by a login, which is followed by a logout. Good for every version, and there is
    /// no lasting secret.
    Login {
        /// The name of Consul's auth method.
        method: String,
        /// The file with the JWT that the platform gives the workload; read for each login.
        bearer: PathBuf,
    },
    /// The secret id of a token that has `service:write` for the service. Where the cache's answer will not do, the agent
    /// asks for a newer one with `index` and waits. Consul 1.8 then renews between 60 and 90 % of the lifetime, and after a
    /// change of the root within half a minute the first time, and within eleven minutes from the second time on.
    Secret(String),
}

impl std::fmt::Debug for Token {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Nobody => "Nobody",
            Self::Login { .. } => "Login(…)",
            Self::Secret(_) => "Secret(…)",
        })
    }
}

/// Which roots peers are checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Trust {
    /// All that Consul lists: after a change of the root, the certificates of the former one stay good until they expire or
    /// Consul drops the root, which takes it twice their lifetime.
    Listed,
    /// Only the active one: a change of the root refuses every certificate of the former one at once, which is how a stolen key
    /// is revoked. A peer that is slow to renew its own is refused until it has.
    Active,
}

/// What an agent has published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The number of the generation.
    pub generation: u64,
    /// The service's SPIFFE ID.
    pub spiffe_id: String,
    /// The certificate's serial number, as Consul writes it.
    pub serial: String,
    /// When the certificate expires.
    pub expires: UnixTime,
    /// Consul's id of the active root.
    pub root: String,
    /// How many roots peers are checked against.
    pub roots: usize,
}

/// A running agent. It ends when this is dropped; its files stay.
#[derive(Debug)]
pub struct Agent {
    directory: PathBuf,
    published: watch::Receiver<Published>,
    task: AbortHandle,
}

impl Agent {
    /// Starts an agent on the current runtime and returns when it has published a certificate.
    ///
    /// # Errors
    /// If the folder cannot be used, another agent has it, or there is no certificate within ten seconds; the fault says
    /// why.
    pub async fn start(options: Options) -> Result<Self> {
        let mut keeper = Keeper::new(options)?;
        let directory = keeper.options.directory.clone();
        let begun = Instant::now();
        let mut first = None;
        while first.is_none() {
            match keeper.step(&mut |published| first = Some(published)).await {
                Ok(()) => {}
                Err(error) if first.is_none() && begun.elapsed() > PATIENCE => return Err(error),
                Err(_) => tokio::time::sleep(LEAST_PAUSE).await,
            }
        }
        let (sender, published) = watch::channel(first.context("a certificate")?);
        let task = tokio::spawn(async move {
            keeper
                .keep(&mut |news| {
                    if let Ok(published) = news {
                        sender.send_replace(published);
                    }
                })
                .await;
        });
        Ok(Self { directory, published, task: task.abort_handle() })
    }

    /// What it published last.
    pub fn published(&self) -> Published {
        self.published.borrow().clone()
    }

    /// The certificate and the trusted roots (PEM) in its files: of one generation.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn files(&self) -> Result<(Leaf, String)> {
        let live = fs::canonicalize(self.directory.join(LIVE)).context("the live generation")?;
        let read = |name: &str| {
            let place = live.join(name);
            fs::read_to_string(&place).context(place.display())
        };
        let about: Value = serde_json::from_str(&read("about.json")?).context("about.json")?;
        let leaf = Leaf {
            certificate: read("cert.pem")?,
            key: read("key.pem")?,
            uri: text(&about, "spiffe_id")?,
            valid_before: text(&about, "expires")?,
        };
        Ok((leaf, read("ca.pem")?))
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Runs an agent for as long as this process lives, and hands `report` a sentence for each thing that happens.
///
/// # Errors
/// If the folder cannot be used, or another agent has it.
pub async fn run(options: Options, mut report: impl FnMut(String) + Send) -> Result<()> {
    let mut keeper = Keeper::new(options)?;
    keeper
        .keep(&mut |news| {
            report(match news {
                Ok(it) => format!(
                    "generation {}: {} with serial number {}, good until {}; {} trusted",
                    it.generation,
                    it.spiffe_id,
                    it.serial,
                    it.expires,
                    if it.roots == 1 {
                        "1 root is".to_owned()
                    } else {
                        format!("{} roots are", it.roots)
                    },
                ),
                Err(error) => format!("{error}; the files stay as they are"),
            });
        })
        .await;
    Ok(())
}

struct Keeper {
    options: Options,
    consul: Client,
    // Held for as long as this lives: two agents in one folder would remove each other's files.
    _lock: fs::File,
    generation: u64,
    index: u64,
    leaf: Option<Issued>,
    /// Whether the certificate is in the files.
    published: bool,
    /// The roots of the last generation.
    trusted: Vec<String>,
}

impl Keeper {
    fn new(options: Options) -> Result<Self> {
        let name = &options.service;
        if name.is_empty()
            || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        {
            return Err(Error::new(format!("`{name}` is not a service's name")));
        }
        let folder = &options.directory;
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.context(folder.display())?;
        // In files that Envoy reads a path is absolute, or one from where Envoy was started.
        let directory = fs::canonicalize(folder).context(folder.display())?;
        let mode = fs::metadata(&directory).context(directory.display())?.permissions().mode();
        if mode & 0o022 != 0 {
            let place = directory.display();
            return Err(Error::new(format!("others than its owner may write to {place}")));
        }
        let place = directory.join("lock");
        let lock = fs::File::options().write(true).create(true).truncate(false).open(&place);
        let lock = lock.context(place.display())?;
        let taken = |_| Error::new(format!("another agent keeps {}", directory.display()));
        lock.try_lock().map_err(taken)?;
        let generation = generations(&directory).into_iter().max().unwrap_or(0);
        let token = match &options.token {
            Token::Nobody | Token::Login { .. } => None,
            Token::Secret(token) => Some(token.clone()),
        };
        Ok(Self {
            consul: Client::new(options.consul, token),
            options: Options { directory, ..options },
            _lock: lock,
            generation,
            index: 0,
            leaf: None,
            published: false,
            trusted: Vec::new(),
        })
    }

    /// Never returns.
    async fn keep(&mut self, report: &mut (dyn FnMut(Result<Published>) + Send)) {
        let [shortest, longest] = PAUSES;
        let mut pause = shortest;
        loop {
            let begun = Instant::now();
            match self.step(&mut |published| report(Ok(published))).await {
                Ok(()) => {
                    pause = shortest;
                    // A question that should wait and does not would be asked again at once.
                    tokio::time::sleep(LEAST_PAUSE.saturating_sub(begun.elapsed())).await;
                }
                Err(error) => {
                    report(Err(error));
                    // It may be another Consul that answers next, whose indexes start low.
                    self.index = 0;
                    tokio::time::sleep(jittered(pause)).await;
                    pause = pause.saturating_mul(2).min(longest);
                }
            }
        }
    }

    /// Waits for something to do, does it, and tells what it published, if it did.
    async fn step(&mut self, report: &mut (dyn FnMut(Published) + Send)) -> Result<()> {
        let listed = self.roots().await?;
        // Indexes of another Consul start low, and one that is ahead of Consul's would wait in vain.
        self.index = if listed.index < self.index { 0 } else { listed.index.max(1) };
        let due = self
            .leaf
            .as_ref()
            .is_none_or(|leaf| leaf.root != listed.active || leaf.renew_at <= now());
        let issued = if due { Some(self.issue(&listed).await) } else { None };
        let mut trouble = None;
        match issued {
            Some(Ok(leaf)) => {
                self.leaf = Some(leaf);
                self.published = false;
            }
            Some(Err(error)) => trouble = Some(error),
            None => {}
        }
        let Some(leaf) = &self.leaf else {
            return Err(trouble.unwrap_or_else(|| Error::new("no certificate")));
        };
        // Whom to trust does not wait for the own certificate.
        if !self.published || listed.trusted != self.trusted {
            self.generation = self.generation.saturating_add(1);
            let news = Published {
                generation: self.generation,
                spiffe_id: leaf.spiffe_id.clone(),
                serial: leaf.serial.clone(),
                expires: leaf.expires,
                root: listed.active.clone(),
                roots: listed.trusted.len(),
            };
            publish(&self.options.directory, &news, leaf, &listed.trusted)?;
            self.trusted = listed.trusted;
            self.published = true;
            report(news);
        }
        match trouble {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Consul's roots: at once, or when they change or the certificate is to be renewed.
    async fn roots(&self) -> Result<Listed> {
        let mut path = String::from("/v1/connect/ca/roots");
        if let Some(leaf) = self.leaf.as_ref().filter(|_| self.index > 0) {
            let left = leaf.renew_at.since(now()).as_millis();
            let left = Duration::from_millis(u64::try_from(left).unwrap_or(0).max(1));
            path += &format!("?index={}&wait={}ms", self.index, left.min(LONGEST_WAIT).as_millis());
        }
        let answer = self.ask(&self.consul, &path).await.context("Consul's roots")?;
        listed(&answer, self.options.trust).context("Consul's roots")
    }

    /// A certificate of the active root with most of its life before it.
    async fn issue(&self, listed: &Listed) -> Result<Issued> {
        let path = format!("/v1/agent/connect/ca/leaf/{}", self.options.service);
        let leaf = match &self.options.token {
            Token::Nobody => {
                let answer = self.ask(&self.consul.fresh(), &path).await?;
                read_leaf(&answer, &self.options.service, listed)
            }
            Token::Login { method, bearer } => {
                let consul = self.log_in(method, bearer).await?;
                let answer = self.ask(&consul, &path).await;
                // A token that stays ends by itself.
                let _: Result<_> = consul.ask("POST", "/v1/acl/logout", String::new()).await;
                read_leaf(&answer?, &self.options.service, listed)
            }
            Token::Secret(_) => {
                let answer = self.ask(&self.consul, &path).await?;
                match read_leaf(&answer, &self.options.service, listed) {
                    Ok(leaf) if leaf.renew_at > now() => Ok(leaf),
                    _ => {
                        let (index, wait) = (index(&answer), LONGEST_WAIT.as_secs());
                        let path = format!("{path}?index={index}&wait={wait}s");
                        let answer = self.ask(&self.consul, &path).await?;
                        read_leaf(&answer, &self.options.service, listed)
                    }
                }
            }
        };
        let leaf = leaf.context("Consul's certificate")?;
        match &self.leaf {
            Some(known) if known.root == leaf.root && known.serial == leaf.serial => {
                Err(Error::new("Consul's certificate: still the one that is to be renewed"))
            }
            _ => Ok(leaf),
        }
    }

    /// Consul, for somebody who has just logged in.
    async fn log_in(&self, method: &str, bearer: &Path) -> Result<Client> {
        let jwt = fs::read_to_string(bearer).context(bearer.display())?;
        let asked = json!({ "AuthMethod": method, "BearerToken": jwt.trim() }).to_string();
        let token = self.consul.ask("POST", "/v1/acl/login", asked).await.context("logging in")?;
        Ok(Client::new(self.options.consul, Some(text(&token, "SecretID")?)))
    }

    async fn ask(&self, consul: &Client, path: &str) -> Result<Answer> {
        let answer = consul.send("GET", path, String::new()).await?;
        match answer.status {
            200 => Ok(answer),
            status => Err(Error::new(format!("Consul answers {status}: {}", answer.text().trim()))),
        }
    }
}

/// Between half of `pause` and all of it: agents that lost the same Consul do not all come back at once.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + f64::from(OsRng.next_u32()) / f64::from(u32::MAX) / 2.0)
}

#[cfg(test)]
mod tests;
