//! What goes wrong in a fleet: masters and machines that are killed, cut off, on bad paths, with wrong clocks, with
//! certificates that are not theirs, and what is left of it afterwards.

use crate::fleet::{address, asker, identity, service};
use crate::harness::{Agent, Fleet, User, Weather, request, until};
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longer than a node gathers changes before they are on its disk.
const ON_DISK: Duration = Duration::from_secs(6);

fn virtual_address(user: &User, service: &str) -> SocketAddr {
    format!("{}:8000", user.field(&format!("service/{service}"), "{.spec.clusterIP}")).parse().unwrap()
}

/// What outlives the containers of a pod.
fn place(user: &User, pod: &str) -> String {
    user.field(&format!("pod/{pod}"), "{.metadata.uid} {.status.podIP} {.spec.nodeName}")
}

/// Whether something answers a program of that machine.
fn answers(agent: &Agent, to: SocketAddr) -> bool {
    agent.within(|| request(to, "pod", "/").is_ok_and(|reply| reply.status == 200))
}

#[test]
fn a_master_killed_under_load_has_lost_nothing_that_it_confirmed() {
    let Some(fleet) = Fleet::launch(2) else { return };
    fleet.apply(&(asker("one", "agent-0") + &asker("two", "agent-1") + &service("two", 8000, "TCP")));
    let pods = ["one", "two"];
    for pod in pods {
        fleet.wait(&format!("pod/{pod}"), "condition=Ready");
    }
    let before = pods.map(|pod| identity(&fleet, pod));
    let two = virtual_address(&fleet, "two");
    until("the Service answers", || answers(&fleet.agents[0], two).then_some(()));
    let traffic = fleet.agents[0].traffic(two);

    let (user, stop) = (fleet.server().user(), AtomicBool::new(false));
    let confirmed = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut confirmed = Vec::new();
            for number in 0.. {
                let name = format!("written-{number}");
                if user.kubectl_output(&["create", "configmap", &name]).status.success() {
                    confirmed.push(name);
                }
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
            confirmed
        });
        for _ in 0..3 {
            std::thread::sleep(Duration::from_secs(2));
            fleet.server().kill();
            fleet.server().run();
        }
        stop.store(true, Ordering::Relaxed);
        writing.join().unwrap()
    });
    let kept = fleet.kubectl(&["get", "configmap", "-o", "name"]);
    for name in &confirmed {
        assert!(kept.lines().any(|line| line.ends_with(&format!("/{name}"))), "{name} of {}", confirmed.len());
    }
    for agent in &fleet.agents {
        fleet.ready(agent);
        until("linked again", || agent.log().trim_end().ends_with("over=Quic").then_some(()));
    }
    until("a log from afar", || fleet.try_kubectl(&["logs", "two"]).contains("listening").then_some(()));
    assert_eq!(pods.map(|pod| identity(&fleet, pod)), before);
    let outcomes = traffic.end();
    assert!(outcomes.answered > 20 && outcomes.failures.is_empty(), "{outcomes:?}");
}

#[test]
fn machines_come_back_in_any_order() {
    let Some(mut fleet) = Fleet::launch(2) else { return };
    fleet.apply(&(asker("one", "agent-0") + &asker("two", "agent-1")));
    let pods = ["one", "two"];
    for pod in pods {
        fleet.wait(&format!("pod/{pod}"), "condition=Ready");
    }
    let places = pods.map(|pod| place(&fleet, pod));
    let at = pods.map(|pod| address(&fleet, pod));
    std::thread::sleep(ON_DISK);
    let check = |fleet: &Fleet, when: &str| {
        for (agent, (asked, pod)) in fleet.agents.iter().zip(at.iter().rev().zip(pods)) {
            until(&format!("{when}: pods reach each other"), || answers(agent, *asked).then_some(()));
            let what = format!("{when}: the log of what runs now");
            until(&what, || fleet.try_kubectl(&["logs", pod]).contains("listening").then_some(()));
            fleet.wait(&format!("pod/{pod}"), "condition=Ready");
        }
        assert_eq!(pods.map(|pod| place(fleet, pod)), places, "{when}");
    };

    fleet.agents[0].kill();
    fleet.agents[0].start();
    check(&fleet, "an agent was killed");

    for agent in &mut fleet.agents {
        agent.power_off();
    }
    fleet.server().kill();
    fleet.server().run();
    for agent in &mut fleet.agents {
        agent.start();
    }
    check(&fleet, "the master came first");

    std::thread::sleep(ON_DISK);
    for agent in &mut fleet.agents {
        agent.power_off();
    }
    fleet.server().kill();
    for agent in &mut fleet.agents {
        agent.start();
    }
    for (agent, asked) in fleet.agents.iter().zip(at.iter().rev()) {
        until("pods reach each other without a master", || answers(agent, *asked).then_some(()));
    }
    fleet.server().run();
    check(&fleet, "the master came last");
}

