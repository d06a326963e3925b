//! The objects every cluster is born with: its namespaces, the `kubernetes` Service, the classes it offers.

use crate::entropy::{Entropy, now};
use anyhow::{Context, Result};
use manifests::Resource;
use serde_json::{Value, json};
use state::{Key, Object, Stamp, World, Write};
use std::net::IpAddr;
use store::Store;

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// The name of the IngressClass that every node's proxy serves.
const INGRESS_CLASS: &str = "coracle";
/// The name of the StorageClass of claims that name none: a directory of the node.
const STORAGE_CLASS: &str = "local-path";

/// What the birth objects depend on.
pub struct Birth {
    /// Virtual address of the `kubernetes` Service; `None` in a cluster without Service addresses.
    pub api_virtual_ip: IpAddr,
    /// Where the API server really listens.
    pub api_address: IpAddr,
    /// At which port.
    pub api_port: u16,
}

/// Brings the store's objects to what [`Birth`] says. Writes nothing that is there already.
pub async fn ensure(store: &Store, birth: &Birth) -> Result<()> {
    let world = store.world();
    let writes: Vec<Write> = wanted(birth).into_iter().filter_map(|value| needed(&world, value)).collect();
    if !writes.is_empty() {
        store.commit(writes).await.context("write the cluster's first objects")?;
    }
    Ok(())
}

fn wanted(birth: &Birth) -> Vec<Value> {
    let mut objects: Vec<Value> = NAMESPACES.iter().map(|name| namespace(name)).collect();
    objects.push(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": birth.api_virtual_ip, "clusterIPs": [birth.api_virtual_ip],
            "ipFamilies": [family(birth.api_virtual_ip)], "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": birth.api_port}],
        },
        "status": {"loadBalancer": {}},
    }));
    objects.push(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": family(birth.api_address),
        "endpoints": [{"addresses": [birth.api_address], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": birth.api_port, "protocol": "TCP"}],
    }));
    objects.push(json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{
            "addresses": [{"ip": birth.api_address}],
            "ports": [{"name": "https", "port": birth.api_port, "protocol": "TCP"}],
        }],
    }));
    objects.push(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
        "metadata": {
            "name": INGRESS_CLASS,
            "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"},
        },
        "spec": {"controller": "coracle.dev/ingress"},
    }));
    objects.push(json!({
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
        "metadata": {"name": "wasm"}, "handler": "wasm",
        "scheduling": {"nodeSelector": {"coracle.dev/runtime-wasm": "true"}},
    }));
    objects.push(json!({
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
        "metadata": {"name": "docker"}, "handler": "docker",
        "scheduling": {"nodeSelector": {"coracle.dev/runtime-docker": "true"}},
    }));
    objects.push(json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {
            "name": STORAGE_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": state::storage::LOCAL_PATH,
        "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": true,
    }));
    objects
}

fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    })
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// The write that brings `value` about: a creation, or for the API server's endpoints the address of today.
fn needed(world: &World, mut value: Value) -> Option<Write> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kind = manifests::by_kind(&text(&value["apiVersion"]), &text(&value["kind"]))?;
    let key = Key::new(kind.resource(), &text(&value["metadata"]["namespace"]), &text(&value["metadata"]["name"]));
    match world.get(&key) {
        None => {
            (kind.default)(&mut value);
            Stamp { now: now(), identities: &mut Entropy }.complete(&mut value, kind.counts_generation);
            Some(Write::create(key, value))
        }
        Some(old) if moves(&key.resource) => moved(old, &value),
        Some(_) => None,
    }
}

fn moves(resource: &Resource) -> bool {
    matches!(&*resource.plural, "endpointslices" | "endpoints")
}

fn moved(old: &Object, wanted: &Value) -> Option<Write> {
    let mut value = old.value();
    for field in ["addressType", "endpoints", "ports", "subsets"] {
        if let Some(new) = wanted.get(field) {
            value[field] = new.clone();
        }
    }
    (value != old.value()).then(|| Write::update(old, value))
}
