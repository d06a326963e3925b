//! What becomes of a pod whose node is only silent: may it be replaced, after how long, and which copy stays when the node is
//! back.
//!
//! A silent node's pods most likely run on. So nobody replaces what could not run elsewhere, what must not run twice, and what
//! nobody would make again; the rest is replaced as Kubernetes does it. Annotations of the pod say otherwise, and a label of the
//! Node says it for all of its pods. Deliberately absent: the eviction itself ([`crate::eviction`]) and when a node counts as
//! silent ([`crate::node`]).

use crate::pods;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use serde_json::{Value, json};
use state::{Key, Object, World, rfc3339, storage};

/// Annotation of a pod, or label of a Node for its pods: `stay` or `replace`.
pub const DISCONNECT: &str = "coracle.dev/disconnect";
/// Annotation of a pod: how long a silence may last before it is replaced, `10m`. In place of the toleration's seconds.
pub const AFTER: &str = "coracle.dev/disconnect-after";
/// Annotation of a pod: which copy stays, `keep-replacement`, `keep-original` or `longest-running`.
pub const RECONNECT: &str = "coracle.dev/reconnect";
/// Condition of a pod that is replaced although it may run on. `False` once it is back.
const DISCONNECTED: &str = "coracle.dev/Disconnected";
/// What every pod tolerates a silent node for, unless it says otherwise ([`state::admission`]).
const TOLERATION_SECONDS: i64 = 300;
/// A copy that is back counts as such for so long; then it is a pod like any other.
const RETURN_SECONDS: i64 = 600;

/// What may be done about a pod of a silent node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether it may be replaced at all.
    pub replace: bool,
    /// After how long; `None`: as its tolerations say.
    pub after: Option<SignedDuration>,
    /// Which copy stays.
    pub keep: Keep,
}

/// Which copy stays when the node is back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The new one; the old one is asked to go as soon as it is given up.
    Replacement,
    /// The old one, if it is well.
    Original,
    /// The one that has run for longer.
    LongestRunning,
}

impl Policy {
    /// What holds for a pod.
    pub fn of(pod: &Object, world: &World) -> Self {
        let said = |name: &str| pod.meta().annotations.get(name).map(|text| text.trim());
        let after =
            said(AFTER).and_then(|text| text.parse::<SignedDuration>().ok()).filter(|after| !after.is_negative());
        let keep = match said(RECONNECT) {
            Some("keep-original") => Keep::Original,
            Some("longest-running") => Keep::LongestRunning,
            _ => Keep::Replacement,
        };
        let own = said(DISCONNECT).filter(|word| is_known(word));
        let replace = !must_stay(pod, world)
            && match own.or_else(|| of_node(pod, world)) {
                Some(word) => word == "replace",
                None => pod.controller().is_some() || after.is_some() || has_own_patience(pod),
            };
        // only of a set of equal pods can one stand for another
        let is_equal = pod.controller().is_some_and(|owner| owner.kind == "ReplicaSet");
        Self { replace, after, keep: if is_equal { keep } else { Keep::Replacement } }
    }
}

/// The annotation of a pod that is none of those that are known, and what it says.
pub fn unknown(pod: &Object) -> Option<(&'static str, &str)> {
    let said = |name: &'static str| pod.meta().annotations.get(name).map(|text| (name, text.trim()));
    let keeps = |word: &str| matches!(word, "keep-replacement" | "keep-original" | "longest-running");
    let is_time = |text: &str| text.parse::<SignedDuration>().is_ok_and(|time| !time.is_negative());
    let wrong = |name, is_right: &dyn Fn(&str) -> bool| said(name).filter(|(_, text)| !is_right(text));
    wrong(DISCONNECT, &is_known).or_else(|| wrong(AFTER, &is_time)).or_else(|| wrong(RECONNECT, &keeps))
}

fn is_known(word: &str) -> bool {
    matches!(word, "stay" | "replace")
}

fn of_node<'w>(pod: &Object, world: &'w World) -> Option<&'w str> {
    let node = pod.view::<Pod>()?.spec.as_ref()?.node_name.as_deref()?;
    let said = world.get(&Key::of::<Node>("", node))?.meta().labels.get(DISCONNECT)?;
    Some(said.as_str()).filter(|word| is_known(word))
}

/// Whether a pod could not run elsewhere, or must not while the old one may still run.
fn must_stay(pod: &Object, world: &World) -> bool {
    let Some(view) = pod.view::<Pod>() else { return false };
    let Some(spec) = &view.spec else { return false };
    let hostname = spec.node_selector.as_ref().is_some_and(|selector| selector.contains_key("kubernetes.io/hostname"));
    let is_stateful = pod.controller().is_some_and(|owner| owner.kind == "StatefulSet");
    hostname || is_stateful || storage::claim_keys(view).iter().any(|claim| is_for_one_node(claim, world))
}

