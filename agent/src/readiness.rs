//! How this node's own pods are, by their own word: what EndpointSlices say of them comes from the master, who may be away.
//!
//! Pure. The routes are built on a world in which the slices say of the node's own pods what their probes say now. So traffic
//! leaves a pod that fails while there is no link, and comes to one that gets ready. Deliberately absent: pods of other nodes, and
//! endpoints that are going, which are the master's to judge.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::Value;
use state::{Object, World};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Label by which a slice names its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// The world with slices put right. `ready` has the addresses of the node's own pods.
pub fn corrected(world: &World, ready: &HashMap<IpAddr, bool>) -> World {
    let mut own = world.clone();
    for slice in world.all::<EndpointSlice>(None) {
        if let Some(slice) = corrected_slice(slice, world, ready) {
            own.put(slice);
        }
    }
    own
}

/// A slice that says something else than the pods themselves, put right.
fn corrected_slice(slice: &Arc<Object>, world: &World, ready: &HashMap<IpAddr, bool>) -> Option<Arc<Object>> {
    let wrong = |address: &str, said: Option<bool>, terminating: Option<bool>| {
        let now = *ready.get(&address.parse().ok()?)?;
        (terminating != Some(true) && said.unwrap_or(true) != now).then_some(now)
    };
    let endpoints = &slice.view::<EndpointSlice>()?.endpoints;
    let fixes: Vec<(usize, bool)> = endpoints
        .iter()
        .flatten()
        .enumerate()
        .filter_map(|(index, endpoint)| {
            let conditions = endpoint.conditions.as_ref();
            let said = conditions.and_then(|conditions| conditions.ready);
            let terminating = conditions.and_then(|conditions| conditions.terminating);
            // a pod's endpoint has one address
            Some((index, wrong(endpoint.addresses.first()?, said, terminating)?))
        })
        .collect();
    if fixes.is_empty() || takes_all(slice, world) {
        return None;
    }
    let mut value = slice.value();
    for (index, is_ready) in fixes {
        let conditions = &mut value["endpoints"][index]["conditions"];
        if !conditions.is_object() {
            *conditions = Value::Object(serde_json::Map::new());
        }
        conditions["ready"] = is_ready.into();
        conditions["serving"] = is_ready.into();
    }
    Object::encode(slice.key().resource.clone(), slice.revision(), value).ok().map(Arc::new)
}

/// Whether a slice's Service wants the pods that are not ready too.
fn takes_all(slice: &Object, world: &World) -> bool {
    let service =
        slice.meta().labels.get(SERVICE_LABEL).and_then(|name| world.view::<Service>(&slice.key().namespace, name));
    service.and_then(|service| service.spec.as_ref()?.publish_not_ready_addresses) == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use manifests::Resource;
    use serde_json::json;
    use state::Revision;

    /// What the slice says of 10.0.0.1 (ours) and 10.0.0.2 (another node's).
    fn check(conditions: Value, own: Option<bool>, publishes_all: bool) -> [Value; 2] {
        let mut world = World::default();
        let service =
            json!({"metadata": {"namespace": "n", "name": "s"}, "spec": {"publishNotReadyAddresses": publishes_all}});
        let endpoints = json!([{"addresses": ["10.0.0.1"], "conditions": conditions}, {"addresses": ["10.0.0.2"], "conditions": conditions}]);
        let slice = json!({"metadata": {"namespace": "n", "name": "s-1", "labels": {SERVICE_LABEL: "s"}}, "addressType": "IPv4",
            "ports": [], "endpoints": endpoints});
        world.put(Arc::new(Object::encode(Resource::of::<Service>(), Revision(1), service).unwrap()));
        let slice = Object::encode(Resource::of::<EndpointSlice>(), Revision(2), slice).unwrap();
        let key = slice.key().clone();
        world.put(Arc::new(slice));
        let ready = own.map(|own| ("10.0.0.1".parse().unwrap(), own)).into_iter().collect();
        let value = corrected(&world, &ready).get(&key).unwrap().value();
        [0, 1].map(|index| value["endpoints"][index]["conditions"]["ready"].clone())
    }

    #[test]
    fn of_its_own_pods_a_node_knows_better() {
        let (yes, no) = (json!({"ready": true}), json!({"ready": false}));
        let going = json!({"ready": false, "serving": true, "terminating": true});
        assert_eq!(check(yes.clone(), Some(false), false), [json!(false), json!(true)]);
        assert_eq!(check(no.clone(), Some(true), false), [json!(true), json!(false)]);
        assert_eq!(check(yes.clone(), None, false), [json!(true), json!(true)]);
        assert_eq!(check(yes, Some(false), true), [json!(true), json!(true)]);
        assert_eq!(check(going, Some(true), false), [json!(false), json!(false)]);
    }
}
