//! Kubernetes Event objects (core/v1): what happened, told to people. Every part that has something to tell makes them
//! here, as ordinary writes.
//!
//! An event that says the same again is counted up in its object, not written anew: its name holds a hash of what it
//! says. Deliberately absent: rate limits (the caller tells changes, not states) and expiry (a controller's).

use crate::{Key, Object, Stamp, World, Write, rfc3339};
use k8s_openapi::api::core::v1;
use serde_json::{Value, json};

/// Longest object name kept in an event's name, so that name and hash fit a DNS subdomain.
const OBJECT_CHARS_MAX: usize = 253 - 17;

/// What is told about an object.
#[derive(Clone, Copy, Debug)]
pub struct Note<'a> {
    /// Whether it needs attention: type `Warning` instead of `Normal`.
    pub warning: bool,
    /// One word: `ScalingReplicaSet`.
    pub reason: &'a str,
    /// A sentence for people.
    pub message: &'a str,
    /// Who says it: `deployment-controller`, `kubelet`.
    pub component: &'a str,
    /// On which node it is said, if on one.
    pub host: Option<&'a str>,
    /// Which part of the object it concerns: `spec.containers{web}`.
    pub field_path: Option<&'a str>,
}

impl<'a> Note<'a> {
    /// Something that went as it should.
    pub fn normal(component: &'a str, reason: &'a str, message: &'a str) -> Self {
        Self { warning: false, reason, message, component, host: None, field_path: None }
    }

    /// Something that needs attention.
    pub fn warning(component: &'a str, reason: &'a str, message: &'a str) -> Self {
        Self { warning: true, ..Self::normal(component, reason, message) }
    }

    fn kind(&self) -> &'static str {
        if self.warning { "Warning" } else { "Normal" }
    }

    fn hash(&self, uid: &str) -> u64 {
        let parts = [
            uid,
            self.kind(),
            self.reason,
            self.message,
            self.component,
            self.host.unwrap_or(""),
            self.field_path.unwrap_or(""),
        ];
        fnv1a_64(parts.iter().flat_map(|part| part.bytes().chain([0])))
    }
}

/// The write that tells `note` about an object: a new Event, or one more count of the one that says the same.
pub fn event(world: &World, stamp: &mut Stamp<'_>, about: &Object, note: &Note<'_>) -> Write {
    let meta = about.meta();
    let object: String = meta.name.chars().take(OBJECT_CHARS_MAX).collect();
    let name = format!("{object}.{:016x}", note.hash(&meta.uid));
    // events of cluster-scoped objects live in the namespace "default", as in Kubernetes
    let namespace = meta.namespace.as_deref().unwrap_or("default");
    let key = Key::of::<v1::Event>(namespace, &name);
    match world.get(&key) {
        Some(old) => {
            let mut value = old.value();
            let count = value["count"].as_i64().unwrap_or(1);
            value["count"] = count.saturating_add(1).into();
            value["lastTimestamp"] = rfc3339(stamp.now).into();
            Write::update(old, value)
        }
        None => {
            let mut value = first(about, note, namespace, &name, stamp);
            stamp.complete(&mut value, false);
            Write::create(key, value)
        }
    }
}

fn first(about: &Object, note: &Note<'_>, namespace: &str, name: &str, stamp: &Stamp<'_>) -> Value {
    let head = about.value();
    let mut involved = json!({
        "apiVersion": head["apiVersion"], "kind": head["kind"], "name": about.meta().name,
        "uid": about.meta().uid, "resourceVersion": about.revision().to_string(),
    });
    if let Some(namespace) = &about.meta().namespace {
        involved["namespace"] = namespace.as_str().into();
    }
    if let Some(path) = note.field_path {
        involved["fieldPath"] = path.into();
    }
    let mut source = json!({"component": note.component});
    if let Some(host) = note.host {
        source["host"] = host.into();
    }
    let now = rfc3339(stamp.now);
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": involved, "type": note.kind(), "reason": note.reason, "message": note.message,
        "source": source, "reportingComponent": note.component, "reportingInstance": note.host.unwrap_or(""),
        "eventTime": null, "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    })
}

/// FNV-1a, 64 bits: a hash that stays the same over versions and machines, for names.
pub fn fnv1a_64(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Identities, Revision};
    use std::sync::Arc;

    struct Same;

    impl Identities for Same {
        fn next(&mut self) -> u64 {
            7
        }
    }

    #[test]
    fn the_same_said_again_is_counted() {
        let mut identities = Same;
        let mut stamp = Stamp { now: "2026-01-01T00:00:00.5Z".parse().unwrap(), identities: &mut identities };
        let pod =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "shop", "uid": "u"}});
        let pod = Object::encode(manifests::Resource::of::<v1::Pod>(), Revision(1), pod).unwrap();
        let mut world = World::default();
        let note =
            Note { field_path: Some("spec.containers{a}"), ..Note::warning("kubelet", "BackOff", "again and again") };
        let first = event(&world, &mut stamp, &pod, &note);
        let object = Object::encode(first.key.resource.clone(), Revision(2), first.value.unwrap()).unwrap();
        world.put(Arc::new(object));
        stamp.now = "2026-01-01T00:01:00Z".parse().unwrap();
        let second = event(&world, &mut stamp, &pod, &note);
        assert_eq!(second.key, first.key);
        let value = second.value.unwrap();
        assert_eq!((&value["count"], &value["type"]), (&json!(2), &json!("Warning")));
        assert_eq!(
            (&value["firstTimestamp"], &value["lastTimestamp"]),
            (&json!("2026-01-01T00:00:00Z"), &json!("2026-01-01T00:01:00Z"))
        );
        assert_eq!(value["involvedObject"]["fieldPath"], "spec.containers{a}");
        let other = event(&world, &mut stamp, &pod, &Note::normal("kubelet", "Started", "x"));
        assert_ne!(other.key, first.key);
    }
}
