//! CronJobs.

use super::cells::{AGE, NAME, NONE, column, count, items, selector, text, text_or, wide};
use super::job;
use crate::field::{At, FieldError};
use crate::schedule::{self, Schedule};
use crate::{Column, Kind, fill, human, meta, names, pods};
use schemars::SchemaGenerator;
use serde_json::Value;

/// `CronJob`.
pub(super) const CRON_JOB: Kind = Kind {
    group: "batch",
    version: "v1",
    kind: "CronJob",
    plural: "cronjobs",
    singular: "cronjob",
    short_names: &["cj"],
    categories: &["all"],
    namespaced: true,
    subresources: &["status"],
    volatile: false,
    counts_generation: true,
    columns: &[NAME, SCHEDULE, TIME_ZONE, SUSPEND, ACTIVE, LAST_SCHEDULE, AGE, CONTAINERS, IMAGES, SELECTOR],
    selectable: &[],
    default,
    validate,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::batch::v1::CronJob>,
};

/// Longest name, so that those of its Jobs, which have eleven characters more, are still labels.
const NAME_CHARS_MAX: usize = 52;

const SCHEDULE: Column =
    column("Schedule", "string", "The schedule in Cron format.", |object, _| object["spec"]["schedule"].clone());
const TIME_ZONE: Column = column("Timezone", "string", "The time zone of the schedule.", |object, _| {
    text_or(&object["spec"]["timeZone"], NONE).into()
});
const SUSPEND: Column = column("Suspend", "boolean", "Whether nothing is started for now.", |object, _| {
    if object["spec"]["suspend"] == true { "True".into() } else { "False".into() }
});
const ACTIVE: Column =
    column("Active", "integer", "Jobs that are running.", |object, _| count(&object["status"]["active"]).into());
const LAST_SCHEDULE: Column = column("Last Schedule", "string", "Time since the last start.", |object, now| {
    let last = &object["status"]["lastScheduleTime"];
    if last.is_null() { NONE.into() } else { human::since(last, now).into() }
});
const CONTAINERS: Column =
    wide("Containers", "string", "Names of each container in the template.", |object, _| listed(object, "name"));
const IMAGES: Column = wide("Images", "string", "Images referenced by each container in the template.", |object, _| {
    listed(object, "image")
});
const SELECTOR: Column =
    wide("Selector", "string", "Label selector of its Jobs, if they have their own.", |object, _| {
        selector(&object["spec"]["jobTemplate"]["spec"]["selector"]).into()
    });

fn listed(object: &Value, field: &str) -> Value {
    let containers = items(&object["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]);
    let texts: Vec<&str> = containers.iter().map(|container| text(&container[field])).collect();
    texts.join(",").into()
}

fn default(value: &mut Value) {
    fill::prune(value);
    let Some(spec) = value.as_object_mut().and_then(|object| fill::object(object, "spec")) else { return };
    fill::missing(spec, "concurrencyPolicy", "Allow");
    fill::missing(spec, "suspend", false);
    fill::missing(spec, "successfulJobsHistoryLimit", 3);
    fill::missing(spec, "failedJobsHistoryLimit", 1);
    let job = fill::object(spec, "jobTemplate").and_then(|template| fill::object(template, "spec"));
    if let Some(job) = job {
        pods::defaults::template(job);
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = meta::validate(new, old, names::dns_subdomain);
    let root = At::root(new);
    let name = root.fields(&["metadata", "name"]);
    if name.text().len() > NAME_CHARS_MAX {
        errors.push(name.invalid(format!("must be no more than {NAME_CHARS_MAX} characters")));
    }
    let spec = root.field("spec");
    errors.extend(schedule(&spec, old.map(|old| &old["spec"]["schedule"])));
    errors.extend(spec.field("startingDeadlineSeconds").non_negative());
    errors.extend(time_zone(&spec.field("timeZone")));
    errors.extend(spec.field("concurrencyPolicy").one_of(&["Allow", "Forbid", "Replace"]));
    let template = spec.field("jobTemplate");
    errors.extend(meta::labels(&template.fields(&["metadata", "labels"])));
    errors.extend(meta::annotations(&template.fields(&["metadata", "annotations"])));
    let own = template.field("spec");
    if own.field("selector").is_set() {
        errors.push(own.field("selector").invalid("`selector` will be auto-generated"));
    }
    if own.field("manualSelector").is_true() {
        errors.push(own.field("manualSelector").not_supported(&["nil or false"]));
    }
    errors.extend(job::validate_spec(&own));
    for field in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        errors.extend(spec.field(field).non_negative());
    }
    errors
}

/// A zone in the schedule was accepted once, and stays where it is.
fn schedule(spec: &At<'_>, old: Option<&Value>) -> Option<FieldError> {
    let at = spec.field("schedule");
    if at.text().is_empty() {
        return Some(at.required(""));
    }
    if at.text().contains("TZ") {
        let why = if spec.field("timeZone").is_set() {
            "cannot use both timeZone field and TZ or CRON_TZ in schedule"
        } else {
            "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"
        };
        return (old != Some(at.value)).then(|| at.invalid(why));
    }
    Schedule::parse(at.text()).err().map(|why| at.invalid(why))
}

fn time_zone(at: &At<'_>) -> Option<FieldError> {
    if !at.is_set() {
        return None;
    }
    match at.text() {
        "" => Some(at.invalid("timeZone must be nil or non-empty string")),
        name if name.eq_ignore_ascii_case("local") => {
            Some(at.invalid("timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones"))
        }
        name if schedule::zone(name).is_none() => Some(at.invalid(format!("unknown time zone {name}"))),
        _ => None,
    }
}
