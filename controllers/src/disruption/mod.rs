//! PodDisruptionBudgets: how many of an application's pods may be evicted now.
//!
//! The status says how many pods there should be, how many are healthy, how many must be, and so how many may go. An eviction
//! (`api`) takes one from the allowance and notes the pod; a noted pod does not count as healthy, until it is gone or two
//! minutes have passed. How many pods there should be is what their controllers' `spec.replicas` say; a minimum that is a
//! plain number needs no such knowledge.

#[cfg(test)]
mod tests;

use crate::{Controller, Cx, Outcome, pods};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use manifests::Resource;
use serde_json::{Map, Value, json};
use state::record::{self, Note};
use state::{Change, Event, Key, Object, World, Write, rfc3339, selects};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Name as the source of events.
const NAME: &str = "controllermanager";
/// A noted pod that is still there after this was not evicted.
const NOTED_SECONDS: i64 = 120;
/// The only condition of a budget.
const CONDITION: &str = "DisruptionAllowed";

/// The controller.
pub struct Disruption;

impl Controller for Disruption {
    fn name(&self) -> &'static str {
        "disruption-controller"
    }

    fn wakes(&self, event: &Event, world: &World) -> Vec<Key> {
        let key = event.key();
        if key.is::<PodDisruptionBudget>() {
            return if event.change == Change::Deleted { Vec::new() } else { vec![key.clone()] };
        }
        let (now, before) = (&event.object, event.previous.as_ref());
        let labels: Vec<BTreeMap<String, String>> = if key.is::<Pod>() {
            let same = event.change == Change::Modified && before.is_some_and(|before| shown(before) == shown(now));
            if same {
                Vec::new()
            } else {
                [Some(now), before].into_iter().flatten().map(|o| o.meta().labels.clone()).collect()
            }
        } else if key.is::<Deployment>() || key.is::<ReplicaSet>() {
            let same = before.is_some_and(|before| before.meta().generation == now.meta().generation);
            if same { Vec::new() } else { template_labels(now).into_iter().collect() }
        } else {
            Vec::new()
        };
        if labels.is_empty() {
            return Vec::new();
        }
        let budgets = world.all::<PodDisruptionBudget>(Some(&key.namespace));
        budgets
            .filter(|budget| labels.iter().any(|own| guards(budget, own)))
            .map(|budget| budget.key().clone())
            .collect()
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let Some(object) = cx.world.get(key).filter(|object| !object.is_deleting()).cloned() else {
            return Outcome::default();
        };
        let Some(budget) = object.view::<PodDisruptionBudget>() else { return Outcome::default() };
        let pods: Vec<&Arc<Object>> =
            cx.world.all::<Pod>(Some(&key.namespace)).filter(|pod| guards(&object, &pod.meta().labels)).collect();
        let spec = budget.spec.clone().unwrap_or_default();
        let (noted, again_at) = still_noted(&object, &pods, cx.now);
        let (wanted, trouble) = match wanted(cx.world, &spec, &pods) {
            Ok(found) => found,
            Err(why) => return fail(cx, &object, &why),
        };
        let healthy = count(pods.iter().filter(|pod| is_healthy(pod, &noted)).count());
        let status = Status { wanted, healthy, noted };
        let mut writes: Vec<Write> = crate::edit::status(&object, &status.value(&object, cx.now)).into_iter().collect();
        if !writes.is_empty() {
            let mut told = Vec::new();
            if pods.is_empty() {
                told.push(Note::normal(NAME, "NoPods", "No matching pods found"));
            }
            if let Some(message) = &trouble {
                told.push(Note::warning(NAME, "UnmanagedPods", message));
            }
            writes.extend(told.iter().map(|note| record::event(cx.world, &mut cx.stamp, &object, note)));
        }
        Outcome { writes, again_at }
    }
}

/// Whether a budget is about pods with these labels.
fn guards(budget: &Object, labels: &BTreeMap<String, String>) -> bool {
    let spec = budget.view::<PodDisruptionBudget>().and_then(|budget| budget.spec.as_ref());
    spec.and_then(|spec| spec.selector.as_ref()).is_some_and(|selector| selects(selector, labels))
}

