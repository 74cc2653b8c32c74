//! The machine under the measurement: what runs where, how busy it is with other things, what it is.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cost::processor_time;
use crate::error::{Context as _, Result};

/// Processor time of others, in cores, up to which the machine counts as quiet.
pub const QUIET: f64 = 0.15;

/// Processor time of all, and of those that are measured, up to a moment.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    at: Instant,
    all: Duration,
    ours: Duration,
}

impl Moment {
    /// Now. `ours` are the processes of the measurement besides this one.
    ///
    /// # Errors
    /// If one of them has ended.
    pub fn now(ours: &[u32]) -> Result<Self> {
        let mut sum = processor_time(std::process::id())?;
        for process in ours {
            sum += processor_time(*process)?;
        }
        Ok(Self { at: Instant::now(), all: busy()?, ours: sum })
    }

    /// The cores that others were using since `earlier`. The kernel counts hundredths of a second.
    pub fn others_since(&self, earlier: &Self) -> f64 {
        let time = |later: Duration, earlier| later.saturating_sub(earlier).as_secs_f64();
        let others = time(self.all, earlier.all) - time(self.ours, earlier.ours);
        others.max(0.0) / self.at.duration_since(earlier.at).as_secs_f64().max(1e-3)
    }
}

/// What all processors were busy so far, by anybody, and by other guests of the same host.
fn busy() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    // user nice system idle iowait irq softirq steal (proc_stat(5)); one hundredth of a second each.
    let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks = fields.enumerate().filter(|(index, _)| [0, 1, 2, 5, 6, 7].contains(index));
    let sum: u64 = ticks.filter_map(|(_, ticks)| ticks.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(sum.saturating_mul(10)))
}

/// Waits for quiet moments, and keeps count.
#[derive(Debug)]
pub struct Gate {
    /// How long it may wait in all.
    pub patience: Duration,
    /// How long it has waited.
    pub waited: Duration,
}

impl Gate {
    /// Waits until others leave the machine alone, or the patience is at its end. Says whether it had to wait.
    ///
    /// # Errors
    /// If a process of the measurement has ended.
    pub fn pass(&mut self, ours: &[u32]) -> Result<bool> {
        let begun = Instant::now();
        let mut looks = 0_u32;
        while self.waited + begun.elapsed() < self.patience {
            let earlier = Moment::now(ours)?;
            std::thread::sleep(Duration::from_millis(100));
            if Moment::now(ours)?.others_since(&earlier) <= QUIET {
                break;
            }
            looks += 1;
        }
        self.waited += begun.elapsed();
        Ok(looks > 0)
    }
}

/// Two processors to keep apart what is measured and what measures: `None` if there is only one.
pub fn processors() -> Option<(usize, usize)> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let mut allowed = list.trim().split(',').flat_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let bounds = first.parse::<usize>().ok().zip(last.parse::<usize>().ok());
        bounds.map_or(0..0, |(first, last)| first..last.saturating_add(1))
    });
    Some((allowed.next()?, allowed.next()?))
}

/// Keeps all threads of `process`, and those they start from now on, on these processors.
///
/// # Errors
/// If `taskset` (util-linux) is missing or refuses.
pub fn pin(process: u32, processors: &[usize]) -> Result<()> {
    let list: Vec<String> = processors.iter().map(usize::to_string).collect();
    let output = Command::new("taskset")
        .args(["--all-tasks", "--cpu-list", "--pid", &list.join(","), &process.to_string()])
        .output()
        .context("starting `taskset`, of the package util-linux")?;
    let text = String::from_utf8_lossy(&output.stderr);
    output.status.success().then_some(()).context(format!("taskset: {}", text.trim()))
}

/// The current thread's directory in /proc.
///
/// # Errors
/// If there is no /proc.
pub fn this_thread() -> Result<std::path::PathBuf> {
    fs::read_link("/proc/thread-self").map(|link| Path::new("/proc").join(link)).context("/proc")
}

/// Processor time of the thread whose directory in /proc this is.
///
/// # Errors
/// If it has ended.
pub fn thread_time(directory: &Path) -> Result<Duration> {
    let path = directory.join("schedstat");
    let text = fs::read_to_string(&path).context(path.display())?;
    let time = text.split_whitespace().next().and_then(|time| time.parse().ok());
    time.map(Duration::from_nanos).context(path.display())
}

/// What the machine is.
pub fn description() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let model = read("/proc/cpuinfo");
    let model = model.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
    json!({
        "processor": model.map(str::trim),
        "processors": std::thread::available_parallelism().map_or(1, usize::from),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_do_is_seen_and_what_we_do_is_not() {
        let mut other = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let look = || {
            let worked = processor_time(other.id()).unwrap();
            (Moment::now(&[]).unwrap(), Moment::now(&[other.id()]).unwrap(), worked)
        };
        let earlier = look();
        while processor_time(other.id()).unwrap() < earlier.2 + Duration::from_millis(300) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let later = look();
        let (seen, hidden) = (later.0.others_since(&earlier.0), later.1.others_since(&earlier.1));
        let share = (later.2 - earlier.2).as_secs_f64()
            / later.0.at.duration_since(earlier.0.at).as_secs_f64();
        let mut gate = Gate { patience: Duration::from_millis(250), waited: Duration::ZERO };
        let had_to_wait = gate.pass(&[]).unwrap();
        other.kill().unwrap();
        other.wait().unwrap();
        // By what it worked, whoever else works here.
        assert!((seen - hidden - share).abs() < 0.1, "{seen} {hidden} {share}");
        assert!(had_to_wait && gate.waited >= gate.patience, "{gate:?}");
        // Its patience is at its end: it does not wait any more.
        assert!(!gate.pass(&[]).unwrap());
    }

    #[test]
    fn a_pinned_process_stays_on_its_processor() {
        let Some((_, second)) = processors() else {
            println!("SKIPPED: this machine has one processor");
            return;
        };
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pinned = pin(child.id(), &[second]);
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        pinned.unwrap();
        assert!(status.contains(&format!("Cpus_allowed_list:\t{second}\n")), "{status}");
    }
}
