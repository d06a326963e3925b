//! `wasi:sockets` for guests: a socket lives on the pod's address and reaches services where their endpoints are.
//!
//! Only the functions that carry an address are redefined; each edits the address and calls the original. A guest can
//! bind nothing but its pod's address, so pods cannot take each other's ports or the node's. Inside the cluster a socket shows that address
//! too, so that others know who comes; to the outside the kernel chooses one that is answered. Policies are asked by [`super::gate`].
//! Where the node has the cluster's addresses elsewhere ([`Network::bound`]), sockets are there, and guests and policies hear of the cluster's.
//!
//! A pod with a network namespace needs less: its sockets are made in there, and only what is routed is still edited.
//!
//! Deliberately absent: the editing of addresses for preview 3. Its sockets are made in the pod's namespace too, but
//! only pass [`is_allowed`]: without a namespace they have to name the pod's address themselves, and they reach no
//! virtual one; and the pod's address for connections, which show the node's.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::task::Poll;

use wasmtime::component::{Linker, LinkerInstance, Resource};
use wasmtime::{Result, StoreContextMut};
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, Host as _, IpAddressFamily, IpSocketAddress};
use wasmtime_wasi::p2::bindings::sockets::tcp::HostTcpSocket;
use wasmtime_wasi::p2::bindings::sockets::udp::{
    HostIncomingDatagramStream, HostOutgoingDatagramStream, HostUdpSocket, IncomingDatagramStream, OutgoingDatagram,
    OutgoingDatagramStream,
};
use wasmtime_wasi::p2::bindings::sockets::{instance_network, tcp_create_socket, udp_create_socket};
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, Network as NetworkResource, SocketError as SocketFault, SocketResult, TcpSocket,
    UdpSocket,
};
use wasmtime_wasi::p3::bindings::sockets::types;
use wasmtime_wasi::p3::sockets::SocketError;
use wasmtime_wasi::sockets::{SocketAddrUse, WasiSocketsView};

use super::host::Host;
use super::linkers::{P2, P3};
use crate::spec::{Network, Transport};

pub(super) fn define(linker: &mut Linker<Host>) -> Result<()> {
    tcp(linker)?;
    udp(linker)?;
    create(linker)
}

/// Sockets are made where the pod is.
fn create(linker: &mut Linker<Host>) -> Result<()> {
    linker.instance(&format!("wasi:sockets/tcp-create-socket@{P2}"))?.func_wrap(
        "create-tcp-socket",
        |mut store: StoreContextMut<'_, Host>, (family,): (IpAddressFamily,)| {
            let network = store.data().sandbox.network.clone();
            let made = inside(&*network, || {
                tcp_create_socket::Host::create_tcp_socket(&mut store.data_mut().sockets(), family)
            });
            Ok((code(store.data_mut(), made.unwrap_or_else(|error| Err(error.into())))?,))
        },
    )?;
    linker.instance(&format!("wasi:sockets/udp-create-socket@{P2}"))?.func_wrap_async(
        "create-udp-socket",
        |mut store, (family,): (IpAddressFamily,)| {
            Box::new(async move {
                let network = store.data().sandbox.network.clone();
                let made = {
                    let mut sockets = store.data_mut().sockets();
                    let making = udp_create_socket::Host::create_udp_socket(&mut sockets, family);
                    polled_inside(&*network, making).await
                };
                Ok((code(store.data_mut(), made.unwrap_or_else(|error| Err(error.into())))?,))
            })
        },
    )
}

/// The same for preview 3.
pub(super) fn define_p3(linker: &mut Linker<Host>) -> Result<()> {
    let mut instance = linker.instance(&format!("wasi:sockets/types@{P3}"))?;
    instance.func_wrap(
        "[static]tcp-socket.create",
        |mut store: StoreContextMut<'_, Host>, (family,): (types::IpAddressFamily,)| {
            let network = store.data().sandbox.network.clone();
            let made = inside(&*network, || types::HostTcpSocket::create(&mut store.data_mut().sockets(), family));
            Ok((code_p3(store.data_mut(), made)?,))
        },
    )?;
    instance.func_wrap_async("[static]udp-socket.create", |mut store, (family,): (types::IpAddressFamily,)| {
        Box::new(async move {
            let network = store.data().sandbox.network.clone();
            let made = {
                let mut sockets = store.data_mut().sockets();
                polled_inside(&*network, types::HostUdpSocket::create(&mut sockets, family)).await
            };
            Ok((code_p3(store.data_mut(), made)?,))
        })
    })
}

