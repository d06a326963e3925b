//! Deployments, ReplicaSets, Jobs, CronJobs, and the pod template they share.

use serde_json::Value;

use super::super::duration::{between, rfc1123z};
use super::super::logs::pod_selector;
use super::super::rollout_history::revision_of;
use super::containers;
use super::page::{Page, each, or_none, scalar, text};

/// The template of a workload's pods.
pub fn pod_template(page: &mut Page, template: &Value) {
    page.line(0, "Pod Template:");
    page.labels("  Labels", &template["metadata"]["labels"]);
    if template["metadata"]["annotations"].as_object().is_some_and(|map| !map.is_empty()) {
        page.annotations("  Annotations", &template["metadata"]["annotations"]);
    }
    let spec = &template["spec"];
    if !text(&spec["serviceAccountName"]).is_empty() {
        page.field(1, "Service Account", text(&spec["serviceAccountName"]));
    }
    if each(&spec["initContainers"]).next().is_some() {
        containers::containers(page, "Init Containers", &spec["initContainers"], &Value::Null, "  ");
    }
    containers::containers(page, "Containers", &spec["containers"], &Value::Null, "  ");
    containers::volumes(page, &spec["volumes"], "  ");
    page.labels("  Node-Selectors", &spec["nodeSelector"]);
    containers::tolerations(page, "  Tolerations", &spec["tolerations"]);
}

fn conditions(page: &mut Page, object: &Value) {
    if each(&object["status"]["conditions"]).next().is_none() {
        return;
    }
    page.line(0, "Conditions:");
    page.line(1, "Type\tStatus\tReason");
    page.line(1, "----\t------\t------");
    for condition in each(&object["status"]["conditions"]) {
        let line =
            format!("{} \t{}\t{}", text(&condition["type"]), text(&condition["status"]), text(&condition["reason"]));
        page.line(1, line);
    }
}

/// A Deployment's page; `sets` are the ReplicaSets it owns.
pub fn deployment(page: &mut Page, object: &Value, sets: &[Value]) {
    let (metadata, spec) = (&object["metadata"], &object["spec"]);
    let status = |field: &str| object["status"][field].as_i64().unwrap_or(0);
    page.field(0, "Name", text(&metadata["name"]));
    page.field(0, "Namespace", text(&metadata["namespace"]));
    page.field(0, "CreationTimestamp", rfc1123z(text(&metadata["creationTimestamp"])));
    page.labels("Labels", &metadata["labels"]);
    page.annotations("Annotations", &metadata["annotations"]);
    page.field(0, "Selector", or_none(&pod_selector("Deployment", object).unwrap_or_default()));
    page.field(
        0,
        "Replicas",
        format!(
            "{} desired | {} updated | {} total | {} available | {} unavailable",
            spec["replicas"].as_i64().unwrap_or(1),
            status("updatedReplicas"),
            status("replicas"),
            status("availableReplicas"),
            status("unavailableReplicas")
        ),
    );
    page.field(0, "StrategyType", text(&spec["strategy"]["type"]));
    page.field(0, "MinReadySeconds", spec["minReadySeconds"].as_i64().unwrap_or(0).to_string());
    let rolling = &spec["strategy"]["rollingUpdate"];
    if !rolling.is_null() {
        let text = format!(
            "{} max unavailable, {} max surge",
            scalar(&rolling["maxUnavailable"]),
            scalar(&rolling["maxSurge"])
        );
        page.field(0, "RollingUpdateStrategy", text);
    }
    pod_template(page, &spec["template"]);
    conditions(page, object);
    let revision = revision_of(object);
    let (new, mut old): (Vec<&Value>, Vec<&Value>) = sets.iter().partition(|set| revision_of(set) == revision);
    old.sort_by_key(|set| revision_of(set));
    page.field(0, "OldReplicaSets", created(&old));
    page.field(0, "NewReplicaSet", created(&new));
}

fn created(sets: &[&Value]) -> String {
    let list: Vec<String> = sets
        .iter()
        .map(|set| {
            let (have, want) =
                (set["status"]["replicas"].as_i64().unwrap_or(0), set["spec"]["replicas"].as_i64().unwrap_or(1));
            format!("{} ({have}/{want} replicas created)", text(&set["metadata"]["name"]))
        })
        .collect();
    or_none(&list.join(", ")).to_string()
}

