//! Tells the cluster how the pod is: one write at a time, only when something differs, always on the newest base.
//!
//! While the master cannot be told, nothing queues up: the newest status is kept on disk ([`crate::replica::Keeper`]) and
//! compared with what the master has when a session begins.

use super::jobs::{self, Done};
use super::state::{Adoption, Current, Ground, after};
use super::status::{Facts, merge, status};
use super::worker::Worker;
use crate::body::Session;
use ::state::{Event, Expect, Revision, Write};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use std::net::IpAddr;
use sync::Rejected;

/// A start that ends within this time is told as one change.
const PATIENCE: SignedDuration = SignedDuration::from_millis(30);
/// First delay of a write that the master refused; doubles up to the longest.
const RETRY_SECONDS: i64 = 1;
/// Longest delay of a write that the master refused.
const RETRY_SECONDS_MAX: i64 = 60;
/// Without a link a write waits for the next session; it is tried after so long all the same.
const OFFLINE_RETRY_SECONDS: i64 = 30;

/// Where the telling stands.
#[derive(Default)]
pub(super) struct Publisher {
    in_flight: Option<InFlight>,
    /// Somebody else has changed the pod since; wait for that version.
    stale_at: Option<Revision>,
    not_before: Option<Timestamp>,
    /// The master could not be reached; the next session ends the wait.
    is_offline: bool,
    /// Writes refused in a row.
    failures: u32,
    patience: Option<Timestamp>,
    /// As last computed; what the next one is dated by.
    last: Option<PodStatus>,
    /// The keeper has a status of this pod.
    is_noted: bool,
    /// The address that is on the disk, or will be with this note.
    kept: Option<(IpAddr, u64)>,
}

struct InFlight {
    base: Revision,
    session: Session,
}

impl Publisher {
    /// One that has this to tell from before.
    pub fn of(untold: Option<PodStatus>) -> Self {
        Self { is_noted: untold.is_some(), last: untold, ..Self::default() }
    }

    /// The status as last computed, or as an earlier agent could not tell it.
    pub fn last(&self) -> Option<&PodStatus> {
        self.last.as_ref()
    }

    /// When it wants to be asked again.
    pub fn wake(&self) -> Option<Timestamp> {
        if self.in_flight.is_some() {
            return None;
        }
        self.not_before.or(self.patience.filter(|at| *at != Timestamp::MAX))
    }

    /// Another session has begun; `replaced`: what was known before does not count any more.
    pub fn greet(&mut self, replaced: bool) {
        if std::mem::take(&mut self.is_offline) {
            self.not_before = None;
        }
        if replaced {
            self.stale_at = None;
        }
    }

    /// Waits after a write that was not done in `session`; it is `now` another one or still that.
    fn put_off(&mut self, rejected: &Rejected, session: Session, current: Session, now: Timestamp) {
        let seconds = match rejected {
            Rejected::Disconnected if session.number == current.number => {
                self.is_offline = true;
                OFFLINE_RETRY_SECONDS
            }
            _ => {
                self.failures = (self.failures + 1).min(7);
                (RETRY_SECONDS << (self.failures - 1)).min(RETRY_SECONDS_MAX)
            }
        };
        self.not_before = Some(after(now, seconds));
    }
}

