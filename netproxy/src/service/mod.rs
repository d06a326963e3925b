//! Listeners of Services: which addresses must be listened on, and the difference to what is. A port without ready endpoints has
//! no listener, so that clients are refused at once, as by kube-proxy's REJECT.

pub(crate) mod l4;
pub(crate) mod udp;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::balance::Port;
use crate::connections::Connections;
use crate::listener;
use crate::problems::About;
use crate::routes::Protocol;
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
        let wanted = wanted(table, node_addresses);
        self.running.retain(|place, running| {
            let keep = wanted.get(place).is_some_and(|wanted| Arc::ptr_eq(&wanted.port, &running.port));
            if !keep {
                running.stop.cancel();
            }
            keep && !running.again
        });
        shared.problems.clear_if(|about| {
            let About::Service { at, .. } = about else { return false };
            let is = |protocol| wanted.get(&(protocol, *at)).is_some_and(|wanted| wanted.about == *about);
            !is(Protocol::Tcp) && !is(Protocol::Udp)
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
    }
}

fn wanted(table: &Table, node_addresses: &[IpAddr]) -> HashMap<Place, Wanted> {
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
    wanted
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
