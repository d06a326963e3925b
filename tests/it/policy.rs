//! Network policies: pods of both kinds on two machines, and who may talk to whom as policies come, change, and go.

use crate::harness::{Cluster, Fleet, User, request, until, until_or};
use std::cell::RefCell;
use std::net::SocketAddr;

/// A pod of the probe, with more in its spec.
fn pod(namespace: &str, name: &str, node: &str, container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}\nspec:\n  \
         nodeSelector: {{kubernetes.io/hostname: {node}}}\n  terminationGracePeriodSeconds: 1\n  \
         containers: [{{name: main, {container}}}]\n---\n"
    )
}

/// One that answers on port 8000, which it calls `web`, and asks others.
fn asker(namespace: &str, name: &str, node: &str) -> String {
    pod(namespace, name, node, "image: PROBE, args: [http, \"8000\"], ports: [{name: web, containerPort: 8000}]")
}

fn service(name: &str, port: u16, protocol: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  \
         ports: [{{port: {port}, protocol: {protocol}}}]\n---\n"
    )
}

/// A policy with that spec, in YAML's flow style.
fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n"
    )
}

/// The pods of a test, and what they say of each other.
struct Pods<'a> {
    user: &'a User,
}

impl Pods<'_> {
    fn ip(&self, pod: &str) -> String {
        let (namespace, name) = pod.split_once('/').unwrap_or(("default", pod));
        self.user.kubectl(&["get", "pod", name, "-n", namespace, "-o", "jsonpath={.status.podIP}"])
    }

    /// What a Wasm pod hears when it asks that.
    fn hears(&self, from: &str, path: &str) -> String {
        let at: SocketAddr = format!("{}:8000", self.ip(from)).parse().unwrap();
        request(at, "pod", path).map(|reply| reply.body).unwrap_or_default()
    }

    /// Waits until a Wasm pod is answered by `host:port`, or not.
    #[track_caller]
    fn asks(&self, from: &str, to: &str, may: bool) {
        let path = format!("/at/{to}/x");
        let wanted = if may { "the neighbour says: " } else { "the neighbour does not answer" };
        until(&format!("{from} asks {to}: {may}"), || self.hears(from, &path).starts_with(wanted).then_some(()));
    }

    /// The same from the container of Docker, which waits in vain rather than being refused.
    #[track_caller]
    fn gets(&self, to: &str, may: bool) {
        let url = format!("http://{to}/x");
        let get: &[&str] = &["exec", "docker", "--", "timeout", "1", "wget", "-qO-", &url];
        until(&format!("docker gets {to}: {may}"), || {
            (self.user.client("kubectl", get, b"").status.success() == may).then_some(())
        });
    }
}

