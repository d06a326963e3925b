//! CertificateSigningRequests do not stay: an answered one goes an hour after its answer, an unanswered one after a day.

use crate::{Controller, Cx, Outcome};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use state::{Change, Event, Key, Object, World, Write};

/// An answered request stays this long.
const ANSWERED_SECONDS: i64 = 3600;
/// An unanswered one this long.
const PENDING_SECONDS: i64 = 24 * 3600;

/// The controller.
pub struct Cleaner;

impl Controller for Cleaner {
    fn name(&self) -> &'static str {
        "csrcleaner"
    }

    fn wakes(&self, event: &Event, _world: &World) -> Vec<Key> {
        let news = event.key().is::<CertificateSigningRequest>() && event.change != Change::Deleted;
        if news { vec![event.key().clone()] } else { Vec::new() }
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let Some(object) = cx.world.get(key).filter(|object| !object.is_deleting()) else { return Outcome::default() };
        match ends(object) {
            Some(at) if at > cx.now => Outcome { writes: Vec::new(), again_at: Some(at) },
            Some(_) => Outcome { writes: vec![Write::delete(object)], again_at: None },
            None => Outcome::default(),
        }
    }
}

/// When a request goes.
fn ends(object: &Object) -> Option<Timestamp> {
    let status = object.view::<CertificateSigningRequest>()?.status.as_ref();
    let created = object.meta().creation_timestamp?;
    let after = |at: Timestamp, seconds| at.checked_add(SignedDuration::from_secs(seconds)).ok();
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let answers = conditions.iter().filter(|c| matches!(c.type_.as_str(), "Approved" | "Denied" | "Failed"));
    let answered = answers.map(|c| c.last_update_time.as_ref().map_or(created, |time| time.0)).min();
    match answered {
        Some(answered) => after(answered, ANSWERED_SECONDS),
        None => after(created, PENDING_SECONDS),
    }
}
