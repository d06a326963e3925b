//! A namespace that is asked to go takes its content with it: everything in it is deleted first, then the finalizer
//! `kubernetes` of its spec, which held it, is removed.

use crate::{Controller, Cx, Outcome, edit};
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus};
use state::{Change, Deletion, Event, Key, Object, World, Write};
use std::collections::BTreeMap;

/// The finalizer in `spec.finalizers` that is this controller's.
const FINALIZER: &str = "kubernetes";
/// Objects deleted in one pass.
const DELETIONS_MAX: usize = 500;

/// The controller.
pub struct Namespaces;

impl Controller for Namespaces {
    fn name(&self) -> &'static str {
        "namespace-controller"
    }

    fn wakes(&self, event: &Event, world: &World) -> Vec<Key> {
        let key = event.key();
        if key.is::<Namespace>() {
            return if event.object.is_deleting() { vec![key.clone()] } else { Vec::new() };
        }
        // what comes, goes, or is let go in a namespace that is going
        let finalizers = |object: &Object| object.meta().finalizers.clone();
        let same = event.previous.as_ref().is_some_and(|before| finalizers(before) == finalizers(&event.object));
        if key.namespace.is_empty() || (event.change == Change::Modified && same) {
            return Vec::new();
        }
        let namespace = Key::of::<Namespace>("", &key.namespace);
        let going = world.get(&namespace).is_some_and(|namespace| namespace.is_deleting());
        if going { vec![namespace] } else { Vec::new() }
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let Some(object) = cx.world.get(key).filter(|object| object.is_deleting()).cloned() else {
            return Outcome::default();
        };
        let mut remaining: BTreeMap<String, usize> = BTreeMap::new();
        let mut finalizers: BTreeMap<String, usize> = BTreeMap::new();
        let mut writes = Vec::new();
        for item in cx.world.resources().flat_map(|resource| cx.world.list(resource, Some(&key.name))) {
            let write = Write::delete_gracefully(item, Deletion::default(), cx.now);
            let stays = write.as_ref().is_none_or(|write| write.value.is_some());
            if stays {
                *remaining.entry(item.key().resource.to_string()).or_insert(0) += 1;
                for finalizer in &item.meta().finalizers {
                    *finalizers.entry(finalizer.clone()).or_insert(0) += 1;
                }
            }
            // one that is on its way stays on its way
            if let Some(write) = write.filter(|_| !item.is_deleting()) {
                writes.push(write);
            }
            if writes.len() == DELETIONS_MAX {
                return Outcome { writes, again_at: None };
            }
        }
        if remaining.is_empty() && writes.is_empty() {
            writes.push(release(&object));
        } else {
            writes.extend(report(cx, &object, &remaining, &finalizers));
        }
        Outcome { writes, again_at: None }
    }
}

/// Takes our finalizer off, which deletes the namespace unless somebody else holds it too.
fn release(object: &Object) -> Write {
    let mut value = object.value();
    if let Some(finalizers) = value["spec"]["finalizers"].as_array_mut() {
        finalizers.retain(|finalizer| finalizer != FINALIZER);
    }
    Write::update(object, value)
}

/// Says what the namespace still waits for.
fn report(
    cx: &Cx<'_>,
    object: &Object,
    remaining: &BTreeMap<String, usize>,
    finalizers: &BTreeMap<String, usize>,
) -> Option<Write> {
    let old = object.view::<Namespace>()?.status.clone().unwrap_or_default();
    let list = |counts: &BTreeMap<String, usize>, word: &str| {
        let parts: Vec<String> =
            counts.iter().map(|(what, count)| format!("{what}{word} {count} resource instances")).collect();
        parts.join(", ")
    };
    let content = match remaining.is_empty() {
        true => ("False", "ContentRemoved", "All content successfully removed".to_owned()),
        false => {
            let list = list(remaining, ". has");
            ("True", "SomeResourcesRemain", format!("Some resources are remaining: {list}"))
        }
    };
    let held = match finalizers.is_empty() {
        true => ("False", "ContentHasNoFinalizers", "All content-preserving finalizers finished".to_owned()),
        false => {
            let list = list(finalizers, " in");
            ("True", "SomeFinalizersRemain", format!("Some content in the namespace has finalizers remaining: {list}"))
        }
    };
    let deleted = "All content successfully deleted, may be waiting on finalization".to_owned();
    let wanted = [
        (
            "NamespaceDeletionDiscoveryFailure",
            ("False", "ResourcesDiscovered", "All resources successfully discovered".into()),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            ("False", "ParsedGroupVersions", "All legacy kube types successfully parsed".into()),
        ),
        ("NamespaceDeletionContentFailure", ("False", "ContentDeleted", deleted)),
        ("NamespaceContentRemaining", content),
        ("NamespaceFinalizersRemaining", held),
    ];
    let condition = |(type_, (status, reason, message)): (&str, (&str, &str, String))| {
        let before = old.conditions.iter().flatten().find(|old| old.type_ == type_ && old.status == status);
        NamespaceCondition {
            type_: type_.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: before
                .and_then(|old| old.last_transition_time.clone())
                .or_else(|| Some(edit::time(cx.now))),
        }
    };
    let status = NamespaceStatus {
        phase: Some("Terminating".into()),
        conditions: Some(wanted.into_iter().map(condition).collect()),
    };
    edit::status(object, &status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::Sandbox;
    use expect_test::expect;
    use k8s_openapi::api::core::v1::{ConfigMap, Pod};

    #[test]
    fn a_namespace_goes_after_its_content() {
        let mut sandbox = Sandbox::new(vec![Box::new(Namespaces)]);
        sandbox.apply(
            "
{apiVersion: v1, kind: Namespace, metadata: {name: shop}, spec: {finalizers: [kubernetes]}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: shop}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: held, namespace: shop, finalizers: [example.com/hold]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: shop}, spec: {nodeName: a}, status: {phase: Running}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: other, namespace: shop2}}
",
        );
        let key = Key::of::<Namespace>("", "shop");
        sandbox.settle().delete(&key, Deletion::default()).settle();
        let value = sandbox.world.get(&key).unwrap().value();
        let messages: Vec<&str> = value["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|condition| condition["status"] == "True")
            .map(|condition| condition["message"].as_str().unwrap())
            .collect();
        expect![[r#"
            Some resources are remaining: configmaps. has 1 resource instances, pods. has 1 resource instances
            Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances
        "#]]
        .assert_eq(&(messages.join("\n") + "\n"));
        sandbox.run_pods();
        sandbox.settle();
        assert!(sandbox.world.get(&Key::of::<Pod>("shop", "p")).is_none());
        sandbox.edit(&Key::of::<ConfigMap>("shop", "held"), |value| {
            value["metadata"]["finalizers"] = serde_json::json!([]);
        });
        sandbox.settle();
        assert!(sandbox.world.get(&key).is_none());
        assert!(sandbox.world.get(&Key::of::<ConfigMap>("shop2", "other")).is_some());
    }
}
