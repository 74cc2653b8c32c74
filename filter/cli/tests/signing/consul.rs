//! The store in a real Consul, if there is one.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::program::Folder;
use crate::stores::{put, race};

/// The agent, in memory.
struct Consul {
    process: Child,
    port: u16,
}

fn program() -> Option<PathBuf> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.testbed/bin/consul");
    let named = std::env::var_os("CONSUL").map(PathBuf::from);
    named.into_iter().chain([installed]).find(|path| path.is_file())
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

impl Consul {
    fn start(program: &Path, folder: &Folder) -> Self {
        let port = free_port();
        let agent = json!({
            "bind_addr": "127.0.0.1", "client_addr": "127.0.0.1", "datacenter": "dc1",
            "node_name": "signing", "disable_update_check": true,
            "ports": {
                "http": port, "server": free_port(), "serf_lan": free_port(), "serf_wan": -1,
                "dns": -1, "grpc": -1,
            },
        });
        folder.file("consul.json", &agent.to_string());
        let log = File::create(folder.0.join("consul.log")).unwrap();
        let process = Command::new(program)
            .args(["agent", "-dev", "-config-file", "consul.json"])
            .current_dir(&folder.0)
            .stdin(Stdio::null())
            .stderr(log.try_clone().unwrap())
            .stdout(log)
            .spawn()
            .unwrap();
        let consul = Self { process, port };
        let begin = Instant::now();
        while !consul.get("/v1/status/leader").contains("\"127.0.0.1:") {
            assert!(begin.elapsed() < Duration::from_secs(60), "{}", folder.text("consul.log"));
            std::thread::sleep(Duration::from_millis(100));
        }
        consul
    }

    /// The answer to a GET, with its headers; empty if there is none.
    fn get(&self, path: &str) -> String {
        let mut answer = String::new();
        if let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)) {
            let request = format!("GET {path} HTTP/1.0\r\n\r\n");
            let _ = stream.write_all(request.as_bytes());
            let _ = stream.read_to_string(&mut answer);
        }
        answer
    }
}

impl Drop for Consul {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn eight_writers_lose_no_grant_in_a_real_consul() {
    let Some(program) = program() else {
        println!("SKIPPED: there is no Consul: `scripts/testbed install`, or name one in CONSUL");
        return;
    };
    let folder = Folder::new();
    let consul = Consul::start(&program, &folder);
    let store = format!("consul://127.0.0.1:{}/airflow-envoy/grants?dc=dc1", consul.port);
    assert_eq!(
        folder.run(&format!("grants --store {store}")).with(0).out,
        "0 grants: there is no document yet\n"
    );
    race(&store);
    let kept = || {
        let answer = consul.get("/v1/kv/airflow-envoy/grants?raw");
        let (_, document) = answer.split_once("\r\n\r\n").unwrap();
        let document: Value = serde_json::from_str(document).unwrap();
        document["grants"].as_array().unwrap().len()
    };
    assert_eq!(kept(), 24);
    folder.run(&format!("revoke g-0-0 g-7-2 --store {store}")).with(0);
    assert_eq!(kept(), 22);
    assert!(put("consul://127.0.0.1:1/k", "g").is_err());
}