/// Everything of a pod that a budget looks at.
fn shown(pod: &Object) -> impl PartialEq {
    (pods::is_ready(pod), pod.is_deleting(), pod.meta().labels.clone(), pod.controller().map(|owner| owner.uid.clone()))
}

fn template_labels(object: &Object) -> Option<BTreeMap<String, String>> {
    let labels = &object.value()["spec"]["template"]["metadata"]["labels"];
    serde_json::from_value(labels.clone()).ok()
}

fn is_healthy(pod: &Object, noted: &BTreeMap<String, Timestamp>) -> bool {
    !pod.is_deleting() && !noted.contains_key(&pod.meta().name) && pods::is_ready(pod)
}

/// The pods whose eviction is still awaited, and when the first of them is given up.
fn still_noted(
    budget: &Object,
    pods: &[&Arc<Object>],
    now: Timestamp,
) -> (BTreeMap<String, Timestamp>, Option<Timestamp>) {
    let status = budget.view::<PodDisruptionBudget>().and_then(|budget| budget.status.as_ref());
    let noted = status.and_then(|status| status.disrupted_pods.as_ref());
    let (mut kept, mut again_at) = (BTreeMap::new(), None::<Timestamp>);
    for pod in pods.iter().filter(|pod| !pod.is_deleting()) {
        let Some(at) = noted.and_then(|noted| noted.get(&pod.meta().name)).map(|time| time.0) else { continue };
        let ends = at.checked_add(SignedDuration::from_secs(NOTED_SECONDS)).unwrap_or(Timestamp::MAX);
        if ends > now {
            kept.insert(pod.meta().name.clone(), at);
            again_at = Some(again_at.map_or(ends, |earlier| earlier.min(ends)));
        }
    }
    (kept, again_at)
}

/// How many pods there should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    /// In all.
    expected: i32,
    /// Healthy ones, at least.
    healthy: i32,
}

/// How many pods there should be, and what is odd about that.
///
/// # Errors
/// Why it cannot be told, for people.
fn wanted(
    world: &World,
    spec: &PodDisruptionBudgetSpec,
    pods: &[&Arc<Object>],
) -> Result<(Wanted, Option<String>), String> {
    let share = |value: &IntOrString, expected: i32| {
        manifests::int_or_percent(value, expected, true)
            .ok_or_else(|| format!("invalid value for IntOrString: {}", json!(value)))
    };
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => {
            let (expected, trouble) = scale(world, spec, pods)?;
            let healthy = expected.saturating_sub(share(most, expected)?).max(0);
            Ok((Wanted { expected, healthy }, trouble))
        }
        (None, Some(IntOrString::Int(least))) => Ok((Wanted { expected: count(pods.len()), healthy: *least }, None)),
        (None, Some(least)) => {
            let (expected, trouble) = scale(world, spec, pods)?;
            Ok((Wanted { expected, healthy: share(least, expected)? }, trouble))
        }
        (None, None) => Ok((Wanted { expected: 0, healthy: 0 }, None)),
    }
}

