//! Which nodes should use which endpoint: hints, which the nodes follow where every endpoint has some.
//!
//! `spec.trafficDistribution` names an endpoint's own node or zone. The older annotation `service.kubernetes.io/topology-mode: Auto`
//! shares the endpoints out by the CPU of each zone's nodes, and hints nothing where that would overload some by more than a fifth.

use super::{Backend, ZONE};
use crate::node::ready;
use k8s_openapi::api::core::v1::{Node, ServiceSpec};
use manifests::quantity;
use serde_json::{Value, json};
use state::{Object, World};
use std::collections::BTreeMap;

/// Annotations that ask for shares, the newer one first.
const MODES: [&str; 2] = ["service.kubernetes.io/topology-mode", "service.kubernetes.io/topology-aware-hints"];
/// How much more than its share an endpoint may be given.
const OVERLOAD: f64 = 0.2;

/// The hints of each backend, in their order; only what is ready gets any.
pub(super) fn of(
    world: &World,
    service: &Object,
    spec: &ServiceSpec,
    backends: &[Backend<'_>],
    is_ready: impl Fn(&Backend<'_>) -> bool,
) -> Vec<Option<Value>> {
    let zone = |backend: &Backend<'_>| backend.zone.map(|zone| json!({"forZones": [{"name": zone}]}));
    let ready: Vec<bool> = backends.iter().map(is_ready).collect();
    let each = |hint: &dyn Fn(&Backend<'_>) -> Option<Value>| {
        backends.iter().zip(&ready).map(|(backend, ready)| hint(backend).filter(|_| *ready)).collect()
    };
    if are_shared_out(service) {
        return shared_out(world, backends, &ready);
    }
    match spec.traffic_distribution.as_deref() {
        Some("PreferClose" | "PreferSameZone") => each(&zone),
        Some("PreferSameNode") => each(&|backend| {
            let mut hints = zone(backend).unwrap_or_else(|| json!({}));
            hints["forNodes"] = json!([{"name": backend.node?}]);
            Some(hints)
        }),
        _ => vec![None; backends.len()],
    }
}

/// Whether a Service asks for that.
pub(super) fn are_shared_out(service: &Object) -> bool {
    let mode = MODES.iter().find_map(|name| service.meta().annotations.get(*name));
    mode.is_some_and(|mode| mode == "Auto" || mode == "auto")
}

/// Zones for the ready ones, in proportion to the zones' CPU; none at all where that does not work out.
fn shared_out(world: &World, backends: &[Backend<'_>], ready: &[bool]) -> Vec<Option<Value>> {
    let nothing = vec![None; backends.len()];
    let shares = shares(world);
    let places: Option<Vec<&str>> =
        backends.iter().zip(ready).filter(|(_, ready)| **ready).map(|(backend, _)| backend.zone).collect();
    let Some(zones) = places.and_then(|places| allocate(&shares, &places)) else { return nothing };
    let mut zones = zones.into_iter();
    let hint =
        |ready: &bool| if *ready { zones.next().map(|zone| json!({"forZones": [{"name": zone}]})) } else { None };
    ready.iter().map(hint).collect()
}

/// Each zone's part of the CPU of the nodes that are ready; empty unless every one of them is in a zone.
fn shares(world: &World) -> BTreeMap<String, f64> {
    let mut cpu: BTreeMap<String, f64> = BTreeMap::new();
    for node in world.all::<Node>(None).filter(|node| ready(node) == Some("True")) {
        let typed = node.view::<Node>().and_then(|node| node.status.as_ref());
        let own = typed.and_then(|status| status.allocatable.as_ref()?.get("cpu"));
        let own = own.and_then(quantity::milli).map_or(0.0, |milli| milli as f64);
        let Some(zone) = node.meta().labels.get(ZONE).filter(|_| own > 0.0) else { return BTreeMap::new() };
        *cpu.entry(zone.clone()).or_default() += own;
    }
    let all: f64 = cpu.values().sum();
    cpu.values_mut().for_each(|own| *own /= all);
    cpu
}

/// The zone that each endpoint should serve, given the one it is in. `None` where some would have too much to do, or there is but
/// one zone.
fn allocate(shares: &BTreeMap<String, f64>, places: &[&str]) -> Option<Vec<String>> {
    if shares.len() < 2 || places.len() < shares.len() || places.iter().any(|zone| !shares.contains_key(*zone)) {
        return None;
    }
    let wanted = |zone: &str| shares[zone] * places.len() as f64;
    let least = |zone: &str| (wanted(zone) / (1.0 + OVERLOAD)).ceil() as usize;
    let mut zones: Vec<&str> = places.to_vec();
    let count = |zones: &[&str], zone: &str| zones.iter().filter(|own| **own == zone).count();
    for short in shares.keys() {
        while count(&zones, short) < least(short) {
            // whoever has most beyond its own least gives one
            let spare = |zone: &str| count(&zones, zone).saturating_sub(least(zone));
            let giver = shares.keys().filter(|zone| spare(zone) > 0).max_by_key(|zone| spare(zone))?;
            let given = zones.iter().rposition(|own| *own == giver.as_str())?;
            zones[given] = short;
        }
    }
    Some(zones.into_iter().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_shared_out_by_cpu() {
        for (shares, places, expected) in [
            (&[("east", 0.5), ("west", 0.5)][..], "east west", Some("east west")),
            (&[("east", 0.5), ("west", 0.5)], "east east east west", Some("east east west west")),
            (&[("east", 0.5), ("west", 0.5)], "east east east east", Some("east east west west")),
            (&[("east", 0.75), ("west", 0.25)], "east east east west", Some("east east east west")),
            // a fifth too much is borne
            (
                &[("east", 0.5), ("west", 0.5)],
                "east east east east east east west west west west west",
                Some("east east east east east east west west west west west"),
            ),
            (&[("east", 0.5), ("west", 0.5)], "east", None),
            (&[("east", 0.9), ("west", 0.1)], "east west", None),
            (&[("east", 1.0)], "east east", None),
            (&[("east", 0.5), ("west", 0.5)], "east north", None),
        ] {
            let shares = shares.iter().map(|(zone, share)| ((*zone).to_owned(), *share)).collect();
            let places: Vec<&str> = places.split(' ').collect();
            let zones = allocate(&shares, &places).map(|zones| zones.join(" "));
            assert_eq!(zones.as_deref(), expected, "{shares:?} {places:?}");
        }
    }
}
