//! EndpointSlices: at most a hundred endpoints each, one set of ports each.
//!
//! An endpoint stays in the slice it is in, so that a change of one pod is a change of one slice.

use super::{Backend, Port, SERVICE_NAME, hints, labels};
use crate::{Cx, ownership};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use manifests::Resource;
use serde_json::{Value, json};
use state::{Key, Meta, Object, World, Write};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// Label of a slice: who keeps it.
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// And that is us.
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Kubernetes' bound of one slice.
const ENDPOINTS_MAX: usize = 100;
/// Annotation of a slice: when its endpoints last changed.
const CHANGED_AT: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// A Service with fewer endpoints never rests.
const RESTING_ENDPOINTS_MIN: usize = 20;
/// How long a Service rests after a change for each endpoint that each node is told of, and at most.
const REST_PER_TELLING_US: i64 = 20;
const REST_US_MAX: i64 = 3_000_000;

/// Endpoints that may share slices: address family and ports.
type Group = (&'static str, Vec<Port>);

/// Whether a slice is kept by this controller.
pub(super) fn is_ours(meta: &Meta) -> bool {
    meta.labels.get(MANAGED_BY).is_some_and(|manager| manager == MANAGER)
}

/// Until when changes of a Service may wait, if its endpoints changed just now, some can be used, and none has become worse: then
/// another one a moment later harms nobody, and while hundreds start, each would be another change for every node.
pub(super) fn rests_until(
    cx: &Cx<'_>,
    service: &Object,
    spec: &ServiceSpec,
    backends: &[Backend<'_>],
) -> Option<Timestamp> {
    let slices = ownership::children::<EndpointSlice>(cx.world, service);
    let ours = || slices.iter().filter(|slice| is_ours(slice.meta()));
    let changed_at =
        ours().filter_map(|slice| slice.meta().annotations.get(CHANGED_AT)?.parse::<Timestamp>().ok()).max()?;
    let count = ours().flat_map(|slice| endpoints(slice)).count();
    let tellings = i64::try_from(count * cx.world.count(&Resource::of::<Node>()).max(1)).ok()?;
    let rest_us = REST_PER_TELLING_US.saturating_mul(tellings).min(REST_US_MAX);
    let until = changed_at + SignedDuration::from_micros(rest_us);
    if count < RESTING_ENDPOINTS_MIN || !(changed_at..until).contains(&cx.now) {
        return None;
    }
    let by_uid: HashMap<&str, &Backend<'_>> =
        backends.iter().map(|backend| (backend.pod.meta().uid.as_str(), backend)).collect();
    let is_as_good = |old: &Endpoint| {
        let backend = by_uid.get(old.target_ref.as_ref()?.uid.as_deref()?)?;
        let before = old.conditions.as_ref()?;
        let is_same = old.addresses.iter().any(|address| address.parse() == Ok(backend.address))
            && before.terminating == Some(backend.terminating)
            && old.node_name.as_deref() == backend.node;
        let is_worse = (before.ready == Some(true) && !is_ready(spec, backend))
            || (before.serving == Some(true) && !backend.serving);
        Some(is_same && !is_worse)
    };
    let groups: BTreeSet<Group> = backends.iter().map(group_of).collect();
    let keeps = |slice: &Arc<Object>| {
        groups.contains(&group(slice)) && endpoints(slice).all(|endpoint| is_as_good(endpoint) == Some(true))
    };
    let serves = |old: &Endpoint| old.conditions.as_ref().is_some_and(|before| before.ready == Some(true));
    (ours().flat_map(|slice| endpoints(slice)).any(serves) && ours().all(|slice| keeps(slice))).then_some(until)
}

fn endpoints(slice: &Object) -> impl Iterator<Item = &Endpoint> {
    slice.view::<EndpointSlice>().into_iter().flat_map(|slice| slice.endpoints.iter().flatten())
}

/// Brings a Service's slices in line with its backends.
pub(super) fn reconcile(cx: &mut Cx<'_>, service: &Object, spec: &ServiceSpec, backends: &[Backend<'_>]) -> Vec<Write> {
    let mut wanted = wanted(cx.world, service, spec, backends);
    let slices = ownership::children::<EndpointSlice>(cx.world, service);
    let mut kept: Vec<(Arc<Object>, Value)> = Vec::new();
    let mut surplus: Vec<Arc<Object>> = Vec::new();
    for slice in slices.into_iter().filter(|slice| is_ours(slice.meta()) && !slice.is_deleting()) {
        match wanted.get_mut(&group(slice)) {
            Some(endpoints) => kept.push((slice.clone(), keep(slice, endpoints))),
            None => surplus.push(slice.clone()),
        }
    }
    let labels = slice_labels(service, spec);
    let changed_at = (backends.len() >= RESTING_ENDPOINTS_MIN).then(|| cx.now.to_string());
    let mut writes = Vec::new();
    for (group, endpoints) in wanted {
        let mut rest: Vec<Value> = endpoints.into_values().collect();
        let of_group = kept.iter_mut().filter(|(slice, _)| self::group(slice) == group);
        let mut has_slice = false;
        for (slice, value) in of_group {
            let own = value["endpoints"].as_array_mut();
            if let Some(own) = own {
                let room = ENDPOINTS_MAX.saturating_sub(own.len()).min(rest.len());
                own.extend(rest.drain(..room));
                if own.is_empty() && has_slice {
                    surplus.push(slice.clone());
                    continue;
                }
            }
            has_slice = true;
            value["metadata"]["labels"] = json!(labels);
            if *value != slice.value() {
                if let Some(at) = &changed_at {
                    crate::edit::annotate(value, CHANGED_AT, at);
                }
                writes.push(Write::update(slice, value.take()));
            }
        }
        // a group without endpoints is that of a Service without any: it still has one slice
        if rest.is_empty() && !has_slice {
            writes.push(create(cx, service, &labels, &group, Vec::new()));
        }
        while !rest.is_empty() {
            let chunk = rest.drain(..rest.len().min(ENDPOINTS_MAX)).collect();
            let mut write = create(cx, service, &labels, &group, chunk);
            if let (Some(at), Some(value)) = (&changed_at, &mut write.value) {
                crate::edit::annotate(value, CHANGED_AT, at);
            }
            writes.push(write);
        }
    }
    writes.extend(surplus.iter().map(|slice| Write::delete(slice)));
    writes
}

/// The endpoints there should be, by group and pod uid.
fn wanted(
    world: &World,
    service: &Object,
    spec: &ServiceSpec,
    backends: &[Backend<'_>],
) -> BTreeMap<Group, BTreeMap<String, Value>> {
    let mut groups: BTreeMap<Group, BTreeMap<String, Value>> = BTreeMap::new();
    let hints = hints::of(world, service, spec, backends, |backend| is_ready(spec, backend));
    for (backend, hints) in backends.iter().zip(hints) {
        let endpoints = groups.entry(group_of(backend)).or_default();
        endpoints.insert(backend.pod.meta().uid.clone(), endpoint(service, spec, backend, hints));
    }
    if groups.is_empty() {
        let six =
            spec.ip_families.as_ref().and_then(|families| families.first()).is_some_and(|family| family == "IPv6");
        groups.insert((if six { "IPv6" } else { "IPv4" }, Vec::new()), BTreeMap::new());
    }
    groups
}

fn group_of(backend: &Backend<'_>) -> Group {
    let mut ports = backend.ports.clone();
    ports.sort();
    (family(backend.address), ports)
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv6() { "IPv6" } else { "IPv4" }
}

fn is_ready(spec: &ServiceSpec, backend: &Backend<'_>) -> bool {
    spec.publish_not_ready_addresses == Some(true) || (backend.serving && !backend.terminating)
}

fn endpoint(service: &Object, spec: &ServiceSpec, backend: &Backend<'_>, hints: Option<Value>) -> Value {
    let mut endpoint = json!({
        "addresses": [backend.address],
        "conditions": {
            "ready": is_ready(spec, backend),
            "serving": backend.serving,
            "terminating": backend.terminating,
        },
        "targetRef": {
            "kind": "Pod", "namespace": service.meta().namespace,
            "name": backend.pod.meta().name, "uid": backend.pod.meta().uid,
        },
    });
    for (field, text) in [("nodeName", backend.node), ("zone", backend.zone), ("hostname", backend.hostname)] {
        if let Some(text) = text {
            endpoint[field] = text.into();
        }
    }
    if let Some(hints) = hints {
        endpoint["hints"] = hints;
    }
    endpoint
}

/// The group of a slice as it is.
fn group(slice: &Object) -> Group {
    let Some(view) = slice.view::<EndpointSlice>() else { return ("", Vec::new()) };
    let mut ports: Vec<Port> = view
        .ports
        .iter()
        .flatten()
        .map(|port| Port {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_default(),
            number: port.port.unwrap_or(0),
            app_protocol: port.app_protocol.clone(),
        })
        .collect();
    ports.sort();
    let family = match view.address_type.as_str() {
        "IPv4" => "IPv4",
        "IPv6" => "IPv6",
        _ => "",
    };
    (family, ports)
}

/// A slice with those of its endpoints that are still wanted, as they are now; they are taken out of `wanted`.
fn keep(slice: &Object, wanted: &mut BTreeMap<String, Value>) -> Value {
    let mut value = slice.value();
    let old = value["endpoints"].as_array().cloned().unwrap_or_default();
    let uids = old.iter().filter_map(|endpoint| endpoint["targetRef"]["uid"].as_str());
    let endpoints: Vec<Value> = uids.filter_map(|uid| wanted.remove(uid)).collect();
    value["endpoints"] = endpoints.into();
    value
}

fn slice_labels(service: &Object, spec: &ServiceSpec) -> BTreeMap<String, String> {
    let mut labels = labels(service, spec);
    labels.insert(SERVICE_NAME.into(), service.meta().name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

fn create(
    cx: &mut Cx<'_>,
    service: &Object,
    labels: &BTreeMap<String, String>,
    (family, ports): &Group,
    endpoints: Vec<Value>,
) -> Write {
    let ports: Vec<Value> = ports
        .iter()
        .map(|port| {
            let mut value = json!({"name": port.name, "protocol": port.protocol, "port": port.number});
            if let Some(app) = &port.app_protocol {
                value["appProtocol"] = app.as_str().into();
            }
            value
        })
        .collect();
    let namespace = service.meta().namespace.as_deref().unwrap_or("");
    let mut value = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "generateName": format!("{}-", service.meta().name), "namespace": namespace, "labels": labels,
            "ownerReferences": [ownership::reference::<Service>(service)],
        },
        "addressType": family, "endpoints": endpoints, "ports": ports,
    });
    cx.stamp.complete(&mut value, true);
    let name = value["metadata"]["name"].as_str().unwrap_or("");
    Write::create(Key::of::<EndpointSlice>(namespace, name), value)
}
