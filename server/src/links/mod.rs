//! The nodes that are linked to this master: each gets its slice of the events, writes what it may, and is reachable for
//! calls and for packets of its pods.
//!
//! A link is served the same whoever carries it: memory, to the agent of this process, or a session over the network.

mod feed;
mod lease;
mod permit;
mod router;
#[cfg(test)]
mod tests;

use crate::identities::Identities;
use crate::images::Images;
use crate::lineages::Lineages;
use feed::{End, Feed};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
pub use permit::PodNetworks;
use permit::Writer;
use router::Router;
use serde_json::Value;
use state::{Change, Event, Expect, Revision, World, Write, rfc3339};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use store::{CommitError, Store, WatchError};
use sync::master::Session;
use sync::mesh::Relay;
use sync::{Bulk, Caller, ClusterFacts, IncomingWrites, MasterEnd, NodeEnd, Position, Rejected, Renewal, Up};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A node whose clock is further from this one than that has a wrong one. What is dated anew is sent back to the node.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_secs(10);
/// Batches of one node's writes that are being committed at once.
const COMMITS_IN_FLIGHT_MAX: usize = 256;

/// The linked nodes. Clones share them.
#[derive(Clone)]
pub struct Links(Arc<Inner>);

struct Inner {
    store: Store,
    lineages: Lineages,
    facts: ClusterFacts,
    networks: PodNetworks,
    identities: Identities,
    router: Router,
    relay: Relay,
    images: Images,
    sessions: Mutex<Sessions>,
    shutdown: CancellationToken,
}

#[derive(Default)]
struct Sessions {
    by_node: HashMap<String, Linked>,
    count: u64,
}

struct Linked {
    id: u64,
    caller: Caller,
    /// The certificate's key and the way to end the session; none for the node of this process.
    remote: Option<(String, CancellationToken)>,
}

/// What a session is served with.
struct Parts {
    node: String,
    end: MasterEnd,
    from: Option<Position>,
    closed: Option<CancellationToken>,
}

/// What the links are served from.
pub struct Sources {
    /// The log.
    pub store: Store,
    /// Whose revisions are continued.
    pub lineages: Lineages,
    /// What nodes are told of the cluster.
    pub facts: ClusterFacts,
    /// The networks that nodes get parts of.
    pub networks: PodNetworks,
    /// Whose name belongs to which key.
    pub identities: Identities,
    /// What nodes may fetch.
    pub images: Images,
}

impl Links {
    /// No links yet. `durable` is where the log ended at the start.
    pub fn new(sources: Sources, durable: Revision, shutdown: CancellationToken) -> Self {
        let Sources { store, lineages, facts, networks, identities, images } = sources;
        let (relay, router) = (Relay::new(), Router::new(durable));
        let sessions = Mutex::default();
        Self(Arc::new(Inner {
            store,
            lineages,
            facts,
            networks,
            identities,
            router,
            relay,
            images,
            sessions,
            shutdown,
        }))
    }

    /// Links the agent of this process.
    pub fn attach_local(&self, node: &str) -> (NodeEnd, Bulk) {
        let (end, node_end) = sync::local(sync::Limits::default());
        let (bulk, node_bulk) = sync::bulk_pair();
        let id = self.enter(node, &end.caller, None);
        let parts = Parts { node: node.to_owned(), end, from: None, closed: None };
        tokio::spawn(self.clone().serve(id, parts, bulk));
        (node_end, node_bulk)
    }

    /// Serves a session until it ends.
    pub fn attach(&self, session: Session) {
        let Session { node, remote, hello, end, bulk, closed } = session;
        tracing::info!(node, %remote, agent = hello.agent, "a node has linked");
        // the certificate was admitted with the key that the node's name belongs to at that moment
        let Some(key) = self.0.identities.key_of(&node) else { return closed.cancel() };
        let id = self.enter(&node, &end.caller, Some((key, closed.clone())));
        let parts = Parts { node, end, from: hello.from, closed: Some(closed) };
        tokio::spawn(self.clone().serve(id, parts, bulk));
    }

    /// A node's way to be called.
    pub fn caller(&self, node: &str) -> Option<Caller> {
        self.sessions().by_node.get(node).map(|linked| linked.caller.clone())
    }

    /// The images that nodes may have.
    pub fn images(&self) -> &Images {
        &self.0.images
    }

    /// The cluster now.
    pub fn world(&self) -> Arc<World> {
        self.0.store.world()
    }

    /// Hands changes to the nodes' feeds, keeps the relay's map of pod networks, and ends sessions of nodes whose name has become
    /// another's, until shutdown.
    pub async fn keep(self) {
        loop {
            let world = self.0.store.world();
            let mut watch = match self.0.store.watch(self.0.router.handed()) {
                Ok(watch) => watch,
                Err(_) => {
                    let Ok(watch) = self.0.store.watch(world.revision()) else { continue };
                    self.0.router.skip(world.revision());
                    watch
                }
            };
            self.0.relay.set_nodes(&world);
            self.end_strangers();
            drop(world);
            loop {
                let next = tokio::select! {
                    () = self.0.shutdown.cancelled() => return,
                    next = watch.next() => next,
                };
                match next {
                    Ok(event) => self.see(&event),
                    Err(WatchError::Expired { .. }) => break,
                    Err(WatchError::Closed) => return,
                }
            }
        }
    }

