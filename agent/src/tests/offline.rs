//! The node without its master: it starts from its disk, keeps what it cannot tell, and restarts nothing on return.

use super::*;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::Node as NodeObject;

fn web(image: &Path) -> String {
    format!(
        "{{metadata: {{name: web}}, spec: {{nodeName: n, containers: [{{name: web, image: 'file://{}'}}]}}}}",
        image.display()
    )
}

fn job(arguments: &str) -> String {
    format!(
        "{{metadata: {{name: job}}, spec: {{nodeName: n, restartPolicy: OnFailure, containers: [{{name: job, \
         image: 'file://{}', args: {arguments}}}]}}}}",
        guest("tool.wasm").display()
    )
}

/// Waits until a condition holds that nobody tells of.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

async fn serves(address: &str) {
    let reached = async {
        while tokio::net::TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reached).await.unwrap();
    assert_eq!(get(address, "/").await.0, 200);
}

fn container(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_starts_its_pods_from_disk_and_reports_on_return() {
    let (dir, master) = setup();
    let node = Node::start_alone(&master, dir.path(), 211);
    master.link(false);
    master.apply::<Pod>(&web(&guest("web.wasm")));
    let first = master.until("web", is_ready).await.unwrap();
    let ip = first["status"]["podIP"].as_str().unwrap().to_owned();
    master.apply::<Service>(
        "{metadata: {name: web}, spec: {clusterIP: 127.211.1.7, ports: [{port: 9080, protocol: TCP}]}}",
    );
    master.apply::<EndpointSlice>(&format!(
        "{{metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}, addressType: IPv4, \
         ports: [{{port: 8080, protocol: TCP, name: ''}}], endpoints: [{{addresses: ['{ip}'], conditions: {{ready: true}}}}]}}",
    ));
    serves("127.211.1.7:9080").await;
    node.stop().await;
    let saved = replica::load(dir.path()).unwrap();
    assert_eq!(saved.position().unwrap().lineage, "1");
    assert_eq!(saved.facts().cluster_domain, "cluster.local");

    // as after a reboot, with nobody to ask
    let node = Node::start_alone(&master, dir.path(), 211);
    serves(&format!("{ip}:8080")).await;
    serves("127.211.1.7:9080").await;
    assert_eq!(container(&master.pod("web").unwrap())["restartCount"], 0, "nobody was told");
    let beats = master.books().beats;
    master.link(true);
    let told = |pod: Option<&Value>| is_ready(pod) && container(pod.unwrap())["restartCount"] == 1;
    let second = master.until("web", told).await.unwrap();
    assert_eq!(second["status"]["podIP"], first["status"]["podIP"]);
    eventually("the heart beats again", || master.books().beats > beats).await;

    // a link that breaks and returns restarts nothing
    for resumed in [true, false] {
        master.cut();
        master.link(resumed);
        serves(&format!("{ip}:8080")).await;
    }
    let third = master.pod("web").unwrap();
    assert_eq!(container(&third)["containerID"], container(&second)["containerID"]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ended_without_a_link_does_not_run_again_and_is_told() {
    let (dir, master) = setup();
    let node = Node::start_alone(&master, dir.path(), 212);
    master.link(false);
    eventually("the node is registered", || {
        master.books().world.get(&Key::of::<NodeObject>("", "n")).is_some_and(|node| node.value()["status"].is_object())
    })
    .await;
    {
        // it comes down, and nothing of it goes up any more
        let _ = master.apply::<Pod>(&job("[show]"));
        master.cut();
    }
    let log = dir.path().join("logs/pods/default_job_uid-job/job/0.log");
    let is_kept = |phase: &'static str| {
        let dir = dir.path().to_owned();
        move || {
            let text = std::fs::read(dir.join("replica/world")).unwrap_or_default();
            text.windows(phase.len()).any(|window| window == phase.as_bytes())
        }
    };
    eventually("its end is on the disk", is_kept("\"phase\":\"Succeeded\"")).await;
    assert!(log.exists());
    node.stop().await;
    let node = Node::start_alone(&master, dir.path(), 212);
    assert!(!node.logs_later("job").await.is_empty());
    assert!(!log.with_file_name("1.log").exists());
    assert!(master.pod("job").unwrap()["status"]["phase"].as_str().is_none_or(|phase| phase != "Succeeded"));
    master.link(true);
    let pod = master.until("job", |pod| pod.unwrap()["status"]["phase"] == "Succeeded").await.unwrap();
    assert_eq!(container(&pod)["restartCount"], 0);
    assert_eq!(container(&pod)["state"]["terminated"]["reason"], "Completed");
    node.stop().await;
    assert!(!log.with_file_name("1.log").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_meanwhile_is_stopped_and_an_older_master_is_followed() {
    let (dir, master) = setup();
    let node = Node::start_alone(&master, dir.path(), 213);
    master.link(false);
    master.apply::<Pod>(&web(&guest("web.wasm")));
    master.apply::<Pod>(&job("[sleep]"));
    let first = master.until("web", is_ready).await.unwrap();
    let is_running = |pod: Option<&Value>| pod.unwrap()["status"]["phase"] == "Running";
    master.until("job", is_running).await;
    master.cut();
    let key = Key::of::<Pod>("default", "job");
    let uid = "uid-job".to_owned();
    master.commit(vec![Write { key, value: None, expect: Expect::Uid(uid) }]).unwrap();
    assert!(dir.path().join("pods/uid-job").exists());
    master.link(true);
    eventually("the deleted pod's files are gone", || !dir.path().join("pods/uid-job").exists()).await;

    // the master comes back from a copy that is older: smaller revisions, the same pod
    master.cut();
    {
        let mut books = master.books();
        let mut older = World::default();
        for (revision, object) in (1..).zip(books.world.iter()) {
            let object = Object::encode(object.key().resource.clone(), Revision(revision), object.value()).unwrap();
            older.put(Arc::new(object));
            older.advance(Revision(revision));
        }
        assert!(older.revision() < books.world.revision());
        books.world = older;
        books.lineage += 1;
        books.missed.clear();
    }
    master.link(false);
    let mut value = master.pod("web").unwrap();
    assert_eq!(container(&value)["containerID"], container(&first)["containerID"]);
    value["status"] = json!({});
    let object = master.books().world.get(&Key::of::<Pod>("default", "web")).cloned().unwrap();
    let write = Write { key: object.key().clone(), value: Some(value), expect: Expect::At(object.revision()) };
    master.commit(vec![write]).unwrap();
    let again = master.until("web", is_ready).await.unwrap();
    assert_eq!(container(&again)["containerID"], container(&first)["containerID"], "it was left alone");
    master.delete("web", 1);
    master.until("web", |pod| pod.is_none()).await;
    node.stop().await;
    assert_eq!(replica::load(dir.path()).unwrap().position().unwrap().lineage, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cron_job_of_the_node_runs_without_a_link_once_and_is_told() {
    let (dir, master) = setup();
    let node = Node::start_alone(&master, dir.path(), 214);
    master.link(false);
    eventually("the node runs CronJobs", || {
        let node = master.books().world.get(&Key::of::<NodeObject>("", "n")).cloned();
        node.is_some_and(|node| node.meta().annotations.contains_key(state::cron::RUNS))
    })
    .await;
    let created = state::rfc3339(Timestamp::now());
    master.apply::<CronJob>(&format!(
        "{{metadata: {{name: tick, creationTimestamp: '{created}'}}, spec: {{schedule: '@every 2s', jobTemplate: {{spec: {{template: {{spec: \
         {{nodeName: n, restartPolicy: Never, containers: [{{name: job, image: 'file://{}', args: [show]}}]}}}}}}}}}}}}",
        guest("tool.wasm").display()
    ));
    master.cut();
    let logs = || -> Vec<PathBuf> {
        let pods = std::fs::read_dir(dir.path().join("logs/pods")).into_iter().flatten().flatten();
        pods.map(|pod| pod.path().join("job/0.log")).filter(|log| log.exists()).collect()
    };
    eventually("a pod has run", || !logs().is_empty()).await;
    let is_kept = || {
        let text = std::fs::read(dir.path().join("replica/world")).unwrap_or_default();
        let end = b"\"phase\":\"Succeeded\"";
        text.windows(end.len()).any(|window| window == end)
    };
    eventually("its end is on the disk", is_kept).await;
    let jobs = |master: &Master| -> Vec<Arc<Object>> { master.books().world.all::<Job>(None).cloned().collect() };
    assert!(jobs(&master).is_empty(), "nobody was told");
    node.stop().await;

    // as after a reboot: what was served is known
    let node = Node::start_alone(&master, dir.path(), 214);
    master.link(false);
    eventually("the master knows", || !jobs(&master).is_empty()).await;
    let pods = || -> Vec<Value> { master.books().world.all::<Pod>(None).map(|pod| pod.value()).collect() };
    eventually("it has ended there too", || {
        pods().iter().any(|pod| pod["status"]["phase"] == "Succeeded" && !pod["status"]["podIP"].is_null())
    })
    .await;
    for job in jobs(&master) {
        let own =
            pods().into_iter().filter(|pod| pod["metadata"]["ownerReferences"][0]["uid"] == job.meta().uid.as_str());
        assert_eq!(own.count(), 1, "{} ran once", job.key());
    }
    assert!(pods().iter().all(|pod| container(pod)["restartCount"] == 0));
    node.stop().await;
}
