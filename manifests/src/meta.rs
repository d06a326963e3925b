//! Validation of `metadata`: what every kind's objects have in common.

use crate::field::{At, Fault, FieldError, invalid_by};
use crate::names;
use serde_json::Value;

/// All annotations of an object together: Kubernetes' bound.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;
/// Finalizers that need no qualified name.
const PLAIN_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

/// What is wrong with the metadata of a new object, or of one in place of `old`. `name` is the kind's own rule for names.
pub fn validate(new: &Value, old: Option<&Value>, name: fn(&str) -> Vec<String>) -> Vec<FieldError> {
    let meta = At::root(new).field("metadata");
    let mut errors = Vec::new();
    let generate = meta.field("generateName");
    if !generate.text().is_empty() {
        errors.extend(invalid_by(&generate, name(&masked(generate.text()))));
    }
    if meta.field("name").text().is_empty() {
        errors.push(meta.field("name").required("name or generateName is required"));
    } else {
        errors.extend(invalid_by(&meta.field("name"), name(meta.field("name").text())));
    }
    errors.extend(labels(&meta.field("labels")));
    errors.extend(annotations(&meta.field("annotations")));
    errors.extend(owners(&meta.field("ownerReferences")));
    for finalizer in meta.field("finalizers").items() {
        errors.extend(invalid_by(&finalizer, names::qualified(finalizer.text())));
        if !finalizer.text().contains('/') && !PLAIN_FINALIZERS.contains(&finalizer.text()) {
            errors.push(finalizer.invalid("name is neither a standard finalizer name nor is it fully qualified"));
        }
    }
    if let Some(old) = old {
        errors.extend(unchanged(&meta, &At::root(old).field("metadata")));
    }
    errors
}

/// A dash at the end of a prefix is followed by something, so it is checked as if it were a letter.
fn masked(prefix: &str) -> String {
    prefix.strip_suffix('-').map_or_else(|| prefix.to_owned(), |start| format!("{start}a"))
}

/// What is wrong with labels.
pub fn labels(labels: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels.entries() {
        for fault in names::qualified(key) {
            errors.push(labels.fault(Fault::Invalid(key.into(), fault)));
        }
        for fault in names::label_value(value.text()) {
            errors.push(labels.fault(Fault::Invalid(value.value.clone(), fault)));
        }
    }
    errors
}

/// What is wrong with annotations.
pub fn annotations(annotations: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut bytes = 0;
    for (key, value) in annotations.entries() {
        for fault in names::qualified(&key.to_lowercase()) {
            errors.push(annotations.fault(Fault::Invalid(key.into(), fault)));
        }
        bytes += key.len() + value.text().len();
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        errors.push(annotations.fault(Fault::TooLong(ANNOTATIONS_BYTES_MAX)));
    }
    errors
}

fn owners(owners: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut controller: Option<String> = None;
    for owner in owners.items() {
        let needed = [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ];
        for (field, why) in needed {
            let field = owner.field(field);
            if field.text().is_empty() {
                errors.push(field.fault(Fault::Invalid("".into(), why.into())));
            }
        }
        if !owner.field("controller").is_true() {
            continue;
        }
        let name = format!("{}/{}", owner.field("kind").text(), owner.field("name").text());
        if let Some(first) = &controller {
            let why = format!(
                "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}"
            );
            errors.push(owners.invalid(why));
        }
        controller.get_or_insert(name);
    }
    errors
}

fn unchanged(new: &At<'_>, old: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for name in ["name", "namespace", "uid", "creationTimestamp"] {
        errors.extend(immutable(&new.field(name), &old.field(name)));
    }
    let is_deleting = old.field("deletionTimestamp").is_set();
    if is_deleting && new.field("finalizers").value != old.field("finalizers").value {
        let had: Vec<&str> = old.field("finalizers").items().map(|finalizer| finalizer.text()).collect();
        let added: Vec<&str> = new
            .field("finalizers")
            .items()
            .map(|finalizer| finalizer.text())
            .filter(|finalizer| !had.contains(finalizer))
            .collect();
        if !added.is_empty() {
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
            );
            errors.push(new.field("finalizers").forbidden(&why));
        }
    }
    errors
}

/// That a field which may not change did.
pub fn immutable(new: &At<'_>, old: &At<'_>) -> Option<FieldError> {
    (new.value != old.value).then(|| new.invalid("field is immutable"))
}
