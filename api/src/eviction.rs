//! `pods/eviction`: a deletion that asks the pod's disruption budget first.
//!
//! The budget's allowance and the pod change in one commit, so that nobody is evicted twice for one allowance. How many may go
//! is the disruption controller's to count; a pod that has ended, has not begun, or is on its way out anyway needs no budget.

use crate::body::Answer;
use crate::front::Call;
use crate::status::Status;
use crate::verbs::{DeleteOptions, commit_all, delete_object, find, precondition};
use crate::{decode, render};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use manifests::Resource;
use serde_json::{Value, json};
use state::{Object, World, Write, rfc3339, selects};
use std::sync::Arc;

/// Kubernetes' words for an eviction that must wait.
const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";
/// The cause that programs look for.
const CAUSE: &str = "DisruptionBudget";
/// Evictions that a budget may wait for at once.
const NOTED_MAX: usize = 2000;
/// Seconds after which a budget that has not been counted yet may be asked again.
const RETRY_SECONDS: u32 = 10;

/// POST `pods/x/eviction`.
///
/// # Errors
/// 404 without the pod, 429 when its budget allows no eviction now, 500 when it has more than one budget.
pub(crate) async fn evict(call: &Call) -> Result<Answer, Status> {
    let eviction = decode::value(&call.headers, &call.body)?;
    let said = |field: &str| eviction[field].as_str().unwrap_or_default();
    let is_one = matches!((said("apiVersion"), said("kind")), ("policy/v1" | "policy/v1beta1", "Eviction"));
    if !is_one {
        return Err(Status::bad_request(format!("not a Eviction object: {}, {}", said("apiVersion"), said("kind"))));
    }
    if eviction["metadata"]["name"] != call.at.name.as_str() {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let mut options = DeleteOptions::of_value(&eviction["deleteOptions"])?;
    options.is_dry |= call.query.dry_run("CreateOptions")?;
    let mut tries_left = call.api.limits().patch_tries_max;
    loop {
        tries_left = tries_left.saturating_sub(1);
        match attempt(call, &options).await {
            Err(Refused::Raced(_)) if tries_left > 0 => {}
            Err(Refused::Raced(budget)) => return Err(busy(&budget)),
            Err(Refused::Final(status)) => return Err(*status),
            Ok(()) => break,
        }
    }
    let done = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(render::written(call, 201, &done))
}

/// Why a pod was not evicted.
enum Refused {
    /// The pod or this budget changed meanwhile.
    Raced(String),
    /// Asking again would not help.
    Final(Box<Status>),
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self::Final(Box::new(status))
    }
}

async fn attempt(call: &Call, options: &DeleteOptions) -> Result<(), Refused> {
    let world = call.api.world();
    let pod = find(call, &world)?;
    precondition(call, &pod, options)?;
    let phase = pod.value()["status"]["phase"].as_str().unwrap_or_default().to_owned();
    if pod.is_deleting() || matches!(phase.as_str(), "Succeeded" | "Failed" | "Pending") {
        delete_object(call, pod, options).await?;
        return Ok(());
    }
    let budgets = budgets(&world, &pod);
    if budgets.len() > 1 {
        let why = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
        return Err(Status::new(500, "", why).into());
    }
    let now = rfc3339(call.api.now());
    let mut writes = Vec::new();
    if let Some(budget) = budgets.first() {
        writes.extend(spend(budget, &pod, &now)?);
    }
    let mut value = pod.value();
    mark(&mut value, &now);
    let marked = Object::encode(pod.key().resource.clone(), pod.revision(), value).map_err(Status::internal)?;
    writes.extend(Write::delete_gracefully(&marked, options.deletion, call.api.now()));
    if options.is_dry {
        return Ok(());
    }
    let budget = budgets.first().map(|budget| budget.meta().name.clone()).unwrap_or_default();
    match commit_all(call, writes).await {
        Ok(_) => Ok(()),
        Err(status) if status.code == 409 => Err(Refused::Raced(budget)),
        Err(status) => Err(status.into()),
    }
}

/// The budgets that are about a pod.
fn budgets(world: &World, pod: &Object) -> Vec<Arc<Object>> {
    let guards = |budget: &&Arc<Object>| {
        let spec = budget.view::<PodDisruptionBudget>().and_then(|budget| budget.spec.as_ref());
        spec.and_then(|spec| spec.selector.as_ref()).is_some_and(|selector| selects(selector, &pod.meta().labels))
    };
    world.all::<PodDisruptionBudget>(Some(&pod.key().namespace)).filter(guards).cloned().collect()
}

