//! Service load balancer: Services of type LoadBalancer and Ingresses of our class are told where they are served, which is at
//! the addresses of the nodes.
//!
//! As in k3s: every ready node serves; its ExternalIPs count, or its InternalIPs where it has none. A Service whose
//! `externalTrafficPolicy` is Local is served where one of its endpoints is ready. Kubernetes' label
//! `node.kubernetes.io/exclude-from-external-load-balancers` keeps a node out. Deliberately absent: Services with a
//! `loadBalancerClass` (they are somebody else's), and the serving itself (every node's agent does it).

use crate::node::ready;
use crate::{Controller, Cx, Outcome};
use k8s_openapi::api::core::v1::{Node, Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use serde_json::{Value, json};
use state::{Change, Event, Key, Object, World, Write};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

/// Label of a node that is no load balancer.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// Our IngressClass, also when there is no object of that name.
const CLASS: &str = "coracle";
/// What makes an IngressClass ours.
const CONTROLLER: &str = "coracle.dev/ingress";
/// The old way to name a class.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
/// Annotation of the class of Ingresses that name none.
const DEFAULT_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";
/// Label of a slice: its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The controller.
pub struct Balancer;

impl Controller for Balancer {
    fn name(&self) -> &'static str {
        "service-lb-controller"
    }

    fn wakes(&self, event: &Event, world: &World) -> Vec<Key> {
        let key = event.key();
        let gone = event.change == Change::Deleted;
        if key.is::<Node>() {
            let before = event.previous.as_ref().map(|node| points(node));
            let now = if gone { Vec::new() } else { points(&event.object) };
            if before.unwrap_or_default() == now {
                return Vec::new();
            }
            return services(world).chain(world.all::<Ingress>(None)).map(|object| object.key().clone()).collect();
        }
        if key.is::<IngressClass>() {
            return world.all::<Ingress>(None).map(|ingress| ingress.key().clone()).collect();
        }
        if key.is::<EndpointSlice>() {
            let name = event.object.meta().labels.get(SERVICE_NAME);
            let service = name.map(|name| Key::of::<Service>(&key.namespace, name));
            return service
                .filter(|service| world.get(service).is_some_and(|object| is_local(object)))
                .into_iter()
                .collect();
        }
        if (key.is::<Service>() || key.is::<Ingress>()) && !gone { vec![key.clone()] } else { Vec::new() }
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let Some(object) = cx.world.get(key).filter(|object| !object.is_deleting()) else { return Outcome::default() };
        let wanted = match key.is::<Service>() {
            true => of_service(cx.world, object),
            false if is_our_ingress(cx.world, object) => {
                Some(everywhere(cx.world, |_| true).iter().map(|ip| json!({"ip": ip})).collect())
            }
            false => None,
        };
        let write = wanted.and_then(|wanted| shown_at(object, wanted));
        Outcome { writes: write.into_iter().collect(), again_at: None }
    }
}

/// Where a Service is served; `None` when that is not ours to say.
fn of_service(world: &World, object: &Object) -> Option<Vec<Value>> {
    let service = object.view::<Service>()?;
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() != Some("LoadBalancer") {
        // one that was a load balancer once
        return Some(Vec::new());
    }
    if !is_balanced(spec) {
        return None;
    }
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let fits = |ip: &IpAddr| {
        let family = if ip.is_ipv6() { "IPv6" } else { "IPv4" };
        families.is_empty() || families.iter().any(|own| own == family)
    };
    let nodes = is_local(object).then(|| nodes_with_endpoints(world, object));
    let addresses = everywhere(world, |node| nodes.as_ref().is_none_or(|nodes| nodes.contains(node)));
    Some(addresses.iter().filter(|ip| fits(ip)).map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect())
}

/// Whether a Service wants a load balancer and leaves the choice to the cluster.
fn is_balanced(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none()
}

/// Whether a Service is served only where its pods are.
fn is_local(object: &Object) -> bool {
    let spec = object.view::<Service>().and_then(|service| service.spec.as_ref());
    spec.is_some_and(|spec| is_balanced(spec) && spec.external_traffic_policy.as_deref() == Some("Local"))
}

