//! Strategic merge patch: a merge patch that knows which lists are maps or sets, and its directives `$patch`,
//! `$retainKeys`, `$deleteFromPrimitiveList/x` and `$setElementOrder/x`.

use super::{DEPTH_MAX, PatchError};
use manifests::Kind;
use manifests::merge::{Rule, rule};
use serde_json::{Map, Value};

pub(super) const DIRECTIVE: &str = "$patch";
pub(super) const RETAIN_KEYS: &str = "$retainKeys";
pub(super) const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
pub(super) const ELEMENT_ORDER: &str = "$setElementOrder/";

/// The rule of the field at a path of field names, list indices left out: `["spec", "template", "spec", "containers"]`.
pub type Rules<'a> = dyn Fn(&[&str]) -> Rule + 'a;

/// The rules of a kind's fields.
pub fn rules_of(kind: &'static Kind) -> impl Fn(&[&str]) -> Rule {
    move |path| rule(kind, path)
}

/// Merges `patch` into `original`.
///
/// # Errors
/// When a directive is not one, or an element of a list lacks the key that names it.
pub fn apply(original: &Value, patch: &Value, rules: &Rules<'_>) -> Result<Value, PatchError> {
    let (Value::Object(original), Value::Object(patch)) = (original, patch) else {
        return Err(PatchError::Malformed("a strategic merge patch is a JSON object".into()));
    };
    let merged = merge_map(original.clone(), patch, &mut Vec::new(), rules)?;
    Ok(Value::Object(merged))
}

type Fields = Map<String, Value>;

fn merge_map<'p>(
    mut fields: Fields,
    patch: &'p Fields,
    path: &mut Vec<&'p str>,
    rules: &Rules<'_>,
) -> Result<Fields, PatchError> {
    if path.len() > DEPTH_MAX {
        return Err(malformed("the patch is nested too deeply"));
    }
    match patch.get(DIRECTIVE).map(|directive| directive.as_str().unwrap_or_default()) {
        None | Some("merge") => {}
        Some("replace") => {
            let kept = patch.iter().filter(|(name, _)| *name != DIRECTIVE);
            return Ok(kept.map(|(name, value)| (name.clone(), plain(value))).collect());
        }
        Some("delete") => return Ok(Map::new()),
        Some(other) => return Err(malformed(&format!("Unknown patch type: {other} found in map: ${path:?}"))),
    }
    if let Some(retained) = patch.get(RETAIN_KEYS) {
        retain(&mut fields, patch, retained)?;
    }
    // what the order of the elements is told against
    let mut before = Fields::new();
    for (name, value) in patch {
        if let Some(list) = name.strip_prefix(ELEMENT_ORDER)
            && let Some(items) = fields.get(list)
        {
            before.insert(list.to_owned(), items.clone());
        }
        if let Some(list) = name.strip_prefix(DELETE_FROM) {
            let gone = value.as_array().ok_or_else(|| malformed(&format!("{name} must be a list")))?;
            if let Some(Value::Array(items)) = fields.get_mut(list) {
                items.retain(|item| !gone.contains(item));
            }
        }
    }
    for (name, value) in patch {
        if name == DIRECTIVE || name == RETAIN_KEYS || name.starts_with(DELETE_FROM) || name.starts_with(ELEMENT_ORDER)
        {
            continue;
        }
        path.push(name);
        merge_field(&mut fields, name, value, path, rules)?;
        path.pop();
    }
    for (name, order) in patch {
        let Some(list) = name.strip_prefix(ELEMENT_ORDER) else { continue };
        let order = order.as_array().ok_or_else(|| malformed(&format!("{name} must be a list")))?;
        path.push(list);
        let rule = rules(path);
        path.pop();
        if let Some(Value::Array(items)) = fields.get_mut(list) {
            let before = before.get(list).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            reorder(items, before, order, rule.key);
        }
    }
    Ok(fields)
}

