//! Nodes that fall silent, one by one and all together.

use super::taints::{NOT_READY, UNREACHABLE, UNSCHEDULABLE};
use super::*;
use crate::csr::identity;
use crate::eviction::Eviction;
use crate::harness::Sandbox;
use crate::podgc::PodCollector;

const WORLD: &str = "
{apiVersion: v1, kind: Node, metadata: {name: n}, status: {conditions: [{type: Ready, status: 'True'}]}}
---
{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: n, namespace: kube-node-lease}, spec: {renewTime: '2026-01-01T00:00:00.000000Z'}}
---
{apiVersion: v1, kind: Node, metadata: {name: other}, status: {conditions: [{type: Ready, status: 'True'}]}}
---
{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: other, namespace: kube-node-lease}, spec: {renewTime: '2027-01-01T00:00:00.000000Z'}}
---
{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: default, ownerReferences: [
  {apiVersion: apps/v1, kind: ReplicaSet, name: r, uid: u, controller: true}]}, spec: {nodeName: n, tolerations: [
  {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 300}]},
  status: {phase: Running, conditions: [{type: Ready, status: 'True'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: stays, namespace: default}, spec: {nodeName: n, tolerations: [{operator: Exists}]},
  status: {phase: Running}}
";

fn empty(pace: Pace) -> Sandbox {
    let started_at = "2026-01-01T00:00:00Z".parse().unwrap();
    Sandbox::new(vec![
        Box::new(NodeLifecycle { started_at, grace_seconds: 40 }),
        Box::new(NodeEviction { pace }),
        Box::new(NodeLeftovers),
        Box::new(Eviction { started_at }),
        Box::new(PodCollector),
    ])
}

fn sandbox() -> Sandbox {
    let mut sandbox = empty(Pace::default());
    sandbox.apply(WORLD).settle();
    sandbox
}

fn node(sandbox: &Sandbox, name: &str) -> Value {
    sandbox.world.get(&Key::of::<Node>("", name)).unwrap().value()
}

/// The taints of a node, short: `unreachable:NoExecute`.
fn taints(sandbox: &Sandbox, name: &str) -> String {
    let list = node(sandbox, name)["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let short = |taint: &Value| {
        let key = taint["key"].as_str().unwrap();
        format!("{}:{}", key.rsplit('/').next().unwrap(), taint["effect"].as_str().unwrap())
    };
    list.iter().map(short).collect::<Vec<_>>().join(" ")
}

fn renew(sandbox: &mut Sandbox, name: &str) {
    let now = sandbox.now.to_string();
    let lease = Key::of::<Lease>(LEASES, name);
    sandbox.edit(&lease, |lease| lease["spec"]["renewTime"] = now.into());
}

fn say(sandbox: &mut Sandbox, name: &str, ready: &str) {
    let now = rfc3339(sandbox.now);
    sandbox.edit(&Key::of::<Node>("", name), |node| {
        node["status"]["conditions"] = json!([{"type": "Ready", "status": ready, "lastTransitionTime": now}]);
    });
}

#[test]
fn a_silent_node_is_marked_and_loses_its_pods_in_time() {
    let mut sandbox = sandbox();
    sandbox.pass(30);
    renew(&mut sandbox, "n");
    sandbox.told();
    sandbox.pass(39);
    assert!(sandbox.log.is_empty(), "a healthy node costs no write: {:?}", sandbox.log);
    sandbox.pass(1);
    let value = node(&sandbox, "n");
    assert_eq!(value["status"]["conditions"][0]["status"], "Unknown");
    assert_eq!(value["spec"]["taints"][1]["key"], UNREACHABLE);
    let pod = Key::of::<Pod>("default", "p");
    assert_eq!(sandbox.world.get(&pod).unwrap().value()["status"]["conditions"][0]["status"], "False");
    sandbox.pass(299);
    assert!(!sandbox.world.get(&pod).unwrap().is_deleting());
    sandbox.pass(1);
    let evicted = sandbox.world.get(&pod).unwrap().clone();
    assert!(evicted.is_deleting());
    assert_eq!(evicted.value()["status"]["conditions"][1]["reason"], "DeletionByTaintManager");
    assert!(!sandbox.world.get(&Key::of::<Pod>("default", "stays")).unwrap().is_deleting());
}

#[test]
fn a_node_that_is_back_is_untainted_and_keeps_its_pods() {
    let mut sandbox = sandbox();
    sandbox.pass(40);
    assert_eq!(taints(&sandbox, "n"), "unreachable:NoSchedule unreachable:NoExecute");
    renew(&mut sandbox, "n");
    say(&mut sandbox, "n", "False");
    sandbox.settle();
    let since = node(&sandbox, "n")["spec"]["taints"][0]["timeAdded"].clone();
    assert_eq!(taints(&sandbox, "n"), "not-ready:NoExecute not-ready:NoSchedule");
    assert_eq!(since, "2026-01-01T00:00:40Z", "its pods' time runs on");
    say(&mut sandbox, "n", "True");
    sandbox.settle().pass(30);
    assert_eq!(taints(&sandbox, "n"), "");
    sandbox.edit(&Key::of::<Node>("", "n"), |node| {
        node["spec"]["unschedulable"] = true.into();
        node["status"]["conditions"] =
            json!([{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "True"}]);
    });
    sandbox.settle();
    assert_eq!(taints(&sandbox, "n"), "disk-pressure:NoSchedule unschedulable:NoSchedule");
    assert_eq!(node(&sandbox, "n")["spec"]["taints"][1]["key"], UNSCHEDULABLE);
}

#[test]
fn a_new_node_takes_no_pods_until_it_has_spoken() {
    let mut sandbox = sandbox();
    sandbox.pass(40);
    sandbox.apply("{apiVersion: v1, kind: Node, metadata: {name: new}}").settle();
    assert_eq!(node(&sandbox, "new")["spec"]["taints"][0]["key"], NOT_READY);
    sandbox.pass(59);
    assert_eq!(taints(&sandbox, "new"), "not-ready:NoSchedule");
    sandbox.pass(1);
    assert!(taints(&sandbox, "new").starts_with("unreachable:NoSchedule"));
    assert_eq!(node(&sandbox, "new")["status"]["conditions"][0]["reason"], "NodeStatusNeverUpdated");
}

#[test]
fn a_nodes_clock_is_not_asked() {
    let mut sandbox = sandbox();
    sandbox.edit(&Key::of::<Node>("", "n"), |node| {
        node["status"]["conditions"][0]["lastHeartbeatTime"] = "2026-01-01T01:00:00Z".into();
    });
    sandbox.settle().pass(40);
    assert_eq!(node(&sandbox, "n")["status"]["conditions"][0]["status"], "Unknown");
}

#[test]
fn a_deleted_node_leaves_nothing() {
    let mut sandbox = sandbox();
    sandbox.pass(10).delete(&Key::of::<Node>("", "n"), state::Deletion::default()).settle().pass(60);
    assert_eq!(sandbox.world.all::<Pod>(None).count(), 0);
    assert!(sandbox.world.get(&Key::of::<Lease>(LEASES, "n")).is_none());
    assert!(sandbox.world.get(&Key::of::<Lease>(LEASES, "other")).is_some());
}

/// Nodes `n0`, `n1`, ... of zones, that never speak again.
fn fleet(sandbox: &mut Sandbox, zones: &[(&str, usize)]) -> Vec<String> {
    let mut names = Vec::new();
    for (zone, count) in zones {
        for number in 0..*count {
            let name = format!("{zone}{number}");
            let role = if *zone == "master" { "node-role.kubernetes.io/control-plane: 'true'" } else { "a: b" };
            sandbox.apply(&format!(
                "{{apiVersion: v1, kind: Node, metadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: {zone}, {role}}}}},
                  status: {{conditions: [{{type: Ready, status: 'True'}}]}}}}
---
{{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {{name: {name}, namespace: kube-node-lease}}, spec: {{renewTime: '2027-01-01T00:00:00.000000Z'}}}}"
            ));
            names.push(name);
        }
    }
    sandbox.settle();
    names
}