/// Acts in the pod's namespace, if it has one.
fn inside<T>(network: &dyn Network, act: impl FnOnce() -> T) -> io::Result<T> {
    match network.namespace() {
        Some(namespace) => namespace.run(act),
        None => Ok(act()),
    }
}

/// Polls in the pod's namespace. The thread is outside of it whenever it does something else.
async fn polled_inside<F: Future>(network: &dyn Network, future: F) -> io::Result<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| match inside(network, || future.as_mut().poll(cx)) {
        Ok(polled) => polled.map(Ok),
        Err(error) => Poll::Ready(Err(error)),
    })
    .await
}

fn tcp(linker: &mut Linker<Host>) -> Result<()> {
    let mut instance = linker.instance(&format!("wasi:sockets/tcp@{P2}"))?;
    instance.func_wrap_async(
        "[method]tcp-socket.start-bind",
        |mut store, (socket, network, address): Bind<TcpSocket>| {
            Box::new(async move {
                let Ok(address) = bound(store.data(), address, Transport::Tcp) else {
                    return Ok((Err(ErrorCode::AddressNotBindable),));
                };
                let done = HostTcpSocket::start_bind(&mut store.data_mut().sockets(), socket, network, address).await;
                Ok((code(store.data_mut(), done)?,))
            })
        },
    )?;
    instance.func_wrap_async(
        "[method]tcp-socket.start-connect",
        |mut store, (socket, network, address): Bind<TcpSocket>| {
            Box::new(async move {
                let address = routed(store.data(), address, Transport::Tcp);
                if let Some(own) = source(store.data(), address, Transport::Tcp) {
                    let done = show_tcp(store.data_mut(), &socket, &network, own).await;
                    if let Err(error) = code(store.data_mut(), done)? {
                        return Ok((Err(error),));
                    }
                }
                let done = HostTcpSocket::start_connect(&mut store.data_mut().sockets(), socket, network, address);
                Ok((code(store.data_mut(), done)?,))
            })
        },
    )?;
    instance.func_wrap(
        "[method]tcp-socket.accept",
        |mut store: StoreContextMut<'_, Host>, (socket,): (Resource<TcpSocket>,)| {
            let done = accept(store.data_mut(), socket);
            Ok((code(store.data_mut(), done)?,))
        },
    )?;
    instance.func_wrap(
        "[method]tcp-socket.local-address",
        |mut store: StoreContextMut<'_, Host>, (socket,): (Resource<TcpSocket>,)| {
            let address = HostTcpSocket::local_address(&mut store.data_mut().sockets(), socket);
            Ok((shown(store.data_mut(), address, Transport::Tcp)?,))
        },
    )?;
    instance.func_wrap(
        "[method]tcp-socket.remote-address",
        |mut store: StoreContextMut<'_, Host>, (socket,): (Resource<TcpSocket>,)| {
            let address = HostTcpSocket::remote_address(&mut store.data_mut().sockets(), socket);
            Ok((shown(store.data_mut(), address, Transport::Tcp)?,))
        },
    )
}

/// An address as the cluster knows it.
fn shown(
    host: &mut Host,
    address: SocketResult<IpSocketAddress>,
    transport: Transport,
) -> Result<Result<IpSocketAddress, ErrorCode>> {
    let network = host.sandbox.network.clone();
    code(host, address.map(|address| network.shown(address.into(), transport).into()))
}

/// Where a socket is to be bound to show the pod's address where it connects to, if that may not be left to the kernel.
fn source(host: &Host, to: IpSocketAddress, transport: Transport) -> Option<IpSocketAddress> {
    let network = &host.sandbox.network;
    let (to, own) = (network.shown(to.into(), transport), network.address());
    let is_ours = network.namespace().is_none() && to.is_ipv4() == own.is_ipv4() && network.is_inside(to.ip());
    is_ours.then(|| network.bound(SocketAddr::new(own, 0)).into())
}

