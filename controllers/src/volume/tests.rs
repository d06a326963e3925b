//! Claims, volumes, classes and pods in; who has what, out.

use super::*;
use crate::Controller;
use crate::harness::Sandbox;
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use state::{Deletion, storage};

const CLUSTER: &str = "
{apiVersion: v1, kind: Node, metadata: {name: a, labels: {kubernetes.io/hostname: a}, annotations: {coracle.dev/storage-path: /data/storage}},
  status: {conditions: [{type: Ready, status: 'True'}]}}
---
{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: local-path, annotations: {storageclass.kubernetes.io/is-default-class: 'true'}},
  provisioner: coracle.dev/local-path, reclaimPolicy: Delete, volumeBindingMode: WaitForFirstConsumer, allowVolumeExpansion: true}
---
{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: now}, provisioner: coracle.dev/local-path, reclaimPolicy: Retain,
  volumeBindingMode: Immediate}
";

fn sandbox() -> Sandbox {
    let controllers: Vec<Box<dyn Controller>> =
        vec![Box::new(Binder), Box::new(LocalPath), Box::new(Protection), Box::new(EphemeralClaims)];
    let mut sandbox = Sandbox::new(controllers);
    sandbox.apply(CLUSTER).settle();
    sandbox
}

fn claim(name: &str, more: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: {name}, namespace: shop}}, spec: {{accessModes: \
         [ReadWriteOnce], resources: {{requests: {{storage: 1Gi}}}}{more}}}}}"
    )
}

fn volume(name: &str, size: &str, more: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: PersistentVolume, metadata: {{name: {name}}}, spec: {{accessModes: [ReadWriteOnce, \
         ReadWriteMany], capacity: {{storage: {size}}}, hostPath: {{path: /x}}, persistentVolumeReclaimPolicy: Retain{more}}}, \
         status: {{phase: Pending}}}}"
    )
}

fn key(name: &str) -> Key {
    Key::of::<PersistentVolumeClaim>("shop", name)
}

fn of(name: &str) -> Key {
    Key::of::<PersistentVolume>("", name)
}

/// A claim's phase, class and volume.
fn seen(sandbox: &Sandbox, name: &str) -> (String, String, String) {
    let value = sandbox.world.get(&key(name)).unwrap().value();
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let (status, spec) = (&value["status"], &value["spec"]);
    (text(&status["phase"]), text(&spec["storageClassName"]), text(&spec["volumeName"]))
}

fn phase(sandbox: &Sandbox, name: &str) -> String {
    sandbox
        .world
        .get(&of(name))
        .map_or("gone".into(), |volume| volume.value()["status"]["phase"].as_str().unwrap().into())
}

#[test]
fn a_claim_of_the_default_class_waits_for_its_node_and_gets_a_volume_there() {
    let mut sandbox = sandbox();
    sandbox.apply(&claim("data", "")).settle();
    assert_eq!(seen(&sandbox, "data"), ("Pending".into(), "local-path".into(), String::new()));
    assert_eq!(sandbox.told(), ["WaitForFirstConsumer: waiting for first consumer to be created before binding"]);
    sandbox
        .edit(&key("data"), |claim| claim["metadata"]["annotations"] = json!({storage::SELECTED_NODE: "a"}))
        .settle();
    let bound = sandbox.world.get(&key("data")).unwrap().value();
    let name = format!("pvc-{}", bound["metadata"]["uid"].as_str().unwrap());
    assert_eq!(seen(&sandbox, "data"), ("Bound".into(), "local-path".into(), name.clone()));
    assert_eq!(bound["status"]["capacity"]["storage"], "1Gi");
    let made = sandbox.world.get(&of(&name)).unwrap().value();
    assert_eq!(made["spec"]["local"]["path"], format!("/data/storage/{name}"));
    assert_eq!(made["status"]["phase"], "Bound");
    let told = sandbox.told();
    assert!(told[0].starts_with("ExternalProvisioning: Waiting for a volume"), "{told:?}");
    assert_eq!(told[1], format!("ProvisioningSucceeded: Successfully provisioned volume {name}"));
    // it grows as asked
    sandbox.edit(&key("data"), |claim| claim["spec"]["resources"]["requests"]["storage"] = "3Gi".into()).settle();
    assert_eq!(sandbox.world.get(&key("data")).unwrap().value()["status"]["capacity"]["storage"], "3Gi");
    assert_eq!(sandbox.world.get(&of(&name)).unwrap().value()["spec"]["capacity"]["storage"], "3Gi");
    // in use it stays, then it goes and leaves the volume to its node
    sandbox.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: shop}, spec: {nodeName: a, containers: [],
          volumes: [{name: v, persistentVolumeClaim: {claimName: data}}]}, status: {phase: Running}}",
    );
    sandbox.settle().delete(&key("data"), Deletion::default()).settle();
    assert!(sandbox.world.get(&key("data")).is_some());
    sandbox.edit(&Key::of::<Pod>("shop", "p"), |pod| pod["status"]["phase"] = "Succeeded".into()).settle();
    assert!(sandbox.world.get(&key("data")).is_none());
    assert_eq!(phase(&sandbox, &name), "Released");
    // what the node does after it has removed the files
    let free = |volume: &mut Value| assert!(release(volume, storage::LOCAL_PATH));
    sandbox.delete(&of(&name), Deletion::default()).settle();
    assert_eq!(phase(&sandbox, &name), "Released");
    sandbox.edit(&of(&name), free).settle();
    assert_eq!(phase(&sandbox, &name), "gone");
}

