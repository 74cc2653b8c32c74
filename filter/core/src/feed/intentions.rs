//! How Consul is asked for intentions: a conversation of several questions.
//!
//! If the document's own answers have Consul's index, each question is a blocking query for the
//! document. If not, or if there are several documents: first the list, by a blocking query, then each
//! document at once. So no change between two answers is missed: the index is older than the documents.

use crate::json;
use crate::time::UnixTime;

/// Where the conversation is.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    /// The list has to be asked for the index.
    pub(super) listing: bool,
    step: Step,
    /// The documents so far.
    parts: Vec<Vec<u8>>,
    /// When the list was asked, and whether by a blocking query.
    began: Option<(UnixTime, bool)>,
    /// The index is another one than in the conversation before.
    pub(super) moved: bool,
}

/// What is asked next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Step {
    /// The first question: the list, or the only document.
    #[default]
    First,
    /// The document of this place, at once.
    Part(usize),
}

/// What to do after an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Ask the next question.
    Ask,
    /// Read this.
    Read(Vec<u8>),
    /// There is no document that could be read.
    Unfit(String),
}

impl Conversation {
    /// It begins anew, after whatever went wrong.
    pub(super) fn reset(&mut self) {
        *self = Self { listing: self.listing, ..Self::default() };
    }

    pub(super) fn step(&self) -> Step {
        self.step
    }

    /// When the question was asked that the answers to come belong to, and whether it was a blocking one.
    pub(super) fn began(&self) -> Option<(UnixTime, bool)> {
        self.began.filter(|_| self.step != Step::First)
    }

    /// The list was answered; the question was asked then.
    pub(super) fn listed(&mut self, at: UnixTime, blocking: bool, moved: bool) -> Next {
        self.step = Step::Part(0);
        self.parts.clear();
        self.began = Some((at, blocking));
        self.moved = moved;
        Next::Ask
    }

    /// A document came, or `None`: it does not exist. `count` are all.
    pub(super) fn part(&mut self, body: Option<Vec<u8>>, count: usize, depth: usize) -> Next {
        if count == 1 {
            self.step = Step::First;
            return match body {
                Some(body) => Next::Read(body),
                None => Next::Unfit("there is no such document".to_owned()),
            };
        }
        // What is put together must be as many values as it was.
        if let Some(Err(error)) = body.as_ref().map(|body| json::parse(body, depth)) {
            return Next::Unfit(error.to_string());
        }
        self.parts.push(body.unwrap_or_else(|| b"null".to_vec()));
        if self.parts.len() < count {
            self.step = Step::Part(self.parts.len());
            return Next::Ask;
        }
        self.step = Step::First;
        let inner = std::mem::take(&mut self.parts).join(&b","[..]);
        Next::Read([&b"["[..], &inner, b"]"].concat())
    }
}
