//! Pods. What a spec may be stands in [`crate::pods`], for templates have it too.

use super::cells::{AGE, NAME, NONE, column, count, holds, items, number, text, text_or, wide};
use crate::field::{At, FieldError};
use crate::{Column, Kind, human, meta, names, pods};
use jiff::Timestamp;
use schemars::SchemaGenerator;
use serde_json::Value;

/// `Pod`.
pub(super) const POD: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    namespaced: true,
    subresources: &["status", "log", "binding", "eviction", "ephemeralcontainers", "exec", "attach", "portforward"],
    volatile: false,
    counts_generation: true,
    columns: &[NAME, READY, STATUS, RESTARTS, AGE, IP, NODE, NOMINATED_NODE, READINESS_GATES],
    selectable: &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ],
    default: pods::defaults::pod,
    validate,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::core::v1::Pod>,
};

const READY: Column = column("Ready", "string", "The aggregate readiness state of this pod.", |object, now| {
    let seen = Summary::of(object, now);
    format!("{}/{}", seen.ready, seen.containers).into()
});
const STATUS: Column =
    column("Status", "string", "The aggregate status of the containers in this pod.", |object, now| {
        Summary::of(object, now).status.into()
    });
const RESTARTS: Column = column(
    "Restarts",
    "string",
    "The number of times the containers in this pod have been restarted.",
    |object, now| Summary::of(object, now).restarts().into(),
);
const IP: Column = wide("IP", "string", "Address of the pod.", |object, _| {
    let first = &object["status"]["podIPs"][0]["ip"];
    text_or(if first.is_null() { &object["status"]["podIP"] } else { first }, NONE).into()
});
const NODE: Column =
    wide("Node", "string", "Node the pod is bound to.", |object, _| text_or(&object["spec"]["nodeName"], NONE).into());
const NOMINATED_NODE: Column = wide("Nominated Node", "string", "Node the pod may come to.", |object, _| {
    text_or(&object["status"]["nominatedNodeName"], NONE).into()
});
const READINESS_GATES: Column =
    wide("Readiness Gates", "string", "Conditions the pod's readiness waits for.", |object, _| {
        let gates = items(&object["spec"]["readinessGates"]);
        let open = gates.iter().filter(|gate| holds(object, text(&gate["conditionType"]))).count();
        if gates.is_empty() { NONE.into() } else { format!("{open}/{}", gates.len()).into() }
    });

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = meta::validate(new, old, names::dns_subdomain);
    let root = At::root(new);
    errors.extend(pods::spec::validate(&root.field("spec")));
    let before = old.map(|old| At::root(old).field("spec"));
    errors.extend(pods::ephemeral::validate(&root.field("spec"), before.as_ref()));
    if let Some(old) = old {
        errors.extend(pods::update::validate(&root, &At::root(old)));
    }
    errors
}

/// What a table tells of a pod's containers.
struct Summary {
    ready: usize,
    containers: usize,
    status: String,
    restarts: i64,
    /// When a container last ended.
    ended: Option<Timestamp>,
    now: Timestamp,
}

