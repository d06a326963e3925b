//! The compiled route table: what a connection, a request or a query looks up. Immutable once built, swapped whole; ports
//! keep their identity from one table to the next, so that listeners and open connections see new endpoints through them.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::balance::Port;
use crate::dns::names::host_label;
use crate::ingress::Matcher;
use crate::routes::{BackendPort, HostPort, Protocol, Routes, ServiceRoute};

/// One Service with its ports.
pub(crate) struct Service {
    pub(crate) route: ServiceRoute,
    pub(crate) ports: Vec<Arc<Port>>,
}

impl Service {
    /// The TCP port an Ingress names.
    pub(crate) fn port(&self, port: &BackendPort) -> Option<&Arc<Port>> {
        let wanted = self.route.ports.iter().position(|route| {
            route.protocol == Protocol::Tcp
                && match port {
                    BackendPort::Number(number) => route.port == *number,
                    BackendPort::Name(name) => route.name == *name,
                }
        })?;
        self.ports.get(wanted)
    }

    /// Addresses that are this Service's own.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.route.cluster_ips.iter().chain(&self.route.external_ips).copied()
    }
}

/// The whole table.
#[derive(Default)]
pub(crate) struct Table {
    /// namespace -> name -> Service
    services: HashMap<String, HashMap<String, Arc<Service>>>,
    namespaces: HashSet<String>,
    /// Service addresses of TCP ports.
    vips: HashMap<SocketAddr, Arc<Port>>,
    /// The same of UDP ports.
    datagrams: HashMap<SocketAddr, Arc<Port>>,
    /// Ports of the node that lead to Services.
    node_ports: HashMap<(Protocol, u16), Arc<Port>>,
    /// All addresses of Services.
    addresses: HashSet<IpAddr>,
    /// Names of addresses: Services' and headless pods', without the cluster domain.
    reverse: HashMap<IpAddr, String>,
    pub(crate) ingress: Matcher,
    /// Ports of the node that lead to pods.
    pub(crate) host_ports: Vec<(HostPort, Arc<Port>)>,
}

impl Table {
    /// Compiles `routes`, taking over what stayed the same in `old`. `port` finds or makes the port of a Service.
    pub(crate) fn build(routes: Routes, old: &Table, mut port: impl FnMut(&ServiceRoute, usize) -> Arc<Port>) -> Self {
        let mut table = Self { namespaces: routes.namespaces.into_iter().collect(), ..Self::default() };
        for route in routes.services {
            let service = match old.service(&route.namespace, &route.name) {
                Some(same) if same.route == route => same.clone(),
                _ => {
                    let ports = (0..route.ports.len()).map(|index| port(&route, index)).collect();
                    Arc::new(Service { route, ports })
                }
            };
            table.enter(service);
        }
        table.ingress = Matcher::build(&routes.ingresses, |namespace, name, port| {
            table.service(namespace, name).and_then(|service| service.port(port)).cloned()
        });
        table
    }

    /// The port object of a host port, whichever pod it leads to.
    pub(crate) fn host_port(&self, wanted: &HostPort) -> Option<&Arc<Port>> {
        let place = |port: &HostPort| (port.protocol, port.host_ip, port.port);
        self.host_ports.iter().find(|(port, _)| place(port) == place(wanted)).map(|(_, port)| port)
    }

    fn enter(&mut self, service: Arc<Service>) {
        let route = &service.route;
        for (port, made) in route.ports.iter().zip(&service.ports) {
            if let Some(node_port) = port.node_port {
                self.node_ports.insert((port.protocol, node_port), made.clone());
            }
            for address in service.addresses() {
                let vips = match port.protocol {
                    Protocol::Tcp => &mut self.vips,
                    Protocol::Udp => &mut self.datagrams,
                };
                vips.insert(SocketAddr::new(address, port.port), made.clone());
            }
        }
        self.addresses.extend(service.addresses());
        for address in &route.cluster_ips {
            self.reverse.insert(*address, format!("{}.{}.svc", route.name, route.namespace));
        }
        for record in &route.headless {
            let name = format!("{}.{}.{}.svc", host_label(record), route.name, route.namespace);
            // A pod may be behind several Services; the one that knows it by name says who it is.
            match record.hostname {
                Some(_) => drop(self.reverse.insert(record.address, name)),
                None => drop(self.reverse.entry(record.address).or_insert(name)),
            }
        }
        self.services.entry(route.namespace.clone()).or_default().insert(route.name.clone(), service);
    }

    pub(crate) fn service(&self, namespace: &str, name: &str) -> Option<&Arc<Service>> {
        self.services.get(namespace)?.get(name)
    }

    /// Whether there is such a namespace.
    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains(namespace) || self.services.contains_key(namespace)
    }

    pub(crate) fn vip(&self, addr: SocketAddr) -> Option<&Arc<Port>> {
        self.vips.get(&addr)
    }

    /// The port of a Service, of that protocol.
    pub(crate) fn at(&self, protocol: Protocol, addr: SocketAddr) -> Option<&Arc<Port>> {
        match protocol {
            Protocol::Tcp => self.vips.get(&addr),
            Protocol::Udp => self.datagrams.get(&addr),
        }
    }

    /// The port that this port of the node leads to.
    pub(crate) fn at_node(&self, protocol: Protocol, port: u16) -> Option<&Arc<Port>> {
        let of_pod = || self.host_ports.iter().find(|(at, _)| (at.protocol, at.port) == (protocol, port));
        self.node_ports.get(&(protocol, port)).or_else(|| of_pod().map(|(_, made)| made))
    }

    /// Whether `address` is a Service's, whatever the port.
    pub(crate) fn is_service_address(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// `web.default.svc` for an address.
    pub(crate) fn reverse(&self, address: IpAddr) -> Option<&str> {
        self.reverse.get(&address).map(String::as_str)
    }

    pub(crate) fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values().flat_map(HashMap::values)
    }
}
