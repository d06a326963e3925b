//! Jobs.

use super::cells::{AGE, CONTAINERS, IMAGES, NAME, SELECTOR, column, holds, number};
use crate::field::{At, FieldError};
use crate::{Column, Kind, fill, human, labels, meta, names, pods};
use jiff::Timestamp;
use schemars::SchemaGenerator;
use serde_json::Value;

/// `Job`.
pub(super) const JOB: Kind = Kind {
    group: "batch",
    version: "v1",
    kind: "Job",
    plural: "jobs",
    singular: "job",
    short_names: &[],
    categories: &["all"],
    namespaced: true,
    subresources: &["status"],
    volatile: false,
    counts_generation: true,
    columns: &[NAME, STATUS, COMPLETIONS, DURATION, AGE, CONTAINERS, IMAGES, SELECTOR],
    selectable: &["status.successful"],
    default,
    validate,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::batch::v1::Job>,
};

/// The label of a Job's pods that says whose they are.
const OWNER: &str = "batch.kubernetes.io/controller-uid";

const STATUS: Column = column("Status", "string", "Status of the job.", |object, _| {
    let conditions = ["Complete", "Failed"].into_iter().find(|condition| holds(object, condition));
    let later =
        ["Suspended", "FailureTarget", "SuccessCriteriaMet"].into_iter().find(|condition| holds(object, condition));
    let is_deleting = !object["metadata"]["deletionTimestamp"].is_null();
    conditions.or(is_deleting.then_some("Terminating")).or(later).unwrap_or("Running").into()
});
const COMPLETIONS: Column = column("Completions", "string", "Pods that succeeded, of those that must.", |object, _| {
    let succeeded = number(&object["status"]["succeeded"]);
    match (object["spec"]["completions"].as_i64(), number(&object["spec"]["parallelism"])) {
        (Some(completions), _) => format!("{succeeded}/{completions}").into(),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}").into(),
        (None, _) => format!("{succeeded}/1").into(),
    }
});
const DURATION: Column = column("Duration", "string", "Time it took.", |object, now| duration(object, now).into());

fn duration(object: &Value, now: Timestamp) -> String {
    let time = |field: &str| human::time(&object["status"][field]);
    let Some(start) = time("startTime") else { return String::new() };
    let end = time("completionTime").unwrap_or(now);
    human::duration(end.as_second() - start.as_second())
}

fn default(value: &mut Value) {
    fill::prune(value);
    let Some(job) = value.as_object_mut() else { return };
    let labels = &job.get("spec").unwrap_or(&Value::Null)["template"]["metadata"]["labels"];
    let labels = labels.as_object().filter(|labels| !labels.is_empty()).cloned();
    if let (Some(labels), Some(metadata)) = (labels, fill::object(job, "metadata")) {
        fill::missing(metadata, "labels", labels);
    }
    let Some(spec) = fill::object(job, "spec") else { return };
    if !fill::is_set(spec, "completions") && !fill::is_set(spec, "parallelism") {
        fill::missing(spec, "completions", 1);
    }
    fill::missing(spec, "parallelism", 1);
    let limit = if fill::is_set(spec, "backoffLimitPerIndex") { i32::MAX } else { 6 };
    fill::missing(spec, "backoffLimit", limit);
    fill::missing(spec, "completionMode", "NonIndexed");
    fill::missing(spec, "suspend", false);
    let replacement = if fill::is_set(spec, "podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    fill::missing(spec, "podReplacementPolicy", replacement);
    pods::defaults::template(spec);
}

/// Makes a new Job's pods its own by labels with its uid, unless it brings its own selector. Kubernetes does this when it
/// has given the Job its uid.
pub fn claim_pods(job: &mut Value) {
    if job["spec"]["manualSelector"] == true {
        return;
    }
    let (uid, name) = (job["metadata"]["uid"].clone(), job["metadata"]["name"].clone());
    let Some(spec) = job.as_object_mut().and_then(|job| fill::object(job, "spec")) else { return };
    let own = [(OWNER, &uid), ("batch.kubernetes.io/job-name", &name), ("controller-uid", &uid), ("job-name", &name)];
    let template = fill::object(spec, "template").and_then(|template| fill::object(template, "metadata"));
    if let Some(labels) = template.and_then(|metadata| fill::object(metadata, "labels")) {
        labels.extend(own.into_iter().map(|(label, value)| (label.to_owned(), value.clone())));
    }
    let selector = fill::object(spec, "selector").and_then(|selector| fill::object(selector, "matchLabels"));
    if let Some(labels) = selector {
        labels.insert(OWNER.to_owned(), uid);
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = meta::validate(new, old, names::dns_subdomain);
    let spec = At::root(new).field("spec");
    let selector = spec.field("selector");
    if selector.is_set() {
        errors.extend(labels::selector(&selector));
        if !labels::chooses(selector.value, spec.fields(&["template", "metadata", "labels"]).value) {
            errors.push(labels::mismatch(&spec));
        }
    } else {
        errors.push(selector.required(""));
    }
    errors.extend(validate_spec(&spec));
    if let Some(old) = old {
        let before = At::root(old).field("spec");
        let is_elastic = spec.field("completionMode").text() == "Indexed"
            && spec.field("completions").value == spec.field("parallelism").value;
        let fixed =
            ["completions", "selector", "template", "completionMode", "backoffLimitPerIndex", "podFailurePolicy"];
        for field in fixed.into_iter().filter(|field| !(is_elastic && *field == "completions")) {
            errors.extend(meta::immutable(&spec.field(field), &before.field(field)));
        }
    }
    errors
}

/// What is wrong with a Job's spec, whether it is of a Job or of a CronJob's template.
pub(super) fn validate_spec(spec: &At<'_>) -> Vec<FieldError> {
    let whole = [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
        "ttlSecondsAfterFinished",
    ];
    let mut errors: Vec<FieldError> = whole.iter().filter_map(|field| spec.field(field).non_negative()).collect();
    let mode = spec.field("completionMode");
    if mode.is_set() {
        errors.extend(mode.one_of(&["Indexed", "NonIndexed"]));
    }
    if mode.text() == "Indexed" && !spec.field("completions").is_set() {
        errors.push(spec.field("completions").required("when completion mode is Indexed"));
    }
    errors.extend(pods::spec::template(&spec.field("template")));
    let policy = spec.fields(&["template", "spec", "restartPolicy"]);
    if !matches!(policy.text(), "OnFailure" | "Never") {
        errors.push(policy.required(r#"valid values: "OnFailure", "Never""#));
    }
    errors
}
