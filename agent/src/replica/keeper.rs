//! Keeps the copy on disk true, with few writes.
//!
//! Changes are gathered for some seconds, and a node on which nothing happens writes nothing. Two things do not wait: the first
//! address of a pod, which is on the disk before anybody is told it, and a status that ends a pod while the master cannot be
//! told. So an agent that is killed, and starts without a link, gives no pod a second address and runs no finished pod again.
//! A disk that fails stops nothing: the node goes on, and says so. Deliberately absent: the format of the file.

use super::log::{Batch, Log, LogError};
use super::{Replica, Saved, file};
use crate::body::Shared;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::PodStatus;
use state::{Key, Revision, World};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use sync::{ClusterFacts, Position};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Changes are gathered for so long.
const GATHER: Duration = Duration::from_secs(5);
/// What does not wait is gathered for so long: several pods that start together are one write.
const GATHER_URGENT: Duration = Duration::from_millis(3);
/// Until a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// The way to the task that writes. Clones share it.
#[derive(Clone)]
pub struct Keeper(Option<Arc<Inner>>);

struct Inner {
    desk: Shared<Desk>,
    /// There is something to write.
    due: Notify,
    /// There is something to write that does not wait.
    urgent: Notify,
    /// The last note that is on the disk.
    written: watch::Sender<u64>,
}

/// What is to be written.
#[derive(Default)]
struct Desk {
    world: World,
    facts: Option<ClusterFacts>,
    position: Option<Position>,
    dirty: BTreeSet<Key>,
    facts_dirty: bool,
    statuses: HashMap<String, Note>,
    notes: u64,
}

/// A status that the master has not been told yet.
struct Note {
    status: PodStatus,
    /// It differs from what is on the disk.
    is_dirty: bool,
    /// The disk has one of this pod.
    is_on_disk: bool,
    /// The master has it since this revision.
    told: Option<Revision>,
}

/// The task that writes.
pub struct Writer {
    inner: Arc<Inner>,
    /// Held by one write at a time.
    log: Arc<Shared<Log>>,
    /// As of the last write.
    position: Option<Position>,
}

impl Keeper {
    /// One that keeps nothing: for a node whose master's store is in the same process.
    pub fn none() -> Self {
        Self(None)
    }

    /// One that continues what was saved, and the task that writes.
    pub fn new(data_dir: &Path, saved: Option<&Saved>) -> (Self, Writer) {
        let mut desk = Desk::default();
        if let Some(saved) = saved {
            desk.world = saved.world.clone();
            desk.facts = Some(saved.facts.clone());
            desk.position.clone_from(&saved.position);
            let on_disk =
                |status: &PodStatus| Note { status: status.clone(), is_dirty: false, is_on_disk: true, told: None };
            desk.statuses = saved.statuses.iter().map(|(uid, status)| (uid.clone(), on_disk(status))).collect();
        }
        let inner = Arc::new(Inner {
            desk: Shared::new(desk),
            due: Notify::new(),
            urgent: Notify::new(),
            written: watch::Sender::new(0),
        });
        let log = Arc::new(Shared::new(Log::new(file(data_dir), saved.map(|saved| saved.log))));
        let position = saved.and_then(|saved| saved.position.clone());
        (Self(Some(inner.clone())), Writer { inner, log, position })
    }

    /// Whether it keeps anything.
    pub fn keeps(&self) -> bool {
        self.0.is_some()
    }