/// Whether a claim's volume may be written by one node at a time, or lies on one.
fn is_for_one_node(claim: &Key, world: &World) -> bool {
    let Some(spec) =
        world.get(claim).and_then(|claim| claim.view::<PersistentVolumeClaim>()).and_then(|claim| claim.spec.as_ref())
    else {
        return false;
    };
    let is_shared = |mode: &String| matches!(mode.as_str(), "ReadWriteMany" | "ReadOnlyMany");
    !spec.access_modes.iter().flatten().any(is_shared)
}

/// Whether a pod's own words, and not the cluster's default, say how long it stays with a silent node.
fn has_own_patience(pod: &Object) -> bool {
    let tolerations = pod.view::<Pod>().and_then(|pod| pod.spec.as_ref()?.tolerations.as_ref());
    let said = tolerations.into_iter().flatten().find(|toleration| {
        toleration.key.as_deref() == Some("node.kubernetes.io/unreachable")
            && toleration.effect.as_deref().is_none_or(|effect| effect == "NoExecute")
    });
    said.is_none_or(|toleration| toleration.toleration_seconds.is_some_and(|seconds| seconds != TOLERATION_SECONDS))
}

/// Writes a pod off: it may run on, and does not count. `None` when it is already.
pub(crate) fn write_off(pod: &Object, node: &str, now: Timestamp) -> Option<Value> {
    if is_written_off(pod) {
        return None;
    }
    let mut value = pod.value();
    let message = format!("Node {node} is silent: the pod is replaced, and may run on");
    set(&mut value, "True", "NodeUnreachable", &message, now)?;
    Some(value)
}

/// Counts a pod again that was written off.
pub(crate) fn take_back(pod: &Object, now: Timestamp) -> Option<Value> {
    let mut value = pod.value();
    set(&mut value, "False", "NodeReturned", "The node is back", now)?;
    Some(value)
}

fn set(pod: &mut Value, status: &str, reason: &str, message: &str, now: Timestamp) -> Option<()> {
    let all = pod["status"].as_object_mut()?.entry("conditions").or_insert_with(|| json!([])).as_array_mut()?;
    all.retain(|condition| condition["type"] != DISCONNECTED);
    all.push(json!({
        "type": DISCONNECTED, "status": status, "reason": reason, "message": message, "lastTransitionTime": rfc3339(now),
    }));
    Some(())
}

fn condition(pod: &Object) -> Option<(&str, Option<Timestamp>)> {
    let conditions = pod.view::<Pod>()?.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|condition| condition.type_ == DISCONNECTED)?;
    Some((&condition.status, condition.last_transition_time.as_ref().map(|time| time.0)))
}

/// Whether a pod does not count because its node is silent.
pub(crate) fn is_written_off(pod: &Object) -> bool {
    condition(pod).is_some_and(|(status, _)| status == "True")
}

