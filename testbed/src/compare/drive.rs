//! Makes calls as cheaply as can be, so that Envoy and not the caller is at its limit: prepared bytes over blocking
//! sockets.
//!
//! What it is not: a client for tests. It knows of HTTP/1.1 what Envoy answers here, and any other status than
//! the expected one ends the measurement.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Context as _, Error, Result};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Connections by which calls come at a fixed rate, each with a thread of its own.
const CALLERS: usize = 8;

/// Requests, ready to be sent.
pub type Pool = Arc<Vec<Vec<u8>>>;

/// The requests of a variant, one after another, and then again from the first unless they are to be fresh.
#[derive(Debug, Clone, Default)]
pub struct Requests {
    all: Pool,
    next: usize,
    fresh: bool,
}

impl Requests {
    /// These, again and again.
    pub fn repeated(all: Pool) -> Self {
        Self { all, next: 0, fresh: false }
    }

    /// Each of these once.
    pub fn fresh(all: Pool) -> Self {
        Self { all, next: 0, fresh: true }
    }

    /// Whether each is sent once.
    pub fn are_fresh(&self) -> bool {
        self.fresh
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// The first one, without using it up.
    pub fn first(&self) -> Result<Vec<u8>> {
        self.all.first().cloned().context("a request")
    }

    /// The next one.
    ///
    /// # Errors
    /// If fresh ones are used up.
    pub fn next(&mut self) -> Result<&[u8]> {
        if self.next >= self.all.len() {
            if self.fresh {
                return Err(Error::new("fresh credentials are used up"));
            }
            self.next = 0;
        }
        let request = self.all.get(self.next).context("a request")?;
        self.next += 1;
        Ok(request)
    }
}

/// A connection that is used again and again.
#[derive(Debug)]
pub struct Lane {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Lane {
    /// One to `address`.
    ///
    /// # Errors
    /// If it is refused.
    pub fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).context("connecting")?;
        stream.set_nodelay(true).context("connecting")?;
        stream.set_read_timeout(Some(PATIENCE)).context("connecting")?;
        Ok(Self { stream, buffer: vec![0; 32 * 1024] })
    }

    /// Sends a request.
    ///
    /// # Errors
    /// If the connection is broken.
    pub fn send(&mut self, request: &[u8]) -> Result<()> {
        self.stream.write_all(request).context("sending")
    }

    /// Reads the answer to one request, and gives its status and all of it.
    ///
    /// # Errors
    /// If it is not a whole answer with a `content-length`.
    pub fn receive(&mut self) -> Result<(u16, &[u8])> {
        let mut read = 0;
        loop {
            let free = self.buffer.get_mut(read..).filter(|free| !free.is_empty());
            let more = self.stream.read(free.context("an answer of less than 32 KiB")?);
            // A read that has a time limit is not taken up again when the machine was stopped meanwhile.
            if more.as_ref().is_err_and(|error| error.kind() == ErrorKind::Interrupted) {
                continue;
            }
            match more.context("receiving")? {
                0 => return Err(Error::new("Envoy closed the connection")),
                more => read += more,
            }
            let Some(whole) = Whole::of(self.buffer.get(..read).unwrap_or_default())? else {
                continue;
            };
            if whole.end == read {
                return Ok((whole.status, self.buffer.get(..read).unwrap_or_default()));
            }
            if whole.end < read {
                return Err(Error::new("more was answered than asked"));
            }
        }
    }

    /// Sends a request and reads its answer: the status, and all of it as text.
    ///
    /// # Errors
    /// As [`Self::send`] and [`Self::receive`].
    pub fn answer(&mut self, request: &[u8]) -> Result<(u16, String)> {
        self.send(request)?;
        let (status, bytes) = self.receive()?;
        Ok((status, String::from_utf8_lossy(bytes).into_owned()))
    }

    /// Sends a request and reads its answer's status.
    ///
    /// # Errors
    /// As [`Self::send`] and [`Self::receive`].
    pub fn call(&mut self, request: &[u8]) -> Result<u16> {
        self.send(request)?;
        self.receive().map(|(status, _)| status)
    }
}

/// What the head of an answer says.
#[derive(Debug, PartialEq, Eq)]
struct Whole {
    status: u16,
    end: usize,
}

impl Whole {
    /// `None` if the head is not all there yet.
    fn of(bytes: &[u8]) -> Result<Option<Self>> {
        let Some(head) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Ok(None);
        };
        let text = bytes.get(..head).map(str::from_utf8).and_then(Result::ok);
        let text = text.context("an answer in ASCII")?;
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
        // Envoy writes names in small letters.
        let length =
            text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let (body, length): (usize, usize) = (head + 4, length.context("a `content-length`")?);
        let end = body.checked_add(length).context("a `content-length`")?;
        Ok(Some(Self { status: status.context("a status")?, end }))
    }
}

/// Connections on which nothing is under way.
#[derive(Debug)]
pub struct Lanes(Vec<Lane>);

impl Lanes {
    /// As many to `address`, each of which has made one call.
    ///
    /// # Errors
    /// If one is refused, or its call is not answered by `expected`.
    pub fn open(
        number: usize,
        address: SocketAddr,
        requests: &mut Requests,
        expected: u16,
    ) -> Result<Self> {
        let mut lanes = Vec::with_capacity(number);
        for _ in 0..number {
            let mut lane = Lane::open(address)?;
            expect(lane.call(requests.next()?)?, expected)?;
            lanes.push(lane);
        }
        Ok(Self(lanes))
    }

