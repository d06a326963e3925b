//! Taint eviction: a `NoExecute` taint drives out the pods that do not tolerate it, at once or when their
//! `tolerationSeconds` are over.
//!
//! A pod's time begins when the taint and the pod have met, but not before this master started: while it was away nobody
//! could tell it that the node is back. Of a node that is only silent, some pods stay and some are written off instead of
//! deleted ([`crate::disconnect`]): those count again when the node is back and they are well.

use crate::disconnect::{self, Keep, Policy};
use crate::{Controller, Cx, Outcome, node, pods};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use state::record::{self, Note};
use state::{Change, Deletion, Event, Expect, Key, Object, World, Write};
use std::sync::Arc;

/// Name as the source of events.
const NAME: &str = "taint-eviction-controller";
/// Taint of a node that says nothing.
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// A pod that was written off has this long to be well again when its node is back; then it counts as it is.
const RECONNECT_SECONDS: i64 = 60;

/// The controller.
pub struct Eviction {
    /// When this master started.
    pub started_at: Timestamp,
}

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
            let concern = |node: &Object| (driving(node), node::ready(node) == Some("True"));
            let before = previous.map(|previous| concern(previous));
            return if before == Some(concern(object)) { Vec::new() } else { vec![event.key().clone()] };
        }
        // a pod that comes to a node with such taints, or whose tolerations changed there
        let Some(node) = pod_node(object).filter(|_| !object.is_deleting()) else { return Vec::new() };
        let key = Key::of::<Node>("", node);
        if disconnect::is_written_off(object) && pods::is_ready(object) {
            return vec![key];
        }
        let tainted = world.get(&key).is_some_and(|node| !driving(node).is_empty());
        let news = tainted && previous.is_none_or(|previous| state::spec_differs(&previous.value(), &object.value()));
        if news { vec![key] } else { Vec::new() }
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let Some(node) = cx.world.get(key).cloned() else { return Outcome::default() };
        let taints = driving(&node);
        let mut pods: Vec<Arc<Object>> =
            cx.world.pods_on(&key.name).filter(|pod| pods::is_active(pod)).cloned().collect();
        pods.sort_by(|a, b| a.key().cmp(b.key()));
        let mut outcome = Outcome::default();
        if node::ready(&node) == Some("True") {
            take_back(cx, &node, &pods, &mut outcome);
        }
        if taints.is_empty() {
            return outcome;
        }
        let is_silent = taints.iter().any(|taint| taint.key == UNREACHABLE);
        for pod in pods {
            let policy = Policy::of(&pod, cx.world);
            if is_silent {
                outcome.writes.extend(complain(cx, &pod));
            }
            match leaves_at(&pod, &policy, &taints, self.started_at, cx.now) {
                Some(at) if at > cx.now => ask_again(&mut outcome, at),
                Some(_) if is_silent && policy.keep != Keep::Replacement => {
                    outcome.writes.extend(write_off(cx, &pod, &key.name));
                }
                Some(_) => outcome.writes.extend(evict(cx, &pod)),
                None => {}
            }
        }
        outcome
    }
}

fn ask_again(outcome: &mut Outcome, at: Timestamp) {
    outcome.again_at = Some(outcome.again_at.map_or(at, |earlier| earlier.min(at)));
}

/// Counts the pods of a node that is back: those that are well at once, the others after a while.
fn take_back(cx: &Cx<'_>, node: &Object, pods: &[Arc<Object>], outcome: &mut Outcome) {
    let patience = SignedDuration::from_secs(RECONNECT_SECONDS);
    let until = node::ready_since(node).and_then(|at| at.checked_add(patience).ok()).filter(|until| *until > cx.now);
    for pod in pods.iter().filter(|pod| disconnect::is_written_off(pod)) {
        match until.filter(|_| !pods::is_ready(pod)) {
            Some(until) => ask_again(outcome, until),
            None => outcome.writes.extend(disconnect::take_back(pod, cx.now).map(|value| Write::update(pod, value))),
        }
    }
}

/// Lets a pod run on where it is, and no longer counts it.
fn write_off(cx: &mut Cx<'_>, pod: &Object, node: &str) -> Vec<Write> {
    let Some(value) = disconnect::write_off(pod, node, cx.now) else { return Vec::new() };
    let message =
        format!("Node {node} is silent: replacing Pod {}/{}, which is kept", pod.key().namespace, pod.key().name);
    let told = record::event(cx.world, &mut cx.stamp, pod, &Note::normal(NAME, "Disconnected", &message));
    vec![Write::update(pod, value), told]
}

/// Tells once of a word in a pod's annotations that is not known.
fn complain(cx: &mut Cx<'_>, pod: &Object) -> Option<Write> {
    let (name, text) = disconnect::unknown(pod)?;
    let message = format!("annotation {name}: {text:?} is not known, and counts as not said");
    let note = Note::warning(NAME, "InvalidDisconnectPolicy", &message);
    let write = record::event(cx.world, &mut cx.stamp, pod, &note);
    (write.expect == Expect::Absent).then_some(write)
}

/// The taints of a node that drive pods out.
fn driving(node: &Object) -> Vec<Taint> {
    let taints = node.view::<Node>().and_then(|node| node.spec.as_ref()?.taints.as_ref());
    taints.into_iter().flatten().filter(|taint| taint.effect == "NoExecute").cloned().collect()
}

fn pod_node(object: &Object) -> Option<&str> {
    object.view::<Pod>()?.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}

