//! Cells that several kinds print.

use crate::{Column, human};
use jiff::Timestamp;
use serde_json::Value;

pub(super) const NONE: &str = "<none>";
pub(super) const UNKNOWN: &str = human::UNKNOWN;
/// Items of a list that fit into a cell.
const LISTED_MAX: usize = 3;

/// A column that is always printed.
pub(super) const fn column(
    name: &'static str,
    format: &'static str,
    description: &'static str,
    cell: fn(&Value, Timestamp) -> Value,
) -> Column {
    Column { name, format, description, priority: 0, cell }
}

/// A column of `-o wide`.
pub(super) const fn wide(
    name: &'static str,
    format: &'static str,
    description: &'static str,
    cell: fn(&Value, Timestamp) -> Value,
) -> Column {
    Column { name, format, description, priority: 1, cell }
}

pub(super) const NAME: Column =
    column("Name", "string", "Name must be unique within a namespace.", |object, _| object["metadata"]["name"].clone());

pub(super) const AGE: Column = column("Age", "string", "Time since the object was created.", |object, now| {
    human::since(&object["metadata"]["creationTimestamp"], now).into()
});

/// Names of the containers in `spec.template`.
pub(super) const CONTAINERS: Column =
    wide("Containers", "string", "Names of each container in the template.", |object, _| {
        listed(&object["spec"]["template"]["spec"]["containers"], "name")
    });

/// Images of the containers in `spec.template`.
pub(super) const IMAGES: Column =
    wide("Images", "string", "Images referenced by each container in the template.", |object, _| {
        listed(&object["spec"]["template"]["spec"]["containers"], "image")
    });

/// `spec.selector` of a kind that has a label selector.
pub(super) const SELECTOR: Column =
    wide("Selector", "string", "Label selector for the pods of this object.", |object, _| {
        selector(&object["spec"]["selector"]).into()
    });

fn listed(items: &Value, field: &str) -> Value {
    let texts: Vec<&str> = items.as_array().into_iter().flatten().map(|item| text(&item[field])).collect();
    texts.join(",").into()
}

/// A text; empty when there is none.
pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

/// A text, or this when there is none.
pub(super) fn text_or<'v>(value: &'v Value, none: &'v str) -> &'v str {
    value.as_str().filter(|text| !text.is_empty()).unwrap_or(none)
}

/// A number; 0 when there is none.
pub(super) fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

/// How many entries a map or list has.
pub(super) fn count(value: &Value) -> usize {
    value.as_object().map_or(0, serde_json::Map::len) + value.as_array().map_or(0, Vec::len)
}

/// The items of a list.
pub(super) fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Labels as `a=b,c=d`.
pub(super) fn labels(labels: &Value) -> String {
    let mut pairs: Vec<String> =
        labels.as_object().into_iter().flatten().map(|(key, value)| format!("{key}={}", text(value))).collect();
    pairs.sort();
    if pairs.is_empty() { NONE.to_owned() } else { pairs.join(",") }
}

/// A label selector as a query writes it.
pub(super) fn selector(selector: &Value) -> String {
    let mut terms: Vec<String> = Vec::new();
    if count(&selector["matchLabels"]) > 0 {
        terms.push(labels(&selector["matchLabels"]));
    }
    for term in items(&selector["matchExpressions"]) {
        let values: Vec<&str> = items(&term["values"]).iter().map(text).collect();
        let (key, values) = (text(&term["key"]), values.join(","));
        terms.push(match text(&term["operator"]) {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    if terms.is_empty() { NONE.to_owned() } else { terms.join(",") }
}

/// The first of a list, and how many more there are.
pub(super) fn first_few(texts: &[String], none: &str) -> String {
    if texts.is_empty() {
        return none.to_owned();
    }
    let shown = texts[..texts.len().min(LISTED_MAX)].join(",");
    let more = texts.len().saturating_sub(LISTED_MAX);
    if more > 0 { format!("{shown} + {more} more...") } else { shown }
}

/// Whether a condition of this type is true.
pub(super) fn holds(object: &Value, condition: &str) -> bool {
    items(&object["status"]["conditions"]).iter().any(|found| found["type"] == condition && found["status"] == "True")
}
