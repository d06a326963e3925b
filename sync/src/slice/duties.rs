//! The CronJobs that belong to a node, and their Jobs: what it takes to go on with them without a master.

use super::{deletion, forget_needed, needs};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use state::{Change, Event, Key, Object, World, cron};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Whether this may be one of a node's duties.
pub(super) fn is_one(key: &Key) -> bool {
    key.is::<CronJob>() || key.is::<Job>()
}

/// The CronJobs that belong to a node.
pub(super) fn of<'a>(world: &'a World, node: &str) -> impl Iterator<Item = &'a Arc<Object>> {
    world.all::<CronJob>(None).filter(move |object| cron::home(object) == Some(node))
}

/// All that a node's CronJobs bring along, themselves included.
pub(super) fn keys(world: &World, node: &str) -> BTreeSet<Key> {
    let mut keys = BTreeSet::new();
    for object in of(world, node) {
        keys.insert(object.key().clone());
        keys.extend(jobs(object, world).map(|job| job.key().clone()));
        keys.extend(needs(object, world));
    }
    keys
}

/// The nodes to which an event about a CronJob or a Job may mean something.
pub(super) fn audience(event: &Event, world: &World) -> BTreeSet<String> {
    let of = |object: &Arc<Object>| -> Vec<String> {
        let owner = object.controller().and_then(|owner| world.by_uid(&owner.uid));
        let homes = [cron::home(object), owner.and_then(|owner| cron::home(owner)), home_of_pods(object)];
        homes.into_iter().flatten().map(str::to_owned).collect()
    };
    [Some(&event.object), event.previous.as_ref()].into_iter().flatten().flat_map(of).collect()
}

/// What an event about a CronJob or a Job means to a node.
pub(super) fn events(event: &Event, world: &World, node: &str) -> Vec<Event> {
    if event.key().is::<Job>() {
        return job_events(event, world, node);
    }
    let is_ours = |object: &Object| cron::home(object) == Some(node);
    let is_here = event.change != Change::Deleted && is_ours(&event.object);
    let before = event.previous.as_ref().filter(|previous| is_ours(previous));
    let was_here = before.is_some() || (event.change == Change::Deleted && is_ours(&event.object));
    let mut lost: BTreeSet<Key> = before.map(|previous| needs(previous, world)).unwrap_or_default();
    if !is_here {
        if !was_here {
            return Vec::new();
        }
        lost.extend(needs(&event.object, world));
        let mut gone: Vec<Event> = deletion(event.key(), event.revision).into_iter().collect();
        forget_needed(&mut lost, world, node);
        // Jobs of a CronJob that is gone go with events of their own
        let jobs = jobs(&event.object, world).filter(|_| event.change != Change::Deleted).map(|job| job.key().clone());
        gone.extend(lost.into_iter().chain(jobs).filter_map(|key| deletion(&key, event.revision)));
        return gone;
    }
    let now = needs(&event.object, world);
    let mut wanted: Vec<Key> = now.iter().filter(|key| !lost.contains(key)).cloned().collect();
    if before.is_none() {
        wanted.extend(jobs(&event.object, world).map(|job| job.key().clone()));
    }
    let added = |object: &Arc<Object>| Event {
        revision: event.revision,
        change: Change::Added,
        object: object.clone(),
        previous: None,
    };
    let mut events: Vec<Event> = wanted.iter().filter_map(|key| world.get(key)).map(added).collect();
    events.push(if before.is_none() { added(&event.object) } else { event.clone() });
    lost.retain(|key| !now.contains(key));
    forget_needed(&mut lost, world, node);
    events.extend(lost.iter().filter_map(|key| deletion(key, event.revision)));
    events
}

/// That a Job is gone is told where its CronJob is, or was: who had it is not known any more when that is gone too.
fn job_events(event: &Event, world: &World, node: &str) -> Vec<Event> {
    let Some(owner) = event.object.controller().filter(|owner| owner.kind == "CronJob") else { return Vec::new() };
    let is_gone = event.change == Change::Deleted;
    let is_ours = match world.by_uid(&owner.uid) {
        Some(object) => cron::home(object) == Some(node),
        None => is_gone && home_of_pods(&event.object) == Some(node),
    };
    match event.change {
        _ if !is_ours => Vec::new(),
        Change::Deleted => deletion(event.key(), event.revision).into_iter().collect(),
        _ => vec![event.clone()],
    }
}

/// The only node on which a Job's pods can run.
fn home_of_pods(job: &Object) -> Option<&str> {
    let spec = job.view::<Job>()?.spec.as_ref()?;
    cron::pinned(spec.template.spec.as_ref()?)
}

fn jobs<'a>(cron: &Object, world: &'a World) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
    let uid = cron.meta().uid.clone();
    world
        .owned_by(&uid)
        .filter(move |job| job.key().is::<Job>() && job.controller().is_some_and(|owner| owner.uid == uid))
}