/// Which copy of those that are back, if any has just come back well, stays; `None`: none has.
pub(crate) fn returned(pod: &Object, now: Timestamp, world: &World) -> Option<Keep> {
    let (status, since) = condition(pod)?;
    let age = now.duration_since(since?);
    let is_recent = status == "False" && age < SignedDuration::from_secs(RETURN_SECONDS) && pods::is_ready(pod);
    is_recent.then(|| Policy::of(pod, world).keep)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Controller;
    use crate::eviction::Eviction;
    use crate::harness::Sandbox;
    use crate::replicaset::ReplicaSets;
    use k8s_openapi::api::core::v1::Event as Told;

    #[test]
    fn who_is_replaced() {
        let owned = "ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: r, uid: u, controller: true}]";
        let stateful = owned.replace("ReplicaSet", "StatefulSet");
        let default = "tolerations: [{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 300}]";
        let own = default.replace("300", "60");
        let says = |words: &str| format!("{owned}, annotations: {{{words}}}");
        let claim =
            |name: &str| format!("volumes: [{{name: v, persistentVolumeClaim: {{claimName: {name}}}}}], {default}");
        let cases = [
            (owned.to_owned(), default.to_owned(), true),
            (String::new(), default.to_owned(), false),
            (String::new(), own, true),
            (stateful, default.to_owned(), false),
            (says("coracle.dev/disconnect: stay"), default.to_owned(), false),
            (says("coracle.dev/disconnect: perhaps"), default.to_owned(), true),
            ("annotations: {coracle.dev/disconnect: replace}".into(), default.to_owned(), true),
            (
                says("coracle.dev/disconnect: replace"),
                format!("nodeSelector: {{kubernetes.io/hostname: n}}, {default}"),
                false,
            ),
            (says("coracle.dev/disconnect: replace"), claim("one"), false),
            (owned.to_owned(), claim("many"), true),
            (owned.to_owned(), format!("nodeName: site, {default}"), false),
            (says("coracle.dev/disconnect: replace"), format!("nodeName: site, {default}"), true),
        ];
        for (meta, spec, expected) in cases {
            let mut sandbox = Sandbox::new(Vec::new());
            sandbox.apply(&format!(
                "{{apiVersion: v1, kind: Node, metadata: {{name: site, labels: {{coracle.dev/disconnect: stay}}}}}}
---
{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: one, namespace: default}}, spec: {{accessModes: [ReadWriteOnce]}}}}
---
{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: many, namespace: default}}, spec: {{accessModes: [ReadWriteMany]}}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: p, namespace: default, {meta}}}, spec: {{{spec}}}}}"
            ));
            let pod = sandbox.world.get(&Key::of::<Pod>("default", "p")).unwrap();
            assert_eq!(Policy::of(pod, &sandbox.world).replace, expected, "{meta} {spec}");
        }
    }

    /// A set of one on a node that falls silent for ten minutes and comes back. Tells which pods there are: while it was
    /// silent, and in the end.
    fn silence(annotations: &str) -> (String, String, Vec<String>) {
        let started_at = "2025-12-31T00:00:00Z".parse().unwrap();
        let minds: Vec<Box<dyn Controller>> = vec![Box::new(ReplicaSets), Box::new(Eviction { started_at })];
        let mut sandbox = Sandbox::new(minds);
        let ready = "status: {conditions: [{type: Ready, status: 'True', lastTransitionTime: '2026-01-01T00:00:00Z'}]}";
        sandbox.apply(&format!("{{apiVersion: v1, kind: Node, metadata: {{name: node-a}}, spec: {{}}, {ready}}}"));
        sandbox.apply(&format!(
            "{{apiVersion: apps/v1, kind: ReplicaSet, metadata: {{name: r, namespace: default}}, spec: {{replicas: 1,
             selector: {{matchLabels: {{app: r}}}}, template: {{metadata: {{labels: {{app: r}}, annotations: {{{annotations}}}}},
             spec: {{containers: [{{name: a}}]}}}}}}}}"
        ));
        sandbox.sail();
        let original = sandbox.world.all::<Pod>(None).next().unwrap().key().clone();
        let started = |sandbox: &mut Sandbox| {
            for pod in sandbox.world.all::<Pod>(None).cloned().collect::<Vec<_>>() {
                let now = sandbox.now.to_string();
                sandbox.edit(pod.key(), |pod| {
                    if pod["status"]["startTime"].is_null() {
                        pod["status"]["startTime"] = now.into();
                    }
                });
            }
        };
        started(&mut sandbox);
        let node = Key::of::<Node>("", "node-a");
        let now = sandbox.now.to_string();
        let set_ready = |pod: &mut Value, status: &str| {
            let all = pod["status"]["conditions"].as_array_mut().unwrap();
            all.iter_mut().filter(|c| c["type"] == "Ready").for_each(|c| c["status"] = status.into());
        };
        sandbox.edit(&original, |pod| set_ready(pod, "False"));
        sandbox.edit(&node, |node| {
            set_ready(node, "Unknown");
            node["spec"]["taints"] =
                json!([{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "timeAdded": now}]);
        });
        sandbox.settle().pass(299).pass(1);
        // the replacement lands on another node
        for pod in sandbox.world.all::<Pod>(None).cloned().collect::<Vec<_>>() {
            if *pod.key() != original {
                sandbox.edit(pod.key(), |pod| {
                    pod["spec"]["nodeName"] = "node-b".into();
                    pod["status"]["phase"] = "Running".into();
                    pod["status"]["conditions"] =
                        json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:05:00Z"}]);
                });
            }
        }
        started(&mut sandbox);
        sandbox.settle();
        let show = |sandbox: &Sandbox| {
            let name = |pod: &std::sync::Arc<Object>| {
                let which = if *pod.key() == original { "original" } else { "replacement" };
                format!("{which}{}", if pod.is_deleting() { " going" } else { "" })
            };
            let mut names: Vec<String> = sandbox.world.all::<Pod>(None).map(name).collect();
            names.sort();
            names.join(", ")
        };
        let meanwhile = show(&sandbox);
        sandbox.pass(300);
        let back = sandbox.now.to_string();
        sandbox.edit(&node, |node| {
            set_ready(node, "True");
            node["status"]["conditions"][0]["lastTransitionTime"] = back.into();
            node["spec"] = json!({});
        });
        sandbox.settle();
        sandbox.edit(&original, |pod| set_ready(pod, "True")).settle();
        (meanwhile, show(&sandbox), sandbox.values::<Told>().iter().map(|told| told["reason"].to_string()).collect())
    }

    #[test]
    fn which_copy_stays() {
        let (keep, away) = ("coracle.dev/reconnect", "original, replacement");
        let cases = [
            (String::new(), "original going, replacement", "original going, replacement"),
            ("coracle.dev/disconnect: stay".into(), "original", "original"),
            ("coracle.dev/disconnect-after: 1h".into(), "original", "original"),
            (format!("{keep}: keep-replacement"), "original going, replacement", "original going, replacement"),
            (format!("{keep}: keep-original"), away, "original, replacement going"),
            (format!("{keep}: longest-running"), away, "original, replacement going"),
        ];
        for (annotations, meanwhile, after) in cases {
            let (seen, end, _) = silence(&annotations);
            assert_eq!((seen.as_str(), end.as_str()), (meanwhile, after), "{annotations}");
        }
        let (.., told) = silence("coracle.dev/disconnect: maybe");
        assert!(told.contains(&"\"InvalidDisconnectPolicy\"".to_owned()), "{told:?}");
    }
}
