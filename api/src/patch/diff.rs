//! The patch of client-side apply: three inputs, one walk. What the new input (`modified`) has and the live object
//! (`current`) has not is set; what the last input (`original`) had and the new one has not is removed; what others
//! put into the live object stays.

use super::strategic::{DELETE_FROM, DIRECTIVE, ELEMENT_ORDER, RETAIN_KEYS, Rules};
use manifests::merge::Rule;
use serde_json::{Map, Value, json};

type Fields = Map<String, Value>;

/// The strategic merge patch that takes `current` to `modified`, given the `original` that was applied last (null when
/// there was none). An empty object when there is nothing to do.
pub fn three_way_strategic(original: &Value, modified: &Value, current: &Value, rules: &Rules<'_>) -> Value {
    let empty = Fields::new();
    let fields = |value| Value::as_object(value).unwrap_or(&empty);
    Value::Object(diff_maps(fields(original), fields(modified), fields(current), &mut Vec::new(), rules))
}

/// As [`three_way_strategic`], as a JSON merge patch: for kinds whose lists have no merge keys.
pub fn three_way_merge(original: &Value, modified: &Value, current: &Value) -> Value {
    three_way_strategic(original, modified, current, &|_| Rule::default())
}

fn diff_maps<'v>(
    original: &'v Fields,
    modified: &'v Fields,
    current: &'v Fields,
    path: &mut Vec<&'v str>,
    rules: &Rules<'_>,
) -> Fields {
    let mut patch = Fields::new();
    for (name, wanted) in modified {
        path.push(name);
        let rule = rules(path);
        diff_field(&mut patch, name, original.get(name), wanted, current.get(name), &rule, path, rules);
        path.pop();
    }
    for name in original.keys() {
        if !modified.contains_key(name) && current.contains_key(name) {
            patch.insert(name.clone(), Value::Null);
        }
    }
    patch
}

#[allow(clippy::too_many_arguments, reason = "one step of the walk: three inputs, one output, and where it is")]
fn diff_field<'v>(
    patch: &mut Fields,
    name: &str,
    original: Option<&'v Value>,
    wanted: &'v Value,
    current: Option<&'v Value>,
    rule: &Rule,
    path: &[&'v str],
    rules: &Rules<'_>,
) {
    let Some(current) = current else {
        if !wanted.is_null() {
            patch.insert(name.to_owned(), wanted.clone());
        }
        return;
    };
    match (wanted, current) {
        (Value::Object(wanted), Value::Object(current)) => {
            let before = original.and_then(Value::as_object);
            let nothing = Fields::new();
            let before = before.cloned().unwrap_or(nothing);
            let mut inner_path = path.to_vec();
            let mut inner = diff_maps(&before, wanted, current, &mut inner_path, rules);
            if inner.is_empty() {
                return;
            }
            if rule.retain_keys {
                inner.insert(RETAIN_KEYS.into(), wanted.keys().cloned().collect::<Vec<_>>().into());
            }
            patch.insert(name.to_owned(), Value::Object(inner));
        }
        (Value::Array(wanted), Value::Array(current)) if rule.merge => {
            let before = original.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            match rule.key {
                Some(key) => diff_keyed(patch, name, key, before, wanted, current, path, rules),
                None => diff_set(patch, name, before, wanted, current),
            }
        }
        (wanted, current) if wanted == current => {}
        (wanted, _) => {
            patch.insert(name.to_owned(), wanted.clone());
        }
    }
}

/// A list that is a set of scalars.
fn diff_set(patch: &mut Fields, name: &str, original: &[Value], wanted: &[Value], current: &[Value]) {
    let added: Vec<&Value> = wanted.iter().filter(|item| !current.contains(item)).collect();
    let gone: Vec<&Value> = original.iter().filter(|item| !wanted.contains(item) && current.contains(item)).collect();
    if added.is_empty() && gone.is_empty() {
        return;
    }
    if !added.is_empty() {
        patch.insert(name.to_owned(), json!(added));
    }
    if !gone.is_empty() {
        patch.insert(format!("{DELETE_FROM}{name}"), json!(gone));
    }
    patch.insert(format!("{ELEMENT_ORDER}{name}"), json!(wanted));
}

/// A list that is a map: its elements are named by `key`.
#[allow(clippy::too_many_arguments, reason = "as diff_field")]
fn diff_keyed(
    patch: &mut Fields,
    name: &str,
    key: &str,
    original: &[Value],
    wanted: &[Value],
    current: &[Value],
    path: &[&str],
    rules: &Rules<'_>,
) {
    let find = |items: &[Value], id: &Value| items.iter().find(|item| item.get(key) == Some(id)).cloned();
    let mut changes = Vec::new();
    for item in wanted {
        // an element without its key cannot be merged: the server refuses it with the right words
        let Some(id) = item.get(key) else {
            changes.push(item.clone());
            continue;
        };
        let Some(found) = find(current, id) else {
            changes.push(item.clone());
            continue;
        };
        let before = find(original, id).unwrap_or_default();
        let fields = |value: Value| if let Value::Object(fields) = value { fields } else { Fields::new() };
        let (before, after, now) = (fields(before), fields(item.clone()), fields(found));
        let mut inner_path = path.to_vec();
        let mut change = diff_maps(&before, &after, &now, &mut inner_path, rules);
        if !change.is_empty() {
            change.insert(key.to_owned(), id.clone());
            changes.push(Value::Object(change));
        }
    }
    for item in original {
        let Some(id) = item.get(key) else { continue };
        if find(wanted, id).is_none() && find(current, id).is_some() {
            changes.push(json!({DIRECTIVE: "delete", key: id}));
        }
    }
    let ids = |items: &[Value]| items.iter().filter_map(|item| item.get(key).cloned()).collect::<Vec<_>>();
    let order = ids(wanted);
    let order_now: Vec<Value> = ids(current).into_iter().filter(|id| order.contains(id)).collect();
    let order_kept: Vec<&Value> = order.iter().filter(|id| order_now.contains(id)).collect();
    if changes.is_empty() && order_kept.iter().copied().eq(order_now.iter()) {
        return;
    }
    if !changes.is_empty() {
        patch.insert(name.to_owned(), changes.into());
    }
    let order: Vec<Value> = order.into_iter().map(|id| json!({key: id})).collect();
    patch.insert(format!("{ELEMENT_ORDER}{name}"), order.into());
}