fn silence(sandbox: &mut Sandbox, names: &[&str]) {
    for name in names {
        sandbox
            .edit(&Key::of::<Lease>(LEASES, name), |lease| lease["spec"]["renewTime"] = "2025-01-01T00:00:00Z".into());
        say(sandbox, name, "Unknown");
    }
    sandbox.settle();
}

fn revive(sandbox: &mut Sandbox, name: &str) {
    sandbox.edit(&Key::of::<Lease>(LEASES, name), |lease| lease["spec"]["renewTime"] = "2027-01-01T00:00:00Z".into());
    say(sandbox, name, "True");
    sandbox.settle();
}

/// Names of the nodes that are being emptied.
fn emptied(sandbox: &Sandbox, names: &[String]) -> String {
    let names: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| taints(sandbox, name).contains(":NoExecute")).collect();
    names.join(" ")
}

#[test]
fn nodes_are_emptied_one_after_the_other() {
    let mut sandbox = empty(Pace::default());
    let names = fleet(&mut sandbox, &[("a", 6), ("b", 3)]);
    sandbox.pass(60);
    silence(&mut sandbox, &["a0", "a1", "a2", "b0"]);
    assert_eq!(emptied(&sandbox, &names), "a0 b0");
    sandbox.pass(9);
    assert_eq!(emptied(&sandbox, &names), "a0 b0");
    sandbox.pass(1);
    assert_eq!(emptied(&sandbox, &names), "a0 a1 b0");
    revive(&mut sandbox, "a2");
    sandbox.pass(100);
    assert_eq!(emptied(&sandbox, &names), "a0 a1 b0");
}