#[test]
fn the_smallest_volume_that_suits_is_taken() {
    let mut sandbox = sandbox();
    for (name, size, more) in [
        ("huge", "9Gi", ""),
        ("large", "5Gi", ""),
        ("small", "1Mi", ""),
        ("other", "2Gi", ", storageClassName: fast"),
        ("mine", "3Gi", ", claimRef: {namespace: shop, name: reserved}"),
    ] {
        sandbox.apply(&volume(name, size, more));
    }
    sandbox.settle();
    let none = ", storageClassName: ''";
    sandbox
        .apply(&claim("one", none))
        .settle()
        .apply(&claim("reserved", none))
        .settle()
        .apply(&claim("two", none))
        .settle();
    assert_eq!(seen(&sandbox, "one").2, "large");
    assert_eq!(seen(&sandbox, "reserved").2, "mine");
    assert_eq!(seen(&sandbox, "two").2, "huge");
    assert_eq!((phase(&sandbox, "other"), phase(&sandbox, "small")), ("Available".into(), "Available".into()));
    sandbox.told();
    sandbox.apply(&claim("three", none)).settle();
    let message = "FailedBinding: no persistent volumes available for this claim and no storage class is set";
    assert_eq!(sandbox.told(), [message]);
    sandbox.apply(&volume("late", "1Gi", "")).settle();
    assert_eq!(seen(&sandbox, "three").2, "late");
    sandbox.delete(&key("one"), Deletion::default()).settle();
    assert_eq!(phase(&sandbox, "large"), "Released");
    sandbox.delete(&of("late"), Deletion::default()).settle();
    assert_eq!(phase(&sandbox, "late"), "Bound", "a bound volume stays");
    sandbox.delete(&key("three"), Deletion::default()).settle();
    assert_eq!(phase(&sandbox, "late"), "gone");
}

#[test]
fn what_cannot_be_had_is_said() {
    let mut sandbox = sandbox();
    sandbox.apply(&volume("old", "1Gi", ", storageClassName: x").replace("Retain", "Recycle")).settle();
    for (name, more, phase, why) in [
        (
            "no-class",
            ", storageClassName: none",
            "Pending",
            "ProvisioningFailed: storageclass.storage.k8s.io \"none\" not found",
        ),
        (
            "shared",
            ", storageClassName: now, volumeMode: Block",
            "Pending",
            "ProvisioningFailed: failed to provision volume with StorageClass \"now\": block volumes are not supported",
        ),
        (
            "mismatch",
            ", storageClassName: y, volumeName: old",
            "Pending",
            "VolumeMismatch: Cannot bind to requested volume \"old\": storageClassName does not match",
        ),
        ("right", ", storageClassName: x, volumeName: old", "Bound", ""),
        (
            "taken",
            ", storageClassName: x, volumeName: old",
            "Pending",
            "FailedBinding: volume \"old\" already bound to a different claim.",
        ),
        ("quick", ", storageClassName: now", "Bound", "ProvisioningSucceeded"),
    ] {
        sandbox.told();
        sandbox.apply(&claim(name, more)).settle();
        let told = sandbox.told();
        assert_eq!(seen(&sandbox, name).0, phase, "{name}: {told:?}");
        assert!(why.is_empty() || told.iter().any(|message| message.starts_with(why)), "{name}: {told:?}");
    }
    sandbox.delete(&key("right"), Deletion::default()).settle();
    assert_eq!(self::phase(&sandbox, "old"), "Failed");
    sandbox.told();
    let quick = seen(&sandbox, "quick").2;
    sandbox.edit(&key("quick"), |claim| claim["spec"]["resources"]["requests"]["storage"] = "3Gi".into()).settle();
    assert!(sandbox.told()[0].starts_with("VolumeResizeFailed"));
    let gone = sandbox.world.get(&of(&quick)).unwrap().clone();
    sandbox.commit(&Write::delete(&gone));
    sandbox.settle();
    assert_eq!(seen(&sandbox, "quick").0, "Lost");
}

#[test]
fn a_pod_gets_claims_of_its_own() {
    let mut sandbox = sandbox();
    sandbox.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: shop}, spec: {containers: [], volumes: [{name: v, ephemeral:
          {volumeClaimTemplate: {metadata: {labels: {a: b}}, spec: {accessModes: [ReadWriteOnce], storageClassName: now,
          resources: {requests: {storage: 1Gi}}}}}}]}, status: {phase: Pending}}",
    );
    sandbox.settle();
    assert_eq!(seen(&sandbox, "p-v").0, "Bound");
    let made = sandbox.world.get(&key("p-v")).unwrap();
    assert_eq!(made.controller().unwrap().name, "p");
    assert_eq!(made.meta().labels["a"], "b");
}
