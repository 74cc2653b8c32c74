//! What it takes to load a policy a slice at a time: how long the longest slice holds a worker up, how long
//! all of them take together, and what memory that needs.
//!
//! No criterion: it is the longest slice that matters, and not the average one.
#![expect(clippy::unwrap_used, reason = "a bench may fail by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::pace::Task;
use airflow_envoy_core::policy::Policy;
use serde_json::json;

/// What the filter spends in a slice.
const SLICE: u64 = 500;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: it only counts and leaves the work to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Rules as a generator writes them: each about a DAG and a path of its own.
fn document(rules: usize) -> String {
    let rules: Vec<_> = (0..rules)
        .map(|number| {
            json!({
                "id": format!("rule-{number}"), "effect": "allow", "to": ["orders"],
                "from": {"dags": [format!("dag_{number}")], "teams": ["data-science"]},
                "methods": ["GET", "HEAD"], "paths": [format!("/v1/teams/{number}/**")],
            })
        })
        .collect();
    let destinations = json!({"orders": {"hosts": ["orders.internal"]}});
    json!({"version": 1, "roles": {}, "destinations": destinations, "rules": rules}).to_string()
}

#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
fn now() -> Instant {
    Instant::now()
}

/// Runs a task to its end; what came of it, and how long each slice took, ascending.
fn slices<T>(mut task: Task<T>) -> (T, Vec<Duration>) {
    let mut times = Vec::new();
    loop {
        let begun = now();
        let step = task.go_on(SLICE);
        times.push(begun.elapsed());
        match step {
            Ok(done) => {
                times.sort_unstable();
                return (done, times);
            }
            Err(rest) => task = rest,
        }
    }
}

fn row(what: &str, times: &[Duration], memory: &str) {
    let at = |share: usize| times.get((times.len() - 1) * share / 100).copied().unwrap_or_default();
    let total: Duration = times.iter().sum();
    println!(
        "| {what} | {:.1} | {} | {:.2} | {:.2} | {:.2} | {memory} |",
        total.as_secs_f64() * 1e3,
        times.len(),
        at(50).as_secs_f64() * 1e3,
        at(99).as_secs_f64() * 1e3,
        at(100).as_secs_f64() * 1e3,
    );
}

fn main() {
    println!("| what | ms in all | slices | p50 ms | p99 ms | longest ms | memory |");
    println!("|---|--:|--:|--:|--:|--:|---|");
    let limits = Limits::DEFAULT;
    for rules in [50, 1_000, 10_000, 100_000] {
        let text = Rc::new(document(rules).into_bytes());
        let bytes = text.len();
        // The first one finds a heap that was never used.
        for turn in ["first", "again"] {
            let before = LIVE.load(Ordering::Relaxed);
            MOST.store(before, Ordering::Relaxed);
            let document = Rc::clone(&text);
            let (policy, times) = slices(Task::new(|pace| async move {
                Policy::load(&document, &limits, &pace).await.unwrap()
            }));
            let kept = LIVE.load(Ordering::Relaxed) - before;
            let most = MOST.load(Ordering::Relaxed) - before;
            let memory = format!(
                "{kept} bytes kept ({} a rule), {most} at most beside the document of {bytes}",
                kept / rules
            );
            row(&format!("load {rules} rules, {turn}"), &times, &memory);
            let ((), times) = slices(Task::new(|pace| async move { policy.release(&pace).await }));
            row(&format!("free {rules} rules, {turn}"), &times, "");
        }
        let begun = now();
        let policy = Policy::parse(&text, &limits).unwrap();
        println!(
            "| parse {rules} rules in one go | {:.1} | | | | | |",
            begun.elapsed().as_secs_f64() * 1e3
        );
        let begun = now();
        drop(policy);
        println!(
            "| free {rules} rules in one go | {:.1} | | | | | |",
            begun.elapsed().as_secs_f64() * 1e3
        );
    }
}
