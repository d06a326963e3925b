//! Taint eviction: a `NoExecute` taint drives out the pods that do not tolerate it, at once or when their
//! `tolerationSeconds` are over.

use crate::{Controller, Cx, Outcome, pods};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use state::record::{self, Note};
use state::{Change, Deletion, Event, Key, Object, World, Write};
use std::sync::Arc;

/// Name as the source of events.
const NAME: &str = "taint-eviction-controller";

/// The controller.
pub struct Eviction;

impl Controller for Eviction {
    fn name(&self) -> &'static str {
        NAME
    }

    fn wakes(&self, event: &Event, world: &World) -> Vec<Key> {
        let (object, previous) = (&event.object, event.previous.as_ref());
        if event.change == Change::Deleted {
            return Vec::new();
        }
        if event.key().is::<Node>() {
            let before = previous.map(|previous| driving(previous)).unwrap_or_default();
            return if driving(object) == before { Vec::new() } else { vec![event.key().clone()] };
        }
        // a pod that comes to a node with such taints, or whose tolerations changed there
        let Some(node) = pod_node(object).filter(|_| !object.is_deleting()) else { return Vec::new() };
        let key = Key::of::<Node>("", node);
        let tainted = world.get(&key).is_some_and(|node| !driving(node).is_empty());
        let news = tainted && previous.is_none_or(|previous| state::spec_differs(&previous.value(), &object.value()));
        if news { vec![key] } else { Vec::new() }
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let taints = cx.world.get(key).map(|node| driving(node)).unwrap_or_default();
        if taints.is_empty() {
            return Outcome::default();
        }
        let mut pods: Vec<Arc<Object>> =
            cx.world.pods_on(&key.name).filter(|pod| pods::is_active(pod)).cloned().collect();
        pods.sort_by(|a, b| a.key().cmp(b.key()));
        let mut outcome = Outcome::default();
        for pod in pods {
            match leaves_at(&pod, &taints, cx.now) {
                Some(at) if at > cx.now => {
                    outcome.again_at = Some(outcome.again_at.map_or(at, |earlier: Timestamp| earlier.min(at)));
                }
                Some(_) => outcome.writes.extend(evict(cx, &pod)),
                None => {}
            }
        }
        outcome
    }
}

/// The taints of a node that drive pods out.
fn driving(node: &Object) -> Vec<Taint> {
    let taints = node.view::<Node>().and_then(|node| node.spec.as_ref()?.taints.as_ref());
    taints.into_iter().flatten().filter(|taint| taint.effect == "NoExecute").cloned().collect()
}

fn pod_node(object: &Object) -> Option<&str> {
    object.view::<Pod>()?.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}

/// When a pod must leave; `None` if it may stay for ever.
fn leaves_at(pod: &Object, taints: &[Taint], now: Timestamp) -> Option<Timestamp> {
    let tolerations = pod.view::<Pod>()?.spec.as_ref()?.tolerations.as_deref().unwrap_or_default();
    let leave = |taint: &Taint| {
        let covering: Vec<&Toleration> = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).collect();
        if covering.is_empty() {
            return Some(now);
        }
        let seconds = covering.iter().filter_map(|toleration| toleration.toleration_seconds).min()?;
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        since.checked_add(SignedDuration::from_secs(seconds.max(0))).ok()
    };
    taints.iter().filter_map(leave).min()
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (key, effect, operator) = (text(&toleration.key), text(&toleration.effect), text(&toleration.operator));
    let value = || text(&toleration.value) == text(&taint.value);
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && (operator == "Exists" || (matches!(operator.as_str(), "" | "Equal") && value()))
}

fn evict(cx: &mut Cx<'_>, pod: &Object) -> Vec<Write> {
    let Some(write) = Write::delete_gracefully(pod, Deletion::default(), cx.now) else { return Vec::new() };
    let message = format!("Marking for deletion Pod {}/{}", pod.key().namespace, pod.key().name);
    vec![write, record::event(cx.world, &mut cx.stamp, pod, &Note::normal(NAME, "TaintManagerEviction", &message))]
}
