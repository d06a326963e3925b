//! Nodes without privilege: their pods reach all others, and are reached by them.

use crate::harness::{Agent, Fleet, User, request, until};
use crate::streams::Forward;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;

/// A pod of the probe on a node, with a Service of its name.
fn pod(name: &str, node: &str, verb: &str, port: u16, protocol: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  \
         nodeSelector: {{kubernetes.io/hostname: {node}}}\n  terminationGracePeriodSeconds: 1\n  \
         containers: [{{name: main, image: PROBE, args: [{verb}, \"{port}\"], ports: [{{containerPort: {port}, protocol: {protocol}}}]}}]\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  \
         ports: [{{port: {port}, protocol: {protocol}}}]\n---\n"
    )
}

/// An HTTP component on a node, with a Service of its name: both on port 80.
fn component(name: &str, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  \
         nodeSelector: {{kubernetes.io/hostname: {node}}}\n  terminationGracePeriodSeconds: 1\n  \
         containers: [{{name: main, image: WEB, ports: [{{containerPort: 80}}]}}]\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  ports: [{{port: 80}}]\n---\n"
    )
}

fn ip(user: &User, pod: &str) -> String {
    user.field(&format!("pod/{pod}"), "{.status.podIP}")
}

/// The way to tell a pod whom to ask.
fn way(user: &User, pod: &str) -> Forward {
    Forward::start(user, Path::new("kubectl"), &format!("pod/{pod}"), &[":8000"])
}

/// What a pod is told by whoever it asks.
fn asked(way: &Forward, path: &str) -> String {
    request(way.ports[0], "pod", path).map(|reply| reply.body).unwrap_or_default()
}

/// Each of the pods reaches each of the others, by TCP and by datagrams, at its address and through its Service, and knows who asks.
fn all_reach_all(user: &User, nodes: &[&str]) {
    let mut all = String::new();
    for node in nodes {
        write!(
            all,
            "{}{}{}",
            pod(&format!("ask-{node}"), node, "http", 8000, "TCP"),
            pod(&format!("echo-{node}"), node, "echo", 53, "UDP"),
            component(&format!("web-{node}"), node)
        )
        .unwrap();
    }
    user.apply(&all);
    let wait = |kind: &str| {
        for node in nodes {
            user.wait(&format!("pod/{kind}-{node}"), "condition=Ready");
        }
    };
    ["ask", "echo", "web"].into_iter().for_each(wait);
    for from in nodes {
        let asker = format!("ask-{from}");
        let (own, way) = (ip(user, &asker), way(user, &asker));
        for to in nodes {
            let says = |path: &str, words: &str| {
                let what = format!("{path} from {asker} says {words}");
                until(&what, || asked(&way, path).contains(words).then_some(()));
            };
            // it answers one at a time
            if from != to {
                says(&format!("/at/{}:8000/x", ip(user, &format!("ask-{to}"))), "wasm answers /x");
                says(&format!("/at/ask-{to}:8000/y"), "wasm answers /y");
            }
            says(&format!("/at/web-{to}:80/"), "hello");
            says(&format!("/udp/echo-{to}:53/again"), "again from ");
            let who = if network(user, from) == "user" { own.as_str() } else { "" };
            says(&format!("/udp/{}:53/word", ip(user, &format!("echo-{to}"))), &format!("word from {who}"));
        }
    }
}

/// A policy lets one pod reach those of a node, and the other not, by TCP and by datagrams.
fn policies_hold(user: &User, friend: &str, stranger: &str, node: &str) {
    user.apply(&format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: friends}}\nspec: {{podSelector: \
         {{matchExpressions: [{{key: app, operator: In, values: [ask-{node}, echo-{node}, web-{node}]}}]}}, \
         ingress: [{{from: [{{podSelector: {{matchLabels: {{app: {friend}}}}}}}]}}]}}\n"
    ));
    let places = [("at", "ask", 8000), ("at", "web", 80), ("udp", "echo", 53)];
    let paths = places.map(|(verb, pod, port)| format!("/{verb}/{}:{port}/x", ip(user, &format!("{pod}-{node}"))));
    for (asker, wanted) in [(stranger, "the neighbour does not answer"), (friend, "the neighbour says: ")] {
        let way = way(user, asker);
        for path in &paths {
            let what = format!("{path}, with a policy, from {asker}: {wanted}");
            until(&what, || asked(&way, path).starts_with(wanted).then_some(()));
        }
    }
    user.kubectl(&["delete", "netpol", "friends"]);
}

