//! Changing one place of a JSON document: what a case differs in from its base.

use serde_json::{Map, Value};

/// Puts `new` where the JSON Pointer (RFC 6901) leads, and makes the objects on the way that are
/// missing. In an array `-` is the place after the last element (RFC 6902 §4.1).
///
/// # Errors
/// If the pointer leads through something that has no members.
pub(crate) fn set(document: &mut Value, pointer: &str, new: Value) -> Result<(), String> {
    let mut place = document;
    for token in tokens(pointer)? {
        if place.is_null() {
            *place = Value::Object(Map::new());
        }
        place = match place {
            Value::Object(members) => members.entry(token).or_insert(Value::Null),
            Value::Array(elements) => {
                if token == "-" {
                    elements.push(Value::Null);
                }
                let index =
                    if token == "-" { elements.len().checked_sub(1) } else { token.parse().ok() };
                index
                    .and_then(|index: usize| elements.get_mut(index))
                    .ok_or_else(|| format!("`{pointer}` leads beyond an array"))?
            }
            _ => return Err(format!("`{pointer}` leads into a plain value")),
        };
    }
    *place = new;
    Ok(())
}

/// Takes away what the JSON Pointer leads to.
///
/// # Errors
/// If there is nothing to take away: a case that removes nothing does not say what it means.
pub(crate) fn remove(document: &mut Value, pointer: &str) -> Result<(), String> {
    let missing = || format!("`{pointer}` leads to nothing that could be removed");
    let mut tokens = tokens(pointer)?;
    let last = tokens.pop().ok_or_else(missing)?;
    let mut place = document;
    for token in tokens {
        place = match place {
            Value::Object(members) => members.get_mut(&token),
            Value::Array(elements) => {
                token.parse().ok().and_then(|index: usize| elements.get_mut(index))
            }
            _ => None,
        }
        .ok_or_else(missing)?;
    }
    match place {
        Value::Object(members) => members.remove(&last).map(drop),
        Value::Array(elements) => last
            .parse()
            .ok()
            .filter(|index: &usize| *index < elements.len())
            .map(|index| drop(elements.remove(index))),
        _ => None,
    }
    .ok_or_else(missing)
}

fn tokens(pointer: &str) -> Result<Vec<String>, String> {
    let path =
        pointer.strip_prefix('/').ok_or_else(|| format!("`{pointer}` is not a JSON Pointer"))?;
    Ok(path.split('/').map(|token| token.replace("~1", "/").replace("~0", "~")).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_place_is_set_made_or_appended() {
        let mut document = json!({"a": {"b": 1}, "list": [1]});
        set(&mut document, "/a/b", json!(2)).unwrap();
        set(&mut document, "/a/c~1d/e", json!(3)).unwrap();
        set(&mut document, "/list/-", json!(4)).unwrap();
        set(&mut document, "/list/0", json!(5)).unwrap();
        assert_eq!(document, json!({"a": {"b": 2, "c/d": {"e": 3}}, "list": [5, 4]}));
        assert!(set(&mut document, "/list/9", json!(0)).is_err());
        assert!(set(&mut document, "/a/b/c", json!(0)).is_err());
        assert!(set(&mut document, "a", json!(0)).is_err());
    }

    #[test]
    fn only_what_is_there_can_be_removed() {
        let mut document = json!({"a": {"b": 1}, "list": [1, 2]});
        remove(&mut document, "/a/b").unwrap();
        remove(&mut document, "/list/0").unwrap();
        assert_eq!(document, json!({"a": {}, "list": [2]}));
        assert!(remove(&mut document, "/a/b").is_err());
        assert!(remove(&mut document, "/list/1").is_err());
    }
}
