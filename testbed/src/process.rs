//! Child processes that cannot outlive us.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use p256::elliptic_curve::rand_core::{OsRng, RngCore as _};
use tokio::runtime::Handle;

use crate::error::{Context as _, Error, Result};

/// A running child. It is ended when this is dropped, and by the kernel when we die without dropping.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: &'static str,
    log: PathBuf,
}

impl Process {
    /// Starts `program` with what `prepare` adds; its standard error goes to `log`.
    ///
    /// The kernel ends the child with the *thread* that started it, so call this where the thread stays.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(
        name: &'static str,
        program: &Path,
        log: &Path,
        prepare: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        // `setpriv` asks for the parent-death signal between fork and exec; doing so here would need unsafe code.
        let mut command = if cfg!(target_os = "linux") {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        let errors = File::create(log).context(log.display())?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        prepare(&mut command);
        let child = command.spawn().context(format!("starting `{}`", program.display()))?;
        Ok(Self { child, name, log: log.to_owned() })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where its standard error goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The first line that it writes to its standard output, which must be piped; the rest goes to the log.
    ///
    /// # Errors
    /// If it ends or stays silent for `patience`.
    pub fn first_line(&mut self, patience: Duration) -> Result<String> {
        let output = self.child.stdout.take().context("piped output")?;
        let mut log = File::options().append(true).open(&self.log).context(self.log.display())?;
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(output).lines().map_while(Result::ok);
            if let Some(line) = lines.next() {
                let _: Result<(), _> = sender.send(line);
            }
            for line in lines {
                let _: Result<(), _> = writeln!(log, "{line}");
            }
        });
        receiver.recv_timeout(patience).map_err(|_| self.failed("did not say that it is ready"))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The fault that `what` happened, with the end of the log.
    pub fn failed(&self, what: &str) -> Error {
        let log = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<_> = text.lines().collect();
        let last = lines.get(lines.len().saturating_sub(12)..).unwrap_or_default().join("\n  ");
        Error::new(format!("{} {what}; its log ends:\n  {last}", self.name))
    }

    /// Waits up to `patience` for it to end by itself, then ends it.
    pub fn end(&mut self, patience: Duration) {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + patience;
        while self.is_running() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        // One that has ended already is no fault.
        let _: Result<(), _> = self.child.kill();
        let _: Result<_, _> = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

/// A child with children of its own, in whatever process groups: all of its session ends with it, and with us.
///
/// A shell leads the session. The kernel's death signal reaches a child only, and a Python server's workers and tasks
/// would stay; but a dead parent's pipe ends for everybody, so the shell waits for the end of its standard input and
/// then ends every member of its session by its process id.
#[derive(Debug)]
pub struct Session(Process);

/// Runs its arguments until they or its standard input end, then ends its session. Twice: a child may be born meanwhile.
const LEADER: &str = r#"
finish() {
  for again in 1 2; do
    for stat in /proc/[0-9]*/stat; do
      read -r line <"$stat" || continue
      id=${line%% *}
      set -- ${line##*) }
      [ "$4" = $$ ] && [ "$id" != $$ ] && [ "$id" != "$self" ] && kill -KILL "$id"
    done
  done 2>/dev/null
  kill -KILL $$
}
("$@" </dev/null; read -r self rest </proc/self/stat; finish) &
read -r line
finish
"#;

impl Session {
    /// Starts `program` with what `prepare` adds, which may be anything but its standard input; its output goes to `log`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(
        name: &'static str,
        program: &Path,
        log: &Path,
        prepare: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let errors = File::create(log).context(log.display())?;
        let output = errors.try_clone().context(log.display())?;
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", LEADER, "sh"]).arg(program);
        prepare(&mut command);
        command.stdin(Stdio::piped()).stdout(output).stderr(errors);
        let child = command.spawn().context(format!("starting `{}`", program.display()))?;
        Ok(Self(Process { child, name, log: log.to_owned() }))
    }

    /// The id of the session, and of its leader.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.0.is_running()
    }

    /// As [`Process::failed`].
    pub fn failed(&self, what: &str) -> Error {
        self.0.failed(what)
    }

    /// Ends all of it, without a farewell.
    pub fn end(&mut self) {
        // The leader does it as soon as its input ends; reading all of /proc takes a loaded machine a while.
        self.0.end(Duration::from_secs(10));
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end();
    }
}

/// A child that can be stopped and started again, by anybody who sees it.
pub struct Restartable {
    recipe: Arc<dyn Fn() -> Result<Process> + Send + Sync>,
    process: Mutex<Process>,
    // Threads that stay: a child ends with the one that started it.
    threads: Handle,
}

impl Restartable {
    /// Starts what `recipe` starts, on `threads`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub async fn start(
        recipe: impl Fn() -> Result<Process> + Send + Sync + 'static,
        threads: Handle,
    ) -> Result<Self> {
        let recipe: Arc<dyn Fn() -> Result<Process> + Send + Sync> = Arc::new(recipe);
        let process = Mutex::new(run(&recipe, &threads).await?);
        Ok(Self { recipe, process, threads })
    }