/// Binds a socket to the pod's address, unless its guest has bound it.
async fn show_tcp(
    host: &mut Host,
    socket: &Resource<TcpSocket>,
    network: &Resource<NetworkResource>,
    own: IpSocketAddress,
) -> SocketResult<()> {
    let mut sockets = host.sockets();
    let same = || Resource::new_borrow(socket.rep());
    if HostTcpSocket::local_address(&mut sockets, same()).is_ok() {
        return Ok(());
    }
    HostTcpSocket::start_bind(&mut sockets, same(), Resource::new_borrow(network.rep()), own).await?;
    HostTcpSocket::finish_bind(&mut sockets, same())
}

type Accepted = (Resource<TcpSocket>, Resource<DynInputStream>, Resource<DynOutputStream>);

/// A connection that policies let in at the port it came to; others are closed, as if they had not come.
fn accept(host: &mut Host, socket: Resource<TcpSocket>) -> SocketResult<Accepted> {
    let (gate, network) = (host.sandbox.gate.clone(), host.sandbox.network.clone());
    let mut sockets = host.sockets();
    let (accepted, input, output) = HostTcpSocket::accept(&mut sockets, socket)?;
    if network.namespace().is_some() {
        return Ok((accepted, input, output));
    }
    let same = || Resource::new_borrow(accepted.rep());
    let shown = |address: IpSocketAddress| network.shown(address.into(), Transport::Tcp);
    // a peer that has gone already can do no harm
    let from = HostTcpSocket::remote_address(&mut sockets, same()).map(shown);
    let at = HostTcpSocket::local_address(&mut sockets, same()).map(shown);
    let is_welcome = match (from, at) {
        (Ok(from), Ok(at)) => gate.admits(from, at.port(), Transport::Tcp),
        _ => true,
    };
    if is_welcome {
        return Ok((accepted, input, output));
    }
    sockets.table.delete(input)?;
    sockets.table.delete(output)?;
    sockets.table.delete(accepted)?;
    Err(ErrorCode::WouldBlock.into())
}

fn udp(linker: &mut Linker<Host>) -> Result<()> {
    let mut instance = linker.instance(&format!("wasi:sockets/udp@{P2}"))?;
    instance.func_wrap_async(
        "[method]udp-socket.start-bind",
        |mut store, (socket, network, address): Bind<UdpSocket>| {
            Box::new(async move {
                let Ok(address) = bound(store.data(), address, Transport::Udp) else {
                    return Ok((Err(ErrorCode::AddressNotBindable),));
                };
                let done = HostUdpSocket::start_bind(&mut store.data_mut().sockets(), socket, network, address).await;
                Ok((code(store.data_mut(), done)?,))
            })
        },
    )?;
    instance.func_wrap_async(
        "[method]udp-socket.stream",
        |mut store, (socket, remote): (Resource<UdpSocket>, Option<IpSocketAddress>)| {
            Box::new(async move {
                let remote = remote.map(|address| routed(store.data(), address, Transport::Udp));
                let done = stream(store.data_mut(), socket, remote).await;
                Ok((code(store.data_mut(), done)?,))
            })
        },
    )?;
    instance.func_wrap(
        "[method]incoming-datagram-stream.receive",
        |mut store: StoreContextMut<'_, Host>, (stream, results_max): (Resource<IncomingDatagramStream>, u64)| {
            let host = store.data_mut();
            let port = host.datagram_ports.get(&stream.rep()).copied().unwrap_or_default();
            let mut done = HostIncomingDatagramStream::receive(&mut host.sockets(), stream, results_max);
            if let Ok(datagrams) = &mut done
                && host.sandbox.network.namespace().is_none()
            {
                let (network, gate) = (&host.sandbox.network, &host.sandbox.gate);
                datagrams.retain_mut(|datagram| {
                    let from = network.shown(datagram.remote_address.into(), Transport::Udp);
                    datagram.remote_address = from.into();
                    gate.admits(from, port, Transport::Udp)
                });
            }
            Ok((code(store.data_mut(), done)?,))
        },
    )?;
    instance.func_wrap(
        "[method]outgoing-datagram-stream.send",
        |mut store: StoreContextMut<'_, Host>,
         (stream, datagrams): (Resource<OutgoingDatagramStream>, Vec<OutgoingDatagram>)| {
            let route = |mut datagram: OutgoingDatagram| {
                let to = datagram.remote_address;
                datagram.remote_address = to.map(|address| routed(store.data(), address, Transport::Udp));
                datagram
            };
            let datagrams = datagrams.into_iter().map(route).collect();
            let done = HostOutgoingDatagramStream::send(&mut store.data_mut().sockets(), stream, datagrams);
            Ok((code(store.data_mut(), done)?,))
        },
    )?;
    udp_shown(&mut instance)
}

