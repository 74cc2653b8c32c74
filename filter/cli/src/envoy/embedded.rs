//! JSON in a text of another document, with its places in that document's file.

use crate::source::load::read_bytes;
use crate::source::{Content, Node, Place, Unreadable};

/// Reads the JSON in `node`, a text of the document in `source`. Of a literal block of YAML (`|`) every place
/// is known; of any other text only where it begins.
///
/// # Errors
/// Why it is not JSON.
pub fn read(node: &Node, source: &str) -> Result<Node, Unreadable> {
    let text = node.text().unwrap_or_default();
    let block = Block::find(node, source, text);
    // The name decides that it is read as JSON, and is put back below.
    let place = |place: &Place| match &block {
        Some(block) if place.line > 0 => Place {
            file: node.place.file.clone(),
            line: block.first + place.line - 1,
            column: if place.column == 0 { 0 } else { block.indent + place.column },
        },
        _ => node.place.clone(),
    };
    match read_bytes("configuration.json", text.as_bytes()) {
        Ok(mut read) => {
            move_to(&mut read, &place);
            Ok(read)
        }
        Err(Unreadable { place: at, problem }) => {
            // A problem may name a place itself.
            let problem = problem.split(": configuration.json:").next().unwrap_or_default();
            Err(Unreadable { place: place(&at), problem: problem.to_owned() })
        }
    }
}

fn move_to(node: &mut Node, place: &impl Fn(&Place) -> Place) {
    node.place = place(&node.place);
    match &mut node.content {
        Content::List(elements) => elements.iter_mut().for_each(|element| move_to(element, place)),
        Content::Map(members) => {
            for member in members {
                member.place = place(&member.place);
                move_to(&mut member.value, place);
            }
        }
        _ => {}
    }
}

/// A literal block: where its first line is, and how far its lines are indented.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    first: usize,
    indent: usize,
}

impl Block {
    /// Where `text` stands in `source` letter for letter but for the indentation.
    fn find(node: &Node, source: &str, text: &str) -> Option<Self> {
        let line = node.place.line;
        // The parser tells the place of the indicator or that of the first line.
        [line + 1, line].into_iter().find_map(|first| {
            let mut lines = source.lines().skip(first.checked_sub(1)?);
            let head = lines.clone().find(|line| !line.trim().is_empty())?;
            let wanted = text.lines().find(|line| !line.trim().is_empty())?;
            let indent = head.len().checked_sub(wanted.len())?;
            let is_it = text.lines().all(|wanted| {
                lines.next().is_some_and(|line| match line.get(indent..) {
                    Some(rest) => rest == wanted && line.trim_start().len() <= rest.len(),
                    None => wanted.is_empty(),
                })
            });
            is_it.then_some(Self { first, indent })
        })
    }
}
