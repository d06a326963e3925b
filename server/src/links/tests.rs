use super::feed::{End, Feed};
use super::router::Router;
use super::*;
use k8s_openapi::api::coordination::v1::Lease;
use serde_json::{Value, json};
use state::{Key, Write};
use std::time::Duration;
use sync::Down;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    store: Store,
    lineages: Lineages,
    router: Router,
    dir: TempDir,
}

impl Bench {
    fn open() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, writer) = Store::open(&dir.path().join("db"), store::Limits::default()).unwrap();
        std::thread::spawn(move || writer.run());
        let lineages = Lineages::begin(&dir.path().join("l.json"), Revision(0), "first".into()).unwrap();
        let router = Router::new(Revision(0));
        let (log, hands) = (store.clone(), router.clone());
        tokio::spawn(async move {
            let mut watch = log.watch(Revision(0)).unwrap();
            while let Ok(event) = watch.next().await {
                hands.hand_out(&event, &log.world());
            }
        });
        Self { store, lineages, router, dir }
    }

    async fn put(&self, kind: &str, namespace: &str, name: &str, mut value: Value) {
        let kind = manifests::by_kind("v1", kind).unwrap();
        value["apiVersion"] = "v1".into();
        value["kind"] = kind.kind.into();
        value["metadata"]["name"] = name.into();
        value["metadata"]["uid"] = format!("uid-{name}").into();
        if !namespace.is_empty() {
            value["metadata"]["namespace"] = namespace.into();
        }
        let key = Key::new(kind.resource(), namespace, name);
        let write = match self.store.world().get(&key) {
            Some(old) => Write::update(old, value),
            None => Write::create(key, value),
        };
        self.store.commit(vec![write]).await.unwrap();
    }

    async fn delete(&self, kind: &str, namespace: &str, name: &str) {
        let key = Key::new(manifests::by_kind("v1", kind).unwrap().resource(), namespace, name);
        let write = Write::delete(self.store.world().get(&key).unwrap());
        self.store.commit(vec![write]).await.unwrap();
    }

    /// What node `a` is sent until it is told how far the cluster is, and what it knows then.
    async fn session(&self, from: Option<Position>) -> (Vec<String>, Option<Position>) {
        let (down, mut messages) = mpsc::channel(64);
        let feed = self.feed(&down);
        let mut told = Vec::new();
        let mut progress = sync::Progress::new(from.clone());
        let listening = async {
            while let Some(message) = messages.recv().await {
                progress.see(&message);
                match message {
                    Down::Welcome(welcome) => told.push(format!("welcome {}", welcome.resumed)),
                    Down::Reset { objects, .. } => {
                        told.push(format!("reset {}", objects.len()));
                        // a node that knew another history is told no more than this one
                        if from.is_some() {
                            return;
                        }
                    }
                    Down::Event(event) => told.push(format!("{:?} {}", event.change, event.key())),
                    Down::Reached(_) => return,
                }
            }
        };
        tokio::select! {
            end = feed.run(facts(), from.clone()) => panic!("{end:?}"),
            () = listening => {}
            () = tokio::time::sleep(PATIENCE) => panic!("{told:?}"),
        }
        (told, progress.position())
    }

    fn feed<'a>(&'a self, down: &'a mpsc::Sender<Down>) -> Feed<'a> {
        Feed { store: &self.store, lineages: &self.lineages, router: &self.router, node: "a", down, leaves: true }
    }
}

fn facts() -> ClusterFacts {
    ClusterFacts {
        cluster_cidr: "10.42.0.0/16".into(),
        service_cidr: "10.43.0.0/16".into(),
        cluster_dns: None,
        cluster_domain: "cluster.local".into(),
        api: "127.0.0.1:6443".parse().unwrap(),
        loopback: false,
        node_ca_pem: String::new(),
        server_ca_pem: String::new(),
    }
}

fn pod(node: &str) -> Value {
    json!({"spec": {"nodeName": node, "containers": []}})
}

