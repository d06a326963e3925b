//! What a node may report of the CronJobs that belong to it: the Jobs it has made in their name, and those Jobs' pods.
//!
//! A Job must be the one that its CronJob wants for its time, or be over; a pod must be of such a Job, on this node, with the
//! labels of its template, and read nothing that its CronJob does not read. So a node gets no object, no traffic and no other
//! node by it that it would not have had.

use controllers::cronjob;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Pod, Secret, ServiceAccount};
use serde_json::{Map, Value};
use state::{Key, Object, Revision, World, Write, cron};
use std::collections::BTreeSet;
use std::sync::Arc;
use sync::slice;

/// Labels that a Job gives to its pods beside those of its template.
const JOB_LABELS: [&str; 5] = [
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
    "batch.kubernetes.io/job-completion-index",
    "controller-uid",
    "job-name",
];

/// Whether a node may make or remove this Job.
pub(super) fn job(write: &Write, current: Option<&Object>, world: &World, node: &str) -> Result<(), &'static str> {
    match (&write.value, current) {
        (None, Some(current)) => {
            owner(&current.value(), world, node)?;
            cron::scheduled(current).map(|_| ()).ok_or("its CronJob has not made it")
        }
        (Some(value), None) => made(write, value, world, node),
        _ => Err("of a Job a node tells that it made it"),
    }
}

fn made(write: &Write, value: &Value, world: &World, node: &str) -> Result<(), &'static str> {
    let cron = owner(value, world, node)?;
    let job = decode(write, value)?;
    let spec = cron.view::<CronJob>().map(|cron| &cron.spec).ok_or("its CronJob cannot be read")?;
    let at = cron::scheduled(&job).ok_or("it does not say for which time it is")?;
    let zone = cronjob::zone(spec).ok_or("its CronJob's time zone is not known")?;
    let mut wanted = cronjob::wanted(cron, at, &zone).ok_or("its CronJob has no template")?;
    if wanted["metadata"]["name"] != value["metadata"]["name"]
        || wanted["metadata"]["namespace"] != *write.key.namespace
    {
        return Err("it is not named after its time");
    }
    wanted["metadata"]["uid"] = value["metadata"]["uid"].clone();
    manifests::claim_pods(&mut wanted);
    let same = wanted["spec"] == value["spec"] && bare(&wanted) == bare(value);
    // one that is over makes no pods any more: it may be of an earlier template
    (same || cron::outcome(&job).is_some()).then_some(()).ok_or("it is not what its CronJob wants")
}

/// The metadata without what is of one object only.
fn bare(value: &Value) -> Map<String, Value> {
    let mut metadata = value["metadata"].as_object().cloned().unwrap_or_default();
    for field in ["resourceVersion", "uid", "creationTimestamp", "generation"] {
        metadata.remove(field);
    }
    metadata
}

/// Whether a node may make this pod.
pub(super) fn pod(write: &Write, batch: &[Write], world: &World, node: &str) -> Result<(), &'static str> {
    let value = write.value.as_ref().ok_or("it is not there")?;
    let pod = decode(write, value)?;
    let of = pod.controller().filter(|owner| owner.kind == "Job").ok_or("nodes make no pods")?;
    let key = Key::of::<Job>(&write.key.namespace, &of.name);
    let made = batch.iter().find(|write| write.key == key).and_then(|write| write.value.clone());
    let job = made.or_else(|| world.get(&key).map(|job| job.value())).ok_or("its Job is not there")?;
    if job["metadata"]["uid"] != of.uid.as_str() {
        return Err("its Job is another");
    }
    let cron = owner(&job, world, node)?;
    let spec = pod.view::<Pod>().and_then(|pod| pod.spec.as_ref()).ok_or("it has no spec")?;
    if spec.node_name.as_deref() != Some(node) {
        return Err("it is not bound to this node");
    }
    let template = &job["spec"]["template"]["metadata"]["labels"];
    let is_given = |name: &str, text: &str| JOB_LABELS.contains(&name) || template[name] == text;
    if !pod.meta().labels.iter().all(|(name, text)| is_given(name, text)) {
        return Err("its labels are not those of its Job");
    }
    let readable = readable(cron, world);
    slice::references(&pod).is_subset(&readable).then_some(()).ok_or("it reads what its CronJob does not")
}

/// All that the pods of a CronJob may read: what its template names, and what its service account adds to that.
fn readable(cron: &Object, world: &World) -> BTreeSet<Key> {
    let namespace = &*cron.key().namespace;
    let mut keys = slice::references(cron);
    let named = cron::template(cron).and_then(|spec| spec.service_account_name.as_deref());
    let account = Key::of::<ServiceAccount>(namespace, named.filter(|name| !name.is_empty()).unwrap_or("default"));
    let secrets = world
        .get(&account)
        .and_then(|account| account.view::<ServiceAccount>())
        .and_then(|account| account.image_pull_secrets.as_ref());
    keys.extend(secrets.into_iter().flatten().map(|secret| Key::of::<Secret>(namespace, &secret.name)));
    keys.insert(account);
    keys
}