    /// The replica is another: `touched` may differ from what was shown before.
    pub fn show<'a>(&self, replica: &Replica, touched: impl IntoIterator<Item = &'a Key>) {
        let Some(inner) = &self.0 else { return };
        let mut desk = inner.desk.lock();
        desk.world = replica.world.clone();
        desk.position = replica.position();
        if desk.facts != replica.facts {
            desk.facts.clone_from(&replica.facts);
            desk.facts_dirty = true;
        }
        // heartbeats are true for seconds only
        desk.dirty.extend(touched.into_iter().filter(|key| !key.is::<Lease>()).cloned());
        if desk.is_due() {
            inner.due.notify_one();
        }
    }

    /// A pod's status as it is about to be told; `urgent`: it must not be lost. Returns what [`Keeper::kept`] waits for.
    pub fn note(&self, uid: &str, status: &PodStatus, urgent: bool) -> u64 {
        let Some(inner) = &self.0 else { return 0 };
        let mut desk = inner.desk.lock();
        desk.notes += 1;
        let number = desk.notes;
        match desk.statuses.get_mut(uid) {
            Some(note) if note.status == *status => note.told = None,
            Some(note) => {
                note.status = status.clone();
                (note.is_dirty, note.told) = (true, None);
            }
            None => {
                let note = Note { status: status.clone(), is_dirty: true, is_on_disk: false, told: None };
                desk.statuses.insert(uid.to_owned(), note);
            }
        }
        inner.due.notify_one();
        if urgent {
            inner.urgent.notify_one();
        }
        number
    }

    /// What was shown last must not be lost. Returns what [`Keeper::kept`] waits for.
    pub fn urge(&self) -> u64 {
        let Some(inner) = &self.0 else { return 0 };
        let mut desk = inner.desk.lock();
        desk.notes += 1;
        inner.due.notify_one();
        inner.urgent.notify_one();
        desk.notes
    }

    /// The master knows the pod's status, as of a revision.
    pub fn told(&self, uid: &str, at: Revision) {
        let Some(inner) = &self.0 else { return };
        if let Some(note) = inner.desk.lock().statuses.get_mut(uid) {
            note.told = Some(at);
        }
    }

    /// There is nothing to be told of the pod any more.
    pub fn forget(&self, uid: &str) {
        self.told(uid, Revision(0));
    }

    /// Waits until a note is on the disk. A disk that refuses is not waited for.
    pub async fn kept(&self, number: u64) {
        let Some(inner) = &self.0 else { return };
        // the sender lives as long as this handle
        let _ = inner.written.subscribe().wait_for(|written| *written >= number).await;
    }
}

impl Desk {
    fn is_due(&self) -> bool {
        self.facts_dirty || !self.dirty.is_empty()
    }
}

impl Writer {
    /// Writes until shutdown, and then what is left.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                () = self.inner.due.notified() => {}
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                () = self.inner.urgent.notified() => tokio::time::sleep(GATHER_URGENT).await,
                () = tokio::time::sleep(GATHER) => {}
            }
            if !self.write(false).await {
                self.inner.due.notify_one();
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => break,
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
        }
        // the position too: the next agent then asks only for what is new
        self.write(true).await;
    }

    /// Writes what is due; `false` when the disk refused.
    async fn write(&mut self, is_last: bool) -> bool {
        let (due, number) = {
            let mut desk = self.inner.desk.lock();
            (Due::take(&mut desk, self.position.as_ref(), is_last), desk.notes)
        };
        let is_kept = match due {
            Some(due) => self.write_due(due).await,
            None => true,
        };
        self.inner.written.send_replace(number);
        is_kept
    }

    async fn write_due(&mut self, due: Due) -> bool {
        let (inner, log, position) = (self.inner.clone(), self.log.clone(), due.position.clone());
        let outcome = tokio::task::spawn_blocking(move || {
            let outcome = due.write(&mut log.lock());
            if outcome.is_err() {
                due.give_back(&mut inner.desk.lock());
            }
            outcome
        });
        let error = match outcome.await {
            Ok(Ok(())) => {
                self.position = position;
                return true;
            }
            Ok(Err(error)) => crate::container::chain(&error),
            Err(ended) => ended.to_string(),
        };
        tracing::warn!(error, "the copy of the cluster on disk is not up to date");
        false
    }
}

/// One write, taken off the desk.
struct Due {
    world: World,
    facts: Option<ClusterFacts>,
    facts_dirty: bool,
    position: Option<Position>,
    dirty: BTreeSet<Key>,
    /// Pods whose status is to be written, or (`None`) is not to be kept any more.
    statuses: Vec<(String, Option<PodStatus>)>,
    /// All that is kept, for a snapshot.
    untold: Vec<(String, PodStatus)>,
}