    fn see(&self, event: &Arc<Event>) {
        if manifests::by_resource(&event.key().resource).is_none_or(|kind| !kind.volatile) {
            self.0.router.hand_out(event, &self.0.store.world());
        }
        self.0.relay.node_changed(event);
        self.0.identities.see(event);
        let node_deleted = event.change == Change::Deleted && event.key().is::<Node>();
        if node_deleted || Identities::concerns(event) {
            self.end_strangers();
        }
    }

    /// Ends the sessions whose certificates would not be let in now.
    fn end_strangers(&self) {
        let sessions = self.sessions();
        for (node, linked) in &sessions.by_node {
            if let Some((key, closed)) = &linked.remote
                && self.0.identities.admit_key(node, key).is_err()
            {
                tracing::info!(node, "the node is not known any more; its session is ended");
                closed.cancel();
            }
        }
    }

    fn enter(&self, node: &str, caller: &Caller, remote: Option<(String, CancellationToken)>) -> u64 {
        let mut sessions = self.sessions();
        sessions.count += 1;
        let id = sessions.count;
        sessions.by_node.insert(node.to_owned(), Linked { id, caller: caller.clone(), remote });
        id
    }

    fn leave(&self, node: &str, id: u64) {
        let mut sessions = self.sessions();
        if sessions.by_node.get(node).is_some_and(|linked| linked.id == id) {
            sessions.by_node.remove(node);
        }
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, Sessions> {
        self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(self, id: u64, parts: Parts, bulk: Bulk) {
        let Parts { node, end, from, closed } = parts;
        let MasterEnd { down, up, caller: _, asks } = end;
        // ends with the session, which hangs up
        tokio::spawn(self.clone().hand_on(node.clone(), asks));
        let attached = self.0.relay.attach(&node, bulk);
        let is_master = closed.is_none();
        // writes are taken until the agent hangs up: that of this process reports its last states while the process shuts
        // down
        let writes = tokio::spawn(self.clone().take(node.clone(), up, is_master));
        let feed = Feed {
            store: &self.0.store,
            lineages: &self.0.lineages,
            router: &self.0.router,
            node: &node,
            down: &down,
            leaves: !is_master,
        };
        let ended = async {
            match &closed {
                Some(closed) => closed.cancelled().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.0.shutdown.cancelled() => {}
            () = ended => {}
            end = feed.run(self.0.facts.clone(), from) => {
                if end == End::Deleted {
                    tracing::info!(node, "the Node was deleted; its session is ended");
                }
            }
        }
        if let Some(closed) = &closed {
            closed.cancel();
            tracing::info!(node, "a node has left");
        }
        drop(down);
        if writes.await.is_err() {
            tracing::error!(node, "taking a node's writes failed");
        }
        drop(attached);
        self.leave(&node, id);
    }

    /// Takes what a node sends, until it hangs up.
    async fn take(self, node: String, mut up: mpsc::Receiver<Up>, is_master: bool) {
        let writer = Writer { networks: self.0.networks, node: &node, is_master };
        let mut commits = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(()) = commits.next() => {}
                message = up.recv(), if commits.len() < COMMITS_IN_FLIGHT_MAX => match message {
                    Some(Up::Writes(batch)) => commits.push(futures::future::Either::Left(self.write(batch, writer))),
                    Some(Up::Renew(renewal)) => commits.push(futures::future::Either::Right(self.renew(renewal, writer.node))),
                    None => break,
                },
            }
        }
        while commits.next().await.is_some() {}
    }

    async fn write(&self, mut batch: IncomingWrites, writer: Writer<'_>) {
        let mut writes = std::mem::take(&mut batch.writes);
        date(&mut writes, crate::entropy::now());
        if let Err(rejected) = permit::all(&writes, &self.0.store.world(), writer) {
            if let Rejected::Failed(why) = &rejected {
                tracing::warn!(node = writer.node, why, "a node's write is refused");
            }
            return batch.answer(Err(rejected));
        }
        batch.answer(self.0.store.commit(writes).await.map_err(rejected));
    }

    async fn renew(&self, renewal: Renewal, node: &str) {
        let Some(write) = lease::renewal(&self.0.store.world(), node) else {
            return renewal.answer(Err(Rejected::Conflict(format!("node {node:?} is not registered"))));
        };
        renewal.answer(self.0.store.commit(vec![write]).await.map(|_| ()).map_err(rejected));
    }
}

/// What a node makes is dated by this clock, where the node's is another.
fn date(writes: &mut [Write], now: Timestamp) {
    let made = writes.iter_mut().filter(|write| write.expect == Expect::Absent);
    for metadata in made.filter_map(|write| write.value.as_mut()?.get_mut("metadata")?.as_object_mut()) {
        let dated = metadata.get("creationTimestamp").and_then(Value::as_str).and_then(|text| text.parse().ok());
        if dated.is_none_or(|dated: Timestamp| now.duration_since(dated).abs() > CLOCKS_DIFFER) {
            metadata.insert("creationTimestamp".into(), rfc3339(now).into());
        }
    }
}

fn rejected(error: CommitError) -> Rejected {
    match error {
        CommitError::Absent { .. }
        | CommitError::Exists { .. }
        | CommitError::Conflict { .. }
        | CommitError::Uid { .. } => Rejected::Conflict(error.to_string()),
        CommitError::Closed => Rejected::Disconnected,
        error => Rejected::Failed(error.to_string()),
    }
}
