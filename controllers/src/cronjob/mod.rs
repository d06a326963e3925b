//! A CronJob makes a Job whenever its schedule falls due.
//!
//! The Job of one scheduled time has one name, so that it is made once whoever makes it, and says for which time it is; that,
//! and not what is remembered, tells what was served. Times are UTC unless `spec.timeZone` says otherwise. A CronJob that
//! belongs to a node ([`state::cron`]) is started by that node: the master then only keeps its status and its history, and the
//! node asks the same mind from its own seat.

mod due;
#[cfg(test)]
mod tests;

use crate::{Controller, Cx, Outcome, edit, ownership};
use due::{Due, MISSED_MAX};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use manifests::schedule::{self, Schedule};
use serde_json::{Value, json};
use state::record::{self, Note};
use state::{Change, Deletion, Event, Expect, Key, Object, Propagation, Stamp, World, Write, cron};
use std::sync::Arc;

/// Name as the source of events.
const NAME: &str = "cronjob-controller";

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seat {
    /// The master: all CronJobs, but those that a node starts are only followed.
    Master,
    /// A node: starts those that belong to it.
    Node(String),
}

/// The controller.
pub struct CronJobs {
    /// Who asks.
    pub seat: Seat,
}

impl Controller for CronJobs {
    fn name(&self) -> &'static str {
        NAME
    }

    fn wakes(&self, event: &Event, world: &World) -> Vec<Key> {
        let key = event.key();
        if key.is::<CronJob>() {
            return vec![key.clone()];
        }
        if key.is::<Job>() {
            return ownership::controllers_of::<CronJob>(event);
        }
        // a node that comes or goes takes the schedules of its own CronJobs along
        if key.is::<Node>() && is_another_seat(event) {
            let own = world.all::<CronJob>(None).filter(|cron| cron::home(cron) == Some(&*key.name));
            return own.map(|cron| cron.key().clone()).collect();
        }
        Vec::new()
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let Some(object) = cx.world.get(key).cloned() else { return Outcome::default() };
        let Some((spec, status)) = object.view::<CronJob>().map(|cron| (&cron.spec, cron.status.clone())) else {
            return Outcome::default();
        };
        let decider = cron::decider(&object, cx.world).map(str::to_owned);
        let mut pass = Pass::new(cx, &object, spec, status.unwrap_or_default());
        match (&self.seat, decider) {
            (Seat::Master, decider) => {
                pass.follow();
                if decider.is_none() {
                    pass.start();
                }
                pass.tidy();
                pass.conclude();
            }
            (Seat::Node(node), decider) if decider.as_ref() == Some(node) => {
                pass.follow();
                // what is said of the past is the master's to say
                pass.writes.clear();
                pass.start();
            }
            (Seat::Node(_), _) => {}
        }
        Outcome { writes: pass.writes, again_at: pass.again_at }
    }
}

fn is_another_seat(event: &Event) -> bool {
    let runs = |node: &Object| node.meta().annotations.get(cron::RUNS).cloned();
    match (event.change, &event.previous) {
        (Change::Modified, Some(previous)) => runs(previous) != runs(&event.object),
        _ => true,
    }
}

/// The Job that a CronJob wants for a scheduled time, without uid and creation time. `None` when there is no template.
pub fn wanted(cron: &Object, at: Timestamp, zone: &TimeZone) -> Option<Value> {
    let mut template = cron.value()["spec"]["jobTemplate"].take();
    let meta = cron.meta();
    let stamp = at.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
    let stamp = stamp.strip_suffix("+00:00").map(|utc| format!("{utc}Z")).unwrap_or(stamp);
    let mut metadata = json!({
        "name": name_at(&meta.name, at), "namespace": meta.namespace,
        "annotations": {}, "ownerReferences": [ownership::reference::<CronJob>(cron)],
    });
    if let Value::Object(own) = template["metadata"]["annotations"].take() {
        metadata["annotations"] = Value::Object(own);
    }
    metadata["annotations"][cron::SCHEDULED] = stamp.into();
    if let Value::Object(labels) = template["metadata"]["labels"].take() {
        metadata["labels"] = Value::Object(labels);
    }
    let spec = template["spec"].take();
    let mut job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec, "status": {}});
    (manifests::by_kind("batch/v1", "Job")?.default)(&mut job);
    Some(job)
}

/// `<cronjob>-<minutes since 1970>`
fn name_at(cron: &str, at: Timestamp) -> String {
    format!("{cron}-{}", at.as_second().div_euclid(60))
}

/// The zone of a schedule's clocks; `None` when there is no such zone.
pub fn zone(spec: &CronJobSpec) -> Option<TimeZone> {
    match spec.time_zone.as_deref() {
        None | Some("") => Some(TimeZone::UTC),
        Some(name) => schedule::zone(name),
    }
}

