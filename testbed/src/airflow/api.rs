//! Airflow's API, as a user of it calls it.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Answer, Call};
use crate::error::{Context as _, Error, Result};

/// The user of the web interface and the REST API.
pub const USER: &str = "admin";

/// How long a run of a DAG may take.
const RUN: Duration = Duration::from_secs(180);
/// Where Airflow serves the key set of identities.
const KEYS_PATH: &str = "/airflow-envoy/jwks.json";

/// An API server, and a token for its REST API.
#[derive(Clone)]
pub struct Api {
    /// Where it listens.
    pub address: SocketAddr,
    token: String,
}

/// One run of a DAG.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The DAG.
    pub dag: String,
    /// `run_id`.
    pub id: String,
}

/// One try of a task instance, as the REST API describes it.
#[derive(Debug, Clone)]
pub struct TaskInstance(pub Value);

impl TaskInstance {
    /// `task_id`.
    pub fn task(&self) -> &str {
        self.text("task_id")
    }

    /// `id`: of this try, and no other.
    pub fn id(&self) -> &str {
        self.text("id")
    }

    /// The state.
    pub fn state(&self) -> &str {
        self.text("state")
    }

    /// `try_number`.
    pub fn try_number(&self) -> u64 {
        self.0.get("try_number").and_then(Value::as_u64).unwrap_or(0)
    }

    /// `map_index`.
    pub fn map_index(&self) -> i64 {
        self.0.get("map_index").and_then(Value::as_i64).unwrap_or(-1)
    }

    fn text(&self, member: &str) -> &str {
        self.0.get(member).and_then(Value::as_str).unwrap_or_default()
    }
}

impl Api {
    /// The API at `address`, for nobody.
    pub(super) fn nobody(address: SocketAddr) -> Self {
        Self { address, token: String::new() }
    }

    /// The API at `address`, for [`USER`].
    ///
    /// # Errors
    /// If the password is not the user's.
    pub async fn log_in(address: SocketAddr, password: &str) -> Result<Self> {
        let mut api = Self::nobody(address);
        let credentials = json!({ "username": USER, "password": password });
        let granted = api.ask("POST", "/auth/token", Some(&credentials)).await?;
        let token = granted.get("access_token").and_then(Value::as_str).context("a token")?;
        token.clone_into(&mut api.token);
        Ok(api)
    }

    /// The key ids of the key set that the API server serves; each call meets any of its workers.
    ///
    /// # Errors
    /// If it serves none.
    pub async fn key_ids(&self) -> Result<Vec<String>> {
        let answer = Call::get("airflow.internal", KEYS_PATH).send(self.address, None).await?;
        let document = answer.json();
        let keys = document.get("keys").and_then(Value::as_array);
        let keys = keys.context(format!("{} {}", answer.status, answer.text()))?;
        Ok(keys.iter().filter_map(|key| Some(key.get("kid")?.as_str()?.to_owned())).collect())
    }

    /// Starts a run of `dag`.
    ///
    /// # Errors
    /// If Airflow refuses.
    pub async fn trigger(&self, dag: &str, configuration: Value) -> Result<Run> {
        let body = json!({ "logical_date": null, "conf": configuration });
        let made = self.ask("POST", &format!("/api/v2/dags/{dag}/dagRuns"), Some(&body)).await?;
        let id = made.get("dag_run_id").and_then(Value::as_str).context("the run's id")?;
        Ok(Run { dag: dag.to_owned(), id: id.to_owned() })
    }

