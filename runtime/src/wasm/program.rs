//! Programs: native code, linked, with what it can do.

use std::sync::Arc;

use wasmtime::component::{Component, InstancePre as ComponentPre};
use wasmtime::{Engine, InstancePre, Module};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::p3::bindings::CommandPre as CommandPreP3;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;

use super::cache::Native;
use super::engine::Parts;
use super::host::{CoreHost, Host};

/// Native code ready to run. Clones share it; the last one gone unmaps it.
#[derive(Clone)]
pub struct Program(pub(super) Arc<Loaded>);

impl Program {
    /// `sha256:` and the digest of the `.wasm` file.
    pub fn digest(&self) -> &str {
        &self.0.digest
    }

    /// What it can do.
    pub fn shape(&self) -> Shape {
        match &self.0.code {
            Code::Core(_) => Shape::Command,
            Code::Component { http: Some(_), .. } => Shape::Http,
            Code::Component { http: None, .. } => Shape::CommandComponent,
        }
    }
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program").field("digest", &self.digest()).field("shape", &self.shape()).finish()
    }
}

/// What a program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A preview 1 core module with `_start`.
    Command,
    /// A component that exports `wasi:cli/run`.
    CommandComponent,
    /// A component that exports `wasi:http/incoming-handler` (or preview 3's `wasi:http/handler`).
    Http,
}

/// The shared part of a [`Program`].
pub(super) struct Loaded {
    pub(super) digest: String,
    pub(super) file: String,
    pub(super) parts: Arc<Parts>,
    pub(super) code: Code,
}

impl Loaded {
    pub(super) fn engine(&self) -> &Engine {
        &self.parts.engine
    }

    /// Whether anything of it speaks preview 3.
    pub(super) fn p3(&self) -> bool {
        match &self.code {
            Code::Core(_) => false,
            Code::Component { run, http } => matches!(run, Some(RunPre::P3(_))) || matches!(http, Some(HttpPre::P3(_))),
        }
    }
}

/// Linked code, instantiated without further look-ups.
pub(super) enum Code {
    Core(InstancePre<CoreHost>),
    Component { run: Option<RunPre>, http: Option<HttpPre> },
}

/// `wasi:cli/run` of a component.
#[derive(Clone)]
pub(super) enum RunPre {
    P2(CommandPre<Host>),
    P3(CommandPreP3<Host>),
}

/// The request handler of a component.
#[derive(Clone)]
pub(super) enum HttpPre {
    P2(ProxyPre<Host>),
    P3(ServicePre<Host>),
}

/// Links native code, or says in one line what it lacks.
pub(super) fn link(parts: &Parts, native: Native) -> Result<Code, String> {
    match native {
        Native::Module(module) => link_module(parts, &module).map(Code::Core),
        Native::Component(component) => link_component(parts, &component),
    }
}

fn link_module(parts: &Parts, module: &Module) -> Result<InstancePre<CoreHost>, String> {
    if module.get_export("_start").is_none_or(|export| export.func().is_none()) {
        return Err("the module exports no function _start: it is not a WASI command".into());
    }
    parts.linkers.core.instantiate_pre(module).map_err(|error| {
        let text = format!("{error:#}");
        match quoted(&text) {
            Some(name) => format!("module imports {name} which is not provided"),
            None => text,
        }
    })
}

fn link_component(parts: &Parts, component: &Component) -> Result<Code, String> {
    let exports: Vec<String> =
        component.component_type().exports(&parts.engine).map(|(name, _)| name.to_owned()).collect();
    let exported = |name: &str| exports.iter().any(|export| export.starts_with(name));
    if !parts.p3 && (exported("wasi:http/handler@0.3") || exported("wasi:cli/run@0.3")) {
        return Err(P3_OFF.into());
    }
    let pre =
        parts.linkers.component.instantiate_pre(component).map_err(|error| unprovided(parts, component, &error))?;
    let code = Code::Component { run: run_of(parts, &pre), http: http_of(parts, &pre) };
    match &code {
        Code::Component { run: None, http: None } => Err(format!(
            "the component exports neither wasi:http/incoming-handler nor wasi:cli/run{}",
            match exports.as_slice() {
                [] => ": it exports nothing".to_owned(),
                exports => format!(" (it exports {})", exports.join(", ")),
            }
        )),
        _ => Ok(code),
    }
}

/// What is said of preview 3 programs on a node that does not take them.
pub(super) const P3_OFF: &str = "it is a WASI preview 3 component, and preview 3 is switched off on this node";

fn run_of(parts: &Parts, pre: &ComponentPre<Host>) -> Option<RunPre> {
    if let Ok(pre) = CommandPre::new(pre.clone()) {
        return Some(RunPre::P2(pre));
    }
    let pre = parts.p3.then(|| CommandPreP3::new(pre.clone()).ok())?;
    pre.map(RunPre::P3)
}

fn http_of(parts: &Parts, pre: &ComponentPre<Host>) -> Option<HttpPre> {
    if let Ok(pre) = ProxyPre::new(pre.clone()) {
        return Some(HttpPre::P2(pre));
    }
    let pre = parts.p3.then(|| ServicePre::new(pre.clone()).ok())?;
    pre.map(HttpPre::P3)
}

fn unprovided(parts: &Parts, component: &Component, error: &wasmtime::Error) -> String {
    let p3 = |name: &str| name.starts_with("wasi:") && name.contains("@0.3");
    if !parts.p3 && component.component_type().imports(&parts.engine).any(|(name, _)| p3(name)) {
        return P3_OFF.into();
    }
    let text = format!("{error:#}");
    match quoted(&text) {
        Some(name) if text.contains("not found in the linker") && !text.contains("wrong type") => {
            format!("component imports {name} which is not provided")
        }
        _ => text,
    }
}

/// The first name in backticks.
fn quoted(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once('`')?;
    rest.split_once('`').map(|(name, _)| name)
}
