//! All controllers together: whatever is done to a world, it comes to rest, and at rest nobody writes.

use crate::harness::Sandbox;
use crate::{Settings, all};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Endpoints, Event, Namespace, Node, Pod};
use serde_json::json;
use state::{Deletion, Key, Propagation};

const SHOP: &str = "
{apiVersion: v1, kind: Node, metadata: {name: node-a}, status: {conditions: [{type: Ready, status: 'True', lastHeartbeatTime: '2026-01-01T00:00:00Z'}]}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop}, spec: {finalizers: [kubernetes]}, status: {phase: Active}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: shop}, spec: {replicas: 5,
  selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, spec: {containers: [{name: a, image: one}]}}}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.43.0.7, selector: {app: web}, ports: [{port: 80}]}}
---
{apiVersion: batch/v1, kind: Job, metadata: {name: once, namespace: shop}, spec: {completions: 3, parallelism: 3,
  template: {spec: {restartPolicy: Never, containers: [{name: a, image: x}]}}}}
";

fn sandbox() -> Sandbox {
    let started_at = "2026-01-01T00:00:00Z".parse().unwrap();
    let mut sandbox = Sandbox::new(all(Settings::new(started_at, "PEM".into())));
    sandbox.apply(SHOP).sail();
    sandbox
}

fn web() -> Key {
    Key::of::<Deployment>("shop", "web")
}

/// What can be done to the shop, one thing per number.
fn disturb(sandbox: &mut Sandbox, what: u64) {
    let pods: Vec<Key> = sandbox.world.all::<Pod>(Some("shop")).map(|pod| pod.key().clone()).collect();
    let pod = (!pods.is_empty()).then(|| pods[(what / 16) as usize % pods.len()].clone());
    match (what % 10, pod) {
        (0, _) => drop(sandbox.edit(&web(), |value| value["spec"]["replicas"] = (what % 7).into())),
        (1 | 2, _) => {
            let image = format!("image-{}", what % 3);
            sandbox.edit(&web(), |value| value["spec"]["template"]["spec"]["containers"][0]["image"] = image.into());
        }
        (3, _) => drop(sandbox.edit(&web(), |value| value["spec"]["paused"] = (what % 4 < 2).into())),
        (4, Some(pod)) => drop(sandbox.delete(&pod, Deletion::default())),
        (5, Some(pod)) => drop(sandbox.edit(&pod, |value| value["status"]["phase"] = "Failed".into())),
        (6, Some(pod)) => drop(sandbox.edit(&pod, |value| value["metadata"]["labels"]["app"] = "loose".into())),
        (7, Some(pod)) => drop(sandbox.edit(&pod, |value| value["status"]["phase"] = "Succeeded".into())),
        (8, _) => drop(sandbox.run_pods()),
        _ => {
            let sets: Vec<Key> = sandbox.world.all::<ReplicaSet>(None).map(|set| set.key().clone()).collect();
            if let Some(set) = sets.get(what as usize % sets.len().max(1)) {
                sandbox.delete(set, Deletion::default());
            }
        }
    }
}

#[test]
fn every_world_comes_to_rest() {
    for seed in 0..8_u64 {
        let mut sandbox = sandbox();
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for step in 0..30 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            disturb(&mut sandbox, random);
            // sometimes several things happen before anybody looks
            if step % 3 != 0 {
                sandbox.settle();
            }
        }
        sandbox.edit(&web(), |value| value["spec"]["paused"] = false.into());
        sandbox.sail().pass(5).sail();
        let deployment = sandbox.world.get(&web()).unwrap().value();
        let wanted = deployment["spec"]["replicas"].as_u64().unwrap();
        let ready = deployment["status"]["readyReplicas"].as_u64().unwrap_or(0);
        assert_eq!((ready, deployment["status"]["unavailableReplicas"].is_null()), (wanted, true), "seed {seed}");
        let endpoints = sandbox.world.get(&Key::of::<Endpoints>("shop", "web")).unwrap().value();
        let addresses = endpoints["subsets"][0]["addresses"].as_array().map_or(0, Vec::len);
        assert_eq!(addresses as u64, wanted, "seed {seed}");
    }
}

#[test]
fn a_namespace_takes_everything_with_it() {
    let mut sandbox = sandbox();
    sandbox.delete(&Key::of::<Namespace>("", "shop"), Deletion::default()).sail();
    // the job's pods end with an event about them, which goes with the namespace too; those about the node stay
    assert_eq!(sandbox.world.all::<Event>(Some("shop")).count(), 0);
    let left = sandbox.world.iter().filter(|object| !object.key().is::<Event>());
    let left: Vec<String> = left.map(|object| object.key().to_string()).collect();
    assert_eq!(left, ["nodes node-a"]);
}

#[test]
fn a_job_is_deleted_with_its_pods_in_the_foreground() {
    let mut sandbox = sandbox();
    let how = Deletion { grace_seconds: None, propagation: Some(Propagation::Foreground) };
    let key = Key::of::<Job>("shop", "once");
    sandbox.delete(&key, how).sail();
    assert!(sandbox.world.get(&key).is_none());
    let jobs =
        sandbox.values::<Pod>().iter().filter(|pod| pod["metadata"]["labels"]["job-name"] == json!("once")).count();
    assert_eq!(jobs, 0);
    assert!(sandbox.world.get(&Key::of::<Node>("", "node-a")).is_some());
}
