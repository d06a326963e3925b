//! CronJobs, and a node that is away: what it does by itself, and what becomes of its pods meanwhile.

use crate::harness::{Cluster, Fleet, User, until};
use serde_json::Value;
use std::time::Duration;

/// A CronJob whose pods print and end.
fn cron(name: &str, schedule: &str, pod: &str) -> String {
    format!(
        "apiVersion: batch/v1\nkind: CronJob\nmetadata: {{name: {name}}}\nspec:\n  schedule: '{schedule}'\n  jobTemplate:\n    \
         metadata: {{labels: {{of: {name}}}}}\n    spec:\n      template:\n        metadata: {{labels: {{of: {name}}}}}\n        \
         spec: {{{pod} restartPolicy: Never, containers: [{{name: main, image: PROBE, args: [args, ahoy]}}]}}\n---\n"
    )
}

/// The objects of a kind with a label.
fn list(user: &User, what: &str, label: &str) -> Vec<Value> {
    let text = user.kubectl(&["get", what, "-l", label, "-o", "json"]);
    let mut list: Value = serde_json::from_str(&text).unwrap();
    list["items"].as_array_mut().map(std::mem::take).unwrap()
}

/// Uid and node of the pods of a Deployment.
fn pods(user: &User, name: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pods = list(user, "pod", &format!("app={name}"));
    pods.iter().map(|pod| (text(&pod["metadata"]["uid"]), text(&pod["spec"]["nodeName"]))).collect()
}

