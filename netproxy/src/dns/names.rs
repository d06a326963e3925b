//! What a cluster name means: Kubernetes' DNS specification 1.1.0 as a pure function of the route table. No packets here.

use std::net::IpAddr;
use std::sync::Arc;

use crate::routes::{HeadlessRecord, PortRoute, Protocol};
use crate::table::{Service, Table};

/// What there is under a name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Addresses.
    Addresses(Vec<IpAddr>),
    /// Another name (ExternalName).
    Alias(String),
    /// Named ports.
    Ports(Vec<Srv>),
    /// The name of an address.
    Pointer(String),
    /// Words about the zone.
    Text(&'static str),
    /// The name server itself.
    Server,
    /// The cluster's domain.
    Apex,
    /// The name exists but has no records of its own.
    Nothing,
    /// No such name in the cluster.
    Absent,
    /// Not a name of the cluster.
    Foreign,
}

/// One SRV record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Srv {
    pub(crate) port: u16,
    pub(crate) target: String,
    pub(crate) addresses: Vec<IpAddr>,
}

impl Found {
    /// Whether there is such a name. A headless Service without ready endpoints has none.
    pub(crate) fn exists(&self) -> bool {
        match self {
            Found::Addresses(addresses) => !addresses.is_empty(),
            Found::Ports(ports) => !ports.is_empty(),
            Found::Absent | Found::Foreign => false,
            _ => true,
        }
    }
}

/// The version of the specification that is followed.
const VERSION: &str = "1.1.0";

/// Looks up a full name, lower case, without the final dot.
pub(crate) fn lookup(table: &Table, domain: &str, name: &str) -> Found {
    if let Some(address) = reverse_address(name) {
        return table.reverse(address).map_or(Found::Foreign, |name| Found::Pointer(format!("{name}.{domain}")));
    }
    if name == domain {
        return Found::Apex;
    }
    let Some(inner) = name.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.')) else { return Found::Foreign };
    let labels: Vec<&str> = inner.rsplit('.').collect();
    match labels.as_slice() {
        ["dns-version"] => Found::Text(VERSION),
        ["dns", "ns"] => Found::Server,
        ["svc" | "pod" | "dns"] => Found::Nothing,
        ["svc", namespace] if table.has_namespace(namespace) => Found::Nothing,
        ["svc", namespace, service, rest @ ..] => match table.service(namespace, service) {
            Some(service) => of_service(service, domain, rest),
            None => Found::Absent,
        },
        ["pod", namespace] if table.has_namespace(namespace) => Found::Nothing,
        ["pod", namespace, dashed] if table.has_namespace(namespace) => {
            dashed_address(dashed).map_or(Found::Absent, |address| Found::Addresses(vec![address]))
        }
        _ => Found::Absent,
    }
}

/// `rest` are the labels below the Service's name, nearest first.
fn of_service(service: &Arc<Service>, domain: &str, rest: &[&str]) -> Found {
    let route = &service.route;
    match rest {
        [] => match &route.external_name {
            Some(name) => Found::Alias(name.trim_end_matches('.').to_ascii_lowercase()),
            None => Found::Addresses(addresses(service)),
        },
        [host] if !host.starts_with('_') => {
            let records = route.headless.iter().filter(|record| host_label(record) == **host);
            let addresses: Vec<IpAddr> = records.map(|record| record.address).collect();
            if addresses.is_empty() { Found::Absent } else { Found::Addresses(addresses) }
        }
        [protocol] if matches!(*protocol, "_tcp" | "_udp") => Found::Nothing,
        [protocol, port] => {
            let wanted = |route: &&PortRoute| {
                let of_protocol = match route.protocol {
                    Protocol::Tcp => "_tcp",
                    Protocol::Udp => "_udp",
                };
                *protocol == of_protocol && !route.name.is_empty() && port.strip_prefix('_') == Some(&route.name)
            };
            match route.ports.iter().find(wanted) {
                Some(port) => Found::Ports(srv(service, domain, port)),
                None => Found::Absent,
            }
        }
        _ => Found::Absent,
    }
}

/// A Service's own name resolves to its cluster addresses, a headless one's to its pods.
fn addresses(service: &Service) -> Vec<IpAddr> {
    let route = &service.route;
    match route.cluster_ips.is_empty() {
        false => route.cluster_ips.clone(),
        true => route.headless.iter().map(|record| record.address).collect(),
    }
}

/// All ports of a Service, as SRV records.
pub(crate) fn ports(table: &Table, domain: &str, name: &str) -> Vec<Srv> {
    let inner = name.strip_suffix(domain).and_then(|rest| rest.strip_suffix(".svc."));
    let service = inner.and_then(|inner| inner.split_once('.')).and_then(|(name, ns)| table.service(ns, name));
    let Some(service) = service else { return Vec::new() };
    let named = service.route.ports.iter().filter(|port| !port.name.is_empty());
    named.flat_map(|port| srv(service, domain, port)).collect()
}

