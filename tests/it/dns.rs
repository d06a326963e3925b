//! The cluster's names as programs ask for them: a resolver of its own (dig), C libraries in containers, Wasm; on every node.

use crate::harness::{Fleet, request, until};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;

/// Services of every kind, and pods behind them.
const WORLD: &str = "---
{apiVersion: v1, kind: Pod, metadata: {name: web, labels: {app: web}}, spec: {nodeSelector: {kubernetes.io/hostname: agent-0},
  terminationGracePeriodSeconds: 1, containers: [{name: main, image: PROBE, args: [http, '8000'], ports: [{containerPort: 8000}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: asker, labels: {app: asker}}, spec: {nodeSelector: {kubernetes.io/hostname: agent-0},
  terminationGracePeriodSeconds: 1, containers: [{name: main, image: PROBE, args: [http, '8000'], ports: [{containerPort: 8000}]},
  {name: other, image: PROBE, args: [http, '8001']}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: asker}, spec: {selector: {app: asker}, ports: [{port: 80, targetPort: 8001}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: first, labels: {app: db}}, spec: {hostname: db-0, subdomain: db,
  nodeSelector: {kubernetes.io/hostname: node}, terminationGracePeriodSeconds: 1,
  containers: [{name: main, image: PROBE, args: [sleep], ports: [{name: sql, containerPort: 5432}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: slow, labels: {app: slow}}, spec: {nodeSelector: {kubernetes.io/hostname: agent-0},
  terminationGracePeriodSeconds: 1, containers: [{name: main, image: PROBE, args: [sleep],
  readinessProbe: {tcpSocket: {port: 9}, periodSeconds: 1}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: docker}, spec: {nodeSelector: {kubernetes.io/hostname: node},
  terminationGracePeriodSeconds: 1, containers: [{name: main, image: BUSYBOX, command: [sleep, '10000']}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8000},
  {name: talk, port: 53, protocol: UDP}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: db}, spec: {clusterIP: None, selector: {app: db}, ports: [{name: sql, port: 1, targetPort: sql}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: early}, spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: slow}}}
---
{apiVersion: v1, kind: Service, metadata: {name: late}, spec: {clusterIP: None, selector: {app: slow}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: outer}, spec: {type: ExternalName, externalName: shore.example}}
---
{apiVersion: v1, kind: Service, metadata: {name: manual}, spec: {clusterIP: None, ports: [{name: http, port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: manual-1, labels: {kubernetes.io/service-name: manual}},
  addressType: IPv4, ports: [{name: http, port: 8080}],
  endpoints: [{addresses: [192.0.2.50], hostname: box}, {addresses: [192.0.2.51], conditions: {ready: false}}]}
";

/// A resolver outside, which knows one name.
fn shore(address: Ipv4Addr) -> SocketAddr {
    let socket = UdpSocket::bind((address, 0)).unwrap();
    let at = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut packet = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            let labels = packet[12..length].iter().position(|byte| *byte == 0).unwrap();
            let (end, kind) = (12 + labels + 5, packet[12 + labels + 2]);
            let is_known = packet[12..end].to_ascii_lowercase().starts_with(b"\x05shore\x07example\x00");
            let mut answer = packet[..end].to_vec();
            answer[2] |= 0x80;
            answer[6..12].fill(0);
            match is_known {
                true if kind == 1 => {
                    answer[7] = 1;
                    answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 44]);
                }
                true => {}
                false => answer[3] |= 3,
            }
            let _ = socket.send_to(&answer, from);
        }
    });
    at
}

/// What dig is answered: the status, then each record that answers, without its age, then the kinds of those that say why not.
fn dig(server: &str, question: &str) -> String {
    let mut command = Command::new("dig");
    command.arg(format!("@{server}")).args(["+tries=3", "+time=3", "+noall", "+comments", "+answer", "+authority"]);
    let output = command.args(question.split(' ')).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut said = String::new();
    let mut is_authority = false;
    for line in text.lines() {
        is_authority |= line.starts_with(";; AUTHORITY");
        if let Some((_, status)) = line.split_once("status: ") {
            said.push_str(status.split(',').next().unwrap());
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [name, _ttl, "IN", kind, data @ ..] if !name.starts_with(';') => match is_authority {
                true => said.push_str(&format!("; {kind}")),
                false => said.push_str(&format!("; {kind} {}", data.join(" "))),
            },
            _ => {}
        }
    }
    said
}

#[test]
fn names_are_what_the_specification_says_on_every_node() {
    let Some(mut fleet) = Fleet::launch(0) else { return };
    let mut agent = fleet.machine("agent-0");
    let resolvers = fleet.file("resolv.conf", &format!("nameserver {}\n", shore(fleet.switch_address())));
    agent.flags = vec![format!("--resolv-conf={resolvers}")];
    agent.start();
    fleet.ready(&agent);
    fleet.agents.push(agent);
    let agent = &fleet.agents[0];
    fleet.apply(WORLD);
    for pod in ["web", "asker", "first", "docker"] {
        fleet.wait(&format!("pod/{pod}"), "condition=Ready");
    }
    fleet.until_field("pod/slow", "{.status.phase}", "Running");
    let field = |what: &str, path: &str| fleet.field(what, path);
    let (web, api) = (field("service/web", "{.spec.clusterIP}"), field("service/kubernetes", "{.spec.clusterIP}"));
    let (first, slow) = (field("pod/first", "{.status.podIP}"), field("pod/slow", "{.status.podIP}"));
    let resolv_conf = fleet.kubectl(&["exec", "docker", "--", "cat", "/etc/resolv.conf"]);
    assert!(
        resolv_conf.starts_with("search default.svc.cluster.local svc.cluster.local cluster.local"),
        "{resolv_conf}"
    );
    assert!(resolv_conf.contains("options ndots:5"), "{resolv_conf}");
    let server = resolv_conf.split_once("nameserver ").unwrap().1.lines().next().unwrap().to_owned();

    let everywhere = [
        ("web.default.svc.cluster.local A", format!("NOERROR; A {web}")),
        ("WEB.default.SVC.Cluster.Local A +tcp", format!("NOERROR; A {web}")),
        ("web.default.svc.cluster.local AAAA", "NOERROR; SOA".into()),
        ("_http._tcp.web.default.svc.cluster.local SRV", "NOERROR; SRV 0 100 80 web.default.svc.cluster.local.".into()),
        ("_talk._udp.web.default.svc.cluster.local SRV", "NOERROR; SRV 0 100 53 web.default.svc.cluster.local.".into()),
        ("_talk._tcp.web.default.svc.cluster.local SRV", "NXDOMAIN; SOA".into()),
        (&format!("-x {web}"), "NOERROR; PTR web.default.svc.cluster.local.".into()),
        ("kubernetes.default.svc.cluster.local A", format!("NOERROR; A {api}")),
        ("db.default.svc.cluster.local A", format!("NOERROR; A {first}")),
        ("db-0.db.default.svc.cluster.local A", format!("NOERROR; A {first}")),
        (
            "_sql._tcp.db.default.svc.cluster.local SRV",
            "NOERROR; SRV 0 100 5432 db-0.db.default.svc.cluster.local.".into(),
        ),
        (&format!("-x {first}"), "NOERROR; PTR db-0.db.default.svc.cluster.local.".into()),
        (&format!("{}.default.pod.cluster.local A", first.replace('.', "-")), format!("NOERROR; A {first}")),
        ("early.default.svc.cluster.local A", format!("NOERROR; A {slow}")),
        ("late.default.svc.cluster.local A", "NXDOMAIN; SOA".into()),
        ("manual.default.svc.cluster.local A", "NOERROR; A 192.0.2.50".into()),
        ("box.manual.default.svc.cluster.local A", "NOERROR; A 192.0.2.50".into()),
        (
            "_http._tcp.manual.default.svc.cluster.local SRV",
            "NOERROR; SRV 0 100 8080 box.manual.default.svc.cluster.local.".into(),
        ),
        ("outer.default.svc.cluster.local CNAME", "NOERROR; CNAME shore.example.".into()),
        ("dns-version.cluster.local TXT", "NOERROR; TXT \"1.1.0\"".into()),
        ("cluster.local NS", "NOERROR; NS ns.dns.cluster.local.".into()),
        ("ns.dns.cluster.local A", format!("NOERROR; A {server}")),
        ("default.svc.cluster.local A", "NOERROR; SOA".into()),
        ("kube-node-lease.svc.cluster.local A", "NOERROR; SOA".into()),
        ("nosuch.svc.cluster.local A", "NXDOMAIN; SOA".into()),
        ("nosuch.default.svc.cluster.local A", "NXDOMAIN; SOA".into()),
        ("+bufsize=4096 +dnssec nosuch.default.svc.cluster.local A", "NXDOMAIN; SOA".into()),
    ];
    for (question, expected) in everywhere {
        for (place, ask) in [
            ("the master's node", &(|| dig(&server, question)) as &(dyn Fn() -> String + Sync)),
            ("the agent", &(|| agent.within(|| dig(&server, question)))),
        ] {
            let mut last = String::new();
            until(&format!("{question} at {place}: {expected}"), || {
                let said = ask();
                (said == expected).then_some(()).or_else(|| {
                    if said != last {
                        eprintln!("{question} at {place}: {said}");
                    }
                    last = said;
                    None
                })
            });
        }
    }

    // what is not the cluster's, by the agent's own resolvers
    for (question, expected) in [
        ("shore.example A", "NOERROR; A 192.0.2.44"),
        ("SHORE.example AAAA", "NOERROR"),
        ("nosuch.example A", "NXDOMAIN"),
        ("outer.default.svc.cluster.local A", "NOERROR; CNAME shore.example.; A 192.0.2.44"),
    ] {
        assert_eq!(agent.within(|| dig(&server, question)), expected, "{question}");
    }

    // by the C library of a container, and by Wasm, with their search domains
    let to: SocketAddr = format!("{}:8000", field("pod/asker", "{.status.podIP}")).parse().unwrap();
    for name in
        ["web", "web.default", "web.default.svc", "WEB.default.svc.cluster.local", "web.default.svc.cluster.local."]
    {
        let page = fleet.kubectl(&["exec", "docker", "--", "wget", "-qO-", &format!("http://{name}/{name}")]);
        assert_eq!(page, format!("wasm answers /{name}\n"));
        let page = agent.within(|| request(to, "pod", &format!("/at/{name}:80/x")).unwrap().body);
        assert_eq!(page, "the neighbour says: wasm answers /x\n", "{name}");
    }
    let page = agent.within(|| request(to, "pod", "/at/nosuch.example:80/x").unwrap().body);
    assert!(page.contains("does not answer") && !page.contains("emporary"), "{page}");

    // a pod reaches itself through a Service, but its own host name is its address and no Service's
    let own = field("service/asker", "{.spec.clusterIP}");
    for name in ["asker.default", &own] {
        let page = agent.within(|| request(to, "pod", &format!("/at/{name}:80/x")).unwrap().body);
        assert_eq!(page, "the neighbour says: wasm answers /x\n", "{name}");
    }
    let page = agent.within(|| request(to, "pod", "/at/asker:80/x").unwrap().body);
    assert!(page.contains("does not answer") && page.contains("efused"), "{page}");

    // a headless Service's name goes with its last pod
    fleet.kubectl(&["delete", "pod", "first"]);
    until("the name is gone", || {
        (agent.within(|| dig(&server, "db.default.svc.cluster.local A")) == "NXDOMAIN; SOA").then_some(())
    });
}
