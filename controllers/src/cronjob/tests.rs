//! CronJobs, watched from outside.

use super::*;
use crate::garbage::Garbage;
use crate::harness::Sandbox;
use crate::job::Jobs;
use k8s_openapi::api::core::v1::Pod;

const NODE: &str =
    "{apiVersion: v1, kind: Node, metadata: {name: node-a, annotations: {coracle.dev/runs-cronjobs: 'true'}}}";

fn apply(sandbox: &mut Sandbox, spec: &str, pod: &str) {
    sandbox.apply(&format!(
        "{{apiVersion: batch/v1, kind: CronJob, metadata: {{name: c, namespace: default}}, spec: {{{spec}, jobTemplate: \
         {{metadata: {{labels: {{a: b}}}}, spec: {{template: {{spec: {{{pod} restartPolicy: Never, containers: [{{name: a, image: x}}]}}}}}}}}}}}}"
    ));
    sandbox.settle();
}

fn master() -> Sandbox {
    Sandbox::new(vec![Box::new(CronJobs { seat: Seat::Master }), Box::new(Jobs), Box::new(Garbage)])
}

fn sandbox(spec: &str) -> Sandbox {
    let mut sandbox = master();
    apply(&mut sandbox, spec, "");
    sandbox
}

fn key() -> Key {
    Key::of::<CronJob>("default", "c")
}

fn status(sandbox: &Sandbox) -> String {
    let value = sandbox.world.get(&key()).unwrap().value();
    let status = &value["status"];
    let text = |field: &str| status[field].as_str().unwrap_or("-").to_owned();
    let active = status["active"].as_array().map_or(0, Vec::len);
    format!("active {active} scheduled {} succeeded {}", text("lastScheduleTime"), text("lastSuccessfulTime"))
}

fn jobs(sandbox: &Sandbox) -> Vec<String> {
    sandbox.world.all::<Job>(None).map(|job| job.meta().name.clone()).collect()
}

/// What was told of CronJobs.
fn told(sandbox: &mut Sandbox) -> Vec<String> {
    let ours = |line: &String| !line.contains("pod:") && !line.starts_with("Completed") && !line.starts_with("Backoff");
    sandbox.told().into_iter().filter(ours).collect()
}

fn end(sandbox: &mut Sandbox, phase: &str) {
    let pods: Vec<_> = sandbox.world.all::<Pod>(None).filter(|pod| crate::pods::is_active(pod)).cloned().collect();
    for pod in pods {
        sandbox.edit(pod.key(), |value| value["status"]["phase"] = phase.into());
    }
    sandbox.settle();
}

#[test]
fn a_job_is_made_when_it_is_time_and_named_after_it() {
    let mut sandbox = sandbox("schedule: '*/10 * * * *', successfulJobsHistoryLimit: 1");
    sandbox.pass(599);
    assert!(jobs(&sandbox).is_empty());
    sandbox.pass(1);
    assert_eq!(jobs(&sandbox), ["c-29453770"]);
    assert_eq!(status(&sandbox), "active 1 scheduled 2026-01-01T00:10:00Z succeeded -");
    let job = sandbox.values::<Job>().remove(0);
    assert_eq!(job["metadata"]["annotations"][cron::SCHEDULED], "2026-01-01T00:10:00Z");
    assert_eq!((&job["metadata"]["labels"]["a"], &job["spec"]["completions"]), (&"b".into(), &1.into()));
    assert_eq!(job["metadata"]["ownerReferences"][0]["kind"], "CronJob");
    assert_eq!(sandbox.values::<Pod>().len(), 1);
    end(&mut sandbox, "Succeeded");
    assert_eq!(status(&sandbox), "active 0 scheduled 2026-01-01T00:10:00Z succeeded 2026-01-01T00:10:00Z");
    assert_eq!(
        told(&mut sandbox),
        [
            "SuccessfulCreate: Created job c-29453770",
            "SawCompletedJob: Saw completed job: c-29453770, condition: Complete"
        ]
    );
    // of those that have ended the oldest goes
    sandbox.pass(600);
    end(&mut sandbox, "Succeeded");
    assert_eq!(jobs(&sandbox), ["c-29453780"]);
    assert!(told(&mut sandbox).contains(&"SuccessfulDelete: Deleted job c-29453770".to_owned()));
}

