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
    for (name, value) in patch {
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
            reorder(items, order, rule.key);
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

/// Puts the elements that `order` names into its order; the others keep their place relative to them.
fn reorder(items: &mut Vec<Value>, order: &[Value], key: Option<&str>) {
    let name = |item: &Value| key.map_or_else(|| item.clone(), |key| item.get(key).cloned().unwrap_or_default());
    let wanted: Vec<Value> = order.iter().map(name).collect();
    let before: Vec<Value> = items.iter().map(name).collect();
    let place = |item: &Value| before.iter().position(|other| *other == name(item));
    let rank = |item: &Value| wanted.iter().position(|other| *other == name(item));
    let (mut ordered, others): (Vec<Value>, Vec<Value>) = items.drain(..).partition(|item| rank(item).is_some());
    ordered.sort_by_key(rank);
    let mut ordered = ordered.into_iter().peekable();
    for other in others {
        while let Some(next) = ordered.next_if(|next| place(next) < place(&other)) {
            items.push(next);
        }
        items.push(other);
    }
    items.extend(ordered);
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
