//! Rollouts, watched from outside: sizes and events.

use super::Deployments;
use crate::harness::Sandbox;
use crate::replicaset::ReplicaSets;
use expect_test::{Expect, expect};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use state::{Deletion, Key};

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: default, annotations: {kubernetes.io/change-cause: first}}
spec:
  replicas: 4
  progressDeadlineSeconds: 600
  selector: {matchLabels: {app: web}}
  strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 1, maxUnavailable: 1}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: 'file://a.wasm'}]}
";

fn sandbox() -> Sandbox {
    Sandbox::new(vec![Box::new(Deployments), Box::new(ReplicaSets)])
}

fn key() -> Key {
    Key::of::<Deployment>("default", "web")
}

fn image(sandbox: &mut Sandbox, image: &str) {
    sandbox.edit(&key(), |value| value["spec"]["template"]["spec"]["containers"][0]["image"] = image.into());
}

/// Revision, size, and ready pods of every ReplicaSet; then the Deployment's conditions.
fn report(sandbox: &Sandbox) -> String {
    let mut lines: Vec<String> = sandbox
        .values::<ReplicaSet>()
        .iter()
        .map(|set| {
            let annotations = &set["metadata"]["annotations"];
            let text =
                |key: &str| annotations[format!("deployment.kubernetes.io/{key}")].as_str().unwrap_or("-").to_owned();
            format!(
                "{} was {} of {}/{}: {} ready {}",
                text("revision"),
                text("revision-history"),
                text("desired-replicas"),
                text("max-replicas"),
                set["spec"]["replicas"],
                set["status"]["readyReplicas"]
            )
        })
        .collect();
    lines.sort();
    let deployment = sandbox.world.get(&key()).unwrap().value();
    let status = &deployment["status"];
    lines.push(format!(
        "revision {} observed {} of {}, {} updated {} ready {} available {}",
        deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"],
        status["observedGeneration"],
        deployment["metadata"]["generation"],
        status["replicas"],
        status["updatedReplicas"],
        status["readyReplicas"],
        status["availableReplicas"]
    ));
    let mut conditions: Vec<String> = status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|c| format!("{}={} {}", c["type"], c["status"], c["reason"]).replace('"', ""))
        .collect();
    conditions.sort();
    lines.extend(conditions);
    lines.join("\n") + "\n"
}

