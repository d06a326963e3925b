//! Tells the cluster under which address this node serves Ingresses and Services of type LoadBalancer.
//!
//! Pure: the writes that are due. With several nodes this moves to the master, which knows all of their addresses.

use crate::routes;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::Ingress;
use serde_json::{Value, json};
use state::{Expect, Object, World, Write};
use std::net::IpAddr;

/// The status writes of all Ingresses and load balancers that do not name `address` yet.
pub fn writes(world: &World, address: IpAddr) -> Vec<Write> {
    let ingresses = world.all::<Ingress>(None).filter(|object| routes::is_ours(world, object));
    let ingresses = ingresses.filter_map(|object| shown_at(object, json!({"ip": address.to_string()})));
    let balancers = world.all::<Service>(None).filter(|object| is_load_balancer(object));
    let point = json!({"ip": address.to_string(), "ipMode": "VIP"});
    let balancers = balancers.filter_map(|object| shown_at(object, point.clone()));
    ingresses.chain(balancers).collect()
}

/// Whether a Service wants a load balancer and leaves the choice to the cluster.
pub fn is_load_balancer(object: &Object) -> bool {
    let spec = object.view::<Service>().and_then(|service| service.spec.as_ref());
    spec.is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none())
}

fn shown_at(object: &Object, point: Value) -> Option<Write> {
    let mut value = object.value();
    let points = json!([point]);
    if object.is_deleting() || value["status"]["loadBalancer"]["ingress"] == points {
        return None;
    }
    value["status"]["loadBalancer"]["ingress"] = points;
    Some(Write { key: object.key().clone(), value: Some(value), expect: Expect::At(object.revision()) })
}
