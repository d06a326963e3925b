//! InterPodAffinity, the required part: pods that want to be beside others, or refuse to be.
//!
//! Looks at other pods, but only for a pod that has such terms, or when one that is bound refuses others.

use super::Reason;
use crate::capacity::Capacity;
use crate::wanted::Wanted;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, PodAffinityTerm};
use state::{Key, Object, World, selects};
use std::collections::HashSet;
use std::sync::Arc;

/// A node label and its value: the place that a term is about.
type Place = (String, String);

/// What is known of a pod's neighbours.
#[derive(Default)]
pub(crate) struct Neighbours {
    /// For each term of the pod's affinity, its key and the places that satisfy it.
    liked: Vec<(String, HashSet<Place>)>,
    /// Nobody matches and the pod matches its own terms: the first of a group may go anywhere with the keys.
    first: bool,
    /// Places that the pod refuses.
    disliked: HashSet<Place>,
    /// Places where a bound pod refuses it.
    refused: HashSet<Place>,
}

impl Neighbours {
    pub(crate) fn of(wanted: &Wanted<'_>, capacity: &Capacity) -> Self {
        let mut found = Self::default();
        let affinity = wanted.spec.affinity.as_ref();
        let like = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
        let like = like.and_then(|like| like.required_during_scheduling_ignored_during_execution.as_deref());
        let dislike = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        let dislike =
            dislike.and_then(|dislike| dislike.required_during_scheduling_ignored_during_execution.as_deref());
        let (world, object) = (wanted.world, wanted.object);
        for term in like.unwrap_or_default() {
            found.liked.push((term.topology_key.clone(), places(term, object, world, capacity)));
        }
        for term in dislike.unwrap_or_default() {
            found.disliked.extend(places(term, object, world, capacity));
        }
        let own = |term: &PodAffinityTerm| matches(term, object, object, world);
        found.first =
            found.liked.iter().all(|(_, places)| places.is_empty()) && like.unwrap_or_default().iter().all(own);
        found.refused = refused(wanted, capacity);
        found
    }
}

pub(super) fn filter(neighbours: &Neighbours, node: &Node) -> Vec<Reason> {
    let labels = node.metadata.labels.as_ref();
    let place = |key: &str| Some((key.to_owned(), labels?.get(key)?.clone()));
    let satisfied = |(key, places): &(String, HashSet<Place>)| {
        place(key).is_some_and(|place| neighbours.first || places.contains(&place))
    };
    let at = |places: &HashSet<Place>| {
        places.iter().any(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    };
    if !neighbours.liked.iter().all(satisfied) {
        return Reason::for_good("node(s) didn't match pod affinity rules");
    }
    if at(&neighbours.disliked) {
        return Reason::for_now("node(s) didn't match pod anti-affinity rules");
    }
    if at(&neighbours.refused) {
        return Reason::for_now("node(s) didn't satisfy existing pods anti-affinity rules");
    }
    Vec::new()
}

/// Where a bound pod stands in the sense of a key.
fn place(pod: &Object, key: &str, capacity: &Capacity) -> Option<Place> {
    let node = pod.view::<Pod>()?.spec.as_ref()?.node_name.as_deref()?;
    let value = capacity.room(node)?.object.meta().labels.get(key)?;
    Some((key.to_owned(), value.clone()))
}

/// The places of bound pods that a term of `owner` matches.
fn places(term: &PodAffinityTerm, owner: &Object, world: &World, capacity: &Capacity) -> HashSet<Place> {
    let across = term.namespaces.is_some() || term.namespace_selector.is_some();
    let namespace: Option<&str> = if across { None } else { Some(&owner.key().namespace) };
    let pods = world.all::<Pod>(namespace).filter(|pod| is_alive(pod) && matches(term, owner, pod, world));
    pods.filter_map(|pod| place(pod, &term.topology_key, capacity)).collect()
}

fn is_alive(pod: &Arc<Object>) -> bool {
    let phase = pod.view::<Pod>().and_then(|pod| pod.status.as_ref()?.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether a term of `owner` is about `pod`.
fn matches(term: &PodAffinityTerm, owner: &Object, pod: &Object, world: &World) -> bool {
    let namespace = &*pod.key().namespace;
    let named = term.namespaces.as_ref().is_some_and(|names| names.iter().any(|name| name == namespace));
    let chosen = term.namespace_selector.as_ref().is_some_and(|selector| {
        let object = world.get(&Key::of::<Namespace>("", namespace));
        object.is_some_and(|object| selects(selector, &object.meta().labels))
    });
    let unsaid = term.namespaces.as_ref().is_none_or(Vec::is_empty) && term.namespace_selector.is_none();
    let here = unsaid && owner.key().namespace == pod.key().namespace;
    // as in Kubernetes: no selector matches nothing
    let selected = term.label_selector.as_ref().is_some_and(|selector| selects(selector, &pod.meta().labels));
    let same =
        |key: &String| owner.meta().labels.get(key).is_none_or(|value| pod.meta().labels.get(key) == Some(value));
    let differ =
        |key: &String| owner.meta().labels.get(key).is_none_or(|value| pod.meta().labels.get(key) != Some(value));
    (named || chosen || here)
        && selected
        && term.match_label_keys.iter().flatten().all(same)
        && term.mismatch_label_keys.iter().flatten().all(differ)
}

/// The places where bound pods refuse this one.
fn refused(wanted: &Wanted<'_>, capacity: &Capacity) -> HashSet<Place> {
    let mut refused = HashSet::new();
    for pod in capacity.shy().filter_map(|uid| wanted.world.by_uid(uid)) {
        let affinity = pod.view::<Pod>().and_then(|pod| pod.spec.as_ref()?.affinity.as_ref());
        let anti = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        let terms = anti.and_then(|anti| anti.required_during_scheduling_ignored_during_execution.as_ref());
        for term in terms.into_iter().flatten() {
            if matches(term, pod, wanted.object, wanted.world) {
                refused.extend(place(pod, &term.topology_key, capacity));
            }
        }
    }
    refused
}
