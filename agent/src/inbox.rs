//! Folds what comes down the link into the node's world, and tells each pod's worker what concerns it.
//!
//! A burst of changes is folded as one, and everybody is told the outcome, never the steps. Deliberately absent: what a pod
//! does with its mail.

mod duties;

use crate::body::{Body, Session};
use crate::duties::Note;
use crate::pod::{Mail, Past, Worker};
use crate::policy;
use crate::replica::{Folded, Replica};
use crate::routes;
use crate::volumes::{self, reclaim::Reclaim};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, Pod, PodStatus};
use state::{Key, Object};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use sync::Down;
use sync::slice::references;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The node's world and the workers that live by it.
pub struct Inbox {
    body: Arc<Body>,
    replica: Replica,
    /// What an earlier agent could not tell the cluster any more, by pod.
    untold: HashMap<String, PodStatus>,
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
    /// What the node does by itself.
    duties: duties::Desk,
    shutdown: CancellationToken,
}

/// Something to do beside the news.
pub enum Turn {
    /// The worker of this pod is done.
    Done(String),
    /// A duty of the node's own is due.
    Duty(Option<Note>),
}

struct Desk {
    mail: watch::Sender<Mail>,
    sources: BTreeSet<Key>,
    name: Key,
}

impl Inbox {
    /// The world as it is known, and no workers yet. `node_changed` is told when this node's object is another; `in_docker` are
    /// the pods of which Docker has containers.
    pub fn new(
        body: Arc<Body>,
        replica: Replica,
        untold: HashMap<String, PodStatus>,
        node_changed: Arc<Notify>,
        in_docker: HashSet<String>,
        notes: mpsc::Receiver<Note>,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            body,
            replica,
            untold,
            desks: HashMap::new(),
            names: HashMap::new(),
            readers: HashMap::new(),
            departed: HashSet::new(),
            workers: JoinSet::new(),
            node_changed,
            is_filled: false,
            in_docker,
            reclaim: Reclaim::default(),
            duties: duties::Desk::new(notes),
            shutdown,
        }
    }

    /// Tells everybody what is known already.
    pub fn begin(&mut self) {
        // before anything is served: nobody passes whom the node's own copy keeps out
        self.body.replica.store(Arc::new(self.replica.world.clone()));
        policy::compile_now(&self.body);
        let touched = self.replica.world.iter().map(|object| object.key().clone()).collect();
        self.show(Folded { touched, session: true, ..Folded::default() });
        self.untold.clear();
    }

    /// Folds a burst of news, shows the new world to all rooms, then tells who is concerned.
    pub fn take(&mut self, burst: Vec<Down>) {
        let folded = self.replica.fold(burst);
        self.body.keeper.show(&self.replica, &folded.touched);
        if folded.facts {
            self.learn();
        }
        if folded.session {
            self.greet_duties();
        }
        self.show(folded);
        self.look();
    }

    /// Waits for the next thing to do beside the news: a worker is done, or one of the node's own duties is due. Cancel-safe.
    pub async fn turn(&mut self) -> Turn {
        tokio::select! {
            uid = next_done(&mut self.workers) => Turn::Done(uid),
            note = self.duties.wait() => Turn::Duty(note),
        }
    }

    /// Does it.
    pub fn take_turn(&mut self, turn: Turn) {
        match turn {
            Turn::Done(uid) => self.reap(&uid),
            Turn::Duty(note) => self.work(note),
        }
    }

    fn show(&mut self, folded: Folded) {
        let replica = &self.replica;
        self.body.replica.store(Arc::new(replica.world.clone()));
        if replica.is_current && !self.is_filled {
            self.is_filled = true;
            self.body.filled.send_replace(true);
            self.sweep();
        }
        self.tell(&folded.touched);
        if !folded.session && !folded.reset {
            return;
        }
        // the world first: what is told again now is told of the newest
        let session = self.session();
        for desk in self.desks.values() {
            desk.mail.send_if_modified(|mail| std::mem::replace(&mut mail.session, session) != session);
        }
        self.body.sessions.send_if_modified(|current| std::mem::replace(current, session) != session);
    }

    /// Whether a session has begun, and it is not known whether more is to come of what the node has missed.
    pub fn is_settling(&self) -> bool {
        self.replica.sessions > 0 && !self.replica.is_current
    }

    /// Nothing has come for long: nothing was missed.
    pub fn settle(&mut self) {
        self.replica.is_current = true;
        self.show(Folded::default());
    }

    fn session(&self) -> Session {
        Session { number: self.replica.sessions, era: self.replica.era }
    }

    /// The cluster is told to be another than before.
    fn learn(&self) {
        let Some(facts) = &self.replica.facts else { return };
        let api = self.body.config.api(facts.api);
        if **self.body.api.load() != api {
            self.body.api.store(Arc::new(api));
            self.body.routes_stale.notify_one();
        }
        let was = &self.body.cluster;
        let is_same = (&was.cluster_cidr, &was.service_cidr, &was.cluster_domain, was.cluster_dns, was.loopback)
            == (&facts.cluster_cidr, &facts.service_cidr, &facts.cluster_domain, facts.cluster_dns, facts.loopback);
        if !is_same {
            tracing::warn!("the cluster's networks are others now: restart this agent to take part in them");
        }
    }

    /// Forgets a worker that is done.
    fn reap(&mut self, uid: &str) {
        let uid = uid.to_owned();
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
            if self.replica.world.get(&desk.name).is_some_and(|object| object.meta().uid == uid) {
                let was_gone = desk.mail.borrow().gone;
                match was_gone {
                    // the cluster has it again, since its master was restored while the worker cleared up
                    true => self.tell(&BTreeSet::from([desk.name])),
                    false => drop(self.departed.insert(uid)),
                }
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

    fn tell(&mut self, touched: &BTreeSet<Key>) {
        let mut arrivals = Vec::new();
        let mut sources: HashSet<String> = HashSet::new();
        for key in touched {
            if key.is::<Pod>() {
                arrivals.extend(self.tell_pod(key));
            } else if key.is::<Node>() {
                self.node_changed.notify_one();
                self.body.nodes_changed.notify_one();
            } else if key.is::<PersistentVolume>()
                && let Some(volume) = self.replica.world.get(key)
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
            .map(|object| {
                let untold = self.untold.remove(&object.meta().uid);
                let is_in_docker = self.is_in_docker(object, untold.as_ref());
                let past = Past { is_in_docker, untold, session: self.session() };
                Worker::new(self.body.clone(), object.clone(), past, now)
            })
            .collect();
        for (object, worker) in arrivals.into_iter().zip(workers) {
            self.hire(object, worker);
        }
        for uid in sources {
            if let Some(desk) = self.desks.get(&uid) {
                desk.mail.send_modify(|mail| mail.sources += 1);
            }
        }
        if touched.iter().any(|key| routes::concerns(&self.replica.world, key)) {
            self.body.routes_stale.notify_one();
        }
        if touched.iter().any(policy::concerns) {
            self.body.policies.stale.notify_one();
        }
    }

    /// Tells a pod's worker how its object is now; a pod that has none is returned.
    fn tell_pod(&mut self, key: &Key) -> Option<Arc<Object>> {
        let object = self.replica.world.get(key).filter(|object| is_ours(object, &self.body.config.node_name)).cloned();
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
            let world = &self.replica.world;
            self.departed.retain(|uid| world.by_uid(uid).is_some());
        }
        let object = object?;
        let uid = &object.meta().uid;
        if self.departed.contains(uid) {
            return None;
        }
        let Some(desk) = self.desks.get(uid) else { return Some(object) };
        let session = self.session();
        desk.mail.send_modify(|mail| (mail.object, mail.session) = (object.clone(), session));
        None
    }

    /// Whether Docker has containers of a pod, or may have while it does not answer: its status says so then.
    fn is_in_docker(&self, object: &Object, untold: Option<&PodStatus>) -> bool {
        if self.in_docker.contains(&object.meta().uid) {
            return true;
        }
        let status = untold.or_else(|| object.view::<Pod>().and_then(|pod| pod.status.as_ref()));
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
        let (mail, receiver) = watch::channel(Mail { object, gone: false, sources: 0, session: self.session() });
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

/// The next worker that is done; for ever where there is none.
async fn next_done(workers: &mut JoinSet<String>) -> String {
    loop {
        match workers.join_next().await {
            Some(Ok(uid)) => return uid,
            Some(Err(_)) => {}
            None => return std::future::pending().await,
        }
    }
}

fn is_ours(object: &Object, node: &str) -> bool {
    let pod: Option<&Pod> = object.view();
    pod.and_then(|pod| pod.spec.as_ref()?.node_name.as_deref()) == Some(node)
}
