//! Pods and nodes in, places and refusals out.

use super::*;
use expect_test::{Expect, expect};
use k8s_openapi::api::core::v1;
use serde_json::Value;
use std::sync::Arc;

/// A world of YAML documents; pods without a status are pending.
fn world(yaml: &str) -> World {
    let mut world = World::default();
    for (number, document) in serde_yaml::Deserializer::from_str(yaml).enumerate() {
        let mut value: Value = serde::Deserialize::deserialize(document).unwrap();
        let resource = match value["kind"].as_str().unwrap() {
            "Pod" => manifests::Resource::of::<v1::Pod>(),
            "Node" => manifests::Resource::of::<v1::Node>(),
            "PersistentVolumeClaim" => manifests::Resource::of::<v1::PersistentVolumeClaim>(),
            "PersistentVolume" => manifests::Resource::of::<v1::PersistentVolume>(),
            "StorageClass" => manifests::Resource::of::<StorageClass>(),
            kind => panic!("{kind}"),
        };
        value["metadata"]["uid"] = format!("uid-{number}").into();
        let revision = Revision(number as u64 + 1);
        world.put(Arc::new(Object::encode(resource, revision, value).unwrap()));
        world.advance(revision);
    }
    world
}

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

const NODES: &str = "
{apiVersion: v1, kind: Node, metadata: {name: a, labels: {zone: x, kubernetes.io/hostname: a}},
  status: {allocatable: {cpu: '1', memory: 1Gi, pods: '3'}}}
---
{apiVersion: v1, kind: Node, metadata: {name: b, labels: {zone: x, disk: ssd, kubernetes.io/hostname: b}},
  spec: {taints: [{key: dedicated, value: db, effect: NoSchedule}]},
  status: {allocatable: {cpu: '2', memory: 1Gi, pods: '3', example.com/gpu: '1'}}}
---
{apiVersion: v1, kind: Node, metadata: {name: c, labels: {zone: y, kubernetes.io/hostname: c}}, spec: {unschedulable: true},
  status: {allocatable: {cpu: '4', memory: 4Gi, pods: '1'}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: first, namespace: default, labels: {app: web}},
  spec: {nodeName: a, containers: [{name: a, ports: [{containerPort: 80, hostPort: 80}], resources: {requests: {cpu: 600m}}}]}}
";

/// Where a pod with this spec goes.
fn check(spec: &str, expected: Expect) {
    let pod = format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: p, namespace: default, labels: {{app: web}}}}, spec: {spec}}}"
    );
    let world = world(&format!("{NODES}{pod}"));
    let pod = world.get(&Key::of::<Pod>("default", "p")).unwrap();
    let answer = match place(pod, &world, now()) {
        Ok(placement) => placement.node,
        Err(refused) => refused.message,
    };
    expected.assert_eq(&answer);
}

#[test]
fn each_filter_refuses_in_its_words() {
    check("{containers: [{name: a}]}", expect!["a"]);
    check(
        "{containers: [{name: a, resources: {requests: {cpu: 500m}}}]}",
        expect![
            "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable. no new claims to deallocate, preemption: 0/3 nodes are available: 1 No preemption victims found for incoming pod, 2 Preemption is not helpful for scheduling."
        ],
    );
    check(
        "{containers: [{name: a, resources: {requests: {cpu: '5', memory: 8Gi}}}]}",
        expect![
            "0/3 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable. no new claims to deallocate, preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
        ],
    );
    check(
        "{containers: [{name: a, resources: {requests: {example.com/gpu: 1}}}]}",
        expect![
            "0/3 nodes are available: 1 Insufficient example.com/gpu, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable. no new claims to deallocate, preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
        ],
    );
    check(
        "{containers: [{name: a, ports: [{containerPort: 80, hostPort: 80}]}]}",
        expect![
            "0/3 nodes are available: 1 node(s) didn't have free ports for the requested pod ports, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable. no new claims to deallocate, preemption: 0/3 nodes are available: 1 No preemption victims found for incoming pod, 2 Preemption is not helpful for scheduling."
        ],
    );
    check(
        "{nodeSelector: {disk: ssd}, containers: [{name: a}]}",
        expect![
            "0/3 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable. no new claims to deallocate, preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
        ],
    );
    check(
        "{nodeSelector: {disk: ssd}, tolerations: [{key: dedicated, operator: Exists}], containers: [{name: a}]}",
        expect!["b"],
    );
    check(
        "{tolerations: [{operator: Exists}], containers: [{name: a, resources: {requests: {cpu: '3'}}}]}",
        expect!["c"],
    );
    check(
        "{affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: \
         [{key: zone, operator: In, values: [y]}]}]}}}, containers: [{name: a}]}",
        expect![
            "0/3 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable. no new claims to deallocate, preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
        ],
    );
}