fn merge_field<'p>(
    fields: &mut Fields,
    name: &str,
    value: &'p Value,
    path: &mut Vec<&'p str>,
    rules: &Rules<'_>,
) -> Result<(), PatchError> {
    if value.is_null() {
        fields.remove(name);
        return Ok(());
    }
    let merged = match (fields.remove(name), value) {
        (Some(Value::Object(old)), Value::Object(patch)) => Value::Object(merge_map(old, patch, path, rules)?),
        (Some(Value::Array(old)), Value::Array(patch)) => Value::Array(merge_list(old, patch, path, rules)?),
        // what is not there yet is merged into nothing, so that directives mean the same
        (None, Value::Object(patch)) => {
            if patch.get(DIRECTIVE).and_then(Value::as_str) == Some("delete") {
                return Ok(());
            }
            Value::Object(merge_map(Map::new(), patch, path, rules)?)
        }
        (None, Value::Array(patch)) => Value::Array(merge_list(Vec::new(), patch, path, rules)?),
        (_, other) => plain(other),
    };
    fields.insert(name.to_owned(), merged);
    Ok(())
}

fn merge_list<'p>(
    mut items: Vec<Value>,
    patch: &'p [Value],
    path: &mut Vec<&'p str>,
    rules: &Rules<'_>,
) -> Result<Vec<Value>, PatchError> {
    let rule = rules(path);
    let replaces = patch.iter().any(|item| item.get(DIRECTIVE).and_then(Value::as_str) == Some("replace"));
    if !rule.merge || replaces {
        return Ok(patch.iter().filter(|item| item.get(DIRECTIVE).is_none()).map(plain).collect());
    }
    let Some(key) = rule.key else {
        for item in patch {
            if !items.contains(item) {
                items.push(item.clone());
            }
        }
        return Ok(items);
    };
    for item in patch {
        let Value::Object(change) = item else {
            return Err(malformed(&format!("an element of {} must be an object", path.join("."))));
        };
        let name = change
            .get(key)
            .ok_or_else(|| malformed(&format!("map: {item} does not contain declared merge key: {key}")))?;
        let is_named = |item: &Value| item.get(key) == Some(name);
        let directive = change.get(DIRECTIVE).and_then(Value::as_str);
        match (directive, items.iter().position(is_named)) {
            (Some("delete"), _) => items.retain(|item| !is_named(item)),
            (_, Some(at)) => {
                let Value::Object(old) = items[at].take() else { continue };
                items[at] = Value::Object(merge_map(old, change, path, rules)?);
            }
            (_, None) => items.push(Value::Object(merge_map(Map::new(), change, path, rules)?)),
        }
    }
    Ok(items)
}

/// `$retainKeys`: the map keeps only these, and the patch may set only these.
fn retain(fields: &mut Fields, patch: &Fields, retained: &Value) -> Result<(), PatchError> {
    let retained = retained.as_array().ok_or_else(|| malformed("$retainKeys must be a list"))?;
    let is_retained = |name: &str| retained.iter().any(|kept| kept == name);
    for (name, value) in patch {
        if !name.starts_with('$') && !value.is_null() && !is_retained(name) {
            return Err(malformed("patch key is not in $retainKeys list"));
        }
    }
    fields.retain(|name, _| is_retained(name));
    Ok(())
}

/// Puts the elements that `order` names into its order. The others stay behind those that they stood behind `before`.
fn reorder(items: &mut Vec<Value>, before: &[Value], order: &[Value], key: Option<&str>) {
    let name = |item: &Value| key.map_or_else(|| item.clone(), |key| item.get(key).cloned().unwrap_or_default());
    let place = |list: &[Value], item: &Value| list.iter().position(|other| name(other) == name(item));
    let (mut ordered, others): (Vec<Value>, Vec<Value>) =
        items.drain(..).partition(|item| place(order, item).is_some());
    ordered.sort_by_key(|item| place(order, item));
    let mut others = others.into_iter().peekable();
    for next in ordered {
        let stood_before =
            |other: &Value| matches!((place(before, other), place(before, &next)), (Some(a), Some(b)) if a < b);
        while let Some(other) = others.next_if(stood_before) {
            items.push(other);
        }
        items.push(next);
    }
    items.extend(others);
}

