//! What guests can import: WASI, with those of its functions redefined where a pod is not a process.
//!
//! Built once per engine. Arguments, environment and directories come from the [`Sandbox`](super::host::Sandbox) when
//! asked for instead of being copied into every instance; sockets and names are in [`super::sockets`] and
//! [`super::names`].

use wasmtime::component::{self, Resource};
use wasmtime::{Engine, Linker, Result, StoreContextMut};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::filesystem::Descriptor;

use super::host::{CoreHost, Host};
use super::{names, sockets};

/// The version wasmtime-wasi defines its preview 2 interfaces under; guests of any 0.2 version are linked to it.
pub(super) const P2: &str = "0.2.12";
pub(super) const P3: &str = "0.3.0";

/// The linkers of both kinds of programs.
pub(super) struct Linkers {
    pub(super) core: Linker<CoreHost>,
    pub(super) component: component::Linker<Host>,
}

impl Linkers {
    pub(super) fn new(engine: &Engine, p3: bool) -> Result<Linkers> {
        Ok(Linkers { core: core(engine)?, component: component(engine, p3)? })
    }
}

fn core(engine: &Engine) -> Result<Linker<CoreHost>> {
    let mut linker = Linker::new(engine);
    linker.allow_shadowing(true);
    wasmtime_wasi::p0::add_to_linker_async(&mut linker, |host: &mut CoreHost| &mut host.wasi)?;
    wasmtime_wasi::p1::add_to_linker_async(&mut linker, |host: &mut CoreHost| &mut host.wasi)?;
    // The stock function traps on codes from 126 on; containers use them.
    for module in ["wasi_snapshot_preview1", "wasi_unstable"] {
        linker.func_wrap(module, "proc_exit", |code: i32| -> Result<()> { Err(I32Exit(code & 0xff).into()) })?;
    }
    Ok(linker)
}

fn component(engine: &Engine, p3: bool) -> Result<component::Linker<Host>> {
    let mut linker = component::Linker::new(engine);
    linker.allow_shadowing(true);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    sandbox(&mut linker, P2)?;
    sockets::define(&mut linker)?;
    names::define(&mut linker)?;
    if p3 {
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
        wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
        sandbox(&mut linker, P3)?;
        sockets::define_p3(&mut linker)?;
    }
    Ok(linker)
}

/// The functions that hand out what a container was given; the same in both previews but for a name.
fn sandbox(linker: &mut component::Linker<Host>, version: &str) -> Result<()> {
    let mut environment = linker.instance(&format!("wasi:cli/environment@{version}"))?;
    environment
        .func_wrap("get-arguments", |store: StoreContextMut<'_, Host>, ()| Ok((store.data().sandbox.args.to_vec(),)))?;
    environment.func_wrap("get-environment", |store: StoreContextMut<'_, Host>, ()| {
        Ok((store.data().sandbox.env.to_vec(),))
    })?;
    let cwd = if version == P2 { "initial-cwd" } else { "get-initial-cwd" };
    environment.func_wrap(cwd, |store: StoreContextMut<'_, Host>, ()| {
        Ok((store.data().sandbox.working_dir.as_deref().map(str::to_owned),))
    })?;
    let mut preopens = linker.instance(&format!("wasi:filesystem/preopens@{version}"))?;
    preopens
        .func_wrap("get-directories", |mut store: StoreContextMut<'_, Host>, ()| Ok((directories(store.data_mut())?,)))
}

fn directories(host: &mut Host) -> Result<Vec<(Resource<Descriptor>, String)>> {
    let mounts = host.sandbox.mounts.clone();
    let shown = mounts.iter().map(|(mount, dir)| {
        let descriptor = host.table.push(Descriptor::Dir(dir.clone()))?;
        Ok((descriptor, mount.guest.clone()))
    });
    shown.collect()
}