#[test]
fn nodes_that_are_silent_all_at_once_keep_their_pods() {
    let Some(mut fleet) = Fleet::launch(3) else { return };
    let hasty = "terminationGracePeriodSeconds: 1\n  \
                 tolerations: [{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 20}]";
    let pods = ["zero", "one", "two"];
    for (number, pod) in pods.iter().enumerate() {
        let manifest = asker(pod, &format!("agent-{number}"));
        fleet.apply(&manifest.replace("terminationGracePeriodSeconds: 1", hasty));
    }
    for pod in pods {
        fleet.wait(&format!("pod/{pod}"), "condition=Ready");
    }
    let before = pods.map(|pod| identity(&fleet, pod));
    let lost = Weather { lost: 100, ..Weather::default() };
    // two are not heard, and one is cut off; one that only does not hear would be heard of for half a minute more
    for agent in &mut fleet.agents[..2] {
        agent.cable().set_ways(lost, Weather::default());
    }
    fleet.agents[2].cut();
    for agent in &fleet.agents {
        fleet.wait(&format!("node/{}", agent.name), "condition=Ready=Unknown");
    }
    until("nobody is driven out", || {
        (!fleet.field("node", "{.items[*].spec.taints[*].effect}").contains("NoExecute")).then_some(())
    });
    let far = address(&fleet, "zero");
    until("who is cut off does not wait for what is out of reach", || {
        let began = Instant::now();
        let connected = fleet.agents[2].within(|| TcpStream::connect_timeout(&far, Duration::from_secs(4)));
        let is_told = connected.is_err_and(|error| error.kind() == ErrorKind::HostUnreachable);
        (is_told && began.elapsed() < Duration::from_secs(1)).then_some(())
    });
    std::thread::sleep(Duration::from_secs(21));
    assert_eq!(fleet.field("pod", "{.items[*].metadata.deletionTimestamp}"), "");
    for agent in &mut fleet.agents[..2] {
        agent.cable().set(Weather::default());
    }
    fleet.agents[2].heal();
    for agent in &fleet.agents {
        fleet.ready(agent);
    }
    for pod in pods {
        fleet.wait(&format!("pod/{pod}"), "condition=Ready");
    }
    assert_eq!(pods.map(|pod| identity(&fleet, pod)), before);
}