#[tokio::test]
async fn a_node_resumes_where_it_left_off() {
    let mut bench = Bench::open();
    bench.put("Node", "", "a", json!({"spec": {}})).await;
    bench.put("Pod", "n", "p", pod("a")).await;
    // a change that nobody here saw is passed on before the node hears how far things are
    let first = async {
        let changed = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            bench.put("Pod", "n", "q", pod("a")).await;
        };
        tokio::join!(bench.session(None), changed).0
    };
    let (told, position) = first.await;
    assert_eq!(told, ["welcome false", "reset 2", "Added pods n/q"]);
    let position = position.unwrap();
    assert_eq!((position.lineage.as_str(), position.revision), ("first", bench.store.world().revision()));

    for phase in ["Pending", "Running"] {
        let mut changed = pod("a");
        changed["status"] = json!({"phase": phase});
        bench.put("Pod", "n", "p", changed).await;
    }
    bench.put("Pod", "n", "elsewhere", pod("b")).await;
    bench.delete("Pod", "n", "q").await;
    let (told, later) = bench.session(Some(position.clone())).await;
    let root = "Deleted configmaps n/kube-root-ca.crt";
    assert_eq!(
        told.iter().filter(|line| *line != root).collect::<Vec<_>>(),
        ["welcome true", "Modified pods n/p", "Deleted pods n/q"]
    );
    assert!(later.unwrap().revision > position.revision);

    let stranger = Position { lineage: "other".into(), ..position.clone() };
    assert_eq!(bench.session(Some(stranger)).await.0, ["welcome false", "reset 2"]);
    // the next start of the master knows the history of the one before
    let end = bench.store.world().revision();
    bench.lineages = Lineages::begin(&bench.dir.path().join("l.json"), end, "second".into()).unwrap();
    let (told, position) = bench.session(Some(position)).await;
    assert_eq!(told[0], "welcome true");
    let position = position.unwrap();
    assert_eq!(position.lineage, "second");
    // a node that was deleted while it was away has joined anew
    bench.delete("Node", "", "a").await;
    assert_eq!(bench.session(Some(position)).await.0, ["welcome false", "reset 1"]);
}

#[tokio::test]
async fn a_node_that_was_slow_misses_nothing() {
    const PODS: usize = 1_200;
    let bench = Bench::open();
    bench.put("Node", "", "a", json!({"spec": {}})).await;
    let (down, mut messages) = mpsc::channel(1);
    let feed = bench.feed(&down);
    let listening = async {
        let mut told = std::collections::BTreeSet::new();
        assert!(matches!(messages.recv().await, Some(Down::Welcome(_))));
        assert!(matches!(messages.recv().await, Some(Down::Reset { .. })));
        // more than waits for one node, while it reads nothing
        let create = |number: usize| {
            let name = format!("p{number}");
            let mut value = pod("a");
            value["metadata"] = json!({"name": name, "namespace": "n", "uid": name});
            Write::create(Key::of::<k8s_openapi::api::core::v1::Pod>("n", &name), value)
        };
        bench.store.commit((0..PODS).map(create).collect()).await.unwrap();
        bench.put("Pod", "n", "last", pod("a")).await;
        while !told.contains("last") {
            if let Some(Down::Event(event)) = messages.recv().await {
                assert!(told.insert(event.key().name.to_string()), "{} is told twice", event.key());
            }
        }
        assert_eq!(told.len(), PODS + 1);
    };
    tokio::select! {
        end = feed.run(facts(), None) => panic!("{end:?}"),
        () = listening => {}
        () = tokio::time::sleep(PATIENCE) => panic!("too late"),
    }
}

#[tokio::test]
async fn the_session_of_a_deleted_node_ends() {
    let bench = Bench::open();
    bench.put("Node", "", "a", json!({"spec": {}})).await;
    bench.delete("Node", "", "a").await;
    bench.put("Node", "", "a", json!({"spec": {}})).await;
    let (down, mut messages) = mpsc::channel(64);
    let from = Position { lineage: "first".into(), revision: Revision(1) };
    let deletion = async {
        while let Some(message) = messages.recv().await {
            // what was long ago is no reason to leave
            if matches!(&message, Down::Event(event) if event.change == Change::Added) {
                break;
            }
        }
        bench.delete("Node", "", "a").await;
        while messages.recv().await.is_some() {}
    };
    let feed = bench.feed(&down);
    let end = tokio::select! {
        end = feed.run(facts(), Some(from)) => end,
        () = deletion => panic!("the session went on"),
        () = tokio::time::sleep(PATIENCE) => panic!("too late"),
    };
    assert_eq!(end, End::Deleted);
}

#[tokio::test]
async fn a_heartbeat_is_a_lease_of_the_masters() {
    let bench = Bench::open();
    assert_eq!(lease::renewal(&bench.store.world(), "a"), None, "there is no such node");
    bench.put("Node", "", "a", json!({"spec": {}})).await;
    let mut times = Vec::new();
    for _ in 0..2 {
        let write = lease::renewal(&bench.store.world(), "a").unwrap();
        bench.store.commit(vec![write]).await.unwrap();
        let world = bench.store.world();
        let object = world.get(&Key::of::<Lease>("kube-node-lease", "a")).unwrap();
        assert_eq!(object.meta().owner_references[0].uid, "uid-a");
        times.push(object.view::<Lease>().unwrap().spec.as_ref().unwrap().renew_time.clone().unwrap());
    }
    assert!(times[0] < times[1]);
}
