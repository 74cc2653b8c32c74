//! Looks at the chunks of files by several threads.

use std::collections::BTreeMap;
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::reader::{Chunk, Reader};

/// What the threads share: the files, and why they cannot be read on.
struct Shared<'r> {
    reader: &'r mut Reader,
    next: u64,
    failed: Option<String>,
}

/// Has each chunk looked at by one of the workers that `worker` makes, one for each thread, and hands
/// what they say to `take` in the order of the chunks.
///
/// # Errors
/// A file that cannot be read. What stands before is taken.
pub fn each_chunk<T: Send, W: FnMut(&Chunk) -> T>(
    reader: &mut Reader,
    worker: impl Fn() -> W + Sync,
    mut take: impl FnMut(T),
) -> Result<(), String> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let shared = Mutex::new(Shared { reader, next: 0, failed: None });
    let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
    let next = || {
        let mut shared = lock();
        if shared.failed.is_some() {
            return None;
        }
        match shared.reader.next_chunk() {
            Ok(chunk) => {
                let number = shared.next;
                shared.next += 1;
                chunk.map(|chunk| (number, chunk))
            }
            Err(problem) => {
                shared.failed = Some(problem);
                None
            }
        }
    };
    // Bounded: whoever is ahead waits.
    let (sender, receiver) = sync_channel(threads * 2);
    thread::scope(|scope| {
        for _ in 0..threads {
            let sender = sender.clone();
            let (next, worker) = (&next, &worker);
            scope.spawn(move || {
                let mut work = worker();
                while let Some((number, chunk)) = next() {
                    if sender.send((number, work(&chunk))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let (mut early, mut wanted) = (BTreeMap::new(), 0);
        for (number, done) in receiver {
            early.insert(number, done);
            while let Some(done) = early.remove(&wanted) {
                take(done);
                wanted += 1;
            }
        }
    });
    let failed = lock().failed.take();
    failed.map_or(Ok(()), Err)
}
