//! Events: what happened to an object, told to people.

use super::cells::{NAME, column, number, text, wide};
use crate::field::{At, FieldError};
use crate::{Column, Kind, fill, human, meta, names};
use jiff::Timestamp;
use schemars::SchemaGenerator;
use serde_json::Value;

/// `Event`.
pub(super) const EVENT: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    categories: &[],
    namespaced: true,
    subresources: &[],
    volatile: false,
    counts_generation: false,
    columns: &[LAST_SEEN, TYPE, REASON, OBJECT, SUBOBJECT, SOURCE, MESSAGE, FIRST_SEEN, COUNT, NAME_WIDE],
    selectable: &[
        "involvedObject.apiVersion",
        "involvedObject.fieldPath",
        "involvedObject.kind",
        "involvedObject.name",
        "involvedObject.namespace",
        "involvedObject.resourceVersion",
        "involvedObject.uid",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ],
    default: fill::prune,
    validate,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::core::v1::Event>,
};

const LAST_SEEN: Column =
    column("Last Seen", "string", "Time of the last occurrence.", |object, now| last_seen(object, now).into());
const TYPE: Column = column("Type", "string", "Normal or Warning.", |object, _| text(&object["type"]).into());
const REASON: Column = column("Reason", "string", "Why, in one word.", |object, _| text(&object["reason"]).into());
const OBJECT: Column = column("Object", "string", "What it is about.", |object, _| {
    let about = &object["involvedObject"];
    let kind = text(&about["kind"]).to_lowercase();
    let name = text(&about["name"]);
    if name.is_empty() { kind.into() } else { format!("{kind}/{name}").into() }
});
const SUBOBJECT: Column =
    wide("Subobject", "string", "Which part of it.", |object, _| text(&object["involvedObject"]["fieldPath"]).into());
const SOURCE: Column = wide("Source", "string", "Who says so.", |object, _| {
    let component = match text(&object["source"]["component"]) {
        "" => text(&object["reportingComponent"]),
        component => component,
    };
    let host = match text(&object["source"]["host"]) {
        "" => text(&object["reportingInstance"]),
        host => host,
    };
    if host.is_empty() { component.into() } else { format!("{component}, {host}").into() }
});
const MESSAGE: Column =
    column("Message", "string", "Why, in a sentence.", |object, _| text(&object["message"]).trim().into());
const FIRST_SEEN: Column =
    wide("First Seen", "string", "Time of the first occurrence.", |object, now| first_seen(object, now).into());
const COUNT: Column = wide("Count", "string", "How often it occurred.", |object, _| {
    let series = &object["series"]["count"];
    number(if series.is_null() { &object["count"] } else { series }).max(1).into()
});
const NAME_WIDE: Column = Column { priority: 1, ..NAME };

fn first_seen(object: &Value, now: Timestamp) -> String {
    let first = &object["firstTimestamp"];
    human::since(if first.is_null() { &object["eventTime"] } else { first }, now)
}

fn last_seen(object: &Value, now: Timestamp) -> String {
    match (&object["series"]["lastObservedTime"], &object["lastTimestamp"]) {
        (Value::Null, Value::Null) => first_seen(object, now),
        (Value::Null, last) | (last, _) => human::since(last, now),
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = meta::validate(new, old, names::dns_subdomain);
    let root = At::root(new);
    let about = root.field("involvedObject").field("namespace");
    let own = root.field("metadata").field("namespace");
    let fits = about.text() == own.text() || (about.text().is_empty() && own.text() == "default");
    if !fits {
        errors.push(about.invalid("does not match event.namespace"));
    }
    errors
}
