//! A Deployment runs replicas of a pod template through ReplicaSets, one per version of the template, and moves from one
//! to the next at a controlled rate.
//!
//! The new ReplicaSet (the one of the current template) grows while the old ones shrink ([`rolling`]), or grows after they
//! are gone (Recreate); a change of `spec.replicas` alone is spread over all ([`scaling`]). Which ReplicaSet is which
//! version, and how history is kept: [`revision`]. What is told about it: [`status`].

mod revision;
mod rolling;
mod scaling;
mod set;
mod status;
mod template;

use crate::{Controller, Cx, Outcome, ownership};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStatus, ReplicaSet};
use serde_json::Value;
use set::Set;
use state::record::{self, Note};
use state::{Change, Event, Key, Object, World, Write, selects};
use std::sync::Arc;

/// Name as the source of events.
const NAME: &str = "deployment-controller";

/// The controller.
pub struct Deployments;

impl Controller for Deployments {
    fn name(&self) -> &'static str {
        NAME
    }

    fn wakes(&self, event: &Event, _world: &World) -> Vec<Key> {
        if event.key().is::<Deployment>() {
            return vec![event.key().clone()];
        }
        if !event.key().is::<ReplicaSet>() {
            return Vec::new();
        }
        let mut keys = ownership::controllers_of::<Deployment>(event);
        // a ReplicaSet that nobody controls is asked about itself: somebody may want it
        if event.change != Change::Deleted && event.object.controller().is_none() {
            keys.push(event.key().clone());
        }
        keys
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let Some(object) = cx.world.get(key).cloned() else { return Outcome::default() };
        if key.is::<ReplicaSet>() {
            return Outcome { writes: adopt(cx.world, &object), again_at: None };
        }
        let deployment = object.view::<Deployment>();
        match deployment.and_then(|deployment| Some((deployment.spec.as_ref()?, deployment.status.clone()))) {
            Some((spec, status)) => Pass::new(cx, &object, spec, status.unwrap_or_default()).run(),
            None => Outcome::default(),
        }
    }
}

/// Gives a ReplicaSet that nobody controls to the first Deployment of its namespace whose selector matches.
fn adopt(world: &World, set: &Object) -> Vec<Write> {
    if set.controller().is_some() || set.is_deleting() {
        return Vec::new();
    }
    let wants = |deployment: &&Arc<Object>| {
        let spec = deployment.view::<Deployment>().and_then(|deployment| deployment.spec.as_ref());
        !deployment.is_deleting() && spec.is_some_and(|spec| selects(&spec.selector, &set.meta().labels))
    };
    let mut deployments = world.all::<Deployment>(Some(&set.key().namespace));
    deployments.find(wants).map(|deployment| ownership::adopt::<Deployment>(set, deployment)).into_iter().collect()
}

/// One look at one Deployment.
struct Pass<'a, 'b> {
    cx: &'a mut Cx<'b>,
    object: &'a Object,
    spec: &'a DeploymentSpec,
    /// Desired replicas.
    replicas: i32,
    /// The status as it becomes.
    status: DeploymentStatus,
    /// The revision that the Deployment is at, when it must be written down.
    revision: Option<String>,
    /// Its ReplicaSets as they become, oldest first.
    sets: Vec<Set>,
    /// Which of them is of the current template.
    new: Option<usize>,
    /// Adoptions, deletions and events.
    writes: Vec<Write>,
}

impl<'a, 'b> Pass<'a, 'b> {
    fn new(cx: &'a mut Cx<'b>, object: &'a Object, spec: &'a DeploymentSpec, status: DeploymentStatus) -> Self {
        let replicas = spec.replicas.unwrap_or(1);
        Self { cx, object, spec, replicas, status, revision: None, sets: Vec::new(), new: None, writes: Vec::new() }
    }

    fn run(mut self) -> Outcome {
        self.claim();
        self.find_new();
        let mut again_at = None;
        if self.object.is_deleting() {
            self.count();
            return self.outcome(None);
        }
        self.note_paused();
        let paused = self.spec.paused == Some(true);
        if paused || self.is_scaled() {
            self.sync_new();
            self.scale();
            if paused {
                self.clean_up();
            }
            self.count();
        } else {
            match self.is_recreate() {
                true => self.recreate(),
                false => self.roll(),
            }
            again_at = self.progress();
        }
        self.outcome(again_at)
    }

    fn is_recreate(&self) -> bool {
        self.spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
    }

    /// Collects the ReplicaSets. Adopts at the first look; later, one that nobody controls comes with its own event.
    fn claim(&mut self) {
        let (world, meta) = (self.cx.world, self.object.meta());
        for set in ownership::children::<ReplicaSet>(world, self.object) {
            if selects(&self.spec.selector, &set.meta().labels) {
                self.sets.push(Set::of(set.clone()));
            } else if !self.object.is_deleting() {
                self.writes.push(ownership::release(set, &meta.uid));
            }
        }
        if self.status.observed_generation.is_none() && !self.object.is_deleting() {
            for set in ownership::orphans::<ReplicaSet>(world, &self.object.key().namespace) {
                if selects(&self.spec.selector, &set.meta().labels) {
                    let mut adopted = Set::of(set.clone());
                    adopted.own(ownership::reference::<Deployment>(self.object));
                    self.sets.push(adopted);
                }
            }
        }
        self.sets.sort_by(|a, b| (a.created_at(), a.name()).cmp(&(b.created_at(), b.name())));
    }

    /// Sets the size of a ReplicaSet; says whether that is a change. The sizes of the Deployment it was decided for are
    /// noted with it.
    fn resize(&mut self, index: usize, size: i32) -> bool {
        let max = self.replicas.saturating_add(self.max_surge());
        let set = &mut self.sets[index];
        set.annotate_sizes(self.replicas, max);
        let before = set.replicas();
        if before == size {
            return false;
        }
        set.resize(size);
        let way = if size > before { "up" } else { "down" };
        let message = format!("Scaled {way} replica set {} from {before} to {size}", set.name());
        self.tell("ScalingReplicaSet", &message);
        true
    }

    fn tell(&mut self, reason: &str, message: &str) {
        let note = Note::normal(NAME, reason, message);
        self.writes.push(record::event(self.cx.world, &mut self.cx.stamp, self.object, &note));
    }

    /// Indexes of the ReplicaSets of earlier templates, oldest first.
    fn old(&self) -> impl Iterator<Item = usize> + use<> {
        let new = self.new;
        (0..self.sets.len()).filter(move |index| Some(*index) != new)
    }

    /// ReplicaSets first, then the Deployment's own status and revision.
    fn outcome(mut self, again_at: Option<Timestamp>) -> Outcome {
        let mut writes: Vec<Write> = self.sets.iter().filter_map(|set| set.write()).collect();
        writes.append(&mut self.writes);
        let before = self.object.value();
        let mut value = before.clone();
        value["status"] = serde_json::to_value(&self.status).unwrap_or(Value::Null);
        if let Some(revision) = &self.revision {
            crate::edit::annotate(&mut value, revision::REVISION, revision);
        }
        if value != before {
            writes.push(Write::update(self.object, value));
        }
        Outcome { writes, again_at }
    }
}

#[cfg(test)]
mod tests;
