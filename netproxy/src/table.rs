//! The compiled route table: what a connection, a request or a query looks up. Immutable once built, swapped whole; ports
//! keep their identity from one table to the next, so that listeners and open connections see new endpoints through them.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::balance::{Door, Port, Way};
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

    /// Addresses that are this Service's own, and which door each is.
    pub(crate) fn doors(&self) -> impl Iterator<Item = (IpAddr, Door)> + '_ {
        fn of(addresses: &[IpAddr], door: Door) -> impl Iterator<Item = (IpAddr, Door)> + '_ {
            addresses.iter().map(move |address| (*address, door))
        }
        let route = &self.route;
        of(&route.cluster_ips, Door::Internal)
            .chain(of(&route.external_ips, Door::External))
            .chain(of(&route.balancer_ips, Door::Balancer))
    }
}

/// The whole table.
#[derive(Default)]
pub(crate) struct Table {
    /// namespace -> name -> Service
    services: HashMap<String, HashMap<String, Arc<Service>>>,
    namespaces: HashSet<String>,
    /// Service addresses of TCP ports.
    vips: HashMap<SocketAddr, Way>,
    /// The same of UDP ports.
    datagrams: HashMap<SocketAddr, Way>,
    /// Ports of the node that lead to Services.
    node_ports: HashMap<(Protocol, u16), Way>,
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
                let way = Way { port: made.clone(), door: Door::External };
                self.node_ports.insert((port.protocol, node_port), way);
            }
            for (address, door) in service.doors() {
                let vips = match port.protocol {
                    Protocol::Tcp => &mut self.vips,
                    Protocol::Udp => &mut self.datagrams,
                };
                vips.insert(SocketAddr::new(address, port.port), Way { port: made.clone(), door });
            }
        }
        // A balancer's address is the node's: there is more than the Service.
        let own = service.doors().filter(|(_, door)| *door != Door::Balancer);
        self.addresses.extend(own.map(|(address, _)| address));
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

    pub(crate) fn vip(&self, addr: SocketAddr) -> Option<&Way> {
        self.vips.get(&addr)
    }

    /// The way to a Service's port of that protocol.
    pub(crate) fn at(&self, protocol: Protocol, addr: SocketAddr) -> Option<Way> {
        let vips = match protocol {
            Protocol::Tcp => &self.vips,
            Protocol::Udp => &self.datagrams,
        };
        vips.get(&addr).cloned()
    }

    /// Where this port of the node leads to.
    pub(crate) fn at_node(&self, protocol: Protocol, port: u16) -> Option<Way> {
        let of_pod = || {
            let (_, made) = self.host_ports.iter().find(|(at, _)| (at.protocol, at.port) == (protocol, port))?;
            Some(Way { port: made.clone(), door: Door::External })
        };
        self.node_ports.get(&(protocol, port)).cloned().or_else(of_pod)
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