    /// Makes so many calls, as fast as they are answered: there is always one under way on each connection.
    ///
    /// # Errors
    /// If one is not answered by `expected`.
    pub fn saturate(&mut self, calls: usize, requests: &mut Requests, expected: u16) -> Result<()> {
        let lanes = self.0.len().max(1);
        for number in 0..calls.saturating_add(lanes) {
            let lane = self.0.get_mut(number % lanes).context("a connection")?;
            if number >= lanes {
                expect(lane.receive()?.0, expected)?;
            }
            if number < calls {
                lane.send(requests.next()?)?;
            }
        }
        Ok(())
    }

    /// Makes `rate` calls a second for `time`, whether or not earlier ones were answered, and gives their
    /// latencies from the time at which each was due, sorted.
    ///
    /// # Errors
    /// If one is not answered by `expected`.
    pub fn pace(
        &mut self,
        rate: u32,
        time: Duration,
        requests: &Requests,
        expected: u16,
    ) -> Result<Vec<Duration>> {
        let lanes = u32::try_from(self.0.len().min(CALLERS)).unwrap_or(1).max(1);
        let begun = Instant::now() + Duration::from_millis(5);
        let one = |lane: &mut Lane, first: u32| -> Result<Vec<Duration>> {
            let mut requests = requests.clone();
            let mut latencies = Vec::new();
            for number in (first..).step_by(usize::try_from(lanes).unwrap_or(1)) {
                let due = Duration::from_secs(1) * number / rate;
                if due >= time {
                    break;
                }
                let due = begun + due;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                expect(lane.call(requests.next()?)?, expected)?;
                latencies.push(due.elapsed());
            }
            Ok(latencies)
        };
        let all: Vec<Result<_>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..lanes)
                .zip(&mut self.0)
                .map(|(first, lane)| scope.spawn(move || one(lane, first)))
                .collect();
            let panicked = || Error::new("a thread of the load has ended");
            threads.into_iter().map(|thread| thread.join().map_err(|_| panicked())?).collect()
        });
        let mut latencies = Vec::new();
        for lane in all {
            latencies.extend(lane?);
        }
        latencies.sort_unstable();
        Ok(latencies)
    }
}

fn expect(status: u16, expected: u16) -> Result<()> {
    if status == expected {
        return Ok(());
    }
    Err(Error::new(format!("answered with {status} instead of {expected}")))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers each request with `answer`, in two parts, after `delay`.
    fn server(answer: &'static str, delay: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut buffer = [0; 1024];
                    while stream.read(&mut buffer).is_ok_and(|read| read > 0) {
                        std::thread::sleep(delay);
                        let (head, tail) = answer.split_at(answer.len() / 2);
                        stream.write_all(head.as_bytes()).unwrap();
                        stream.flush().unwrap();
                        stream.write_all(tail.as_bytes()).unwrap();
                    }
                });
            }
        });
        address
    }

    fn requests() -> Requests {
        Requests::repeated(Arc::new(vec![b"GET / HTTP/1.1\r\n\r\n".to_vec()]))
    }

    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

    #[test]
    fn every_answer_is_read_whole_and_another_status_is_an_error() {
        let address = server(OK, Duration::ZERO);
        let mut lanes = Lanes::open(3, address, &mut requests(), 200).unwrap();
        lanes.saturate(100, &mut requests(), 200).unwrap();
        let wrong = lanes.saturate(1, &mut requests(), 403).unwrap_err().to_string();
        assert_eq!(wrong, "answered with 200 instead of 403");
        let endless = server("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n", Duration::ZERO);
        let unfit = Lane::open(endless).unwrap().call(b"x").unwrap_err().to_string();
        assert!(unfit.contains("content-length"), "{unfit}");
    }

    #[test]
    fn latency_counts_from_when_a_call_was_due() {
        // One connection that takes 20 ms for a call cannot make 100 a second: the last call is late by all before it.
        let address = server(OK, Duration::from_millis(20));
        let mut lanes = Lanes::open(1, address, &mut requests(), 200).unwrap();
        let time = Duration::from_millis(300);
        let latencies = lanes.pace(100, time, &requests(), 200).unwrap();
        assert_eq!(latencies.len(), 30);
        assert!(latencies[29] >= Duration::from_millis(30 * 20 - 290), "{latencies:?}");
        assert!(latencies[0] >= Duration::from_millis(20));
    }

    #[test]
    fn fresh_requests_are_never_sent_twice() {
        let all = Arc::new(vec![b"1".to_vec(), b"2".to_vec()]);
        let mut fresh = Requests::fresh(Arc::clone(&all));
        assert_eq!(fresh.next().unwrap(), b"1");
        assert_eq!(fresh.next().unwrap(), b"2");
        assert_eq!(fresh.next().unwrap_err().to_string(), "fresh credentials are used up");
        let mut repeated = Requests::repeated(all);
        let mut next = || repeated.next().unwrap().to_vec();
        assert_eq!([next(), next(), next()].concat(), b"121");
    }
}