#[test]
fn a_zone_in_trouble_is_spared_unless_it_is_large() {
    let pace = Pace { large_cluster_size_threshold: 9, ..Pace::default() };
    let mut sandbox = empty(pace);
    let names = fleet(&mut sandbox, &[("a", 5), ("b", 10)]);
    sandbox.pass(60);
    silence(&mut sandbox, &["a0", "a1"]);
    sandbox.pass(10);
    // two nodes in trouble are not a zone in trouble
    assert_eq!(emptied(&sandbox, &names), "a0 a1");
    silence(&mut sandbox, &["a2"]);
    sandbox.pass(100);
    assert_eq!(emptied(&sandbox, &names), "a0 a1");
    silence(&mut sandbox, &["b0", "b1"]);
    sandbox.pass(10);
    assert_eq!(emptied(&sandbox, &names), "a0 a1 b0 b1");
    silence(&mut sandbox, &["b2", "b3", "b4", "b5"]);
    sandbox.pass(89);
    // the slower pace counts from the last turn, which was at the faster one
    let slow = emptied(&sandbox, &names);
    sandbox.pass(11);
    assert_ne!(emptied(&sandbox, &names), slow);
}

#[test]
fn when_all_are_silent_nobody_is_emptied_and_time_begins_anew() {
    let mut sandbox = empty(Pace::default());
    let names = fleet(&mut sandbox, &[("master", 1), ("a", 3), ("b", 2)]);
    sandbox.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: default}, spec: {nodeName: a0, tolerations: [
           {operator: Exists, tolerationSeconds: 300}]}, status: {phase: Running}}",
    );
    sandbox.pass(60);
    silence(&mut sandbox, &["a0", "b0"]);
    assert_eq!(emptied(&sandbox, &names), "a0 b0");
    sandbox.pass(200);
    silence(&mut sandbox, &["a1", "a2", "b1"]);
    // the master's own node is well, and no witness
    assert_eq!(emptied(&sandbox, &names), "");
    assert_eq!(taints(&sandbox, "a0"), "unreachable:NoSchedule");
    sandbox.pass(10_000);
    let pod = Key::of::<Pod>("default", "p");
    assert!(!sandbox.world.get(&pod).unwrap().is_deleting());
    revive(&mut sandbox, "b1");
    assert_eq!(emptied(&sandbox, &names), "a0 b0");
    sandbox.pass(299);
    assert!(!sandbox.world.get(&pod).unwrap().is_deleting());
    sandbox.pass(1);
    assert!(sandbox.world.get(&pod).unwrap().is_deleting());
}

#[test]
fn a_single_node_beside_the_master_is_emptied() {
    let mut sandbox = empty(Pace::default());
    let names = fleet(&mut sandbox, &[("master", 1), ("a", 1)]);
    sandbox.pass(60);
    silence(&mut sandbox, &["a0"]);
    assert_eq!(emptied(&sandbox, &names), "a0");
}

#[test]
fn the_name_of_a_deleted_node_is_free_and_not_forgotten() {
    let mut sandbox = sandbox();
    sandbox.apply(
        "apiVersion: v1\nkind: Secret\ntype: coracle.dev/node-identity\n\
         metadata: {name: n.node-identity, namespace: kube-system}\ndata: {public-key-sha256: Y2FmZQ==}\n",
    );
    assert_eq!(identity::of(&sandbox.world, "n"), Some("cafe"));
    sandbox.delete(&Key::of::<Node>("", "n"), state::Deletion { grace_seconds: None, propagation: None }).settle();
    assert_eq!(identity::of(&sandbox.world, "n"), None);
    let secret = identity::key("n");
    sandbox.pass(365 * 24 * 3600);
    assert!(sandbox.world.get(&secret).is_some_and(|secret| identity::is_released(secret)));
    sandbox.pass(24 * 3600);
    assert!(sandbox.world.get(&secret).is_none(), "nobody has such a certificate any more");
}