fn srv(service: &Service, domain: &str, port: &PortRoute) -> Vec<Srv> {
    let route = &service.route;
    let own = format!("{}.{}.svc.{domain}", route.name, route.namespace);
    if !route.cluster_ips.is_empty() {
        return vec![Srv { port: port.port, target: own, addresses: route.cluster_ips.clone() }];
    }
    let of_pod = |record: &HeadlessRecord| {
        // The pod's own port may differ from the Service's, and it may have none of that name.
        let target = port.endpoints.iter().find(|endpoint| endpoint.ip() == record.address)?;
        Some(Srv {
            port: target.port(),
            target: format!("{}.{own}", host_label(record)),
            addresses: vec![record.address],
        })
    };
    route.headless.iter().filter_map(of_pod).collect()
}

/// The label of a headless Service's pod: its hostname, or its address with dashes.
pub(crate) fn host_label(record: &HeadlessRecord) -> String {
    match &record.hostname {
        Some(hostname) => hostname.to_ascii_lowercase(),
        None => record.address.to_string().replace(['.', ':'], "-"),
    }
}

/// `10-42-0-5` or `fd00--5`.
fn dashed_address(label: &str) -> Option<IpAddr> {
    let v4 = || label.replace('-', ".").parse().ok();
    let v6 = || label.replace('-', ":").parse().ok();
    v4().or_else(v6)
}

/// The address of a name under in-addr.arpa or ip6.arpa.
fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(v4) = name.strip_suffix(".in-addr.arpa") {
        let forward: Vec<&str> = v4.rsplit('.').collect();
        return forward.join(".").parse().ok();
    }
    let nibbles: Vec<&str> = name.strip_suffix(".ip6.arpa")?.rsplit('.').collect();
    if nibbles.len() != 32 || nibbles.iter().any(|nibble| nibble.len() != 1) {
        return None;
    }
    u128::from_str_radix(&nibbles.concat(), 16).ok().map(|bits| IpAddr::V6(bits.into()))
}

/// The full names a resolver with a pod's search path tries, in order (ndots:5).
pub(crate) fn search(name: &str, namespace: &str, domain: &str) -> Vec<String> {
    const NDOTS: usize = 5;
    let name = name.to_ascii_lowercase();
    if let Some(absolute) = name.strip_suffix('.') {
        return vec![absolute.to_owned()];
    }
    let mut names =
        vec![format!("{name}.{namespace}.svc.{domain}"), format!("{name}.svc.{domain}"), format!("{name}.{domain}")];
    let as_is = if name.matches('.').count() >= NDOTS { 0 } else { names.len() };
    names.insert(as_is, name);
    names
}

/// What a pod's resolver gets for `name`: the first name of the search path that exists. None: a name outside the cluster.
pub(crate) fn resolve(table: &Table, domain: &str, name: &str, namespace: &str) -> Option<Found> {
    search(name, namespace, domain)
        .iter()
        .map(|name| lookup(table, domain, name))
        .find(|found| matches!(found, Found::Addresses(_) | Found::Alias(_)))
}

