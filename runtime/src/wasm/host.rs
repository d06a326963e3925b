//! What a store holds: the host's side of one instance.
//!
//! [`Sandbox`] is what all instances of a container share and is made once; [`Host`] is made per instance, and since an
//! HTTP component may get one per request, it holds nothing that has to be copied or opened: arguments, environment and
//! directories are handed out by [`super::linkers`] when a guest asks.

use std::collections::HashMap;
use std::sync::Arc;

use cap_std::fs::Dir as CapDir;
use std::os::fd::AsRawFd;
use wasmtime::component::ResourceTable;
use wasmtime::{Engine, Store};
use wasmtime_wasi::filesystem::Dir;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{FsPerms, OpenMode, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use super::account::{Account, MemoryShare};
use super::gate::Gate;
use super::outgoing::Outgoing;
use super::pipe::Stdin;
use super::sockets;
use super::stdio::Outlets;
use crate::spec::{ContainerSpec, Mount, Network, StartError};

/// Host objects (streams, sockets, files, headers) one instance may hold.
const TABLE_ENTRIES_MAX: usize = 50_000;
/// Bytes a guest may pass to the host in one call.
const HOSTCALL_BYTES_MAX: usize = 16 << 20;

/// What every instance of a container sees.
#[derive(Clone)]
pub(super) struct Sandbox {
    pub(super) args: Arc<Vec<String>>,
    pub(super) env: Arc<Vec<(String, String)>>,
    pub(super) working_dir: Option<Arc<str>>,
    pub(super) mounts: Arc<Vec<(Mount, Dir)>>,
    /// Empty where there is none.
    pub(super) stdin: Option<Stdin>,
    pub(super) outlets: Outlets,
    pub(super) network: Arc<dyn Network>,
    pub(super) gate: Arc<Gate>,
}

impl Sandbox {
    pub(super) fn new(spec: &ContainerSpec, stdin: Option<Stdin>, outlets: Outlets) -> Result<Sandbox, StartError> {
        let mut mounts = Vec::new();
        for mount in &spec.mounts {
            let dir = preopen(&mount.host, mount.read_only)
                .map_err(|error| StartError::Mount { guest: mount.guest.clone(), source: error.into() })?;
            mounts.push((mount.clone(), dir));
        }
        Ok(Sandbox {
            args: Arc::new(spec.args.clone()),
            env: Arc::new(last_of_each(&spec.env)),
            working_dir: spec.working_dir.as_deref().map(Arc::from),
            mounts: Arc::new(mounts),
            stdin,
            outlets,
            network: spec.network.clone(),
            gate: Gate::new(spec.network.clone(), spec.p3),
        })
    }

    fn context(&self) -> WasiCtxBuilder {
        let mut context = WasiCtx::builder();
        context.stdout(self.outlets.stdout.clone()).stderr(self.outlets.stderr.clone());
        if let Some(stdin) = &self.stdin {
            context.stdin(stdin.clone());
        }
        context
    }
}

fn preopen(dir: &CapDir, read_only: bool) -> std::io::Result<Dir> {
    let (perms, mode) = permissions(read_only);
    Ok(Dir::new(dir.try_clone()?.into_std_file(), perms, mode, false))
}

fn permissions(read_only: bool) -> (FsPerms, OpenMode) {
    match read_only {
        true => (FsPerms::ReadOnly, OpenMode::READ),
        false => (FsPerms::ReadWrite, OpenMode::READ | OpenMode::WRITE),
    }
}

fn last_of_each(env: &[(String, String)]) -> Vec<(String, String)> {
    let last = |at: usize, name: &str| !env[at + 1..].iter().any(|(later, _)| later == name);
    env.iter().enumerate().filter(|(at, (name, _))| last(*at, name)).map(|(_, pair)| pair.clone()).collect()
}

/// The store's data of a component instance.
pub(super) struct Host {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    pub(super) table: ResourceTable,
    outgoing: Outgoing,
    pub(super) sandbox: Arc<Sandbox>,
    /// Local ports of incoming datagram streams, by resource.
    pub(super) datagram_ports: HashMap<u32, u16>,
    memory: MemoryShare,
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for Host {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.outgoing }
    }
}

/// A store for one instance of a component.
pub(super) fn component_store(engine: &Engine, sandbox: &Arc<Sandbox>, account: &Arc<Account>) -> Store<Host> {
    let mut table = ResourceTable::new();
    table.set_max_capacity(TABLE_ENTRIES_MAX);
    let (network, gate) = (sandbox.network.clone(), sandbox.gate.clone());
    let (pod, is_inside) = (network.address(), network.namespace().is_some());
    let is_allowed = move |address, act| {
        let address = network.shown(address, sockets::transport(act));
        match is_inside {
            true => sockets::is_allowed_inside(address, act, pod),
            false => gate.allows(address, act),
        }
    };
    let wasi = sandbox
        .context()
        .allow_tcp(true)
        .allow_udp(true)
        .socket_addr_check(move |address, act| Box::pin(std::future::ready(is_allowed(address, act))))
        .build();
    let host = Host {
        wasi,
        http: WasiHttpCtx::new(),
        table,
        outgoing: Outgoing(sandbox.network.clone()),
        sandbox: sandbox.clone(),
        datagram_ports: HashMap::new(),
        memory: MemoryShare::new(account.clone()),
    };
    let mut store = Store::new(engine, host);
    store.limiter(|host| &mut host.memory);
    store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
    yield_at_ticks(&mut store);
    store
}

/// The store's data of a preview 1 module's instance.
pub(super) struct CoreHost {
    pub(super) wasi: WasiP1Ctx,
    memory: MemoryShare,
}

/// A store for a preview 1 module.
pub(super) fn core_store(
    engine: &Engine,
    sandbox: &Sandbox,
    account: &Arc<Account>,
) -> wasmtime::Result<Store<CoreHost>> {
    let mut context = sandbox.context();
    context.args(&sandbox.args).envs(&sandbox.env);
    if let Some(dir) = &sandbox.working_dir
        && !sandbox.env.iter().any(|(name, _)| name == "PWD")
    {
        context.env("PWD", dir);
    }
    for (mount, _) in sandbox.mounts.iter() {
        // The builder only opens paths; this one names the very directory we hold.
        let path = format!("/proc/self/fd/{}", mount.host.as_raw_fd());
        context.preopened_dir(path, &mount.guest, permissions(mount.read_only).0)?;
    }
    let host = CoreHost { wasi: context.build_p1(), memory: MemoryShare::new(account.clone()) };
    let mut store = Store::new(engine, host);
    store.limiter(|host| &mut host.memory);
    store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
    yield_at_ticks(&mut store);
    Ok(store)
}

/// From here on the guest comes back to the executor at each tick of the clock.
pub(super) fn yield_at_ticks<T>(store: &mut Store<T>) {
    store.set_epoch_deadline(1);
    store.epoch_deadline_async_yield_and_update(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_given_twice_keeps_its_last_value() {
        let env = [("A", "1"), ("B", "2"), ("A", "3")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let want = [("B", "2"), ("A", "3")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(last_of_each(&env), want);
    }
}
