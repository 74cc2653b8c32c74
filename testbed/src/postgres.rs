//! `PostgreSQL` for Airflow: the one of the machine, with its files in the run's folder, on a free loopback port.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use crate::error::{Context as _, Error, Result};
use crate::identity::secret;
use crate::process::{Process, free_port};

/// The database's owner.
const USER: &str = "airflow";
/// How long it may take to make a database, or to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running `PostgreSQL`.
pub struct Postgres {
    address: SocketAddr,
    password: String,
    folder: PathBuf,
    process: Process,
}

/// The folder with `initdb` and `postgres`: `POSTGRES_BIN`, or where Debian puts it.
///
/// # Errors
/// If there is none.
pub fn programs() -> Result<PathBuf> {
    let named = std::env::var_os("POSTGRES_BIN").map(PathBuf::from);
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<_> = versions.map(|version| version.path().join("bin")).collect();
    // The newest first; there will not be a version of three digits before a version of four.
    found.sort_by_key(|folder| std::cmp::Reverse(folder.clone()));
    named
        .into_iter()
        .chain(found)
        .find(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file())
        .ok_or_else(|| {
            Error::new("PostgreSQL is missing: install the package postgresql, or set POSTGRES_BIN")
        })
}

/// Why `PostgreSQL` cannot serve Airflow here; `None` if it can.
pub fn absence() -> Option<String> {
    let driver = crate::airflow::folder(crate::airflow::VERSION).join("postgres.stamp");
    if !driver.exists() {
        return Some(
            "Airflow has no driver for PostgreSQL: `scripts/testbed install --airflow`".to_owned(),
        );
    }
    programs().err().map(|error| error.to_string())
}

impl Postgres {
    /// Makes an empty database and serves it; it lies in a folder of its own beside `directory`'s other files.
    ///
    /// # Errors
    /// If there is no `PostgreSQL`, or it does not come up.
    pub(crate) async fn start(directory: &Path, threads: Handle) -> Result<Self> {
        let folder = directory.join("postgres");
        let log = directory.join("postgres.log");
        let starting = move || {
            let programs = programs()?;
            let user = Unprivileged::here(directory_of(&folder))?;
            let _: Result<(), _> = fs::remove_dir_all(&folder);
            fs::create_dir_all(&folder).context(folder.display())?;
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).context("a folder")?;
            let password = secret();
            let password_file = folder.join("password");
            crate::write_private(&password_file, &password)?;
            if let Some(user) = &user {
                for path in [&folder, &password_file] {
                    chown(path, Some(user.user), Some(user.group)).context(path.display())?;
                }
            }
            let data = folder.join("data");
            let mut make = Command::new("timeout");
            make.args(["--signal=KILL", &PATIENCE.as_secs().to_string()])
                .arg(programs.join("initdb"))
                .arg("--pgdata")
                .arg(&data)
                .arg(format!("--username={USER}"))
                .arg("--pwfile")
                .arg(&password_file)
                .args(["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"])
                .current_dir(&folder)
                .stdin(Stdio::null());
            become_user(&mut make, user.as_ref());
            let made = make.output().context("initdb")?;
            if !made.status.success() {
                let said = String::from_utf8_lossy(&made.stderr).into_owned();
                return Err(Error::new(format!("initdb: {} {said}", made.status)));
            }
            let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
            let process =
                Process::start("PostgreSQL", &programs.join("postgres"), &log, |command| {
                    command.arg("-D").arg(&data).args(["-h", "127.0.0.1", "-p"]);
                    command
                        .arg(address.port().to_string())
                        .args(["-c", "unix_socket_directories="]);
                    // Nothing of it outlives the run.
                    command.args(["-c", "fsync=off", "-c", "full_page_writes=off"]);
                    command.current_dir(&folder);
                    become_user(command, user.as_ref());
                })?;
            Ok::<_, Error>(Self { address, password, folder, process })
        };
        // Blocking: on a thread that stays, as a child ends with the one that started it.
        let mut started = threads.spawn(async move { starting() }).await.context("a thread")??;
        let deadline = Instant::now() + PATIENCE;
        while !started.accepts() {
            if !started.process.is_running() || Instant::now() > deadline {
                return Err(started.process.failed("does not get ready"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(started)
    }

    /// The URL of its database, as `SQLAlchemy` reads it.
    pub fn url(&self) -> String {
        let Self { address, password, .. } = self;
        format!("postgresql+psycopg2://{USER}:{password}@{address}/postgres")
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether it has said that it is ready, and listens.
    fn accepts(&self) -> bool {
        let said = fs::read_to_string(self.process.log()).unwrap_or_default();
        said.contains("ready to accept connections") && TcpStream::connect(self.address).is_ok()
    }
}

/// Who it runs as: `PostgreSQL` refuses to be run by root.
struct Unprivileged {
    user: u32,
    group: u32,
}

impl Unprivileged {
    /// `None` where we are not root. Of the users of every system, one that can reach `folder`.
    fn here(folder: &Path) -> Result<Option<Self>> {
        if fs::metadata("/proc/self").context("/proc/self")?.uid() != 0 {
            return Ok(None);
        }
        let closed = folder
            .ancestors()
            .find(|ancestor| fs::metadata(ancestor).is_ok_and(|known| known.mode() & 1 == 0));
        if let Some(closed) = closed {
            let closed = closed.display();
            return Err(Error::new(format!(
                "PostgreSQL does not run as root, and nobody else may enter {closed}"
            )));
        }
        let users = fs::read_to_string("/etc/passwd").context("/etc/passwd")?;
        let known = |name: &str| {
            let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
            let mut fields = line.split(':').skip(2).map(str::parse::<u32>);
            Some(Self { user: fields.next()?.ok()?, group: fields.next()?.ok()? })
        };
        let user = known("postgres").or_else(|| known("nobody"));
        user.map(Some).context("a user `postgres` or `nobody`")
    }
}

fn directory_of(folder: &Path) -> &Path {
    folder.parent().unwrap_or(folder)
}

fn become_user(command: &mut Command, user: Option<&Unprivileged>) {
    if let Some(user) = user {
        command.uid(user.user).gid(user.group);
    }
}