impl Worker {
    /// Writes the status if it differs from what the cluster has.
    pub(super) fn publish(&mut self, now: Timestamp) {
        if self.state.adoption != Adoption::Done {
            // what the status says of running containers is not known to be wrong yet
            return;
        }
        if self.is_gone() || self.removing || self.publisher.in_flight.is_some() {
            return;
        }
        if self.must_wait(now) {
            if self.publisher.is_offline
                && let Some((computed, Some(_))) = self.status_now(now)
            {
                self.show_readiness(&computed);
                self.note(computed);
            }
            return;
        }
        let Some((computed, write)) = self.status_now(now) else { return };
        self.show_readiness(&computed);
        let Some(write) = write else {
            self.publisher.last = Some(computed);
            if std::mem::take(&mut self.publisher.is_noted) {
                self.body.keeper.told(&self.uid, self.object.revision());
            }
            return;
        };
        let kept = self.note(computed);
        self.publisher.in_flight = Some(InFlight { base: self.object.revision(), session: self.session });
        let body = self.body.clone();
        self.jobs.spawn(async move {
            if let Some(note) = kept {
                body.keeper.kept(note).await;
            }
            Done::Written(body.write(vec![write]).await)
        });
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

    /// The status as it is, and the write that brings the cluster's view up to date; no write when it is.
    fn status_now(&self, now: Timestamp) -> Option<(PodStatus, Option<Write>)> {
        let pod = self.object.view::<Pod>()?;
        let host_ip = self.body.config.node_ip.to_string();
        let computed = status(&Facts {
            pod,
            before: self.publisher.last.as_ref(),
            spec: &self.spec,
            full_name: &self.full_name,
            state: &self.state,
            wanted: self.wanted(now),
            host_ip: &host_ip,
            now,
        });
        let write = merge(&self.object.value(), &computed).map(|value| Write {
            key: self.object.key().clone(),
            value: Some(value),
            expect: Expect::At(self.object.revision()),
        });
        Some((computed, write))
    }

    /// The node's own routes need no master to know how the pod is.
    fn show_readiness(&self, computed: &PodStatus) {
        let Some(address) = self.owned else { return };
        let conditions = computed.conditions.as_deref().unwrap_or_default();
        let is_ready = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
        if self.body.ready.lock().insert(address, is_ready) != Some(is_ready) {
            self.body.routes_stale.notify_one();
        }
    }

    /// An address has been given to the pod: it is put on the disk while the pod starts.
    pub(super) fn note_address(&mut self, now: Timestamp) {
        if self.body.keeper.keeps()
            && let Some((computed, Some(_))) = self.status_now(now)
        {
            self.note(computed);
        }
    }

    /// Keeps a status that the cluster does not have. Returns what to wait for before others learn of the pod's address.
    fn note(&mut self, computed: PodStatus) -> Option<u64> {
        let known = self.object.view::<Pod>().and_then(|pod| pod.status.as_ref());
        let told = known.and_then(|status| status.pod_ip.as_ref()?.parse::<IpAddr>().ok());
        let new_address = self.owned.filter(|address| Some(*address) != told);
        let on_its_way = self.publisher.kept.map(|(address, _)| address);
        let unkept = new_address.filter(|address| Some(*address) != on_its_way);
        let is_end = |phase: Option<&str>| matches!(phase, Some("Succeeded" | "Failed"));
        let ends = is_end(computed.phase.as_deref()) && !is_end(known.and_then(|status| status.phase.as_deref()));
        let number = self.body.keeper.note(&self.uid, &computed, unkept.is_some() || ends);
        if let Some(address) = unkept {
            self.publisher.kept = Some((address, number));
        }
        self.publisher.is_noted = true;
        self.publisher.last = Some(computed);
        new_address.and(self.publisher.kept).map(|(_, number)| number)
    }

    pub(super) fn take_written(&mut self, result: Result<Vec<Event>, Rejected>) {
        let Some(InFlight { base, session }) = self.publisher.in_flight.take() else { return };
        match result {
            // an answer from before a reset speaks of revisions that do not compare; the object itself has come down
            Ok(_) if session.era != self.session.era => {}
            Ok(events) => {
                self.publisher.failures = 0;
                for event in events {
                    self.body.keeper.told(&self.uid, event.revision);
                    self.take_object(&event.object);
                }
            }
            Err(Rejected::Conflict(_)) if session.era != self.session.era => {}
            Err(Rejected::Conflict(_)) => self.publisher.stale_at = Some(base),
            Err(rejected) => {
                if !matches!(rejected, Rejected::Disconnected) {
                    tracing::warn!(pod = %self.object.key(), error = %rejected, "status not written");
                }
                self.publisher.put_off(&rejected, session, self.session, Timestamp::now());
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
            let last = self.status_now(now).and_then(|(_, write)| write);
            let (body, object, session) = (self.body.clone(), self.object.clone(), self.session);
            self.jobs.spawn(async move { jobs::remove(body, object, last, session).await });
        }
    }

    pub(super) fn take_removed(&mut self, session: Session, result: Result<(), Rejected>) {
        match result {
            // where a finalizer holds the object it stays for others to end; this node is done with it
            Ok(()) => self.finished = true,
            Err(rejected) => {
                tracing::debug!(pod = %self.object.key(), error = %rejected, "pod not removed");
                self.removing = false;
                self.publisher.put_off(&rejected, session, self.session, Timestamp::now());
            }
        }
    }
}
