//! Folds what comes down the link into the node's world, and tells each pod's worker what concerns it.
//!
//! A burst of changes is folded as one, and everybody is told the outcome, never the steps. Deliberately absent: what a pod
//! does with its mail.

use crate::body::Body;
use crate::pod::{Mail, Worker};
use crate::routes;
use crate::volumes::{self, reclaim::Reclaim};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, Pod};
use state::{Key, Object, Revision, World};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use sync::Down;
use sync::slice::references;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The node's world and the workers that live by it.
pub struct Inbox {
    body: Arc<Body>,
    world: World,
    desks: HashMap<String, Desk>,
    /// Pod name to the uid of its worker.
    names: HashMap<Key, String>,
    /// ConfigMaps and Secrets to the pods that refer to them.
    readers: HashMap<Key, HashSet<String>>,
    /// Pods whose worker has finished while their object is still there.
    departed: HashSet<String>,
    workers: JoinSet<String>,
    node_changed: Arc<Notify>,
    is_filled: bool,
    /// Pods of which Docker had containers when this agent began.
    in_docker: HashSet<String>,
    /// Released volumes of this node.
    reclaim: Reclaim,
    shutdown: CancellationToken,
}

struct Desk {
    mail: watch::Sender<Mail>,
    sources: BTreeSet<Key>,
    name: Key,
}