/// A value without nulls' and directives' meaning left in it: what a patch puts where nothing was.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(name, value)| !is_directive(name) && !value.is_null());
            Value::Object(kept.map(|(name, value)| (name.clone(), plain(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(plain).collect()),
        other => other.clone(),
    }
}

fn is_directive(name: &str) -> bool {
    name == DIRECTIVE || name == RETAIN_KEYS || name.starts_with(DELETE_FROM) || name.starts_with(ELEMENT_ORDER)
}

fn malformed(message: &str) -> PatchError {
    PatchError::Malformed(message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::{three_way_merge, three_way_strategic};
    use serde_json::json;

    /// A Deployment's, as far as the cases go.
    fn rules(path: &[&str]) -> Rule {
        let keyed = |key| Rule { key: Some(key), merge: true, ..Rule::default() };
        match path.last() {
            Some(&"containers" | &"env") => keyed("name"),
            Some(&"ports") => keyed("containerPort"),
            Some(&"finalizers") => Rule { merge: true, ..Rule::default() },
            Some(&"strategy") => Rule { retain_keys: true, ..Rule::default() },
            _ => Rule::default(),
        }
    }

    #[test]
    fn merges_by_key_and_by_directive() {
        let pod = json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}], "x": {"y": 1}});
        let cases = [
            (
                "one element changes",
                json!({"containers": [{"name": "b", "image": "2"}]}),
                json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}], "x": {"y": 1}}),
            ),
            (
                "one element comes, in an order",
                json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}],
                    "containers": [{"name": "c"}]}),
                json!({"containers": [{"name": "c"}, {"name": "b", "image": "1"}, {"name": "a", "image": "1"}], "x": {"y": 1}}),
            ),
            (
                "one element goes",
                json!({"containers": [{"name": "a", "$patch": "delete"}]}),
                json!({"containers": [{"name": "b", "image": "1"}], "x": {"y": 1}}),
            ),
            (
                "the list is replaced",
                json!({"containers": [{"$patch": "replace"}, {"name": "z"}]}),
                json!({"containers": [{"name": "z"}], "x": {"y": 1}}),
            ),
            (
                "a map is replaced, a field removed",
                json!({"x": {"$patch": "replace", "z": 2}, "containers": null}),
                json!({"x": {"z": 2}}),
            ),
            (
                "keys are retained",
                json!({"x": {"$retainKeys": ["z"], "z": 3}}),
                json!({"containers": pod["containers"], "x": {"z": 3}}),
            ),
            (
                "a scalar goes from a set and one comes",
                json!({"finalizers": ["c"], "$deleteFromPrimitiveList/finalizers": ["a"]}),
                json!({"containers": pod["containers"], "x": {"y": 1}, "finalizers": ["b", "c"]}),
            ),
        ];
        for (what, patch, wanted) in cases {
            let mut original = pod.clone();
            if what.contains("scalar") {
                original["finalizers"] = json!(["a", "b"]);
            }
            assert_eq!(apply(&original, &patch, &rules), Ok(wanted), "{what}");
        }
    }

    #[test]
    fn refuses_an_element_without_its_key() {
        let patch = json!({"containers": [{"image": "2"}]});
        let refused = apply(&json!({"containers": []}), &patch, &rules);
        assert!(matches!(refused, Err(PatchError::Malformed(_))), "{refused:?}");
    }

    #[test]
    fn three_ways_lead_to_what_was_applied_and_keep_what_others_did() {
        let original = json!({"spec": {"replicas": 2, "containers": [
            {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "1"}]}, {"name": "gone"}]}});
        let modified = json!({"spec": {"containers": [
            {"name": "new", "image": "3"}, {"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}]}]}});
        let current = json!({"spec": {"replicas": 5, "paused": true, "containers": [
            {"name": "a", "image": "1", "pull": "Always", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "1"}]},
            {"name": "gone"}, {"name": "sidecar"}]}});
        let patch = three_way_strategic(&original, &modified, &current, &rules);
        let after = apply(&current, &patch, &rules).expect("the patch applies");
        let wanted = json!({"spec": {"paused": true, "containers": [
            {"name": "new", "image": "3"},
            {"name": "a", "image": "2", "pull": "Always", "env": [{"name": "Y", "value": "2"}]},
            {"name": "sidecar"}]}});
        assert_eq!(after, wanted, "patch {patch}");
        let again = three_way_strategic(&modified, &modified, &after, &rules);
        assert_eq!(again, json!({}), "applying the same again changes nothing");
    }

    #[test]
    fn three_ways_as_merge_patch() {
        let (original, modified) = (json!({"a": 1, "b": [1], "c": {"d": 1}}), json!({"b": [1, 2], "c": {"e": 2}}));
        let current = json!({"a": 1, "b": [1], "c": {"d": 1, "other": true}});
        let patch = three_way_merge(&original, &modified, &current);
        assert_eq!(patch, json!({"a": null, "b": [1, 2], "c": {"d": null, "e": 2}}));
    }
}