    /// Waits until `run` is over; its state.
    ///
    /// # Errors
    /// If it is not over within three minutes.
    pub async fn wait(&self, run: &Run) -> Result<String> {
        let path = self.path_of(run);
        let deadline = Instant::now() + RUN;
        loop {
            let state = self.get(&path).await?;
            let state = state.get("state").and_then(Value::as_str).unwrap_or_default().to_owned();
            if matches!(state.as_str(), "success" | "failed") {
                return Ok(state);
            }
            if Instant::now() > deadline {
                let tasks: Vec<_> =
                    self.tasks(run).await?.iter().map(TaskInstance::to_string).collect();
                let tasks = tasks.join(", ");
                return Err(Error::new(format!("{run:?} is `{state}` after {RUN:?}: {tasks}")));
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Waits for a moment; whether `run` is over.
    ///
    /// # Errors
    /// If Airflow does not answer.
    pub async fn wait_a_moment(&self, run: &Run) -> Result<bool> {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let state = self.get(&self.path_of(run)).await?;
        let state = state.get("state").and_then(Value::as_str).unwrap_or_default();
        Ok(matches!(state, "success" | "failed"))
    }

    /// The path of `run` in the REST API.
    pub fn path_of(&self, run: &Run) -> String {
        format!("/api/v2/dags/{}/dagRuns/{}", run.dag, escaped(&run.id))
    }

    /// Runs `dag` to its end; the run and its state.
    ///
    /// # Errors
    /// As [`Airflow::trigger`] and [`Airflow::wait`].
    pub async fn run(&self, dag: &str, configuration: Value) -> Result<(Run, String)> {
        let run = self.trigger(dag, configuration).await?;
        let state = self.wait(&run).await?;
        Ok((run, state))
    }

    /// The last try of every task instance of `run`.
    ///
    /// # Errors
    /// If Airflow refuses.
    pub async fn tasks(&self, run: &Run) -> Result<Vec<TaskInstance>> {
        let path = format!("{}/taskInstances", self.path_of(run));
        let mut listed = self.get(&path).await?;
        let tasks = listed.get_mut("task_instances").map(Value::take);
        let tasks = tasks.context("task instances")?;
        Ok(tasks.as_array().into_iter().flatten().cloned().map(TaskInstance).collect())
    }

    /// The task instance `task` of `run`; of a mapped one, that with `map_index`.
    ///
    /// # Errors
    /// If there is none.
    pub async fn task(&self, run: &Run, task: &str, map_index: i64) -> Result<TaskInstance> {
        let tasks = self.tasks(run).await?;
        let found =
            tasks.into_iter().find(|known| known.task() == task && known.map_index() == map_index);
        found.context(format!("{task}[{map_index}] of {run:?}"))
    }

    /// The log of the try `try_number` of a task instance, as the web interface shows it.
    ///
    /// # Errors
    /// If Airflow refuses.
    pub async fn log(&self, run: &Run, task: &TaskInstance, try_number: u64) -> Result<String> {
        let path = format!(
            "{}/taskInstances/{}/logs/{try_number}?map_index={}&full_content=true",
            self.path_of(run),
            task.task(),
            task.map_index()
        );
        let answer = self.get(&path).await?;
        let mut text = String::new();
        for line in answer.get("content").and_then(Value::as_array).into_iter().flatten() {
            match line {
                Value::String(line) => text += line,
                line => text += &line.to_string(),
            }
            text.push('\n');
        }
        Ok(text)
    }

    /// The value that `task` of `run` returned.
    ///
    /// # Errors
    /// If it returned none.
    pub async fn returned(&self, run: &Run, task: &str, map_index: i64) -> Result<Value> {
        let path = format!(
            "{}/taskInstances/{task}/xcomEntries/return_value?map_index={map_index}&deserialize=false&stringify=false",
            self.path_of(run)
        );
        self.get(&path).await?.get_mut("value").map(Value::take).context("the value")
    }

    /// What the REST API answers at `path`.
    ///
    /// # Errors
    /// If it is not 200.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.ask("GET", path, None).await
    }

    /// What the REST API answers to `body`.
    ///
    /// # Errors
    /// If it refuses.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.ask("POST", path, Some(body)).await
    }

    /// The answer of the execution API to whoever holds `token` and asks for the connection `id`.
    ///
    /// # Errors
    /// If there is none.
    pub async fn connection(&self, token: &str, id: &str) -> Result<Answer> {
        let path = format!("/execution/connections/{id}");
        Call::get("airflow.internal", &path).token(token).send(self.address, None).await
    }

    async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut call = Call::new(method, "airflow.internal", path).token(&self.token);
        if let Some(body) = body {
            call = call.header("content-type", "application/json").body(body.to_string());
        }
        let answer = call.header("accept", "application/json").send(self.address, None).await?;
        if (200..300).contains(&answer.status) {
            return Ok(answer.json());
        }
        let (status, text) = (answer.status, answer.text());
        Err(Error::new(format!("Airflow answers {status} to {method} {path}: {text}")))
    }
}

impl fmt::Display for TaskInstance {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (task, index, state) = (self.task(), self.map_index(), self.state());
        write!(formatter, "{task}[{index}] {state} at try {}", self.try_number())
    }
}

/// `text` as a path segment (RFC 3986 §2.1).
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _: Result<(), _> = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_id_is_one_path_segment() {
        assert_eq!(
            escaped("manual__2026-11-22T00:00:00+00:00"),
            "manual__2026-11-22T00%3A00%3A00%2B00%3A00"
        );
    }
}