#[test]
fn neighbours_and_spread_decide() {
    let every = "tolerations: [{operator: Exists}], containers: [{name: a}]";
    let beside = "requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, \
                  labelSelector: {matchLabels: {app: web}}}]";
    check(&format!("{{affinity: {{podAffinity: {{{beside}}}}}, {every}}}"), expect!["a"]);
    let apart = beside.replace("kubernetes.io/hostname", "zone");
    check(&format!("{{affinity: {{podAntiAffinity: {{{apart}}}}}, {every}}}"), expect!["c"]);
    let nobody = beside.replace("app: web", "app: db");
    check(
        &format!("{{affinity: {{podAffinity: {{{nobody}}}}}, {every}}}"),
        expect![
            "0/3 nodes are available: 3 node(s) didn't match pod affinity rules. no new claims to deallocate, preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
        ],
    );
    let spread = "topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule, \
                  labelSelector: {matchLabels: {app: web}}}]";
    check(&format!("{{{spread}, {every}}}"), expect!["c"]);
}

struct Counting(u64);

impl state::Identities for Counting {
    fn next(&mut self) -> u64 {
        self.0 += 1;
        self.0
    }
}

/// Replays a world into a scheduler, as the executor does at its start.
fn replay(scheduler: &mut Scheduler, world: &World) -> Vec<Key> {
    let events = world.iter().map(|object| Event {
        revision: object.revision(),
        change: Change::Added,
        object: object.clone(),
        previous: None,
    });
    events.flat_map(|event| scheduler.wakes(&event, world)).collect()
}

#[test]
fn a_decision_counts_before_it_is_committed_and_room_wakes_who_waits() {
    let pods: String = ["p", "q"]
        .map(|name| {
            format!(
                "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: default}}, \
                 spec: {{containers: [{{name: a, resources: {{requests: {{cpu: 300m}}}}}}]}}}}\n"
            )
        })
        .concat();
    let mut world = world(&format!("{NODES}{pods}"));
    let mut scheduler = Scheduler::new();
    let mut identities = Counting(0);
    let mut stamp = Stamp { now: now(), identities: &mut identities };
    let woken = replay(&mut scheduler, &world);
    let names: Vec<&str> = woken.iter().map(|key| &*key.name).collect();
    assert_eq!(names, ["p", "q"]);
    let placed = scheduler.reconcile(&woken[0], &world, &mut stamp);
    let refused = scheduler.reconcile(&woken[1], &world, &mut stamp);
    let told = |decision: &Decision| decision.writes[1].value.as_ref().unwrap()["message"].as_str().unwrap().to_owned();
    expect!["Successfully assigned default/p to a"].assert_eq(&told(&placed));
    expect!["0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable. no new claims to deallocate, preemption: 0/3 nodes are available: 1 No preemption victims found for incoming pod, 2 Preemption is not helpful for scheduling."].assert_eq(&told(&refused));
    // the pod that was there first goes: who waits is asked again, and fits
    let first = world.get(&Key::of::<Pod>("default", "first")).unwrap().clone();
    let revision = Revision(world.revision().0 + 1);
    let gone = Event { revision, change: Change::Deleted, object: first.at(revision), previous: Some(first.clone()) };
    world.fold(&gone);
    assert_eq!(scheduler.wakes(&gone, &world), [woken[1].clone()]);
    let placed = scheduler.reconcile(&woken[1], &world, &mut stamp);
    assert_eq!(placed.writes[0].value.as_ref().unwrap()["spec"]["nodeName"], "a");
    // a commit that was refused: asked again, the same room is free again
    let again = scheduler.reconcile(&woken[0], &world, &mut stamp);
    assert_eq!(again.writes[0].value.as_ref().unwrap()["spec"]["nodeName"], "a");
}

const STORAGE: &str = "
---
{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: local-path, annotations: {storageclass.kubernetes.io/is-default-class: 'true'}},
  provisioner: coracle.dev/local-path, volumeBindingMode: WaitForFirstConsumer}
---
{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: static}, provisioner: kubernetes.io/no-provisioner,
  volumeBindingMode: WaitForFirstConsumer}
