//! PodDisruptionBudgets.

use super::cells::{AGE, NAME, column, number};
use crate::field::{At, Fault, FieldError};
use crate::{Column, Kind, fill, labels, meta, names, numbers};
use schemars::SchemaGenerator;
use serde_json::Value;

/// `PodDisruptionBudget`.
pub(super) const POD_DISRUPTION_BUDGET: Kind = Kind {
    group: "policy",
    version: "v1",
    kind: "PodDisruptionBudget",
    plural: "poddisruptionbudgets",
    singular: "poddisruptionbudget",
    short_names: &["pdb"],
    categories: &[],
    namespaced: true,
    subresources: &["status"],
    volatile: false,
    counts_generation: true,
    columns: &[NAME, MIN_AVAILABLE, MAX_UNAVAILABLE, ALLOWED_DISRUPTIONS, AGE],
    selectable: &[],
    default: fill::prune,
    validate,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::policy::v1::PodDisruptionBudget>,
};

const MIN_AVAILABLE: Column =
    column("Min Available", "string", "The minimum number of pods that must be available.", |object, _| {
        amount(&object["spec"]["minAvailable"])
    });
const MAX_UNAVAILABLE: Column =
    column("Max Unavailable", "string", "The maximum number of pods that may be unavailable.", |object, _| {
        amount(&object["spec"]["maxUnavailable"])
    });
const ALLOWED_DISRUPTIONS: Column =
    column("Allowed Disruptions", "integer", "How many pods may be evicted now.", |object, _| {
        number(&object["status"]["disruptionsAllowed"]).into()
    });

/// A number or share as text.
fn amount(value: &Value) -> Value {
    match value {
        Value::Null => "N/A".into(),
        Value::String(text) => text.as_str().into(),
        number => number.to_string().into(),
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = meta::validate(new, old, names::dns_subdomain);
    let root = At::root(new);
    let spec = root.field("spec");
    let (least, most) = (spec.field("minAvailable"), spec.field("maxUnavailable"));
    if least.is_set() && most.is_set() {
        errors.push(spec.invalid("minAvailable and maxUnavailable cannot be both set"));
    }
    for at in [&least, &most] {
        errors.extend(numbers::positive_int_or_percent(at));
        if numbers::percent(at.value).is_some_and(|percent| percent > 100) {
            errors.push(at.invalid("must not be greater than 100%"));
        }
    }
    errors.extend(labels::selector(&spec.field("selector")));
    let policy = spec.field("unhealthyPodEvictionPolicy");
    if policy.is_set() {
        errors.extend(policy.one_of(&["AlwaysAllow", "IfHealthyBudget"]));
    }
    errors.extend(status(&root.field("status")));
    errors
}

fn status(status: &At<'_>) -> Vec<FieldError> {
    let counts = ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods", "observedGeneration"];
    let mut errors: Vec<FieldError> = counts.iter().filter_map(|count| status.field(count).non_negative()).collect();
    for (pod, at) in status.field("disruptedPods").entries() {
        errors.extend(names::dns_subdomain(pod).into_iter().map(|fault| at.fault(Fault::Invalid(pod.into(), fault))));
    }
    errors
}
