//! Tells the master what the node has made by itself: a Job with its pods, all or nothing.

use super::decide::end;
use super::{Note, is_local};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use state::{Object, World, Write, cron};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use sync::{Rejected, Uplink};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Reports on their way at once.
const REPORTS_MAX: usize = 8;
/// Without a session a report is tried again after so long all the same.
const RETRY: Duration = Duration::from_secs(30);

/// What is on its way to the master, and what it does not want.
#[derive(Default)]
pub struct Reports {
    under_way: HashSet<String>,
    /// Uids of what the master has refused.
    refused: HashSet<String>,
    /// Nothing is sent before, or before a session begins.
    not_before: Option<Instant>,
}

/// A report, and those of this node's pods that are not needed any more.
#[derive(Default)]
pub struct Due {
    /// One batch each.
    pub reports: Vec<Vec<Arc<Object>>>,
    /// Changes of what only this node knows.
    pub local: Vec<Write>,
}

impl Reports {
    /// A session has begun.
    pub fn greet(&mut self) {
        self.not_before = None;
        self.under_way.clear();
    }

    /// When to try again what could not be told.
    pub fn wake(&self) -> Option<Instant> {
        self.not_before
    }

    /// What is to be told of a world.
    pub fn due(&mut self, world: &World, held: &HashSet<String>, now: Timestamp) -> Due {
        let mut due = Due::default();
        self.refused.retain(|uid| world.by_uid(uid).is_some_and(|object| is_local(object)));
        self.under_way.retain(|uid| world.by_uid(uid).is_some_and(|object| is_local(object)));
        if self.not_before.is_some_and(|at| at > Instant::now()) {
            return due;
        }
        self.not_before = None;
        let is_due =
            |reports: &Self, object: &Object| is_local(object) && !reports.under_way.contains(&object.meta().uid);
        for job in world.all::<Job>(None).filter(|job| !held.contains(&job.meta().uid)) {
            if !is_due(self, job) || self.under_way.len() >= REPORTS_MAX {
                continue;
            }
            let is_over = cron::outcome(job).is_some();
            if self.refused.contains(&job.meta().uid) {
                continue;
            }
            let pods = world.owned_by(&job.meta().uid).filter(|pod| pod.key().is::<Pod>() && is_local(pod));
            let pods: Vec<&Arc<Object>> = pods.collect();
            // one that was refused with its pods is told alone when it is over
            let with_pods = !pods.iter().any(|pod| self.refused.contains(&pod.meta().uid));
            if !with_pods && !is_over {
                continue;
            }
            let pods = pods.into_iter().filter(|pod| with_pods && !pod.is_deleting()).cloned();
            due.reports.push(std::iter::once(job.clone()).chain(pods).collect());
            self.under_way.insert(job.meta().uid.clone());
        }
        for pod in world.all::<Pod>(None).filter(|pod| is_local(pod) && !pod.is_deleting()) {
            let job = pod.controller().and_then(|owner| world.by_uid(&owner.uid));
            if job.is_none_or(|job| is_local(job)) || !is_due(self, pod) {
                continue;
            }
            if !self.refused.contains(&pod.meta().uid) && self.under_way.len() < REPORTS_MAX {
                due.reports.push(vec![pod.clone()]);
                self.under_way.insert(pod.meta().uid.clone());
            } else if controllers::is_finished(pod) {
                due.local.extend(end(pod, now));
            }
        }
        due
    }

    /// What the master said. `true` when it refused for good.
    pub fn take(&mut self, reported: &[Arc<Object>], rejected: Option<&Rejected>) -> bool {
        let first = reported.first().map(|object| object.meta().uid.clone());
        match rejected {
            // it comes down by itself; until then it is under way
            None => false,
            Some(Rejected::Disconnected | Rejected::Conflict(_)) => {
                self.under_way.retain(|uid| Some(uid) != first.as_ref());
                self.not_before = Some(Instant::now() + RETRY);
                false
            }
            Some(_) => {
                self.under_way.retain(|uid| Some(uid) != first.as_ref());
                // a Job that is refused alone has no other way; one with pods has
                let (alone, pods) = (reported.len() == 1, reported.iter().skip(1));
                if alone {
                    self.refused.extend(first);
                }
                self.refused.extend(pods.map(|pod| pod.meta().uid.clone()));
                true
            }
        }
    }
}

/// Sends a report, and says what became of it.
pub async fn send(uplink: Uplink, report: Vec<Arc<Object>>, notes: mpsc::Sender<Note>) {
    let write = |object: &Arc<Object>| Write::create(object.key().clone(), object.value());
    let outcome = uplink.write(report.iter().map(write).collect()).await;
    // the inbox is gone only when the agent is
    let _ = notes.send(Note::Reported(report, outcome)).await;
}
