//! Listeners of Services and host ports: which addresses must be listened on, and the difference to what is. A port without ready
//! endpoints has no listener, so that clients are refused at once, as by kube-proxy's REJECT.

pub(crate) mod l4;
pub(crate) mod udp;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::balance::Port;
use crate::connections::Connections;
use crate::listener;
use crate::problems::About;
use crate::routes::{HostPort, Protocol};
use crate::shared::Shared;
use crate::table::Table;

/// What identifies a listener.
type Place = (Protocol, SocketAddr);

/// The running listeners.
#[derive(Default)]
pub(crate) struct Listeners {
    running: HashMap<Place, Running>,
}

struct Running {
    port: Arc<Port>,
    stop: CancellationToken,
    /// The kernel refused for now; asked again with every change.
    again: bool,
}

/// A listener that should be.
struct Wanted {
    port: Arc<Port>,
    about: About,
    what: &'static str,
}

impl Listeners {
    /// Stops what is not wanted any more, starts what is new, leaves alone all else. Must run inside the data runtime.
    pub(crate) fn apply(&mut self, shared: &Arc<Shared>, table: &Table, node_addresses: &[IpAddr]) {
        let Plan { wanted, conflicts } = plan(table, node_addresses);
        self.running.retain(|place, running| {
            let keep = wanted.get(place).is_some_and(|wanted| Arc::ptr_eq(&wanted.port, &running.port));
            if !keep {
                running.stop.cancel();
            }
            keep && !running.again
        });
        let lasting: HashSet<&About> =
            wanted.values().map(|wanted| &wanted.about).chain(conflicts.iter().map(|(about, _)| about)).collect();
        shared.problems.clear_if(|about| {
            matches!(about, About::Service { .. } | About::HostPort { .. }) && !lasting.contains(about)
        });
        for (place, wanted) in wanted {
            if self.running.contains_key(&place) {
                continue;
            }
            let stop = shared.stop.child_token();
            let started = start(shared, place, wanted.port.clone(), stop.clone());
            match &started {
                Ok(()) => shared.problems.clear(&wanted.about),
                Err(error) => {
                    shared.problems.add(wanted.about, listener::explain(wanted.what, place.1, error));
                }
            }
            // A missing privilege will go on missing.
            let again = started.is_err_and(|error| error.kind() != ErrorKind::PermissionDenied);
            self.running.insert(place, Running { port: wanted.port, stop, again });
        }
        for (about, message) in conflicts {
            shared.problems.add(about, message);
        }
    }
}

/// The listeners that should be, and those that cannot because somebody else has their place.
struct Plan {
    wanted: HashMap<Place, Wanted>,
    conflicts: Vec<(About, String)>,
}

fn plan(table: &Table, node_addresses: &[IpAddr]) -> Plan {
    let mut wanted = HashMap::new();
    for service in table.services() {
        for (route, port) in service.route.ports.iter().zip(&service.ports).filter(|(_, port)| !port.is_empty()) {
            let mut add = |what, at| {
                let about =
                    About::Service { namespace: service.route.namespace.clone(), name: service.route.name.clone(), at };
                // Two Services may claim one external address; the first keeps it.
                wanted.entry((route.protocol, at)).or_insert(Wanted { port: port.clone(), about, what });
            };
            for address in service.addresses() {
                add("service address", SocketAddr::new(address, route.port));
            }
            for address in node_addresses.iter().filter(|_| route.node_port.is_some()) {
                add("node port", SocketAddr::new(*address, route.node_port.unwrap_or_default()));
            }
        }
    }
    let mut conflicts = Vec::new();
    for (route, port) in &table.host_ports {
        for address in host_addresses(route, node_addresses) {
            let at = SocketAddr::new(address, route.port);
            let about = About::HostPort { namespace: route.namespace.clone(), pod: route.pod.clone(), at };
            match wanted.entry((route.protocol, at)) {
                Entry::Vacant(place) => {
                    place.insert(Wanted { port: port.clone(), about, what: "host port" });
                }
                Entry::Occupied(taken) => {
                    conflicts.push((about, format!("cannot listen on host port {at}: {}", holder(&taken.get().about))));
                }
            }
        }
    }
    Plan { wanted, conflicts }
}

/// Where a host port is listened on.
fn host_addresses(route: &HostPort, node_addresses: &[IpAddr]) -> Vec<IpAddr> {
    match route.host_ip.filter(|address| !address.is_unspecified()) {
        Some(address) => vec![address],
        None => {
            let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
            let others = node_addresses.iter().copied().filter(|address| *address != localhost);
            others.chain([localhost]).collect()
        }
    }
}

fn holder(about: &About) -> String {
    match about {
        About::Service { namespace, name, .. } => format!("service {namespace}/{name} has it"),
        About::HostPort { namespace, pod, .. } => format!("pod {namespace}/{pod} has it"),
        _ => "it is taken".into(),
    }
}

fn start(shared: &Arc<Shared>, place: Place, port: Arc<Port>, stop: CancellationToken) -> std::io::Result<()> {
    let (protocol, addr) = place;
    match protocol {
        Protocol::Tcp => {
            let listener = listener::bind(addr)?;
            let shared = shared.clone();
            // Bounds are the listener's, but its connections are told to finish only when the whole proxy stops.
            let connections =
                Connections::bounded_in(&shared.service_connections, shared.limits.listener_connections_max);
            shared.data.clone().spawn(listener::accept(
                listener,
                connections,
                stop,
                move |stream, peer, connection| l4::connection(shared.clone(), port.clone(), stream, peer, connection),
            ));
        }
        Protocol::Udp => {
            let socket = udp::bind(addr)?;
            shared.data.spawn(udp::serve(shared.clone(), socket, port, stop));
        }
    }
    Ok(())
}