fn services(world: &World) -> impl Iterator<Item = &Arc<Object>> {
    let ours = |object: &&Arc<Object>| {
        object.view::<Service>().and_then(|service| service.spec.as_ref()).is_some_and(is_balanced)
    };
    world.all::<Service>(None).filter(ours)
}

/// The nodes on which an endpoint of a Service is ready.
fn nodes_with_endpoints(world: &World, service: &Object) -> BTreeSet<String> {
    let key = service.key();
    let of_service =
        |slice: &&Arc<Object>| slice.meta().labels.get(SERVICE_NAME).is_some_and(|name| **name == *key.name);
    let slices = world.all::<EndpointSlice>(Some(&key.namespace)).filter(of_service);
    let endpoints =
        slices.filter_map(|slice| slice.view::<EndpointSlice>()).flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = endpoints
        .filter(|endpoint| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true));
    ready.filter_map(|endpoint| endpoint.node_name.clone()).collect()
}

/// The addresses of those nodes, in order.
fn everywhere(world: &World, serves: impl Fn(&str) -> bool) -> Vec<IpAddr> {
    let nodes = world.all::<Node>(None).filter(|node| serves(&node.meta().name));
    let addresses: BTreeSet<IpAddr> = nodes.flat_map(|node| points(node)).collect();
    addresses.into_iter().collect()
}

/// The addresses at which a node serves; none when it does not.
fn points(node: &Object) -> Vec<IpAddr> {
    if node.is_deleting() || node.meta().labels.contains_key(EXCLUDED) || ready(node) != Some("True") {
        return Vec::new();
    }
    let status = node.view::<Node>().and_then(|node| node.status.as_ref());
    let addresses = status.and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let of = |type_: &str| -> Vec<IpAddr> {
        let own = addresses.iter().filter(|address| address.type_ == type_);
        own.filter_map(|address| address.address.parse().ok()).collect()
    };
    let external = of("ExternalIP");
    if external.is_empty() { of("InternalIP") } else { external }
}

/// Whether an Ingress is for our ingress: its class is ours, or it names none and ours is the default.
fn is_our_ingress(world: &World, object: &Object) -> bool {
    let Some(ingress) = object.view::<Ingress>() else { return false };
    let named = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_ref());
    let named = named.or_else(|| object.meta().annotations.get(CLASS_ANNOTATION));
    let is_ours =
        |class: &IngressClass| class.spec.as_ref().and_then(|spec| spec.controller.as_deref()) == Some(CONTROLLER);
    match named {
        Some(name) => world.view::<IngressClass>("", name).map_or(name == CLASS, is_ours),
        // a foreign default class takes what names none
        None => world.all::<IngressClass>(None).all(|class| {
            let is_default = class.meta().annotations.get(DEFAULT_CLASS).is_some_and(|value| value == "true");
            !is_default || class.view().is_some_and(is_ours)
        }),
    }
}