/// One look at one CronJob.
struct Pass<'a, 'b> {
    cx: &'a mut Cx<'b>,
    object: &'a Object,
    spec: &'a CronJobSpec,
    /// The status as it becomes.
    status: CronJobStatus,
    /// Its Jobs, by name.
    jobs: Vec<Arc<Object>>,
    /// The last time that was served.
    last: Option<Timestamp>,
    writes: Vec<Write>,
    again_at: Option<Timestamp>,
}

impl<'a, 'b> Pass<'a, 'b> {
    fn new(cx: &'a mut Cx<'b>, object: &'a Object, spec: &'a CronJobSpec, status: CronJobStatus) -> Self {
        let jobs = ownership::children::<Job>(cx.world, object).into_iter().cloned().collect();
        let last = status.last_schedule_time.as_ref().map(|time| time.0);
        Self { cx, object, spec, status, jobs, last, writes: Vec::new(), again_at: None }
    }

    /// Learns from its Jobs: which run, which have ended, which times were served.
    fn follow(&mut self) {
        let before = self.status.active.take().unwrap_or_default();
        let (told, mut active) = (self.last, Vec::new());
        for job in self.jobs.clone() {
            let scheduled = cron::scheduled(&job);
            let known = before.iter().find(|known| known.uid.as_ref() == Some(&job.meta().uid));
            self.last = self.last.max(scheduled);
            let Some(outcome) = cron::outcome(&job) else {
                if !job.is_deleting() && (known.is_some() || scheduled.is_some()) {
                    active.push(known.cloned().unwrap_or_else(|| reference(&job)));
                }
                continue;
            };
            if known.is_some() || scheduled.is_some_and(|at| told.is_none_or(|told| at > told)) {
                let message = format!("Saw completed job: {}, condition: {outcome}", job.meta().name);
                self.tell(false, "SawCompletedJob", &message);
            }
            let ended = job.view::<Job>().and_then(|job| job.status.as_ref()?.completion_time.clone());
            if outcome == "Complete" && ended > self.status.last_successful_time {
                self.status.last_successful_time = ended;
            }
        }
        let is_there =
            |known: &ObjectReference| self.jobs.iter().any(|job| Some(&job.meta().uid) == known.uid.as_ref());
        let missing: Vec<String> =
            before.iter().filter(|known| !is_there(known)).filter_map(|j| j.name.clone()).collect();
        for name in missing {
            self.tell(false, "MissingJob", &format!("Active job went missing: {name}"));
        }
        self.status.active = Some(active);
    }

    /// Makes the Job that is due, and says when the next one is.
    fn start(&mut self) {
        if self.object.is_deleting() || self.spec.suspend == Some(true) {
            return;
        }
        let Some(zone) = zone(self.spec) else {
            let name = self.spec.time_zone.clone().unwrap_or_default();
            return self.tell_once("UnknownTimeZone", &format!("invalid timeZone: {name:?}: unknown time zone {name}"));
        };
        let schedule = match Schedule::parse(&self.spec.schedule) {
            Ok(schedule) => schedule,
            Err(why) => {
                let message = format!("unparseable schedule: {:?} : {why}", self.spec.schedule);
                return self.tell_once("UnparseableSchedule", &message);
            }
        };
        let now = self.cx.now;
        let created = self.object.meta().creation_timestamp.unwrap_or(now);
        let served = self.last.map_or(created, |last| last.max(created));
        self.again_at = match &schedule {
            Schedule::Every(_) => next_every(&schedule, &zone, served, now),
            Schedule::Calendar(_) => schedule.next(now, &zone),
        };
        let Some(due) = due::between(&schedule, &zone, served, now) else { return };
        if self.is_too_late(&schedule, &zone, served, due) {
            return;
        }
        let key = Key::of::<Job>(&self.object.key().namespace, &name_at(&self.object.meta().name, due.at));
        if let Some(there) = self.cx.world.get(&key) {
            if there.controller().is_none_or(|owner| owner.uid != self.object.meta().uid) {
                let message = format!("Error creating job: jobs.batch {:?} already exists", key.name);
                self.tell_once("FailedCreate", &message);
            }
            return;
        }
        if self.makes_room() {
            self.create(key, due.at, &zone);
        }
    }