/// What a guest is told of a socket's addresses.
fn udp_shown(instance: &mut LinkerInstance<'_, Host>) -> Result<()> {
    instance.func_wrap(
        "[method]udp-socket.local-address",
        |mut store: StoreContextMut<'_, Host>, (socket,): (Resource<UdpSocket>,)| {
            let address = HostUdpSocket::local_address(&mut store.data_mut().sockets(), socket);
            Ok((shown(store.data_mut(), address, Transport::Udp)?,))
        },
    )?;
    instance.func_wrap(
        "[method]udp-socket.remote-address",
        |mut store: StoreContextMut<'_, Host>, (socket,): (Resource<UdpSocket>,)| {
            let address = HostUdpSocket::remote_address(&mut store.data_mut().sockets(), socket);
            Ok((shown(store.data_mut(), address, Transport::Udp)?,))
        },
    )
}

type Streams = (Resource<IncomingDatagramStream>, Resource<OutgoingDatagramStream>);

/// The streams of a socket, which shows the pod's address to a peer inside the cluster.
async fn stream(
    host: &mut Host,
    socket: Resource<UdpSocket>,
    remote: Option<IpSocketAddress>,
) -> SocketResult<Streams> {
    if let Some(own) = remote.and_then(|remote| source(host, remote, Transport::Udp)) {
        show_udp(host, &socket, own).await?;
    }
    let same = || Resource::new_borrow(socket.rep());
    let local = HostUdpSocket::local_address(&mut host.sockets(), same()).map(SocketAddr::from);
    // before it is connected: the kernel then says an address of its own choice
    if let Ok(local) = local {
        host.sandbox.network.hears(local);
    }
    let streams = HostUdpSocket::stream(&mut host.sockets(), same(), remote).await?;
    let local = HostUdpSocket::local_address(&mut host.sockets(), same())?;
    let port = host.sandbox.network.shown(local.into(), Transport::Udp).port();
    host.datagram_ports.insert(streams.0.rep(), port);
    Ok(streams)
}

/// Puts a socket with the pod's address in place of one whose address was left to the kernel. Nobody has seen its port.
async fn show_udp(host: &mut Host, socket: &Resource<UdpSocket>, own: IpSocketAddress) -> SocketResult<()> {
    let mut sockets = host.sockets();
    let same = || Resource::new_borrow(socket.rep());
    let local = HostUdpSocket::local_address(&mut sockets, same()).map(SocketAddr::from);
    // it may have streams only after this
    if local.is_err() || local.is_ok_and(|local| !local.ip().is_unspecified()) {
        return Ok(());
    }
    let hops = HostUdpSocket::unicast_hop_limit(&mut sockets, same())?;
    let family = HostUdpSocket::address_family(&mut sockets, same()).map_err(SocketFault::trap)?;
    let fresh = udp_create_socket::Host::create_udp_socket(&mut sockets, family).await?;
    let new = || Resource::new_borrow(fresh.rep());
    let network = instance_network::Host::instance_network(&mut sockets).map_err(SocketFault::trap)?;
    let bound = HostUdpSocket::start_bind(&mut sockets, new(), Resource::new_borrow(network.rep()), own).await;
    let bound = bound.and_then(|()| HostUdpSocket::finish_bind(&mut sockets, new()));
    let set = bound.and_then(|()| HostUdpSocket::set_unicast_hop_limit(&mut sockets, new(), hops));
    sockets.table.delete(network)?;
    let made = sockets.table.delete(fresh)?;
    set?;
    *sockets.table.get_mut(socket)? = made;
    Ok(())
}