#[test]
fn policies_say_who_talks_to_whom() {
    let Some(fleet) = Fleet::launch(1) else { return };
    let user: &User = &fleet;
    user.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: other, labels: {team: x}}\n");
    user.apply(
        &(asker("default", "web", "agent-0")
            + &asker("default", "near", "agent-0")
            + &asker("default", "far", "node")
            + &asker("other", "guest", "node")
            + &pod("default", "echo", "agent-0", "image: PROBE, args: [echo, \"7000\"]")
            + &pod("default", "docker", "node", "image: BUSYBOX, command: [httpd, -f, -p, \"8000\", -h, /www]")
            + &service("web", 8000, "TCP")
            + &service("docker", 8000, "TCP")
            + &service("echo", 7000, "UDP")),
    );
    for name in ["web", "near", "far", "echo", "docker"] {
        user.wait(&format!("pod/{name}"), "condition=Ready");
    }
    user.kubectl(&["wait", "-n", "other", "pod/guest", "--for=condition=Ready", "--timeout=60s"]);
    let pods = Pods { user };
    let at = |pod: &str| format!("{}:8000", pods.ip(pod));
    let (web, docker) = (at("web"), at("docker"));
    let echo = format!("/udp/{}:7000/word", pods.ip("echo"));

    // everybody may, and comes from an address of its own
    pods.asks("far", &web, true);
    pods.asks("near", &web, true);
    pods.asks("near", &docker, true);
    pods.gets(&web, true);
    let heard = until("a datagram's answer", || Some(pods.hears("far", &echo)).filter(|text| text.contains("says")));
    assert!(heard.contains(&format!("word from {}", pods.ip("far"))), "{heard}");

    // nobody may come, but nodes
    user.apply(&policy("deny", "podSelector: {}"));
    for from in ["far", "near", "other/guest"] {
        pods.asks(from, &web, false);
        pods.asks(from, "web.default:8000", false);
        pods.asks(from, &docker, false);
        pods.asks(from, "docker.default:8000", false);
    }
    pods.gets(&web, false);
    pods.gets("web:8000", false);
    assert!(pods.hears("far", &echo).starts_with("the neighbour does not answer"));
    assert!(pods.hears("far", "/udp/echo:7000/word").starts_with("the neighbour does not answer"));
    assert_eq!(pods.hears("web", "/x"), "wasm answers /x\n");
    assert_eq!(request(docker.parse().unwrap(), "pod", "/").unwrap().body, "hello from busybox\n");

    // by label, at a port by name; to both kinds of pods
    user.apply(&policy(
        "some",
        "podSelector: {matchExpressions: [{key: app, operator: In, values: [web, docker]}]}, \
         ingress: [{from: [{podSelector: {matchLabels: {app: far}}}], ports: [{port: 8000}]}]",
    ));
    pods.asks("far", &web, true);
    pods.asks("far", "web:8000", true);
    pods.asks("far", &docker, true);
    pods.asks("near", &web, false);
    pods.asks("near", &docker, false);
    pods.asks("other/guest", &web, false);
    user.kubectl(&["label", "pod", "near", "app=far", "--overwrite"]);
    pods.asks("near", &docker, true);
    pods.asks("near", &web, true);
    user.kubectl(&["label", "pod", "near", "app=near", "--overwrite"]);
    pods.asks("near", &docker, false);
    let patch = |ports: &str| {
        let patch = format!(r#"[{{"op": "replace", "path": "/spec/ingress/0/ports", "value": [{ports}]}}]"#);
        user.kubectl(&["patch", "netpol", "some", "--type=json", "-p", &patch]);
    };
    patch(r#"{"port": 8001}"#);
    pods.asks("far", &web, false);
    pods.asks("far", &docker, false);
    patch(r#"{"port": "web"}"#);
    pods.asks("far", &web, true);
    pods.asks("far", &docker, false);
    patch(r#"{"port": 7999, "endPort": 8001}"#);
    pods.asks("far", &docker, true);

    // by namespace, by address, by datagrams
    user.apply(&policy(
        "more",
        &format!(
            "podSelector: {{}}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{team: x}}}}}}]}}, \
             {{from: [{{ipBlock: {{cidr: {}/32}}}}]}}]",
            pods.ip("docker")
        ),
    ));
    pods.asks("other/guest", &web, true);
    pods.asks("other/guest", "docker.default:8000", true);
    pods.gets(&web, true);
    pods.gets("web:8000", true);
    user.kubectl(&["label", "namespace", "other", "team-"]);
    pods.asks("other/guest", &docker, false);
    pods.asks("other/guest", &web, false);
    user.apply(&policy(
        "datagrams",
        "podSelector: {matchLabels: {app: echo}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 7000, protocol: UDP}]}]",
    ));
    for path in [echo.as_str(), "/udp/echo:7000/word"] {
        until(path, || pods.hears("far", path).contains("says: word from").then_some(()));
    }

    // where pods may go
    user.apply(
        &(policy("out", "podSelector: {matchLabels: {app: far}}, policyTypes: [Egress]")
            + &policy("locked", "podSelector: {matchLabels: {app: docker}}, policyTypes: [Egress]")),
    );
    pods.asks("far", &web, false);
    pods.asks("far", "web:8000", false);
    pods.gets(&web, false);
    pods.gets("web:8000", false);
    user.apply(&policy("locked", "podSelector: {matchLabels: {app: docker}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]"));
    pods.gets(&web, true);
    pods.gets("web:8000", true);

    // and all is as before
    let shown = user.kubectl(&["get", "netpol"]);
    assert!(shown.lines().next().unwrap().split_whitespace().eq(["NAME", "POD-SELECTOR", "AGE"]), "{shown}");
    let said = user.kubectl(&["describe", "netpol", "some"]);
    assert!(said.contains("Allowing ingress traffic") && said.contains("PodSelector: app=far"), "{said}");
    user.kubectl(&["delete", "netpol", "--all"]);
    pods.asks("far", &web, true);
    pods.asks("near", &docker, true);
    pods.asks("other/guest", "docker.default:8000", true);
    pods.gets(&web, true);
}

#[test]
fn a_pod_that_starts_is_guarded_before_it_runs() {
    let Some(cluster) = Cluster::privileged() else { return };
    let user: &User = &cluster;
    user.apply(&policy("locked", "podSelector: {matchLabels: {app: docker}}, policyTypes: [Egress]"));
    user.apply(&asker("default", "web", "node"));
    user.wait("pod/web", "condition=Ready");
    let web = user.field("pod/web", "{.status.podIP}");
    let script = format!("timeout 2 wget -qO- http://{web}:8000/ && echo LEAK || echo held; sleep 1000");
    user.apply(&pod("default", "docker", "node", &format!("image: BUSYBOX, command: [sh, -c, \"{script}\"]")));
    user.wait("pod/docker", "condition=Ready");
    let log = until("what it could do", || {
        Some(user.kubectl(&["logs", "docker"])).filter(|log| log.contains("held") || log.contains("LEAK"))
    });
    assert!(!log.contains("LEAK"), "{log}");
}

#[test]
fn what_is_no_policy_is_refused() {
    let cluster = Cluster::start();
    let file = cluster.file("bad.yaml", &policy("bad", "podSelector: {}, ingress: [{from: [{}], ports: [{port: 0}]}]"));
    let output = cluster.kubectl_output(&["apply", "-f", &file]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    for words in [
        "spec.ingress[0].from[0]: Required value: must specify a peer",
        "spec.ingress[0].ports[0].port: Invalid value: 0",
    ] {
        assert!(said.contains(words), "{said}");
    }
    // without privilege too: pods of loopback are judged by their own addresses
    let web = "image: WEB, ports: [{containerPort: 8080}]";
    cluster.apply(
        &(asker("default", "one", "node")
            + &asker("default", "two", "node")
            + &pod("default", "front", "node", web)
            + &pod("default", "backend", "node", web)
            + &service("two", 8000, "TCP")
            + "apiVersion: v1\nkind: Service\nmetadata: {name: backend}\nspec: {selector: {app: backend}, ports: [{port: 80, targetPort: 8080}]}\n"),
    );
    for name in ["one", "two", "front", "backend"] {
        cluster.wait(&format!("pod/{name}"), "condition=Ready");
    }
    let pods = Pods { user: &cluster };
    let two = format!("{}:8000", pods.ip("two"));
    pods.asks("one", &two, true);
    let front: SocketAddr = format!("{}:8080", pods.ip("front")).parse().unwrap();
    let fetches = |wanted: &str| {
        let said = RefCell::new(String::new());
        let ask = || {
            said.replace(request(front, "front", "/fetch").map(|reply| reply.body).unwrap_or_default());
            said.borrow().contains(wanted).then_some(())
        };
        until_or(ask, || format!("a function call to {wanted}, but {}", said.borrow()));
    };
    fetches("404 no such path");
    cluster
        .apply(&policy("deny", "podSelector: {matchExpressions: [{key: app, operator: In, values: [two, backend]}]}"));
    fetches("ConnectionRefused");
    pods.asks("one", &two, false);
    pods.asks("one", "two:8000", false);
    cluster.apply(&policy("allow", "podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: one}}}]}]"));
    pods.asks("one", &two, true);
    pods.asks("one", "two:8000", true);
    cluster.kubectl(&["delete", "netpol", "deny"]);
    fetches("ConnectionRefused");
    cluster.kubectl(&["label", "pod", "front", "app=one", "--overwrite"]);
    fetches("404 no such path");
}