    /// Whether the last time has passed for good; warns when many were missed.
    fn is_too_late(&mut self, schedule: &Schedule, zone: &TimeZone, served: Timestamp, due: Due) -> bool {
        let now = self.cx.now;
        let deadline = self.spec.starting_deadline_seconds.map(|seconds| SignedDuration::from_secs(seconds.max(0)));
        let mut missed = due.count;
        if let Some(deadline) = deadline {
            if due.at.checked_add(deadline).is_ok_and(|end| end < now) {
                let time = due.at.to_zoned(zone.clone()).strftime("%a, %d %b %Y %H:%M:%S %z").to_string();
                self.tell_once("MissSchedule", &format!("Missed scheduled time to start a job: {time}"));
                return true;
            }
            let from = now.checked_sub(deadline).map_or(served, |from| from.max(served));
            missed = due::between(schedule, zone, from, now).map_or(0, |due| due.count);
        }
        if missed > MISSED_MAX {
            let message =
                "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.tell_once("TooManyMissedTimes", message);
        }
        false
    }

    /// Whether a Job may start beside those that run, which may have to go first.
    fn makes_room(&mut self) -> bool {
        let active = self.status.active.clone().unwrap_or_default();
        match self.spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.tell_once("JobAlreadyActive", message);
                false
            }
            Some("Replace") => {
                for job in self.jobs.clone() {
                    if active.iter().any(|known| known.uid.as_ref() == Some(&job.meta().uid)) {
                        self.delete(&job);
                    }
                }
                self.status.active = Some(Vec::new());
                true
            }
            _ => true,
        }
    }

    fn create(&mut self, key: Key, at: Timestamp, zone: &TimeZone) {
        let Some(mut job) = wanted(self.object, at, zone) else { return };
        let stamp: &mut Stamp<'_> = &mut self.cx.stamp;
        stamp.complete(&mut job, true);
        manifests::claim_pods(&mut job);
        let uid = job["metadata"]["uid"].as_str().map(str::to_owned);
        self.status.active.get_or_insert_default().push(ObjectReference {
            api_version: Some("batch/v1".into()),
            kind: Some("Job".into()),
            name: Some(key.name.to_string()),
            namespace: Some(key.namespace.to_string()),
            uid,
            ..ObjectReference::default()
        });
        self.last = Some(at);
        self.tell(false, "SuccessfulCreate", &format!("Created job {}", key.name));
        self.writes.push(Write::create(key, job));
    }

    /// Deletes the oldest of those that have ended, where there are more than are to be kept.
    fn tidy(&mut self) {
        if self.object.is_deleting() {
            return;
        }
        let limits =
            [("Complete", self.spec.successful_jobs_history_limit), ("Failed", self.spec.failed_jobs_history_limit)];
        for (outcome, limit) in limits {
            let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else { continue };
            let started =
                |job: &Arc<Object>| job.view::<Job>().and_then(|job| Some(job.status.as_ref()?.start_time.as_ref()?.0));
            let mut ended: Vec<_> =
                self.jobs.iter().filter(|job| cron::outcome(job) == Some(outcome)).cloned().collect();
            ended.sort_by_key(|job| (started(job), job.key().clone()));
            let surplus = ended.len().saturating_sub(limit);
            for job in ended.iter().take(surplus) {
                self.delete(job);
            }
        }
    }

    fn delete(&mut self, job: &Arc<Object>) {
        let how = Deletion { grace_seconds: None, propagation: Some(Propagation::Background) };
        if job.is_deleting() {
            return;
        }
        if let Some(write) = Write::delete_gracefully(job, how, self.cx.now) {
            self.writes.push(write);
            self.tell(false, "SuccessfulDelete", &format!("Deleted job {}", job.meta().name));
        }
    }

    fn conclude(&mut self) {
        self.status.last_schedule_time = self.last.map(edit::time);
        self.status.active = self.status.active.take().filter(|active| !active.is_empty());
        self.writes.extend(edit::status(self.object, &self.status));
    }

    fn tell(&mut self, warning: bool, reason: &str, message: &str) {
        let note = Note { warning, ..Note::normal(NAME, reason, message) };
        self.writes.push(record::event(self.cx.world, &mut self.cx.stamp, self.object, &note));
    }

    /// Tells what holds for a while, once.
    fn tell_once(&mut self, reason: &str, message: &str) {
        let warning = reason != "JobAlreadyActive";
        let note = Note { warning, ..Note::normal(NAME, reason, message) };
        let write = record::event(self.cx.world, &mut self.cx.stamp, self.object, &note);
        self.writes.extend((write.expect == Expect::Absent).then_some(write));
    }
}

fn next_every(schedule: &Schedule, zone: &TimeZone, served: Timestamp, now: Timestamp) -> Option<Timestamp> {
    let last = due::between(schedule, zone, served, now).map_or(served, |due| due.at);
    schedule.next(last, zone).filter(|at| *at > now)
}

fn reference(job: &Object) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".into()),
        kind: Some("Job".into()),
        name: Some(job.meta().name.clone()),
        namespace: job.meta().namespace.clone(),
        uid: Some(job.meta().uid.clone()),
        resource_version: Some(job.revision().to_string()),
        ..ObjectReference::default()
    }
}