type Bind<T> = (Resource<T>, Resource<NetworkResource>, IpSocketAddress);

fn code<T>(host: &mut Host, done: SocketResult<T>) -> Result<Result<T, ErrorCode>> {
    match done {
        Ok(value) => Ok(Ok(value)),
        Err(error) => Ok(Err(host.sockets().convert_error_code(error)?)),
    }
}

fn code_p3<T>(host: &mut Host, made: io::Result<Result<T, SocketError>>) -> Result<Result<T, types::ErrorCode>> {
    match made {
        Ok(Ok(value)) => Ok(Ok(value)),
        Ok(Err(error)) => Ok(Err(types::Host::convert_error_code(&mut host.sockets(), error)?)),
        Err(error) => Ok(Err(error.into())),
    }
}

fn bound(host: &Host, address: IpSocketAddress, transport: Transport) -> Result<IpSocketAddress, Foreign> {
    if host.sandbox.network.namespace().is_some() {
        return Ok(address);
    }
    let network = &host.sandbox.network;
    bind_address(address.into(), network.address(), transport).map(|address| network.bound(address).into())
}

/// The address does not belong to the pod.
#[derive(Debug, PartialEq)]
struct Foreign;

/// Where a socket of the pod really binds.
fn bind_address(wanted: SocketAddr, pod: IpAddr, transport: Transport) -> Result<SocketAddr, Foreign> {
    // A datagram socket that only sends: left to the kernel, which knows the right source address for each way.
    if transport == Transport::Udp && wanted.ip().is_unspecified() && wanted.port() == 0 {
        return Ok(wanted);
    }
    let ours = wanted.ip().is_unspecified() || is_localhost(wanted.ip()) || wanted.ip() == pod;
    match ours && wanted.is_ipv4() == pod.is_ipv4() {
        true => Ok(SocketAddr::new(pod, wanted.port())),
        false => Err(Foreign),
    }
}

fn routed(host: &Host, address: IpSocketAddress, transport: Transport) -> IpSocketAddress {
    let network = &host.sandbox.network;
    let wanted = match network.namespace() {
        Some(_) => address.into(),
        None => pod_address(address.into(), network.address()),
    };
    network.route(wanted, transport).into()
}

/// A pod's localhost is its own address, so that its containers find each other and nothing of the node's.
fn pod_address(wanted: SocketAddr, pod: IpAddr) -> SocketAddr {
    let own = is_localhost(wanted.ip()) || wanted.ip().is_unspecified();
    match own && wanted.is_ipv4() == pod.is_ipv4() {
        true => SocketAddr::new(pod, wanted.port()),
        false => wanted,
    }
}

/// The last word on every address a socket uses, edited before or not.
pub(super) fn is_allowed(address: SocketAddr, act: SocketAddrUse, pod: IpAddr) -> bool {
    let (own, open) = (address.ip() == pod, address.ip().is_unspecified());
    match act {
        // The kernel's choice for a socket that only connects or sends.
        SocketAddrUse::TcpBind | SocketAddrUse::UdpBind => own || (open && address.port() == 0),
        SocketAddrUse::TcpListen => own,
        SocketAddrUse::TcpConnect | SocketAddrUse::UdpSend => own || !(open || is_localhost(address.ip())),
        SocketAddrUse::TcpAccept | SocketAddrUse::UdpReceive => true,
    }
}

/// What the socket is that acts.
pub(super) fn transport(act: SocketAddrUse) -> Transport {
    match act {
        SocketAddrUse::TcpBind | SocketAddrUse::TcpListen | SocketAddrUse::TcpConnect | SocketAddrUse::TcpAccept => {
            Transport::Tcp
        }
        SocketAddrUse::UdpBind | SocketAddrUse::UdpSend | SocketAddrUse::UdpReceive => Transport::Udp,
    }
}

