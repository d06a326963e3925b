//! Pods.

use serde_json::Value;

use super::super::duration::rfc1123z;
use super::containers;
use super::page::{Page, each, text};

/// A pod's page.
pub fn describe(page: &mut Page, pod: &Value) {
    let (metadata, spec, status) = (&pod["metadata"], &pod["spec"], &pod["status"]);
    page.field(0, "Name", text(&metadata["name"]));
    page.field(0, "Namespace", text(&metadata["namespace"]));
    if let Some(priority) = spec["priority"].as_i64() {
        page.field(0, "Priority", priority.to_string());
    }
    let settings = [
        ("Priority Class Name", "priorityClassName"),
        ("Runtime Class Name", "runtimeClassName"),
        ("Service Account", "serviceAccountName"),
    ];
    for (title, field) in settings {
        if !text(&spec[field]).is_empty() {
            page.field(0, title, text(&spec[field]));
        }
    }
    match text(&spec["nodeName"]) {
        "" => page.field(0, "Node", "<none>"),
        node => page.field(0, "Node", format!("{node}/{}", text(&status["hostIP"]))),
    }
    if let Some(started) = status["startTime"].as_str() {
        page.field(0, "Start Time", rfc1123z(started));
    }
    page.labels("Labels", &metadata["labels"]);
    page.annotations("Annotations", &metadata["annotations"]);
    if metadata["deletionTimestamp"].is_null() {
        page.field(0, "Status", text(&status["phase"]));
    } else {
        page.field(0, "Status", format!("Terminating (lasts {})", page.age(&metadata["deletionTimestamp"])));
        let grace = metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
        page.field(0, "Termination Grace Period", format!("{grace}s"));
    }
    for (title, field) in [("Reason", "reason"), ("Message", "message")] {
        if !text(&status[field]).is_empty() {
            page.field(0, title, text(&status[field]));
        }
    }
    page.field(0, "IP", text(&status["podIP"]));
    if each(&status["podIPs"]).next().is_none() {
        page.field(0, "IPs", "<none>");
    } else {
        page.line(0, "IPs:");
        each(&status["podIPs"]).for_each(|address| page.field(1, "IP", text(&address["ip"])));
    }
    page.controlled_by(pod);
    if each(&spec["initContainers"]).next().is_some() {
        containers::containers(page, "Init Containers", &spec["initContainers"], &status["initContainerStatuses"], "");
    }
    containers::containers(page, "Containers", &spec["containers"], &status["containerStatuses"], "");
    if each(&status["conditions"]).next().is_some() {
        page.line(0, "Conditions:");
        page.line(1, "Type\tStatus");
        for condition in each(&status["conditions"]) {
            page.line(1, format!("{} \t{} ", text(&condition["type"]), text(&condition["status"])));
        }
    }
    containers::volumes(page, &spec["volumes"], "");
    page.field(0, "QoS Class", text(&status["qosClass"]));
    page.labels("Node-Selectors", &spec["nodeSelector"]);
    containers::tolerations(page, "Tolerations", &spec["tolerations"]);
}
