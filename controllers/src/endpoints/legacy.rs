//! The Endpoints object: one per Service, of its name; what was before EndpointSlices, and what older clients read.

use super::{Backend, Port, labels};
use crate::Cx;
use k8s_openapi::api::core::v1::{Endpoints, ServiceSpec};
use serde_json::{Value, json};
use state::{Key, Object, World, Write};
use std::collections::BTreeMap;

/// Label: who keeps it.
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
/// And that is us.
const MANAGER: &str = "endpoint-controller";
/// Kubernetes' bound of one Endpoints object.
const ADDRESSES_MAX: usize = 1000;
/// Annotation of one that had to leave addresses out.
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

/// Deletes the Endpoints of a Service that is gone.
pub(super) fn forget(world: &World, service: &Key) -> Vec<Write> {
    let old = world.get(&Key::of::<Endpoints>(&service.namespace, &service.name));
    let ours = old.filter(|old| old.meta().labels.get(MANAGED_BY).is_some_and(|manager| manager == MANAGER));
    ours.map(|old| Write::delete(old)).into_iter().collect()
}

/// Brings a Service's Endpoints in line with its backends.
pub(super) fn reconcile(
    cx: &mut Cx<'_>,
    service: &Object,
    spec: &ServiceSpec,
    backends: &[Backend<'_>],
) -> Option<Write> {
    let (name, namespace) = (&service.meta().name, service.meta().namespace.as_deref().unwrap_or(""));
    let publish = spec.publish_not_ready_addresses == Some(true);
    let shown: Vec<_> = backends.iter().filter(|backend| publish || !backend.terminating).collect();
    let over = shown.len() > ADDRESSES_MAX;
    let subsets = subsets(&shown[..shown.len().min(ADDRESSES_MAX)], publish);
    let mut labels = labels(service, spec);
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let key = Key::of::<Endpoints>(namespace, name);
    let old = cx.world.get(&key);
    let mut value = old.map_or_else(
        || json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": name, "namespace": namespace}}),
        |old| old.value(),
    );
    value["metadata"]["labels"] = json!(labels);
    if over {
        crate::edit::annotate(&mut value, OVER_CAPACITY, "truncated");
    } else if let Some(annotations) = value["metadata"].get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.remove(OVER_CAPACITY);
    }
    match subsets.is_empty() {
        true => drop(value.as_object_mut().and_then(|fields| fields.remove("subsets"))),
        false => value["subsets"] = subsets.into(),
    }
    match old {
        Some(old) if old.value() == value => None,
        Some(old) => Some(Write::update(old, value)),
        None => {
            cx.stamp.complete(&mut value, false);
            Some(Write::create(key, value))
        }
    }
}

/// Addresses by their set of ports.
fn subsets(backends: &[&Backend<'_>], publish: bool) -> Vec<Value> {
    let mut groups: BTreeMap<Vec<Port>, (Vec<Value>, Vec<Value>)> = BTreeMap::new();
    for backend in backends {
        let mut ports = backend.ports.clone();
        ports.sort();
        let (ready, unready) = groups.entry(ports).or_default();
        let list = if publish || backend.serving { ready } else { unready };
        list.push(address(backend));
    }
    groups.into_iter().map(|(ports, (ready, unready))| subset(&ports, ready, unready)).collect()
}

fn subset(ports: &[Port], ready: Vec<Value>, unready: Vec<Value>) -> Value {
    let mut subset = json!({});
    for (field, addresses) in [("addresses", ready), ("notReadyAddresses", unready)] {
        if !addresses.is_empty() {
            subset[field] = addresses.into();
        }
    }
    let port = |port: &Port| {
        let mut value = json!({"port": port.number, "protocol": port.protocol});
        if !port.name.is_empty() {
            value["name"] = port.name.as_str().into();
        }
        if let Some(app) = &port.app_protocol {
            value["appProtocol"] = app.as_str().into();
        }
        value
    };
    if !ports.is_empty() {
        subset["ports"] = ports.iter().map(port).collect();
    }
    subset
}

fn address(backend: &Backend<'_>) -> Value {
    let meta = backend.pod.meta();
    let mut address = json!({
        "ip": backend.address,
        "targetRef": {"kind": "Pod", "namespace": meta.namespace, "name": meta.name, "uid": meta.uid},
    });
    for (field, text) in [("nodeName", backend.node), ("hostname", backend.hostname)] {
        if let Some(text) = text {
            address[field] = text.into();
        }
    }
    address
}
