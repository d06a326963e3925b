//! Tells the cluster how the pod is: one write at a time, only when something differs, always on the newest base.

use super::jobs::{self, Done};
use super::state::{Adoption, Current, Ground, after};
use super::status::{Facts, merge, status};
use super::worker::Worker;
use ::state::{Event, Expect, Revision, Write};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use sync::Rejected;

/// A start that ends within this time is told as one change.
const PATIENCE: SignedDuration = SignedDuration::from_millis(30);
/// Until a write that the link refused is tried again.
const RETRY_SECONDS: i64 = 1;

/// Where the telling stands.
#[derive(Default)]
pub(super) struct Publisher {
    in_flight: Option<Revision>,
    /// Somebody else has changed the pod since; wait for that version.
    stale_at: Option<Revision>,
    not_before: Option<Timestamp>,
    patience: Option<Timestamp>,
}

impl Publisher {
    /// When it wants to be asked again.
    pub fn wake(&self) -> Option<Timestamp> {
        if self.in_flight.is_some() {
            return None;
        }
        self.not_before.or(self.patience.filter(|at| *at != Timestamp::MAX))
    }
}

impl Worker {
    /// Writes the status if it differs from what the cluster has.
    pub(super) fn publish(&mut self, now: Timestamp) {
        if self.state.adoption != Adoption::Done {
            // what the status says of running containers is not known to be wrong yet
            return;
        }
        if self.is_gone() || self.removing || self.publisher.in_flight.is_some() || self.must_wait(now) {
            return;
        }
        let Some(write) = self.status_write(now) else { return };
        self.publisher.in_flight = Some(self.object.revision());
        let uplink = self.body.uplink.clone();
        self.jobs.spawn(async move { Done::Written(uplink.write(vec![write]).await) });
    }

    fn must_wait(&mut self, now: Timestamp) -> bool {
        if self.publisher.stale_at.is_some_and(|revision| self.object.revision() <= revision) {
            return true;
        }
        self.publisher.stale_at = None;
        if self.publisher.not_before.is_some_and(|at| now < at) {
            return true;
        }
        self.publisher.not_before = None;
        let starting = self.state.slots().any(|(_, c)| matches!(c.current, Current::Starting { .. }));
        if !starting && self.state.ground != Ground::Laying {
            self.publisher.patience = None;
            return false;
        }
        let end = *self.publisher.patience.get_or_insert_with(|| now.checked_add(PATIENCE).unwrap_or(now));
        if now < end {
            return true;
        }
        // told once while it lasts; the next change is told as it comes
        self.publisher.patience = Some(Timestamp::MAX);
        end == Timestamp::MAX
    }

    /// The write that brings the cluster's view up to date; `None` when it is.
    pub(super) fn status_write(&self, now: Timestamp) -> Option<Write> {
        let pod = self.object.view::<Pod>()?;
        let host_ip = self.body.config.node_ip.to_string();
        let computed = status(&Facts {
            pod,
            spec: &self.spec,
            full_name: &self.full_name,
            state: &self.state,
            wanted: self.wanted(now),
            host_ip: &host_ip,
            now,
        });
        let value = merge(&self.object.value(), &computed)?;
        Some(Write { key: self.object.key().clone(), value: Some(value), expect: Expect::At(self.object.revision()) })
    }

    pub(super) fn take_written(&mut self, result: Result<Vec<Event>, Rejected>) {
        let base = self.publisher.in_flight.take().unwrap_or_default();
        match result {
            Ok(events) => events.iter().for_each(|event| self.take_object(&event.object)),
            Err(Rejected::Conflict(_)) => self.publisher.stale_at = Some(base),
            Err(rejected) => {
                tracing::warn!(pod = %self.object.key(), error = %rejected, "status not written");
                self.publisher.not_before = Some(after(Timestamp::now(), RETRY_SECONDS));
            }
        }
    }

    /// Starts the removal of the object.
    pub(super) fn remove(&mut self, now: Timestamp) {
        if self.is_gone() {
            self.finished = true;
        } else if !self.removing
            && self.publisher.in_flight.is_none()
            && self.publisher.not_before.is_none_or(|at| at <= now)
        {
            self.publisher.not_before = None;
            self.removing = true;
            let last = self.status_write(now);
            let (body, object) = (self.body.clone(), self.object.clone());
            self.jobs.spawn(jobs::remove(body, object, last));
        }
    }

    pub(super) fn take_removed(&mut self, result: Result<(), Rejected>) {
        match result {
            // where a finalizer holds the object it stays for others to end; this node is done with it
            Ok(()) => self.finished = true,
            Err(rejected) => {
                tracing::debug!(pod = %self.object.key(), error = %rejected, "pod not removed");
                self.removing = false;
                self.publisher.not_before = Some(after(Timestamp::now(), RETRY_SECONDS));
            }
        }
    }
}
