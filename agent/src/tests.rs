//! The node's body against a master in memory: real guests, real sockets on loopback, real files.

mod offline;

use crate::*;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use manifests::Resource;
use serde_json::{Value, json};
use state::{Change, Event, Expect, Key, Object, Revision, World, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use sync::{Call, CallError, Caller, ClusterFacts, Down, Limits, Logs, Output, Rejected, Up, Welcome};

/// A master: applies writes in order, tells everything to its one node.
#[derive(Clone)]
struct Master(Arc<Mutex<Books>>);

struct Books {
    world: World,
    news: mpsc::Sender<Down>,
    changed: Arc<Notify>,
    /// The node's part of 127.0.0.0/8.
    net: u8,
    lineage: u32,
    /// No link: nothing goes down, and no writes are taken.
    is_cut: bool,
    missed: Vec<Event>,
    /// Heartbeats taken.
    beats: usize,
}

impl Master {
    fn new(news: mpsc::Sender<Down>) -> Self {
        let (net, lineage, is_cut, missed, beats) = (0, 1, false, Vec::new(), 0);
        let (world, changed) = (World::default(), Arc::default());
        Self(Arc::new(Mutex::new(Books { world, news, changed, net, lineage, is_cut, missed, beats })))
    }

    fn books(&self) -> std::sync::MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn commit(&self, writes: Vec<Write>) -> Result<Vec<Event>, Rejected> {
        let mut books = self.books();
        let mut events = Vec::new();
        for write in writes {
            let old = books.world.get(&write.key).cloned();
            let holds = match (&write.expect, &old) {
                (Expect::Absent, None) => true,
                (Expect::At(revision), Some(old)) => old.revision() == *revision,
                (Expect::Uid(uid), Some(old)) => old.meta().uid == *uid,
                _ => false,
            };
            if !holds {
                return Err(Rejected::Conflict(format!("{}: {:?}", write.key, write.expect)));
            }
            let revision = Revision(books.world.revision().0 + 1);
            let event = match (write.value, old) {
                (Some(value), old) => Event {
                    revision,
                    change: if old.is_some() { Change::Modified } else { Change::Added },
                    object: Arc::new(Object::encode(write.key.resource, revision, value).unwrap()),
                    previous: old,
                },
                (None, old) => {
                    let old = old.unwrap();
                    Event { revision, change: Change::Deleted, object: old.at(revision), previous: Some(old) }
                }
            };
            books.tell(&event);
            let network = books.give_network(&event);
            events.push(event);
            events.extend(network);
        }
        books.changed.notify_waiters();
        Ok(events)
    }

    /// What a node on the link writes.
    fn take(&self, writes: Vec<Write>) -> Result<Vec<Event>, Rejected> {
        if self.books().is_cut {
            return Err(Rejected::Disconnected);
        }
        self.commit(writes)
    }

    fn cut(&self) {
        self.books().is_cut = true;
    }

    /// A session begins, which continues the node's knowledge or replaces it.
    fn link(&self, resumed: bool) {
        let mut books = self.books();
        books.is_cut = false;
        let net = books.net;
        let cluster = ClusterFacts {
            cluster_cidr: format!("127.{net}.0.0/16"),
            service_cidr: format!("127.{net}.1.0/24"),
            cluster_dns: None,
            cluster_domain: "cluster.local".into(),
            api: "127.0.0.1:6443".parse().unwrap(),
            loopback: true,
            node_ca_pem: String::new(),
            server_ca_pem: String::new(),
        };
        let welcome = Welcome { lineage: books.lineage.to_string(), cluster, resumed };
        let mut messages = vec![Down::Welcome(welcome)];
        let missed = std::mem::take(&mut books.missed);
        let revision = books.world.revision();
        if resumed {
            // where the node has missed nothing, nothing more is said
            if !missed.is_empty() {
                messages.extend(missed.into_iter().map(Down::Event));
                messages.push(Down::Reached(revision));
            }
        } else {
            let objects = books.world.iter().cloned().collect();
            messages.push(Down::Reset { revision, objects });
        }
        for message in messages {
            books.news.try_send(message).unwrap();
        }
    }

    /// Creates or replaces an object from YAML.
    fn apply<T: k8s_openapi::Resource>(&self, yaml: &str) -> Arc<Object> {
        let mut value: Value = serde_yaml::from_str(yaml).unwrap();
        value["apiVersion"] = T::API_VERSION.into();
        value["kind"] = T::KIND.into();
        value["metadata"]["namespace"] = "default".into();
        let name = value["metadata"]["name"].as_str().unwrap().to_owned();
        let key = Key::new(Resource::of::<T>(), "default", &name);
        let old = self.books().world.get(&key).cloned();
        let uid = old.as_ref().map_or_else(|| format!("uid-{name}"), |old| old.meta().uid.clone());
        value["metadata"]["uid"] = uid.into();
        let expect = old.map_or(Expect::Absent, |old| Expect::At(old.revision()));
        self.commit(vec![Write { key, value: Some(value), expect }]).unwrap().remove(0).object
    }

    fn pod(&self, name: &str) -> Option<Value> {
        self.books().world.get(&Key::of::<Pod>("default", name)).map(|object| object.value())
    }

    /// Waits until a pod is as wished; `None` stands for a pod that is not there.
    async fn until(&self, name: &str, wish: impl Fn(Option<&Value>) -> bool) -> Option<Value> {
        let changed = self.books().changed.clone();
        let wait = async {
            loop {
                let next = changed.notified();
                tokio::pin!(next);
                next.as_mut().enable();
                let pod = self.pod(name);
                if wish(pod.as_ref()) {
                    return pod;
                }
                next.await;
            }
        };
        let outcome = tokio::time::timeout(Duration::from_secs(60), wait).await;
        outcome.unwrap_or_else(|_| panic!("pod {name} stays {:#?}", self.pod(name).map(|pod| pod["status"].clone())))
    }

    /// Asks for a pod's deletion, as the API does.
    fn delete(&self, name: &str, grace: i64) {
        let key = Key::of::<Pod>("default", name);
        let object = self.books().world.get(&key).cloned().unwrap();
        let mut value = object.value();
        value["metadata"]["deletionTimestamp"] = state::rfc3339(Timestamp::now()).into();
        value["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        self.commit(vec![Write { key, value: Some(value), expect: Expect::At(object.revision()) }]).unwrap();
    }
}

impl Books {
    fn tell(&mut self, event: &Event) {
        self.world.fold(event);
        if self.is_cut {
            self.missed.push(event.clone());
        } else {
            let _ = self.news.try_send(Down::Event(event.clone()));
        }
    }

    /// A Node that is new gets its part of the pod network, as the cluster's controller gives it.
    fn give_network(&mut self, event: &Event) -> Option<Event> {
        let node: &k8s_openapi::api::core::v1::Node = event.object.view()?;
        if event.change == Change::Deleted || node.spec.as_ref()?.pod_cidr.is_some() {
            return None;
        }
        let mut value = event.object.value();
        value["spec"]["podCIDR"] = format!("127.{}.0.0/24", self.net).into();
        let revision = Revision(self.world.revision().0 + 1);
        let object = Arc::new(Object::encode(event.key().resource.clone(), revision, value).unwrap());
        let previous = Some(event.object.clone());
        let event = Event { revision, change: Change::Modified, object, previous };
        self.tell(&event);
        Some(event)
    }
}

fn config(data_dir: &Path, keeps_replica: bool, handle: tokio::runtime::Handle) -> AgentConfig {
    AgentConfig {
        node_name: "n".into(),
        node_ip: "127.0.0.1".parse().unwrap(),
        data_dir: data_dir.into(),
        keeps_replica,
        mesh: None,
        ingress_http_port: None,
        ingress_https_port: None,
        resolv_conf: crate::RESOLV_CONF.into(),
        master: None,
        control_plane: true,
        labels: Default::default(),
        taints: Vec::new(),
        pods_max: PODS_MAX,
        wasm: WasmLimits { instances_max: 50, ..WasmLimits::default() },
        logs: LogLimits::default(),
        commands: handle.clone(),
        data: handle,
    }
}

/// A node that runs against a master.
struct Node {
    caller: Caller,
    shutdown: CancellationToken,
    body: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Node {
    /// Starts an agent with a link; every test has its own part of 127.0.0.0/8.
    fn start(master: &Master, data_dir: &Path, net: u8) -> Self {
        let node = Self::launch(master, data_dir, net, false);
        master.link(false);
        node
    }

    /// Starts an agent that keeps its copy of the cluster on disk, and has no link yet.
    fn start_alone(master: &Master, data_dir: &Path, net: u8) -> Self {
        master.cut();
        Self::launch(master, data_dir, net, true)
    }

    fn launch(master: &Master, data_dir: &Path, net: u8, keeps_replica: bool) -> Self {
        let handle = tokio::runtime::Handle::current();
        let config = config(data_dir, keeps_replica, handle);
        let (mut master_end, node_end) = sync::local(Limits::default());
        {
            let mut books = master.books();
            books.news = master_end.down.clone();
            books.net = net;
            books.missed.clear();
        }
        let (committer, caller) = (master.clone(), master_end.caller.clone());
        tokio::spawn(async move {
            while let Some(incoming) = master_end.up.recv().await {
                match incoming {
                    Up::Writes(batch) => {
                        let answer = committer.take(batch.writes.clone());
                        batch.answer(answer);
                    }
                    Up::Renew(renewal) => {
                        let is_cut = committer.books().is_cut;
                        committer.books().beats += usize::from(!is_cut);
                        renewal.answer(if is_cut { Err(Rejected::Disconnected) } else { Ok(()) });
                    }
                }
            }
        });
        let shutdown = CancellationToken::new();
        let saved = if keeps_replica { replica::load(data_dir) } else { None };
        let (bulk, _) = sync::bulk_pair();
        let body = tokio::spawn(run(config, node_end, bulk, saved, shutdown.clone()));
        Self { caller, shutdown, body }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.body.await.unwrap().unwrap();
    }

    async fn logs(&self, pod: &str, previous: bool) -> Result<String, CallError> {
        let wanted = Logs { namespace: "default".into(), pod: pod.into(), previous, ..Logs::default() };
        let mut stream = self.caller.call(Call::Logs(wanted), sync::no_input()).await?;
        let mut text = Vec::new();
        while let Some(output) = stream.next().await {
            let Output::Stdout(bytes) = output.unwrap() else { panic!("a log has one output") };
            text.extend_from_slice(&bytes);
        }
        Ok(String::from_utf8(text).unwrap())
    }
}

fn guest(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime/tests/guests").join(name).canonicalize().unwrap()
}

fn is_ready(pod: Option<&Value>) -> bool {
    pod.is_some_and(|pod| {
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    })
}

async fn get(address: &str, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer)
}

fn setup() -> (tempfile::TempDir, Master) {
    let (news, _) = mpsc::channel(1);
    (tempfile::tempdir().unwrap(), Master::new(news))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_pod_gets_ready_serves_through_its_service_and_goes() {
    let (dir, master) = setup();
    let node = Node::start(&master, dir.path(), 201);
    let image = guest("web.wasm");
    master.apply::<Pod>(&format!(
        "{{metadata: {{name: web}}, spec: {{nodeName: n, containers: [{{name: web, image: 'file://{}', \
         readinessProbe: {{httpGet: {{path: /, port: http}}}}, ports: [{{name: http, containerPort: 8080}}]}}]}}}}",
        image.display()
    ));
    let pod = master.until("web", is_ready).await.unwrap();
    let ip = pod["status"]["podIP"].as_str().unwrap().to_owned();
    assert_eq!(pod["status"]["phase"], "Running");
    assert!(pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap().starts_with("wasmtime://"));
    assert_eq!(get(&format!("{ip}:8080"), "/").await.0, 200);
    master.apply::<Service>(
        "{metadata: {name: web}, spec: {clusterIP: 127.201.1.7, ports: [{port: 9080, protocol: TCP}]}}",
    );
    master.apply::<EndpointSlice>(&format!(
        "{{metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}, addressType: IPv4, \
         ports: [{{port: 8080, protocol: TCP, name: ''}}], endpoints: [{{addresses: ['{ip}'], conditions: {{ready: true}}}}]}}",
    ));
    // the proxy opens the Service's port a moment later
    let reached = async {
        while tokio::net::TcpStream::connect("127.201.1.7:9080").await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), reached).await.unwrap();
    assert_eq!(get("127.201.1.7:9080", "/").await.0, 200);
    assert!(dir.path().join("pods/uid-web").exists());
    master.apply::<EndpointSlice>(
        "{metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}, addressType: IPv4, ports: [], endpoints: []}",
    );
    master.delete("web", 30);
    master.until("web", |pod| pod.is_none()).await;
    node.stop().await;
    assert!(!dir.path().join("pods/uid-web").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_once_with_its_configuration_and_leaves_a_log() {
    let (dir, master) = setup();
    let node = Node::start(&master, dir.path(), 202);
    let pod = format!(
        "{{metadata: {{name: job}}, spec: {{nodeName: n, restartPolicy: Never, containers: [{{name: job, \
         image: 'file://{}', args: [show], env: [{{name: GREETING, valueFrom: {{configMapKeyRef: {{name: words, \
         key: hello}}}}}}, {{name: LOUD, value: $(GREETING)!}}]}}]}}}}",
        guest("tool.wasm").display()
    );
    master.apply::<Pod>(&pod);
    let waiting = |pod: Option<&Value>| {
        pod.unwrap()["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    };
    let pod = master.until("job", waiting).await.unwrap();
    let message = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"];
    assert_eq!(message, "configmap \"words\" not found");
    master.apply::<ConfigMap>("{metadata: {name: words}, data: {hello: ahoy}}");
    let pod = master.until("job", |pod| pod.unwrap()["status"]["phase"] == "Succeeded").await.unwrap();
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    let log = node.logs("job", false).await.unwrap();
    assert!(log.contains("ahoy!"), "{log}");
    let error = node.logs("job", true).await.map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "previous terminated container \"job\" in pod \"job\" not found");
    node.stop().await;
    // a new agent does not run it again
    let before = master.pod("job");
    let node = Node::start(&master, dir.path(), 202);
    assert!(node.logs_later("job").await.contains("ahoy!"));
    assert_eq!(master.pod("job").map(|pod| pod["status"].clone()), before.map(|pod| pod["status"].clone()));
    node.stop().await;
}

impl Node {
    /// The log, once the agent knows the pod.
    async fn logs_later(&self, pod: &str) -> String {
        let found = async {
            loop {
                match self.logs(pod, false).await {
                    Ok(text) => return text,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), found).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_agent_brings_a_running_pod_back() {
    let (dir, master) = setup();
    let node = Node::start(&master, dir.path(), 203);
    master.apply::<Pod>(&format!(
        "{{metadata: {{name: web}}, spec: {{nodeName: n, containers: [{{name: web, image: 'file://{}'}}]}}}}",
        guest("web.wasm").display()
    ));
    let first = master.until("web", is_ready).await.unwrap();
    node.stop().await;
    let node = Node::start(&master, dir.path(), 203);
    let restarted =
        |pod: Option<&Value>| is_ready(pod) && pod.unwrap()["status"]["containerStatuses"][0]["restartCount"] == 1;
    let second = master.until("web", restarted).await.unwrap();
    assert_eq!(second["status"]["podIP"], first["status"]["podIP"]);
    let last = &second["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&json!(255), &json!("Unknown")));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_pulled_waits_with_its_cause() {
    let (dir, master) = setup();
    let node = Node::start(&master, dir.path(), 204);
    master.apply::<Pod>(
        "{metadata: {name: lost}, spec: {nodeName: n, containers: [{name: c, image: 'file:///nowhere.wasm'}]}}",
    );
    master.apply::<Pod>("{metadata: {name: oci}, spec: {nodeName: n, containers: [{name: c, image: 'nginx:1'}]}}");
    let reason = |pod: Option<&Value>| {
        pod.unwrap()["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].as_str().map(ToOwned::to_owned)
    };
    for name in ["lost", "oci"] {
        let pod = master.until(name, |pod| reason(pod).as_deref() == Some("ImagePullBackOff")).await.unwrap();
        let message = pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap().to_owned();
        assert!(message.starts_with("Back-off pulling image"), "{message}");
        master.delete(name, 30);
        master.until(name, |pod| pod.is_none()).await;
    }
    node.stop().await;
}

/// A pod is replaced while clients keep asking its Service: each gets its answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_under_load_drops_no_request() {
    let (dir, master) = setup();
    let node = Node::start(&master, dir.path(), 205);
    let image = guest("web.wasm");
    let create = |name: &str| {
        master.apply::<Pod>(&format!(
            "{{metadata: {{name: {name}}}, spec: {{nodeName: n, containers: [{{name: web, image: 'file://{}'}}]}}}}",
            image.display()
        ));
    };
    let ip = |pod: Option<Value>| pod.unwrap()["status"]["podIP"].as_str().unwrap().to_owned();
    let route = |endpoints: &[(&str, bool)]| {
        let endpoints: Vec<Value> = endpoints
            .iter()
            .map(|(ip, ready)| {
                json!({
                    "addresses": [ip], "conditions": {"ready": ready, "serving": true, "terminating": !ready},
                })
            })
            .collect();
        master.apply::<EndpointSlice>(&format!(
            "{{metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}, addressType: IPv4, \
             ports: [{{port: 8080, protocol: TCP, name: ''}}], endpoints: {}}}",
            Value::from(endpoints)
        ));
    };
    create("old");
    let old = ip(master.until("old", is_ready).await);
    master.apply::<Service>(
        "{metadata: {name: web}, spec: {clusterIP: 127.205.1.7, ports: [{port: 9080, protocol: TCP}]}}",
    );
    route(&[(&old, true)]);
    let reached = async {
        while tokio::net::TcpStream::connect("127.205.1.7:9080").await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), reached).await.unwrap();
    let stop = CancellationToken::new();
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let stop = stop.clone();
            tokio::spawn(async move {
                let mut answers = 0;
                while !stop.is_cancelled() {
                    assert_eq!(get("127.205.1.7:9080", "/").await.0, 200);
                    answers += 1;
                }
                answers
            })
        })
        .collect();
    for round in 0..3 {
        let (from, to) = (if round == 0 { "old".into() } else { format!("new{round}") }, format!("new{}", round + 1));
        let before = ip(master.pod(&from));
        create(&to);
        let after = ip(master.until(&to, is_ready).await);
        route(&[(&before, true), (&after, true)]);
        master.delete(&from, 30);
        route(&[(&before, false), (&after, true)]);
        master.until(&from, |pod| pod.is_none()).await;
    }
    stop.cancel();
    for client in clients {
        assert!(client.await.unwrap() > 0);
    }
    node.stop().await;
}
