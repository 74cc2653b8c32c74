//! Lines that wait for whoever carries them away.

use std::collections::VecDeque;

use super::chain::Line;

/// Lines in the order in which they were written, bounded by their bytes.
#[derive(Debug)]
pub struct Spool {
    lines: VecDeque<Line>,
    bytes: usize,
    most: usize,
}

impl Spool {
    /// A spool for lines of `most` bytes together, their ends included.
    pub fn new(most: usize) -> Self {
        Self { lines: VecDeque::new(), bytes: 0, most }
    }

    /// Adds a line.
    ///
    /// # Errors
    /// The line, if there is no room for it. It is lost unless somebody else takes it.
    pub fn push(&mut self, line: Line) -> Result<(), Line> {
        let bytes = self.bytes.saturating_add(weight(&line));
        if bytes > self.most {
            return Err(line);
        }
        self.bytes = bytes;
        self.lines.push_back(line);
        Ok(())
    }

    /// Takes lines of at most `most` bytes, from the oldest on; at least one, if there is one.
    pub fn take_up_to(&mut self, most: usize) -> Vec<Line> {
        if self.bytes <= most {
            self.bytes = 0;
            return self.lines.drain(..).collect();
        }
        let mut taken = Vec::new();
        let mut bytes = 0_usize;
        while let Some(line) = self.lines.front() {
            bytes = bytes.saturating_add(weight(line));
            if bytes > most && !taken.is_empty() {
                break;
            }
            self.bytes = self.bytes.saturating_sub(weight(line));
            taken.extend(self.lines.pop_front());
        }
        taken
    }

    /// Takes all lines.
    pub fn take(&mut self) -> Vec<Line> {
        self.take_up_to(usize::MAX)
    }

    /// Bytes of the lines, their ends included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many lines there are.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

/// Bytes of a line with its end.
fn weight(line: &Line) -> usize {
    line.len().saturating_add(1)
}
