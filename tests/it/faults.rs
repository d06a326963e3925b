//! Faults: whatever dies, is missing or misbehaves ends in a clear state and event, and leaves nothing behind.

use crate::docker::{container_id, inspect};
use crate::harness::{Busybox, Cluster, Engine, Room, User, docker, has_docker, request, until, until_or};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

#[test]
fn docker_containers_outlive_a_killed_server_and_are_adopted() {
    let Some(mut cluster) = Cluster::privileged() else { return };
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: BUSYBOX, command: [httpd, -f, -p, "8080", -h, /www]}]
---
apiVersion: v1
kind: Pod
metadata: {name: mixed}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: back, image: BUSYBOX, command: [sleep, "1000"]}
  - {name: front, image: PROBE, args: [http, "8000"]}
---
apiVersion: v1
kind: Pod
metadata: {name: ends}
spec:
  restartPolicy: Never
  containers: [{name: main, image: BUSYBOX, command: [sh, -c, "while [ ! -e /tmp/end ]; do sleep 0.1; done; exit 5"]}]
"#,
    );
    for pod in ["web", "mixed", "ends"] {
        cluster.wait(&format!("pod/{pod}"), "condition=Ready");
    }
    let address: SocketAddr = format!("{}:8080", cluster.field("pod/web", "{.status.podIP}")).parse().unwrap();
    let (web, mixed) = (facts(&cluster, "web"), facts(&cluster, "mixed"));
    let ends = container_id(&cluster, "ends");
    let before = cluster.server().containers();
    cluster.server().kill();
    assert_eq!(request(address, "web", "/").unwrap().body, "hello from busybox\n", "it serves without its server");
    docker(&["exec", &ends, "touch", "/tmp/end"]);
    until("the container has ended", || (inspect(&ends)["State"]["Running"] == false).then_some(()));
    cluster.run();
    cluster.wait("pod/ends", "jsonpath={.status.phase}=Failed");
    let code = "{.status.containerStatuses[0].state.terminated.exitCode}";
    assert_eq!(cluster.field("pod/ends", code), "5", "what happened meanwhile is seen");
    let count = |name: &str| {
        cluster.field("pod/mixed", &format!("{{.status.containerStatuses[?(@.name==\"{name}\")].restartCount}}"))
    };
    until("the program in the server's own process runs again", || (count("front") == "1").then_some(()));
    cluster.wait("pod/mixed", "condition=Ready");
    assert_eq!(count("back"), "0");
    assert_eq!((facts(&cluster, "web"), facts(&cluster, "mixed")), (web, mixed));
    let ask = ["exec", "mixed", "-c", "back", "--", "wget", "-qO-", "http://localhost:8000/again"];
    assert_eq!(
        until("localhost works again", || Some(cluster.try_kubectl(&ask)).filter(|page| !page.is_empty())),
        "wasm answers /again\n"
    );
    let mut after = cluster.server().containers();
    after.retain(|id| !before.contains(id));
    assert_eq!(after, [""; 0], "no container was made anew");

    // and a graceful end is no different
    cluster.server().stop();
    assert_eq!(request(address, "web", "/").unwrap().body, "hello from busybox\n");
    cluster.run();
    cluster.wait("pod/web", "condition=Ready");
    cluster.kubectl(&["delete", "pods", "--all"]);
    until("no container is left", || cluster.server().containers().is_empty().then_some(()));
}

/// What must not change of a pod and its first container.
fn facts(user: &User, pod: &str) -> String {
    let first = "{.metadata.uid} {.status.podIP} {.status.containerStatuses[0].containerID} \
                 {.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].state.running.startedAt}";
    user.field(&format!("pod/{pod}"), first)
}

