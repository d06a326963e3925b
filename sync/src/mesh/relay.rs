//! The master's part: passes packets between nodes that do not reach each other, and drops what a node says in another's name.

use super::counters::{Counters, Counting};
use super::frame;
use super::table::{Network, Table};
use crate::{Bulk, SendError};
use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use k8s_openapi::api::core::v1::Node;
use state::{Change, Event, Object, World};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_util::sync::CancellationToken;

/// All nodes' links. Clones share them.
///
/// The master tells it of Nodes ([`Relay::set_nodes`] once, [`Relay::node_changed`] from then on) and of links
/// ([`Relay::attach`]), in any order.
#[derive(Clone, Default)]
pub struct Relay(Arc<Inner>);

#[derive(Default)]
struct Inner {
    nodes: Mutex<HashMap<Arc<str>, Arc<Member>>>,
    table: ArcSwap<Table<Arc<Member>>>,
    counting: Counting,
}

#[derive(Default)]
struct Member {
    networks: ArcSwap<Vec<Network>>,
    link: ArcSwapOption<Link>,
}

struct Link {
    bulk: Bulk,
    closed: CancellationToken,
}

impl Relay {
    /// No nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the cluster knows of nodes, in place of what was known.
    pub fn set_nodes(&self, world: &World) {
        let networks: HashMap<_, _> =
            world.all::<Node>(None).map(|node| (node.key().name.clone(), networks(node))).collect();
        let mut nodes = self.0.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.retain(|name, member| networks.contains_key(name) || member.link.load().is_some());
        for (name, member) in nodes.iter() {
            member.networks.store(Arc::new(networks.get(name).cloned().unwrap_or_default()));
        }
        for (name, networks) in networks {
            nodes.entry(name).or_default().networks.store(Arc::new(networks));
        }
        self.0.rebuild(&nodes);
    }

    /// An event of the cluster; all but those of Nodes are ignored.
    pub fn node_changed(&self, event: &Event) {
        if !event.key().is::<Node>() {
            return;
        }
        let name = &event.key().name;
        let networks = if event.change == Change::Deleted { Vec::new() } else { networks(&event.object) };
        let mut nodes = self.0.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let member = nodes.entry(name.clone()).or_default().clone();
        let is_gone = event.change == Change::Deleted && member.link.load().is_none();
        if is_gone {
            nodes.remove(name);
        }
        if **member.networks.load() != networks {
            member.networks.store(Arc::new(networks));
            self.0.rebuild(&nodes);
        }
    }

    /// A node's link is up: packets are passed from it and to it until the returned guard is dropped, or another link of the
    /// node takes its place. Must be called on a tokio runtime, where the packets are then moved.
    #[must_use = "the link is detached when this is dropped"]
    pub fn attach(&self, node: &str, bulk: Bulk) -> Attached {
        let closed = CancellationToken::new();
        let link = Arc::new(Link { bulk, closed: closed.clone() });
        let mut nodes = self.0.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let member = nodes.entry(node.into()).or_default().clone();
        if let Some(old) = member.link.swap(Some(link.clone())) {
            old.closed.cancel();
        }
        drop(nodes);
        let (inner, node) = (self.0.clone(), node.to_owned());
        tokio::spawn(async move {
            loop {
                let received = tokio::select! {
                    biased;
                    () = link.closed.cancelled() => None,
                    received = link.bulk.recv() => received,
                };
                match received {
                    Some(packet) => inner.pass(&member, packet),
                    None => break,
                }
            }
            inner.detach(&node, &member, &link);
        });
        Attached(closed)
    }

    /// What was passed on and what was not.
    pub fn counters(&self) -> Counters {
        self.0.counting.read()
    }
}

/// Keeps a link attached.
pub struct Attached(CancellationToken);

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Inner {
    fn rebuild(&self, nodes: &HashMap<Arc<str>, Arc<Member>>) {
        let rows = nodes.values().flat_map(|member| {
            let networks = member.networks.load_full();
            networks.iter().map(|network| (*network, member.clone())).collect::<Vec<_>>()
        });
        let (table, refused) = Table::new(rows);
        for network in refused {
            tracing::warn!(%network, "a pod network overlaps with another node's; its packets are not passed on");
        }
        self.table.store(Arc::new(table));
    }

    /// Forgets a link, unless another has taken its place.
    fn detach(&self, node: &str, member: &Arc<Member>, link: &Arc<Link>) {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if !member.link.load().as_ref().is_some_and(|current| Arc::ptr_eq(current, link)) {
            return;
        }
        member.link.store(None);
        if member.networks.load().is_empty() && nodes.get(node).is_some_and(|known| Arc::ptr_eq(known, member)) {
            nodes.remove(node);
        }
    }

    fn pass(&self, sender: &Member, packet: Bytes) {
        let Some(ends) = frame::frame_ends(&packet) else { return self.counting.dropped_malformed.add() };
        if !sender.networks.load().iter().any(|network| network.contains(ends.source)) {
            return self.counting.dropped_source.add();
        }
        let table = self.table.load();
        let Some(receiver) = table.find(ends.destination) else { return self.counting.dropped_destination.add() };
        match receiver.link.load().as_ref().map(|link| send(&link.bulk, packet)) {
            Some(Ok(())) => self.counting.forwarded.add(),
            _ => self.counting.dropped_link.add(),
        }
    }
}

/// Sends a frame, in two where it is too large.
pub(super) fn send(bulk: &Bulk, packet: Bytes) -> Result<(), SendError> {
    match bulk.send(packet.clone()) {
        Err(SendError::TooLarge) => {
            let [one, two] = frame::cut(&packet).ok_or(SendError::TooLarge)?;
            bulk.send(one)?;
            bulk.send(two)
        }
        sent => sent,
    }
}

/// The parts of the pod network that belong to a Node; what is not IPv4 is left out.
pub fn networks(node: &Object) -> Vec<Network> {
    let spec = node.view::<Node>().and_then(|node| node.spec.as_ref());
    let many = spec.and_then(|spec| spec.pod_cidrs.as_deref()).unwrap_or_default();
    let one = spec.and_then(|spec| spec.pod_cidr.as_deref());
    let texts = many.iter().map(String::as_str).chain(one.filter(|_| many.is_empty()));
    texts.filter_map(|text| text.parse().ok()).collect()
}