/// The CronJob that controls a Job, if it belongs to the node.
fn owner<'w>(job: &Value, world: &'w World, node: &str) -> Result<&'w Arc<Object>, &'static str> {
    let owners = job["metadata"]["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
    let uid = owners.iter().find(|owner| owner["controller"] == true).and_then(|owner| owner["uid"].as_str());
    let cron = uid.and_then(|uid| world.by_uid(uid)).filter(|cron| cron.key().is::<CronJob>());
    let cron = cron.ok_or("it has no CronJob")?;
    if job["metadata"]["namespace"] != *cron.key().namespace {
        return Err("its CronJob is in another namespace");
    }
    (cron::decider(cron, world) == Some(node)).then_some(cron).ok_or("its CronJob does not belong to this node")
}

fn decode(write: &Write, value: &Value) -> Result<Object, &'static str> {
    Object::encode(write.key.resource.clone(), Revision(0), value.clone()).map_err(|_| "it cannot be read")
}

#[cfg(test)]
mod tests {
    use super::super::{PodNetworks, Writer, all};
    use super::*;
    use serde_json::json;
    use state::Write;

    fn cron(node: &str) -> Value {
        let mut cron = json!({
            "apiVersion": "batch/v1", "kind": "CronJob",
            "metadata": {"name": "c", "namespace": "n", "uid": "uid-c", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"nodeName": node, "restartPolicy": "Never", "containers": [{"name": "x", "image": "y"}],
                    "volumes": [{"name": "s", "secret": {"secretName": "mine"}}]},
            }}}},
        });
        (manifests::by_kind("batch/v1", "CronJob").unwrap().default)(&mut cron);
        cron
    }

    fn world(node: &str) -> World {
        let mut world = World::default();
        let mut put = |api: &str, kind: &str, value: Value| {
            let resource = manifests::by_kind(api, kind).unwrap().resource();
            world.put(Arc::new(Object::encode(resource, Revision(7), value).unwrap()));
        };
        put("batch/v1", "CronJob", cron(node));
        let runs = json!({cron::RUNS: "true"});
        for name in ["a", "b"] {
            put("v1", "Node", json!({"metadata": {"name": name, "uid": name, "annotations": runs}}));
        }
        world
    }

    /// The Job and the pod of a time, as a node would report them.
    fn report(node: &str) -> Vec<Value> {
        let world = world(node);
        let cron = world.get(&Key::of::<CronJob>("n", "c")).unwrap();
        let at = "2026-01-01T00:05:00Z".parse().unwrap();
        let mut job = cronjob::wanted(cron, at, &jiff::tz::TimeZone::UTC).unwrap();
        job["metadata"]["uid"] = "uid-j".into();
        job["metadata"]["creationTimestamp"] = "2026-01-01T00:05:00Z".into();
        manifests::claim_pods(&mut job);
        let owner = json!([{"apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"], "uid": "uid-j", "controller": true}]);
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "n", "uid": "uid-p", "ownerReferences": owner, "labels": {"a": "b", "job-name": "x"}},
            "spec": job["spec"]["template"]["spec"], "status": {"phase": "Succeeded"},
        });
        manifests::pods::default(&mut pod);
        vec![job, pod]
    }

    fn verdict(world: &World, values: Vec<Value>) -> bool {
        let write = |value: Value| {
            let kind =
                manifests::by_kind(value["apiVersion"].as_str().unwrap(), value["kind"].as_str().unwrap()).unwrap();
            let name = |field: &str| value["metadata"][field].as_str().unwrap().to_owned();
            Write::create(Key::new(kind.resource(), &name("namespace"), &name("name")), value)
        };
        let networks = PodNetworks { cluster: ("10.42.0.0".parse().unwrap(), 16), mask: 24 };
        let writes: Vec<Write> = values.into_iter().map(write).collect();
        let verdict = all(&writes, world, Writer { networks, node: "a", is_master: false });
        if let Err(error) = &verdict {
            eprintln!("{error}");
        }
        verdict.is_ok()
    }

    #[test]
    fn a_node_reports_what_its_own_cron_jobs_made_and_nothing_else() {
        assert!(verdict(&world("a"), report("a")));
        assert!(!verdict(&world("b"), report("b")), "it belongs to another node");
        let edited = |edit: fn(&mut Value, &mut Value)| {
            let mut values = report("a");
            let (jobs, pods) = values.split_at_mut(1);
            edit(&mut jobs[0], &mut pods[0]);
            verdict(&world("a"), values)
        };
        assert!(edited(|job, _| job["status"] = json!({"active": 1})));
        assert!(!edited(|job, _| job["metadata"]["name"] = "c-1".into()));
        assert!(!edited(|job, _| job["spec"]["template"]["spec"]["nodeName"] = "b".into()));
        assert!(!edited(|job, _| job["metadata"]["labels"] = json!({"x": "y"})));
        assert!(!edited(|_, pod| pod["spec"]["nodeName"] = "b".into()));
        assert!(!edited(|_, pod| pod["spec"]["volumes"][0]["secret"]["secretName"] = "theirs".into()));
        assert!(!edited(|_, pod| pod["metadata"]["labels"]["app"] = "shop".into()));
        assert!(!edited(|_, pod| pod["metadata"]["ownerReferences"] = json!([])));
        // a Job of an earlier template is taken when it is over, its pods are not
        let over = |job: &mut Value, _: &mut Value| {
            job["spec"]["backoffLimit"] = 2.into();
            job["status"] = json!({"conditions": [{"type": "Complete", "status": "True"}]});
        };
        assert!(edited(over));
        assert!(!edited(|job, _| job["spec"]["backoffLimit"] = 2.into()));
        assert!(!verdict(&world("a"), report("a").split_off(1)), "a pod without its Job");
    }
}
