//! Kubernetes Events are deleted when nothing was counted on them for an hour.
//!
//! Looked at once a minute at most, all that are due together; an idle cluster writes nothing.

use crate::{Controller, Cx, Outcome};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1;
use state::{Change, Event, Key, Object, World, Write};

/// Expiries are rounded up to this, so that they come together.
const GRID_SECONDS: i64 = 60;

/// The controller.
pub struct EventExpiry {
    /// Seconds after the last count.
    pub ttl_seconds: i64,
}

impl Controller for EventExpiry {
    fn name(&self) -> &'static str {
        "event-expiry"
    }

    fn wakes(&self, event: &Event, _world: &World) -> Vec<Key> {
        let new = event.change == Change::Added && event.key().is::<v1::Event>();
        if new { vec![event.key().clone()] } else { Vec::new() }
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let Some(object) = cx.world.get(key) else { return Outcome::default() };
        let ends = self.ends(object);
        match ends > cx.now {
            true => Outcome { writes: Vec::new(), again_at: Some(ends) },
            false => Outcome { writes: vec![Write::delete(object)], again_at: None },
        }
    }
}

impl EventExpiry {
    fn ends(&self, object: &Object) -> Timestamp {
        let event = object.view::<v1::Event>();
        let counted = event.and_then(|event| event.last_timestamp.as_ref()).map(|time| time.0);
        let series = event.and_then(|event| event.series.as_ref()?.last_observed_time.as_ref()).map(|time| time.0);
        let written = event.and_then(|event| event.event_time.as_ref()).map(|time| time.0);
        let last =
            counted.max(series).max(written).or(object.meta().creation_timestamp).unwrap_or(Timestamp::UNIX_EPOCH);
        let ends = last.checked_add(SignedDuration::from_secs(self.ttl_seconds)).unwrap_or(Timestamp::MAX);
        let seconds = ends.as_second();
        let rounded = seconds.saturating_add(GRID_SECONDS - 1).div_euclid(GRID_SECONDS) * GRID_SECONDS;
        Timestamp::from_second(rounded).unwrap_or(ends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::Sandbox;

    #[test]
    fn an_event_lives_an_hour_after_its_last_count() {
        let mut sandbox = Sandbox::new(vec![Box::new(EventExpiry { ttl_seconds: 3600 })]);
        sandbox.apply("{apiVersion: v1, kind: Event, metadata: {name: e, namespace: default}, lastTimestamp: '2026-01-01T00:00:30Z'}");
        sandbox.settle().pass(3600);
        let key = Key::of::<v1::Event>("default", "e");
        sandbox.edit(&key, |event| event["lastTimestamp"] = "2026-01-01T00:50:00Z".into()).pass(60);
        assert!(sandbox.world.get(&key).is_some());
        sandbox.pass(3000);
        assert!(sandbox.world.get(&key).is_none());
    }
}
