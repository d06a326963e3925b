//! For tests: a cluster of controllers without a body. Writes are folded as the executor would, until all is quiet.

use crate::{Controller, Cx};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use state::{Change, Event, Expect, Identities, Key, Object, Revision, Stamp, World, Write};
use std::collections::VecDeque;
use std::sync::Arc;

/// Identities that count.
pub(crate) struct Counting(pub(crate) u64);

impl Identities for Counting {
    fn next(&mut self) -> u64 {
        self.0 += 1;
        self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// A world, the controllers that look after it, and what they did.
pub(crate) struct Sandbox {
    pub(crate) world: World,
    pub(crate) now: Timestamp,
    pub(crate) log: Vec<String>,
    controllers: Vec<Box<dyn Controller>>,
    identities: Counting,
    queue: VecDeque<(usize, Key)>,
    timers: Vec<(Timestamp, usize, Key)>,
}

impl Sandbox {
    pub(crate) fn new(controllers: Vec<Box<dyn Controller>>) -> Self {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let (queue, timers) = (VecDeque::new(), Vec::new());
        Self { world: World::default(), now, log: Vec::new(), controllers, identities: Counting(0), queue, timers }
    }

    /// Creates or replaces the objects of a YAML text, as a client would.
    pub(crate) fn apply(&mut self, yaml: &str) -> &mut Self {
        for document in serde_yaml::Deserializer::from_str(yaml) {
            let mut value: Value = serde::Deserialize::deserialize(document).unwrap();
            let resource = resource(&value);
            let text = |field: &str| value["metadata"][field].as_str().unwrap_or("").to_owned();
            let key = Key::new(resource, &text("namespace"), &text("name"));
            let write = match self.world.get(&key).cloned() {
                Some(old) => {
                    let (new, mut merged) = (value, old.value());
                    for (field, part) in new.as_object().unwrap() {
                        match field.as_str() {
                            "metadata" => part.as_object().unwrap().iter().for_each(|(field, part)| {
                                merged["metadata"][field] = part.clone();
                            }),
                            _ => merged[field] = part.clone(),
                        }
                    }
                    Write::update(&old, merged)
                }
                None => {
                    let mut stamp = Stamp { now: self.now, identities: &mut self.identities };
                    stamp.complete(&mut value, true);
                    Write::create(key, value)
                }
            };
            self.commit(&write);
        }
        self
    }

    /// Edits one object.
    pub(crate) fn edit(&mut self, key: &Key, edit: impl FnOnce(&mut Value)) -> &mut Self {
        let old = self.world.get(key).unwrap().clone();
        let mut value = old.value();
        edit(&mut value);
        self.commit(&Write::update(&old, value));
        self
    }

    /// Deletes one object, as a client would.
    pub(crate) fn delete(&mut self, key: &Key, how: state::Deletion) -> &mut Self {
        let old = self.world.get(key).unwrap().clone();
        if let Some(write) = Write::delete_gracefully(&old, how, self.now) {
            self.commit(&write);
        }
        self
    }

    /// Lets time pass, ringing what it rings.
    pub(crate) fn pass(&mut self, seconds: i64) -> &mut Self {
        self.now += SignedDuration::from_secs(seconds);
        let now = self.now;
        let (due, later) = std::mem::take(&mut self.timers).into_iter().partition(|(at, ..)| *at <= now);
        self.timers = later;
        for (_, controller, key) in due as Vec<(Timestamp, usize, Key)> {
            self.queue.push_back((controller, key));
        }
        self.settle()
    }

    /// Asks until all is quiet; then asks about everything once more, which must change nothing.
    pub(crate) fn settle(&mut self) -> &mut Self {
        self.drain();
        let before = self.world.revision();
        let events: Vec<Event> = self
            .world
            .iter()
            .map(|object| Event {
                revision: object.revision(),
                change: Change::Added,
                object: object.clone(),
                previous: None,
            })
            .collect();
        for event in &events {
            self.wake(event);
        }
        self.drain();
        assert_eq!(before, self.world.revision(), "a settled world changed again: {:#?}", self.log);
        self
    }

    fn drain(&mut self) {
        for _ in 0..20_000 {
            let Some((controller, key)) = self.queue.pop_front() else { return };
            let stamp = Stamp { now: self.now, identities: &mut self.identities };
            let mut cx = Cx { world: &self.world.clone(), now: self.now, stamp };
            let outcome = self.controllers[controller].reconcile(&mut cx, &key);
            let mut written: Vec<&Key> = outcome.writes.iter().map(|write| &write.key).collect();
            written.sort();
            assert!(written.windows(2).all(|pair| pair[0] != pair[1]), "one key written twice: {:?}", outcome.writes);
            for write in &outcome.writes {
                self.commit(write);
            }
            if let Some(at) = outcome.again_at {
                assert!(at > self.now, "again_at must lie ahead: {key}");
                self.timers.push((at, controller, key));
            }
        }
        panic!("never quiet: {:#?}", &self.log[self.log.len() - 40..]);
    }

    fn wake(&mut self, event: &Event) {
        for (index, controller) in self.controllers.iter().enumerate() {
            for key in controller.wakes(event, &self.world) {
                if !self.queue.contains(&(index, key.clone())) {
                    self.queue.push_back((index, key));
                }
            }
        }
    }

    /// Commits as the store does, preconditions included.
    pub(crate) fn commit(&mut self, write: &Write) {
        let previous = self.world.get(&write.key).cloned();
        match (&write.expect, &previous) {
            (Expect::Absent, None) => {}
            (Expect::At(revision), Some(old)) => assert_eq!(*revision, old.revision(), "{}", write.key),
            (Expect::Uid(uid), Some(old)) => assert_eq!(*uid, old.meta().uid),
            other => panic!("{}: {other:?}", write.key),
        }
        let revision = Revision(self.world.revision().0 + 1);
        let (change, object) = match (&write.value, &previous) {
            (Some(value), previous) => {
                let object = Object::encode(write.key.resource.clone(), revision, value.clone()).unwrap();
                assert_eq!(*object.key(), write.key);
                (if previous.is_some() { Change::Modified } else { Change::Added }, Arc::new(object))
            }
            (None, Some(old)) => (Change::Deleted, old.at(revision)),
            (None, None) => panic!("{} is not there", write.key),
        };
        let event = Event { revision, change, object, previous };
        self.note(&event);
        self.world.fold(&event);
        self.wake(&event);
    }

    fn note(&mut self, event: &Event) {
        let value = event.object.value();
        if value["kind"] == "Event" {
            self.log.push(format!(
                "event {}: {}",
                value["reason"].as_str().unwrap_or(""),
                value["message"].as_str().unwrap_or("")
            ));
        } else {
            self.log.push(format!("{:?} {}", event.change, event.key()));
        }
    }

    /// The messages of the events told since the last call.
    pub(crate) fn told(&mut self) -> Vec<String> {
        let told = self.log.iter().filter_map(|line| line.strip_prefix("event ").map(str::to_owned)).collect();
        self.log.clear();
        told
    }

    /// The objects of a kind, as values.
    pub(crate) fn values<T: k8s_openapi::Resource>(&self) -> Vec<Value> {
        self.world.all::<T>(None).map(|object| object.value()).collect()
    }

    /// Binds pods that are not bound, and makes bound ones run and be ready; finishes deletions: what a node does.
    pub(crate) fn run_pods(&mut self) -> bool {
        let pods: Vec<Arc<Object>> = self.world.all::<k8s_openapi::api::core::v1::Pod>(None).cloned().collect();
        let before = self.world.revision();
        for pod in pods {
            let mut value = pod.value();
            if pod.is_deleting() {
                value["metadata"]["deletionGracePeriodSeconds"] = 0.into();
                if value["status"]["phase"] == "Running" {
                    value["status"]["phase"] = "Succeeded".into();
                }
                if value != pod.value() {
                    self.commit(&Write::update(&pod, value));
                }
            } else if value["status"]["phase"] == "Pending" {
                let number = pod.meta().uid.bytes().map(u32::from).sum::<u32>() % 200;
                value["spec"]["nodeName"] = "node-a".into();
                value["status"]["phase"] = "Running".into();
                value["status"]["podIP"] = format!("10.42.0.{number}").into();
                value["status"]["podIPs"] = serde_json::json!([{"ip": value["status"]["podIP"]}]);
                value["status"]["conditions"] = serde_json::json!([{"type": "Ready", "status": "True", "lastTransitionTime": self.now.to_string()}]);
                self.commit(&Write::update(&pod, value));
            }
        }
        before != self.world.revision()
    }

    /// Settles and runs pods until nothing changes any more.
    pub(crate) fn sail(&mut self) -> &mut Self {
        self.settle();
        for _ in 0..100 {
            if !self.run_pods() {
                return self;
            }
            self.settle();
        }
        panic!("never at rest");
    }
}

fn resource(value: &Value) -> manifests::Resource {
    let kind = value["kind"].as_str().unwrap();
    let group = value["apiVersion"].as_str().unwrap().rsplit_once('/').map_or("", |(group, _)| group);
    let plural = match kind {
        "Endpoints" => "endpoints".to_owned(),
        kind if kind.ends_with("ss") => format!("{}es", kind.to_lowercase()),
        kind if kind.ends_with('y') => format!("{}ies", kind.to_lowercase().trim_end_matches('y')),
        kind => format!("{}s", kind.to_lowercase()),
    };
    manifests::Resource::new(group, plural)
}
