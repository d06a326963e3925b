//! Budgets over pods in every state.

use super::*;
use crate::harness::Sandbox;

const OWNERS: &str = "
{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: default}, spec: {replicas: 7, template: {metadata: {labels: {app: web}}}}}
---
{apiVersion: apps/v1, kind: ReplicaSet, metadata: {name: bare, namespace: default}, spec: {replicas: 3}}
---
{apiVersion: batch/v1, kind: Job, metadata: {name: once, namespace: default}, spec: {}}
";

fn sandbox() -> Sandbox {
    let mut sandbox = Sandbox::new(vec![Box::new(Disruption)]);
    sandbox.apply(OWNERS);
    let uid = sandbox.world.get(&Key::of::<Deployment>("default", "web")).unwrap().meta().uid.clone();
    sandbox.apply(&format!(
        "{{apiVersion: apps/v1, kind: ReplicaSet, metadata: {{name: web-1, namespace: default,
          ownerReferences: [{{apiVersion: apps/v1, kind: Deployment, name: web, uid: {uid}, controller: true}}]}}, spec: {{replicas: 5}}}}"
    ));
    sandbox
}

/// A pod `name` of an owner `Kind/name`, or of nobody.
fn pod(sandbox: &mut Sandbox, name: &str, owner: &str, ready: bool) {
    let owners = owner.split_once('/').map(|(kind, owner)| {
        let version = if kind == "Job" { "batch/v1" } else { "apps/v1" };
        let key = Key::new(
            Resource::new(version.split('/').next().unwrap(), format!("{}s", kind.to_lowercase())),
            "default",
            owner,
        );
        let uid = sandbox.world.get(&key).map_or("none".to_owned(), |object| object.meta().uid.clone());
        format!("{{apiVersion: {version}, kind: {kind}, name: {owner}, uid: {uid}, controller: true}}")
    });
    sandbox.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: default, labels: {{app: web}}, ownerReferences: [{}]}},
          spec: {{}}, status: {{phase: Running, conditions: [{{type: Ready, status: '{}'}}]}}}}",
        owners.unwrap_or_default(),
        if ready { "True" } else { "False" }
    ));
}

fn budget(sandbox: &mut Sandbox, spec: &str) -> String {
    sandbox.apply(&format!(
        "{{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {{name: b, namespace: default, generation: 1}},
          spec: {{{spec}, selector: {{matchLabels: {{app: web}}}}}}}}"
    ));
    sandbox.settle();
    report(sandbox)
}

fn key() -> Key {
    Key::of::<PodDisruptionBudget>("default", "b")
}

/// `healthy/desired of expected, allowed`, and why not.
fn report(sandbox: &Sandbox) -> String {
    let status = &sandbox.world.get(&key()).unwrap().value()["status"];
    let condition = &status["conditions"][0];
    assert_eq!((condition["status"] == "True"), status["disruptionsAllowed"].as_i64() > Some(0));
    format!(
        "{}/{} of {}, {} {} {}",
        status["currentHealthy"],
        status["desiredHealthy"],
        status["expectedPods"],
        status["disruptionsAllowed"],
        condition["reason"].as_str().unwrap(),
        condition["message"].as_str().unwrap()
    )
    .trim_end()
    .to_owned()
}

