//! Pods that are half Wasm, half Docker: one address, one localhost, one set of volumes, one life.

use crate::harness::{Room, request, root, until};
use std::net::SocketAddr;

#[test]
fn a_wasm_front_end_and_a_busybox_back_end_talk_over_localhost_both_ways() {
    let Some(room) = Room::enter("mixed") else { return };
    room.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: app, labels: {app: app}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: front
    image: PROBE
    args: [http, "8000"]
    ports: [{name: http, containerPort: 8000}]
    readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
  - name: back
    image: BUSYBOX
    command: [httpd, -f, -p, "127.0.0.1:8080", -h, /www]
    livenessProbe: {exec: {command: [wget, -qO-, "http://127.0.0.1:8000/alive"]}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: app}
spec: {selector: {app: app}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Pod
metadata: {name: component}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: front, image: WEB, ports: [{containerPort: 8000}], readinessProbe: {httpGet: {path: /, port: 8000}, periodSeconds: 1}}
  - {name: back, image: BUSYBOX, command: [sleep, "1000"]}
"#,
    );
    room.wait("pod/app", "condition=Ready");
    let address: SocketAddr = format!("{}:8000", room.field("pod/app", "{.status.podIP}")).parse().unwrap();
    let neighbour = "the neighbour says: hello from busybox\n";
    let reply = until("the back end is up", || {
        request(address, "app", "/back/8080/").ok().filter(|reply| !reply.body.contains("does not answer"))
    });
    assert_eq!(reply.body, neighbour, "Wasm asks busybox, which listens on localhost only");
    let back_asks = |url: &str| room.kubectl(&["exec", "app", "-c", "back", "--", "wget", "-qO-", url]);
    assert_eq!(back_asks("http://localhost:8000/x"), "wasm answers /x\n", "busybox asks Wasm");
    let by_address = format!("http://{address}/y");
    assert_eq!(back_asks(&by_address), "wasm answers /y\n", "by the pod's own address");
    let through = ["exec", "app", "-c", "back", "--", "wget", "-qO-", "http://app.mixed.svc.cluster.local/z"];
    until("the Service answers inside the pod", || (room.try_kubectl(&through) == "wasm answers /z\n").then_some(()));
    let service = format!("{}:80", room.field("service/app", "{.spec.clusterIP}")).parse().unwrap();
    assert_eq!(request(service, "app", "/back/8080/").unwrap().body, neighbour);
    // whoever is not of the pod does not reach its localhost
    assert!(request(SocketAddr::new(address.ip(), 8080), "app", "/").is_err());
    let status = room.get("pod/app")["status"].clone();
    let mut kinds: Vec<String> = status["containerStatuses"].as_array().unwrap().iter().map(kind).collect();
    kinds.sort();
    assert_eq!(kinds, ["docker", "wasmtime"]);
    assert_eq!(room.field("pod/app", "{.status.containerStatuses[*].restartCount}"), "0 0");

    room.wait("pod/component", "condition=Ready");
    let ask = ["exec", "component", "-c", "back", "--", "wget", "-qO-", "http://localhost:8000/"];
    assert_eq!(room.kubectl(&ask), "hello\n", "an HTTP component is served inside the pod too");
}

fn kind(status: &serde_json::Value) -> String {
    status["containerID"].as_str().unwrap().split("://").next().unwrap().to_owned()
}