impl Due {
    fn take(desk: &mut Desk, last: Option<&Position>, is_last: bool) -> Option<Self> {
        let reached = desk.world.revision();
        let mut statuses = Vec::new();
        // what the master has been told goes when the object that says so has come down
        desk.statuses.retain(|uid, note| {
            let is_over = note.told.is_some_and(|told| told <= reached) || desk.world.by_uid(uid).is_none();
            if is_over && note.is_on_disk {
                statuses.push((uid.clone(), None));
            } else if !is_over && std::mem::take(&mut note.is_dirty) {
                note.is_on_disk = true;
                statuses.push((uid.clone(), Some(note.status.clone())));
            }
            !is_over
        });
        let moved = is_last && desk.position.as_ref() != last;
        if !desk.is_due() && statuses.is_empty() && !moved {
            return None;
        }
        Some(Self {
            world: desk.world.clone(),
            facts: desk.facts.clone(),
            facts_dirty: std::mem::take(&mut desk.facts_dirty),
            position: desk.position.clone(),
            dirty: std::mem::take(&mut desk.dirty),
            statuses,
            untold: desk.statuses.iter().map(|(uid, note)| (uid.clone(), note.status.clone())).collect(),
        })
    }

    fn write(&self, log: &mut Log) -> Result<(), LogError> {
        // without facts there was no master yet, and there is nothing to keep
        let Some(facts) = &self.facts else { return Ok(()) };
        let mut batch = Batch::default();
        if log.wants_snapshot() {
            batch.facts(facts);
            self.world.iter().filter(|object| !object.key().is::<Lease>()).for_each(|object| batch.put(object));
            self.untold.iter().for_each(|(uid, status)| batch.status(uid, Some(status)));
            batch.position(self.position.clone());
            return log.replace(batch);
        }
        if self.facts_dirty {
            batch.facts(facts);
        }
        for key in &self.dirty {
            match self.world.get(key) {
                Some(object) => batch.put(object),
                None => batch.delete(key),
            }
        }
        self.statuses.iter().for_each(|(uid, status)| batch.status(uid, status.as_ref()));
        batch.position(self.position.clone());
        log.append(batch)
    }

    /// What could not be written is due again. After a failed append the next write is a snapshot, which holds all.
    fn give_back(&self, desk: &mut Desk) {
        desk.dirty.extend(self.dirty.iter().cloned());
        desk.facts_dirty |= self.facts_dirty;
        for (uid, _) in &self.statuses {
            if let Some(note) = desk.statuses.get_mut(uid) {
                note.is_dirty = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::load;
    use manifests::Resource;
    use serde_json::{Value, json};
    use state::{Change, Event, Object};
    use sync::{Down, Welcome};

    fn facts() -> ClusterFacts {
        ClusterFacts {
            cluster_cidr: "10.42.0.0/16".into(),
            service_cidr: "10.43.0.0/16".into(),
            cluster_dns: None,
            cluster_domain: "cluster.local".into(),
            api: "10.0.0.1:6443".parse().unwrap(),
            loopback: false,
            node_ca_pem: String::new(),
            server_ca_pem: String::new(),
        }
    }

    fn pod(name: &str, revision: u64, status: Value) -> Arc<Object> {
        let value = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "n", "name": name, "uid": name}, "spec": {"containers": []}, "status": status,
        });
        let resource = Resource::of::<k8s_openapi::api::core::v1::Pod>();
        Arc::new(Object::encode(resource, Revision(revision), value).unwrap())
    }

    fn event(object: Arc<Object>) -> Down {
        Down::Event(Event { revision: object.revision(), change: Change::Modified, object, previous: None })
    }

    fn status(phase: &str, ip: &str) -> PodStatus {
        PodStatus { phase: Some(phase.into()), pod_ip: Some(ip.into()), ..PodStatus::default() }
    }

