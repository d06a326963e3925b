//! Jobs, watched from outside.

use super::*;
use crate::garbage::Garbage;
use crate::harness::Sandbox;
use expect_test::{Expect, expect};

fn sandbox(spec: &str) -> Sandbox {
    let mut sandbox = Sandbox::new(vec![Box::new(Jobs), Box::new(Garbage)]);
    sandbox.apply(&format!(
        "{{apiVersion: batch/v1, kind: Job, metadata: {{name: j, namespace: default}}, spec: {{{spec}, \
         template: {{spec: {{restartPolicy: Never, containers: [{{name: a, image: x}}]}}}}}}}}"
    ));
    sandbox.settle();
    sandbox
}

fn key() -> Key {
    Key::of::<Job>("default", "j")
}

/// Ends the first `count` pods that have not ended.
fn end(sandbox: &mut Sandbox, count: usize, phase: &str) {
    let pods: Vec<_> = sandbox.world.all::<Pod>(None).filter(|pod| pods::is_active(pod)).cloned().collect();
    for pod in pods.iter().take(count) {
        let now = sandbox.now.to_string();
        sandbox.edit(pod.key(), |value| {
            value["status"]["phase"] = phase.into();
            value["status"]["containerStatuses"] =
                json!([{"name": "a", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"terminated": {"exitCode": 1, "finishedAt": now}}}]);
        });
    }
    sandbox.settle();
}

fn check(sandbox: &mut Sandbox, expected: Expect) {
    let job = sandbox.world.get(&key()).unwrap().value();
    let status = &job["status"];
    let conditions: Vec<String> = status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|c| format!("{}={} {}", c["type"], c["status"], c["reason"]).replace('"', ""))
        .collect();
    let told: Vec<String> = sandbox.told().into_iter().filter(|line| !line.starts_with("Successful")).collect();
    let tracked = sandbox.world.all::<Pod>(None).filter(|pod| is_tracked(pod)).count();
    expected.assert_eq(&format!(
        "active {} succeeded {} failed {} terminating {} done {}; {tracked} of {} pods tracked\n{}\n{}\n",
        status["active"],
        status["succeeded"],
        status["failed"],
        status["terminating"],
        status["completedIndexes"],
        sandbox.world.all::<Pod>(None).count(),
        conditions.join(", "),
        told.join("\n")
    ));
}

#[test]
fn completions_are_reached_in_parallel() {
    let mut sandbox = sandbox("completions: 3, parallelism: 2");
    check(
        &mut sandbox,
        expect![[r#"
        active 2 succeeded null failed null terminating 0 done null; 2 of 2 pods tracked


    "#]],
    );
    end(&mut sandbox, 2, "Succeeded");
    check(
        &mut sandbox,
        expect![[r#"
        active 1 succeeded 2 failed null terminating 0 done null; 1 of 3 pods tracked


    "#]],
    );
    end(&mut sandbox, 1, "Succeeded");
    check(
        &mut sandbox,
        expect![[r#"
        active null succeeded 3 failed null terminating 0 done null; 0 of 3 pods tracked
        SuccessCriteriaMet=True CompletionsReached, Complete=True CompletionsReached
        Completed: Job completed
    "#]],
    );
}

#[test]
fn failures_are_replaced_ever_slower_up_to_the_limit() {
    let mut sandbox = sandbox("completions: 1, parallelism: 1, backoffLimit: 1");
    end(&mut sandbox, 1, "Failed");
    check(
        &mut sandbox,
        expect![[r#"
        active null succeeded null failed 1 terminating 0 done null; 0 of 1 pods tracked


    "#]],
    );
    sandbox.pass(9);
    check(
        &mut sandbox,
        expect![[r#"
        active null succeeded null failed 1 terminating 0 done null; 0 of 1 pods tracked


    "#]],
    );
    sandbox.pass(1);
    check(
        &mut sandbox,
        expect![[r#"
        active 1 succeeded null failed 1 terminating 0 done null; 1 of 2 pods tracked


    "#]],
    );
    end(&mut sandbox, 1, "Failed");
    check(
        &mut sandbox,
        expect![[r#"
        active null succeeded null failed 2 terminating 0 done null; 0 of 2 pods tracked
        FailureTarget=True BackoffLimitExceeded, Failed=True BackoffLimitExceeded
        BackoffLimitExceeded: Job has reached the specified backoff limit
    "#]],
    );
}

#[test]
fn a_deadline_stops_what_runs() {
    let mut sandbox = sandbox("completions: 4, parallelism: 4, activeDeadlineSeconds: 60");
    sandbox.run_pods();
    sandbox.settle().told();
    sandbox.pass(60);
    check(
        &mut sandbox,
        expect![[r#"
        active null succeeded null failed 4 terminating 4 done null; 0 of 4 pods tracked
        FailureTarget=True DeadlineExceeded

    "#]],
    );
    sandbox.sail();
    check(
        &mut sandbox,
        expect![[r#"
        active null succeeded null failed 4 terminating 0 done null; 0 of 0 pods tracked
        FailureTarget=True DeadlineExceeded, Failed=True DeadlineExceeded
        DeadlineExceeded: Job was active longer than specified deadline
    "#]],
    );
}

#[test]
fn every_index_is_done_once() {
    let mut sandbox = sandbox("completions: 4, parallelism: 2, completionMode: Indexed");
    let pods = sandbox.values::<Pod>();
    assert_eq!(pods[0]["metadata"]["annotations"][INDEX], "0");
    assert_eq!(pods[0]["spec"]["containers"][0]["env"][0]["name"], "JOB_COMPLETION_INDEX");
    end(&mut sandbox, 1, "Succeeded");
    check(
        &mut sandbox,
        expect![[r#"
        active 2 succeeded 1 failed null terminating 0 done "0"; 2 of 3 pods tracked


    "#]],
    );
    end(&mut sandbox, 3, "Succeeded");
    end(&mut sandbox, 3, "Succeeded");
    check(
        &mut sandbox,
        expect![[r#"
        active null succeeded 4 failed null terminating 0 done "0-3"; 0 of 4 pods tracked
        SuccessCriteriaMet=True CompletionsReached, Complete=True CompletionsReached
        Completed: Job completed
    "#]],
    );
}

#[test]
fn a_suspended_job_rests_and_goes_on() {
    let mut sandbox = sandbox("completions: 2, parallelism: 2");
    sandbox.run_pods();
    sandbox.settle().told();
    sandbox.edit(&key(), |job| job["spec"]["suspend"] = true.into()).sail();
    check(
        &mut sandbox,
        expect![[r#"
        active null succeeded null failed null terminating 0 done null; 0 of 0 pods tracked
        Suspended=True JobSuspended
        Suspended: Job suspended
    "#]],
    );
    sandbox.edit(&key(), |job| job["spec"]["suspend"] = false.into()).settle();
    check(
        &mut sandbox,
        expect![[r#"
        active 2 succeeded null failed null terminating 0 done null; 2 of 2 pods tracked
        Suspended=False JobResumed
        Resumed: Job resumed
    "#]],
    );
}

#[test]
fn a_finished_job_goes_with_its_pods_when_its_time_is_over() {
    let mut sandbox = sandbox("completions: 1, parallelism: 1, ttlSecondsAfterFinished: 30");
    end(&mut sandbox, 1, "Succeeded");
    sandbox.pass(29);
    assert!(sandbox.world.get(&key()).is_some());
    sandbox.pass(1);
    assert!(sandbox.world.get(&key()).is_none());
    assert_eq!(sandbox.world.all::<Pod>(None).count(), 0);
}