#[test]
fn a_bad_path_makes_a_node_slow_and_not_absent() {
    let Some(mut fleet) = Fleet::launch(1) else { return };
    let mut agent = fleet.machine("agent-1");
    agent.cable().set(Weather { lost: 20, late_ms: 150, doubled: 5, early: 5, no_udp: false });
    agent.start();
    fleet.agents.push(agent);
    fleet.ready(&fleet.agents[1]);
    let began = Instant::now();
    fleet.apply(&(asker("near", "agent-0") + &asker("far", "agent-1") + &service("far", 8000, "TCP")));
    for pod in ["near", "far"] {
        fleet.wait(&format!("pod/{pod}"), "condition=Ready");
    }
    assert!(fleet.kubectl(&["logs", "far"]).contains("listening on"));
    assert_eq!(fleet.kubectl(&["exec", "far", "--", "probe", "args", "one"]).trim(), r#"["args", "one"]"#);
    let (far, near) = (virtual_address(&fleet, "far"), address(&fleet, "near"));
    let mut answered = 0;
    while began.elapsed() < Duration::from_secs(45) || answered < 5 {
        answered += usize::from(answers(&fleet.agents[0], far)) + usize::from(answers(&fleet.agents[1], near));
        assert!(began.elapsed() < Duration::from_secs(100), "{answered} answers");
    }
    // longer than a silent node is borne with
    assert!(!fleet.events("node/agent-1").contains("NodeNotReady"), "{}", fleet.agents[1].log());
    assert_eq!(fleet.field("pod/far", "{.status.containerStatuses[0].restartCount}"), "0");
}

#[test]
fn where_udp_is_blocked_all_goes_over_tcp_and_nothing_is_in_the_clear() {
    let Some(mut fleet) = Fleet::launch(1) else { return };
    let mut agent = fleet.machine("agent-1");
    agent.cable().set(Weather { no_udp: true, ..Weather::default() });
    agent.cable().listen();
    agent.start();
    fleet.agents.push(agent);
    fleet.ready(&fleet.agents[1]);
    assert!(fleet.agents[1].log().contains("over=Tcp"), "{}", fleet.agents[1].log());
    fleet.kubectl(&["create", "secret", "generic", "hidden", "--from-literal=word=sesame-open-up"]);
    fleet.apply(
        &(asker("near", "agent-0")
            + &asker("far-out", "agent-1")
                .replace("args: [http", "envFrom: [{secretRef: {name: hidden}}], args: [http")),
    );
    for pod in ["near", "far-out"] {
        fleet.wait(&format!("pod/{pod}"), "condition=Ready");
    }
    let (near, far) = (address(&fleet, "near"), address(&fleet, "far-out"));
    let drive = || {
        assert!(fleet.kubectl(&["logs", "far-out"]).contains("listening on"));
        let said = fleet.kubectl(&["exec", "far-out", "--", "probe", "args", "spoken-aloud"]);
        assert_eq!(said.trim(), r#"["args", "spoken-aloud"]"#);
        let page = until("a pod over the master", || {
            fleet.agents[0].within(|| request(far, "pod", "/whispered-path").ok().map(|reply| reply.body))
        });
        assert_eq!(page, "wasm answers /whispered-path\n");
        until("a pod from there", || answers(&fleet.agents[1], near).then_some(()));
    };
    drive();
    let before = identity(&fleet, "far-out");
    let secrets = ["sesame-open-up", "far-out", "spoken-aloud", "whispered-path", "system:node", "::server:"];
    let look = |fleet: &mut Fleet| {
        let seen = fleet.agents[1].cable().seen();
        assert!(seen.iter().all(|way| way.frames > 20));
        for word in secrets {
            assert!(!seen.iter().any(|way| way.holds(word.as_bytes())), "{word} is in the clear");
        }
    };
    look(&mut fleet);

    // when it is free again, QUIC is found again
    fleet.agents[1].cable().set(Weather::default());
    fleet.agents[1].cable().listen();
    until("back on QUIC", || fleet.agents[1].log().trim_end().ends_with("over=Quic").then_some(()));
    let page = fleet.agents[0].within(|| request(far, "pod", "/whispered-path").map(|reply| reply.body));
    assert_eq!(page.unwrap(), "wasm answers /whispered-path\n");
    until("a log over QUIC", || fleet.try_kubectl(&["logs", "far-out"]).contains("listening").then_some(()));
    assert_eq!(identity(&fleet, "far-out"), before);
    look(&mut fleet);
}

#[test]
fn a_node_deleted_while_it_is_away_stops_its_pods_when_it_hears_of_it() {
    let Some(mut fleet) = Fleet::launch(2) else { return };
    fleet.apply(&(asker("gone", "agent-0") + &asker("stays", "agent-1")));
    for pod in ["gone", "stays"] {
        fleet.wait(&format!("pod/{pod}"), "condition=Ready");
    }
    let gone = address(&fleet, "gone");
    let before = identity(&fleet, "stays");
    fleet.agents[0].cut();
    fleet.kubectl(&["delete", "node", "agent-0"]);
    until("its pods are not the cluster's any more", || {
        fleet.field("pod/gone", "{.metadata.name}").is_empty().then_some(())
    });
    assert!(answers(&fleet.agents[0], gone), "it has not heard of it");
    fleet.agents[0].heal();
    until("what nobody wants has stopped", || (!answers(&fleet.agents[0], gone)).then_some(()));
    assert!(fleet.field("node/agent-0", "{.metadata.name}").is_empty(), "it does not come back by itself");
    // nor does what runs there come back without a master
    fleet.agents[0].cut();
    fleet.agents[0].kill();
    fleet.agents[0].start();
    until("it has tried", || fleet.agents[0].log().contains("the master is not reached").then_some(()));
    assert!(!answers(&fleet.agents[0], gone));

    // who starts it anew with the token wants it back
    fleet.agents[0].heal();
    fleet.ready(&fleet.agents[0]);
    fleet.apply(&asker("new", "agent-0"));
    fleet.wait("pod/new", "condition=Ready");
    assert_eq!(identity(&fleet, "stays"), before);
}

#[test]
fn a_master_restored_from_older_data_gets_all_its_nodes_back() {
    let Some(mut fleet) = Fleet::launch(1) else { return };
    fleet.apply(&asker("old", "agent-0"));
    fleet.wait("pod/old", "condition=Ready");
    let before = identity(&fleet, "old");
    let (data, copy) = (fleet.server().data_dir(), fleet.path("copy"));
    fleet.server().kill();
    assert!(Command::new("cp").arg("-a").arg(&data).arg(&copy).status().unwrap().success());
    fleet.server().run();

    // after the copy: a node, its pod, and another pod of the old node
    let mut agent = fleet.machine("agent-1");
    agent.start();
    fleet.agents.push(agent);
    fleet.ready(&fleet.agents[1]);
    fleet.apply(&(asker("new", "agent-0") + &asker("newer", "agent-1")));
    let pods = ["new", "newer"];
    for pod in pods {
        fleet.wait(&format!("pod/{pod}"), "condition=Ready");
    }
    let at = pods.map(|pod| address(&fleet, pod));
    fleet.server().kill();
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&copy, &data).unwrap();
    fleet.server().run();

    for agent in &fleet.agents {
        fleet.ready(agent);
    }
    for (agent, pod) in fleet.agents.iter().zip(at) {
        until("what this master does not know of stops", || (!answers(agent, pod)).then_some(()));
    }
    assert_eq!(identity(&fleet, "old"), before);
    fleet.apply(&asker("newest", "agent-1"));
    fleet.wait("pod/newest", "condition=Ready");
    until("the old pod is driven", || fleet.try_kubectl(&["logs", "old"]).contains("listening").then_some(()));
}

#[test]
fn a_wrong_clock_on_a_node_does_no_harm() {
    let Some(mut fleet) = Fleet::launch(0) else { return };
    let library = ["x86_64", "aarch64"]
        .map(|machine| format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketimeMT.so.1"))
        .into_iter()
        .find(|file| Path::new(file).exists())
        .expect("faketime is installed by cargo xtask test");
    for shift in ["-3600", "+3600"] {
        let mut agent = fleet.machine(&format!("agent-{}", fleet.agents.len()));
        agent.environment = [("LD_PRELOAD", library.as_str()), ("FAKETIME", shift), ("DONT_FAKE_MONOTONIC", "1")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        agent.start();
        fleet.agents.push(agent);
    }
    let nodes = ["agent-0", "agent-1"];
    for agent in &fleet.agents {
        fleet.ready(agent);
    }
    let age = |what: &str| {
        let created = fleet.field(what, "{.metadata.creationTimestamp}").parse::<jiff::Timestamp>().unwrap();
        jiff::Timestamp::now().duration_since(created).as_secs().abs()
    };
    for node in nodes {
        assert!(age(&format!("node/{node}")) < 120, "the master's clock dates what is made");
        fleet.apply(&asker(&format!("on-{node}"), node));
    }
    for node in nodes {
        fleet.wait(&format!("pod/on-{node}"), "condition=Ready");
        assert!(fleet.kubectl(&["logs", &format!("on-{node}")]).contains("listening on"));
    }
    let [slow, fast] = nodes.map(|node| address(&fleet, &format!("on-{node}")));
    until("the fast one reaches the slow one", || answers(&fleet.agents[1], slow).then_some(()));
    until("and the slow one the fast one", || answers(&fleet.agents[0], fast).then_some(()));
    for node in nodes {
        let began = Instant::now();
        fleet.kubectl(&["delete", "pod", &format!("on-{node}"), "--timeout=60s"]);
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}

#[test]
fn a_node_that_does_not_hear_is_away_and_keeps_its_pods() {
    let Some(mut fleet) = Fleet::launch(2) else { return };
    fleet.apply(&(asker("deaf", "agent-0") + &asker("heard", "agent-1")));
    let pods = ["deaf", "heard"];
    for pod in pods {
        fleet.wait(&format!("pod/{pod}"), "condition=Ready");
    }
    let (before, at) = (pods.map(|pod| identity(&fleet, pod)), address(&fleet, "deaf"));
    fleet.agents[0].cable().set_ways(Weather::default(), Weather { lost: 100, ..Weather::default() });
    // heard of until it gives its connection up, and then as long as any silent node
    let ready = r#"{.status.conditions[?(@.type=="Ready")].status}"#;
    until("it is away", || (fleet.field("node/agent-0", ready) == "Unknown").then_some(()));
    assert!(answers(&fleet.agents[0], at), "it serves its own");
    fleet.agents[0].cable().set(Weather::default());
    fleet.ready(&fleet.agents[0]);
    until("its pod is reached", || answers(&fleet.agents[1], at).then_some(()));
    until("a log from there", || fleet.try_kubectl(&["logs", "deaf"]).contains("listening").then_some(()));
    assert_eq!(pods.map(|pod| identity(&fleet, pod)), before);
}

/// What is done to a machine.
#[derive(Clone, Copy, Debug)]
enum Act {
    Cut,
    Heal,
    Kill,
    Start,
    Reboot,
    Drain,
    Uncordon,
    Move,
}

#[test]
fn a_service_outlives_whatever_befalls_its_machines() {
    use Act::{Cut, Drain, Heal, Kill, Move, Reboot, Start, Uncordon};
    const ACTS: [(usize, Act); 16] = [
        (0, Cut),
        (1, Drain),
        (0, Kill),
        (1, Move),
        (0, Start),
        (1, Uncordon),
        (0, Heal),
        (1, Kill),
        (0, Drain),
        (1, Move),
        (1, Start),
        (0, Reboot),
        (0, Cut),
        (0, Move),
        (0, Uncordon),
        (0, Heal),
    ];
    let Some(mut fleet) = Fleet::launch(3) else { return };
    fleet.apply(
        &(service("web", 8000, "TCP")
            + "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  replicas: 4\n  selector: {matchLabels: {app: web}}\n  \
               template:\n    metadata: {labels: {app: web}}\n    spec:\n      terminationGracePeriodSeconds: 1\n      \
               topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, \
               labelSelector: {matchLabels: {app: web}}}]\n      \
               containers: [{name: main, image: PROBE, args: [http, \"8000\"]}]\n"),
    );
    fleet.wait("deployment/web", "condition=Available");
    let web = virtual_address(&fleet, "web");
    let untouched = fleet.field("pod", r#"{.items[?(@.spec.nodeName=="agent-2")].metadata.uid}"#);
    for (step, (number, act)) in ACTS.into_iter().enumerate() {
        let (agent, moved) = (&mut fleet.agents[number], 100 + u8::try_from(step).unwrap());
        match act {
            Cut => agent.cut(),
            Heal => agent.heal(),
            Kill => agent.kill(),
            Start => agent.start(),
            Reboot => agent.reboot(),
            Move => agent.readdress(moved),
            Drain => {
                let name = agent.name.clone();
                fleet.kubectl(&["drain", &name, "--ignore-daemonsets", "--timeout=100s"]);
            }
            Uncordon => {
                let name = agent.name.clone();
                fleet.kubectl(&["uncordon", &name]);
            }
        }
        let mut in_a_row = 0;
        until(&format!("the Service answers after step {step}, {act:?} of agent-{number}"), || {
            in_a_row = if answers(&fleet.agents[2], web) { in_a_row + 1 } else { 0 };
            (in_a_row == 10).then_some(())
        });
    }
    for agent in &fleet.agents {
        fleet.ready(agent);
    }
    fleet.wait("deployment/web", "condition=Available");
    let pods = until("four pods, all ready", || {
        let ready = fleet.field("pod", r#"{.items[*].status.conditions[?(@.type=="Ready")].status}"#);
        (ready == "True True True True").then(|| fleet.field("pod", "{.items[*].metadata.uid}"))
    });
    assert!(!untouched.is_empty() && untouched.split(' ').all(|uid| pods.contains(uid)), "{untouched} of {pods}");
    let at = fleet.field("pod", "{.items[*].status.podIP}");
    for pod in at.split(' ') {
        let to = format!("{pod}:8000").parse().unwrap();
        for agent in &fleet.agents {
            until(&format!("{} reaches {pod}", agent.name), || answers(agent, to).then_some(()));
        }
    }
}

/// A certificate of a node with its key, as PEM.
fn certificate(node: &str, issuer: &Issuer<'_, KeyPair>, expired: bool) -> (String, String) {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(if expired { 2021 } else { 2100 }, 1, 1);
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

#[test]
fn certificates_that_are_not_a_nodes_open_nothing() {
    let Some(mut fleet) = Fleet::launch(1) else { return };
    let tls = fleet.server().data_dir().join("server/tls");
    let read = |name: &str| std::fs::read_to_string(tls.join(name)).unwrap();
    let ours =
        Issuer::from_ca_cert_pem(&read("client-ca.crt"), KeyPair::from_pem(&read("client-ca.key")).unwrap()).unwrap();
    let mut forged = CertificateParams::default();
    forged.distinguished_name.push(DnType::CommonName, "coracle-client-ca");
    let foreign = Issuer::new(forged, KeyPair::generate().unwrap());
    // (who signed, expired, what the API says, what the link says)
    let cases = [
        (
            &foreign,
            false,
            "Unauthorized",
            "the master refused this node's certificate: another authority has signed it",
        ),
        (&ours, true, "Unauthorized", "the master refused this node's certificate: it has expired"),
        (&ours, false, "Forbidden", "has joined from another machine"),
    ];
    for (number, (issuer, expired, at_api, _)) in cases.iter().enumerate() {
        let (chain, key) = certificate("agent-0", issuer, *expired);
        let mut machine = fleet.machine("agent-0");
        machine.token.clear();
        let dir = machine.data_dir().join("agent/identity");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("node.crt"), chain).unwrap();
        std::fs::write(dir.join("node.key"), key).unwrap();
        std::fs::write(dir.join("server-ca.crt"), read("server-ca.crt")).unwrap();
        let server = format!("--server=https://{}:{}", fleet.switch_address(), fleet.server().api_port());
        let file = |name: &str| dir.join(name).display().to_string();
        let asked = Command::new("kubectl")
            .args([&server, &format!("--certificate-authority={}", file("server-ca.crt"))])
            .args([format!("--client-certificate={}", file("node.crt")), format!("--client-key={}", file("node.key"))])
            .args(["get", "node", "agent-0"])
            .env("KUBECONFIG", "/dev/null")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&asked.stderr);
        assert!(!asked.status.success() && (said.contains(at_api) || said.contains("tls: ")), "{number}: {said}");
        machine.start();
        fleet.agents.push(machine);
    }
    for (agent, (.., expected)) in fleet.agents[1..].iter().zip(cases) {
        until(expected, || agent.log().contains(expected).then_some(()));
    }
    fleet.ready(&fleet.agents[0]);
    assert_eq!(fleet.agents[0].log().matches("linked to the master").count(), 1);
}