impl Summary {
    fn of(pod: &Value, now: Timestamp) -> Self {
        let (spec, status) = (&pod["spec"], &pod["status"]);
        let said = text_or(&status["reason"], text(&status["phase"]));
        let gated = items(&status["conditions"])
            .iter()
            .any(|condition| condition["type"] == "PodScheduled" && condition["reason"] == "SchedulingGated");
        let sidecars = items(&spec["initContainers"]).iter().filter(|container| is_sidecar(container)).count();
        let mut seen = Self {
            ready: 0,
            containers: count(&spec["containers"]) + sidecars,
            status: if gated { "SchedulingGated".into() } else { said.into() },
            restarts: 0,
            ended: None,
            now,
        };
        let is_initializing = seen.init_containers(spec, status);
        if !is_initializing || holds(pod, "Initialized") {
            seen.main_containers(pod, spec, status);
        }
        let is_over = matches!(text(&status["phase"]), "Failed" | "Succeeded");
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            if status["reason"] == "NodeLost" {
                seen.status = "Unknown".into();
            } else if !is_over {
                seen.status = "Terminating".into();
            }
        }
        seen
    }

    fn count_restarts(&mut self, container: &Value) {
        self.restarts += number(&container["restartCount"]);
        self.ended = self.ended.max(human::time(&container["lastState"]["terminated"]["finishedAt"]));
    }

    /// Looks at the init containers in order; whether one of them is still to finish.
    fn init_containers(&mut self, spec: &Value, status: &Value) -> bool {
        let init = items(&spec["initContainers"]);
        for (at, container) in items(&status["initContainerStatuses"]).iter().enumerate() {
            self.count_restarts(container);
            let is_sidecar = init.iter().any(|one| one["name"] == container["name"] && is_sidecar(one));
            let (ended, waiting) = (&container["state"]["terminated"], text(&container["state"]["waiting"]["reason"]));
            if !ended.is_null() && number(&ended["exitCode"]) == 0 {
                continue;
            }
            if is_sidecar && container["started"] == true {
                self.ready += usize::from(container["ready"] == true);
                continue;
            }
            self.status = match (ended.is_null(), waiting) {
                (false, _) => format!("Init:{}", end_reason(ended)),
                (true, "" | "PodInitializing") => format!("Init:{at}/{}", init.len()),
                (true, reason) => format!("Init:{reason}"),
            };
            return true;
        }
        false
    }

    fn main_containers(&mut self, pod: &Value, spec: &Value, status: &Value) {
        (self.restarts, self.ended) = (0, None);
        for container in items(&status["initContainerStatuses"]) {
            let of_spec = items(&spec["initContainers"]).iter().find(|one| one["name"] == container["name"]);
            if of_spec.is_some_and(is_sidecar) {
                self.count_restarts(container);
            }
        }
        let mut has_running = false;
        for container in items(&status["containerStatuses"]).iter().rev() {
            self.count_restarts(container);
            let (ended, waiting) = (&container["state"]["terminated"], text(&container["state"]["waiting"]["reason"]));
            if !waiting.is_empty() {
                self.status = waiting.into();
            } else if !ended.is_null() {
                self.status = end_reason(ended);
            } else if container["ready"] == true && !container["state"]["running"].is_null() {
                has_running = true;
                self.ready += 1;
            }
        }
        if self.status == "Completed" && has_running {
            self.status = if holds(pod, "Ready") { "Running".into() } else { "NotReady".into() };
        }
    }

    fn restarts(&self) -> String {
        match self.ended.filter(|_| self.restarts > 0) {
            Some(ended) => {
                let ago = human::duration(self.now.as_second() - ended.as_second());
                format!("{} ({ago} ago)", self.restarts)
            }
            None => self.restarts.to_string(),
        }
    }
}

fn is_sidecar(container: &Value) -> bool {
    container["restartPolicy"] == "Always"
}

fn end_reason(ended: &Value) -> String {
    match (text(&ended["reason"]), number(&ended["signal"])) {
        ("", 0) => format!("ExitCode:{}", number(&ended["exitCode"])),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn expect_cells(spec: Value, status: Value, wanted: &str) {
        let pod = json!({"metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec, "status": status});
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let cells: Vec<String> =
            POD.columns[1..5].iter().map(|column| text(&(column.cell)(&pod, now)).to_owned()).collect();
        assert_eq!(cells.join(" | "), wanted);
    }

    #[test]
    fn a_pod_reads_as_kubectl_prints_it() {
        let one = json!({"containers": [{"name": "a"}]});
        let of = |state: Value, more: Value| {
            let mut container = json!({"name": "a", "state": state});
            container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"phase": "Running", "containerStatuses": [container]})
        };
        expect_cells(one.clone(), json!({"phase": "Pending"}), "0/1 | Pending | 0 | 60m");
        expect_cells(one.clone(), of(json!({"running": {}}), json!({"ready": true})), "1/1 | Running | 0 | 60m");
        let waiting = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        let ended = json!({"restartCount": 3, "lastState": {"terminated": {"finishedAt": "2026-01-01T00:55:00Z"}}});
        expect_cells(one.clone(), of(waiting, ended), "0/1 | CrashLoopBackOff | 3 (5m ago) | 60m");
        let ended = of(json!({"terminated": {"exitCode": 2}}), json!({}));
        expect_cells(one, ended, "0/1 | ExitCode:2 | 0 | 60m");
        let init = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "j"}]});
        let status =
            |state: Value| json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": state}]});
        expect_cells(init.clone(), status(json!({"running": {}})), "0/1 | Init:0/2 | 0 | 60m");
        let failed = json!({"terminated": {"exitCode": 1, "reason": "Error"}});
        expect_cells(init, status(failed), "0/1 | Init:Error | 0 | 60m");
    }
}
