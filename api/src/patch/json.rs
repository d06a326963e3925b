//! JSON patch, RFC 6902. Our own because a list of `copy` operations can double a document with each one: the bytes
//! they add are bounded, as Kubernetes bounds them.

use super::PatchError;
use serde_json::Value;

/// Operations of one patch; Kubernetes' bound.
const OPERATIONS_MAX: usize = 10_000;
/// Bytes that the `copy` operations of one patch may add.
const COPIED_BYTES_MAX: usize = 3 * 1024 * 1024;

/// Applies the operations of `patch` in order, or none of them.
///
/// # Errors
/// When the patch is malformed, a path is not there, or a `test` fails.
pub fn apply(document: &Value, patch: &Value) -> Result<Value, PatchError> {
    let operations = patch.as_array().ok_or_else(|| malformed("a JSON patch is an array of operations"))?;
    if operations.len() > OPERATIONS_MAX {
        return Err(malformed(&format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}",
            operations.len()
        )));
    }
    let mut document = document.clone();
    let mut copied_bytes = 0;
    for operation in operations {
        step(&mut document, operation, &mut copied_bytes)?;
    }
    Ok(document)
}

fn step(document: &mut Value, operation: &Value, copied_bytes: &mut usize) -> Result<(), PatchError> {
    let text = |field: &str| {
        let value = operation.get(field).and_then(Value::as_str);
        value.ok_or_else(|| malformed(&format!("a JSON patch operation needs the string {field:?}: {operation}")))
    };
    let value = || {
        let value = operation.get("value").cloned();
        value.ok_or_else(|| malformed(&format!("a JSON patch operation needs \"value\": {operation}")))
    };
    let path = text("path")?;
    match text("op")? {
        "add" => add(document, path, value()?),
        "remove" => remove(document, path).map(|_| ()),
        "replace" => {
            let wanted = value()?;
            let place = document.pointer_mut(path).ok_or_else(|| missing("replace", path))?;
            *place = wanted;
            Ok(())
        }
        "move" => {
            let from = text("from")?;
            if path.strip_prefix(from).is_some_and(|rest| rest.starts_with('/')) {
                return Err(inapplicable(format!("move operation moves {from:?} into itself")));
            }
            let value = remove(document, from)?;
            add(document, path, value)
        }
        "copy" => {
            let from = text("from")?;
            let value = document.pointer(from).ok_or_else(|| missing("copy", from))?.clone();
            *copied_bytes += value.to_string().len();
            if *copied_bytes > COPIED_BYTES_MAX {
                return Err(PatchError::TooLarge { bytes_max: COPIED_BYTES_MAX });
            }
            add(document, path, value)
        }
        "test" => {
            let wanted = value()?;
            let found = document.pointer(path).unwrap_or(&Value::Null);
            if *found == wanted {
                Ok(())
            } else {
                Err(inapplicable(format!("testing value {path} failed: test failed")))
            }
        }
        other => Err(malformed(&format!("Unexpected kind: {other}"))),
    }
}

/// The container of a pointer's last token, and that token unescaped.
fn parent<'a>(document: &'a mut Value, path: &str, act: &str) -> Result<(&'a mut Value, String), PatchError> {
    let (parent, last) = path.rsplit_once('/').ok_or_else(|| missing(act, path))?;
    let last = last.replace("~1", "/").replace("~0", "~");
    let parent = document.pointer_mut(parent).ok_or_else(|| missing(act, path))?;
    Ok((parent, last))
}

fn add(document: &mut Value, path: &str, value: Value) -> Result<(), PatchError> {
    if path.is_empty() {
        *document = value;
        return Ok(());
    }
    let (parent, last) = parent(document, path, "add")?;
    match parent {
        Value::Object(fields) => {
            fields.insert(last, value);
        }
        Value::Array(items) if last == "-" => items.push(value),
        Value::Array(items) => {
            let index = index(&last, items.len(), path)?;
            items.insert(index, value);
        }
        _ => return Err(missing("add", path)),
    }
    Ok(())
}