#[test]
fn how_many_may_go() {
    for (pods, spec, expected) in [
        (vec![("a", "", true), ("b", "", true), ("c", "", false)], "minAvailable: 1", "2/1 of 3, 1 SufficientPods"),
        (vec![("a", "", true), ("b", "", true)], "minAvailable: 2", "2/2 of 2, 0 InsufficientPods"),
        (vec![], "minAvailable: 0", "0/0 of 0, 0 InsufficientPods"),
        (vec![], "maxUnavailable: 5", "0/0 of 0, 0 InsufficientPods"),
        // the Deployment's replicas count, not the ReplicaSet's; shares are rounded up
        (vec![("a", "ReplicaSet/web-1", true)], "maxUnavailable: 30%", "1/4 of 7, 0 InsufficientPods"),
        (vec![("a", "ReplicaSet/web-1", true)], "minAvailable: 10%", "1/1 of 7, 0 InsufficientPods"),
        (vec![("a", "ReplicaSet/web-1", true)], "maxUnavailable: 100%", "1/0 of 7, 1 SufficientPods"),
        (
            vec![("a", "ReplicaSet/bare", true), ("b", "ReplicaSet/web-1", true), ("c", "ReplicaSet/bare", true)],
            "maxUnavailable: 8",
            "3/2 of 10, 1 SufficientPods",
        ),
        // a pod of nobody is healthy, but expected by nobody
        (vec![("a", "", true)], "maxUnavailable: 1", "1/0 of 0, 0 InsufficientPods"),
        (
            vec![("a", "Job/once", true)],
            "maxUnavailable: 1",
            "0/0 of 0, 0 SyncFailed jobs.batch does not implement the scale subresource",
        ),
        (
            vec![("a", "ReplicaSet/gone", true)],
            "maxUnavailable: 1",
            "0/0 of 0, 0 SyncFailed found no controllers for pod \"a\"",
        ),
        (vec![("a", "Job/once", true)], "minAvailable: 0", "1/0 of 1, 1 SufficientPods"),
    ] {
        let mut sandbox = sandbox();
        pods.iter().for_each(|(name, owner, ready)| pod(&mut sandbox, name, owner, *ready));
        assert_eq!(budget(&mut sandbox, spec), expected, "{pods:?} {spec}");
    }
}

#[test]
fn an_evicted_pod_is_waited_for_two_minutes() {
    let mut sandbox = sandbox();
    ["a", "b", "c"].into_iter().for_each(|name| pod(&mut sandbox, name, "ReplicaSet/bare", true));
    assert_eq!(budget(&mut sandbox, "maxUnavailable: 2"), "3/1 of 3, 2 SufficientPods");
    sandbox.edit(&key(), |budget| {
        budget["status"]["disruptionsAllowed"] = 1.into();
        budget["status"]["disruptedPods"] = json!({"a": "2026-01-01T00:00:00Z", "gone": "2026-01-01T00:00:00Z"});
    });
    sandbox.settle();
    assert_eq!(report(&sandbox), "2/1 of 3, 1 SufficientPods");
    let noted = sandbox.world.get(&key()).unwrap().value()["status"]["disruptedPods"].clone();
    assert_eq!(noted, json!({"a": "2026-01-01T00:00:00Z"}));
    sandbox.pass(119);
    assert_eq!(report(&sandbox), "2/1 of 3, 1 SufficientPods");
    sandbox.pass(1);
    assert_eq!(report(&sandbox), "3/1 of 3, 2 SufficientPods");
}

#[test]
fn a_budget_follows_its_pods_and_their_owners() {
    let mut sandbox = sandbox();
    ["a", "b"].into_iter().for_each(|name| pod(&mut sandbox, name, "ReplicaSet/web-1", true));
    assert_eq!(budget(&mut sandbox, "maxUnavailable: 6"), "2/1 of 7, 1 SufficientPods");
    sandbox.edit(&Key::of::<Deployment>("default", "web"), |web| web["spec"]["replicas"] = 8.into()).settle();
    assert_eq!(report(&sandbox), "2/2 of 8, 0 InsufficientPods");
    pod(&mut sandbox, "c", "ReplicaSet/web-1", true);
    sandbox.settle();
    assert_eq!(report(&sandbox), "3/2 of 8, 1 SufficientPods");
    sandbox.edit(&Key::of::<Pod>("default", "c"), |pod| pod["metadata"]["labels"]["app"] = "other".into()).settle();
    assert_eq!(report(&sandbox), "2/2 of 8, 0 InsufficientPods");
    sandbox.told();
    sandbox.edit(&Key::of::<Pod>("default", "a"), |pod| pod["status"]["podIP"] = "10.42.0.1".into()).settle();
    assert_eq!(sandbox.log.len(), 1, "{:?}", sandbox.log);
}