/// When a pod must leave; `None` if it may stay for ever. Of each taint the first toleration that covers it counts.
fn leaves_at(
    pod: &Object,
    policy: &Policy,
    taints: &[Taint],
    started_at: Timestamp,
    now: Timestamp,
) -> Option<Timestamp> {
    let view = pod.view::<Pod>()?;
    let tolerations = view.spec.as_ref()?.tolerations.as_deref().unwrap_or_default();
    let came = bound_at(view).or(pod.meta().creation_timestamp).unwrap_or(Timestamp::MIN).max(started_at);
    let since = |taint: &Taint| taint.time_added.as_ref().map_or(came, |time| time.0.max(came));
    let leave = |taint: &Taint| {
        if taint.key == UNREACHABLE {
            if !policy.replace {
                return None;
            }
            if let Some(after) = policy.after {
                return since(taint).checked_add(after).ok();
            }
        }
        let Some(covering) = tolerations.iter().find(|toleration| tolerates(toleration, taint)) else {
            return Some(now);
        };
        let seconds = covering.toleration_seconds?;
        since(taint).checked_add(SignedDuration::from_secs(seconds.max(0))).ok()
    };
    taints.iter().filter_map(leave).min()
}

/// When a pod was given its node.
fn bound_at(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let scheduled =
        conditions.iter().find(|condition| condition.type_ == "PodScheduled" && condition.status == "True")?;
    scheduled.last_transition_time.as_ref().map(|time| time.0)
}

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (key, effect, operator) = (text(&toleration.key), text(&toleration.effect), text(&toleration.operator));
    let value = || text(&toleration.value) == text(&taint.value);
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && (operator == "Exists" || (matches!(operator.as_str(), "" | "Equal") && value()))
}

fn evict(cx: &mut Cx<'_>, pod: &Object) -> Vec<Write> {
    let mut value = pod.value();
    pods::disrupt(&mut value, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint", cx.now);
    let told = Object::encode(pod.key().resource.clone(), pod.revision(), value);
    let write = told.ok().and_then(|told| Write::delete_gracefully(&told, Deletion::default(), cx.now));
    let Some(write) = write else { return Vec::new() };
    let message = format!("Marking for deletion Pod {}/{}", pod.key().namespace, pod.key().name);
    vec![write, record::event(cx.world, &mut cx.stamp, pod, &Note::normal(NAME, "TaintManagerEviction", &message))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::Sandbox;

    /// Seconds after the start at which a pod with these tolerations leaves a node that was tainted then.
    fn leaves(started_at: &str, tolerations: &str, taints: &str, status: &str) -> Option<i64> {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut sandbox = Sandbox::new(Vec::new());
        sandbox.apply(&format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: n}}, spec: {{taints: [{taints}]}}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: p, namespace: default}}, spec: {{nodeName: n, tolerations: [{tolerations}]}}, status: {{{status}}}}}"
        ));
        let node = sandbox.world.get(&Key::of::<Node>("", "n")).unwrap();
        let pod = sandbox.world.get(&Key::of::<Pod>("default", "p")).unwrap();
        let policy = Policy { replace: true, after: None, keep: Keep::Replacement };
        let at = leaves_at(pod, &policy, &driving(node), started_at.parse().unwrap(), start)?;
        Some(at.as_second() - start.as_second())
    }

    #[test]
    fn a_pod_has_its_time() {
        let start = "2026-01-01T00:00:00Z";
        let gone = "{key: node.kubernetes.io/unreachable, effect: NoExecute, timeAdded: '2026-01-01T00:00:00Z'}";
        let other = "{key: a, value: b, effect: NoExecute, timeAdded: '2026-01-01T00:00:00Z'}";
        let cases = [
            ("", gone, Some(0)),
            ("{operator: Exists}", gone, None),
            ("{key: node.kubernetes.io/unreachable, operator: Exists, tolerationSeconds: 300}", gone, Some(300)),
            ("{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoSchedule}", gone, Some(0)),
            ("{key: node.kubernetes.io/unreachable, operator: Exists, tolerationSeconds: -5}", gone, Some(0)),
            // the first that covers it counts
            (
                "{operator: Exists}, {key: node.kubernetes.io/unreachable, operator: Exists, tolerationSeconds: 3}",
                gone,
                None,
            ),
            ("{operator: Exists, tolerationSeconds: 9}, {operator: Exists, tolerationSeconds: 3}", gone, Some(9)),
            ("{key: a, value: b}", other, None),
            ("{key: a, value: c}", other, Some(0)),
            ("{key: a, value: c}", "{key: a, value: b, effect: NoSchedule}", None),
        ];
        for (tolerations, taint, expected) in cases {
            assert_eq!(leaves(start, tolerations, taint, ""), expected, "{tolerations} {taint}");
        }
        let five = "{operator: Exists, tolerationSeconds: 300}";
        assert_eq!(leaves("2026-01-01T01:00:00Z", five, gone, ""), Some(3900));
        let late = "conditions: [{type: PodScheduled, status: 'True', lastTransitionTime: '2026-01-01T00:10:00Z'}]";
        assert_eq!(leaves(start, five, gone, late), Some(900));
        let two = format!("{gone}, {other}");
        let tolerations =
            "{key: a, operator: Exists, tolerationSeconds: 7}, {operator: Exists, tolerationSeconds: 300}";
        assert_eq!(leaves(start, tolerations, &two, ""), Some(7));
    }
}
