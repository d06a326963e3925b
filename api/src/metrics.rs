//! `metrics.k8s.io`: what nodes and pods use, asked of the nodes at the time of the question. Nothing is kept: there is no
//! history, and a node that does not answer in time is left out.

use crate::body::{self, Answer};
use crate::front::Api;
use crate::nodes::{NodeUsage, Usage};
use crate::query::Query;
use crate::route::{ResourceRoute, Route};
use crate::status::Status;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use manifests::selector::{FieldSelector, LabelSelector};
use manifests::{Kind, Resource};
use serde_json::{Value, json};
use state::{Object, World, rfc3339};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// API group of the metrics.
pub const GROUP: &str = "metrics.k8s.io";
/// Its version.
pub const VERSION: &str = "v1beta1";
/// Nodes asked at once.
const NODES_AT_ONCE: usize = 64;

/// A kind of metrics, which is no stored kind.
pub struct Metrics {
    /// Plural, which is that of what is measured.
    pub plural: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Whether it is of a namespace.
    pub namespaced: bool,
}

/// All of them.
pub static METRICS: &[Metrics] = &[
    Metrics { plural: "nodes", kind: "NodeMetrics", namespaced: false },
    Metrics { plural: "pods", kind: "PodMetrics", namespaced: true },
];
/// What can be done with them.
pub const VERBS: &[&str] = &["get", "list"];

/// The metrics that a path names.
pub fn find(at: &ResourceRoute) -> Option<&'static Metrics> {
    let is_here = at.group == GROUP && at.version == VERSION && at.subresource.is_empty();
    METRICS.iter().find(|metrics| is_here && metrics.plural == at.plural)
}

/// Answers GET of one or of all.
///
/// # Errors
/// 404 for what there are no figures of, 405 for anything but GET.
pub(crate) async fn answer(
    api: &Api,
    metrics: &Metrics,
    route: &Route,
    at: &ResourceRoute,
    query: &Query,
) -> Result<Answer, Status> {
    if !VERBS.contains(&route.verb) {
        return Err(Status::method_not_allowed());
    }
    if metrics.namespaced && at.namespace.is_empty() && !at.name.is_empty() {
        return Err(Status::no_such_path());
    }
    if !metrics.namespaced && !at.namespace.is_empty() {
        return Err(Status::no_such_path());
    }
    let world = api.world();
    let measured = selected(&world, metrics, at, query)?;
    let nodes = measured.iter().map(|object| node_of(metrics, object)).filter(|node| !node.is_empty());
    let usages = ask(api, nodes.collect()).await;
    let items = measured.iter().filter_map(|object| {
        let usage = usages.get(&node_of(metrics, object))?;
        if metrics.namespaced { of_pod(object, usage) } else { Some(of_node(object, usage)) }
    });
    let mut items: Vec<Value> = items.collect();
    let api_version = format!("{GROUP}/{VERSION}");
    if at.name.is_empty() {
        let kind = format!("{}List", metrics.kind);
        return Ok(body::json(200, &json!({"kind": kind, "apiVersion": api_version, "metadata": {}, "items": items})));
    }
    let Some(mut item) = items.pop() else { return Err(absent(metrics, at)) };
    item["kind"] = metrics.kind.into();
    item["apiVersion"] = api_version.into();
    Ok(body::json(200, &item))
}

fn absent(metrics: &Metrics, at: &ResourceRoute) -> Status {
    let resource = Resource::new(GROUP, metrics.kind.to_lowercase());
    let name = if metrics.namespaced { format!("{}/{}", at.namespace, at.name) } else { at.name.clone() };
    Status::not_found(&resource, &name)
}