impl Inbox {
    /// An empty world and no workers. `node_changed` is told when this node's object is another; `in_docker` are the pods of
    /// which Docker has containers.
    pub fn new(
        body: Arc<Body>,
        node_changed: Arc<Notify>,
        in_docker: HashSet<String>,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            body,
            world: World::default(),
            desks: HashMap::new(),
            names: HashMap::new(),
            readers: HashMap::new(),
            departed: HashSet::new(),
            workers: JoinSet::new(),
            node_changed,
            is_filled: false,
            in_docker,
            reclaim: Reclaim::default(),
            shutdown,
        }
    }

    /// Folds a burst of news, shows the new world to all rooms, then tells who is concerned.
    pub fn take(&mut self, burst: Vec<Down>) {
        let mut touched = BTreeSet::new();
        let mut reset = false;
        for message in burst {
            match message {
                Down::Reset { revision, objects } => {
                    touched.extend(self.refill(revision, objects));
                    reset = true;
                }
                Down::Event(event) => {
                    touched.insert(event.key().clone());
                    self.world.fold(&event);
                }
                Down::Reached(revision) => self.world.advance(revision),
            }
        }
        self.body.replica.store(Arc::new(self.world.clone()));
        if reset && !self.is_filled {
            self.is_filled = true;
            self.body.filled.send_replace(true);
            self.sweep();
        }
        self.tell(&touched);
    }

    /// Forgets workers that are done. Waits for ever when there is none.
    pub async fn reap(&mut self) {
        let Some(joined) = self.workers.join_next().await else { return std::future::pending().await };
        let Ok(uid) = joined else { return };
        if let Some(desk) = self.desks.remove(&uid) {
            for key in desk.sources {
                if let Some(readers) = self.readers.get_mut(&key) {
                    readers.remove(&uid);
                    if readers.is_empty() {
                        self.readers.remove(&key);
                    }
                }
            }
            if self.names.get(&desk.name) == Some(&uid) {
                self.names.remove(&desk.name);
            }
            if self.world.get(&desk.name).is_some_and(|object| object.meta().uid == uid) {
                self.departed.insert(uid);
            }
        }
    }

    /// Waits until all workers have stopped their containers, but not for ever.
    pub async fn close(mut self, patience: Duration) {
        let all = async { while self.workers.join_next().await.is_some() {} };
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!("some pods did not stop in time");
        }
    }

    /// Takes a whole slice in place of what was there; returns what differs.
    fn refill(&mut self, revision: Revision, objects: Vec<Arc<Object>>) -> BTreeSet<Key> {
        let old = std::mem::take(&mut self.world);
        let mut touched: BTreeSet<Key> = old.iter().map(|object| object.key().clone()).collect();
        for object in objects {
            let same = old.get(object.key()).is_some_and(|before| before.revision() == object.revision());
            if same {
                touched.remove(object.key());
            } else {
                touched.insert(object.key().clone());
            }
            self.world.put(object);
        }
        self.world.advance(revision);
        touched
    }

    fn tell(&mut self, touched: &BTreeSet<Key>) {
        let mut arrivals = Vec::new();
        let mut sources: HashSet<String> = HashSet::new();
        for key in touched {
            if key.is::<Pod>() {
                arrivals.extend(self.tell_pod(key));
            } else if key.is::<Node>() {
                self.node_changed.notify_one();
            } else if key.is::<PersistentVolume>()
                && let Some(volume) = self.world.get(key)
            {
                self.reclaim.look(&self.body, volume);
            }
            if let Some(readers) = self.readers.get(key) {
                sources.extend(readers.iter().cloned());
            }
        }
        // all addresses that are in use are reserved before any new pod is given one
        let now = Timestamp::now();
        let workers: Vec<Worker> = arrivals
            .iter()
            .map(|object| Worker::new(self.body.clone(), object.clone(), self.is_in_docker(object), now))
            .collect();
        for (object, worker) in arrivals.into_iter().zip(workers) {
            self.hire(object, worker);
        }
        for uid in sources {
            if let Some(desk) = self.desks.get(&uid) {
                desk.mail.send_modify(|mail| mail.sources += 1);
            }
        }
        if touched.iter().any(|key| routes::concerns(&self.world, key)) {
            self.body.routes_stale.notify_one();
        }
    }

    /// Tells a pod's worker how its object is now; a pod that has none is returned.
    fn tell_pod(&mut self, key: &Key) -> Option<Arc<Object>> {
        let object = self.world.get(key).filter(|object| is_ours(object, &self.body.config.node_name)).cloned();
        let current = object.as_ref().map(|object| object.meta().uid.clone());
        if let Some(uid) = self.names.get(key)
            && Some(uid) != current.as_ref()
        {
            if let Some(desk) = self.desks.get(uid) {
                desk.mail.send_modify(|mail| mail.gone = true);
            }
            self.names.remove(key);
        }
        if self.departed.len() > self.desks.len() {
            let world = &self.world;
            self.departed.retain(|uid| world.by_uid(uid).is_some());
        }
        let object = object?;
        let uid = &object.meta().uid;
        if self.departed.contains(uid) {
            return None;
        }
        let Some(desk) = self.desks.get(uid) else { return Some(object) };
        desk.mail.send_modify(|mail| mail.object = object.clone());
        None
    }

    /// Whether Docker has containers of a pod, or may have while it does not answer: its status says so then.
    fn is_in_docker(&self, object: &Object) -> bool {
        if self.in_docker.contains(&object.meta().uid) {
            return true;
        }
        let status = object.view::<Pod>().and_then(|pod| pod.status.as_ref());
        let lists = status.into_iter().flat_map(|status| {
            [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses]
        });
        let mut ids = lists.flat_map(|list| list.iter().flatten()).filter_map(|status| status.container_id.as_deref());
        self.body.docker.is_some() && ids.any(|id| id.starts_with("docker://"))
    }

    fn hire(&mut self, object: Arc<Object>, worker: Worker) {
        let uid = object.meta().uid.clone();
        let name = object.key().clone();
        let sources = references(&object);
        for key in &sources {
            self.readers.entry(key.clone()).or_default().insert(uid.clone());
        }
        let (mail, receiver) = watch::channel(Mail { object, gone: false, sources: 0 });
        self.names.insert(name.clone(), uid.clone());
        self.desks.insert(uid.clone(), Desk { mail, sources, name });
        let shutdown = self.shutdown.clone();
        self.workers.spawn(async move {
            worker.run(receiver, shutdown).await;
            uid
        });
    }

    /// Removes the files of pods that vanished while no agent ran.
    fn sweep(&self) {
        let body = self.body.clone();
        tokio::task::spawn_blocking(move || {
            // asked for each, since pods that come meanwhile have files too
            let is_known = |uid: &str| body.world().by_uid(uid).is_some();
            volumes::sweep(&body.config.data_dir, is_known);
            let logs = body.config.data_dir.join("logs/pods");
            volumes::remove_strangers(&logs, |name| name.rsplit_once('_').is_some_and(|(_, uid)| is_known(uid)));
        });
    }
}

fn is_ours(object: &Object, node: &str) -> bool {
    let pod: Option<&Pod> = object.view();
    pod.and_then(|pod| pod.spec.as_ref()?.node_name.as_deref()) == Some(node)
}
