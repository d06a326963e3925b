//! What a node decides for its own CronJobs, without disk or link.

use super::{Reports, decide, is_local};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use state::{Expect, Identities, Key, Object, Revision, World, Write};
use std::collections::HashSet;
use std::sync::Arc;
use sync::Rejected;

struct Counting(u64);

impl Identities for Counting {
    fn next(&mut self) -> u64 {
        self.0 += 1;
        self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

struct Site {
    world: World,
    now: Timestamp,
    identities: Counting,
    held: HashSet<String>,
    told: Vec<String>,
    master: Vec<Write>,
}

impl Site {
    fn new(cron: &str) -> Self {
        let now = "2026-01-01T00:10:00Z".parse().unwrap();
        let (held, told, master) = (HashSet::new(), Vec::new(), Vec::new());
        let mut site = Self { world: World::default(), now, identities: Counting(0), held, told, master };
        site.put("v1", "Node", json!({"metadata": {"name": "site", "uid": "node", "annotations": {"coracle.dev/runs-cronjobs": "true"}}, "spec": {}}));
        let mut value = json!({
            "apiVersion": "batch/v1", "kind": "CronJob",
            "metadata": {"name": "c", "namespace": "n", "uid": "cron", "creationTimestamp": "2026-01-01T00:00:30Z"},
            "spec": {"schedule": "*/10 * * * *", "jobTemplate": {"spec": {"template": {"spec": {
                "nodeSelector": {"kubernetes.io/hostname": "site"}, "restartPolicy": "Never",
                "containers": [{"name": "a", "image": "x"}]}}}}},
        });
        let more: Value = serde_yaml::from_str(cron).unwrap();
        for (field, more) in more.as_object().unwrap() {
            value["spec"][field] = more.clone();
        }
        (manifests::by_kind("batch/v1", "CronJob").unwrap().default)(&mut value);
        site.put("batch/v1", "CronJob", value);
        site
    }

    fn put(&mut self, version: &str, kind: &str, value: Value) {
        let resource = manifests::by_kind(version, kind).unwrap().resource();
        self.world.put(Arc::new(Object::encode(resource, Revision(5), value).unwrap()));
    }

    fn edit(&mut self, key: &Key, revision: u64, edit: impl FnOnce(&mut Value)) {
        let mut value = self.world.get(key).unwrap().value();
        edit(&mut value);
        self.world.put(Arc::new(Object::encode(key.resource.clone(), Revision(revision), value).unwrap()));
    }

    fn work(&mut self) {
        for _ in 0..20 {
            let decision = decide(&self.world, "site", &self.held, self.now, &mut self.identities);
            self.told.extend(decision.told.iter().map(|(_, event)| event["reason"].as_str().unwrap().to_owned()));
            self.master.extend(decision.master);
            if decision.local.is_empty() {
                return;
            }
            for write in decision.local {
                let old = self.world.get(&write.key);
                assert!(old.is_none_or(|old| is_local(old)), "{} is not the node's", write.key);
                assert_eq!(old.is_none(), write.expect == Expect::Absent);
                match write.value {
                    Some(value) => {
                        let object = Object::encode(write.key.resource.clone(), Revision(0), value).unwrap();
                        self.world.put(Arc::new(object));
                    }
                    None => self.world.remove(&write.key),
                }
            }
        }
        panic!("never quiet");
    }

    fn all<T: k8s_openapi::Resource>(&self) -> Vec<Arc<Object>> {
        self.world.all::<T>(None).cloned().collect()
    }

    fn names<T: k8s_openapi::Resource>(&self) -> Vec<String> {
        self.all::<T>().iter().map(|object| object.meta().name.clone()).collect()
    }

    /// Ends all pods, as their workers would.
    fn end(&mut self, phase: &str) {
        for pod in self.all::<Pod>() {
            self.edit(pod.key(), 0, |pod| pod["status"]["phase"] = phase.into());
        }
        self.work();
    }
}

fn cron() -> Key {
    Key::of::<CronJob>("n", "c")
}

#[test]
fn a_job_is_made_kept_run_and_counted_here() {
    let mut site = Site::new("{}");
    site.held.insert(String::new());
    site.work();
    assert_eq!(site.names::<Job>(), ["c-29453770"]);
    assert_eq!(site.names::<Pod>().len(), 1);
    let pod = site.all::<Pod>()[0].value();
    assert_eq!(
        (&pod["spec"]["nodeName"], &pod["status"]["conditions"][0]["type"]),
        (&"site".into(), &"PodScheduled".into())
    );
    site.end("Succeeded");
    assert_eq!(state::cron::outcome(&site.all::<Job>()[0]), Some("Complete"));
    assert!(site.told.contains(&"SuccessfulCreate".to_owned()) && site.told.contains(&"Completed".to_owned()));
    // what was served is not served again; the next time is
    site.work();
    assert_eq!(site.names::<Job>().len(), 1);
    site.now = "2026-01-01T00:20:01Z".parse().unwrap();
    site.work();
    assert_eq!(site.names::<Job>(), ["c-29453770", "c-29453780"]);
    // its CronJob is gone: so are they
    site.world.remove(&cron());
    site.work();
    assert!(site.names::<Job>().is_empty());
    assert!(site.all::<Pod>().iter().all(|pod| pod.is_deleting()));
}

#[test]
fn a_job_that_is_not_on_the_disk_makes_no_pods() {
    let mut site = Site::new("{}");
    let first = decide(&site.world, "site", &site.held, site.now, &mut site.identities);
    let job = Object::encode(first.local[0].key.resource.clone(), Revision(0), first.local[0].value.clone().unwrap())
        .unwrap();
    site.held.insert(job.meta().uid.clone());
    site.world.put(Arc::new(job));
    site.work();
    assert!(site.names::<Pod>().is_empty());
    site.held.clear();
    site.work();
    assert_eq!(site.names::<Pod>().len(), 1);
}

#[test]
fn who_belongs_elsewhere_or_is_cordoned_makes_nothing() {
    let mut site = Site::new("{suspend: true}");
    site.work();
    assert!(site.names::<Job>().is_empty());
    let mut site = Site::new("{}");
    site.edit(&cron(), 5, |cron| {
        cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["nodeSelector"]["kubernetes.io/hostname"] =
            "other".into();
    });
    site.work();
    assert!(site.names::<Job>().is_empty());
    for (field, value) in [("unschedulable", json!(true)), ("taints", json!([{"key": "k", "effect": "NoSchedule"}]))] {
        let mut site = Site::new("{}");
        site.edit(&Key::of::<k8s_openapi::api::core::v1::Node>("", "site"), 5, |node| node["spec"][field] = value);
        site.work();
        assert_eq!((site.names::<Job>().len(), site.names::<Pod>().len()), (1, 0), "{field}");
    }
}

#[test]
fn what_runs_is_waited_for_or_gives_way() {
    let later = |policy: &str, known: bool| {
        let mut site = Site::new(&format!("{{concurrencyPolicy: {policy}}}"));
        site.work();
        if known {
            site.edit(&Key::of::<Job>("n", "c-29453770"), 9, |_| {});
        }
        site.now = "2026-01-01T00:20:01Z".parse().unwrap();
        site.work();
        let asked = site.master.iter().map(|write| write.key.name.to_string()).collect::<HashSet<_>>();
        (site.names::<Job>().join(" "), asked.into_iter().collect::<Vec<_>>().join(" "))
    };
    assert_eq!(later("Forbid", false), ("c-29453770".into(), String::new()));
    assert_eq!(later("Replace", false), ("c-29453780".into(), String::new()));
    // one that the master knows is the master's to delete; the next waits until it is gone
    assert_eq!(later("Replace", true), ("c-29453770".into(), "c-29453770".into()));
    assert_eq!(later("Allow", true), ("c-29453770 c-29453780".into(), String::new()));
}

#[tokio::test]
async fn a_job_and_its_pods_are_reported_together_and_again_as_far_as_they_are_taken() {
    let mut site = Site::new("{}");
    site.work();
    let mut reports = Reports::default();
    let names = |reports: &mut Reports, site: &Site| -> Vec<Vec<String>> {
        let due = reports.due(&site.world, &site.held, site.now);
        due.reports.iter().map(|report| report.iter().map(|object| object.meta().name.clone()).collect()).collect()
    };
    let pod = site.names::<Pod>().remove(0);
    assert_eq!(names(&mut reports, &site), [vec!["c-29453770".to_owned(), pod.clone()]]);
    assert!(names(&mut reports, &site).is_empty(), "it is on its way");
    let report = vec![site.all::<Job>()[0].clone(), site.all::<Pod>()[0].clone()];
    assert!(!reports.take(&report, Some(&Rejected::Disconnected)));
    assert!(names(&mut reports, &site).is_empty(), "there is no link");
    reports.greet();
    assert_eq!(names(&mut reports, &site).len(), 1);
    // the master does not take it: of an earlier template it is told when it is over, without its pod
    assert!(reports.take(&report, Some(&Rejected::Failed("forbidden".into()))));
    assert!(names(&mut reports, &site).is_empty());
    site.end("Succeeded");
    assert_eq!(names(&mut reports, &site), [vec!["c-29453770".to_owned()]]);
    // once the master has it, the pod that it does not want goes
    site.edit(&Key::of::<Job>("n", "c-29453770"), 9, |_| {});
    let due = reports.due(&site.world, &site.held, site.now);
    assert_eq!((due.reports.len(), due.local.len()), (0, 1));
}