/// Whether a full name can only be the cluster's; nobody outside need be asked.
pub(crate) fn is_inside(domain: &str, name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::{Backends, Port};
    use crate::routes::{Routes, ServiceRoute};

    fn table() -> Table {
        let port = |name: &str, protocol, port, endpoints| PortRoute {
            name: name.into(),
            protocol,
            port,
            node_port: None,
            h2c: false,
            endpoints,
            local: Vec::new(),
        };
        let record = |ip: &str, hostname: Option<&str>| HeadlessRecord {
            address: ip.parse().unwrap(),
            hostname: hostname.map(str::to_owned),
        };
        let services = vec![
            ServiceRoute {
                namespace: "shop".into(),
                name: "web".into(),
                cluster_ips: vec!["10.43.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
                ports: vec![port("http", Protocol::Tcp, 80, vec![]), port("", Protocol::Udp, 53, vec![])],
                ..ServiceRoute::default()
            },
            ServiceRoute {
                namespace: "shop".into(),
                name: "db".into(),
                headless: vec![record("10.42.0.5", Some("db-0")), record("10.42.0.6", None)],
                ports: vec![port("sql", Protocol::Tcp, 5432, vec!["10.42.0.5:15432".parse().unwrap()])],
                ..ServiceRoute::default()
            },
            ServiceRoute {
                namespace: "shop".into(),
                name: "mail".into(),
                external_name: Some("Mail.Example.com.".into()),
                ..ServiceRoute::default()
            },
            ServiceRoute { namespace: "shop".into(), name: "none".into(), ..ServiceRoute::default() },
        ];
        let namespaces = vec!["shop".into(), "bare".into()];
        Table::build(Routes { services, namespaces, ..Routes::default() }, &Table::default(), |route, _| {
            Port::new(route.name.clone(), Backends::default(), 1)
        })
    }

    #[test]
    fn names_mean_what_the_dns_specification_says() {
        let table = table();
        let mut lines = String::new();
        for name in [
            "web.shop.svc.cluster.local",
            "none.shop.svc.cluster.local",
            "web.other.svc.cluster.local",
            "shop.svc.cluster.local",
            "bare.svc.cluster.local",
            "other.svc.cluster.local",
            "cluster.local",
            "dns-version.cluster.local",
            "ns.dns.cluster.local",
            "_http._tcp.web.shop.svc.cluster.local",
            "_http._udp.web.shop.svc.cluster.local",
            "_tcp.web.shop.svc.cluster.local",
            "db.shop.svc.cluster.local",
            "db-0.db.shop.svc.cluster.local",
            "10-42-0-6.db.shop.svc.cluster.local",
            "_sql._tcp.db.shop.svc.cluster.local",
            "mail.shop.svc.cluster.local",
            "10-42-0-5.shop.pod.cluster.local",
            "10-42-0-5.other.pod.cluster.local",
            "nonsense.shop.pod.cluster.local",
            "6.0.42.10.in-addr.arpa",
            "7.0.43.10.in-addr.arpa",
            "5.0.42.10.in-addr.arpa",
            "9.9.9.9.in-addr.arpa",
            "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa",
            "example.com",
            "xcluster.local",
        ] {
            lines.push_str(&format!("{name}: {:?}\n", lookup(&table, "cluster.local", name)));
        }
        expect_test::expect![[r#"
            web.shop.svc.cluster.local: Addresses([10.43.0.7, fd00::7])
            none.shop.svc.cluster.local: Addresses([])
            web.other.svc.cluster.local: Absent
            shop.svc.cluster.local: Nothing
            bare.svc.cluster.local: Nothing
            other.svc.cluster.local: Absent
            cluster.local: Apex
            dns-version.cluster.local: Text("1.1.0")
            ns.dns.cluster.local: Server
            _http._tcp.web.shop.svc.cluster.local: Ports([Srv { port: 80, target: "web.shop.svc.cluster.local", addresses: [10.43.0.7, fd00::7] }])
            _http._udp.web.shop.svc.cluster.local: Absent
            _tcp.web.shop.svc.cluster.local: Nothing
            db.shop.svc.cluster.local: Addresses([10.42.0.5, 10.42.0.6])
            db-0.db.shop.svc.cluster.local: Addresses([10.42.0.5])
            10-42-0-6.db.shop.svc.cluster.local: Addresses([10.42.0.6])
            _sql._tcp.db.shop.svc.cluster.local: Ports([Srv { port: 15432, target: "db-0.db.shop.svc.cluster.local", addresses: [10.42.0.5] }])
            mail.shop.svc.cluster.local: Alias("mail.example.com")
            10-42-0-5.shop.pod.cluster.local: Addresses([10.42.0.5])
            10-42-0-5.other.pod.cluster.local: Absent
            nonsense.shop.pod.cluster.local: Absent
            6.0.42.10.in-addr.arpa: Pointer("10-42-0-6.db.shop.svc.cluster.local")
            7.0.43.10.in-addr.arpa: Pointer("web.shop.svc.cluster.local")
            5.0.42.10.in-addr.arpa: Pointer("db-0.db.shop.svc.cluster.local")
            9.9.9.9.in-addr.arpa: Foreign
            7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa: Pointer("web.shop.svc.cluster.local")
            example.com: Foreign
            xcluster.local: Foreign
        "#]].assert_eq(&lines);
    }

    #[test]
    fn a_pods_search_path_applies() {
        let table = table();
        for (name, namespace, expected) in [
            ("web", "shop", true),
            ("web", "other", false),
            ("web.shop", "other", true),
            ("web.shop.svc", "other", true),
            ("web.shop.svc.cluster.local", "other", true),
            ("WEB.shop.svc.cluster.local.", "other", true),
            ("web.shop.", "shop", false),
            ("example.com", "shop", false),
        ] {
            assert_eq!(resolve(&table, "cluster.local", name, namespace).is_some(), expected, "{name} in {namespace}");
        }
        assert_eq!(search("a.b.c.d.e.f", "ns", "cluster.local")[0], "a.b.c.d.e.f");
    }
}