#[test]
fn cron_jobs_start_on_time_and_kubectl_drives_them() {
    let cluster = Cluster::start();
    cluster.apply(&(cron("tick", "@every 2s", "") + &cron("rare", "0 0 1 1 *", "")));
    let job = until("a job", || {
        let jobs = cluster.try_kubectl(&["get", "jobs", "-l", "of=tick", "-o", "name"]);
        jobs.lines().next().map(|name| name.trim_start_matches("job.batch/").to_owned())
    });
    cluster.wait(&format!("job/{job}"), "condition=Complete");
    assert_eq!(cluster.kubectl(&["logs", &format!("job/{job}")]).trim(), r#"["args", "ahoy"]"#);
    until("its success is seen", || {
        (!cluster.field("cronjob/tick", "{.status.lastSuccessfulTime}").is_empty()).then_some(())
    });
    let minute: i64 = job.rsplit('-').next().unwrap().parse().unwrap();
    let scheduled: jiff::Timestamp = cluster.field("cronjob/tick", "{.status.lastScheduleTime}").parse().unwrap();
    assert!((minute..minute + 2).contains(&scheduled.as_second().div_euclid(60)), "{minute} {scheduled}");

    let table = cluster.kubectl(&["get", "cronjob", "rare"]);
    let head = ["NAME", "SCHEDULE", "TIMEZONE", "SUSPEND", "ACTIVE", "LAST SCHEDULE", "AGE"];
    assert!(head.iter().all(|name| table.contains(name)) && table.contains("<none>"), "{table}");
    let page = cluster.kubectl(&["describe", "cronjob", "tick"]);
    assert!(page.contains("SuccessfulCreate") && page.contains("Concurrency Policy:            Allow"), "{page}");
    let ours = cluster.coracle(&["describe", "cronjob", "tick"]);
    assert!(ours.contains("Concurrency Policy:            Allow") && ours.contains("Last Schedule Time:"), "{ours}");

    cluster.kubectl(&["create", "job", "by-hand", "--from=cronjob/rare"]);
    cluster.coracle(&["create", "job", "by-our-hand", "--from=cronjob/rare"]);
    for name in ["by-hand", "by-our-hand"] {
        cluster.wait(&format!("job/{name}"), "condition=Complete");
        assert_eq!(cluster.field(&format!("job/{name}"), "{.metadata.ownerReferences[0].name}"), "rare");
    }
    cluster.kubectl(&["patch", "cronjob", "tick", "-p", r#"{"spec": {"suspend": true}}"#]);
    assert!(cluster.kubectl(&["get", "cronjob", "tick"]).contains("True"));
    let refused = cluster.kubectl_output(&["create", "cronjob", "bad", "--image=x", "--schedule=* * *"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("expected exactly 5 fields, found 3: [* * *]"), "{said}");
    cluster.kubectl(&["delete", "cronjob", "tick", "rare"]);
    until("its jobs go too", || cluster.kubectl(&["get", "jobs", "-o", "name"]).is_empty().then_some(()));
}

/// A Deployment of one that prefers a node, and says what becomes of it when that is silent.
fn deployment(name: &str, policy: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  replicas: 1\n  \
         selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}, annotations: {{{policy}}}}}\n    \
         spec:\n      terminationGracePeriodSeconds: 1\n      \
         affinity: {{nodeAffinity: {{preferredDuringSchedulingIgnoredDuringExecution: [{{weight: 100, preference: \
         {{matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [agent-0]}}]}}}}]}}}}\n      \
         containers: [{{name: main, image: PROBE, args: [http, \"8000\"]}}]\n---\n"
    )
}

#[test]
fn a_node_that_is_away_starts_its_own_jobs_and_keeps_what_it_was_told_to_keep() {
    let Some(mut fleet) = Fleet::launch(2) else { return };
    fleet.apply(
        &(deployment("stays", "coracle.dev/disconnect: stay, coracle.dev/disconnect-after: 1s")
            + &deployment("moves", "coracle.dev/disconnect-after: 1s")
            + &deployment("returns", "coracle.dev/disconnect-after: 1s, coracle.dev/reconnect: keep-original")),
    );
    for name in ["stays", "moves", "returns"] {
        fleet.wait(&format!("deployment/{name}"), "condition=Available");
    }
    let [stays, moves, returns] = ["stays", "moves", "returns"].map(|name| pods(&fleet, name).remove(0));
    assert!([&stays, &moves, &returns].iter().all(|(_, node)| node == "agent-0"));
    fleet.apply(&cron("tick", "@every 15s", "nodeSelector: {kubernetes.io/hostname: agent-0},"));
    std::thread::sleep(Duration::from_secs(6)); // longer than changes are gathered before they are on disk
    fleet.agents[0].cut();

    // a job of the node's own runs there, and nobody here knows
    let logs = fleet.agents[0].data_dir().join("agent/logs/pods");
    let has_run = || {
        let mut pods = std::fs::read_dir(&logs).into_iter().flatten().flatten();
        let said = |pod: std::fs::DirEntry| std::fs::read_to_string(pod.path().join("main/0.log")).unwrap_or_default();
        pods.any(|pod| pod.file_name().to_string_lossy().contains("_tick-") && said(pod).contains("ahoy"))
    };
    until("the job has run", || has_run().then_some(()));
    assert!(list(&fleet, "job", "of=tick").is_empty());
    std::thread::sleep(Duration::from_secs(1)); // its end is told at once, and on the disk before that
    fleet.agents[0].reboot();

    // what may be replaced is, and of that one is given up and the other only written off
    until("both are replaced", || {
        (pods(&fleet, "moves").len() == 2 && pods(&fleet, "returns").len() == 2).then_some(())
    });
    assert_eq!(pods(&fleet, "stays"), std::slice::from_ref(&stays));
    let is_deleted = |name: &str, uid: &str| {
        let pods = list(&fleet, "pod", &format!("app={name}"));
        pods.iter().any(|pod| pod["metadata"]["uid"] == uid && !pod["metadata"]["deletionTimestamp"].is_null())
    };
    assert!(is_deleted("moves", &moves.0) && !is_deleted("returns", &returns.0));

    fleet.agents[0].heal();
    fleet.ready(&fleet.agents[0]);
    until("one of each", || {
        ["stays", "moves", "returns"].iter().all(|name| pods(&fleet, name).len() == 1).then_some(())
    });
    assert_eq!(pods(&fleet, "stays"), [stays]);
    assert_ne!(pods(&fleet, "moves")[0].0, moves.0);
    assert_eq!(pods(&fleet, "returns"), [returns]);
    // what ran meanwhile is known here, and ran once
    let jobs = until("the jobs are told", || {
        let all = list(&fleet, "job", "of=tick");
        let is_over = |job: &Value| job["status"]["succeeded"] == 1;
        (!all.is_empty() && all.iter().all(is_over)).then_some(all)
    });
    for job in &jobs {
        let name = job["metadata"]["name"].as_str().unwrap();
        assert_eq!(list(&fleet, "pod", &format!("job-name={name}")).len(), 1, "{name} ran once");
    }
    assert!(!fleet.field("cronjob/tick", "{.status.lastScheduleTime}").is_empty());
}