fn check(sandbox: &mut Sandbox, expected: Expect) {
    let told: Vec<String> =
        sandbox.told().into_iter().filter(|line| line.starts_with("Scaling") || line.starts_with("Failed")).collect();
    // names hold hashes: what matters is the movement
    let told: Vec<String> = told
        .iter()
        .map(|line| {
            line.split(' ')
                .map(|word| if word.starts_with("web-") { "web-#" } else { word })
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    expected.assert_eq(&format!("{}{}\n", report(sandbox), told.join("\n")));
}

#[test]
fn a_first_rollout_makes_all_replicas_at_once() {
    let mut sandbox = sandbox();
    sandbox.apply(WEB).settle();
    check(
        &mut sandbox,
        expect![[r#"
        1 was - of 4/5: 4 ready null
        revision "1" observed 1 of 1, 4 updated 4 ready null available null
        Available=False MinimumReplicasUnavailable
        Progressing=True ReplicaSetUpdated
        ScalingReplicaSet: Scaled up replica set web-# from 0 to 4
    "#]],
    );
    sandbox.sail();
    check(
        &mut sandbox,
        expect![[r#"
        1 was - of 4/5: 4 ready 4
        revision "1" observed 1 of 1, 4 updated 4 ready 4 available 4
        Available=True MinimumReplicasAvailable
        Progressing=True NewReplicaSetAvailable

    "#]],
    );
    let pods = sandbox.values::<Pod>();
    assert_eq!(pods.len(), 4);
    let hash = pods[0]["metadata"]["labels"]["pod-template-hash"].as_str().unwrap();
    assert!(pods[0]["metadata"]["name"].as_str().unwrap().starts_with(&format!("web-{hash}-")));
}

#[test]
fn an_update_rolls_within_its_bounds_and_an_undo_finds_the_old_set() {
    let mut sandbox = sandbox();
    sandbox.apply(WEB).sail().told();
    image(&mut sandbox, "file://b.wasm");
    sandbox.settle();
    check(
        &mut sandbox,
        expect![[r#"
        1 was - of 4/5: 3 ready 3
        2 was - of 4/5: 2 ready null
        revision "2" observed 2 of 2, 5 updated 2 ready 3 available 3
        Available=True MinimumReplicasAvailable
        Progressing=True ReplicaSetUpdated
        ScalingReplicaSet: Scaled up replica set web-# from 0 to 1
        ScalingReplicaSet: Scaled down replica set web-# from 4 to 3
        ScalingReplicaSet: Scaled up replica set web-# from 1 to 2
    "#]],
    );
    sandbox.sail();
    check(
        &mut sandbox,
        expect![[r#"
        1 was - of 4/5: 0 ready null
        2 was - of 4/5: 4 ready 4
        revision "2" observed 2 of 2, 4 updated 4 ready 4 available 4
        Available=True MinimumReplicasAvailable
        Progressing=True NewReplicaSetAvailable
        ScalingReplicaSet: Scaled down replica set web-# from 3 to 1
        ScalingReplicaSet: Scaled up replica set web-# from 2 to 4
        ScalingReplicaSet: Scaled down replica set web-# from 1 to 0
    "#]],
    );
    image(&mut sandbox, "file://a.wasm");
    sandbox.sail();
    check(
        &mut sandbox,
        expect![[r#"
        2 was - of 4/5: 0 ready null
        3 was 1 of 4/5: 4 ready 4
        revision "3" observed 3 of 3, 4 updated 4 ready 4 available 4
        Available=True MinimumReplicasAvailable
        Progressing=True NewReplicaSetAvailable
        ScalingReplicaSet: Scaled up replica set web-# from 0 to 1
        ScalingReplicaSet: Scaled down replica set web-# from 4 to 3
        ScalingReplicaSet: Scaled up replica set web-# from 1 to 2
        ScalingReplicaSet: Scaled down replica set web-# from 3 to 1
        ScalingReplicaSet: Scaled up replica set web-# from 2 to 4
        ScalingReplicaSet: Scaled down replica set web-# from 1 to 0
    "#]],
    );
}

#[test]
fn availability_never_falls_below_its_bound() {
    let mut sandbox = sandbox();
    sandbox.apply(WEB).sail();
    image(&mut sandbox, "file://b.wasm");
    sandbox.settle();
    loop {
        let pods = sandbox.values::<Pod>();
        let alive = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        let ready = alive.clone().filter(|pod| pod["status"]["phase"] == "Running").count();
        assert!(ready >= 3 && alive.count() <= 5);
        if !sandbox.run_pods() {
            break;
        }
        sandbox.settle();
    }
}

#[test]
fn a_paused_rollout_waits_and_can_be_scaled() {
    let mut sandbox = sandbox();
    sandbox.apply(WEB).sail();
    image(&mut sandbox, "file://b.wasm");
    sandbox.settle();
    sandbox.edit(&key(), |value| value["spec"]["paused"] = true.into()).settle().told();
    sandbox.edit(&key(), |value| value["spec"]["replicas"] = 8.into()).settle();
    check(
        &mut sandbox,
        expect![[r#"
        1 was - of 8/9: 5 ready 3
        2 was - of 8/9: 4 ready null
        revision "2" observed 4 of 4, 9 updated 4 ready 3 available 3
        Available=False MinimumReplicasUnavailable
        Progressing=Unknown DeploymentPaused
        ScalingReplicaSet: Scaled up replica set web-# from 3 to 5
        ScalingReplicaSet: Scaled up replica set web-# from 2 to 4
    "#]],
    );
    sandbox.edit(&key(), |value| value["spec"]["paused"] = false.into()).sail();
    check(
        &mut sandbox,
        expect![[r#"
        1 was - of 8/9: 0 ready null
        2 was - of 8/9: 8 ready 8
        revision "2" observed 5 of 5, 8 updated 8 ready 8 available 8
        Available=True MinimumReplicasAvailable
        Progressing=True NewReplicaSetAvailable
        ScalingReplicaSet: Scaled down replica set web-# from 5 to 3
        ScalingReplicaSet: Scaled up replica set web-# from 4 to 6
        ScalingReplicaSet: Scaled down replica set web-# from 3 to 1
        ScalingReplicaSet: Scaled up replica set web-# from 6 to 8
        ScalingReplicaSet: Scaled down replica set web-# from 1 to 0
    "#]],
    );
}

#[test]
fn recreate_ends_the_old_before_it_starts_the_new() {
    let mut sandbox = sandbox();
    sandbox
        .apply(WEB)
        .edit(&key(), |value| value["spec"]["strategy"] = serde_json::json!({"type": "Recreate"}))
        .sail()
        .told();
    image(&mut sandbox, "file://b.wasm");
    sandbox.settle();
    check(
        &mut sandbox,
        expect![[r#"
        1 was - of 4/4: 0 ready null
        revision "1" observed 3 of 3, null updated null ready null available null
        Available=False MinimumReplicasUnavailable
        Progressing=True NewReplicaSetAvailable
        ScalingReplicaSet: Scaled down replica set web-# from 4 to 0
    "#]],
    );
    sandbox.sail();
    check(
        &mut sandbox,
        expect![[r#"
        1 was - of 4/4: 0 ready null
        2 was - of 4/4: 4 ready 4
        revision "2" observed 3 of 3, 4 updated 4 ready 4 available 4
        Available=True MinimumReplicasAvailable
        Progressing=True NewReplicaSetAvailable
        ScalingReplicaSet: Scaled up replica set web-# from 0 to 4
    "#]],
    );
}

#[test]
fn a_rollout_that_does_not_move_times_out() {
    let mut sandbox = sandbox();
    sandbox.apply(WEB).settle().told();
    sandbox.pass(599);
    check(
        &mut sandbox,
        expect![[r#"
        1 was - of 4/5: 4 ready null
        revision "1" observed 1 of 1, 4 updated 4 ready null available null
        Available=False MinimumReplicasUnavailable
        Progressing=True ReplicaSetUpdated

    "#]],
    );
    sandbox.pass(1);
    check(
        &mut sandbox,
        expect![[r#"
        1 was - of 4/5: 4 ready null
        revision "1" observed 1 of 1, 4 updated 4 ready null available null
        Available=False MinimumReplicasUnavailable
        Progressing=False ProgressDeadlineExceeded

    "#]],
    );
}

#[test]
fn history_is_kept_up_to_its_limit() {
    let mut sandbox = sandbox();
    sandbox.apply(WEB).edit(&key(), |value| value["spec"]["revisionHistoryLimit"] = 1.into()).sail();
    for name in ["b", "c", "d"] {
        image(&mut sandbox, name);
        sandbox.sail();
    }
    sandbox.told();
    check(
        &mut sandbox,
        expect![[r#"
        3 was - of 4/5: 0 ready null
        4 was - of 4/5: 4 ready 4
        revision "4" observed 5 of 5, 4 updated 4 ready 4 available 4
        Available=True MinimumReplicasAvailable
        Progressing=True NewReplicaSetAvailable

    "#]],
    );
}

#[test]
fn a_set_that_lost_its_deployment_is_taken_over_by_the_next() {
    let mut sandbox = sandbox();
    sandbox.apply(WEB).sail();
    sandbox.delete(&key(), Deletion::default());
    for set in sandbox.world.all::<ReplicaSet>(None).cloned().collect::<Vec<_>>() {
        sandbox.edit(set.key(), |value| value["metadata"]["ownerReferences"] = serde_json::json!([]));
    }
    sandbox.settle().apply(WEB).sail();
    sandbox.told();
    check(
        &mut sandbox,
        expect![[r#"
        1 was - of 4/5: 4 ready 4
        revision "1" observed 1 of 1, 4 updated 4 ready 4 available 4
        Available=True MinimumReplicasAvailable
        Progressing=True NewReplicaSetAvailable

    "#]],
    );
    assert_eq!(sandbox.values::<Pod>().len(), 4);
}