    /// Ends it, without a farewell.
    pub fn stop(&self) {
        self.end(Duration::ZERO);
    }

    /// Starts it again.
    ///
    /// # Errors
    /// If it cannot be started.
    pub async fn start_again(&self) -> Result<()> {
        self.stop();
        let process = run(&self.recipe, &self.threads).await?;
        *self.process() = process;
        Ok(())
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process().id()
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.process().is_running()
    }

    /// As [`Process::failed`].
    pub fn failed(&self, what: &str) -> Error {
        self.process().failed(what)
    }

    /// As [`Process::end`].
    pub fn end(&self, patience: Duration) {
        self.process().end(patience);
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn run(
    recipe: &Arc<dyn Fn() -> Result<Process> + Send + Sync>,
    threads: &Handle,
) -> Result<Process> {
    let recipe = Arc::clone(recipe);
    threads.spawn(async move { recipe() }).await.context("a background task")?
}

/// A loopback port on which nothing listens, for a server that is to come back to it.
///
/// It is below those that the kernel gives to clients: a client that tries a port of those while the server is
/// away may get the very same port, and so be connected with itself.
///
/// # Errors
/// If there is none.
pub fn free_port() -> Result<u16> {
    let mut bytes = [0; 2];
    for _ in 0..100 {
        OsRng.fill_bytes(&mut bytes);
        let port = 11_000 + u16::from_be_bytes(bytes) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(Error::new("no free port"))
}

/// The program `name`: the one that the environment variable `variable` names, else one of `places`, else one on the path.
///
/// # Errors
/// If there is none; the fault says `remedy`.
pub fn find(name: &str, variable: &str, places: &[PathBuf], remedy: &str) -> Result<PathBuf> {
    if let Some(named) = std::env::var_os(variable) {
        return Ok(named.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates =
        places.iter().cloned().chain(std::env::split_paths(&path).map(|folder| folder.join(name)));
    candidates
        .into_iter()
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| Error::new(format!("`{name}` is missing: {remedy}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(id: u32) -> bool {
        !Path::new(&format!("/proc/{id}")).exists()
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let log = std::env::temp_dir().join(format!("dropped-{}.log", std::process::id()));
        let process = Process::start("sleep", Path::new("sleep"), &log, |command| {
            command.arg("600");
        })
        .unwrap();
        let id = process.id();
        assert!(!gone(id));
        drop(process);
        fs::remove_file(&log).unwrap();
        assert!(gone(id));
    }

    #[test]
    fn a_process_ends_with_the_thread_that_started_it() {
        let log = std::env::temp_dir().join(format!("orphan-{}.log", std::process::id()));
        let path = log.clone();
        let process = std::thread::spawn(move || {
            let process = Process::start("sleep", Path::new("sleep"), &path, |command| {
                command.arg("600");
            });
            // Long enough for `setpriv` to have asked.
            std::thread::sleep(Duration::from_millis(300));
            process.unwrap()
        });
        let mut process = process.join().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while process.is_running() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        fs::remove_file(&log).unwrap();
        assert!(!process.is_running());
    }

    /// The ids of the processes in the session `id`.
    fn members(id: u32) -> Vec<String> {
        let stat = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("stat")).ok();
        let all = fs::read_dir("/proc").unwrap().flatten().filter_map(stat);
        let of_session = |line: &String| {
            let (_, after) = line.rsplit_once(')').unwrap();
            let mut fields = after.split_whitespace();
            // A dead one that nobody has asked about yet is no member.
            fields.next() != Some("Z") && fields.nth(2) == Some(&id.to_string())
        };
        all.filter(of_session).collect()
    }

    #[test]
    fn a_session_ends_whole_with_us_and_with_its_program() {
        let log = std::env::temp_dir().join(format!("session-{}.log", std::process::id()));
        // A child in a process group of its own, as a job-controlling shell makes them, and a grandchild.
        let script = "set -m; sleep 600 & (sleep 600; true) & sleep $0";
        let start = |seconds: &str| {
            Session::start("session", Path::new("sh"), &log, |command| {
                command.args(["-c", script, seconds]);
            })
            .unwrap()
        };
        let wait = |expected: &str, condition: &mut dyn FnMut() -> bool| {
            let deadline = Instant::now() + Duration::from_secs(10);
            while !condition() {
                assert!(Instant::now() < deadline, "not within ten seconds: {expected}");
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        let dropped = start("600");
        let id = dropped.id();
        wait("all are there", &mut || members(id).len() >= 6);
        drop(dropped);
        wait("all are gone", &mut || members(id).is_empty());

        let mut short = start("1");
        let id = short.id();
        wait("all are there", &mut || members(id).len() >= 6);
        wait("the session has ended", &mut || !short.is_running());
        wait("all are gone", &mut || members(id).is_empty());
        fs::remove_file(&log).unwrap();
    }

    #[test]
    fn a_missing_program_says_how_to_get_it() {
        let error =
            find("no-such-program", "NO_SUCH_VARIABLE", &[], "run `scripts/testbed install`");
        assert_eq!(
            error.unwrap_err().to_string(),
            "`no-such-program` is missing: run `scripts/testbed install`"
        );
    }
}
