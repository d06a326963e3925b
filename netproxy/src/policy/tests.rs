#![allow(clippy::unwrap_used)]

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A pod that lets `a` in at TCP 80 to 82 and what it calls `web`, and a range at UDP 53; and goes nowhere but to `b`.
fn table() -> Table {
    let pods = |addresses: &[&str]| Peers { pods: addresses.iter().map(|text| ip(text)).collect(), blocks: Vec::new() };
    let block = Block { cidr: "192.0.2.0/24".parse().unwrap(), except: vec!["192.0.2.128/25".parse().unwrap()] };
    let tcp = vec![Ports::Range(Protocol::Tcp, 80, 82), Ports::Named(Protocol::Tcp, "web".into())];
    let ingress = vec![
        Arc::new(Rule { peers: Some(pods(&["10.0.0.1"])), ports: Some(tcp) }),
        Arc::new(Rule {
            peers: Some(Peers { blocks: vec![block], ..Peers::default() }),
            ports: Some(vec![Ports::Range(Protocol::Udp, 53, 53)]),
        }),
    ];
    let egress = vec![Arc::new(Rule { peers: Some(pods(&["10.0.0.2"])), ports: None })];
    let web = NamedPort { name: "web".into(), protocol: Protocol::Tcp, port: 8080 };
    Table {
        nodes: [ip("10.0.1.0"), ip("10.0.2.0")].into(),
        own_node: [ip("10.0.1.0")].into(),
        pods: HashMap::from([
            (ip("10.0.0.9"), Isolation { ingress: Some(ingress), egress: Some(egress) }),
            (ip("10.0.0.8"), Isolation { ingress: Some(Vec::new()), egress: None }),
        ]),
        named_ports: HashMap::from([(ip("10.0.0.9"), vec![web])]),
    }
}

#[test]
fn both_sides_must_agree() {
    use Protocol::{Tcp, Udp};
    let table = table();
    for (from, to, protocol, expected, why) in [
        ("10.0.0.1", "10.0.0.9:80", Tcp, true, "allowed"),
        ("10.0.0.1", "10.0.0.9:82", Tcp, true, "the end of the range"),
        ("10.0.0.1", "10.0.0.9:83", Tcp, false, "beyond the range"),
        ("10.0.0.1", "10.0.0.9:8080", Tcp, true, "a port by name"),
        ("10.0.0.1", "10.0.0.9:80", Udp, false, "another protocol"),
        ("10.0.0.2", "10.0.0.9:80", Tcp, false, "another pod"),
        ("192.0.2.5", "10.0.0.9:53", Udp, true, "in the block"),
        ("192.0.2.200", "10.0.0.9:53", Udp, false, "in its hole"),
        ("::ffff:192.0.2.5", "10.0.0.9:53", Udp, true, "the same as IPv6 spells it"),
        ("10.0.2.0", "10.0.0.9:9999", Tcp, true, "a node may come"),
        ("10.0.0.9", "10.0.0.9:9999", Tcp, true, "itself"),
        ("10.0.0.9", "10.0.0.2:1", Udp, true, "let out"),
        ("10.0.0.9", "10.0.0.1:1", Tcp, false, "not let out"),
        ("10.0.0.9", "10.0.1.0:1", Tcp, true, "its own node"),
        ("10.0.0.9", "10.0.2.0:1", Tcp, false, "another node"),
        ("10.0.0.9", "203.0.113.1:443", Tcp, false, "outside"),
        ("10.0.0.8", "203.0.113.1:443", Tcp, true, "open that way"),
        ("10.0.0.8", "10.0.0.9:80", Tcp, false, "let out, and not let in"),
        ("10.0.0.1", "10.0.0.8:80", Tcp, false, "nobody is let in"),
        ("10.0.0.1", "10.0.0.3:80", Tcp, true, "no policy"),
    ] {
        assert_eq!(table.permits(ip(from), to.parse().unwrap(), protocol), expected, "{from} to {to}: {why}");
    }
    assert!(table.guards(ip("10.0.0.8")) && !table.guards(ip("10.0.0.1")));
    assert!(Table::default().permits(ip("10.0.0.1"), "10.0.0.8:80".parse().unwrap(), Tcp));
}