/// The same for a socket in the pod's own namespace, which has no addresses but the pod's.
pub(super) fn is_allowed_inside(address: SocketAddr, act: SocketAddrUse, pod: IpAddr) -> bool {
    match act {
        SocketAddrUse::TcpBind | SocketAddrUse::UdpBind | SocketAddrUse::TcpListen => {
            address.ip() == pod || address.ip().is_unspecified() || address.ip().is_loopback()
        }
        _ => true,
    }
}

/// Exactly localhost: the rest of 127.0.0.0/8 may be other pods.
fn is_localhost(address: IpAddr) -> bool {
    address == Ipv4Addr::LOCALHOST || address == Ipv6Addr::LOCALHOST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_binds_nothing_but_its_address() {
        let pod: IpAddr = "10.42.0.7".parse().unwrap();
        let bind = |wanted: &str, transport| {
            bind_address(wanted.parse().unwrap(), pod, transport).map(|address| address.to_string())
        };
        let own = Ok("10.42.0.7:80".to_owned());
        for wanted in ["0.0.0.0:80", "127.0.0.1:80", "10.42.0.7:80"] {
            assert_eq!(bind(wanted, Transport::Tcp), own, "{wanted}");
        }
        for wanted in ["10.42.0.8:80", "192.168.1.1:80", "127.0.0.2:80", "[::]:80"] {
            assert_eq!(bind(wanted, Transport::Tcp), Err(Foreign), "{wanted}");
        }
        assert_eq!(bind("0.0.0.0:0", Transport::Udp), Ok("0.0.0.0:0".to_owned()));
        assert_eq!(bind("0.0.0.0:0", Transport::Tcp), Ok("10.42.0.7:0".to_owned()));
    }

    #[test]
    fn what_was_not_edited_cannot_leave_the_pod() {
        let pod: IpAddr = "10.42.0.7".parse().unwrap();
        let allowed = |address: &str, act| is_allowed(address.parse().unwrap(), act, pod);
        assert!(allowed("10.42.0.7:80", SocketAddrUse::TcpBind));
        assert!(!allowed("0.0.0.0:80", SocketAddrUse::TcpBind));
        assert!(!allowed("0.0.0.0:32768", SocketAddrUse::TcpListen));
        assert!(!allowed("0.0.0.0:53", SocketAddrUse::UdpBind));
        assert!(!allowed("127.0.0.1:6443", SocketAddrUse::TcpConnect));
        assert!(!allowed("[::1]:6443", SocketAddrUse::UdpSend));
        assert!(allowed("192.0.2.1:443", SocketAddrUse::TcpConnect));
    }

    #[test]
    fn in_a_namespace_localhost_is_itself() {
        let pod: IpAddr = "10.42.128.7".parse().unwrap();
        let allowed = |address: &str, act| is_allowed_inside(address.parse().unwrap(), act, pod);
        for address in ["10.42.128.7:80", "0.0.0.0:80", "[::]:80", "127.0.0.1:80", "[::1]:80"] {
            assert!(
                allowed(address, SocketAddrUse::TcpBind) && allowed(address, SocketAddrUse::TcpListen),
                "{address}"
            );
            assert!(allowed(address, SocketAddrUse::TcpConnect), "{address}");
        }
        assert!(!allowed("192.0.2.1:80", SocketAddrUse::UdpBind));
        assert!(allowed("192.0.2.1:80", SocketAddrUse::UdpSend));
    }

    #[test]
    fn localhost_is_the_pod() {
        let pod: IpAddr = "127.42.0.7".parse().unwrap();
        let to = |wanted: &str| pod_address(wanted.parse().unwrap(), pod).to_string();
        assert_eq!(to("127.0.0.1:5432"), "127.42.0.7:5432");
        assert_eq!(to("127.42.0.9:80"), "127.42.0.9:80");
        assert_eq!(to("192.0.2.1:80"), "192.0.2.1:80");
    }
}