#[test]
fn the_example_answers_through_the_ingress() {
    let Some(room) = Room::enter("mixed-example") else { return };
    let yaml = std::fs::read_to_string(root().join("examples/mixed/mixed.yaml")).unwrap();
    room.apply(&yaml.replace("image: busybox:stable", "image: BUSYBOX"));
    room.kubectl(&["rollout", "status", "deployment/mixed", "--timeout=100s"]);
    let node = room.field("node/node", r#"{.status.addresses[?(@.type=="InternalIP")].address}"#);
    let ingress = SocketAddr::new(node.parse().unwrap(), room.server().ingress().port());
    let reply = until("the ingress answers", || {
        request(ingress, "mixed.localhost", "/").ok().filter(|reply| reply.status == 200)
    });
    let said = &reply.body;
    assert!(said.contains("hello from busybox") && said.contains("calls itself a Wasm component"), "{said}");
    assert!(said.contains("It was asked") && !said.contains("asked 0 times"), "{said}");
}

#[test]
fn they_share_volumes_and_order() {
    let Some(room) = Room::enter("mixed-order") else { return };
    room.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: relay}
spec:
  restartPolicy: Never
  volumes: [{name: work, emptyDir: {}}]
  initContainers:
  - {name: one, image: PROBE, args: [write, /step/one, from wasm], volumeMounts: &mounts [{name: work, mountPath: /step}]}
  - {name: two, image: BUSYBOX, command: [sh, -c, "cat /step/one > /step/two; echo ' and busybox' >> /step/two"], volumeMounts: *mounts}
  containers:
  - {name: three, image: PROBE, args: [cat, /step/two], volumeMounts: *mounts}
  - {name: four, image: BUSYBOX, command: [sh, -c, "ls /step"], volumeMounts: *mounts}
"#,
    );
    room.wait("pod/relay", "jsonpath={.status.phase}=Succeeded");
    assert_eq!(room.kubectl(&["logs", "relay", "-c", "three"]), "from wasm and busybox\n");
    assert_eq!(room.kubectl(&["logs", "relay", "-c", "four"]), "one\ntwo\n");
}

#[test]
fn a_sidecar_of_either_kind_outlives_the_main_container() {
    let Some(room) = Room::enter("mixed-sidecar") else { return };
    room.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: wasm-side}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 2
  initContainers:
  - {name: side, image: PROBE, args: [http, "8000"], restartPolicy: Always, startupProbe: {tcpSocket: {port: 8000}, periodSeconds: 1}}
  containers:
  - {name: main, image: BUSYBOX, command: [wget, -qO-, "http://127.0.0.1:8000/from-main"]}
---
apiVersion: v1
kind: Pod
metadata: {name: docker-side}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 2
  volumes: [{name: work, emptyDir: {}}]
  initContainers:
  - name: side
    image: BUSYBOX
    command: [sh, -c, "echo side > /step/side; sleep 1000"]
    restartPolicy: Always
    startupProbe: {exec: {command: [test, -e, /step/side]}, periodSeconds: 1}
    volumeMounts: &mounts [{name: work, mountPath: /step}]
  containers:
  - {name: main, image: PROBE, args: [cat, /step/side], volumeMounts: *mounts}
"#,
    );
    for (pod, log) in [("wasm-side", "wasm answers /from-main\n"), ("docker-side", "side\n")] {
        let what = format!("pod/{pod}");
        room.wait(&what, "jsonpath={.status.phase}=Succeeded");
        assert_eq!(room.kubectl(&["logs", pod, "-c", "main"]), log);
        let side = room.get(&what)["status"]["initContainerStatuses"][0].clone();
        assert!(side["state"]["terminated"].is_object(), "{side}");
    }
}

#[test]
fn one_restarts_and_the_other_does_not_notice() {
    let Some(room) = Room::enter("mixed-restart") else { return };
    room.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: pair}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: front, image: PROBE, args: [http, "8000"]}
  - {name: back, image: BUSYBOX, command: [sh, -c, "sleep 1; exit 1"]}
"#,
    );
    let count = |name: &str| {
        room.field("pod/pair", &format!("{{.status.containerStatuses[?(@.name==\"{name}\")].restartCount}}"))
    };
    until("the back end has been restarted", || (!["0", ""].contains(&&*count("back"))).then_some(()));
    assert_eq!(count("front"), "0");
    let address: SocketAddr = format!("{}:8000", room.field("pod/pair", "{.status.podIP}")).parse().unwrap();
    assert_eq!(request(address, "pair", "/still").unwrap().body, "wasm answers /still\n");
}