fn network(user: &User, node: &str) -> String {
    user.field(&format!("node/{node}"), r"{.metadata.labels.coracle\.dev/network}")
}

#[test]
fn agents_of_an_ordinary_user_join_a_privileged_master() {
    let Some(fleet) = Fleet::launch_rootless_agents(2) else { return };
    assert_eq!(["node", "agent-0", "agent-1"].map(|node| network(&fleet, node)), ["kernel", "user", "user"]);
    all_reach_all(&fleet, &["node", "agent-0", "agent-1"]);

    // from Docker, and from the master's machine
    fleet.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: docker}\nspec:\n  nodeSelector: {kubernetes.io/hostname: node}\n  \
         containers: [{name: main, image: BUSYBOX, command: [httpd, -f, -p, \"8000\", -h, /www]}]\n",
    );
    fleet.wait("pod/docker", "condition=Ready");
    for to in [ip(&fleet, "ask-agent-0"), "ask-agent-0".into()] {
        let page = until(&to, || {
            let page = fleet.try_kubectl(&["exec", "docker", "--", "wget", "-qO-", &format!("http://{to}:8000/d")]);
            Some(page).filter(|page| !page.is_empty())
        });
        assert_eq!(page, "wasm answers /d\n");
    }
    let docker = format!("/at/{}:8000/", ip(&fleet, "docker"));
    let afar = way(&fleet, "ask-agent-1");
    until("Docker answers", || asked(&afar, &docker).contains("hello from busybox").then_some(()));
    let web: SocketAddr = format!("{}:80", ip(&fleet, "web-agent-0")).parse().unwrap();
    assert_eq!(request(web, "pod", "/").unwrap().body, "hello\n");
    let nobody: SocketAddr = format!("{}:81", ip(&fleet, "web-agent-0")).parse().unwrap();
    assert_eq!(request(nobody, "pod", "/").unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);

    policies_hold(&fleet, "ask-agent-1", "ask-node", "agent-0");

    // cut off it serves on, and comes back without a restart
    let to = format!("/at/{}:8000/back", ip(&fleet, "ask-agent-0"));
    let restarts =
        |fleet: &Fleet| fleet.field("pod/ask-agent-0", "{.metadata.uid} {.status.containerStatuses[0].restartCount}");
    let before = restarts(&fleet);
    let agent: &Agent = &fleet.agents[0];
    agent.cut();
    fleet.wait("node/agent-0", "condition=Ready=Unknown");
    agent.heal();
    fleet.ready(agent);
    until("reached again", || asked(&afar, &to).contains("wasm answers /back").then_some(()));
    assert_eq!(restarts(&fleet), before);
}

#[test]
fn a_cluster_of_an_ordinary_user_has_several_nodes() {
    let Some(mut fleet) = Fleet::launch_rootless(2) else { return };
    assert_eq!(["node", "agent-0", "agent-1"].map(|node| network(&fleet, node)), ["user", "user", "user"]);
    all_reach_all(&fleet, &["node", "agent-0", "agent-1"]);
    assert!(fleet.kubectl(&["logs", "ask-agent-0"]).contains("listening on"));

    // an agent that is killed finds its pods' places again
    let agent = &mut fleet.agents[0];
    agent.kill();
    agent.start();
    fleet.ready(&fleet.agents[0]);
    let home = way(&fleet, "ask-node");
    let to = format!("/at/{}:8000/later", ip(&fleet, "ask-agent-0"));
    until("reached again", || asked(&home, &to).contains("wasm answers /later").then_some(()));
}
