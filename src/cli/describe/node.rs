//! Nodes: what they are, how they are, and what runs on them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::duration::rfc1123z;
use super::containers::quantities;
use super::page::{Page, each, or_none, scalar, text};
use super::resources::{Amount, of_pod};

/// A Node's page; `related` are its pods and its Lease.
pub fn describe(page: &mut Page, node: &Value, related: &[Value]) {
    let (metadata, spec, status) = (&node["metadata"], &node["spec"], &node["status"]);
    page.field(0, "Name", text(&metadata["name"]));
    let prefix = "node-role.kubernetes.io/";
    let roles: Vec<&str> =
        metadata["labels"].as_object().into_iter().flatten().filter_map(|(key, _)| key.strip_prefix(prefix)).collect();
    page.field(0, "Roles", or_none(&roles.join(",")));
    page.labels("Labels", &metadata["labels"]);
    page.annotations("Annotations", &metadata["annotations"]);
    page.field(0, "CreationTimestamp", rfc1123z(text(&metadata["creationTimestamp"])));
    taints(page, spec);
    page.field(0, "Unschedulable", (spec["unschedulable"] == true).to_string());
    lease(page, related);
    conditions(page, status);
    page.line(0, "Addresses:");
    each(&status["addresses"]).for_each(|address| page.field(1, text(&address["type"]), text(&address["address"])));
    quantities(page, 0, "Capacity", &status["capacity"]);
    quantities(page, 0, "Allocatable", &status["allocatable"]);
    system(page, &status["nodeInfo"]);
    if !text(&spec["podCIDR"]).is_empty() {
        page.field(0, "PodCIDR", text(&spec["podCIDR"]));
        page.field(0, "PodCIDRs", each(&spec["podCIDRs"]).map(text).collect::<Vec<_>>().join(","));
    }
    if !text(&spec["providerID"]).is_empty() {
        page.field(0, "ProviderID", text(&spec["providerID"]));
    }
    let is_living =
        |pod: &&Value| pod["kind"] == "Pod" && !matches!(text(&pod["status"]["phase"]), "Succeeded" | "Failed");
    let pods: Vec<&Value> = related.iter().filter(is_living).collect();
    pods_table(page, &pods, &status["allocatable"]);
}

fn taints(page: &mut Page, spec: &Value) {
    let one = |taint: &Value| {
        let value = text(&taint["value"]);
        let equals = if value.is_empty() { String::new() } else { format!("={value}") };
        format!("{}{equals}:{}", text(&taint["key"]), text(&taint["effect"]))
    };
    let list: Vec<String> = each(&spec["taints"]).map(one).collect();
    page.field(0, "Taints", or_none(list.first().map_or("", String::as_str)));
    list.iter().skip(1).for_each(|taint| page.line(0, format!("\t{taint}")));
}

fn lease(page: &mut Page, related: &[Value]) {
    let none = Value::Null;
    let lease = related.iter().find(|object| object["kind"] == "Lease").map_or(&none, |lease| &lease["spec"]);
    let time = |field: &str| lease[field].as_str().map_or("<unset>".to_string(), rfc1123z);
    page.line(0, "Lease:");
    page.field(1, "HolderIdentity", lease["holderIdentity"].as_str().unwrap_or("<unset>"));
    page.field(1, "AcquireTime", time("acquireTime"));
    page.field(1, "RenewTime", time("renewTime"));
}

fn conditions(page: &mut Page, status: &Value) {
    if each(&status["conditions"]).next().is_none() {
        return;
    }
    page.line(0, "Conditions:");
    page.line(1, "Type\tStatus\tLastHeartbeatTime\tLastTransitionTime\tReason\tMessage");
    page.line(1, "----\t------\t-----------------\t------------------\t------\t-------");
    for condition in each(&status["conditions"]) {
        let part = |field: &str| text(&condition[field]).to_string();
        page.line(
            1,
            format!(
                "{} \t{} \t{} \t{} \t{} \t{}",
                part("type"),
                part("status"),
                rfc1123z(&part("lastHeartbeatTime")),
                rfc1123z(&part("lastTransitionTime")),
                part("reason"),
                part("message")
            ),
        );
    }
}

fn system(page: &mut Page, info: &Value) {
    page.line(0, "System Info:");
    let fields = [
        ("Machine ID", "machineID"),
        ("System UUID", "systemUUID"),
        ("Boot ID", "bootID"),
        ("Kernel Version", "kernelVersion"),
        ("OS Image", "osImage"),
        ("Operating System", "operatingSystem"),
        ("Architecture", "architecture"),
        ("Container Runtime Version", "containerRuntimeVersion"),
        ("Kubelet Version", "kubeletVersion"),
    ];
    fields.iter().for_each(|(title, field)| page.field(1, title, scalar(&info[field])));
}

fn pods_table(page: &mut Page, pods: &[&Value], allocatable: &Value) {
    page.field(0, "Non-terminated Pods", format!("({} in total)", pods.len()));
    page.line(1, "Namespace\tName\t\tCPU Requests\tCPU Limits\tMemory Requests\tMemory Limits\tAge");
    page.line(1, "---------\t----\t\t------------\t----------\t---------------\t-------------\t---");
    let share = |name: &str, amount: Amount| {
        let whole = Amount::parse(&scalar(&allocatable[name]));
        format!("{} ({}%)", amount.show(name), amount.percent_of(whole))
    };
    let mut totals: BTreeMap<(&str, &str), Amount> = BTreeMap::new();
    for pod in pods {
        let metadata = &pod["metadata"];
        let mut cells = Vec::new();
        for name in ["cpu", "memory"] {
            for which in ["requests", "limits"] {
                cells.push(share(name, of_pod(pod, which, name)));
            }
        }
        for name in ["cpu", "memory", "ephemeral-storage"] {
            for which in ["requests", "limits"] {
                let total = totals.entry((name, which)).or_default();
                *total = *total + of_pod(pod, which, name);
            }
        }
        let age = page.age(&metadata["creationTimestamp"]);
        page.line(
            1,
            format!("{}\t{}\t\t{}\t{age}", text(&metadata["namespace"]), text(&metadata["name"]), cells.join("\t")),
        );
    }
    page.line(0, "Allocated resources:");
    page.line(1, "(Total limits may be over 100 percent, i.e., overcommitted.)");
    page.line(1, "Resource\tRequests\tLimits");
    page.line(1, "--------\t--------\t------");
    for name in ["cpu", "memory", "ephemeral-storage"] {
        let total = |which| totals.get(&(name, which)).copied().unwrap_or_default();
        page.line(1, format!("{name}\t{}\t{}", share(name, total("requests")), share(name, total("limits"))));
    }
}
