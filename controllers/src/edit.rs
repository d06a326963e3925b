//! Small edits of objects' JSON that several controllers make.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;
use serde_json::{Map, Value};
use state::{Object, Write};

/// Kubernetes leaves counts of zero out.
pub(crate) fn nonzero(count: usize) -> Option<i32> {
    i32::try_from(count).ok().filter(|count| *count != 0)
}

/// A moment as Kubernetes keeps it: whole seconds.
pub(crate) fn time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// The write that gives an object this status, if it has another.
pub(crate) fn status<S: Serialize>(object: &Object, status: &S) -> Option<Write> {
    let status = serde_json::to_value(status).ok()?;
    let mut value = object.value();
    if value.get("status").unwrap_or(&Value::Null) == &status {
        return None;
    }
    value["status"] = status;
    Some(Write::update(object, value))
}

/// `metadata.annotations` of a value, made if missing. `None` when the value has no metadata.
pub(crate) fn annotations(value: &mut Value) -> Option<&mut Map<String, Value>> {
    let metadata = value.get_mut("metadata")?.as_object_mut()?;
    metadata.entry("annotations").or_insert_with(|| Value::Object(Map::new())).as_object_mut()
}

/// Sets one annotation; says whether that changed anything.
pub(crate) fn annotate(value: &mut Value, key: &str, text: &str) -> bool {
    let Some(annotations) = annotations(value) else { return false };
    let before = annotations.insert(key.to_owned(), text.into());
    before.as_ref().and_then(Value::as_str) != Some(text)
}