/// Takes a pod from a budget's allowance: the write, if the eviction costs any.
///
/// # Errors
/// 429 when nothing may go now, 403 when the budget's status makes no sense.
fn spend(object: &Object, pod: &Object, now: &str) -> Result<Option<Write>, Status> {
    let budget = object.view::<PodDisruptionBudget>();
    let status = budget.and_then(|budget| budget.status.clone()).unwrap_or_default();
    let policy = budget.and_then(|budget| budget.spec.as_ref()?.unhealthy_pod_eviction_policy.as_deref());
    let name = &object.meta().name;
    if !is_ready(pod) {
        let desired = status.desired_healthy.unwrap_or(0);
        let is_safe = desired > 0 && status.current_healthy.unwrap_or(0) >= desired;
        if policy == Some("AlwaysAllow") || is_safe {
            // it does not count as healthy, so nothing is lost with it
            return Ok(None);
        }
    }
    if status.observed_generation.unwrap_or(0) < object.meta().generation.unwrap_or(0) {
        return Err(busy(name));
    }
    let forbidden = |why: &str, detail: &str| {
        let mut status = Status::forbidden(&Resource::new("policy", "poddisruptionbudget"), name, why);
        let message = format!("The disruption budget {name} does not allow evicting pods currently: {detail}");
        if let Some(details) = &mut status.details {
            details["causes"] = json!([{"reason": CAUSE, "message": message}]);
        }
        Err(status)
    };
    let allowed = status.disruptions_allowed.unwrap_or(0);
    if allowed < 0 {
        let why = "pdb disruptions allowed is negative";
        return forbidden(why, why);
    }
    if status.disrupted_pods.as_ref().is_some_and(|noted| noted.len() > NOTED_MAX) {
        let why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return forbidden(why, "too many pending evictions not confirmed by PDB controller");
    }
    if allowed == 0 {
        return Err(refused(None, exhausted(name, &status)));
    }
    let mut value = object.value();
    let new = &mut value["status"];
    let left = allowed - 1;
    new["disruptionsAllowed"] = left.into();
    if !new["disruptedPods"].is_object() {
        new["disruptedPods"] = json!({});
    }
    new["disruptedPods"][&pod.meta().name] = now.into();
    let conditions = new["conditions"].as_array_mut().into_iter().flatten();
    for condition in conditions.filter(|condition| left == 0 && condition["type"] == "DisruptionAllowed") {
        condition["status"] = "False".into();
        condition["reason"] = "InsufficientPods".into();
        condition["lastTransitionTime"] = now.into();
    }
    Ok(Some(Write::update(object, value)))
}

/// Why a budget without allowance has none.
fn exhausted(name: &str, status: &PodDisruptionBudgetStatus) -> String {
    let (current, desired) = (status.current_healthy.unwrap_or(0), status.desired_healthy.unwrap_or(0));
    let conditions = status.conditions.iter().flatten();
    let mut said = conditions.filter(|condition| condition.type_ == "DisruptionAllowed" && condition.status == "False");
    let said = said.next().filter(|condition| !condition.message.is_empty());
    match said {
        // the counts mean nothing then
        Some(condition) if condition.reason == "SyncFailed" => format!(
            "The disruption budget {name} does not allow evicting pods currently because it failed sync: {}",
            condition.message
        ),
        _ if current <= desired => {
            format!("The disruption budget {name} needs {desired} healthy pods and has {current} currently")
        }
        Some(condition) => format!(
            "The disruption budget {name} does not allow evicting pods currently ({}): {}",
            condition.reason, condition.message
        ),
        None => format!("The disruption budget {name} does not allow evicting pods currently"),
    }
}

/// 429 of a budget that has not been counted yet, or changes all the time.
fn busy(budget: &str) -> Status {
    let message = format!("The disruption budget {budget} is still being processed by the server.");
    refused(Some(RETRY_SECONDS), message)
}

fn refused(retry_seconds: Option<u32>, cause: String) -> Status {
    let mut status = Status::new(429, "TooManyRequests", REFUSED);
    let mut details = json!({"causes": [{"reason": CAUSE, "message": cause}]});
    if let Some(seconds) = retry_seconds {
        details["retryAfterSeconds"] = seconds.into();
    }
    status.details = Some(details);
    status
}

fn is_ready(pod: &Object) -> bool {
    let value = pod.value();
    let conditions = value["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Says in a pod's status why it goes.
fn mark(pod: &mut Value, now: &str) {
    if !pod["status"].is_object() {
        pod["status"] = json!({});
    }
    if !pod["status"]["conditions"].is_array() {
        pod["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = pod["status"]["conditions"].as_array_mut() else { return };
    conditions.retain(|condition| condition["type"] != "DisruptionTarget");
    conditions.push(json!({
        "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
        "lastProbeTime": null, "lastTransitionTime": now,
    }));
}