#[test]
fn jobs_may_run_together_wait_or_give_way() {
    let count = |policy: &str| {
        let mut sandbox = sandbox(&format!("schedule: '* * * * *', concurrencyPolicy: {policy}"));
        sandbox.pass(60);
        sandbox.run_pods();
        sandbox.settle().pass(60);
        (jobs(&sandbox).join(" "), told(&mut sandbox).pop().unwrap_or_default())
    };
    assert_eq!(count("Allow"), ("c-29453761 c-29453762".into(), "SuccessfulCreate: Created job c-29453762".into()));
    let waits =
        "JobAlreadyActive: Not starting job because prior execution is running and concurrency policy is Forbid";
    assert_eq!(count("Forbid"), ("c-29453761".into(), waits.into()));
    assert_eq!(count("Replace"), ("c-29453762".into(), "SuccessfulCreate: Created job c-29453762".into()));

    // one that had to wait is started when it can be
    let mut sandbox = sandbox("schedule: '* * * * *', concurrencyPolicy: Forbid");
    sandbox.pass(60).pass(70);
    end(&mut sandbox, "Succeeded");
    assert_eq!(jobs(&sandbox), ["c-29453761", "c-29453762"]);
}

#[test]
fn of_missed_times_the_last_is_served_unless_it_is_too_late() {
    let missed = |more: &str, seconds: i64| {
        let mut sandbox = sandbox(&format!("schedule: '*/10 * * * *', suspend: true{more}"));
        sandbox.pass(seconds);
        sandbox.edit(&key(), |cron| cron["spec"]["suspend"] = false.into()).settle();
        (jobs(&sandbox).join(" "), told(&mut sandbox).join(", "))
    };
    assert_eq!(missed("", 1950), ("c-29453790".into(), "SuccessfulCreate: Created job c-29453790".into()));
    let late = "MissSchedule: Missed scheduled time to start a job: Thu, 01 Jan 2026 00:30:00 +0000";
    assert_eq!(missed(", startingDeadlineSeconds: 100", 1950), (String::new(), late.into()));
    assert_eq!(missed(", startingDeadlineSeconds: 200", 1950).0, "c-29453790");
    let many = missed("", 86_400 * 2).1;
    assert!(many.contains("TooManyMissedTimes: too many missed start times") && many.contains("Created job"), "{many}");
    assert!(!missed(", startingDeadlineSeconds: 3600", 86_400 * 2).1.contains("TooMany"));
}

#[test]
fn what_was_served_is_read_off_the_jobs() {
    let mut sandbox = sandbox("schedule: '*/10 * * * *', suspend: true");
    sandbox.pass(1230);
    let owner = ownership::reference::<CronJob>(sandbox.world.get(&key()).unwrap());
    sandbox.apply(&format!(
        "{{apiVersion: batch/v1, kind: Job, metadata: {{name: c-29453780, namespace: default, ownerReferences: [{owner}], \
         annotations: {{{}: '2026-01-01T00:20:00Z'}}}}, spec: {{suspend: true, template: {{spec: {{}}}}}}}}",
        cron::SCHEDULED
    ));
    sandbox.settle();
    assert_eq!(status(&sandbox), "active 1 scheduled 2026-01-01T00:20:00Z succeeded -");
    sandbox.edit(&key(), |cron| cron["spec"]["suspend"] = false.into()).settle();
    assert_eq!(jobs(&sandbox).len(), 1);
    sandbox.delete(&Key::of::<Job>("default", "c-29453780"), Deletion::default()).settle();
    assert_eq!(status(&sandbox), "active 0 scheduled 2026-01-01T00:20:00Z succeeded -");
    assert!(told(&mut sandbox).contains(&"MissingJob: Active job went missing: c-29453780".to_owned()));
}

#[test]
fn what_belongs_to_a_node_is_started_there() {
    for pin in ["nodeName: node-a,", "nodeSelector: {kubernetes.io/hostname: node-a},"] {
        let mut sandbox = master();
        apply(&mut sandbox, "schedule: '* * * * *'", pin);
        sandbox.pass(60);
        assert_eq!(jobs(&sandbox).len(), 1, "nobody else does");
        sandbox.apply(NODE).pass(60);
        assert_eq!(jobs(&sandbox).len(), 1, "the node does");
        let world = sandbox.world.clone();
        let mut identities = crate::harness::Counting(99);
        let mut ask = |node: &str| {
            let stamp = Stamp { now: sandbox.now, identities: &mut identities };
            let mut cx = Cx { world: &world, now: sandbox.now, stamp };
            CronJobs { seat: Seat::Node(node.into()) }.reconcile(&mut cx, &key())
        };
        let made = ask("node-a");
        let names: Vec<&str> = made.writes.iter().map(|write| &*write.key.name).collect();
        assert_eq!(names.len(), 2, "an event and a Job, and no status: {names:?}");
        assert_eq!(names[1], "c-29453762");
        assert_eq!(made.again_at.unwrap().to_string(), "2026-01-01T00:03:00Z");
        assert_eq!(ask("node-b"), Outcome::default());
        sandbox.delete(&Key::of::<Node>("", "node-a"), Deletion::default()).settle();
        assert_eq!(jobs(&sandbox).len(), 2, "nobody else does any more");
    }
}
