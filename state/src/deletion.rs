//! What asking for a deletion does to an object: the one place that knows, for the API's DELETE and for controllers.
//!
//! Kubernetes' rule: nothing vanishes while a finalizer holds it or while it was given time to end. A pod that runs
//! somewhere gets its grace period and is removed by its node; everything else goes at once.

use crate::{Expect, Revision};
use crate::{Object, Write, is_finished, rfc3339};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

/// Finalizer that makes the garbage collector delete the dependents first.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer that makes the garbage collector cut the dependents loose first.
pub const ORPHAN: &str = "orphan";
/// Kubernetes' default of `spec.terminationGracePeriodSeconds`.
const GRACE_SECONDS: i64 = 30;

/// What becomes of an object's dependents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// The garbage collector deletes them after the object is gone.
    #[default]
    Background,
    /// They are deleted first; the object waits for those that block it.
    Foreground,
    /// They stay, without this owner.
    Orphan,
}

/// How a deletion is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deletion {
    /// Seconds to end; `None` is the object's own choice.
    pub grace_seconds: Option<i64>,
    /// What becomes of the dependents; `None` leaves the object's finalizers as they are.
    pub propagation: Option<Propagation>,
}

impl Write {
    /// Asks for the deletion of `old`, if it is still current. The write deletes at once when nothing holds the object;
    /// `None` when its deletion is under way already and this changes nothing about it.
    pub fn delete_gracefully(old: &Object, how: Deletion, now: Timestamp) -> Option<Write> {
        let current = old.value();
        let mut value = current.clone();
        mark(&mut value, how, now);
        if value == current && !is_finished(&value) {
            return None;
        }
        let expect = if old.revision() == Revision(0) {
            Expect::Uid(old.meta().uid.clone())
        } else {
            Expect::At(old.revision())
        };
        let value = (!is_finished(&value)).then_some(value);
        Some(Write { key: old.key().clone(), value, expect })
    }
}

/// Marks a value as being deleted.
fn mark(value: &mut Value, how: Deletion, now: Timestamp) {
    let grace = grace(value, how.grace_seconds);
    let is_namespace = value["kind"] == "Namespace" && value["apiVersion"] == "v1";
    let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if let Some(propagation) = how.propagation {
        let mut finalizers: Vec<Value> =
            metadata.get("finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
        finalizers.retain(|name| name != FOREGROUND && name != ORPHAN);
        match propagation {
            Propagation::Background => {}
            Propagation::Foreground => finalizers.push(FOREGROUND.into()),
            Propagation::Orphan => finalizers.push(ORPHAN.into()),
        }
        if finalizers.is_empty() {
            metadata.remove("finalizers");
        } else {
            metadata.insert("finalizers".into(), finalizers.into());
        }
    }
    let asked = metadata.get("deletionTimestamp").and_then(Value::as_str).and_then(|at| at.parse::<Timestamp>().ok());
    let before = metadata.get("deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
    let ends = match asked {
        // a deletion under way can only be hastened
        Some(_) if how.grace_seconds.is_none() || grace >= before => return,
        Some(ends) => ends - SignedDuration::from_secs(before - grace),
        None => {
            if let Some(generation) = metadata.get("generation").and_then(Value::as_i64) {
                metadata.insert("generation".into(), (generation + 1).into());
            }
            now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(now)
        }
    };
    metadata.insert("deletionTimestamp".into(), rfc3339(ends).into());
    metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
    if is_namespace {
        match value.get_mut("status").and_then(Value::as_object_mut) {
            Some(status) => {
                status.insert("phase".into(), "Terminating".into());
            }
            None => value["status"] = json!({"phase": "Terminating"}),
        }
    }
}

/// The seconds a deletion waits: only a pod that may be running somewhere waits at all.
fn grace(value: &Value, wanted: Option<i64>) -> i64 {
    let is_pod = value["kind"] == "Pod" && value["apiVersion"] == "v1";
    let spec = &value["spec"];
    let unscheduled = spec["nodeName"].as_str().is_none_or(str::is_empty);
    let ended = matches!(value["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if !is_pod || unscheduled || ended {
        return 0;
    }
    let seconds = wanted.or_else(|| spec["terminationGracePeriodSeconds"].as_i64()).unwrap_or(GRACE_SECONDS);
    // as in Kubernetes: a negative period is the shortest graceful one
    if seconds < 0 { 1 } else { seconds.min(i64::from(i32::MAX)) }
}