---
{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: now}, provisioner: coracle.dev/local-path}
---
{apiVersion: v1, kind: PersistentVolume, metadata: {name: on-b}, spec: {capacity: {storage: 2Gi}, accessModes: [ReadWriteOnce],
  storageClassName: static, local: {path: /x}, nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [
  {key: kubernetes.io/hostname, operator: In, values: [b]}]}]}}}, status: {phase: Available}}
---
{apiVersion: v1, kind: PersistentVolume, metadata: {name: on-c}, spec: {capacity: {storage: 2Gi}, accessModes: [ReadWriteOnce],
  storageClassName: other, local: {path: /x}, claimRef: {namespace: default, name: bound}, nodeAffinity: {required: {nodeSelectorTerms:
  [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [c]}]}]}}}, status: {phase: Bound}}
";

#[test]
fn claims_decide_where_and_are_told() {
    let claim = |name: &str, more: &str, status: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: {name}, namespace: default}}, spec: {{accessModes: \
             [ReadWriteOnce], resources: {{requests: {{storage: 1Gi}}}}{more}}}, status: {{phase: {status}}}}}\n"
        )
    };
    let claims = [
        claim("plain", "", "Pending"),
        claim("fixed", ", storageClassName: static", "Pending"),
        claim("immediate", ", storageClassName: now", "Pending"),
        claim("bound", ", storageClassName: other, volumeName: on-c", "Bound"),
        claim("lost", ", volumeName: gone", "Lost"),
        claim("single", ", volumeName: on-c", "Bound").replace("ReadWriteOnce", "ReadWriteOncePod"),
    ];
    let nodes =
        NODES.replace("metadata: {name: a,", "metadata: {name: a, annotations: {coracle.dev/storage-path: /data},");
    let user = "---\n{apiVersion: v1, kind: Pod, metadata: {name: user, namespace: default}, spec: {nodeName: c, containers: [], \
                volumes: [{name: v, persistentVolumeClaim: {claimName: single}}]}}\n";
    let mut answers = String::new();
    for name in ["plain", "fixed", "immediate", "bound", "lost", "none", "single"] {
        let pod = format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: p, namespace: default}}, spec: {{tolerations: [{{operator: Exists}}], \
             containers: [{{name: a}}], volumes: [{{name: v, persistentVolumeClaim: {{claimName: {name}}}}}]}}}}"
        );
        let world = world(&format!("{nodes}{STORAGE}{}{user}{pod}", claims.concat()));
        let key = Key::of::<Pod>("default", "p");
        let mut scheduler = Scheduler::new();
        let mut identities = Counting(0);
        let mut stamp = Stamp { now: now(), identities: &mut identities };
        replay(&mut scheduler, &world);
        let decision = scheduler.reconcile(&key, &world, &mut stamp);
        let values: Vec<&Value> = decision.writes.iter().filter_map(|write| write.value.as_ref()).collect();
        let placed = values[0]["spec"]["nodeName"].as_str().map(str::to_owned);
        let condition = values[0]["status"]["conditions"][0]["message"].as_str().unwrap_or_default();
        let short = condition.split(". no new claims").next().unwrap_or_default();
        let told = values.get(2).map_or(String::new(), |value| {
            let (selected, claim) =
                (&value["metadata"]["annotations"][state::storage::SELECTED_NODE], &value["spec"]["claimRef"]["name"]);
            format!(" {}: {selected} {claim}", decision.writes[2].key)
        });
        answers += &format!("{name}: {}{told}\n", placed.unwrap_or_else(|| short.to_owned()));
        if decision.again_at.is_some() {
            let object = world.get(&Key::of::<PersistentVolume>("", "on-b")).unwrap().clone();
            let event = Event { revision: world.revision(), change: Change::Modified, object, previous: None };
            assert_eq!(scheduler.wakes(&event, &world), [key], "{name} waits for storage");
        }
    }
    expect![[r#"
        plain: a persistentvolumeclaims default/plain: "a" null
        fixed: b persistentvolumes on-b: null "fixed"
        immediate: 0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims
        bound: 0/3 nodes are available: 1 Too many pods, 2 node(s) didn't match PersistentVolume's node affinity
        lost: 0/3 nodes are available: persistentvolumeclaim "lost" bound to non-existent persistentvolume "gone"
        none: 0/3 nodes are available: persistentvolumeclaim "none" not found
        single: 0/3 nodes are available: node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod
    "#]].assert_eq(&answers);
}
