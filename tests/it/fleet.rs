//! Several machines: they join, their pods reach each other, and they live, die, and come back.

use crate::harness::{Agent, Fleet, User, request, until};
use std::net::SocketAddr;
use std::time::Duration;

/// A Wasm pod that answers HTTP on port 8000 and asks others, on a node.
pub fn asker(name: &str, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  \
         nodeSelector: {{kubernetes.io/hostname: {node}}}\n  terminationGracePeriodSeconds: 1\n  \
         containers: [{{name: main, image: PROBE, args: [http, \"8000\"], ports: [{{containerPort: 8000}}]}}]\n---\n"
    )
}

/// A Service of the pods of that name.
pub fn service(name: &str, port: u16, protocol: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  \
         ports: [{{port: {port}, protocol: {protocol}}}]\n---\n"
    )
}

/// Where a pod listens.
pub fn address(user: &User, pod: &str) -> SocketAddr {
    format!("{}:8000", user.field(&format!("pod/{pod}"), "{.status.podIP}")).parse().unwrap()
}

/// What must not change of a pod that nobody touched.
pub fn identity(user: &User, pod: &str) -> String {
    let path = "{.metadata.uid} {.status.podIP} {.status.containerStatuses[0].containerID} \
                {.status.containerStatuses[0].restartCount}";
    user.field(&format!("pod/{pod}"), path)
}

#[test]
fn machines_join_and_pods_on_them_are_driven_from_afar() {
    let Some(mut fleet) = Fleet::launch(2) else { return };
    for agent in &fleet.agents {
        let path = r#"{.status.addresses[?(@.type=="InternalIP")].address}"#;
        assert_eq!(fleet.field(&format!("node/{}", agent.name), path), agent.address.to_string());
    }
    let requests = fleet.kubectl(&["get", "csr"]);
    assert_eq!(requests.matches("Approved,Issued").count(), 2, "{requests}");

    fleet.apply(&(asker("far", "agent-1") + &asker("near", "agent-0")));
    for pod in ["far", "near"] {
        fleet.wait(&format!("pod/{pod}"), "condition=Ready");
        assert!(fleet.kubectl(&["logs", pod]).contains("listening on"));
        assert_eq!(fleet.kubectl(&["exec", pod, "--", "probe", "args", "one"]).trim(), r#"["args", "one"]"#);
    }
    until("figures of every node", || {
        let top = fleet.try_kubectl(&["top", "node", "--no-headers"]);
        (top.lines().count() == 3 && !top.contains("unknown")).then_some(())
    });

    // a second machine of the same name, a token that is none, and one that was taken back
    let refused = |mut machine: Agent, token: Option<String>, words: &str| {
        if let Some(token) = token {
            machine.token = token;
        }
        machine.start();
        let said = machine.refused();
        assert!(said.contains(words), "{said}");
    };
    refused(fleet.machine("agent-0"), None, "has joined from another machine");
    let (pin, _) = fleet.agents[0].token.rsplit_once(':').unwrap();
    refused(fleet.machine("stranger"), Some(format!("{pin}:wrong")), "nauthorized");
    refused(fleet.machine("stranger"), Some(format!("K10{}::server:x", "0".repeat(64))), "CA");
    let token = fleet.coracle(&["token", "create", "--ttl", "1h", "--description", "for one more"]).trim().to_owned();
    assert!(fleet.coracle(&["token", "list"]).contains("for one more"));
    let mut third = fleet.machine("agent-2");
    third.token.clone_from(&token);
    third.start();
    fleet.agents.push(third);
    fleet.ready(&fleet.agents[2]);
    let id = token.rsplit_once("::").unwrap().1.split([':', '.']).next().unwrap().to_owned();
    fleet.coracle(&["token", "delete", &id]);
    refused(fleet.machine("stranger"), Some(token), "nauthorized");
    let token = fleet.coracle(&["token", "create", "--ttl", "1s"]).trim().to_owned();
    std::thread::sleep(Duration::from_secs(2));
    refused(fleet.machine("stranger"), Some(token), "nauthorized");

    // what joined comes back without a token
    let agent = &mut fleet.agents[2];
    agent.kill();
    agent.start();
    fleet.ready(&fleet.agents[2]);
}

#[test]
fn a_node_sees_what_is_its_own() {
    let Some(fleet) = Fleet::launch(2) else { return };
    fleet.kubectl(&["create", "secret", "generic", "hers", "--from-literal=word=hush"]);
    fleet.apply(
        &(asker("other", "agent-1")
            + "apiVersion: v1\nkind: Pod\nmetadata: {name: reader}\nspec:\n  nodeSelector: {kubernetes.io/hostname: agent-1}\n  \
               containers: [{name: main, image: PROBE, args: [sleep], envFrom: [{secretRef: {name: hers}}]}]\n"),
    );
    fleet.wait("pod/reader", "condition=Ready");
    let server = format!("--server=https://{}:{}", fleet.switch_address(), fleet.server().api_port());
    let ask = |agent: &Agent, arguments: &[&str]| {
        let identity = agent.data_dir().join("agent/identity");
        let (certificate, key) = (identity.join("node.crt"), identity.join("node.key"));
        let mut all = vec![
            server.clone(),
            format!("--certificate-authority={}", identity.join("server-ca.crt").display()),
            format!("--client-certificate={}", certificate.display()),
            format!("--client-key={}", key.display()),
        ];
        all.extend(arguments.iter().map(ToString::to_string));
        let output = std::process::Command::new("kubectl").args(&all).env("KUBECONFIG", "/dev/null").output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let [mine, hers] = &fleet.agents[..] else { unreachable!("two were launched") };
    let (may, said) = ask(hers, &["get", "secret", "hers"]);
    assert!(may, "{said}");
    for forbidden in
        [["get", "secret", "hers"], ["get", "pod", "other"], ["get", "node", "agent-1"], ["delete", "node", "agent-0"]]
    {
        let (may, said) = ask(mine, &forbidden);
        assert!(!may && said.contains("(Forbidden)") && said.contains("system:node:agent-0"), "{forbidden:?}: {said}");
    }
}

#[test]
fn pods_reach_each_other_across_machines() {
    let Some(fleet) = Fleet::launch(2) else { return };
    fleet.apply(
        &(asker("one", "agent-0")
            + &asker("two", "agent-1")
            + &service("two", 8000, "TCP")
            + &service("echo", 7000, "UDP")
            + "apiVersion: v1\nkind: Pod\nmetadata: {name: echo, labels: {app: echo}}\nspec:\n  \
               nodeSelector: {kubernetes.io/hostname: agent-1}\n  \
               containers: [{name: main, image: PROBE, args: [echo, \"7000\"]}]\n---\n"
            + "apiVersion: v1\nkind: Pod\nmetadata: {name: docker, labels: {app: docker}}\nspec:\n  \
               nodeSelector: {kubernetes.io/hostname: node}\n  \
               containers: [{name: main, image: BUSYBOX, command: [httpd, -f, -p, \"8000\", -h, /www]}]\n---\n"
            + &service("docker", 8000, "TCP")),
    );
    for pod in ["one", "two", "echo", "docker"] {
        fleet.wait(&format!("pod/{pod}"), "condition=Ready");
    }
    let ip = |pod: &str| fleet.field(&format!("pod/{pod}"), "{.status.podIP}");
    let (one, two) = (address(&fleet, "one"), address(&fleet, "two"));
    let ask = |agent: &Agent, pod: SocketAddr, path: &str| agent.within(|| request(pod, "pod", path).unwrap().body);

    // from a Wasm pod to a pod's address, to a Service, to Docker, and by datagrams; both ways
    let [first, second] = &fleet.agents[..] else { unreachable!("two were launched") };
    for (agent, from, path, expected) in [
        (first, one, format!("/at/{two}/x"), "wasm answers /x\n"),
        (second, two, format!("/at/{one}/y"), "wasm answers /y\n"),
        (first, one, "/at/two:8000/z".into(), "wasm answers /z\n"),
        (first, one, format!("/at/{}:8000/", ip("docker")), "hello from busybox\n"),
        (second, two, "/at/docker:8000/".into(), "hello from busybox\n"),
    ] {
        until(&path, || (ask(agent, from, &path) == format!("the neighbour says: {expected}")).then_some(()));
    }
    let echo = format!("/udp/{}:7000/word", ip("echo"));
    until("datagrams to a pod", || ask(first, one, &echo).contains("says: word from").then_some(()));
    until("datagrams through a Service", || {
        ask(first, one, "/udp/echo:7000/again").contains("again from").then_some(())
    });

    // from a container of Docker, and from the machines themselves
    for to in [format!("http://{two}/d"), "http://two:8000/d".into()] {
        let page = until(&to, || {
            Some(fleet.try_kubectl(&["exec", "docker", "--", "wget", "-qO-", &to])).filter(|page| !page.is_empty())
        });
        assert_eq!(page, "wasm answers /d\n");
    }
    assert_eq!(request(two, "pod", "/host").unwrap().body, "wasm answers /host\n");
    assert_eq!(ask(first, two, "/host"), "wasm answers /host\n");
}

#[test]
fn a_node_without_its_master_sails_on() {
    let Some(mut fleet) = Fleet::launch(3) else { return };
    fleet.apply(
        &(asker("sails", "agent-0")
            + &service("sails", 8000, "TCP")
            + &asker("reboots", "agent-1")
            + &service("reboots", 8000, "TCP")
            + "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: moves}\nspec:\n  replicas: 1\n  selector: {matchLabels: {app: moves}}\n  \
               template:\n    metadata: {labels: {app: moves}}\n    spec:\n      \
               affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 100, preference: \
               {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [agent-0]}]}}]}}\n      \
               tolerations: [{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 1}]\n      \
               containers: [{name: main, image: PROBE, args: [http, \"8000\"]}]\n"),
    );
    for pod in ["sails", "reboots"] {
        fleet.wait(&format!("pod/{pod}"), "condition=Ready");
    }
    fleet.wait("deployment/moves", "condition=Available");
    assert_eq!(fleet.field("pod", "{.items[?(@.metadata.labels.app==\"moves\")].spec.nodeName}"), "agent-0");
    let before = identity(&fleet, "sails");
    let uid = fleet.field("pod/reboots", "{.metadata.uid} {.status.podIP}");
    let virtual_ip = |name: &str| -> SocketAddr {
        format!("{}:8000", fleet.field(&format!("service/{name}"), "{.spec.clusterIP}")).parse().unwrap()
    };
    let (sails, reboots) = (virtual_ip("sails"), virtual_ip("reboots"));
    std::thread::sleep(Duration::from_secs(6)); // longer than changes are gathered before they are on disk
    fleet.agents[0].cut();
    fleet.agents[1].cut();
    fleet.agents[1].reboot();

    // both serve, and the rebooted one does so from what its disk knows
    let answers = |agent: &Agent, at: SocketAddr| agent.within(|| request(at, "pod", "/").ok().map(|reply| reply.body));
    until("the rebooted node serves", || answers(&fleet.agents[1], reboots));
    assert!(answers(&fleet.agents[0], sails).is_some());

    // the master marks them, and only what says so moves
    fleet.wait("node/agent-0", "condition=Ready=Unknown");
    until("the deployment's pod is elsewhere", || {
        let path = r#"{.items[?(@.metadata.labels.app=="moves")].spec.nodeName}"#;
        fleet.field("pod", path).split(' ').any(|node| node == "agent-2" || node == "node").then_some(())
    });
    assert!(answers(&fleet.agents[0], sails).is_some());

    // back: nothing healthy restarts, what was replaced ends
    fleet.agents[0].heal();
    fleet.agents[1].heal();
    for number in 0..2 {
        fleet.ready(&fleet.agents[number]);
    }
    assert_eq!(identity(&fleet, "sails"), before);
    assert_eq!(fleet.field("pod/reboots", "{.metadata.uid} {.status.podIP}"), uid);
    for pod in ["sails", "reboots"] {
        fleet.wait(&format!("pod/{pod}"), "condition=Ready");
    }
    until("one pod of the deployment", || {
        (fleet.try_kubectl(&["get", "pod", "-l", "app=moves", "-o", "name"]).lines().count() == 1).then_some(())
    });
    until("untainted", || fleet.field("node/agent-0", "{.spec.taints}").is_empty().then_some(()));
}

#[test]
fn a_master_that_was_killed_finds_its_nodes_again() {
    let Some(mut fleet) = Fleet::launch(2) else { return };
    fleet.apply(&(asker("one", "agent-0") + &asker("two", "agent-1")));
    let pods = ["one", "two"];
    for pod in pods {
        fleet.wait(&format!("pod/{pod}"), "condition=Ready");
    }
    let before = pods.map(|pod| identity(&fleet, pod));
    let to = address(&fleet, "two");
    fleet.cluster().kill();
    // the direct way needs no master
    let page = fleet.agents[0].within(|| request(to, "pod", "/alone").map(|reply| reply.body));
    assert_eq!(page.unwrap(), "wasm answers /alone\n");
    fleet.cluster().run();
    for agent in &fleet.agents {
        fleet.ready(agent);
    }
    for pod in pods {
        let log = until("logs from afar", || Some(fleet.try_kubectl(&["logs", pod])).filter(|log| !log.is_empty()));
        assert!(log.contains("listening on"));
    }
    assert_eq!(pods.map(|pod| identity(&fleet, pod)), before);
    fleet.apply(&asker("three", "agent-1"));
    fleet.wait("pod/three", "condition=Ready");
}

#[test]
fn a_node_is_drained_as_budgets_allow() {
    let Some(fleet) = Fleet::launch(2) else { return };
    fleet.apply(
        "apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: web}\nspec: {minAvailable: 2, selector: {matchLabels: {app: web}}}\n---\n\
         apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  replicas: 2\n  selector: {matchLabels: {app: web}}\n  \
         template:\n    metadata: {labels: {app: web}}\n    spec:\n      nodeSelector: {kubernetes.io/os: linux}\n      terminationGracePeriodSeconds: 1\n      \
         tolerations: [{key: only, operator: Exists}]\n      containers: [{name: main, image: PROBE, args: [http, \"8000\"]}]\n",
    );
    fleet.wait("deployment/web", "condition=Available");
    until("the budget counts them", || (fleet.field("pdb/web", "{.status.currentHealthy}") == "2").then_some(()));
    let node = fleet.field("pod", "{.items[0].spec.nodeName}");
    let refused = fleet.kubectl_output(&["drain", &node, "--ignore-daemonsets", "--force", "--timeout=3s"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("would violate the pod's disruption budget"), "{said}");
    fleet.kubectl(&["patch", "pdb", "web", "--type=merge", "-p", r#"{"spec": {"minAvailable": 1}}"#]);
    let drained = fleet.kubectl(&["drain", &node, "--ignore-daemonsets", "--force", "--timeout=60s"]);
    assert!(drained.contains(&format!("node/{node} drained")), "{drained}");
    fleet.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let nodes = fleet.field("pod", r#"{.items[*].spec.nodeName}"#);
    assert!(!nodes.split(' ').any(|other| other == node), "{nodes}");
    fleet.kubectl(&["uncordon", &node]);
    assert_eq!(fleet.field(&format!("node/{node}"), "{.spec.unschedulable}"), "");
}

#[test]
fn a_machine_may_change_its_address() {
    let Some(mut fleet) = Fleet::launch(1) else { return };
    fleet.apply(&asker("pod", "agent-0"));
    fleet.wait("pod/pod", "condition=Ready");
    let (before, to) = (identity(&fleet, "pod"), address(&fleet, "pod"));
    fleet.agents[0].readdress(99);
    let page = until("the pod is reached at the new address", || request(to, "pod", "/moved").ok());
    assert_eq!(page.body, "wasm answers /moved\n");
    until("a log from there", || fleet.try_kubectl(&["logs", "pod"]).contains("listening").then_some(()));
    assert_eq!(identity(&fleet, "pod"), before);
    assert_eq!(fleet.agents[0].log().matches("linked to the master").count(), 1, "{}", fleet.agents[0].log());
}
