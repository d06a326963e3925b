//! Small tools of defaulting: setting what is missing, dropping what is null.

use crate::quantity;
use serde_json::{Map, Value, json};

/// Sets a field that is missing or null.
pub fn missing(fields: &mut Map<String, Value>, name: &str, value: impl Into<Value>) {
    let field = fields.entry(name).or_insert(Value::Null);
    if field.is_null() {
        *field = value.into();
    }
}

/// The fields of an object in a field, if there is one.
pub fn fields<'v>(parent: &'v mut Map<String, Value>, name: &str) -> Option<&'v mut Map<String, Value>> {
    parent.get_mut(name)?.as_object_mut()
}

/// The fields of an object in a field, made if it is missing; `None` when something else is there.
pub fn object<'v>(parent: &'v mut Map<String, Value>, name: &str) -> Option<&'v mut Map<String, Value>> {
    missing(parent, name, json!({}));
    parent.get_mut(name)?.as_object_mut()
}

/// The objects of a list in a field.
pub fn objects<'v>(
    parent: &'v mut Map<String, Value>,
    name: &str,
) -> impl Iterator<Item = &'v mut Map<String, Value>> + use<'v> {
    parent.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

/// Whether a field says this.
pub fn says(fields: &Map<String, Value>, name: &str, text: &str) -> bool {
    fields.get(name).and_then(Value::as_str) == Some(text)
}

/// Whether something is in a field.
pub fn is_set(fields: &Map<String, Value>, name: &str) -> bool {
    fields.get(name).is_some_and(|value| !value.is_null())
}

/// Drops null fields at every depth, as decoding into Kubernetes' types does; `status` is left as it was told.
pub fn prune(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.retain(|_, value| !value.is_null());
        for (_, value) in fields.iter_mut().filter(|(name, _)| *name != "status") {
            prune_all(value);
        }
    }
}

fn prune_all(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(prune_all);
        }
        Value::Array(items) => items.iter_mut().for_each(prune_all),
        _ => {}
    }
}

/// Writes a quantity in its canonical form; what is none stays.
pub fn canonical(value: &mut Value) {
    let text = match &*value {
        Value::String(text) => quantity::canonical(text),
        Value::Number(number) => quantity::canonical(&number.to_string()),
        _ => None,
    };
    if let Some(text) = text {
        *value = text.into();
    }
}