#[test]
fn a_server_killed_in_the_middle_of_everything_leaves_no_doubles() {
    let Some(mut cluster) = Cluster::privileged() else { return };
    let pods: Vec<String> = (0..6)
        .map(|n| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{n}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
                 containers: [{{name: main, image: BUSYBOX, command: [sleep, \"1000\"]}}]\n"
            )
        })
        .collect();
    cluster.apply(&pods.join("---\n"));
    for pause in [20, 150, 400, 900] {
        std::thread::sleep(Duration::from_millis(pause)); // not a wait for anything: where the kill hits
        cluster.kill();
        cluster.run();
    }
    for n in 0..6 {
        cluster.wait(&format!("pod/p{n}"), "condition=Ready");
    }
    let owned = cluster.server().containers();
    let running = owned.iter().filter(|id| inspect(id)["State"]["Running"] == true).count();
    let names = || owned.iter().map(|id| inspect(id)["Name"].to_string()).collect::<Vec<_>>().join("\n");
    assert_eq!(running, 12, "six sandboxes and six containers:\n{}", names());
    cluster.kubectl(&["delete", "pods", "--all"]);
    until("no container is left", || cluster.server().containers().is_empty().then_some(()));
}

#[test]
fn what_is_missing_is_told_and_mends_itself() {
    let Some(room) = Room::enter("missing") else { return };
    room.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: env}
spec:
  restartPolicy: Never
  containers: [{name: main, image: BUSYBOX, command: [sh, -c, "echo $WORD"], env: [{name: WORD, valueFrom: {configMapKeyRef: {name: words, key: word}}}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: volume}
spec:
  restartPolicy: Never
  volumes: [{name: words, configMap: {name: words, items: [{key: word, path: word}]}}]
  containers: [{name: main, image: PROBE, args: [cat, /words/word], volumeMounts: [{name: words, mountPath: /words}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: secret}
spec:
  restartPolicy: Never
  containers: [{name: main, image: PROBE, args: [env], envFrom: [{secretRef: {name: hidden}}]}]
"#,
    );
    let waiting = "{.status.containerStatuses[0].state.waiting.reason}";
    room.until_field("pod/env", waiting, "CreateContainerConfigError");
    room.until_field("pod/secret", waiting, "CreateContainerConfigError");
    room.until_event("pod/env", "configmap \"words\" not found");
    room.until_event("pod/secret", "secret \"hidden\" not found");
    room.until_event("pod/volume", "MountVolume.SetUp failed for volume \"words\"");
    room.kubectl(&["create", "configmap", "words", "--from-literal=other=x"]);
    room.until_event("pod/env", "couldn't find key word in ConfigMap missing/words");
    room.kubectl(&["patch", "configmap", "words", "-p", r#"{"data":{"word":"here"}}"#]);
    room.kubectl(&["create", "secret", "generic", "hidden", "--from-literal=WORD=shown"]);
    for (pod, said) in [("env", "here"), ("volume", "here"), ("secret", "WORD=shown")] {
        room.wait(&format!("pod/{pod}"), "jsonpath={.status.phase}=Succeeded");
        assert!(room.kubectl(&["logs", pod]).contains(said));
    }
}

#[test]
fn a_container_deaf_to_sigterm_is_killed_when_its_time_is_over() {
    let Some(room) = Room::enter("deaf") else { return };
    room.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: deaf, finalizers: [example.com/look]}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - {name: busybox, image: BUSYBOX, command: [sh, -c, "trap '' TERM; while true; do sleep 1; done"]}
  - {name: wasm, image: PROBE, args: [spin]}
"#,
    );
    room.wait("pod/deaf", "condition=Ready");
    let begun = Instant::now();
    room.kubectl(&["delete", "pod", "deaf", "--wait=false"]);
    let codes = "{.status.containerStatuses[*].state.terminated.exitCode}";
    until("both have ended", || (room.field("pod/deaf", codes).split(' ').count() == 2).then_some(()));
    assert!(begun.elapsed() >= Duration::from_millis(1900), "{:?}", begun.elapsed());
    let busybox = "{.status.containerStatuses[?(@.name==\"busybox\")].state.terminated.exitCode}";
    assert_eq!(room.field("pod/deaf", busybox), "137");
    room.kubectl(&["patch", "pod", "deaf", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]);
    until("the pod is gone", || room.field("pod/deaf", "{.metadata.name}").is_empty().then_some(()));
}

#[test]
fn a_line_of_ten_megabytes_is_one_line() {
    let Some(room) = Room::enter("long-line") else { return };
    room.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: docker}
spec:
  restartPolicy: Never
  containers: [{name: main, image: BUSYBOX, command: [sh, -c, "head -c 10485760 /dev/zero | tr '\\0' x; echo; echo after it"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: wasm}
spec:
  restartPolicy: Never
  containers: [{name: main, image: PROBE, args: [long, "10"]}]
"#,
    );
    for pod in ["docker", "wasm"] {
        room.wait(&format!("pod/{pod}"), "jsonpath={.status.phase}=Succeeded");
        let log = room.kubectl(&["logs", pod]);
        // a log that is rotated may have lost the beginning, never the end
        assert!(log.ends_with("x\nafter it\n"), "{pod}: {} bytes", log.len());
        let begin = log.trim_start_matches('x');
        assert_eq!(begin, "\nafter it\n", "{pod}: {} bytes, {:?}", log.len(), &begin[..begin.len().min(100)]);
        assert_eq!(room.kubectl(&["logs", pod, "--tail=1"]), "after it\n");
    }
}

#[test]
fn the_dead_answer_no_exec() {
    let Some(room) = Room::enter("dead") else { return };
    room.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: over}
spec:
  restartPolicy: Never
  containers: [{name: main, image: BUSYBOX, command: ["true"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: half}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - {name: ended, image: BUSYBOX, command: ["true"]}
  - {name: gone, image: PROBE, args: [args]}
  - {name: alive, image: BUSYBOX, command: [sleep, "1000"]}
---
apiVersion: v1
kind: Pod
metadata: {name: nowhere}
spec:
  restartPolicy: Never
  containers: [{name: main, image: BUSYBOX, command: [/no/such/program]}]
"#,
    );
    room.wait("pod/over", "jsonpath={.status.phase}=Succeeded");
    let refused = |arguments: &[&str], words: &str| {
        let output = room.kubectl_output(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(words), "{arguments:?}: {said}");
    };
    refused(&["exec", "over", "--", "true"], "cannot exec into a container in a completed pod");
    let ended = "{.status.containerStatuses[*].state.terminated.exitCode}";
    room.until_field("pod/half", ended, "0 0");
    refused(&["exec", "half", "-c", "ended", "--", "true"], "container not found");
    refused(&["exec", "half", "-c", "gone", "--", "probe", "args"], "container not found");
    refused(&["attach", "half", "-c", "ended"], "");
    assert!(room.kubectl_output(&["exec", "half", "-c", "alive", "--", "true"]).status.success());
    room.until_event("pod/nowhere", "exec: \"/no/such/program\"");
    let ended = "{.status.phase} {.status.containerStatuses[0].state.terminated['reason','exitCode']}";
    room.until_field("pod/nowhere", ended, "Failed StartError 128");
}

#[test]
fn a_node_without_docker_runs_wasm_only_and_says_so() {
    if !has_docker() {
        return; // it takes root, not Docker; both come together
    }
    let cluster = Cluster::with_docker_at("unix:///nowhere/docker.sock");
    cluster.apply(&format!(
        "{}---\n{}",
        lone("wasm", "image: PROBE, args: [http, \"8000\"]"),
        lone("docker", "image: BUSYBOX")
    ));
    cluster.wait("pod/wasm", "condition=Ready");
    assert_eq!(cluster.field("node/node", r"{.metadata.labels.coracle\.dev/runtime-docker}"), "false");
    let handlers = cluster.field("node/node", "{.status.runtimeHandlers[*].name}");
    assert!(handlers.contains("wasm") && !handlers.contains("docker"), "{handlers}");
    let told = cluster.field("node/node", "{.metadata.annotations}");
    assert!(told.contains("/nowhere/docker.sock"), "{told}");
    until("the pod that cannot run here is told so", || {
        let events = cluster.events("pod/docker").to_lowercase();
        events.contains("docker").then_some(())
    });
    assert_ne!(cluster.field("pod/docker", "{.status.phase}"), "Running");
}

#[test]
fn docker_may_be_killed_and_come_back() {
    if !has_docker() {
        return;
    }
    let busybox = Busybox::make();
    let engine = Engine::start(&busybox);
    let cluster = Cluster::with_docker_at(&engine.host());
    cluster.apply(&format!(
        "{}---\n{}---\n{}",
        lone("web", "image: BUSYBOX, command: [httpd, -f, -p, \"8080\", -h, /www]"),
        lone("wasm", "image: PROBE, args: [http, \"8000\"]"),
        lone(
            "mixed",
            "image: PROBE, args: [http, \"8000\"]}\n  - {name: back, image: BUSYBOX, command: [sleep, \"1000\"]"
        )
    ));
    for pod in ["web", "wasm", "mixed"] {
        cluster.wait(&format!("pod/{pod}"), "condition=Ready");
    }
    let has = || cluster.field("node/node", r"{.metadata.labels.coracle\.dev/runtime-docker}");
    assert_eq!(has(), "true");
    // killed while it makes something
    cluster.apply(&lone("late", "image: BUSYBOX, command: [sleep, \"1000\"]"));
    engine.kill();
    until("the node says that its Docker is gone", || (has() != "true").then_some(()));
    assert_eq!(cluster.field("pod/wasm", "{.status.containerStatuses[0].restartCount}"), "0");
    assert_eq!(cluster.field("node/node", READY), "True");
    engine.run();
    until("it is back", || (has() == "true").then_some(()));
    for pod in ["web", "mixed", "late"] {
        cluster.wait(&format!("pod/{pod}"), "condition=Ready");
    }
    let address: SocketAddr = format!("{}:8080", cluster.field("pod/web", "{.status.podIP}")).parse().unwrap();
    until("it serves again", || request(address, "web", "/").ok().filter(|reply| reply.status == 200));
    assert_eq!(cluster.field("pod/wasm", "{.status.containerStatuses[0].restartCount}"), "0");
    let ask = ["exec", "mixed", "-c", "back", "--", "wget", "-qO-", "http://localhost:8000/x"];
    until("localhost works again", || (cluster.try_kubectl(&ask) == "wasm answers /x\n").then_some(()));
    // stopped in good order, which stops the containers too
    engine.stop();
    until("the node says that its Docker is gone", || (has() != "true").then_some(()));
    engine.run();
    for pod in ["web", "mixed", "late"] {
        cluster.wait(&format!("pod/{pod}"), "condition=Ready");
    }
    cluster.kubectl(&["delete", "pods", "--all"]);
    let containers = || engine.docker(&["ps".as_ref(), "--all".as_ref(), "--quiet".as_ref()]);
    until("no container is left", || containers().is_empty().then_some(()));
}

const READY: &str = r#"{.status.conditions[?(@.type=="Ready")].status}"#;

fn lone(name: &str, container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
         - {{name: main, {container}}}\n"
    )
}

/// What the host holds of a cluster.
#[derive(Debug, PartialEq)]
struct Held {
    containers: Vec<String>,
    mounts: Vec<String>,
    links: Vec<String>,
    pod_folders: Vec<String>,
}

#[test]
fn nothing_is_left_of_pods_that_came_and_went() {
    let Some(cluster) = Cluster::privileged() else { return };
    const CYCLES: usize = 4;
    const PODS: usize = 5;
    let pod = |n: usize| {
        format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{name: p{n}}}
spec:
  terminationGracePeriodSeconds: 0
  volumes:
  - {{name: memory, emptyDir: {{medium: Memory}}}}
  - {{name: empty, emptyDir: {{}}}}
  - {{name: config, configMap: {{name: kept}}}}
  containers:
  - {{name: busybox, image: BUSYBOX, command: [sh, -c, "echo x > /memory/x; sleep 1000"], volumeMounts: &mounts [{{name: memory, mountPath: /memory}}, {{name: empty, mountPath: /empty}}, {{name: config, mountPath: /config}}, {{name: config, mountPath: /single, subPath: word}}]}}
  - {{name: wasm, image: PROBE, args: [http, "8000"], volumeMounts: [{{name: memory, mountPath: /memory}}, {{name: config, mountPath: /config}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: w{n}}}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{{name: empty, emptyDir: {{}}}}]
  containers: [{{name: wasm, image: PROBE, args: [http, "8000"], volumeMounts: [{{name: empty, mountPath: /empty}}]}}]
"#
        )
    };
    let pods: Vec<String> = (0..PODS).map(pod).collect();
    let pods = pods.join("---");
    cluster.kubectl(&["create", "configmap", "kept", "--from-literal=word=x"]);
    let server = cluster.server();
    let held = || Held {
        containers: server.containers(),
        mounts: server.mounts(),
        links: server.links(),
        pod_folders: server.pod_folders(),
    };
    let empty = held();
    let mut files = Vec::new();
    for _ in 0..CYCLES {
        cluster.apply(&pods);
        cluster.kubectl(&["wait", "pods", "--all", "--for=condition=Ready", "--timeout=100s"]);
        cluster.kubectl(&["delete", "pods", "--all"]);
        until_or(
            || (held() == empty).then_some(()),
            || format!("nothing is held: {:?}, at first {empty:?}\n{}", held(), server.log()),
        );
        files.push(server.open_files());
    }
    // connections that are kept for a while come and go
    let (first, last) = (files[0], files[CYCLES - 1]);
    assert!(last <= first + 8, "open files: {files:?}");
}