/// How many pods the controllers of these want together. Pods without a controller cannot be told apart from none.
fn scale(
    world: &World,
    spec: &PodDisruptionBudgetSpec,
    pods: &[&Arc<Object>],
) -> Result<(i32, Option<String>), String> {
    let mut scales: BTreeMap<String, i32> = BTreeMap::new();
    let mut is_managed = true;
    for pod in pods {
        let Some(owner) = pod.controller() else {
            is_managed = false;
            continue;
        };
        let owner = world.by_uid(&owner.uid);
        let set = owner.filter(|owner| owner.key().is::<ReplicaSet>());
        let deployment = set.and_then(|set| world.by_uid(&set.controller()?.uid));
        let top = deployment.filter(|top| top.key().is::<Deployment>()).or(owner);
        let top = top.ok_or_else(|| format!("found no controllers for pod {:?}", pod.meta().name))?;
        if scales.contains_key(&top.meta().uid) {
            continue;
        }
        let resource = &top.key().resource;
        if !has_scale(resource) {
            return Err(format!("{resource} does not implement the scale subresource"));
        }
        let replicas = top.value()["spec"]["replicas"].as_i64().unwrap_or(1);
        scales.insert(top.meta().uid.clone(), i32::try_from(replicas).unwrap_or(i32::MAX));
    }
    let expected = scales.values().fold(0_i32, |sum, scale| sum.saturating_add(*scale));
    let trouble = (!is_managed).then(|| {
        format!(
            "Pods selected by this PodDisruptionBudget (selector: {}) were found to be unmanaged. As a result, the status \
             of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods \
             please set \".spec.minAvailable\" field of the PDB to an integer value.",
            json!(spec.selector)
        )
    });
    Ok((expected, trouble))
}

fn has_scale(resource: &Resource) -> bool {
    manifests::by_resource(resource).is_some_and(|kind| kind.subresources.contains(&"scale"))
}

fn count(pods: usize) -> i32 {
    i32::try_from(pods).unwrap_or(i32::MAX)
}

/// What a budget's status is to say.
struct Status {
    wanted: Wanted,
    healthy: i32,
    noted: BTreeMap<String, Timestamp>,
}

impl Status {
    fn value(&self, budget: &Object, now: Timestamp) -> Value {
        // without pods nothing may go: the first ones come before this is looked at again
        let spare = self.healthy.saturating_sub(self.wanted.healthy).max(0);
        let allowed = if self.wanted.expected > 0 { spare } else { 0 };
        let generation = budget.meta().generation.unwrap_or(0);
        let mut status = json!({
            "currentHealthy": self.healthy,
            "desiredHealthy": self.wanted.healthy,
            "disruptionsAllowed": allowed,
            "expectedPods": self.wanted.expected,
            "observedGeneration": generation,
        });
        if !self.noted.is_empty() {
            let noted = self.noted.iter().map(|(pod, at)| (pod.clone(), Value::from(rfc3339(*at))));
            status["disruptedPods"] = Value::Object(noted.collect::<Map<_, _>>());
        }
        let (is, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
        let condition = json!({
            "type": CONDITION, "status": is, "reason": reason, "message": "", "observedGeneration": generation,
        });
        status["conditions"] = conditions(budget, condition, now);
        status
    }
}

/// The budget's conditions with this one, which keeps its time while it says the same.
fn conditions(budget: &Object, mut condition: Value, now: Timestamp) -> Value {
    let value = budget.value();
    let old: Vec<Value> = value["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let before = old.iter().find(|known| known["type"] == condition["type"] && known["status"] == condition["status"]);
    let since = before.and_then(|known| known["lastTransitionTime"].as_str()).map(str::to_owned);
    condition["lastTransitionTime"] = since.unwrap_or_else(|| rfc3339(now)).into();
    let mut all: Vec<Value> = old.into_iter().filter(|known| known["type"] != condition["type"]).collect();
    all.push(condition);
    all.into()
}

/// What cannot be told is not allowed.
fn fail(cx: &mut Cx<'_>, budget: &Object, why: &str) -> Outcome {
    let mut status = budget.value()["status"].clone();
    if !status.is_object() {
        status = json!({"currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0});
    }
    status["disruptionsAllowed"] = 0.into();
    let condition = json!({
        "type": CONDITION, "status": "False", "reason": "SyncFailed", "message": why,
        "observedGeneration": status["observedGeneration"].as_i64().unwrap_or(0),
    });
    status["conditions"] = conditions(budget, condition, cx.now);
    let Some(write) = crate::edit::status(budget, &status) else { return Outcome::default() };
    let message = format!("Failed to calculate the number of expected pods: {why}");
    let note = Note::warning(NAME, "CalculateExpectedPodCountFailed", &message);
    Outcome { writes: vec![write, record::event(cx.world, &mut cx.stamp, budget, &note)], again_at: None }
}