fn remove(document: &mut Value, path: &str) -> Result<Value, PatchError> {
    let (parent, last) = parent(document, path, "remove")?;
    match parent {
        Value::Object(fields) => fields.remove(&last).ok_or_else(|| missing("remove", path)),
        Value::Array(items) => {
            let index = index(&last, items.len().saturating_sub(1), path)?;
            if index < items.len() { Ok(items.remove(index)) } else { Err(missing("remove", path)) }
        }
        _ => Err(missing("remove", path)),
    }
}

fn index(token: &str, max: usize, path: &str) -> Result<usize, PatchError> {
    let is_canonical = token == "0" || (!token.starts_with('0') && token.bytes().all(|byte| byte.is_ascii_digit()));
    let index = token.parse::<usize>().ok().filter(|index| is_canonical && *index <= max);
    index.ok_or_else(|| inapplicable(format!("Unable to access invalid index: {token} ({path:?})")))
}

fn missing(act: &str, path: &str) -> PatchError {
    inapplicable(format!("{act} operation does not apply: doc is missing path: {path:?}: missing value"))
}

fn malformed(message: &str) -> PatchError {
    PatchError::Malformed(message.to_owned())
}

fn inapplicable(message: String) -> PatchError {
    PatchError::Inapplicable(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn applies_the_operations() {
        let document = json!({"a": {"b": [1, 2, 3]}, "x/y": "z"});
        let cases = vec![
            (json!([{"op": "add", "path": "/a/b/1", "value": 9}]), json!({"a": {"b": [1, 9, 2, 3]}, "x/y": "z"})),
            (json!([{"op": "add", "path": "/a/b/-", "value": 9}]), json!({"a": {"b": [1, 2, 3, 9]}, "x/y": "z"})),
            (json!([{"op": "remove", "path": "/x~1y"}]), json!({"a": {"b": [1, 2, 3]}})),
            (json!([{"op": "replace", "path": "/a/b/0", "value": 7}]), json!({"a": {"b": [7, 2, 3]}, "x/y": "z"})),
            (json!([{"op": "move", "from": "/a/b", "path": "/c"}]), json!({"a": {}, "c": [1, 2, 3], "x/y": "z"})),
            (
                json!([{"op": "copy", "from": "/a/b/2", "path": "/c"}]),
                json!({"a": {"b": [1, 2, 3]}, "c": 3, "x/y": "z"}),
            ),
            (json!([{"op": "test", "path": "/x~1y", "value": "z"}]), document.clone()),
        ];
        for (patch, wanted) in cases {
            assert_eq!(apply(&document, &patch), Ok(wanted), "{patch}");
        }
    }

    #[test]
    fn refuses_what_does_not_apply() {
        let document = json!({"a": [1]});
        let patches = [
            json!({}),
            json!([{"op": "add", "path": "/b/c", "value": 1}]),
            json!([{"op": "remove", "path": "/a/1"}]),
            json!([{"op": "add", "path": "/a/01", "value": 1}]),
            json!([{"op": "test", "path": "/a/0", "value": 2}]),
            json!([{"op": "move", "from": "/a", "path": "/a/0"}]),
            json!([{"op": "dance", "path": "/a"}]),
        ];
        for patch in patches {
            assert!(apply(&document, &patch).is_err(), "{patch}");
        }
    }

    #[test]
    fn copies_do_not_double_for_ever() {
        let document = json!({"a": ["x".repeat(1000)]});
        let copies: Vec<Value> = (0..64).map(|_| json!({"op": "copy", "from": "/a", "path": "/a/-"})).collect();
        assert_eq!(apply(&document, &copies.into()), Err(PatchError::TooLarge { bytes_max: COPIED_BYTES_MAX }));
    }
}
