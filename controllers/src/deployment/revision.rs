//! Versions: the ReplicaSet of the current template, the revisions of all, and how many old ones are kept.
//!
//! A ReplicaSet of the same template is recognised again, so an undo brings the old ReplicaSet back as the newest
//! revision, and notes the ones it had.

use super::template::{self, HASH_LABEL};
use super::{Pass, Set};
use crate::ownership;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use serde_json::{Value, json};
use state::{Key, Write};

/// Annotation: which version this is.
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
/// Annotation: which versions it was before.
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// Annotation: the Deployment's replicas when the size was decided.
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// Annotation: the most pods the Deployment might have then.
pub(super) const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of the Deployment that are its own.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "deprecated.deployment.rollback.to",
    REVISION,
    HISTORY,
    DESIRED,
    MAX,
];
/// Most characters of [`HISTORY`]; the oldest are dropped.
const HISTORY_CHARS_MAX: usize = 2000;
/// Kubernetes' default of `spec.revisionHistoryLimit`.
const HISTORY_LIMIT: i32 = 10;

impl Pass<'_, '_> {
    /// Finds the ReplicaSet of the current template: the oldest, if there are several.
    pub(super) fn find_new(&mut self) {
        let wanted = template::normal(&self.object.value()["spec"]["template"]);
        self.new = self.sets.iter().position(|set| template::normal(set.template()) == wanted);
    }

    /// The revision that the new ReplicaSet has or gets.
    fn next_revision(&self) -> i64 {
        self.old().map(|index| self.sets[index].revision()).max().unwrap_or(0) + 1
    }

    /// Keeps the new ReplicaSet, if there is one, in step: revision, annotations, `minReadySeconds`.
    pub(super) fn sync_new(&mut self) {
        let Some(new) = self.new else { return };
        let next = self.next_revision();
        let copied = self.copied_annotations();
        let set = &mut self.sets[new];
        for (key, text) in &copied {
            set.annotate(key, text);
        }
        let before = set.annotation(REVISION).map(str::to_owned);
        if set.revision() < next {
            set.annotate(REVISION, &next.to_string());
            if let Some(before) = before {
                let history = history(set.annotation(HISTORY), &before);
                set.annotate(HISTORY, &history);
            }
        }
        set.set_min_ready(self.spec.min_ready_seconds.unwrap_or(0));
        let (name, revision) = (set.name().to_owned(), set.revision());
        self.revision = Some(revision.to_string());
        if self.has_deadline() && self.condition("Progressing").is_none() {
            let message = format!("Found new replica set \"{name}\"");
            self.set_condition("Progressing", "True", "FoundNewReplicaSet", &message);
        }
    }

    /// Makes the ReplicaSet of the current template, of this size. A name taken by something else counts as a collision
    /// and is decided again after that is written down.
    pub(super) fn make_new(&mut self, size: i32) {
        let hash = template::hash(&self.object.value()["spec"]["template"], self.status.collision_count);
        let name = format!("{}-{hash}", self.object.meta().name);
        let namespace = self.object.key().namespace.clone();
        if self.cx.world.get(&Key::of::<ReplicaSet>(&namespace, &name)).is_some() {
            self.status.collision_count = Some(self.status.collision_count.unwrap_or(0).saturating_add(1));
            return;
        }
        let mut value = self.child(&name, &hash, size);
        let next = self.next_revision();
        self.cx.stamp.complete(&mut value, true);
        let mut set = Set::made(value);
        set.annotate(REVISION, &next.to_string());
        set.annotate_sizes(self.replicas, self.replicas.saturating_add(self.max_surge()));
        self.sets.push(set);
        self.new = Some(self.sets.len() - 1);
        self.revision = Some(next.to_string());
        if self.has_deadline() {
            let message = format!("Created new replica set \"{name}\"");
            self.set_condition("Progressing", "True", "NewReplicaSetCreated", &message);
        }
        if size > 0 {
            self.tell("ScalingReplicaSet", &format!("Scaled up replica set {name} from 0 to {size}"));
        }
    }

    fn child(&self, name: &str, hash: &str, size: i32) -> Value {
        let deployment = self.object.value();
        let mut template = deployment["spec"]["template"].clone();
        let mut selector = deployment["spec"]["selector"].clone();
        label(&mut template["metadata"]["labels"], hash);
        label(&mut selector["matchLabels"], hash);
        let annotations: Value = self.copied_annotations().into_iter().collect();
        let mut value = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {
                "name": name, "namespace": self.object.meta().namespace,
                "labels": template["metadata"]["labels"], "annotations": annotations,
                "ownerReferences": [ownership::reference::<Deployment>(self.object)],
            },
            "spec": {"replicas": size, "selector": selector, "template": template},
            "status": {"replicas": 0},
        });
        if let Some(seconds) = self.spec.min_ready_seconds.filter(|seconds| *seconds != 0) {
            value["spec"]["minReadySeconds"] = seconds.into();
        }
        value
    }

    fn copied_annotations(&self) -> Vec<(String, String)> {
        let own = self.object.meta().annotations.iter();
        own.filter(|(key, _)| !NOT_COPIED.contains(&key.as_str())).map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    /// Deletes the oldest revisions beyond `spec.revisionHistoryLimit`, except what still has pods.
    pub(super) fn clean_up(&mut self) {
        let limit = self.spec.revision_history_limit.unwrap_or(HISTORY_LIMIT);
        let mut old: Vec<&Set> = self.old().map(|index| &self.sets[index]).collect();
        old.retain(|set| set.object().is_some_and(|object| !object.is_deleting()));
        let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        old.sort_by_key(|set| set.revision());
        let gone: Vec<_> =
            old.into_iter().take(surplus).filter(|set| set.is_idle()).filter_map(|set| set.object().cloned()).collect();
        for object in gone {
            let write = Write::delete_gracefully(&object, state::Deletion::default(), self.cx.now);
            self.writes.extend(write);
            self.sets.retain(|set| set.name() != &*object.key().name);
        }
        self.find_new();
    }
}

fn label(labels: &mut Value, hash: &str) {
    match labels {
        Value::Object(labels) => drop(labels.insert(HASH_LABEL.into(), hash.into())),
        other => *other = json!({HASH_LABEL: hash}),
    }
}

/// One more revision at the end of a list, the oldest dropped when it grows too long.
fn history(list: Option<&str>, revision: &str) -> String {
    let mut text = list.filter(|list| !list.is_empty()).map_or(String::new(), |list| format!("{list},"));
    text.push_str(revision);
    while text.len() > HISTORY_CHARS_MAX {
        match text.split_once(',') {
            Some((_, rest)) => text = rest.to_owned(),
            None => break,
        }
    }
    text
}