    struct Node {
        replica: Replica,
        keeper: Keeper,
        closed: CancellationToken,
        writing: tokio::task::JoinHandle<()>,
    }

    impl Node {
        fn start(dir: &Path) -> Self {
            let saved = load(dir);
            let (keeper, writer) = Keeper::new(dir, saved.as_ref());
            let closed = CancellationToken::new();
            let writing = tokio::spawn(writer.run(closed.clone()));
            Self { replica: saved.as_ref().map(Replica::saved).unwrap_or_default(), keeper, closed, writing }
        }

        fn take(&mut self, burst: Vec<Down>) {
            let folded = self.replica.fold(burst);
            self.keeper.show(&self.replica, &folded.touched);
        }

        async fn stop(self) {
            self.closed.cancel();
            self.writing.await.unwrap();
        }
    }

    fn welcome() -> Down {
        Down::Welcome(Welcome { lineage: "a".into(), cluster: facts(), resumed: false })
    }

    #[tokio::test]
    async fn an_address_is_on_the_disk_before_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut node = Node::start(dir.path());
        node.take(vec![welcome(), Down::Reset { revision: Revision(5), objects: vec![pod("a", 5, json!({}))] }]);
        let note = node.keeper.note("a", &status("Pending", "10.42.0.2"), true);
        tokio::time::timeout(Duration::from_secs(4), node.keeper.kept(note)).await.unwrap();
        // as if the agent were killed here
        let saved = load(dir.path()).unwrap();
        assert_eq!(saved.statuses["a"], status("Pending", "10.42.0.2"));
        assert_eq!(saved.position().unwrap().revision, Revision(5));

        // the master was told, and says so: then the note goes
        node.keeper.told("a", Revision(6));
        node.take(vec![event(pod("a", 6, json!({"podIP": "10.42.0.2"}))), Down::Reached(Revision(6))]);
        node.stop().await;
        let saved = load(dir.path()).unwrap();
        assert!(saved.statuses.is_empty());
        assert_eq!(saved.world.by_uid("a").unwrap().revision(), Revision(6));

        // an agent that starts without a link knows what is not told, unless the master shows that it was
        let node = Node::start(dir.path());
        let note = node.keeper.note("a", &status("Succeeded", "10.42.0.2"), true);
        node.keeper.kept(note).await;
        node.stop().await;
        let mut node = Node::start(dir.path());
        let saved = load(dir.path()).unwrap();
        assert_eq!(saved.clone().untold(&node.replica, &node.keeper).len(), 1);
        node.take(vec![event(pod("a", 9, json!({"podIP": "10.42.0.2", "phase": "Failed"})))]);
        assert!(saved.untold(&node.replica, &node.keeper).is_empty());
        node.stop().await;
        assert!(load(dir.path()).unwrap().statuses.is_empty());
    }

    #[tokio::test]
    async fn heartbeats_and_positions_alone_write_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut node = Node::start(dir.path());
        node.take(vec![welcome(), Down::Reset { revision: Revision(5), objects: vec![pod("a", 5, json!({}))] }]);
        node.stop().await;
        let size = || std::fs::metadata(file(dir.path())).unwrap().len();
        let before = size();
        let mut node = Node::start(dir.path());
        let lease = json!({"metadata": {"namespace": "kube-node-lease", "name": "n", "uid": "l"}});
        let lease = Object::encode(Resource::of::<Lease>(), Revision(7), lease).unwrap();
        node.take(vec![event(Arc::new(lease)), Down::Reached(Revision(8))]);
        assert!(!node.keeper.0.as_ref().unwrap().desk.lock().is_due());
        node.keeper.kept(0).await;
        assert_eq!(size(), before);
        node.stop().await;
        let saved = load(dir.path()).unwrap();
        assert_eq!(saved.position().unwrap().revision, Revision(8), "the last thing written is the position");
        assert_eq!(saved.objects(), 1);
    }
}
