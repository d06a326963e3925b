//! What is promised on each node, kept from events: one small summary per node, so that a placement looks at nodes and
//! never at pods.

use crate::amounts::{self, Amounts};
use crate::wanted::Port;
use k8s_openapi::api::core::v1::{Node, Pod};
use state::{Change, Event, Object, World};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// A node and what is promised on it.
#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) object: Arc<Object>,
    pub(crate) allocatable: Amounts,
    pub(crate) pods_max: i64,
    pub(crate) promised: Promised,
}

/// What pods were promised on a node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Promised {
    pub(crate) requested: Amounts,
    /// With the usual amounts for those that ask for none: for comparing nodes.
    pub(crate) usual: (i64, i64),
    pub(crate) pods: i64,
    pub(crate) ports: Vec<Port>,
    /// How many pods of each controller.
    pub(crate) owners: BTreeMap<String, u32>,
}

/// One pod's part of a node.
#[derive(Debug)]
struct Claim {
    node: String,
    request: Amounts,
    usual: (i64, i64),
    ports: Vec<Port>,
    owner: Option<String>,
    /// Decided, but not yet seen in an event.
    assumed: bool,
}

/// The nodes and what is promised on them.
#[derive(Default)]
pub(crate) struct Capacity {
    rooms: Vec<Room>,
    index: HashMap<String, usize>,
    /// Promises on nodes that are not known (yet).
    homeless: HashMap<String, Promised>,
    /// By the pod's uid.
    claims: HashMap<String, Claim>,
    /// Bound pods that refuse others beside them.
    shy: HashSet<String>,
}

impl Capacity {
    /// The capacity of a world.
    pub(crate) fn of(world: &World) -> Self {
        let mut capacity = Self::default();
        world.all::<Node>(None).for_each(|node| capacity.put_node(node));
        world.all::<Pod>(None).for_each(|pod| capacity.put_pod(pod));
        capacity
    }

    /// Folds one event in.
    pub(crate) fn fold(&mut self, event: &Event) {
        let key = event.key();
        match (key.is::<Node>(), key.is::<Pod>(), event.change) {
            (true, _, Change::Deleted) => self.remove_node(&key.name),
            (true, _, _) => self.put_node(&event.object),
            (_, true, Change::Deleted) => self.remove_pod(&event.object.meta().uid),
            (_, true, _) => self.put_pod(&event.object),
            _ => {}
        }
    }

    /// The same, after events were missed: what was decided and not yet seen still counts.
    pub(crate) fn rebuild(&mut self, world: &World) {
        let mut fresh = Self::of(world);
        for (uid, claim) in std::mem::take(&mut self.claims) {
            if claim.assumed && !fresh.claims.contains_key(&uid) && world.by_uid(&uid).is_some() {
                fresh.claim(uid, claim);
            }
        }
        *self = fresh;
    }

    pub(crate) fn rooms(&self) -> &[Room] {
        &self.rooms
    }

    pub(crate) fn room(&self, node: &str) -> Option<&Room> {
        self.index.get(node).map(|index| &self.rooms[*index])
    }

    /// Uids of bound pods that refuse others beside them.
    pub(crate) fn shy(&self) -> impl Iterator<Item = &str> {
        self.shy.iter().map(String::as_str)
    }

    /// Counts a decision before it is committed.
    pub(crate) fn assume(&mut self, pod: &Object, node: &str) {
        if let Some(claim) = claim_of(pod, node, true) {
            self.remove_pod(&pod.meta().uid);
            self.claim(pod.meta().uid.clone(), claim);
        }
    }

    /// Forgets a decision that did not come true.
    pub(crate) fn forget(&mut self, uid: &str) {
        if self.claims.get(uid).is_some_and(|claim| claim.assumed) {
            self.remove_pod(uid);
        }
    }