/// The nodes or pods that are asked for.
fn selected(world: &World, metrics: &Metrics, at: &ResourceRoute, query: &Query) -> Result<Vec<Arc<Object>>, Status> {
    let resource = Resource::new("", metrics.plural);
    let kind: &Kind = manifests::by_resource(&resource).ok_or_else(Status::no_such_path)?;
    let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or_default())
        .map_err(|error| Status::bad_request(format!("unable to parse requirement: {error}")))?;
    let fields = FieldSelector::parse(kind, query.get("fieldSelector").unwrap_or_default())
        .map_err(|error| Status::bad_request(error.to_string()))?;
    let namespace = Some(at.namespace.as_str()).filter(|namespace| !namespace.is_empty());
    let takes = |object: &&Arc<Object>| {
        if !at.name.is_empty() {
            return object.meta().name == at.name;
        }
        labels.matches(&object.meta().labels) && (fields.is_empty() || fields.matches(&object.value()))
    };
    Ok(world.list(&resource, namespace).filter(takes).cloned().collect())
}

fn node_of(metrics: &Metrics, object: &Object) -> String {
    if !metrics.namespaced {
        return object.view::<Node>().map(|_| object.meta().name.clone()).unwrap_or_default();
    }
    object.view::<Pod>().and_then(|pod| pod.spec.as_ref()?.node_name.clone()).unwrap_or_default()
}

/// What these nodes use, of those that answer in time.
async fn ask(api: &Api, nodes: BTreeSet<String>) -> HashMap<String, NodeUsage> {
    let time_max = api.limits().usage_time_max;
    let asked = futures::stream::iter(nodes).map(|node| {
        let usage = api.config.nodes.usage(node.clone());
        async move {
            match tokio::time::timeout(time_max, usage).await {
                Ok(Ok(usage)) => Some((node, usage)),
                Ok(Err(error)) => {
                    tracing::debug!(node, %error, "figures of use");
                    None
                }
                Err(_) => None,
            }
        }
    });
    asked.buffer_unordered(NODES_AT_ONCE).filter_map(std::future::ready).collect().await
}

fn of_node(node: &Object, usage: &NodeUsage) -> Value {
    let mut item = head(node, usage);
    item["usage"] = figures(usage.total);
    item
}

/// `None` for a pod of which nothing runs.
fn of_pod(pod: &Object, usage: &NodeUsage) -> Option<Value> {
    let used = usage.pods.iter().find(|used| used.uid == pod.meta().uid).filter(|used| !used.containers.is_empty())?;
    let containers = used.containers.iter().map(|(name, usage)| json!({"name": name, "usage": figures(*usage)}));
    let mut item = head(pod, usage);
    item["containers"] = containers.collect();
    Some(item)
}

fn head(object: &Object, usage: &NodeUsage) -> Value {
    let meta = object.meta();
    let mut metadata = json!({"name": meta.name, "creationTimestamp": rfc3339(usage.timestamp)});
    if let Some(namespace) = &meta.namespace {
        metadata["namespace"] = namespace.clone().into();
    }
    if !meta.labels.is_empty() {
        metadata["labels"] = json!(meta.labels);
    }
    json!({"metadata": metadata, "timestamp": rfc3339(usage.timestamp), "window": go_duration(usage.window)})
}

fn figures(usage: Usage) -> Value {
    json!({"cpu": format!("{}n", usage.cpu_nanocores), "memory": format!("{}Ki", usage.memory_bytes / 1024)})
}

/// As Go prints a duration: `10s`, `10.05s`, `1m0s`.
fn go_duration(duration: Duration) -> String {
    let (minutes, seconds) = (duration.as_secs() / 60, duration.as_secs() % 60);
    let millis = duration.subsec_millis();
    let mut text = if minutes > 0 { format!("{minutes}m{seconds}") } else { seconds.to_string() };
    if millis > 0 {
        text.push_str(format!(".{millis:03}").trim_end_matches('0'));
    }
    text.push('s');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_go_prints_them() {
        for (millis, wanted) in [(10_000, "10s"), (10_050, "10.05s"), (60_000, "1m0s"), (61_500, "1m1.5s"), (0, "0s")] {
            assert_eq!(go_duration(Duration::from_millis(millis)), wanted);
        }
    }
}
