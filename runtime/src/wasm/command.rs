//! One run of a command: instantiate, run to its end, and say how it ended.

use std::sync::Arc;

use wasmtime::{Engine, InstancePre, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use super::account::{Account, MemoryExceeded, Metered};
use super::host::{CoreHost, Sandbox, component_store, core_store};
use super::program::{Code, HttpPre, Loaded, RunPre};
use crate::spec::ExitReason;

/// The exit code of a guest that trapped: that of a process that aborted.
pub(super) const TRAPPED: i32 = 134;
/// The exit code of a guest that was killed.
const KILLED: i32 = 137;
/// The exit code of a guest whose terminal sent Ctrl-C.
const INTERRUPTED: i32 = 130;
/// Kubernetes' code for what could not even start.
const CANNOT_RUN: i32 = 128;

/// An exit without its times.
pub(super) struct End {
    pub(super) code: i32,
    pub(super) reason: ExitReason,
    pub(super) message: String,
}

impl End {
    pub(super) fn code(code: i32) -> End {
        let reason = if code == 0 { ExitReason::Completed } else { ExitReason::Error };
        End { code, reason, message: String::new() }
    }

    pub(super) fn killed() -> End {
        End { code: KILLED, reason: ExitReason::Error, message: "killed".into() }
    }

    pub(super) fn interrupted() -> End {
        End { code: INTERRUPTED, reason: ExitReason::Error, message: "interrupted".into() }
    }
}

/// Runs the program as a command. Dropping the future ends the guest.
pub(super) async fn run(program: Arc<Loaded>, sandbox: Arc<Sandbox>, account: Arc<Account>) -> End {
    let ran = Metered::new(account.clone(), run_guest(&program, &sandbox, &account)).await;
    match ran {
        Ok(code) => End::code(code),
        Err(failure) => {
            if let Some(text) = &failure.log {
                sandbox.outlets.stderr.say(text.as_bytes()).await;
            }
            failure.end
        }
    }
}

async fn run_guest(program: &Loaded, sandbox: &Arc<Sandbox>, account: &Arc<Account>) -> Result<i32, Failure> {
    let engine = program.engine();
    match &program.code {
        Code::Core(pre) => run_core(engine, pre, sandbox, account).await,
        Code::Component { run: Some(RunPre::P2(pre)), .. } => {
            let mut store = component_store(engine, sandbox, account);
            let command = pre.instantiate_async(&mut store).await.map_err(Failure::starting)?;
            let ended = command.wasi_cli_run().call_run(&mut store).await;
            code_of(ended.map(|ended| ended.map_err(|()| 1).map_or_else(|code| code, |()| 0)))
        }
        Code::Component { run: Some(RunPre::P3(pre)), .. } => {
            let mut store = component_store(engine, sandbox, account);
            let command = pre.instantiate_async(&mut store).await.map_err(Failure::starting)?;
            let ended = store.run_concurrent(async |accessor| command.wasi_cli_run().call_run(accessor).await).await;
            code_of(ended.and_then(|ended| ended).map(|ended| if ended.is_ok() { 0 } else { 1 }))
        }
        Code::Component { run: None, http } => {
            debug_assert!(matches!(http, Some(HttpPre::P2(_) | HttpPre::P3(_))));
            Err(Failure::starting(wasmtime::Error::msg("the component has no wasi:cli/run")))
        }
    }
}

async fn run_core(
    engine: &Engine,
    pre: &InstancePre<CoreHost>,
    sandbox: &Sandbox,
    account: &Arc<Account>,
) -> Result<i32, Failure> {
    let mut store = core_store(engine, sandbox, account).map_err(Failure::starting)?;
    let instance = pre.instantiate_async(&mut store).await.map_err(Failure::starting)?;
    let start = instance.get_typed_func::<(), ()>(&mut store, "_start").map_err(Failure::starting)?;
    code_of(start.call_async(&mut store, ()).await.map(|()| 0))
}

fn code_of(ended: wasmtime::Result<i32>) -> Result<i32, Failure> {
    match ended {
        Ok(code) => Ok(code),
        Err(error) => match error.downcast_ref::<I32Exit>() {
            Some(exit) => Ok(exit.0),
            None => Err(Failure::running(error)),
        },
    }
}

/// How a guest failed, with what belongs into its log.
pub(super) struct Failure {
    pub(super) end: End,
    pub(super) kind: FailureKind,
    /// Text for standard error: the trap with its backtrace.
    pub(super) log: Option<String>,
}

/// The kinds of failure a caller may want to tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// No instance could be made.
    Starting,
    /// Grew too large.
    Memory,
    /// Trapped, or the host refused to go on.
    Trapped,
    /// Ended itself with an exit code.
    Exited,
}

impl Failure {
    /// Whether what the guest was doing is unfinished; one that exits with success has said all it wanted to.
    pub(super) fn broke_off(&self) -> bool {
        self.end.code != 0
    }

    /// An instance that could not be made; a start function may have run and trapped, though.
    pub(super) fn starting(error: wasmtime::Error) -> Failure {
        if error.is::<Trap>() || error.is::<MemoryExceeded>() || error.is::<I32Exit>() {
            return Failure::running(error);
        }
        let message = format!("{error:#}");
        let end = End { code: CANNOT_RUN, reason: ExitReason::ContainerCannotRun, message: message.clone() };
        Failure { end, kind: FailureKind::Starting, log: Some(format!("cannot start: {message}\n")) }
    }

    /// A guest that did not come to its own end.
    pub(super) fn running(error: wasmtime::Error) -> Failure {
        if let Some(exit) = error.downcast_ref::<I32Exit>() {
            let mut end = End::code(exit.0);
            end.message = format!("exited with code {}", exit.0);
            return Failure { end, kind: FailureKind::Exited, log: None };
        }
        if let Some(exceeded) = error.downcast_ref::<MemoryExceeded>() {
            let message = exceeded.to_string();
            let log = Some(format!("{message}\n"));
            let end = End { code: KILLED, reason: ExitReason::OomKilled, message };
            return Failure { end, kind: FailureKind::Memory, log };
        }
        let message = error.root_cause().to_string();
        // Only the guest's frames: the long form of the error may carry the host's as well.
        let log = match error.downcast_ref::<WasmBacktrace>() {
            Some(frames) => format!("Error: {message}\nwasm backtrace:\n{frames}\n"),
            None => format!("Error: {message}\n"),
        };
        let end = End { code: TRAPPED, reason: ExitReason::Error, message };
        Failure { end, kind: FailureKind::Trapped, log: Some(log) }
    }
}
