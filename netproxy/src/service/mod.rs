//! Listeners of Services and host ports: which addresses must be listened on, and the difference to what is. Where no endpoint would
//! be found there is no listener, so that clients are refused at once, as by kube-proxy's REJECT.

mod health;
pub(crate) mod l4;
pub(crate) mod udp;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::balance::{Door, Way};
use crate::connections::{Connection, Connections};
use crate::listener;
use crate::problems::About;
use crate::routes::{HostPort, Protocol};
use crate::shared::Shared;
use crate::table::Table;

/// What identifies a listener.
type Place = (Protocol, SocketAddr);

/// The running listeners, by their places.
#[derive(Default)]
pub(crate) struct Listeners {
    running: HashMap<Place, Running>,
}

struct Running {
    /// Whom it serves now; a place may pass from one Service to another without being closed.
    serves: Arc<ArcSwap<Serves>>,
    stop: CancellationToken,
    /// The kernel refused for now; asked again with every change.
    again: bool,
}

/// What a listener is for.
#[derive(Clone)]
enum Serves {
    /// A port of a Service or a pod.
    Port(Way),
    /// Telling whether this node has endpoints of a Service (namespace, name).
    Health(Arc<(String, String)>),
}

impl Serves {
    fn way(&self) -> Option<Way> {
        match self {
            Self::Port(way) => Some(way.clone()),
            Self::Health(_) => None,
        }
    }
}

/// A listener that should be.
struct Wanted {
    serves: Serves,
    about: About,
    what: &'static str,
}

impl Listeners {
    /// Stops what is not wanted any more, starts what is new, leaves alone all else. Must run inside the data runtime.
    pub(crate) fn apply(&mut self, shared: &Arc<Shared>, table: &Table, node_addresses: &[IpAddr]) {
        let Plan { wanted, conflicts } = plan(table, node_addresses);
        self.running.retain(|place, running| {
            match wanted.get(place) {
                Some(wanted) => running.serves.store(Arc::new(wanted.serves.clone())),
                None => running.stop.cancel(),
            }
            wanted.contains_key(place) && !running.again
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
            let serves = Arc::new(ArcSwap::from_pointee(wanted.serves));
            let started = start(shared, place, serves.clone(), stop.clone());
            match &started {
                Ok(()) => shared.problems.clear(&wanted.about),
                Err(error) => {
                    shared.problems.add(wanted.about, listener::explain(wanted.what, place.1, error));
                }
            }
            // A missing privilege will go on missing.
            let again = started.is_err_and(|error| error.kind() != ErrorKind::PermissionDenied);
            self.running.insert(place, Running { serves, stop, again });
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
        let (namespace, name) = (&service.route.namespace, &service.route.name);
        let mut add = |protocol, at, serves, what| {
            let about = About::Service { namespace: namespace.clone(), name: name.clone(), at };
            // Two Services may claim one external address; the first keeps it.
            wanted.entry((protocol, at)).or_insert(Wanted { serves, about, what });
        };
        for (route, port) in service.route.ports.iter().zip(&service.ports) {
            let mut add_way = |door, at, what| {
                let way = Way { port: port.clone(), door };
                if !way.is_empty() {
                    add(route.protocol, at, Serves::Port(way), what);
                }
            };
            for (address, door) in service.doors() {
                add_way(door, SocketAddr::new(address, route.port), "service address");
            }
            for address in node_addresses.iter().filter(|_| route.node_port.is_some()) {
                let at = SocketAddr::new(*address, route.node_port.unwrap_or_default());
                add_way(Door::External, at, "node port");
            }
        }
        if let Some(check) = &service.route.health_check {
            for address in node_addresses {
                let of = Arc::new((namespace.clone(), name.clone()));
                add(Protocol::Tcp, SocketAddr::new(*address, check.port), Serves::Health(of), "health check port");
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
                    let way = Way { port: port.clone(), door: Door::External };
                    place.insert(Wanted { serves: Serves::Port(way), about, what: "host port" });
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

fn start(
    shared: &Arc<Shared>,
    place: Place,
    serves: Arc<ArcSwap<Serves>>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let (protocol, addr) = place;
    match protocol {
        Protocol::Tcp => {
            let listener = listener::bind(shared.local(addr))?;
            let shared = shared.clone();
            // Bounds are the listener's, but its connections are told to finish only when the whole proxy stops.
            let connections =
                Connections::bounded_in(&shared.service_connections, shared.limits.listener_connections_max);
            shared.data.clone().spawn(listener::accept(
                listener,
                connections,
                stop,
                move |stream, peer, connection| serve(shared.clone(), serves.load_full(), stream, peer, connection),
            ));
        }
        Protocol::Udp => {
            let socket = udp::bind(shared.local(addr))?;
            shared.data.spawn(udp::serve(shared.clone(), socket, move || serves.load().way(), stop));
        }
    }
    Ok(())
}

async fn serve(shared: Arc<Shared>, serves: Arc<Serves>, stream: TcpStream, peer: SocketAddr, connection: Connection) {
    match &*serves {
        Serves::Port(way) => l4::connection(shared, way.clone(), stream, peer, connection).await,
        Serves::Health(of) => health::connection(shared, of.clone(), stream, connection).await,
    }
}
