//! `wasi:sockets/ip-name-lookup` for guests: names are looked up by the pod's [`Network`](crate::Network), never by the
//! node's resolver.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::FutureExt;
use futures::future::BoxFuture;
use wasmtime::component::{Linker, Resource, ResourceType};
use wasmtime::{Result, StoreContextMut};
use wasmtime_wasi::async_trait;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress};
use wasmtime_wasi::p2::{DynPollable, Network as NetworkResource, Pollable, subscribe};

use super::host::Host;
use super::linkers::P2;
use crate::spec::NetworkError;

/// Bytes of a name; DNS allows no more.
const NAME_BYTES_MAX: usize = 253;

/// A look-up under way or done: the guest's `resolve-address-stream`.
enum Lookup {
    Asking(BoxFuture<'static, Result<Vec<IpAddr>, ErrorCode>>),
    Done(Result<std::vec::IntoIter<IpAddr>, ErrorCode>),
}

impl Lookup {
    fn next(&mut self) -> Result<Option<IpAddress>, ErrorCode> {
        if let Lookup::Asking(answer) = self {
            let answer = answer.now_or_never().ok_or(ErrorCode::WouldBlock)?;
            *self = Lookup::Done(answer.map(Vec::into_iter));
        }
        match self {
            Lookup::Asking(_) => Err(ErrorCode::WouldBlock),
            Lookup::Done(Ok(addresses)) => Ok(addresses.next().map(IpAddress::from)),
            Lookup::Done(Err(code)) => Err(*code),
        }
    }
}

#[async_trait]
impl Pollable for Lookup {
    async fn ready(&mut self) {
        if let Lookup::Asking(answer) = self {
            *self = Lookup::Done(answer.await.map(Vec::into_iter));
        }
    }
}

pub(super) fn define(linker: &mut Linker<Host>) -> Result<()> {
    let mut instance = linker.instance(&format!("wasi:sockets/ip-name-lookup@{P2}"))?;
    instance.resource("resolve-address-stream", ResourceType::host::<Lookup>(), |mut store, rep| {
        store.data_mut().table.delete(Resource::<Lookup>::new_own(rep))?;
        Ok(())
    })?;
    instance.func_wrap(
        "resolve-addresses",
        |mut store: StoreContextMut<'_, Host>, (_, name): (Resource<NetworkResource>, String)| {
            let host = store.data_mut();
            Ok((match look_up(host, &name) {
                Ok(lookup) => Ok(host.table.push(lookup)?),
                Err(code) => Err(code),
            },))
        },
    )?;
    instance.func_wrap(
        "[method]resolve-address-stream.resolve-next-address",
        |mut store: StoreContextMut<'_, Host>, (lookup,): (Resource<Lookup>,)| {
            Ok((store.data_mut().table.get_mut(&lookup)?.next(),))
        },
    )?;
    instance.func_wrap(
        "[method]resolve-address-stream.subscribe",
        |mut store: StoreContextMut<'_, Host>, (lookup,): (Resource<Lookup>,)| -> Result<(Resource<DynPollable>,)> {
            Ok((subscribe(&mut store.data_mut().table, lookup)?,))
        },
    )
}

fn look_up(host: &Host, name: &str) -> Result<Lookup, ErrorCode> {
    if let Some(address) = literal(name) {
        return Ok(Lookup::Done(Ok(vec![address].into_iter())));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
        return Err(ErrorCode::InvalidArgument);
    }
    if name.eq_ignore_ascii_case("localhost") {
        let network = &host.sandbox.network;
        let own = network.namespace().map_or_else(|| network.address(), |_| Ipv4Addr::LOCALHOST.into());
        return Ok(Lookup::Done(Ok(vec![own].into_iter())));
    }
    Ok(Lookup::Asking(asked(host.sandbox.network.resolve(name)).boxed()))
}

async fn asked(answer: impl Future<Output = Result<Vec<IpAddr>, NetworkError>>) -> Result<Vec<IpAddr>, ErrorCode> {
    match answer.await {
        Ok(addresses) if addresses.is_empty() => Err(ErrorCode::NameUnresolvable),
        Ok(addresses) => Ok(addresses),
        Err(NetworkError::NameNotFound(_)) => Err(ErrorCode::NameUnresolvable),
        Err(NetworkError::NameUnavailable | NetworkError::TimedOut) => Err(ErrorCode::TemporaryResolverFailure),
        Err(NetworkError::Denied) => Err(ErrorCode::AccessDenied),
        Err(NetworkError::Refused | NetworkError::Request(_)) => Err(ErrorCode::PermanentResolverFailure),
    }
}

fn literal(name: &str) -> Option<IpAddr> {
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    match bare {
        Some(bare) => bare.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => name.parse().ok(),
    }
}