fn shown_at(object: &Object, points: Vec<Value>) -> Option<Write> {
    let mut value = object.value();
    let shown = value["status"]["loadBalancer"]["ingress"].as_array();
    if shown.map_or(&[][..], Vec::as_slice) == points {
        return None;
    }
    let status = value.as_object_mut()?.entry("status").or_insert_with(|| json!({}));
    if !status["loadBalancer"].is_object() {
        status["loadBalancer"] = json!({});
    }
    match points.is_empty() {
        true => drop(status["loadBalancer"].as_object_mut()?.remove("ingress")),
        false => status["loadBalancer"]["ingress"] = points.into(),
    }
    Some(Write::update(object, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::Sandbox;

    fn node(name: &str, ready: &str, addresses: &str, labels: &str) -> String {
        format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: {name}, labels: {{{labels}}}}},
              status: {{conditions: [{{type: Ready, status: '{ready}'}}], addresses: [{addresses}]}}}}"
        )
    }

    const OBJECTS: &str = "
{apiVersion: v1, kind: Service, metadata: {name: all, namespace: default}, spec: {type: LoadBalancer, ipFamilies: [IPv4]}}
---
{apiVersion: v1, kind: Service, metadata: {name: local, namespace: default}, spec: {type: LoadBalancer, externalTrafficPolicy: Local}}
---
{apiVersion: v1, kind: Service, metadata: {name: other, namespace: default}, spec: {type: LoadBalancer, loadBalancerClass: example.com/lb}}
---
{apiVersion: v1, kind: Service, metadata: {name: inner, namespace: default}, spec: {type: ClusterIP}}
---
{apiVersion: networking.k8s.io/v1, kind: IngressClass, metadata: {name: foreign}, spec: {controller: example.com/x}}
---
{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: mine, namespace: default}, spec: {}}
---
{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: named, namespace: default}, spec: {ingressClassName: coracle}}
---
{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: theirs, namespace: default}, spec: {ingressClassName: foreign}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: local-1, namespace: default, labels: {kubernetes.io/service-name: local}},
  addressType: IPv4, endpoints: [{addresses: [10.42.0.1], nodeName: a, conditions: {ready: false}}, {addresses: [10.42.0.2], nodeName: b, conditions: {ready: true}}]}
";

    fn report(sandbox: &Sandbox) -> String {
        let shown = |object: &Arc<Object>| {
            let value = object.value();
            let points = value["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
            let points: Vec<&str> = points.iter().filter_map(|point| point["ip"].as_str()).collect();
            format!("{} {}\n", object.meta().name, points.join(" "))
        };
        let world = &sandbox.world;
        world.all::<Service>(None).chain(world.all::<Ingress>(None)).map(shown).collect()
    }

    #[test]
    fn they_are_served_by_ready_nodes() {
        let mut sandbox = Sandbox::new(vec![Box::new(Balancer)]);
        let v4 = |last: u8| format!("{{type: InternalIP, address: 192.0.2.{last}}}, {{type: Hostname, address: x}}");
        sandbox
            .apply(&node("a", "True", &format!("{}, {{type: InternalIP, address: '2001:db8::1'}}", v4(10)), ""))
            .apply(&node("b", "True", &format!("{}, {{type: ExternalIP, address: 198.51.100.2}}", v4(9)), ""))
            .apply(&node("c", "Unknown", &v4(3), ""))
            .apply(&node("d", "True", &v4(4), "node.kubernetes.io/exclude-from-external-load-balancers: ''"))
            .apply(OBJECTS)
            .settle();
        let first = "all 192.0.2.10 198.51.100.2\ninner \nlocal 198.51.100.2\nother \nmine 192.0.2.10 198.51.100.2 2001:db8::1\n\
             named 192.0.2.10 198.51.100.2 2001:db8::1\ntheirs \n";
        assert_eq!(report(&sandbox), first);
        let mode = sandbox.world.get(&Key::of::<Service>("default", "all")).unwrap().value();
        assert_eq!(mode["status"]["loadBalancer"]["ingress"][0]["ipMode"], "VIP");
        sandbox.told();
        sandbox.edit(&Key::of::<Node>("", "c"), |node| node["status"]["capacity"] = json!({"cpu": "3"})).settle();
        assert_eq!(sandbox.log.len(), 1, "what nobody sees is nothing to write: {:?}", sandbox.log);
        sandbox.edit(&Key::of::<Node>("", "b"), |node| node["status"]["conditions"][0]["status"] = "Unknown".into());
        sandbox.settle();
        assert_eq!(
            report(&sandbox),
            "all 192.0.2.10\ninner \nlocal \nother \nmine 192.0.2.10 2001:db8::1\nnamed 192.0.2.10 2001:db8::1\ntheirs \n"
        );
        sandbox.apply(
            "{apiVersion: v1, kind: Service, metadata: {name: all, namespace: default}, spec: {type: ClusterIP}}",
        );
        sandbox.settle();
        assert!(report(&sandbox).starts_with("all \n"));
    }
}
