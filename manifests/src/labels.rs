//! Validation of the label selectors of objects, and whether one chooses a template.

use crate::field::{At, FieldError, invalid_by};
use crate::selector::LabelSelector;
use crate::{meta, names};
use serde_json::Value;

/// What is wrong with a selector.
pub fn selector(selector: &At<'_>) -> Vec<FieldError> {
    let mut errors = meta::labels(&selector.field("matchLabels"));
    for term in selector.field("matchExpressions").items() {
        let values = term.field("values");
        match term.field("operator").text() {
            "In" | "NotIn" if values.is_empty() => {
                errors.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                errors.push(values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'"));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errors.push(term.field("operator").invalid("not a valid selector operator")),
        }
        let key = term.field("key");
        errors.extend(invalid_by(&key, names::qualified(key.text())));
        for value in values.items() {
            errors.extend(invalid_by(&value, names::label_value(value.text())));
        }
    }
    errors
}

/// What is wrong with `spec.selector` of a kind that makes pods of `spec.template`, whose labels it must choose.
pub fn of_template(spec: &At<'_>) -> Vec<FieldError> {
    let at = spec.field("selector");
    if !at.is_set() {
        return vec![at.required("")];
    }
    let mut errors = selector(&at);
    if at.field("matchLabels").is_empty() && at.field("matchExpressions").is_empty() {
        errors.push(at.invalid("empty selector is invalid for deployment"));
    }
    if errors.is_empty() && !chooses(at.value, spec.fields(&["template", "metadata", "labels"]).value) {
        errors.push(mismatch(spec));
    }
    errors
}

/// That the selector does not choose the template.
pub fn mismatch(spec: &At<'_>) -> FieldError {
    let labels = spec.fields(&["template", "metadata", "labels"]);
    let shown = if labels.is_set() { labels.value.clone() } else { Value::Null };
    labels.fault(crate::field::Fault::Invalid(shown, "`selector` does not match template `labels`".into()))
}

/// Whether a selector chooses labels, both as JSON.
pub fn chooses(selector: &Value, labels: &Value) -> bool {
    let selector = serde_json::from_value(selector.clone()).ok().and_then(|typed| LabelSelector::of(&typed).ok());
    let labels = labels.as_object().into_iter().flatten();
    let labels = labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect();
    selector.is_some_and(|selector| selector.matches(&labels))
}