/// A ReplicaSet's page; `pods` are those its selector matches.
pub fn replica_set(page: &mut Page, object: &Value, pods: &[Value]) {
    let metadata = &object["metadata"];
    page.field(0, "Name", text(&metadata["name"]));
    page.field(0, "Namespace", text(&metadata["namespace"]));
    page.field(0, "Selector", or_none(&pod_selector("ReplicaSet", object).unwrap_or_default()));
    page.labels("Labels", &metadata["labels"]);
    page.annotations("Annotations", &metadata["annotations"]);
    page.controlled_by(object);
    let (current, desired) =
        (object["status"]["replicas"].as_i64().unwrap_or(0), object["spec"]["replicas"].as_i64().unwrap_or(1));
    page.field(0, "Replicas", format!("{current} current / {desired} desired"));
    let mine = |pod: &&Value| {
        each(&pod["metadata"]["ownerReferences"])
            .any(|owner| owner["controller"] == true && owner["uid"] == metadata["uid"])
    };
    let count = |phase: &str| pods.iter().filter(mine).filter(|pod| pod["status"]["phase"] == phase).count();
    page.field(
        0,
        "Pods Status",
        format!(
            "{} Running / {} Waiting / {} Succeeded / {} Failed",
            count("Running"),
            count("Pending"),
            count("Succeeded"),
            count("Failed")
        ),
    );
    pod_template(page, &object["spec"]["template"]);
    conditions(page, object);
}

/// A CronJob's page.
pub fn cron_job(page: &mut Page, object: &Value) {
    let (metadata, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
    page.field(0, "Name", text(&metadata["name"]));
    page.field(0, "Namespace", text(&metadata["namespace"]));
    page.labels("Labels", &metadata["labels"]);
    page.annotations("Annotations", &metadata["annotations"]);
    page.field(0, "Schedule", text(&spec["schedule"]));
    page.field(0, "Concurrency Policy", text(&spec["concurrencyPolicy"]));
    page.field(0, "Suspend", if spec["suspend"] == true { "True" } else { "False" });
    let unset = |value: &Value| if value.is_null() { "<unset>".to_owned() } else { scalar(value) };
    page.field(0, "Successful Job History Limit", unset(&spec["successfulJobsHistoryLimit"]));
    page.field(0, "Failed Job History Limit", unset(&spec["failedJobsHistoryLimit"]));
    let deadline = &spec["startingDeadlineSeconds"];
    let deadline = if deadline.is_null() { unset(deadline) } else { format!("{}s", scalar(deadline)) };
    page.field(0, "Starting Deadline Seconds", deadline);
    let job = &spec["jobTemplate"]["spec"];
    page.field(0, "Selector", "<unset>");
    page.field(0, "Parallelism", unset(&job["parallelism"]));
    page.field(0, "Completions", unset(&job["completions"]));
    if !job["activeDeadlineSeconds"].is_null() {
        page.field(0, "Active Deadline Seconds", format!("{}s", scalar(&job["activeDeadlineSeconds"])));
    }
    pod_template(page, &job["template"]);
    let last = text(&status["lastScheduleTime"]);
    page.field(0, "Last Schedule Time", if last.is_empty() { "<unset>".to_owned() } else { rfc1123z(last) });
    let active: Vec<&str> = each(&status["active"]).map(|job| text(&job["name"])).collect();
    page.field(0, "Active Jobs", or_none(&active.join(", ")));
}

/// A Job's page.
pub fn job(page: &mut Page, object: &Value) {
    let (metadata, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
    page.field(0, "Name", text(&metadata["name"]));
    page.field(0, "Namespace", text(&metadata["namespace"]));
    page.field(0, "Selector", pod_selector("Job", object).unwrap_or_default());
    page.labels("Labels", &metadata["labels"]);
    page.annotations("Annotations", &metadata["annotations"]);
    page.controlled_by(object);
    if !spec["parallelism"].is_null() {
        page.field(0, "Parallelism", scalar(&spec["parallelism"]));
    }
    let completions = scalar(&spec["completions"]);
    page.field(0, "Completions", if completions.is_empty() { "<unset>" } else { &completions });
    let settings = [
        ("Completion Mode", "completionMode"),
        ("Suspend", "suspend"),
        ("Backoff Limit", "backoffLimit"),
        ("TTL Seconds After Finished", "ttlSecondsAfterFinished"),
    ];
    for (title, field) in settings {
        if !spec[field].is_null() {
            page.field(0, title, scalar(&spec[field]));
        }
    }
    let (start, end) = (status["startTime"].as_str(), status["completionTime"].as_str());
    if let Some(start) = start {
        page.field(0, "Start Time", rfc1123z(start));
    }
    if let Some(end) = end {
        page.field(0, "Completed At", rfc1123z(end));
    }
    if let (Some(Ok(start)), Some(Ok(end))) = (start.map(str::parse), end.map(str::parse)) {
        page.field(0, "Duration", between(start, end));
    }
    if let Some(seconds) = spec["activeDeadlineSeconds"].as_i64() {
        page.field(0, "Active Deadline Seconds", format!("{seconds}s"));
    }
    let count = |field: &str| status[field].as_i64().unwrap_or(0);
    let ready = if status["ready"].is_null() { String::new() } else { format!(" ({} Ready)", count("ready")) };
    let (active, succeeded, failed) = (count("active"), count("succeeded"), count("failed"));
    page.field(0, "Pods Statuses", format!("{active} Active{ready} / {succeeded} Succeeded / {failed} Failed"));
    pod_template(page, &spec["template"]);
}
