//! Work that would take too long at once, done a slice at a time.
//!
//! It is written as ordinary `async` code that says what it spends; what drives it lets it spend so much
//! and comes back later. There is no executor, no clock and no thread: a [`Task`] moves only while
//! [`Task::go_on`] is called.
//!
//! What it is not: it waits for nothing. The only thing that holds a task up is that its slice is over.

use std::cell::Cell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use sha2::{Digest as _, Sha256};

/// Bytes that are hashed at once.
pub(crate) const HASHED_AT_ONCE: usize = 16 * 1024;

/// Bytes that are hashed in about one unit.
const HASHED_PER_UNIT: usize = 200;

/// What may still be spent in this slice. One unit is about a microsecond of a worker (WebAssembly on a
/// server processor of 2024).
#[derive(Debug, Clone)]
pub struct Pace(Rc<Cell<u64>>);

impl Pace {
    /// A pace that never ends a slice.
    pub fn unhurried() -> Self {
        Self(Rc::new(Cell::new(u64::MAX)))
    }

    /// Notes that `units` were spent; returns when there is something left to spend.
    pub async fn spend(&self, units: usize) {
        if self.0.get() == u64::MAX {
            return;
        }
        self.0.set(self.0.get().saturating_sub(units as u64));
        poll_fn(|_| if self.0.get() > 0 { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}

/// Work under way, and what it comes to.
pub struct Task<T> {
    work: Pin<Box<dyn Future<Output = T>>>,
    pace: Pace,
}

impl<T> Task<T> {
    /// The work that `work` makes of a pace; nothing is done yet.
    pub fn new<F: Future<Output = T> + 'static>(work: impl FnOnce(Pace) -> F) -> Self {
        let pace = Pace(Rc::new(Cell::new(0)));
        Self { work: Box::pin(work(pace.clone())), pace }
    }

    /// Goes on until about `units` are spent.
    ///
    /// # Errors
    /// The work itself, if it is not done.
    pub fn go_on(mut self, units: u64) -> Result<T, Self> {
        // Less than what has no end, or one call would do it all.
        self.pace.0.set(units.clamp(1, u64::MAX - 1));
        match self.work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => Ok(done),
            Poll::Pending => Err(self),
        }
    }
}

impl<T> fmt::Debug for Task<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Task").finish_non_exhaustive()
    }
}

/// Does `work` in one go; it has a pace that never ends a slice.
pub fn at_once<T>(work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        // INVARIANT: nothing but a pace holds work up, so this is once.
        if let Poll::Ready(done) = work.as_mut().poll(&mut context) {
            return done;
        }
    }
}

/// Lets go of `things` a slice at a time: to free what a large policy consists of takes long too.
pub(crate) async fn release<T>(things: impl IntoIterator<Item = T>, units: usize, pace: &Pace) {
    for thing in things {
        drop(thing);
        pace.spend(units).await;
    }
}

/// The SHA-256 of `bytes`.
pub(crate) async fn sha256(bytes: &[u8], pace: &Pace) -> [u8; 32] {
    let mut digest = Sha256::new();
    for part in bytes.chunks(HASHED_AT_ONCE) {
        digest.update(part);
        pace.spend(1 + part.len() / HASHED_PER_UNIT).await;
    }
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_spends_a_slice_at_a_time_and_is_done_once() {
        let steps = Rc::new(Cell::new(0));
        let seen = Rc::clone(&steps);
        let mut task = Task::new(|pace| async move {
            for _ in 0..10 {
                seen.set(seen.get() + 1);
                pace.spend(3).await;
            }
            "done"
        });
        let mut slices = 0;
        let done = loop {
            let before = steps.get();
            slices += 1;
            match task.go_on(7) {
                Ok(done) => break done,
                Err(rest) => task = rest,
            }
            assert_eq!(steps.get() - before, 3, "7 units are spent by three steps of 3");
        };
        assert_eq!((done, slices, steps.get()), ("done", 4, 10));
    }

    #[test]
    fn a_digest_is_taken_of_a_few_kilobytes_at_a_time() {
        let bytes: Vec<u8> = (0..=250).cycle().take(5 * HASHED_AT_ONCE + 7).collect();
        let expected: [u8; 32] = Sha256::digest(&bytes).into();
        let mut task = Task::new(|pace| async move { sha256(&bytes, &pace).await });
        let mut slices = 1;
        let found = loop {
            match task.go_on(1) {
                Ok(found) => break found,
                Err(rest) => task = rest,
            }
            slices += 1;
        };
        // The last look finds that nothing is left.
        assert_eq!((found, slices), (expected, 7));
        assert_eq!(at_once(sha256(b"", &Pace::unhurried())), <[u8; 32]>::from(Sha256::digest(b"")));
    }

    #[test]
    fn without_hurry_work_is_done_at_once() {
        let pace = Pace::unhurried();
        let work = async {
            pace.spend(usize::MAX).await;
            pace.spend(usize::MAX).await;
            7
        };
        assert_eq!(at_once(work), 7);
    }
}