    fn put_node(&mut self, object: &Arc<Object>) {
        let status = object.view::<Node>().and_then(|node| node.status.as_ref());
        let list = status.and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref()));
        let (allocatable, pods_max) = (Amounts::of(list), amounts::pods(list));
        let name = object.meta().name.clone();
        if let Some(index) = self.index.get(&name) {
            let room = &mut self.rooms[*index];
            (room.object, room.allocatable, room.pods_max) = (object.clone(), allocatable, pods_max);
            return;
        }
        let promised = self.homeless.remove(&name).unwrap_or_default();
        self.index.insert(name, self.rooms.len());
        self.rooms.push(Room { object: object.clone(), allocatable, pods_max, promised });
    }

    fn remove_node(&mut self, name: &str) {
        let Some(index) = self.index.remove(name) else { return };
        let room = self.rooms.swap_remove(index);
        if let Some(moved) = self.rooms.get(index) {
            self.index.insert(moved.object.meta().name.clone(), index);
        }
        if room.promised.pods > 0 {
            self.homeless.insert(name.to_owned(), room.promised);
        }
    }

    fn put_pod(&mut self, pod: &Object) {
        let uid = &pod.meta().uid;
        let view = pod.view::<Pod>();
        let spec = view.and_then(|pod| pod.spec.as_ref());
        let node = spec.and_then(|spec| spec.node_name.as_deref()).filter(|node| !node.is_empty());
        let phase = view.and_then(|pod| pod.status.as_ref()?.phase.as_deref());
        let Some(node) = node else { return };
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return self.remove_pod(uid);
        }
        // a pod's requests may be changed in place, so an old claim is not trusted beyond its node's name
        let Some(claim) = claim_of(pod, node, false) else { return };
        self.remove_pod(uid);
        let anti = spec.and_then(|spec| spec.affinity.as_ref()?.pod_anti_affinity.as_ref());
        if anti.is_some_and(|anti| anti.required_during_scheduling_ignored_during_execution.is_some()) {
            self.shy.insert(uid.clone());
        }
        self.claim(uid.clone(), claim);
    }

    fn claim(&mut self, uid: String, claim: Claim) {
        let promised = match self.index.get(&claim.node) {
            Some(index) => &mut self.rooms[*index].promised,
            None => self.homeless.entry(claim.node.clone()).or_default(),
        };
        promised.requested.add(&claim.request);
        promised.usual = (promised.usual.0 + claim.usual.0, promised.usual.1 + claim.usual.1);
        promised.pods += 1;
        promised.ports.extend(claim.ports.iter().cloned());
        if let Some(owner) = &claim.owner {
            *promised.owners.entry(owner.clone()).or_insert(0) += 1;
        }
        self.claims.insert(uid, claim);
    }

    fn remove_pod(&mut self, uid: &str) {
        self.shy.remove(uid);
        let Some(claim) = self.claims.remove(uid) else { return };
        let promised = match self.index.get(&claim.node) {
            Some(index) => &mut self.rooms[*index].promised,
            None => match self.homeless.get_mut(&claim.node) {
                Some(promised) => promised,
                None => return,
            },
        };
        promised.requested.subtract(&claim.request);
        promised.usual = (promised.usual.0 - claim.usual.0, promised.usual.1 - claim.usual.1);
        promised.pods -= 1;
        for port in &claim.ports {
            if let Some(index) = promised.ports.iter().position(|own| own == port) {
                promised.ports.swap_remove(index);
            }
        }
        if let Some(owner) = &claim.owner
            && let Some(count) = promised.owners.get_mut(owner)
        {
            *count -= 1;
            if *count == 0 {
                promised.owners.remove(owner);
            }
        }
        if promised.pods == 0 {
            self.homeless.remove(&claim.node);
        }
    }
}

fn claim_of(pod: &Object, node: &str, assumed: bool) -> Option<Claim> {
    let spec = pod.view::<Pod>()?.spec.as_ref()?;
    let usual = amounts::request(spec, true);
    Some(Claim {
        node: node.to_owned(),
        request: amounts::request(spec, false),
        usual: (usual.cpu, usual.memory),
        ports: Port::of(spec),
        owner: pod.controller().map(|owner| owner.uid.clone()),
        assumed,
    })
}
