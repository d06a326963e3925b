//! Endpoints that somebody wrote for a Service without a selector, mirrored as EndpointSlices, which is what nodes route by.
//!
//! As Kubernetes' mirroring controller does it: one slice per subset of ports and address family, owned by the Endpoints. The label
//! `endpointslice.kubernetes.io/skip-mirror: "true"` says that somebody else sees to the slices.

use super::SERVICE_NAME;
use super::slices::MANAGED_BY;
use crate::{Cx, ownership};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use state::{Key, Meta, Object, Write};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Who keeps a mirrored slice.
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// Label of Endpoints that are not mirrored.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Annotation of Endpoints that are a lock of a leader's election.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Label that Kubernetes puts on slices of Services without an address.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Addresses of one subset that are mirrored: Kubernetes' bound of one slice.
const ADDRESSES_MAX: usize = 1000;

/// Whether a slice is a mirror.
pub(super) fn is_mirror(meta: &Meta) -> bool {
    meta.labels.get(MANAGED_BY).is_some_and(|manager| manager == MANAGER)
}

/// Brings the mirrors of a Service without a selector in line with its Endpoints; without the Service, or with a selector, there are
/// none.
pub(super) fn reconcile(cx: &mut Cx<'_>, key: &Key, is_wanted: bool) -> Vec<Write> {
    let endpoints = cx.world.get(&Key::of::<Endpoints>(&key.namespace, &key.name)).cloned();
    let wanted = endpoints.as_ref().filter(|endpoints| is_wanted && is_mirrored(endpoints));
    let mut wanted = wanted.map(|endpoints| mirrors(endpoints)).unwrap_or_default();
    let of_service = |slice: &&Arc<Object>| {
        is_mirror(slice.meta()) && slice.meta().labels.get(SERVICE_NAME).is_some_and(|name| **name == *key.name)
    };
    let old: Vec<Arc<Object>> =
        cx.world.all::<EndpointSlice>(Some(&key.namespace)).filter(of_service).cloned().collect();
    let mut writes = Vec::new();
    for slice in old.iter().filter(|slice| !slice.is_deleting()) {
        let value = slice.value();
        // a slice keeps its name as long as some subset has its ports
        let same =
            wanted.iter().position(|new| ["addressType", "ports"].iter().all(|field| new[field] == value[field]));
        let Some(new) = same.map(|same| wanted.swap_remove(same)) else {
            writes.push(Write::delete(slice));
            continue;
        };
        let mut changed = value.clone();
        changed["endpoints"] = new["endpoints"].clone();
        changed["metadata"]["labels"] = new["metadata"]["labels"].clone();
        changed["metadata"]["ownerReferences"] = new["metadata"]["ownerReferences"].clone();
        if changed != value {
            writes.push(Write::update(slice, changed));
        }
    }
    for mut value in wanted {
        cx.stamp.complete(&mut value, true);
        let name = value["metadata"]["name"].as_str().unwrap_or("").to_owned();
        writes.push(Write::create(Key::of::<EndpointSlice>(&key.namespace, &name), value));
    }
    writes
}

fn is_mirrored(endpoints: &Object) -> bool {
    let meta = endpoints.meta();
    let skips = meta.labels.get(SKIP).is_some_and(|skips| skips == "true");
    !endpoints.is_deleting() && !skips && !meta.annotations.contains_key(LEADER)
}

/// The slices that Endpoints are as.
fn mirrors(object: &Object) -> Vec<Value> {
    let Some(endpoints) = object.view::<Endpoints>() else { return Vec::new() };
    let meta = object.meta();
    let mut labels = meta.labels.clone();
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.into(), meta.name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let mut mirrors = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<Value> = subset.ports.iter().flatten().map(port).collect();
        for (family, endpoints) in families(subset) {
            mirrors.push(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "generateName": format!("{}-", meta.name), "namespace": meta.namespace, "labels": labels,
                    "ownerReferences": [ownership::reference::<Endpoints>(object)],
                },
                "addressType": family, "endpoints": endpoints, "ports": ports,
            }));
        }
    }
    mirrors
}

/// A subset's endpoints by address family, so many as one slice takes, the ready ones first.
fn families(subset: &EndpointSubset) -> BTreeMap<&'static str, Vec<Value>> {
    let ready = subset.addresses.iter().flatten().map(|address| (address, true));
    let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
    let mut families: BTreeMap<&'static str, Vec<Value>> = BTreeMap::new();
    for (address, ready) in ready.chain(unready).take(ADDRESSES_MAX) {
        let Ok(ip) = address.ip.parse::<IpAddr>() else { continue };
        let family = if ip.is_ipv6() { "IPv6" } else { "IPv4" };
        families.entry(family).or_default().push(endpoint(address, ready));
    }
    families
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Value {
    let mut endpoint = json!({"addresses": [address.ip], "conditions": {"ready": ready}});
    for (field, text) in [("hostname", &address.hostname), ("nodeName", &address.node_name)] {
        if let Some(text) = text {
            endpoint[field] = text.as_str().into();
        }
    }
    if let Some(target) = &address.target_ref {
        endpoint["targetRef"] = json!(target);
    }
    endpoint
}

fn port(port: &EndpointPort) -> Value {
    let mut value = json!({
        "name": port.name.as_deref().unwrap_or_default(),
        "protocol": port.protocol.as_deref().unwrap_or("TCP"),
        "port": port.port,
    });
    if let Some(app) = &port.app_protocol {
        value["appProtocol"] = app.as_str().into();
    }
    value
}
